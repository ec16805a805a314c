"""Renders a folder of animated files (.glb, .gltf, .fbx, .blend) into shards of multi-view clips, for training.

    python tools/render_dataset.py -- --input models --out data/shards
    blender -b -P tools/render_dataset.py -- --input models --out data/shards

A clip is 16 of 48 frames (two seconds at 24 a second; a shorter animation whole), seen by four cameras at right angles;
each of `--rigs` turns and raises them at random (paper, section 4.1): 16 views with four of them. `--workers` share the
files out among as many Blenders. At the end every clip is read again and checked.
Beside `fox.glb` may lie `fox.json`: {"caption": "a fox is running", "licence": "CC-BY-4.0", "ai_training": true}.
Without it the animation's name is the caption. What its licence keeps from AI training is left out, and counted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import bpy
import numpy as np
from mathutils import Matrix

from animate3d_addon import capture, files, materials, meshes
from animate3d_addon.temporary import temporary_scene
from backend import protocol
from backend.training.shards import RenderedClip, ShardWriter, check_shards

SUFFIXES = (".glb", ".gltf", ".fbx", ".blend")
FRAMES, WINDOW = 16, 48
REFUSED = re.compile(r"\bno[-_ ]?ai\b", re.IGNORECASE)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, metavar="DIR", help="folder of models, with subfolders")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of shards; goes on where it was")
    parser.add_argument("--appearance", choices=("color", "position"), default="color")
    parser.add_argument("--size", type=int, default=256, help="pixels (default %(default)s)")
    parser.add_argument("--rigs", type=int, default=4, help="of four cameras each (default %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="Blenders at work (default %(default)s)")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)  # which one of them this is
    options = parser.parse_args(arguments)
    paths = sorted(path for path in options.input.rglob("*") if path.suffix.lower() in SUFFIXES)
    if options.worker is not None:
        render_files(paths[options.worker :: options.workers], options, f"clips{options.worker}")
        return 0
    outcomes = share_out(arguments, options) if options.workers > 1 else render_files(paths, options, "clips")
    counts = Counter("can't be used" if outcome.startswith("can't") else outcome for outcome in outcomes)
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "no models found")
    if len(outcomes) < len(paths):
        print(f"{len(paths) - len(outcomes)} files were not reached: a Blender ended. Run it again.", file=sys.stderr)
        return 1
    try:
        print(f"{check_shards(options.out)} clips checked")
    except protocol.UserError as error:
        print(f"{error.message} {error.hint}", file=sys.stderr)
        return 1
    return 0


def render_files(paths: list[Path], options: argparse.Namespace, prefix: str) -> list[str]:
    """Renders these files one after the other. Returns what became of each."""
    outcomes = []
    with ShardWriter(options.out, prefix=prefix) as writer:
        for path in paths:
            outcomes.append(render_file(path, options, writer))
            print(f"{path.name}: {outcomes[-1]}", flush=True)
    return outcomes


def share_out(arguments: list[str], options: argparse.Namespace) -> list[str]:
    """Starts the workers, passes on what they print, and returns what became of each file that they reached."""
    blender = [bpy.app.binary_path, "-b", "-P"] if bpy.app.binary_path else [sys.executable]
    command = [*blender, str(Path(__file__).resolve()), "--", *arguments, "--worker"]
    with ThreadPoolExecutor(options.workers) as threads:
        found = threads.map(lambda worker: follow([*command, str(worker)]), range(options.workers))
        return [outcome for outcomes in found for outcome in outcomes]


def follow(command: list[str]) -> list[str]:
    """Runs one worker to its end. Returns what became of each file that it reached."""
    outcomes = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            name, found, outcome = line.strip().partition(": ")
            if found and Path(name).suffix.lower() in SUFFIXES:
                print(line, end="", flush=True)
                outcomes.append(outcome)
    return outcomes


def render_file(path: Path, options: argparse.Namespace, writer: ShardWriter) -> str:
    """Writes the clips of one file that are not there yet. Returns in a word or two what became of it."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", path.relative_to(options.input).with_suffix("").as_posix())
    keys = [f"{name}-{rig}" for rig in range(options.rigs)]
    if all(key in writer.done for key in keys):
        return "there already"
    about = read_sidecar(path)
    if not may_be_trained_on(path, about):
        return "not for AI training"
    try:
        objects = files.load_moving(path)
        times, action = animated_frames(path)
        if times is None:
            return "not animated"
        caption = about.get("caption") or " ".join(re.findall(r"[A-Za-z][a-z]*", action)).lower()
        for key in keys:
            if key not in writer.done:
                cameras = rig_cameras(seed=zlib.crc32(key.encode()))
                render_clip(key, objects, times, cameras, str(caption), str(about.get("licence", "")), options, writer)
    except protocol.UserError as error:
        return f"can't be used ({error})"
    return "rendered"


