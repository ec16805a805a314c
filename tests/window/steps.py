"""What happens in the window, as one generator: a timer goes on to the next step when the last one's time is over."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import bpy
from mathutils import Euler

sys.path.insert(0, str(Path(__file__).resolve().parent))

import hand
from clock import Clock, Gap, longest

TASK = json.loads(os.environ["ANIMATE3D_WINDOW_TEST"])
OUT = Path(TASK["out"])
REPO = "user_default"
CACTUS, EGG = "Cactus", "Egg"
MOST_BLOCK = 0.2  # seconds that Blender may stand still while a job runs
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


def steps() -> Iterator[float]:
    for name, part in STORY:
        if TASK["parts"] and name not in TASK["parts"]:
            continue
        began = time.monotonic()
        clock.what = name
        yield from part()
        report["seconds"][name] = round(time.monotonic() - began, 1)


def install() -> Iterator[float]:
    yield 1.0
    if "bl_pkg" not in bpy.context.preferences.addons:
        bpy.ops.preferences.addon_enable(module="bl_pkg")
    bpy.ops.extensions.package_install_files(filepath=TASK["zip"], repo=REPO, enable_on_install=True, overwrite=True)
    yield 1.0
    expect(hasattr(bpy.types.Scene, "animate3d"), "the extension is not enabled")
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
    yield from shot("1_panel")


def type_and_click() -> Iterator[float]:
    yield from hand.find(".animate3d.prompt")
    hand.click()
    yield 0.5
    yield from hand.write("a cactus sways from side to side")
    yield 0.5
    hand.press("Return")
    yield 0.5
    said = bpy.context.scene.animate3d.prompt
    expect(said == "a cactus sways from side to side", f"what was typed arrives as “{said}”")
    yield from shot("2_ready")
    yield from hand.push("animate3d.animate(")
    yield from until(lambda: queue().is_busy, "a click on Animate starts a job")
    to_view()


def watch_it() -> Iterator[float]:
    """A job that shows its preview; the screenshots take time, so that the next job alone is measured."""
    yield from until(lambda: queue().current is not None and queue().current.stage == "capture", "the capture begins")
    yield from shot("3_capture")
    video = ("motion", "refine")
    yield from until(lambda: queue().current is None or queue().current.stage in video, "the video is there", 90)
    yield 0.3
    yield from shot("4_preview")
    yield from until_applied(CACTUS)
    bpy.context.scene.frame_set(10)
    yield 0.5
    yield from shot("5_moves")


def until_applied(name: str) -> Iterator[float]:
    yield from until(lambda: not queue().is_busy, "the job ends", 120)
    job = queue().jobs[-1]
    expect(job.error is None, f"{job.error.message} {job.error.hint}" if job.error else "")
    yield from until(lambda: job.state in ("applied", "failed"), "the motion is applied")
    keys = bpy.data.objects[name].data.shape_keys
    expect(keys is not None and len(keys.key_blocks) == 16, f"{name} has no 16 shape keys")


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
    yield from shot("6_context_menu")
    jobs = len(queue().jobs)
    hand.press("End")  # to the menu's last entry
    yield 0.4
    hand.press("Return")
    yield 1.0
    expect(len(queue().jobs) == jobs, "the menu starts a job without asking for a sentence")
    yield from shot("7_dialog")
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
    yield from hand.push("animate3d.cancel(")
    yield from until(lambda: job.state == "cancelled", "a click on the cross cancels")
    to_view()
    yield 0.5
    yield from shot("8_cancelled")
    expect(len(bpy.data.objects[CACTUS].animate3d.takes) == 1, "the cancelled job has made a take")


def then_bake(apply: Callable) -> Callable:
    """The motion is put onto the object when the job is over; that time is counted apart."""

    def applied(*arguments: object) -> None:
        clock.what = "bake"
        apply(*arguments)

    return applied


def timed_draw(panel: type[bpy.types.Panel]) -> Callable:
    timed = clock.time(panel.__name__, panel.draw)

    def draw(self: bpy.types.Panel, context: bpy.types.Context) -> None:  # Blender counts the arguments
        timed(self, context)

    return draw


def measured() -> Iterator[float]:
    """A heavy object, and nothing but the clock beside the job."""
    obj = select(EGG)
    bpy.context.scene.animate3d.prompt = "an egg bounces"
    watch, ui, operators = package("watch"), package("ui"), package("operators")
    watch._look_after = clock.time("timer", watch._look_after)
    operators.enqueue = clock.time("click", operators.enqueue)
    results = package("results")
    results.apply = then_bake(results.apply)
    for panel in (each for each in ui.CLASSES if issubclass(each, bpy.types.Panel)):
        panel.draw = timed_draw(panel)
    yield from hand.find("animate3d.animate(")
    yield 1.5
    clock.what = "idle"
    for count in range(20):  # how long this machine takes to draw the panel, and the 3D view, when nothing runs
        watch.redraw() if count % 2 else hand.region("WINDOW").tag_redraw()
        yield 0.1
    clock.what = "job click"
    began = time.monotonic()
    hand.click()
    yield from until(lambda: queue().is_busy, "a click on Animate starts a job")
    while queue().is_busy and time.monotonic() - began < 120.0 * TASK["patience"]:
        job = queue().current or queue().jobs[-1]
        clock.what = f"job {job.stage}" if queue().is_busy else "bake"
        yield 0.05
    report["seconds_of_the_job"] = round(time.monotonic() - began, 1)
    clock.what = "bake"
    yield from until_applied(EGG)
    yield 0.5
    judge()
    expect(obj.animate3d.takes[0].name == "an egg bounces", "the take has another name")


def judge() -> None:
    """Whether Blender stood still while the job ran."""
    idle, job = longest(gaps_of("idle")), longest(gaps_of("job"))
    parts = {name: longest(gap for gap in clock.parts if gap.what == name) for name in {g.what for g in clock.parts}}
    busy = os.getloadavg()[0] > 2 * os.cpu_count()
    report["blocks"] = {"idle": idle, "job": job, "bake": longest(gaps_of("bake")), "our_code": parts}
    report["blocks"]["machine_is_busy"] = busy
    expect(job["gaps"] > 20 and len(parts) > 2, "the clock has not run")
    # Without a graphics card, drawing alone takes its time. Where others use the disks, anything may sleep.
    kinds = ("ran",) if busy else ("ran", "slept")
    for kind in kinds:
        expect(job[kind] <= MOST_BLOCK + idle["ran"], f"Blender stood still: {kind} {job[kind]} s")
        for name, part in parts.items():
            expect(part[kind] <= MOST_BLOCK, f"{name} has held Blender up: {kind} {part[kind]} s")


def gaps_of(what: str) -> list[Gap]:
    return [gap for gap in clock.gaps if gap.what.startswith(what)]


def other_output() -> Iterator[float]:
    """The take as an armature, made by the backend from what the job has already, and as keys again."""
    obj = bpy.data.objects[EGG]
    with bpy.context.temp_override(**hand.override(), object=obj):
        bpy.ops.animate3d.take_output("INVOKE_DEFAULT", output="RIG")
    yield from until(lambda: obj.animate3d.takes[0].output == "RIG", "the take becomes a rig", 90)
    expect(obj.parent is not None and obj.parent.type == "ARMATURE", "the take is no rig")
    expect(obj.data.shape_keys is None, "the keys of a take that is a rig are still there")
    with bpy.context.temp_override(**hand.override(), object=obj):
        bpy.ops.animate3d.take_output("INVOKE_DEFAULT", output="KEYS")
    yield 0.5
    expect(obj.parent is None and obj.data.shape_keys is not None, "the take is not keys again")


def modifiers() -> Iterator[float]:
    """An object with modifiers that make vertices: the panel offers what can be done."""
    with bpy.context.temp_override(**hand.override()):
        bpy.ops.mesh.primitive_cube_add()
        bpy.context.object.name = "Cube"
        bpy.context.object.modifiers.new("Subdivision", "SUBSURF")
    select("Cube")
    yield 0.7
    yield from shot("9_modifiers")
    yield from hand.push("animate3d.copy_applied(")
    yield 0.5
    expect(len(bpy.context.view_layer.objects.active.data.vertices) > 8, "the copy has no modifiers applied")


def preferences() -> Iterator[float]:
    with bpy.context.temp_override(**hand.override()):
        bpy.ops.preferences.addon_show(module=f"bl_ext.{REPO}.animate3d")
    yield 1.5
    yield from hand.push("animate3d.check(", "WINDOW", "PREFERENCES")
    watch = package("watch")
    yield from until(lambda: watch.setup is not None and watch.setup.is_done, "the check ends", 60)
    expect(watch.setup.error is None, f"the check failed: {list(watch.setup.lines)}")
    yield 1.0
    yield from shot("10_preferences")


STORY = (
    ("install", install),
    ("scene", set_the_scene),
    ("panel", open_the_panel),
    ("type", type_and_click),
    ("watch", watch_it),
    ("undo", undo_and_redo),
    ("context menu, cancel", right_click_and_cancel),
    ("measured", measured),
    ("other output", other_output),
    ("modifiers", modifiers),
    ("preferences", preferences),
)
_steps = steps()


def advance() -> float | None:
    with clock.own_time():
        try:
            return next(_steps)
        except StopIteration:
            pass
        except Exception:
            report["faults"].append(traceback.format_exc())
            hand.screenshot(OUT / "fault.png")
    bpy.ops.wm.save_as_mainfile(filepath=str(OUT / "scene.blend"), copy=True)
    (OUT / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    bpy.ops.wm.quit_blender()
    return None


bpy.context.preferences.view.show_splash = False
clock.start()
bpy.app.timers.register(advance, first_interval=1.0, persistent=True)
