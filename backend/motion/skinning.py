"""Any motion of a surface as a skeleton's: rigid bones, few smooth weights per vertex, poses (skinning decomposition).

After Le and Deng, "Smooth skinning decomposition with rigid bones" (2012): poses and weights are improved in turn by
least squares. Bones start on the surface as in `bones.build_rig`; then neighbours that move as one merge, as long as
the motion is met. Works for every motion field, because only its positions are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backend.motion.bones import Rig, build_rig
from backend.motion.graph import SurfaceGraph
from backend.motion.rotations import nearest_rotation_svd

STILL = 1e-3  # mean displacement in subject units: below it, what is left over is rounding
CHUNK = 4096  # points whose weights are solved at once

Offsets = Callable[[np.ndarray | slice], np.ndarray]  # some vertices -> [F, n, 3] float32: there may be millions


@dataclass(frozen=True)
class SkinSettings:
    """How a motion becomes bones; lengths in subject units."""

    # Bones to start from, and the size of a part (bounding box diagonal) that has its own; the first that is enough.
    starts: tuple[tuple[int, float], ...] = ((24, math.inf), (48, 0.04), (96, 0.04))
    samples: int = 2500  # vertices that bones and poses are found on
    influences: int = 4  # per vertex: what one set of glTF weights holds
    candidates: int = 8  # bones per vertex among which those are found
    tolerance: float = 0.007  # mean distance from the motion, of its mean displacement: a bit below 1 %
    rounds: int = 30  # of poses and weights in turn, at most
    trial_rounds: int = 6  # with fewer bones: what doesn't get there soon costs more than it saves
    smooth: float = 3e-4  # pull of the weights to their smooth start, where the motion doesn't decide
    fewer: float = 0.8  # each try has so many bones of the last


@dataclass(frozen=True)
class Skin:
    """Bones and their poses: x -> R (x - c) + c + t. Frame 0 is the rest."""

    centres: Tensor  # [B, 3]
    rotations: Tensor  # [F, B, 3, 3]
    translations: Tensor  # [F, B, 3]

    def matrices(self) -> Tensor:
        """[F, B, 3, 4]."""
        shift = self.centres + self.translations - (self.rotations @ self.centres[..., None])[..., 0]
        return torch.cat([self.rotations, shift[..., None]], dim=-1)


@dataclass(frozen=True)
class Points:
    """What a skin is fitted to: N points and where they go."""

    rest: Tensor  # [N, 3]
    moved: Tensor  # [F, N, 3]
    smooth: Tensor  # [N, B] weights that the surface suggests


def solve_weights(points: Points, skin: Skin, settings: SkinSettings) -> tuple[Tensor, Tensor]:
    """Bones [N, K] int and weights [N, K] >= 0 with rows of sum 1, by least squares on the motion, in chunks."""
    found = [
        _chunk_weights(Points(points.rest[s], points.moved[:, s], points.smooth[s]), skin, settings)
        for s in (slice(k, k + CHUNK) for k in range(0, len(points.rest), CHUNK))
    ]
    return torch.cat([bones for bones, _ in found]), torch.cat([weights for _, weights in found])


def _chunk_weights(points: Points, skin: Skin, settings: SkinSettings) -> tuple[Tensor, Tensor]:
    start, bones = points.smooth.topk(min(settings.candidates, points.smooth.shape[1]), dim=1)
    start = (start / start.sum(dim=1, keepdim=True)).double()
    posed = posed_by(points.rest, bones, skin) - points.moved.transpose(0, 1)[:, None]  # [N, C, F, 3]
    posed = posed.flatten(2).double()
    # The weights sum to 1, so the error is the weighted sum of what each bone is off by itself.
    gram = posed @ posed.transpose(1, 2) / posed.shape[2]
    pull = settings.smooth * gram.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(1e-9)
    gram = gram + pull[:, None, None] * torch.eye(gram.shape[1], dtype=gram.dtype)
    right = pull[:, None] * start
    weights = _on_simplex(gram, right, torch.ones_like(start, dtype=torch.bool))
    keep = weights.topk(min(settings.influences, weights.shape[1]), dim=1).indices
    allowed = torch.zeros_like(weights, dtype=torch.bool).scatter_(1, keep, True)
    weights = _on_simplex(gram, right, allowed)
    return bones.gather(1, keep), weights.gather(1, keep).float()


def _on_simplex(gram: Tensor, right: Tensor, allowed: Tensor) -> Tensor:
    """Weights [N, C] >= 0 of sum 1 that minimise w G w / 2 - r w, zero where not `allowed`: active sets."""
    count = gram.shape[1]
    while True:
        system = torch.zeros(len(gram), count + 1, count + 1, dtype=gram.dtype)
        both = allowed[:, :, None] & allowed[:, None, :]
        system[:, :count, :count] = torch.where(both, gram, 0.0)
        system[:, :count, :count] += torch.diag_embed(torch.where(allowed, 0.0, 1.0).to(gram))
        scale = gram.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None]  # of the multiplier, for the condition
        system[:, :count, count] = system[:, count, :count] = allowed * scale
        target = torch.cat([torch.where(allowed, right, 0.0), scale], dim=1)
        weights = torch.linalg.solve(system, target)[:, :count]
        bad = allowed & (weights < 0)
        if not bad.any():
            return torch.where(allowed, weights, 0.0)
        allowed = allowed & ~bad


def posed_by(rest: Tensor, bones: Tensor, skin: Skin) -> Tensor:
    """Where each of its bones [N, C] alone would take a point [N, 3] -> [N, C, F, 3]."""
    matrices = skin.matrices().transpose(0, 1)[bones]  # [N, C, F, 3, 4]
    return torch.einsum("ncfij,nj->ncfi", matrices[..., :3], rest) + matrices[..., 3]


def skinned(rest: Tensor, bones: Tensor, weights: Tensor, skin: Skin) -> Tensor:
    """Linear blend skinning: points [N, 3] with bones and weights [N, K] -> [F, N, 3], in chunks."""
    parts = []
    for k in range(0, len(rest), CHUNK):
        s = slice(k, k + CHUNK)
        parts.append((posed_by(rest[s], bones[s], skin) * weights[s, :, None, None]).sum(dim=1).transpose(0, 1))
    return torch.cat(parts, dim=1)


def solve_poses(points: Points, bones: Tensor, weights: Tensor, skin: Skin) -> Skin:
    """Each bone in turn takes the rigid motion that leaves the least, the others held (weighted Procrustes)."""
    dense = torch.zeros(len(points.rest), len(skin.centres)).scatter_add_(1, bones, weights)
    left = points.moved - skinned(points.rest, bones, weights, skin)
    rotations, translations = skin.rotations.clone(), skin.translations.clone()
    for b, centre in enumerate(skin.centres):
        held = torch.nonzero(dense[:, b] > 1e-3)[:, 0]
        if len(held) == 0:
            continue
        weight, arms = dense[held, b, None], points.rest[held] - centre
        before = arms @ rotations[:, b].transpose(-1, -2) + (centre + translations[:, b])[:, None]  # [F, n, 3]
        wanted = left[:, held] + weight * before  # of the bone's share
        turn, shift = _procrustes(arms, weight**2, weight * wanted, rotations[:, b], centre + translations[:, b])
        rotations[1:, b], translations[1:, b] = turn[1:], shift[1:] - centre
        now = arms @ rotations[:, b].transpose(-1, -2) + (centre + translations[:, b])[:, None]
        left[:, held] = wanted - weight * now
    return Skin(skin.centres, rotations, translations)


def _procrustes(arms: Tensor, weight: Tensor, weighted: Tensor, turn: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation [F, 3, 3] and place of the origin [F, 3] that take arms [n, 3] nearest to weighted / weight.

    weight [n, 1], weighted targets [F, n, 3]. A faint pull to (turn, place) decides what the points leave open.
    """
    total = weight.sum()
    pull = 1e-4 * total
    spread = (weight * arms**2).sum().clamp_min(1e-12) / total
    middle = (weight * arms).sum(dim=0) / (total + pull)
    target = (weighted.sum(dim=1) + pull * place) / (total + pull)
    cross = weighted.transpose(1, 2) @ arms + pull * spread * turn
    cross = cross - (total + pull) * target[:, :, None] * middle
    rotation = nearest_rotation_svd(cross)  # faster than the closed form for so few
    return rotation, target - rotation @ middle