def read_sidecar(path: Path) -> dict:
    """What `fox.json` says about `fox.glb`; empty where there is none that can be read."""
    try:
        content = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def may_be_trained_on(path: Path, about: dict) -> bool:
    """Whether neither the sidecar nor what a glTF file says about itself forbids it."""
    if about.get("ai_training") is False:
        return False
    return not REFUSED.search(json.dumps([about.get("licence"), about.get("tags"), asset_of(path)]))


def asset_of(path: Path) -> dict:
    """The `asset` entry of a glTF file: generator, copyright, licence."""
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".glb":
            (length,) = struct.unpack_from("<I", content, 12)
            content = content[20 : 20 + length]
        return json.loads(content).get("asset", {}) if path.suffix.lower() in (".glb", ".gltf") else {}
    except (OSError, ValueError, struct.error, AttributeError):
        return {}


def animated_frames(path: Path) -> tuple[np.ndarray | None, str]:
    """The timeline frames [F] of the clip and the animation's name; (None, "") where nothing is animated."""
    moved = [*bpy.data.objects, *bpy.data.shape_keys]
    actions = [each.animation_data.action for each in moved if each.animation_data and each.animation_data.action]
    if not actions:
        return None, ""
    start = min(action.frame_range[0] for action in actions)
    length = max(action.frame_range[1] for action in actions) - start
    step = min(WINDOW / FRAMES, length / (FRAMES - 1))
    return start + step * np.arange(FRAMES), actions[0].name


def rig_cameras(seed: int) -> np.ndarray:
    """Cameras [4, 4, 4] at right angles, turned and raised at random: elevation 0 to 30 degrees, the same for all."""
    rng = np.random.default_rng(seed)
    azimuth, elevation = rng.uniform(0.0, 90.0), rng.uniform(0.0, 30.0)
    return np.stack([protocol.orbit_c2w(azimuth + turn, elevation) for turn in protocol.VIEW_AZIMUTHS])


def render_clip(
    key: str,
    objects: list[bpy.types.Object],
    times: np.ndarray,
    cameras: np.ndarray,
    caption: str,
    licence: str,
    options: argparse.Namespace,
    writer: ShardWriter,
) -> None:
    """One sample: the clip as one rig of cameras sees it. Raises `UserError`."""
    with temporary_scene() as scene, tempfile.TemporaryDirectory() as folder:
        settings = capture.CaptureSettings(appearance=options.appearance, appearance_views=())
        materials.use_cycles(scene)
        camera = materials.add_camera(scene, protocol.CAMERA_FOVY)
        scene.render.resolution_x = scene.render.resolution_y = options.size
        if options.appearance == "position":
            materials.use_position_colors(scene, settings.position_samples)
        else:
            materials.add_light(scene)
            materials.use_true_colors(scene, settings.color_samples)
        furniture = set(scene.collection.objects)
        subject, trajectory, pictures = None, [], {}
        for frame, time in enumerate(times):
            pieces = meshes.evaluate(meshes.mesh_like(objects), scene, float(time))
            clear(scene, furniture)
            if subject is None:
                meshes.check(pieces)
                subject = capture.describe(pieces, settings)
            places = subject_places(pieces, subject)
            trajectory.append(places)
            capture.add_copies(scene, pieces, subject, places)
            for view, c2w in enumerate(cameras):
                camera.matrix_world = Matrix(c2w.tolist())
                picture = Path(folder) / f"v{view}f{frame:02d}.png"
                capture.render(scene, picture)
                pictures[picture.name] = picture.read_bytes()
            clear(scene, furniture)
        clip = RenderedClip(key, np.empty(0), cameras, protocol.CAMERA_FOVY, np.array(trajectory), subject.faces,
                            caption, licence, options.appearance)  # fmt: skip
        writer.write(key, clip.entries() | pictures)


def clear(scene: bpy.types.Scene, keep: set[bpy.types.Object]) -> None:
    """Takes everything but `keep` out of the scene."""
    for obj in list(scene.collection.objects):
        if obj not in keep:
            scene.collection.objects.unlink(obj)


def subject_places(pieces: list[meshes.Piece], subject: protocol.Subject) -> np.ndarray:
    """The vertices [V, 3] of a later pose in subject space."""
    world, _ = meshes.join(pieces)
    if len(world) != len(subject.vertices):
        raise protocol.UserError("Its mesh has another number of vertices at another frame.", "Bake it first.")
    return protocol.transform_points(np.linalg.inv(subject.to_world), world)


if __name__ == "__main__":
    given = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
    code = main(given)
    sys.stdout.flush()
    if bpy.app.binary_path:
        sys.exit(code)
    os._exit(code)  # the bpy package reports leaks at an ordinary end
