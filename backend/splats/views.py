"""A file of Gaussians as a subject: which of them are the object, and pictures of it from around.

What capture does in Blender for meshes happens here for files of Gaussians: their own rasterizer draws the views.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import label

from backend.protocol import (
    SUBJECT_RADIUS,
    SplatSource,
    Subject,
    UserError,
    condition_cameras,
    position_code,
    read_npz,
    subject_to_world,
    transform_points,
    write_npz,
)

from . import harmonics
from .gaussians import Gaussians, matrices_to_quaternions
from .ply import COLOR, POSITION, SplatFile, read_rows
from .rasterize import rasterize
from .reference import quaternions_to_matrices

CHUNK = 1 << 18  # rows looked at at once


@dataclass(frozen=True)
class ViewSettings:
    """How the object is found and looked at."""

    size: int = 256  # pixels, square
    drawn: int = 200_000  # Gaussians in a picture, at most; fewer are drawn larger
    faint: float = 0.1  # opacity below which a Gaussian has no say in where the object is
    cells: int = 48  # along the longest side, fewer for small files: Gaussians in cells that touch hang together
    island: float = 0.01  # share of the Gaussians that show, below which an island of them is a floater
    margin: float = 0.05  # of the extent without those: what lies within it belongs to the object all the same


def open_source(job: Path) -> SplatFile:
    """The file that the job is about. Raises `UserError` where it is damaged."""
    try:
        file = SplatFile.open(SplatSource.path(job))
        _ = file.rest_names  # raises where they are incomplete
        return file
    except (ValueError, OSError) as error:
        raise UserError(str(error), "Export or download it again.") from None


def make_subject(job: Path, source: SplatSource, appearance: str, settings: ViewSettings = ViewSettings()) -> Subject:
    """Writes the views into `job/subject`, and returns the subject: no faces, a vertex per Gaussian of the object.

    Raises:
        UserError: the file is damaged, or there is nothing in it.
    """
    file = open_source(job)
    rows = object_rows(file, settings)
    to_file = source.upright
    upright = (file.columns(POSITION, rows) @ to_file[:3, :3]).astype(np.float64)  # the matrix's inverse, transposed
    to_world = to_file @ subject_to_world(upright)
    vertices = transform_points(np.linalg.inv(to_world), file.columns(POSITION, rows)).astype(np.float32)
    subject = Subject(
        vertices=vertices,
        faces=np.zeros((0, 3), np.int32),
        weld=np.arange(len(rows), dtype=np.int32),
        to_world=to_world,
        object_names=("Gaussians",),
        object_counts=(len(rows),),
        condition_c2w=condition_cameras(),
        appearance_c2w=np.zeros((0, 4, 4)),
        condition_size=settings.size,
        appearance_size=settings.size,
    )
    write_npz(rows_path(job), rows=rows)
    _draw_views(job, subject, file, rows, appearance, settings)
    return subject


def rows_path(job: Path) -> Path:
    """Where the numbers of the file's rows that are the object lie."""
    return Path(job) / "subject" / "rows.npz"


def load_rows(job: Path) -> np.ndarray:
    """[V] int64: the row of each vertex of the subject."""
    return read_npz(rows_path(job), ("rows",))["rows"]


def object_rows(file: SplatFile, settings: ViewSettings) -> np.ndarray:
    """Rows [V] int64 without floaters: those in the box around all that hangs together.

    Raises:
        UserError: no Gaussian is left.
    """
    fine, solid, places = [], [], []
    for k in range(0, len(file), CHUNK):
        part = file.columns((*POSITION, "opacity"), slice(k, k + CHUNK))
        fine.append(np.isfinite(part).all(axis=1))
        solid.append(part[:, 3] > np.log(settings.faint / (1 - settings.faint)))
        places.append(part[:, :3])
    if not file or not (ok := np.concatenate(fine)).any():
        raise UserError(f"“{file.name}” holds no Gaussians.", "Choose another file.")
    place, showing = np.concatenate(places), np.concatenate(solid) & ok
    low, high = _box_without_islands(place[showing if showing.any() else ok], settings)
    reach = settings.margin * (high - low).max()
    with np.errstate(invalid="ignore"):
        inside = ok & (place >= low - reach).all(axis=1) & (place <= high + reach).all(axis=1)
    return np.flatnonzero(inside)


