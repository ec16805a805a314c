"""Pieces of a mesh that no view shows at rest: the contents of a closed chest, an engine under its hood.

Nothing tells how they move, so they get no bones of their own: they move with what they lie in. With bones, whatever
is wrong with a picture would be mended by pushing them through the surface.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from backend import protocol
from backend.motion.bones import MAX_PIECES
from backend.motion.correspondence import project
from backend.motion.graph import SurfaceGraph
from backend.motion.parts import group_pieces
from backend.motion.surface_views import EPSILON, draw_views, drawn_mesh, focal_length

SIZE = 512  # pixels in which it is looked for
MAX_ASKED = 64  # points of a part
LEADS = 0.25  # of the largest piece's surface: what lies on it, planks and fittings, leads nothing
ABOVE = 10.0  # subject units, more than anything is apart: what lies above is asked last
SEEN = 0.02  # share of a piece's surface from which it counts as seen: less comes through cracks


def followed_nodes(subject: protocol.Subject, graph: SurfaceGraph, samples: np.ndarray, node: np.ndarray) -> np.ndarray:
    """The node [M] that each node of the graph moves with: itself, but for those of hidden pieces.

    samples [N, 3] all over the rest surface, node [N] of each. A hidden piece follows the nearest of the larger pieces
    of the part that it belongs to (`parts.group_pieces`); where that is all hidden, of the part that it rests on.
    """
    itself = np.arange(len(graph.nodes))
    count = int(graph.component.max()) + 1
    if not len(subject.faces) or count == 1:
        return itself
    piece = graph.component[node]
    total = np.bincount(piece, minlength=count)
    shown = np.bincount(piece[seen_at_rest(subject, samples)], minlength=count) > SEEN * total
    hidden = ~shown & (total > 0)
    if not hidden.any() or not shown.any():
        return itself
    part = group_pieces(samples, piece) if count <= MAX_PIECES else np.zeros(count, np.int64)
    follows = itself.copy()
    for k in np.unique(part[hidden]):
        mine = np.flatnonzero((hidden & (part == k))[graph.component])
        host = k if (shown & (part == k)).any() else _rests_on(samples, part[piece], shown[piece], k)
        leading = shown & (part == host)
        if count <= MAX_PIECES:  # or they are too many to tell what belongs to what
            leading &= total > LEADS * total[leading].max()
        others = np.flatnonzero(leading[graph.component])
        follows[mine] = others[cKDTree(graph.nodes[others]).query(graph.nodes[mine])[1]]
    return follows


def _rests_on(samples: np.ndarray, part: np.ndarray, shown: np.ndarray, k: int) -> int:
    """The part that is nearest below the lowest points of part `k`, or beside them; samples [N, 3], part, shown [N]."""
    mine, others = samples[part == k], np.flatnonzero(shown)
    lowest = mine[np.argsort(mine[:, 2])[: max(len(mine) // 4, 1)]]
    lowest = lowest[np.linspace(0, len(lowest) - 1, min(len(lowest), MAX_ASKED)).astype(np.int64)]
    apart = samples[others][None] - lowest[:, None]
    away = np.linalg.norm(apart, axis=-1) + np.where(apart[..., 2] > 0, ABOVE, 0.0)
    return int(np.bincount(part[others[away.argmin(axis=1)]]).argmax())


def seen_at_rest(subject: protocol.Subject, samples: np.ndarray) -> np.ndarray:
    """Which points [N, 3] of the rest surface some view shows [N]."""
    points, faces, _ = drawn_mesh(subject.vertices, subject.faces, subject.weld)
    w2c = np.linalg.inv(subject.condition_c2w)
    depths = draw_views(points[None], faces.astype(np.int32), w2c, focal_length(subject.fovy, SIZE), SIZE)[0][0]
    seen = np.zeros(len(samples), bool)
    for depth, c2w in zip(depths, subject.condition_c2w, strict=True):
        where, away = project(samples, c2w, subject.fovy, SIZE)
        x, y = np.clip(np.floor(where), 0, SIZE - 1).astype(np.int64).T
        seen |= away < depth[y, x] + EPSILON
    return seen
