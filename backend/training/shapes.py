"""Procedural objects: loose heaps of primitives, creatures with legs and wings, boxes with lids, plants.

Everything is drawn from one numpy generator, so a seed names an object.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from backend.protocol import SUBJECT_RADIUS
from backend.training.primitives import Mesh, box, capsule, join, lathe, primitive, random_rotation


def random_object(rng: np.random.Generator) -> Mesh:
    """An object in subject space: bounding box centred at the origin, half diagonal `SUBJECT_RADIUS`."""
    make = rng.choice([_heap, _creature, _chest, _plant], p=[0.5, 0.3, 0.08, 0.12])
    vertices, faces = join(make(rng))
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    scale = SUBJECT_RADIUS / (0.5 * np.linalg.norm(high - low))
    return (vertices - 0.5 * (low + high)) * scale, faces


def _heap(rng: np.random.Generator) -> list[Mesh]:
    """A body, then parts that sit on the surface of what is there, half of them mirrored left to right."""
    meshes = [_body(rng)]
    for _ in range(int(rng.integers(0, 4))):
        vertices = np.concatenate([mesh[0] for mesh in meshes])
        part = _part(rng, anchor=vertices[rng.integers(len(vertices))], size=np.ptp(meshes[0][0], axis=0).max())
        meshes.append(part)
        if rng.random() < 0.5:
            meshes.append(_mirrored(part))
    return meshes


def _body(rng: np.random.Generator) -> Mesh:
    vertices, faces = primitive(rng)
    vertices = vertices * np.exp(rng.uniform(-0.8, 0.8, 3))
    if rng.random() < 0.3:
        vertices = vertices @ random_rotation(rng, tilt=np.pi).T
    return vertices, faces


def _part(rng: np.random.Generator, anchor: np.ndarray, size: float) -> Mesh:
    vertices, faces = primitive(rng)
    vertices = vertices * np.exp(rng.uniform(-1.1, 0.3, 3)) * size * rng.uniform(0.2, 0.5)
    vertices = vertices @ random_rotation(rng, tilt=rng.choice([0.3, np.pi])).T
    return vertices + anchor, faces


def _creature(rng: np.random.Generator) -> list[Mesh]:
    """Head towards +x; stands on two legs or four, some with a neck, a tail, wings or arms."""
    upright = rng.random() < 0.45
    length, width, height = (
        (rng.uniform(0.2, 0.4), rng.uniform(0.25, 0.45), rng.uniform(0.4, 0.7))
        if upright
        else (rng.uniform(0.5, 1.0), rng.uniform(0.2, 0.4), rng.uniform(0.2, 0.4))
    )
    meshes = [_placed(primitive(rng, ("sphere", "box", "capsule", "cylinder")), (length, width, height), (0, 0, 0))]
    hip, leg = 0.5 * height, rng.uniform(0.4, 1.0)
    thickness, apart = rng.uniform(0.06, 0.14), rng.uniform(0.5, 0.8) * width
    for x in (0.0,) if upright else (0.7 * length, -0.7 * length):
        meshes += _pair(_limb((x, apart, -hip), (x, apart, -hip - leg), thickness))
    neck = np.array([rng.uniform(0.0, 0.3) if upright else length, 0, height + rng.uniform(0.0, 0.5)])
    size = rng.uniform(0.18, 0.4)
    meshes.append(_limb((0.0 if upright else 0.8 * length, 0, 0.5 * height), neck, thickness * 1.3))
    head = primitive(rng, ("sphere", "box"))
    meshes.append(_placed(head, size * rng.uniform(0.7, 1.3, 3), (*neck[:2], neck[2] + size / 2)))
    if rng.random() < 0.5:
        end = (-length - rng.uniform(0.3, 0.9), 0, rng.uniform(-0.3, 0.5))
        meshes.append(_limb((-0.8 * length, 0, 0), end, thickness))
    if rng.random() < (0.6 if upright else 0.35):
        wing = rng.random() < 0.5
        span, deep = rng.uniform(0.5, 1.2), rng.uniform(0.2, 0.4) if wing else thickness
        thick = 0.05 if wing else thickness
        tilt = rng.uniform(-0.5, 0.5) * span
        flat = _placed(primitive(rng, ("sphere", "box")), (deep, span / 2, thick), (0, 0.7 * width + span / 2, 0))
        flat[0][:, 2] += 0.4 * height + tilt * (flat[0][:, 1] - width)
        meshes += _pair(flat)
    return meshes


def _chest(rng: np.random.Generator) -> list[Mesh]:
    """A box with a lid, or a jar with one: what opens, opens at six tenths of its height."""
    wide = rng.uniform(0.5, 1.2, 2)
    base, lid = (box(4), box(4)) if rng.random() < 0.6 else (primitive(rng, ("cylinder",)), primitive(rng, ("sphere",)))
    return [_placed(base, (*wide, 0.58), (0, 0, -0.42)), _placed(lid, (*(1.05 * wide), 0.38), (0, 0, 0.6))]


def _plant(rng: np.random.Generator) -> list[Mesh]:
    """A pot, a stem, leaves to both sides, and a blossom or a crown."""
    tall, stem = rng.uniform(0.8, 1.6), rng.uniform(0.05, 0.15)
    z = np.linspace(-0.5, 0.0, 5)
    meshes = [_limb((0, 0, 0), (0, 0, tall), stem)]
    if rng.random() < 0.7:
        meshes.append(lathe(z, rng.uniform(0.25, 0.35) + rng.uniform(0.0, 0.3) * (z + 0.5)))
    for _ in range(int(rng.integers(0, 4))):
        out, up = rng.uniform(0.3, 0.7), rng.uniform(0.2, 0.9) * tall
        leaf = primitive(rng, ("sphere",))[0] * [out / 2, 0.15, 0.05] + [out / 2, 0, 0]
        leaf[:, 2] += up + rng.uniform(0.0, 0.8) * leaf[:, 0]
        angle = rng.uniform(0, 2 * np.pi)
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        meshes.append((leaf @ turn.T, primitive(rng, ("sphere",))[1]))
    crown = primitive(rng, ("sphere", "cone", "torus", "lathe"))
    return [*meshes, _placed(crown, rng.uniform(0.15, 0.6) * rng.uniform(0.6, 1.4, 3), (0, 0, tall))]


def _placed(mesh: Mesh, half_sizes: Sequence[float], centre: Sequence[float]) -> Mesh:
    return mesh[0] * np.asarray(half_sizes, float) + np.asarray(centre, float), mesh[1]


def _limb(start: Sequence[float], end: Sequence[float], radius: float) -> Mesh:
    """A capsule between two points."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    length = float(np.linalg.norm(end - start))
    along = (end - start) / length
    helper = np.eye(3)[np.abs(along).argmin()]
    across = np.cross(along, helper) / np.linalg.norm(np.cross(along, helper))
    frame = np.stack([across, np.cross(along, across), along])
    vertices, faces = capsule()
    return (vertices * [radius, radius, length / 2]) @ frame + (start + end) / 2, faces


def _mirrored(mesh: Mesh) -> Mesh:
    return mesh[0] * [1.0, -1.0, 1.0], mesh[1][:, ::-1]


def _pair(mesh: Mesh) -> list[Mesh]:
    return [mesh, _mirrored(mesh)]