def _box_without_islands(points: np.ndarray, settings: ViewSettings) -> tuple[np.ndarray, np.ndarray]:
    """Corners [3], [3] of the box around points [N, 3] without small islands, which may be far away and many."""
    wanted = settings.island * len(points)
    cells = int(np.clip(np.cbrt(len(points)), 2, settings.cells))
    while True:
        low, extent = points.min(axis=0), np.ptp(points, axis=0).max()
        cell = np.minimum((points - low) / max(extent, 1e-30) * cells, cells - 1).astype(np.int64)
        filled = np.zeros((cells,) * 3, bool)
        filled[tuple(cell.T)] = True
        island = label(filled, np.ones((3, 3, 3)))[0][tuple(cell.T)]
        kept = points[np.bincount(island)[island] >= wanted]
        if len(kept) == 0 or np.ptp(kept, axis=0).max() > 0.9 * extent:
            kept = kept if len(kept) else points
            return kept.min(axis=0), kept.max(axis=0)
        points = kept  # again, in the finer cells of the smaller box


def in_subject_space(gaussians: Gaussians, to_world: np.ndarray) -> Gaussians:
    """Gaussians of the file [N] as they are in the subject's space."""
    linear = np.linalg.inv(to_world)[:3, :3]
    size = np.cbrt(np.linalg.det(linear))
    means = transform_points(np.linalg.inv(to_world), gaussians.means.numpy())
    turn = torch.from_numpy(linear / size) @ quaternions_to_matrices(gaussians.quats.double())
    return replace(
        gaussians,
        means=torch.from_numpy(means).float(),
        quats=matrices_to_quaternions(turn).float(),
        scales=gaussians.scales * float(size),
    )


def thinned(file: SplatFile, rows: np.ndarray, to_world: np.ndarray, limit: int) -> tuple[Gaussians, np.ndarray]:
    """At most `limit` of the object's Gaussians, in subject space, grown where some were left out; and their rows."""
    if len(rows) > limit:
        chosen = np.sort(np.random.default_rng(0).permutation(rows)[:limit])
    else:
        chosen = rows
    gaussians = in_subject_space(read_rows(file, chosen), to_world)
    growth = (len(rows) / len(chosen)) ** 0.5
    return replace(gaussians, scales=(gaussians.scales * growth).clamp(1e-6, SUBJECT_RADIUS)), chosen


def _draw_views(
    job: Path, subject: Subject, file: SplatFile, rows: np.ndarray, appearance: str, settings: ViewSettings
) -> None:
    gaussians, chosen = thinned(file, rows, subject.to_world, settings.drawn)
    if appearance == "position":
        code = torch.from_numpy(position_code(gaussians.means.numpy(), *subject.box)).float()
        kind, colored = "position", lambda camera: gaussians.with_colors(code)
    else:
        kind, colored = "condition", _seen_from(gaussians, file, chosen, subject.to_world)
    for index, camera in enumerate(subject.condition_c2w):
        view = torch.from_numpy(camera)[None].float()
        g = colored(camera)
        rgb, alpha = rasterize(
            g.means, g.quats, g.scales, g.opacities, g.colors, view, subject.fovy, settings.size, settings.size
        )
        straight = rgb[0] / alpha[0, ..., None].clamp_min(1e-4)
        picture = torch.cat([straight, alpha[0, ..., None]], dim=-1).clamp(0, 1)
        path = Subject.image_path(job, kind, index)
        Image.fromarray((255 * picture).round().to(torch.uint8).numpy(), "RGBA").save(path)


def _seen_from(
    gaussians: Gaussians, file: SplatFile, rows: np.ndarray, to_world: np.ndarray
) -> Callable[[np.ndarray], Gaussians]:
    """The Gaussians in the colours that a camera [4, 4] of the subject's space sees."""
    flat = torch.from_numpy(file.columns(COLOR, rows))
    rest = torch.zeros(len(rows), 3, 0)
    if file.rest_names:
        rest = torch.from_numpy(file.columns(file.rest_names, rows)).unflatten(1, (3, -1))
    axes = torch.from_numpy(to_world[:3, :3]).float()

    def colored(camera: np.ndarray) -> Gaussians:
        toward = (gaussians.means - torch.from_numpy(camera[:3, 3]).float()) @ axes.T
        directions = torch.nn.functional.normalize(toward, dim=-1)
        return gaussians.with_colors(harmonics.colors(flat, rest, directions).clamp(0, 1))

    return colored
