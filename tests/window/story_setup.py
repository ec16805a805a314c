"""The preferences: the check, and the backend installed by its button."""

from __future__ import annotations

from collections.abc import Iterator

import bpy
import hand
from stage import REPO, expect, package, shot, to_view, until


def preferences() -> Iterator[float]:
    with bpy.context.temp_override(**hand.override()):
        bpy.ops.preferences.addon_show(module=f"bl_ext.{REPO}.animate3d")
    yield 1.5
    yield from hand.push("animate3d.check(", "WINDOW", "PREFERENCES")
    watch = package("watch")
    yield from until(lambda: watch.setup is not None and watch.setup.is_done, "the check ends", 60)
    expect(watch.setup.error is None, f"the check failed: {list(watch.setup.lines)}")
    yield 1.0
    yield from shot("14_preferences")


def install_backend() -> Iterator[float]:
    """From the panel, which says what is missing, by the button, until what was installed passes its own check."""
    watch, places = package("watch"), package("places")
    expect(watch.state() is not None, "a backend is there before it is installed")
    yield from shot("install_0_missing")
    bpy.context.preferences.system.use_online_access = True
    yield from hand.push("animate3d.open_preferences(")
    yield 1.5
    yield from hand.push("animate3d.install(", "WINDOW", "PREFERENCES")
    yield from until(lambda: watch.setup is not None, "a click on Install Backend starts it")
    yield from until(lambda: watch.setup.is_done or watch.setup.step > 0, "the packages are fetched", 60)
    yield from shot("install_1_works")
    yield from until(lambda: watch.setup.is_done, "the backend is installed", 1200)
    yield 1.0
    yield from shot("install_2_done")
    if watch.setup.error is not None:
        raise RuntimeError(f"the installation failed: {watch.setup.error}\n{watch.setup.report}")
    expect(watch.backend_python().startswith(str(places.environment())), "another Python than the new one is used")
    with bpy.context.temp_override(window=hand.window("PREFERENCES")):
        bpy.ops.wm.window_close()
    yield 0.5
    to_view()
    yield 0.5


STORY = (("preferences", preferences),)
INSTALL = (("install the backend", install_backend),)
