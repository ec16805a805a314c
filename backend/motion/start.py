"""Where the bones start in each frame: a rigid motion of each large part, found in closed form.

Gauss-Newton from the rest pose loses lids, wheels and whole objects that turn by more than about a right angle. But
with known correspondences the error of an affine motion is linear, so its best one needs no start; the rotation next
to it is refined and taken where it explains the pixels clearly better than what the rest pose leads to.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from backend.motion.bones import Rig
from backend.motion.observations import Observations, pixel_errors
from backend.motion.rig_fit import NormalEquations
from backend.motion.rotations import nearest_rotation, rotation_vector_to_matrix

MIN_SEEN = 12  # observations of a part in a frame; fewer can't tell 12 unknowns
CLEARLY = 0.7  # of the robust error from the rest pose
WIDTH = 0.08  # of the robust error, subject units


def start_poses(rig: Rig, seen: Observations, frames: int) -> tuple[Tensor, Tensor]:
    """Rotations [F, B, 3, 3] and translations [F, B, 3] of the bones, equal within each part; frame 0 is the rest."""
    parts = int(rig.part.max()) + 1
    centres = torch.stack([rig.centres[rig.part == k].mean(dim=0) for k in range(parts)])
    body = replace(rig, centres=centres, links=rig.links[:0], joints=rig.joints[:0], strength=rig.strength[:0])
    part = rig.part[seen.bones[:, :1]]  # of the bone that holds most
    whole = replace(seen, bones=part, weights=torch.ones_like(seen.weights[:, :1]))
    rest = torch.eye(3).to(centres).expand(frames, parts, 3, 3), torch.zeros(frames, parts, 3).to(centres)
    near = _refine(body, whole, *rest)
    far = _refine(body, whole, *_affine_start(body, whole, frames))
    better = _part_errors(body, whole, *far) < CLEARLY * _part_errors(body, whole, *near)
    index = whole.frame * parts + part[:, 0]
    count = torch.bincount(index, minlength=(frames - 1) * parts).view(frames - 1, parts)
    better = torch.cat([torch.zeros_like(better[:1]), better & (count >= MIN_SEEN)])
    turn = torch.where(better[..., None, None], far[0], rest[0])[:, rig.part]
    # A bone's shift is measured at its own centre, a part's at the part's.
    origin, shift = centres[rig.part], torch.where(better[..., None], far[1], rest[1])[:, rig.part]
    arm = rig.centres - origin
    return turn, (turn @ arm[..., None])[..., 0] + origin + shift - rig.centres


def _affine_start(rig: Rig, seen: Observations, frames: int) -> tuple[Tensor, Tensor]:
    """The rigid motions [F, P, 3, 3], [F, P, 3] next to the best affine ones; P one-bone parts."""
    parts = len(rig.centres)
    index = seen.frame * parts + seen.bones[:, 0]
    count = (frames - 1) * parts
    arms = (seen.rest - rig.centres[seen.bones[:, 0]]).double()
    camera, target = seen.camera.double(), seen.target.double()
    along = camera[:, :2] + target[..., None] * camera[:, 2:]  # error = along (y, 1) for a position y
    lever = torch.cat([arms, torch.ones_like(arms[:, :1])], dim=1)
    rows = (along[:, :, :3, None] * lever[:, None, None, :]).flatten(2)  # [N, 2, 12]
    offset = along[..., 3] + (along[..., :3] @ rig.centres[seen.bones[:, 0]].double()[..., None])[..., 0]
    rest = torch.cat([torch.eye(3), torch.zeros(3, 1)], dim=1).flatten().to(rows)
    spread = torch.zeros(count, 3, 3).to(rows).index_add_(0, index, arms[:, :, None] * arms[:, None])
    # A weak pull to the rest pose decides what few pixels leave open.
    pull = 1e-2 * spread.diagonal(dim1=-2, dim2=-1).sum(-1) + 1e-9
    pull = pull[:, None] * torch.tensor([1.0, 1, 1, 1e-3, 1, 1, 1, 1e-3, 1, 1, 1, 1e-3]).to(rows)
    weight = seen.confidence.double()
    for _ in range(4):
        matrix = torch.diag_embed(pull)
        matrix = matrix.index_add(0, index, (rows * weight[:, None, None]).transpose(1, 2) @ rows)
        right = (pull * rest).index_add(0, index, -torch.einsum("nri,nr,n->ni", rows, offset, weight))
        affine = torch.linalg.solve(matrix, right)
        error = (rows @ affine[index][..., None])[..., 0] + offset
        weight = seen.confidence.double() / (1 + (error**2).sum(dim=1) / (2 * WIDTH) ** 2)
    affine = affine.view(count, 3, 4)
    # Directions in which the part has no extent say nothing about its rotation: weighted Procrustes.
    turn = nearest_rotation(affine[..., :3] @ spread).view(frames - 1, parts, 3, 3).to(rig.centres)
    shift = affine[..., 3].view(frames - 1, parts, 3).to(rig.centres)
    return torch.cat([torch.eye(3).to(turn).expand(1, parts, 3, 3), turn]), torch.cat([shift[:1] * 0, shift])


def _refine(rig: Rig, seen: Observations, rotations: Tensor, translations: Tensor) -> tuple[Tensor, Tensor]:
    """A few rigid steps, each part for itself."""
    rotations, translations = rotations.clone(), translations.clone()
    for width in (4 * WIDTH, 2 * WIDTH, WIDTH, WIDTH):
        system = NormalEquations(rig, rotations, translations)
        system.add_pixels(seen, width)
        system.add_prior(1e-3)
        turn, shift = system.solve()
        rotations[1:] = rotation_vector_to_matrix(turn) @ rotations[1:]
        translations[1:] += shift
    return rotations, translations


def _part_errors(rig: Rig, seen: Observations, rotations: Tensor, translations: Tensor) -> Tensor:
    """Robust error [F - 1, P] of each part in each moving frame."""
    error = pixel_errors(rig, seen, rotations[1:], translations[1:])[0]
    squared = (error**2).sum(dim=-1)
    robust = seen.confidence * squared / (squared + WIDTH**2)
    total = torch.zeros(len(rotations) - 1, len(rig.centres)).to(robust)
    return total.view(-1).index_add(0, seen.frame * len(rig.centres) + seen.bones[:, 0], robust).view_as(total)
