"""What happens in the window: each step is a part of a generator, a timer goes on to the next one."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import bpy

TASK = json.loads(os.environ["ANIMATE3D_WINDOW_TEST"])
OUT = Path(TASK["out"])
REPO = "user_default"
BEAT = 0.02  # seconds between two looks at the clock
report: dict = {"blender": bpy.app.version_string, "vertices": TASK["vertices"], "faults": []}
bpy.context.preferences.view.show_splash = False
_last_beat = [0.0, 0.0]  # when the clock was last looked at, and the longest time between two looks


def beat() -> float:
    """Runs all the time: a long time between two calls is a time in which Blender stood still."""
    now = time.perf_counter()
    if _last_beat[0]:
        _last_beat[1] = max(_last_beat[1], now - _last_beat[0] - BEAT)
    _last_beat[0] = now
    return BEAT


def longest_block() -> float:
    """Seconds since it was last asked."""
    longest, _last_beat[1] = _last_beat[1], 0.0
    return round(longest, 3)


def expect(condition: bool, words: str) -> None:
    if not condition:
        report["faults"].append(words)


def window() -> bpy.types.Window:
    return bpy.context.window_manager.windows[0]


def view() -> bpy.types.Area:
    return next(area for area in window().screen.areas if area.type == "VIEW_3D")


def override() -> dict:
    area = view()
    return {"window": window(), "area": area, "region": next(r for r in area.regions if r.type == "WINDOW")}


def shot(name: str) -> None:
    subprocess.run(["import", "-window", "root", str(OUT / f"{name}.png")], check=False, timeout=20)
    longest_block()  # the screenshot's own time is not Blender's


def package():
    return importlib.import_module(f"bl_ext.{REPO}.animate3d.animate3d_addon")


def watch():
    return importlib.import_module(f"{package().__name__}.watch")


def time_our_timer() -> None:
    """Measures what the add-on's own timer takes, which is all that it does in the window while a job runs."""
    inner = watch()._look_after
    report["longest_of_our_timer"] = 0.0

    def timed() -> float | None:
        began = time.perf_counter()
        job = watch().queue().current
        try:
            return inner()
        finally:
            took = time.perf_counter() - began
            kind = "longest_of_our_timer" if job is not None and job.state != "applied" else "longest_of_the_bake"
            report[kind] = round(max(took, report.get(kind, 0.0)), 4)

    watch()._look_after = timed


def open_panel() -> Iterator[float]:
    view().spaces.active.show_region_ui = True
    yield 0.5
    region = next(region for region in view().regions if region.type == "UI")
    region.active_panel_category = "Animate3D"
    yield 0.5


def steps() -> Iterator[float]:
    """Yields the seconds until the next step."""
    yield 1.0
    bpy.ops.preferences.addon_enable(module="bl_pkg") if "bl_pkg" not in bpy.context.preferences.addons else None
    bpy.ops.extensions.package_install_files(filepath=TASK["zip"], repo=REPO, enable_on_install=True, overwrite=True)
    yield 1.0
    expect(hasattr(bpy.types.Scene, "animate3d"), "the extension is not enabled")
    importlib.import_module(f"{package().__name__}.backend_process").POLITE = TASK["niceness"]
    for obj in list(bpy.data.objects):
        bpy.data.objects.remove(obj)
    side = max(3, round((TASK["vertices"] / 2) ** 0.5))
    with bpy.context.temp_override(**override()):
        bpy.ops.mesh.primitive_uv_sphere_add(segments=2 * side, ring_count=side + 1)
        bpy.context.object.scale = (0.5, 0.5, 1.0)
        bpy.context.object.name = "Egg"
        bpy.context.object.display_type = "BOUNDS"  # software OpenGL takes a second to draw it, whoever asks
        bpy.ops.ed.undo_push(message="An egg")
    time_our_timer()
    yield from open_panel()
    shot("1_panel_empty")
    bpy.context.scene.animate3d.prompt = "an egg sways from side to side"
    yield 0.5
    shot("2_panel_ready")
    for _ in range(20):  # how long this machine takes to draw the panel when nothing runs
        watch().redraw()
        yield 0.1
    report["longest_block_before"] = longest_block()
    yield from animate("3", keep_scene=True)
    yield from undo()
    yield from other_output()
    yield from choice()
    yield from cancel()


def animate(number: str, keep_scene: bool) -> Iterator[float]:
    obj = bpy.context.view_layer.objects.active
    yield 0.2
    longest_block()
    began = time.monotonic()
    with bpy.context.temp_override(**override()):
        bpy.ops.animate3d.animate("INVOKE_DEFAULT")
    report["block_of_the_click"] = round(time.monotonic() - began, 3)
    shots, blocks = set(), []
    queue = watch().queue()
    while queue.is_busy and time.monotonic() - began < TASK["patience"]:
        yield 0.1
        blocks.append((longest_block(), queue.current.stage if queue.current else queue.jobs[-1].state))
        if (
            queue.current is not None
            and queue.current.stage in ("capture", "motion")
            and queue.current.stage not in shots
        ):
            shots.add(queue.current.stage)
            yield 0.4
            blocks.append((longest_block(), "look"))
            shot(f"{number}_{queue.current.stage if queue.current else 'end'}")
    report["seconds_of_the_job"] = round(time.monotonic() - began, 1)
    running = [block for block in blocks if block[1] not in ("ready", "applied")]
    report["longest_blocks_while_the_job_ran"] = sorted(running, reverse=True)[:5]
    report["block_of_the_bake"] = max((block for block, what in blocks if what in ("ready", "applied")), default=0.0)
    job = queue.jobs[-1]
    if job.error is not None:
        report["faults"].append(f"{job.error.message} {job.error.hint}")
    for _ in range(50):
        if job.state == "applied":
            break
        yield 0.1
    report["block_of_the_bake"] = max(longest_block(), report["block_of_the_bake"])
    expect(job.state == "applied", f"the job is {job.state}")
    expect(obj.data.shape_keys is not None and len(obj.data.shape_keys.key_blocks) == 16, "no shape keys")
    yield 0.5
    obj.display_type = "TEXTURED"
    bpy.context.scene.frame_set(20)
    yield 0.5
    shot(f"{number}_applied")


