"""What all parts of the window test use: the task, the report, the clock, waiting, screenshots, the selection."""

from __future__ import annotations

import importlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import bpy
import hand
from clock import Clock

TASK = json.loads(os.environ["ANIMATE3D_WINDOW_TEST"])
OUT = Path(TASK["out"])
REPO = "user_default"
CACTUS, EGG = "Cactus", "Egg"
report: dict = {"blender": bpy.app.version_string, "vertices": TASK["vertices"], "faults": [], "seconds": {}}
clock = Clock()


def expect(condition: bool, words: str) -> None:
    if not condition:
        report["faults"].append(words)


def until(condition: Callable[[], bool], words: str, patience: float = 20.0) -> Iterator[float]:
    """Waits; it is a fault where that takes too long."""
    deadline = time.monotonic() + patience * TASK["patience"]
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain: {words}")
        yield 0.1


def package(name: str = "") -> object:
    return importlib.import_module(f"bl_ext.{REPO}.animate3d.animate3d_addon{'.' if name else ''}{name}")


def queue() -> object:
    return package("watch").queue()


def shot(name: str) -> Iterator[float]:
    what, clock.what = clock.what, "screenshot"
    yield 0.05
    hand.screenshot(OUT / f"{name}.png")
    yield 0.1
    clock.what = what


def select(name: str) -> bpy.types.Object:
    for obj in bpy.context.view_layer.objects:
        obj.hide_set(obj.name != name)
        obj.select_set(obj.name == name)
    bpy.context.view_layer.objects.active = obj = bpy.data.objects[name]
    return obj


def to_view() -> None:
    """The mouse into the middle of the 3D view."""
    place = hand.region("WINDOW")
    hand.move(place.x + 0.37 * place.width, place.y + place.height // 2)


def until_applied(name: str) -> Iterator[float]:
    yield from until(lambda: not queue().is_busy, "the job ends", 120)
    job = queue().jobs[-1]
    expect(job.error is None, f"{job.error.message} {job.error.hint}" if job.error else "")
    yield from until(lambda: job.state in ("applied", "failed"), "the motion is applied")
    keys = bpy.data.objects[name].data.shape_keys
    expect(keys is not None and len(keys.key_blocks) == 16, f"{name} has no 16 shape keys")
