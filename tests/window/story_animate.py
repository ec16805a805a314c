"""From the zip to an object that moves, as a user goes: install, type, look, click, watch, undo, ask by right click."""

from __future__ import annotations

from collections.abc import Iterator

import bpy
import hand
from mathutils import Euler
from stage import CACTUS, EGG, REPO, TASK, expect, package, queue, select, shot, to_view, until, until_applied

SENTENCE = "a cactus sways from side to side"


def install() -> Iterator[float]:
    yield 1.0
    if "bl_pkg" not in bpy.context.preferences.addons:
        bpy.ops.preferences.addon_enable(module="bl_pkg")
    bpy.ops.extensions.package_install_files(filepath=TASK["zip"], repo=REPO, enable_on_install=True, overwrite=True)
    yield 1.0
    expect(hasattr(bpy.types.Scene, "animate3d"), "the extension is not enabled")
    if TASK["niceness"] is not None:
        package("backend_process").POLITE = TASK["niceness"]


def set_the_scene() -> Iterator[float]:
    for obj in list(bpy.data.objects):
        bpy.data.objects.remove(obj)
    side = max(3, round((TASK["vertices"] / 2) ** 0.5))
    with bpy.context.temp_override(**hand.override()):
        bpy.ops.mesh.primitive_uv_sphere_add(segments=2 * side, ring_count=side + 1)
        egg = bpy.context.object
        egg.name, egg.scale, egg.display_type = EGG, (0.5, 0.5, 1.0), "BOUNDS"  # drawn in software it takes a second
        bpy.ops.import_scene.gltf(filepath=TASK["cactus"])
        bpy.context.object.name = CACTUS
    select(CACTUS)
    hand.area().spaces.active.shading.color_type = "MATERIAL"
    with bpy.context.temp_override(**hand.override()):
        hand.area().spaces.active.region_3d.view_rotation = Euler((1.35, 0.0, 0.4)).to_quaternion()
        bpy.ops.view3d.view_selected()
        bpy.ops.view3d.zoom(delta=-1)
        bpy.ops.ed.undo_push(message="A cactus")
    yield 1.0


def open_the_panel() -> Iterator[float]:
    to_view()
    yield 0.3
    hand.press("n")
    yield 0.7
    expect(hand.area().spaces.active.show_region_ui, "N does not open the sidebar")
    yield from hand.open_tab("Animate3D")
    to_view()
    yield 0.5
    yield from shot("01_panel")


def type_a_sentence() -> Iterator[float]:
    yield from hand.find(".animate3d.prompt")
    hand.click()
    yield 0.5
    yield from hand.write(SENTENCE)
    yield 0.5
    hand.press("Return")
    yield 0.5
    said = bpy.context.scene.animate3d.prompt
    expect(said == SENTENCE, f"what was typed arrives as “{said}”")
    yield from shot("02_ready")


def look_first() -> Iterator[float]:
    """The four views that the model would see, before any long work."""
    watch = package("watch")
    yield from hand.push("animate3d.look(", column=0.93)
    to_view()
    yield from until(lambda: watch.look is not None and watch.look.is_done, "the four views are there", 60)
    expect(watch.look.error is None, f"the look fails: {watch.look.error}")
    yield 1.0
    pictures = package("previews").views(watch.look.job.folder)
    expect(len(pictures) == 4 and all(pictures), f"there are {len(pictures)} views to see")
    yield from shot("03_look")
    folder = watch.look.job.folder
    yield from hand.push("animate3d.close_look(", column=0.93)
    yield 0.3
    expect(watch.look is None and not folder.exists(), "the look is still there after it was closed")


def watch_it() -> Iterator[float]:
    """A job that shows its preview; the screenshots take time, so that the next job alone is measured."""
    previews = package("previews")
    yield from hand.push("animate3d.animate(")
    yield from until(lambda: queue().is_busy, "a click on Animate starts a job")
    to_view()
    yield from until(lambda: at("capture"), "the capture begins")
    yield from shot("04_capture")
    yield from until(lambda: at("video"), "the video begins", 60)
    yield from shot("05_video")
    yield from until(lambda: shown() or not queue().is_busy, "the video plays", 90)
    expect(shown(), "the panel shows nothing of the video while the job runs")
    yield 0.3
    expect(len(previews._frames) == 16 or not queue().is_busy, f"the video has {len(previews._frames)} frames")
    yield from shot("06_preview")
    yield from until_applied(CACTUS)
    bpy.context.scene.frame_set(10)
    yield 0.5
    yield from shot("07_moves")


def at(*stages: str) -> bool:
    """Whether the job that runs is at one of these stages; with none running, no."""
    job = queue().current
    return job is not None and job.stage in stages


def shown() -> bool:
    """Whether the panel plays the video of the job that runs."""
    previews, job = package("previews"), queue().current
    return job is not None and previews._shown[0] == str(job.folder) and len(previews._frames) > 0


def undo_and_redo() -> Iterator[float]:
    to_view()
    yield 0.2
    hand.press("ctrl+z")
    yield 1.0
    obj = bpy.data.objects[CACTUS]
    expect(obj.data.shape_keys is None and not obj.animate3d.takes, "Ctrl-Z does not bring back what was")
    hand.press("ctrl+shift+z")
    yield 1.0
    obj = bpy.data.objects[CACTUS]
    expect(obj.data.shape_keys is not None and len(obj.animate3d.takes) == 1, "redo does not bring the take again")


def right_click_and_cancel() -> Iterator[float]:
    to_view()
    yield 0.3
    hand.click(3)
    yield 0.7
    yield from shot("08_context_menu")
    jobs = len(queue().jobs)
    bpy.context.scene.animate3d.preset = "paper"  # which is at work for long enough to be cancelled
    hand.press("End")  # to the menu's last entry
    yield 0.4
    hand.press("Return")
    yield 1.0
    expect(len(queue().jobs) == jobs, "the menu starts a job without asking for a sentence")
    yield from shot("09_dialog")
    hand.press("Return")  # into the sentence, where the mouse is
    yield 0.5
    yield from hand.write("the cactus bounces")
    hand.press("Return")
    yield 0.5
    hand.nudge(0, 40)  # onto the dialog's title: the next Return is for OK
    yield 0.5
    hand.press("Return")
    yield from until(lambda: len(queue().jobs) > jobs, "the dialog starts a job")
    said = queue().jobs[-1].settings.prompt
    expect(said == "the cactus bounces", f"the dialog's job is about “{said}”")
    job = queue().jobs[-1]
    yield from until(lambda: job.stage not in ("", "capture"), "the job is past the capture", 60)
    yield from hand.push("animate3d.cancel(", column=0.93)
    yield from until(lambda: job.state == "cancelled", "a click on the cross cancels")
    bpy.context.scene.animate3d.preset = "draft"
    to_view()
    yield 0.5
    yield from shot("10_cancelled")
    expect(len(bpy.data.objects[CACTUS].animate3d.takes) == 1, "the cancelled job has made a take")


STORY = (
    ("install", install),
    ("scene", set_the_scene),
    ("panel", open_the_panel),
    ("type", type_a_sentence),
    ("look", look_first),
    ("watch", watch_it),
    ("undo", undo_and_redo),
    ("context menu, cancel", right_click_and_cancel),
)
