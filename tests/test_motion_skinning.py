"""Motions as skeletons: few rigid bones, four weights a vertex, and the motion met to one per cent."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_motion_fit import bend, cylinder, make_subject

from backend.motion.rotations import quaternion_to_matrix
from backend.motion.skeleton import make_rig
from backend.protocol import Motion, Rig, Subject, UserError, transform_points


def posed(rig: Rig, rest: np.ndarray) -> np.ndarray:
    """World positions [F, V, 3] by linear blend skinning."""
    turns = quaternion_to_matrix(torch.from_numpy(rig.quats)).numpy()
    result = np.zeros((len(turns), len(rest), 3))
    for k in range(rig.bones.shape[1]):
        bone = rig.bones[:, k]
        moved = (turns[:, bone] @ (rest - rig.heads[bone])[..., None])[..., 0] + rig.heads[bone]
        result += rig.weights[:, k, None] * (moved + rig.translations[:, bone])
    return result


def relative_error(rig: Rig, subject: Subject, motion: Motion) -> float:
    rest = transform_points(subject.to_world, subject.vertices)
    off = np.linalg.norm(posed(rig, rest) - rest - motion.offsets, axis=-1)[1:].mean()
    return float(off / np.linalg.norm(motion.offsets, axis=-1)[1:].mean())


def two_boxes() -> tuple[np.ndarray, np.ndarray]:
    """A box on another, twelve triangles each."""
    corners = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)], float) - 0.5
    quads = np.array([(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)])
    faces = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    return np.concatenate([0.5 * corners, 0.5 * corners + (0, 0, 0.55)]), np.concatenate([faces, faces + 8])


def test_a_bend_becomes_a_chain_of_bones() -> None:
    vertices, faces = cylinder()
    poses = np.stack([bend(vertices, 0.9 * np.sin(np.pi * k / 7)) for k in range(8)])
    subject, motion = make_subject(vertices, faces), Motion((poses - poses[0]).astype(np.float32))
    rig = make_rig(subject, motion)
    assert relative_error(rig, subject, motion) < 0.01
    assert 2 < len(rig.names) <= 24 and rig.bones.shape[1] == 4
    assert rig.names[0] == "Root" and len(set(rig.names)) == len(rig.names)
    assert rig.parents[0] == -1 and (rig.parents[1:] >= 0).all()
    np.testing.assert_allclose(rig.weights.sum(axis=1), 1.0, atol=1e-5)
    assert np.abs(posed(rig, subject.vertices)[0] - subject.vertices).max() < 1e-5  # frame 0 is the rest


def test_bones_that_move_together_are_one() -> None:
    """A lid that opens on a box that stands still needs two bones, whatever number the search starts from."""
    vertices, faces = two_boxes()
    angle = np.linspace(0, 1.2, 6)
    lid = vertices[8:] - vertices[8:].min(axis=0)
    turned = np.stack([np.cos(angle)[:, None] * lid[:, 0] - np.sin(angle)[:, None] * lid[:, 2],
                       np.broadcast_to(lid[:, 1], (6, 8)),
                       np.sin(angle)[:, None] * lid[:, 0] + np.cos(angle)[:, None] * lid[:, 2]], axis=-1)  # fmt: skip
    offsets = np.zeros((6, 16, 3), np.float32)
    offsets[:, 8:] = turned - lid
    subject, motion = make_subject(vertices, faces), Motion(offsets)
    rig = make_rig(subject, motion)
    assert len(rig.names) == 2 and relative_error(rig, subject, motion) < 0.01


def test_a_turned_and_scaled_world_changes_nothing() -> None:
    """The rig is in world space, wherever and however large the object stands there."""
    vertices, faces = cylinder()
    poses = np.stack([bend(vertices, 0.9 * np.sin(np.pi * k / 7)) for k in range(8)])
    to_world = np.array([[0.0, 30, 0, 5], [-30, 0, 0, -7], [0, 0, 30, 100], [0, 0, 0, 1]])
    subject = replace(make_subject(vertices, faces), to_world=to_world)
    motion = Motion(((poses - poses[0]) @ to_world[:3, :3].T).astype(np.float32))
    assert relative_error(make_rig(subject, motion), subject, motion) < 0.01


def test_a_motion_that_stands_still_is_one_still_bone() -> None:
    vertices, faces = cylinder(8, 8)
    subject = make_subject(vertices, faces)
    rig = make_rig(subject, Motion(np.zeros((4, len(vertices), 3), np.float32)))
    assert len(rig.names) == 1 and np.abs(rig.translations).max() < 1e-6


def test_a_rig_survives_its_file_and_a_damaged_one_is_told(tmp_path) -> None:
    vertices, faces = cylinder(8, 8)
    offsets = np.zeros((4, len(vertices), 3), np.float32)
    offsets[1:, :, 2] = vertices[:, 2] * 0.2
    rig = make_rig(make_subject(vertices, faces), Motion(offsets))
    rig.save(tmp_path)
    loaded = Rig.load(tmp_path)
    assert loaded.names == rig.names
    np.testing.assert_array_equal(loaded.quats, rig.quats)
    replace(rig, bones=rig.bones + len(rig.names)).save(tmp_path)
    with pytest.raises(UserError, match="damaged"):
        Rig.load(tmp_path)