def undo() -> Iterator[float]:
    with bpy.context.temp_override(**override()):
        bpy.ops.ed.undo()
    yield 0.3
    obj = bpy.data.objects["Egg"]
    expect(obj.data.shape_keys is None and not obj.animate3d.takes, "one undo does not bring back what was")
    with bpy.context.temp_override(**override()):
        bpy.ops.ed.redo()
    yield 0.3
    obj = bpy.data.objects["Egg"]
    expect(obj.data.shape_keys is not None and len(obj.animate3d.takes) == 1, "redo does not bring the take again")


def other_output() -> Iterator[float]:
    """The take as an armature, made by the backend from what the job has already, and as keys again."""
    for panel in ("ANIMATE3D_PT_motion", "ANIMATE3D_PT_takes", "ANIMATE3D_PT_jobs"):
        expect(hasattr(bpy.types, panel), f"{panel} is not there")
    obj = bpy.data.objects["Egg"]
    obj.display_type = "BOUNDS"
    with bpy.context.temp_override(**override(), object=obj):
        bpy.ops.animate3d.take_output("INVOKE_DEFAULT", output="RIG")
    queue, began = watch().queue(), time.monotonic()
    longest_block()
    blocks = []
    while queue.is_busy and time.monotonic() - began < TASK["patience"]:
        yield 0.1
        blocks.append(longest_block())
    report["longest_blocks_while_bones_were_made"] = sorted(blocks[:-2], reverse=True)[:3]
    for _ in range(100):
        if queue.jobs[-1].state == "applied":
            break
        yield 0.1
    report["block_of_the_rig"] = max([longest_block(), *blocks[-2:]])
    expect(queue.jobs[-1].error is None, f"bones: {queue.jobs[-1].error and queue.jobs[-1].error.message}")
    expect(obj.parent is not None and obj.data.shape_keys is None, "the take is no armature")
    obj.display_type = "TEXTURED"
    yield 1.0
    shot("4_rig")
    began = time.perf_counter()
    with bpy.context.temp_override(**override(), object=obj):
        bpy.ops.animate3d.take_output(output="KEYS")
    report["seconds_back_to_keys"] = round(time.perf_counter() - began, 3)
    expect(obj.parent is None and obj.data.shape_keys is not None, "the take is not keys again")
    yield 0.5


def choice() -> Iterator[float]:
    """An object with modifiers that make vertices: the panel offers what can be done."""
    with bpy.context.temp_override(**override()):
        bpy.ops.mesh.primitive_cube_add(location=(3, 0, 0))
        bpy.context.object.modifiers.new("Subdivision", "SUBSURF")
    yield 0.7
    shot("5_modifiers")
    with bpy.context.temp_override(**override()):
        bpy.ops.animate3d.copy_applied()
    yield 0.5
    expect(len(bpy.context.view_layer.objects.active.data.vertices) > 8, "the copy has no modifiers applied")
    shot("6_copy")


def cancel() -> Iterator[float]:
    with bpy.context.temp_override(**override()):
        bpy.ops.animate3d.animate("INVOKE_DEFAULT")
        yield 1.0
        queue = watch().queue()
        bpy.ops.animate3d.cancel(job=queue.jobs[-1].name)
    for _ in range(100):
        if not queue.is_busy:
            break
        yield 0.1
    expect(queue.jobs[-1].state == "cancelled", f"the cancelled job is {queue.jobs[-1].state}")
    with bpy.context.temp_override(**override()):
        bpy.ops.wm.call_menu(name="VIEW3D_MT_object_context_menu")
    yield 0.7
    shot("7_context_menu")
    bpy.ops.preferences.addon_show(module=f"bl_ext.{REPO}.animate3d")
    yield 0.5
    bpy.ops.animate3d.check()
    while not watch().setup.is_done:
        yield 0.2
    expect(watch().setup.error is None, f"the check failed: {list(watch().setup.lines)}")
    yield 1.0
    shot("8_preferences")


_steps = steps()


def advance() -> float | None:
    try:
        return next(_steps)
    except StopIteration:
        pass
    except Exception:
        report["faults"].append(traceback.format_exc())
    (OUT / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    bpy.ops.wm.quit_blender()
    return None


bpy.app.timers.register(beat, first_interval=1.0, persistent=True)
bpy.app.timers.register(advance, first_interval=1.0, persistent=True)
