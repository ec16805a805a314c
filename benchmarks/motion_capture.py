"""Renders the four-view video of a known animation with our own capture. Needs the bpy package."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import bpy
import numpy as np
from mathutils import Matrix
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from animate3d_addon import capture, materials, meshes
from animate3d_addon.quiet import quiet
from animate3d_addon.temporary import temporary_scene
from backend import protocol

HELPERS = "glTF_not_exported"  # the collection of the importer's bone shapes
SAMPLES = {"color": 4, "position": 8}


def render_asset(path: Path, at: np.ndarray, truth: np.ndarray, appearance: str, size: int, job: Path) -> None:
    """Writes a job folder: the asset's first frame as `capture` sees it, and the four-view video of its animation.

    Args:
        at: the frames of the scene, [F].
        truth: where the vertices are there, [F, V, 3] in world space.
        size: pixels of the video.
    """
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.context.scene.render.fps = 24
    with quiet():
        bpy.ops.import_scene.gltf(filepath=str(path))
    objects = shown_objects()
    scene = bpy.context.scene
    _go_to(scene, at[0])
    subject = capture.capture(objects, job, capture.CaptureSettings(appearance=appearance))
    frames = np.zeros((4, len(at), size, size, 4), np.uint8)
    for index, frame in enumerate(at):
        _go_to(scene, frame)
        frames[:, index] = _pictures(objects, subject, float(frame), truth[index], appearance, size)
    protocol.Video(frames, appearance).save(job)


def shown_objects() -> list[bpy.types.Object]:
    """The open file's meshes, without the shapes that the importer makes for bones."""
    helpers = bpy.data.collections.get(HELPERS)
    hidden = set(helpers.all_objects) if helpers else set()
    return meshes.mesh_like([obj for obj in bpy.context.view_layer.objects if obj.type == "MESH" and obj not in hidden])


def _go_to(scene: bpy.types.Scene, frame: float) -> None:
    scene.frame_set(int(np.floor(frame)), subframe=float(frame - np.floor(frame)))


def _pictures(
    objects: Sequence[bpy.types.Object],
    subject: protocol.Subject,
    frame: float,
    truth: np.ndarray,
    appearance: str,
    size: int,
) -> np.ndarray:
    """The four views [4, S, S, 4] uint8 of the objects as they are at a frame; checks them against the truth [V, 3]."""
    with temporary_scene() as scene, tempfile.TemporaryDirectory() as folder:
        pieces = meshes.evaluate(objects, scene, frame)
        world, _ = meshes.join(pieces)
        if np.abs(world - truth).max() > 1e-3 * np.ptp(truth, axis=0).max():
            raise SystemExit(f"The asset is not at frame {frame:.2f} where its truth says it is.")
        for copy in list(scene.collection.objects):
            scene.collection.objects.unlink(copy)
        materials.use_cycles(scene)
        to_subject = np.linalg.inv(subject.to_world)
        capture.add_copies(scene, pieces, subject, protocol.transform_points(to_subject, world))
        camera = materials.add_camera(scene, subject.fovy)
        if appearance == "position":
            materials.use_position_colors(scene, SAMPLES["position"])
        else:
            materials.add_light(scene)
            materials.use_true_colors(scene, SAMPLES["color"])
        scene.render.resolution_x = scene.render.resolution_y = size
        pictures = []
        for view, c2w in enumerate(subject.condition_c2w):
            camera.matrix_world = Matrix(c2w.tolist())
            path = Path(folder) / f"{view}.png"
            capture.render(scene, path)
            pictures.append(np.asarray(Image.open(path).convert("RGBA")))
    return np.stack(pictures)
