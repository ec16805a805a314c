"""Seconds of the bake, of a switch between takes, and of playback, against shape keys made by hand.

python benchmarks/bake.py --report out/bench/bake.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import bpy
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import blender_scenes as scenes  # noqa: E402

import animate3d_addon  # noqa: E402
from animate3d_addon import capture, meshes, takes  # noqa: E402
from animate3d_addon.temporary import temporary_scene  # noqa: E402
from animate3d_addon.timing import Timing  # noqa: E402
from backend import protocol  # noqa: E402

ROUNDS = 12


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vertices", type=int, default=100_000)
    parser.add_argument("--frames", type=int, default=17, help="of the motion; one key less")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    animate3d_addon.register()
    report = measure(round(options.vertices**0.5), options.frames)
    print(json.dumps(report, indent=1))
    if options.report:
        protocol.write_json(options.report, report)
    return 0


def measure(columns: int, frames: int) -> dict[str, float]:
    scenes.reset()
    bpy.context.scene.frame_end = 1 + 3 * (frames - 1)
    obj = scenes.grid("Sheet", columns)
    subject = _subject(obj)
    motions = [scenes.random_motion(subject, frames, seed) for seed in (1, 2)]
    report = {"vertices": len(obj.data.vertices), "keys": frames - 1}
    seconds = []
    for motion in motions:
        began = time.perf_counter()
        takes.add([obj], subject, motion, Timing(frames), "take", rest_frame=1)
        bpy.context.view_layer.update()
        seconds.append(time.perf_counter() - began)
    report["bake_s"] = max(seconds)
    switches = [_seconds_of(lambda i=i: _switch(obj, i % 2)) for i in range(10)]
    report["switch_ms"] = 1e3 * statistics.median(switches)
    report["switch_and_look_ms"] = 1e3 * statistics.median(
        _seconds_of(lambda i=i: (_switch(obj, i % 2), bpy.context.view_layer.update())) for i in range(10)
    )
    _switch(obj, 1)
    ours, by_hand = _playback(obj, _by_hand(columns, motions[1]))
    report["playback_ms"], report["playback_by_hand_ms"] = 1e3 * ours, 1e3 * by_hand
    return {name: round(value, 3) for name, value in report.items()}


def _subject(obj: bpy.types.Object) -> protocol.Subject:
    with temporary_scene() as scene:
        return capture.describe(meshes.evaluate([obj], scene, 1), capture.CaptureSettings())


def _switch(obj: bpy.types.Object, index: int) -> None:
    obj.animate3d.active_index = index


def _seconds_of(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _playback(*objects: bpy.types.Object) -> list[float]:
    """Seconds per frame of each object alone in the scene: the best of rounds that take turns."""
    scene, best = bpy.context.scene, [float("inf")] * len(objects)
    everything = scene.collection.objects
    for each in objects:
        everything.unlink(each)
    for _ in range(ROUNDS):
        for index, each in enumerate(objects):
            everything.link(each)
            bpy.context.view_layer.update()
            began = time.perf_counter()
            for frame in range(scene.frame_start, scene.frame_end + 1):
                scene.frame_set(frame)
            best[index] = min(best[index], (time.perf_counter() - began) / (scene.frame_end - scene.frame_start + 1))
            everything.unlink(each)
    return best


def _by_hand(columns: int, motion: protocol.Motion) -> bpy.types.Object:
    """The same keys with Blender's plainest means."""
    obj = scenes.grid("By hand", columns)
    obj.shape_key_add(name="Basis", from_mix=False)
    rest = meshes.coordinates(obj.data)
    for index, offsets in enumerate(motion.offsets[1:], start=1):
        key = obj.shape_key_add(name=f"Key {index}", from_mix=False)
        key.data.foreach_set("co", (rest + offsets).astype(np.float32).ravel())
        for frame, value in ((index - 1, 0.0), (index, 1.0), (index + 1, 0.0)):
            key.value = value
            key.keyframe_insert("value", frame=1 + 3 * frame)
    return obj


if __name__ == "__main__":
    sys.exit(main())
