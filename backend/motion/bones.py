"""A rig-like motion field: a few dozen rigid bones with smooth geodesic weights, posed in every frame.

Seeds are farthest points along the welded surface; weights fall off with geodesic distance and do not cross to
another part where the object has a few large ones (a lid must not bend its chest).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree

from backend.motion.graph import SurfaceGraph, nearest_owner
from backend.motion.rotations import matrix_to_quaternion, nearest_rotation

MAX_BONES = 128  # for objects of many parts; the solver's time grows with the square
MAX_PIECES = MAX_BONES * 3 // 4  # a heap of more moves as one part
MIN_SPREAD = 0.03  # bones nearer than this to each other say nothing that 64 pixels could show
WEIGHT_WIDTH = 0.5  # of the spread: width of the Gaussian weights
LINKS = 5  # neighbours of each bone along the surface
TOUCHING = 0.04  # subject units: two parts touch where they are not farther apart than that beyond the nearest place
CHUNK = 65536  # points posed at once: bounds memory for meshes of any size


@dataclass(frozen=True)
class Joints:
    """How bones hold together, relative to two neighbours along the surface agreeing on where they are."""

    hinge: float = 0.0  # on the place half-way between them: may bend there, but not stretch
    contacts: int = 1  # places at which parts that touch hold together; one lets wheels turn and lids open
    contact: float = 0.3  # at each of these


@dataclass(frozen=True)
class Rig:
    """The bones at rest and what hangs on them."""

    graph: SurfaceGraph
    centres: torch.Tensor  # [B, 3]
    node_weights: torch.Tensor  # [M, B], rows sum to 1
    links: torch.Tensor  # [E, 2] int: pairs of bones
    joints: torch.Tensor  # [E, 3]: the rest point on which the two should agree
    strength: torch.Tensor  # [E]
    part: torch.Tensor  # [B] int: the large part that a bone belongs to
    spread: float  # typical distance between neighbouring bones

    def weights(self, points: np.ndarray, owner: np.ndarray) -> torch.Tensor:
        """Weights [N, B] at points [N, 3] whose graph nodes are `owner` [N]."""
        return self.at_points(self.node_weights, points, owner)

    def at_points(self, values: torch.Tensor, points: np.ndarray, owner: np.ndarray) -> torch.Tensor:
        """Values [M, C] of the nodes at points [N, 3] -> [N, C]: smooth between neighbouring nodes."""
        around = self.graph.neighbours[owner]  # [N, K]
        squared = ((self.graph.nodes[around] - points[:, None]) ** 2).sum(axis=-1)
        own_reach = ((self.graph.nodes[around] - self.graph.nodes[owner][:, None]) ** 2).sum(axis=-1)
        reach = own_reach.sum(axis=1, keepdims=True) / np.maximum((own_reach > 0).sum(axis=1, keepdims=True), 1)
        mix = np.exp(-4.0 * squared / np.maximum(reach, 1e-12))
        mix[:, 1:] *= around[:, 1:] != around[:, :1]  # the padding repeats the node itself
        mix[:, 0] += 1e-9
        mix = torch.from_numpy(mix / mix.sum(axis=1, keepdims=True)).to(values)
        picked = torch.from_numpy(around).to(values.device)
        result = mix[:, :1] * values[picked[:, 0]]
        for k in range(1, around.shape[1]):
            result += mix[:, k : k + 1] * values[picked[:, k]]
        return result


class RigField:
    """A rig and its poses: `fields.MotionField`."""

    def __init__(self, rig: Rig, rotations: torch.Tensor, translations: torch.Tensor) -> None:
        """rotations [F, B, 3, 3] and translations [F, B, 3] of the bones about their centres; frame 0 is the rest."""
        self.rig, self.rotations, self.translations = rig, rotations, translations

    def deform(self, points: torch.Tensor, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Points [N, 3] anywhere near the surface at times [T] in -1..1 -> positions [T, N, 3], rotations [T, N, 4]."""
        owner = nearest_owner(self.rig.graph, points.detach().cpu().numpy().astype(np.float64))
        positions, quaternions = [], []
        for k in range(0, len(points), CHUNK):
            affine = self._affine(points[k : k + CHUNK], owner[k : k + CHUNK], times)
            positions.append(apply_affine(affine, points[k : k + CHUNK]))
            quaternions.append(matrix_to_quaternion(nearest_rotation(affine[..., :3])))
        return torch.cat(positions, dim=1), torch.cat(quaternions, dim=1)

    def positions(self, points: torch.Tensor, owner: np.ndarray, times: torch.Tensor) -> torch.Tensor:
        """Positions [T, N, 3] of points [N, 3] whose graph nodes `owner` [N] are known: touching limbs stay apart."""
        return apply_affine(self._affine(points, owner, times), points)

    def _affine(self, points: torch.Tensor, owner: np.ndarray, times: torch.Tensor) -> torch.Tensor:
        """Blended bone transforms [T, N, 3, 4] at points [N, 3]; between frames, linear in time."""
        weights = self.rig.weights(points.detach().cpu().numpy().astype(np.float64), owner).to(points)
        bones = bone_affine(self.rig.centres, self.rotations, self.translations).to(points)
        place = (times.to(points) + 1.0) * 0.5 * (len(bones) - 1)
        low = place.floor().long().clamp(0, max(len(bones) - 2, 0))
        part = (place - low).view(-1, 1, 1, 1)
        at_times = bones[low] * (1 - part) + bones[(low + 1).clamp(max=len(bones) - 1)] * part
        return blend(weights, at_times)


