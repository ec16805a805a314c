"""Pictures of a finished job: the contact sheet (generated video above, final mesh below) and an animated preview."""

from __future__ import annotations

import tempfile
from pathlib import Path

import bpy
import imageio.v3 as iio
import numpy as np
from mathutils import Matrix

from animate3d_addon import materials
from animate3d_addon.quiet import quiet
from backend import protocol

CELL = 128  # pixels of a picture on the sheet: twice those of the starter model
SHOWN_FRAMES = 8  # columns of the sheet: every other frame of 16
PAPER = 255


def render_animation(blend: Path, subject: protocol.Subject, start: int, step: int, frames: int) -> np.ndarray:
    """The animated scene seen by the four condition cameras: uint8 [4, F, CELL, CELL, 4], straight alpha."""
    with quiet():
        bpy.ops.wm.open_mainfile(filepath=str(blend))
    scene = bpy.context.scene
    materials.use_cycles(scene)
    materials.use_true_colors(scene, samples=2)
    materials.add_light(scene)
    camera = materials.add_camera(scene, subject.fovy)
    scale = np.linalg.norm(subject.to_world[:3, 0])
    camera.data.clip_start, camera.data.clip_end = 0.1 * scale, 6.0 * scale
    scene.render.resolution_x = scene.render.resolution_y = CELL
    pictures = []
    with tempfile.TemporaryDirectory() as folder:
        scene.render.filepath = str(Path(folder) / "picture.png")
        for c2w in subject.condition_c2w:
            camera.matrix_world = _without_scale(subject.to_world @ c2w, scale)
            for frame in range(frames):
                scene.frame_set(start + step * frame)
                with quiet():
                    bpy.ops.render.render(write_still=True)
                pictures.append(iio.imread(scene.render.filepath))
    return np.stack(pictures).reshape(len(subject.condition_c2w), frames, CELL, CELL, 4)


def _without_scale(matrix: np.ndarray, scale: float) -> Matrix:
    rigid = matrix.copy()
    rigid[:3, :3] /= scale
    return Matrix(rigid.tolist())


def contact_sheet(video: np.ndarray, mesh: np.ndarray, path: Path) -> None:
    """A row for each view of the generated video [4, F, H, W, C], then a row for each view of the mesh [4, F, ...]."""
    columns = np.linspace(0, video.shape[1] - 1, SHOWN_FRAMES).round().astype(int)
    rows = [[_cell(view[frame]) for frame in columns] for pictures in (video, mesh) for view in pictures]
    gap = np.full((6, CELL * SHOWN_FRAMES, 3), 160, np.uint8)
    sheet = [np.concatenate(row, axis=1) for row in rows]
    iio.imwrite(path, np.concatenate([*sheet[: len(video)], gap, *sheet[len(video) :]]))


def preview(mesh: np.ndarray, path: Path, frames_per_second: float = 8.0) -> None:
    """The four views of the moving mesh [4, F, H, W, 4] side by side."""
    strips = [np.concatenate([_cell(view[frame]) for view in mesh], axis=1) for frame in range(mesh.shape[1])]
    iio.imwrite(path, np.stack(strips), duration=1000.0 / frames_per_second, loop=0)


def _cell(picture: np.ndarray) -> np.ndarray:
    """A picture [H, W, 3 or 4] on white, enlarged to CELL by repeating pixels: uint8 [CELL, CELL, 3]."""
    if picture.shape[-1] == 4:
        alpha = picture[..., 3:].astype(np.float32) / 255
        picture = np.round(picture[..., :3] * alpha + PAPER * (1 - alpha)).astype(np.uint8)
    index = np.arange(CELL) * picture.shape[0] // CELL
    return picture[index][:, index]
