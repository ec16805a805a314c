"""A skin as a skeleton that an animator can read: a tree of named bones with heads at the joints, in world space."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree, shortest_path

from backend.motion.graph import build_graph
from backend.motion.rotations import matrix_to_quaternion
from backend.motion.skinning import Skin, SkinSettings, decompose
from backend.protocol import Motion, Rig, Subject

SEEN = 200_000  # vertices that decide on the tree and the joints, at most
APART = 10.0  # a gap between two bones that share no vertex counts so many times its length
MIN_LENGTH = 0.03  # of a bone, subject units
MIDDLE = 0.2  # of the half extent: what is nearer to the middle is called neither left nor right, neither top nor …
DEFAULT = SkinSettings()
LONGEST_NAME = 40  # characters taken of an object's name; Blender's bones have 63 bytes


def make_rig(subject: Subject, motion: Motion, settings: SkinSettings = DEFAULT) -> Rig:
    """A skeleton, skin weights and poses that move the subject's vertices as the motion does."""
    to_subject = np.linalg.inv(subject.to_world[:3, :3]).T.astype(np.float32)
    graph = build_graph(subject.vertices, subject.faces, subject.weld)
    skin, bones, weights = decompose(
        subject.vertices, lambda chosen: motion.offsets[:, chosen] @ to_subject, graph, settings
    )
    some = np.random.default_rng(0).permutation(len(bones))[:SEEN]
    parents, order = _tree(subject.vertices[some], bones[some], weights[some], len(skin.centres))
    bones = np.argsort(order).astype(np.int32)[bones]
    skin = Skin(skin.centres[order], skin.rotations[:, order], skin.translations[:, order])
    heads, tails = _place(subject.vertices[some], bones[some], weights[some], parents)
    names = _names(subject, heads, tails, some, bones[some], weights[some])
    return _in_world(subject, skin, names, heads, tails, parents, bones, weights)


