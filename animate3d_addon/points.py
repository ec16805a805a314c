"""A mesh as a cloud of coloured points: flat Gaussians on its surface, that go where the surface goes.

The points are vertices of a mesh with the attributes of a 3DGS file (`f_dc_*`, `opacity`, `scale_*`, `rot_*`), so that
what draws, saves or animates imported splats serves them too. The same mesh gives the same points each time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import bpy
import numpy as np

from . import bake, meshes, splats, surface_colors
from .shared import protocol
from .timing import Timing

OPACITY = 4.0  # the logit of 0.98
FLATNESS = 0.1  # thickness over width
OVERLAP = 1.2  # width over the distance to the next point: the surface looks closed
PLASTIC = (0.7548776662466927, 0.5698402909980532)  # of the R2 sequence, which covers a square evenly


@dataclass(frozen=True)
class Samples:
    """Places on triangles."""

    corners: np.ndarray  # [N, 3] int32, vertices
    loops: np.ndarray  # [N, 3] int32, face corners
    polygons: np.ndarray  # [N] int32
    weights: np.ndarray  # [N, 3] float32, barycentric
    radius: float  # half the width of a point

    def at(self, vertices: np.ndarray) -> np.ndarray:
        """[..., N, 3] float32: the points on vertices [..., V, 3], or what moves them likewise."""
        return np.einsum("...nck,nc->...nk", vertices[..., self.corners, :], self.weights).astype(np.float32)


def sample(mesh: bpy.types.Mesh, vertices: np.ndarray, count: int) -> Samples:
    """`count` places evenly spread over a surface whose vertices are at [V, 3]."""
    mesh.calc_loop_triangles()
    triangles = mesh.loop_triangles
    corners, loops = (np.empty(3 * len(triangles), np.int32) for _ in range(2))
    polygons = np.empty(len(triangles), np.int32)
    triangles.foreach_get("vertices", corners)
    triangles.foreach_get("loops", loops)
    triangles.foreach_get("polygon_index", polygons)
    corners, loops = corners.reshape(-1, 3), loops.reshape(-1, 3)
    a, b, c = (vertices[corners[:, k]].astype(np.float64) for k in range(3))
    areas = 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1)
    total = np.cumsum(areas)
    # Equal steps through the area: each triangle gets its share to within one point.
    chosen = np.searchsorted(total, (np.arange(count) + 0.5) / count * total[-1], side="right")
    chosen = np.minimum(chosen, len(corners) - 1)
    u, v = (np.outer(np.arange(1, count + 1), PLASTIC) % 1.0).T
    u, v = np.where(u + v > 1.0, 1.0 - u, u), np.where(u + v > 1.0, 1.0 - v, v)
    weights = np.stack([1.0 - u - v, u, v], axis=1).astype(np.float32)
    radius = OVERLAP * math.sqrt(max(total[-1], 1e-30) / count) / 2.0
    return Samples(corners[chosen], loops[chosen], polygons[chosen], weights, radius)


def frames_of(samples: Samples, vertices: np.ndarray) -> np.ndarray:
    """The points' axes [N, 3, 3] as columns: along an edge, across it, and outwards."""
    a, b, c = (vertices[samples.corners[:, k]].astype(np.float64) for k in range(3))
    along, normal = b - a, np.cross(b - a, c - a)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-30)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-30)
    return np.stack([along, np.cross(normal, along), normal], axis=2)


def quaternions(axes: np.ndarray) -> np.ndarray:
    """Rotations [N, 3, 3] as unit quaternions [N, 4], w first; the largest part decides how, so that none is lost."""
    m = axes
    trace = np.stack(
        [
            m[:, 0, 0] + m[:, 1, 1] + m[:, 2, 2],
            m[:, 0, 0] - m[:, 1, 1] - m[:, 2, 2],
            m[:, 1, 1] - m[:, 0, 0] - m[:, 2, 2],
            m[:, 2, 2] - m[:, 0, 0] - m[:, 1, 1],
        ],
        axis=1,
    )
    x, y, z = m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]
    xy, xz, yz = m[:, 0, 1] + m[:, 1, 0], m[:, 0, 2] + m[:, 2, 0], m[:, 1, 2] + m[:, 2, 1]
    one = 1.0 + trace
    table = np.stack(
        [
            np.stack([one[:, 0], x, y, z], axis=1),
            np.stack([x, one[:, 1], xy, xz], axis=1),
            np.stack([y, xy, one[:, 2], yz], axis=1),
            np.stack([z, xz, yz, one[:, 3]], axis=1),
        ],
        axis=1,
    )
    quats = table[np.arange(len(m)), trace.argmax(axis=1)]
    length = np.linalg.norm(quats, axis=1, keepdims=True)
    return np.where(length > 0.0, quats / np.maximum(length, 1e-30), (1.0, 0.0, 0.0, 0.0))