def fit_poses(points: Points) -> Skin:
    """The poses that the smooth weights ask for, each bone for itself."""
    weights = points.smooth
    share = weights / weights.sum(dim=0).clamp_min(1e-9)
    centres = share.T @ points.rest
    frames = len(points.moved)
    rotations = torch.eye(3).expand(frames, len(centres), 3, 3).clone()
    translations = torch.zeros(frames, len(centres), 3)
    for b, centre in enumerate(centres):
        weight = weights[:, b, None] ** 2
        held = weight[:, 0] > 1e-3
        weight, moved = weight[held], points.moved[:, held]
        if len(weight):
            pose = _procrustes(
                points.rest[held] - centre, weight, weight * moved, rotations[:, b], centre.expand(frames, 3)
            )
            rotations[1:, b], translations[1:, b] = pose[0][1:], pose[1][1:] - centre
    return Skin(centres, rotations, translations)


def fit_skin(points: Points, rounds: int, settings: SkinSettings, patient: bool = False) -> tuple[Skin, float]:
    """Poses and weights in turn -> the skin, and its mean distance from the motion, of the mean displacement.

    Ends before `rounds` where it is within the tolerance and, unless `patient`, where it won't get there.
    """
    skin, before = fit_poses(points), math.inf
    still = (points.moved - points.rest).norm(dim=-1)[1:].mean().clamp_min(STILL)
    for done in range(rounds + 1):
        bones, weights = solve_weights(points, skin, settings)
        off = (skinned(points.rest, bones, weights, skin) - points.moved).norm(dim=-1)[1:].mean()
        goal = settings.tolerance * still
        hopeless = not patient and (before - off) * (rounds - done) < off - goal  # each round gains less than the last
        if off < goal or done == rounds or hopeless:
            break
        before = float(off)
        skin = solve_poses(points, bones, weights, skin)
    return skin, float(off / still)


