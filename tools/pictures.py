"""Pictures of finished jobs: the contact sheet (generated video above, final mesh below) and an animated preview."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import bpy
import imageio.v3 as iio
import numpy as np
from mathutils import Matrix
from PIL import Image, ImageDraw, ImageFont

from animate3d_addon import materials
from animate3d_addon.quiet import quiet
from backend import protocol

CELL = 128  # pixels of a picture on the sheet: twice those of the starter model
SHOWN_FRAMES = 6  # columns of a prompt, of 16 frames
CAPTION = 28  # pixels of the line above
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


@dataclass(frozen=True)
class Shown:
    """What there is to see of one prompt; view 0 looks at the front, view 1 at a side."""

    prompt: str
    video: np.ndarray  # [4, F, H, W, C] uint8, generated
    mesh: np.ndarray  # [4, F, CELL, CELL, 4] uint8, `render_animation`


def contact_sheet(shown: Sequence[Shown], path: Path) -> None:
    """The prompts side by side: the front of the generated video, then the mesh from the front and from a side."""
    gap = np.full((CAPTION + 3 * CELL, 6, 3), 160, np.uint8)
    panels = [part for one in shown for part in (_panel(one), gap)][:-1]
    iio.imwrite(path, np.concatenate(panels, axis=1))


def _panel(one: Shown) -> np.ndarray:
    columns = np.linspace(0, one.video.shape[1] - 1, SHOWN_FRAMES).round().astype(int)
    views = (one.video[0], one.mesh[0], one.mesh[1])
    rows = [np.concatenate([_cell(view[frame]) for frame in columns], axis=1) for view in views]
    caption = Image.new("RGB", (rows[0].shape[1], CAPTION), "white")
    ImageDraw.Draw(caption).text((6, 4), one.prompt, fill="black", font=ImageFont.load_default(CAPTION - 10))
    return np.concatenate([np.asarray(caption), *rows])


def preview(shown: Sequence[Shown], path: Path, frames_per_second: float = 8.0) -> None:
    """The moving meshes side by side, a row for the front and one for a side."""
    strips = [
        np.concatenate([np.concatenate([_cell(one.mesh[view, frame]) for one in shown], axis=1) for view in (0, 1)])
        for frame in range(shown[0].mesh.shape[1])
    ]
    iio.imwrite(path, np.stack(strips), duration=1000.0 / frames_per_second, loop=0)


def _cell(picture: np.ndarray) -> np.ndarray:
    """A picture [H, W, 3 or 4] on white, enlarged to CELL by repeating pixels: uint8 [CELL, CELL, 3]."""
    if picture.shape[-1] == 4:
        alpha = picture[..., 3:].astype(np.float32) / 255
        picture = np.round(picture[..., :3] * alpha + PAPER * (1 - alpha)).astype(np.uint8)
    index = np.arange(CELL) * picture.shape[0] // CELL
    return picture[index][:, index]