def _tree(vertices: np.ndarray, bones: np.ndarray, weights: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Parents [B] (-1 for the root, which is first) in a new order [B] of the bones, parents before children.

    Bones hang together where they share vertices. The root is the bone in the middle of all that hangs on the tree.
    """
    mass = np.bincount(bones.ravel(), weights.ravel(), count)
    centres = _means(vertices, bones, weights, count)
    shared = np.zeros((count, count))
    for k in range(bones.shape[1]):
        for other in range(k):
            np.add.at(shared, (bones[:, k], bones[:, other]), np.minimum(weights[:, k], weights[:, other]))
    away = np.linalg.norm(centres[:, None] - centres, axis=-1) + 1e-6
    away = away * np.where(shared + shared.T > 0.5, 1.0, APART)
    away[np.diag_indices(count)] = 0.0
    tree = minimum_spanning_tree(away)
    root = int((shortest_path(tree, directed=False) @ mass).argmin())
    order, before = breadth_first_order(tree, root, directed=False)
    number = np.argsort(order)
    return np.array([-1, *(number[before[bone]] for bone in order[1:])], np.int32), order


def _means(points: np.ndarray, bones: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """Weighted mean [B, 3] of each bone's points; the middle of all where a bone has none."""
    total = np.bincount(bones.ravel(), weights.ravel(), count)[:, None]
    sums = [np.bincount(bones.ravel(), (weights * points[:, axis, None]).ravel(), count) for axis in range(3)]
    return np.where(total > 1e-6, np.stack(sums, axis=1) / np.maximum(total, 1e-6), points.mean(axis=0))


def _place(
    vertices: np.ndarray, bones: np.ndarray, weights: np.ndarray, parents: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Heads and tails [B, 3]: from the joint with the parent through the middle of what the bone holds."""
    count = len(parents)
    middle = _means(vertices, bones, weights, count)
    # How much of each vertex a bone shares with its parent.
    own_parent = parents[bones]  # [V, K]
    parent_weight = (weights[:, None, :] * (bones[:, None, :] == own_parent[:, :, None])).sum(axis=2)
    joint_weight = weights * parent_weight
    shared = np.bincount(bones.ravel(), joint_weight.ravel(), count)
    joint = _means(vertices, bones, joint_weight, count)
    above = middle[np.maximum(parents, 0)]
    heads = np.where(shared[:, None] > 1e-6, joint, 0.5 * (middle + above))
    heads[0] = middle[0]
    # Not to the head of a child: Blender's FBX reader glues bones that point there, and drops their locations.
    tails = 2 * middle - heads
    along = tails - heads
    length = np.linalg.norm(along, axis=1, keepdims=True)
    upward = np.array([0.0, 0.0, 1.0])
    direction = np.where(length > 1e-4, along / np.maximum(length, 1e-9), upward)
    return heads, heads + direction * np.maximum(length, MIN_LENGTH)


def _names(
    subject: Subject, heads: np.ndarray, tails: np.ndarray, some: np.ndarray, bones: np.ndarray, weights: np.ndarray
) -> tuple[str, ...]:
    """“Root”, “Top Front.L”, “Top Front 2.L” …: where a bone is; before that, its object where there are several.

    bones, weights [n, K] of the vertices `some` [n].
    """
    low, high = subject.box
    place = (0.5 * (heads + tails) - 0.5 * (low + high)) / np.maximum(0.5 * (high - low), 1e-6)
    owner = np.searchsorted(np.cumsum(subject.object_counts), some, side="right")
    share = np.zeros((len(heads), len(subject.object_counts)))
    for k in range(bones.shape[1]):
        np.add.at(share, (bones[:, k], owner), weights[:, k])
    seen: Counter[str] = Counter()
    names = []
    for bone, (x, y, z) in enumerate(place):
        words = [_word(z, "Bottom", "Top"), _word(x, "Back", "Front")]
        side = {"Right": ".R", "Left": ".L", "": ""}[_word(y, "Right", "Left")]
        stem = "Root" if bone == 0 else " ".join(filter(None, words)) or "Middle"
        if len(subject.object_counts) > 1:
            stem = f"{subject.object_names[share[bone].argmax()][:LONGEST_NAME]} {stem}"
        side = "" if bone == 0 else side
        seen[stem + side] += 1
        number = seen[stem + side]
        names.append(f"{stem} {number}{side}" if number > 1 else stem + side)
    return tuple(names)


def _word(place: float, low: str, high: str) -> str:
    return low if place < -MIDDLE else high if place > MIDDLE else ""


def _in_world(
    subject: Subject,
    skin: Skin,
    names: tuple[str, ...],
    heads: np.ndarray,
    tails: np.ndarray,
    parents: np.ndarray,
    bones: np.ndarray,
    weights: np.ndarray,
) -> Rig:
    linear = subject.to_world[:3, :3]
    turn = linear / np.cbrt(np.linalg.det(linear))
    matrices = skin.matrices().double().numpy()
    moved = (matrices[..., :3] @ heads[:, :, None])[..., 0] + matrices[..., 3]  # [F, B, 3]
    rotations = turn @ matrices[..., :3] @ turn.T
    quats = matrix_to_quaternion(torch.from_numpy(rotations)).numpy()
    return Rig(
        names=names,
        heads=heads @ linear.T + subject.to_world[:3, 3],
        tails=tails @ linear.T + subject.to_world[:3, 3],
        parents=parents,
        bones=bones,
        weights=weights,
        quats=_same_side(quats),
        translations=(moved - heads) @ linear.T,
    )


def _same_side(quats: np.ndarray) -> np.ndarray:
    """Quaternions [F, B, 4] with signs that make each the nearer one to the frame before."""
    flips = np.where((quats[1:] * quats[:-1]).sum(axis=-1) < 0, -1.0, 1.0)
    return np.concatenate([quats[:1], quats[1:] * np.cumprod(flips, axis=0)[..., None]])