def merges(points: Points, links: np.ndarray) -> list[np.ndarray]:
    """Which bones to take together to have B, B - 1, ... of them: group numbers [B] for each count, from 0 on.

    Of the neighbours, `links` [E, 2], those merge next that one rigid motion suits best (Ward's method with rigid
    motions in the place of means). Ends when no neighbours are left.
    """
    moments = _Moments.of(points)
    alone = {b: moments.rest_of([b]) for b in range(points.smooth.shape[1])}
    groups = {b: [b] for b in alone}
    pairs = {(min(a, b), max(a, b)) for a, b in links.tolist() if a != b}
    cost = {pair: moments.rest_of([*pair]) - alone[pair[0]] - alone[pair[1]] for pair in pairs}
    result = [_numbers(groups)]
    while cost:
        a, b = min(cost, key=lambda pair: (cost[pair], pair))
        groups[a] += groups.pop(b)
        alone[a] = moments.rest_of(groups[a])
        near = {x if y in (a, b) else y for x, y in cost if {x, y} & {a, b}} - {a, b}
        cost = {pair: value for pair, value in cost.items() if not {*pair} & {a, b}}
        for other in near:
            both = moments.rest_of(groups[a] + groups[other])
            cost[min(a, other), max(a, other)] = both - alone[a] - alone[other]
        result.append(_numbers(groups))
    return result


def _numbers(groups: dict[int, list[int]]) -> np.ndarray:
    """Group number [B] of each bone."""
    numbers = np.zeros(sum(map(len, groups.values())), np.int64)
    for number, members in enumerate(groups.values()):
        numbers[members] = number
    return numbers