def attributes(samples: Samples, vertices: np.ndarray, colors: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of a 3DGS file but for the places, [N] float32 each; `colors` [N, 3] as on a screen."""
    flat = math.log(samples.radius)
    columns = {f"f_dc_{k}": (colors[:, k] - 0.5) / splats.SH_C0 for k in range(3)}
    columns["opacity"] = np.full(len(colors), OPACITY)
    columns |= {f"scale_{k}": np.full(len(colors), flat + (math.log(FLATNESS) if k == 2 else 0.0)) for k in range(3)}
    quats = quaternions(frames_of(samples, vertices))
    columns |= {f"rot_{k}": quats[:, k] for k in range(4)}
    return {name: values.astype(np.float32) for name, values in columns.items()}


def make(obj: bpy.types.Object, vertices: np.ndarray, count: int, name: str) -> tuple[bpy.types.Object, Samples]:
    """The points of a mesh object whose vertices [V, 3] are at rest, as an object of no collection yet."""
    samples = sample(obj.data, vertices, count)
    colors = surface_colors.of(obj, samples)
    mesh = bpy.data.meshes.new(name)
    mesh.vertices.add(count)
    mesh.attributes["position"].data.foreach_set("vector", samples.at(vertices).ravel())
    for column, values in attributes(samples, vertices, colors).items():
        mesh.attributes.new(column, "FLOAT", "POINT").data.foreach_set("value", values)
    made = bpy.data.objects.new(name, mesh)
    splats.make_visible(made)
    return made, samples


def bake_points(
    objects: Sequence[bpy.types.Object],
    subject: protocol.Subject,
    motion: protocol.Motion,
    settings: bake.BakeSettings,
    count: int,
) -> list[bpy.types.Object]:
    """A cloud of points, moved by shape keys, in the place of each object, which is removed. Returns the clouds.

    Raises:
        UserError: before anything is changed.
    """
    timing = Timing(len(motion.offsets), start=settings.start, step=settings.step)
    clouds = []
    with bake.shared_action(settings.name) as shared:
        for obj, moves in bake.local_moves(objects, subject, motion, settings):
            if not len(obj.data.polygons):
                continue
            cloud, samples = make(obj, meshes.coordinates(obj.data), count, f"{obj.name} points")
            for collection in obj.users_collection:
                collection.objects.link(cloud)
            cloud.matrix_world = obj.matrix_world
            keys = bake.write_keys(cloud, samples.at(moves), settings.name)
            bake.animate_keys(cloud, keys, timing, settings.name, shared)
            clouds.append(cloud)
            bpy.data.objects.remove(obj)
    bpy.context.view_layer.update()  # the layer still lists what was removed
    bake.extend_timeline(bpy.context.scene, timing)
    return clouds


def write_frames(
    folder: Path, obj: bpy.types.Object, samples: Samples, rest: np.ndarray, moves: np.ndarray, order: list[int]
) -> list[Path]:
    """A complete 3DGS file for each frame of a round: the Gaussians move, turn and grow with their triangles.

    Args:
        rest: vertices [V, 3]; `moves` [F-1, V, 3] lead to those of frames 1, 2, …; frame 0 is the rest.

    Raises:
        OSError: a file can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns = attributes(samples, rest, surface_colors.of(obj, samples))
    names, size = list(columns), _areas(samples, rest)
    written = []
    for number, frame in enumerate(order, start=1):
        moved = rest if frame == 0 else rest + moves[frame - 1]
        growth = 0.5 * np.log(np.maximum(_areas(samples, moved), 1e-30) / np.maximum(size, 1e-30))
        quats = quaternions(frames_of(samples, moved))
        now = columns | {f"scale_{k}": columns[f"scale_{k}"] + growth for k in range(2)}
        now |= {f"rot_{k}": quats[:, k] for k in range(4)}
        table = np.column_stack([samples.at(moved), *(now[name] for name in names)])
        written.append(folder / f"frame_{number:04d}.ply")
        splats.write_table(written[-1], ["x", "y", "z", *names], table)
    return written


def _areas(samples: Samples, vertices: np.ndarray) -> np.ndarray:
    a, b, c = (vertices[samples.corners[:, k]].astype(np.float64) for k in range(3))
    return np.linalg.norm(np.cross(b - a, c - a), axis=1)