def bone_affine(centres: torch.Tensor, rotations: torch.Tensor, translations: torch.Tensor) -> torch.Tensor:
    """x -> R (x - c) + c + t: centres c [B, 3], rotations [F, B, 3, 3], translations [F, B, 3] -> [F, B, 3, 4]."""
    shift = centres + translations - (rotations @ centres[..., None])[..., 0]
    return torch.cat([rotations, shift[..., None]], dim=-1)


def blend(weights: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
    """weights [N, B], bone matrices [T, B, 3, 4] -> point matrices [T, N, 3, 4]."""
    frames, bones = affine.shape[:2]
    return (weights @ affine.reshape(frames, bones, 12)).reshape(frames, len(weights), 3, 4)


def apply_affine(affine: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Matrices [T, N, 3, 4] on points [N, 3] -> [T, N, 3]."""
    return (affine[..., :3] @ points[None, :, :, None])[..., 0] + affine[..., 3]


def build_rig(
    graph: SurfaceGraph,
    bones: int,
    large_part: float,
    device: torch.device,
    hold: Joints = Joints(),
    follows: np.ndarray | None = None,
) -> Rig:
    """Seeds `bones` bones (fewer on tiny graphs, more on many parts) and hangs every node of the graph on them.

    Parts with a bounding box diagonal above `large_part` (subject units) get bones of their own, but not those whose
    nodes move with another's: `follows` [M], as of `hidden.followed_nodes`.
    """
    part, stand_in = _large_parts(graph, large_part, np.arange(len(graph.nodes)) if follows is None else follows)
    bones = max(bones, min(2 * (int(part.max()) + 1), MAX_BONES))
    seeds, distance = _seed(graph, part, bones)
    distance = distance[stand_in]
    spread = _spread(distance[seeds])
    nearest = distance.min(axis=1, keepdims=True)
    weights = np.exp(-(distance**2 - nearest**2) / (2 * (WEIGHT_WIDTH * spread) ** 2))
    weights[weights < 1e-3] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    centres = (weights / weights.sum(axis=0)).T @ graph.nodes
    links, joints, strength = _links(graph, part, centres, seeds, distance, hold)
    return Rig(
        graph,
        torch.tensor(centres, dtype=torch.float32, device=device),
        torch.tensor(weights, dtype=torch.float32, device=device),
        torch.tensor(links, dtype=torch.int64, device=device),
        torch.tensor(joints, dtype=torch.float32, device=device),
        torch.tensor(strength, dtype=torch.float32, device=device),
        torch.tensor(part[seeds], dtype=torch.int64, device=device),
        spread,
    )


def _large_parts(graph: SurfaceGraph, large_part: float, follows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Part index of each node [M] (-1: no bones of its own) and the node [M] that each node moves with.

    Where there are more large parts than bones can serve (a heap of shards), or none, all nodes form one part.
    """
    count = int(graph.component.max()) + 1
    low, high = np.full((count, 3), np.inf), np.full((count, 3), -np.inf)
    np.minimum.at(low, graph.component, graph.nodes)
    np.maximum.at(high, graph.component, graph.nodes)
    itself = np.arange(len(graph.nodes))
    free = np.zeros(count, bool)
    free[graph.component[follows == itself]] = True
    large = np.flatnonzero(free & (np.linalg.norm(high - low, axis=1) > large_part))
    if not 1 <= len(large) <= MAX_PIECES:
        return np.zeros(len(graph.nodes), np.int64), itself
    index = np.full(count, -1)
    index[large] = np.arange(len(large))
    part = index[graph.component]
    body = np.flatnonzero(part >= 0)
    nearest = body[cKDTree(graph.nodes[body]).query(graph.nodes)[1]]
    return part, np.where(part >= 0, itself, nearest)[follows]


def _seed(graph: SurfaceGraph, part: np.ndarray, bones: int) -> tuple[np.ndarray, np.ndarray]:
    """Farthest points: seeds [B] (at least one per part) and distances [M, B], infinite from part to part."""
    whole = len(np.unique(graph.component)) > 1 and part.max() == 0 and part.min() == 0

    def distance_from(node: int) -> np.ndarray:
        if whole:  # a heap of parts that move as one piece: there is no way along the surface
            return np.linalg.norm(graph.nodes - graph.nodes[node], axis=1)
        return dijkstra(graph.edges, directed=False, indices=node)

    seeds: list[int] = []
    columns: list[np.ndarray] = []
    for k in range(part.max() + 1):
        members = np.flatnonzero(part == k)
        middle = np.linalg.norm(graph.nodes[members] - graph.nodes[members].mean(axis=0), axis=1).argmin()
        seeds.append(int(members[middle]))
        columns.append(distance_from(seeds[-1]))
    nearest = np.where(part >= 0, np.min(columns, axis=0), -1.0)
    while len(seeds) < bones and nearest.max() > MIN_SPREAD:
        seeds.append(int(nearest.argmax()))
        columns.append(distance_from(seeds[-1]))
        nearest = np.minimum(nearest, columns[-1])
    return np.array(seeds), np.stack(columns, axis=1)


def _spread(between: np.ndarray) -> float:
    """Median distance of a bone to its nearest one, from distances [B, B]; for a single bone, the whole object."""
    away = np.where(np.eye(len(between), dtype=bool), np.inf, between).min(axis=1)
    away = away[np.isfinite(away)]
    return float(np.median(away)) if len(away) else 1.0


def _links(
    graph: SurfaceGraph, part: np.ndarray, centres: np.ndarray, seeds: np.ndarray, distance: np.ndarray, hold: Joints
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What holds bones together: pairs [E, 2], a rest point that both must agree on [E, 3], and strengths [E].

    Along the surface the points are the two centres (the edge term of embedded deformation), and half-way; between
    parts they are the places where these are nearest.
    """
    between = distance[seeds] + np.diag(np.full(len(seeds), np.inf))
    order = np.argsort(between, axis=1)[:, :LINKS]
    pairs = {(min(b, k), max(b, k)) for b in range(len(seeds)) for k in order[b] if np.isfinite(between[b, k])}
    links = [pair for b, k in sorted(pairs) for pair in ((b, k), (b, k))]
    joints = [centres[bone] for b, k in sorted(pairs) for bone in (b, k)]
    strength = [1.0] * len(links)
    if hold.hinge > 0.0:
        links += sorted(pairs)
        joints += [0.5 * (centres[b] + centres[k]) for b, k in sorted(pairs)]
        strength += [hold.hinge] * len(pairs)
    trees = [cKDTree(graph.nodes[part == k]) for k in range(part.max() + 1)]
    for k in range(len(trees) if len(trees) > 1 else 0):
        for here, there in _contacts(graph, part, trees, k, hold.contacts):
            links.append((int(distance[here].argmin()), int(distance[there].argmin())))
            joints.append(0.5 * (graph.nodes[here] + graph.nodes[there]))
            strength.append(hold.contact)
    return np.array(links).reshape(-1, 2), np.array(joints).reshape(-1, 3), np.array(strength)


def _contacts(graph: SurfaceGraph, part: np.ndarray, trees: list[cKDTree], k: int, count: int) -> list[tuple[int, int]]:
    """Where part `k` is nearest to the parts nearest to it: (node here, node there), up to `count` for each part.

    Spread out as far as the two parts touch, so that what lies on another part keeps to it in all directions.
    """
    mine = np.flatnonzero(part == k)
    found = []
    for other in range(len(trees)):
        if other == k:
            continue
        away, index = trees[other].query(graph.nodes[mine])
        there = np.flatnonzero(part == other)[index]
        chosen = [int(away.argmin())]
        touching = away < away.min() + TOUCHING
        while len(chosen) < count:
            apart = cKDTree(graph.nodes[mine[chosen]]).query(graph.nodes[mine])[0] * touching
            if apart.max() < TOUCHING:
                break
            chosen.append(int(apart.argmax()))
        found.append((float(away.min()), other, [(int(mine[c]), int(there[c])) for c in chosen]))
    return [pair for entry in sorted(found)[:2] for pair in entry[2]]