@dataclass(frozen=True)
class _Moments:
    """Sums over the points of each bone, which add up when bones merge."""

    total: np.ndarray  # [B]
    rest: np.ndarray  # [B, 3]
    moved: np.ndarray  # [B, F, 3]
    cross: np.ndarray  # [B, F, 3, 3]
    square: np.ndarray  # [B, F]

    @classmethod
    def of(cls, points: Points) -> _Moments:
        weight, rest, moved = (x.double().numpy() for x in (points.smooth, points.rest, points.moved))
        square = (rest**2).sum(axis=1) + (moved**2).sum(axis=2)
        return cls(
            weight.sum(axis=0),
            weight.T @ rest,
            np.einsum("nb,fni->bfi", weight, moved),
            np.einsum("nb,fni,nj->bfij", weight, moved, rest, optimize=True),
            weight.T @ square.T,
        )

    def rest_of(self, bones: list[int]) -> float:
        """Squared error that one rigid motion per frame leaves on the points of these bones."""
        total = max(self.total[bones].sum(), 1e-9)
        rest, moved = self.rest[bones].sum(axis=0), self.moved[bones].sum(axis=0)
        cross = self.cross[bones].sum(axis=0) - moved[:, :, None] * rest / total
        square = self.square[bones].sum(axis=0) - (rest @ rest + (moved**2).sum(axis=1)) / total
        size = np.linalg.svd(cross, compute_uv=False)
        size[:, 2] *= np.where(np.linalg.det(cross) < 0, -1.0, 1.0)
        return float((square - 2 * size.sum(axis=1)).sum())


def decompose(
    rest: np.ndarray, offsets: Offsets, graph: SurfaceGraph, settings: SkinSettings
) -> tuple[Skin, np.ndarray, np.ndarray]:
    """The skin with few bones that meets the motion, and bones [V, K] int32 and weights [V, K] of all vertices.

    rest [V, 3] and offsets in subject space, `graph` of the same vertices. Where the tolerance can't be met,
    the last start's bones are what comes out.
    """
    chosen = _sample(graph, settings.samples)
    place = torch.from_numpy(rest[chosen])
    moved = place + torch.from_numpy(offsets(chosen))
    for start, large_part in settings.starts:
        count = min(start, 1 + len(chosen) // 4)  # a bone has six unknowns, a vertex three
        rig = build_rig(graph, count, large_part, torch.device("cpu"))
        points = Points(place, moved, rig.weights(rest[chosen].astype(np.float64), graph.owner[chosen]))
        skin, error = fit_skin(points, settings.rounds, settings, patient=start == settings.starts[-1][0])
        if error < settings.tolerance:
            break
    groups = merges(points, rig.links.numpy())
    grouped, left = groups[0], len(groups)
    while error < settings.tolerance and (left := int(left * settings.fewer)) > 0:
        trial, error = fit_skin(_grouped(points, groups[-left]), settings.trial_rounds, settings)
        if error < settings.tolerance:
            skin, grouped = trial, groups[-left]
    return skin, *_all_weights(rest, offsets, graph, rig, grouped, skin, settings)


def _sample(graph: SurfaceGraph, count: int) -> np.ndarray:
    """Vertices [N] spread over the surface: one for each node of the graph, or for some of them."""
    vertices = np.unique(graph.owner, return_index=True)[1]
    return vertices if len(vertices) <= count else np.random.default_rng(0).permutation(vertices)[:count]


def _grouped(points: Points, group: np.ndarray) -> Points:
    """The same points with the weights of merged bones; group [B] -> [N, G]."""
    smooth = points.smooth.new_zeros(len(points.rest), int(group.max()) + 1)
    return Points(points.rest, points.moved, smooth.index_add_(1, torch.from_numpy(group), points.smooth))


def _all_weights(
    rest: np.ndarray,
    offsets: Offsets,
    graph: SurfaceGraph,
    rig: Rig,
    group: np.ndarray,
    skin: Skin,
    settings: SkinSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """Bones [V, K] int32 and weights [V, K] float32."""
    count = min(settings.influences, settings.candidates, len(skin.centres))
    bones, weights = np.zeros((len(rest), count), np.int32), np.zeros((len(rest), count), np.float32)
    for k in range(0, len(rest), CHUNK):
        s = slice(k, k + CHUNK)
        place = torch.from_numpy(rest[s])
        smooth = rig.weights(rest[s].astype(np.float64), graph.owner[s])
        points = _grouped(Points(place, place + torch.from_numpy(offsets(s)), smooth), group)
        found = solve_weights(points, skin, settings)
        bones[s], weights[s] = found[0].numpy(), found[1].numpy()
    return bones, weights
