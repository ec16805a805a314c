"""Poses improved pixel by pixel, on a bending cylinder whose true motion is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from test_motion_fit import bend, cylinder, make_subject
from test_motion_tracking import coloured_video, stripes

from backend import protocol
from backend.motion.bones import Rig, bone_affine, build_rig
from backend.motion.evidence import rest_pose
from backend.motion.fit import _rest_samples
from backend.motion.graph import build_graph
from backend.motion.pictures import on_grey, resized
from backend.motion.pixels import MAX_HUNG, Round, _hang, _rows, softened
from backend.motion.posing import posed
from backend.motion.rotations import rotation_vector_to_matrix
from backend.motion.settings import STANDARD
from backend.motion.tracking import Tracker

ROUND = Round(96, 2, False, 6)


@pytest.fixture(scope="module")
def bending() -> tuple[protocol.Subject, np.ndarray, protocol.Video]:
    vertices, faces = cylinder()
    poses = np.stack([bend(vertices, angle) for angle in (0.0, 0.15, 0.3)])
    return make_subject(vertices, faces), poses, coloured_video(poses, faces, stripes(vertices), 192)


def tracker(subject: protocol.Subject, frames: np.ndarray, own_alpha: bool = True) -> Tracker:
    matte = frames[..., 3].astype(np.float32) / 255
    frames = frames if own_alpha else frames[..., :3]
    options, graph = STANDARD.track, build_graph(subject.vertices, subject.faces, subject.weld)
    rig = build_rig(graph, 8, options.large_part, torch.device("cpu"), options.joints)
    return Tracker(subject, graph, rig, _rest_samples(subject, graph, 2000), frames, matte, options)


def _affine(rig: Rig, turns: torch.Tensor, shifts: torch.Tensor) -> np.ndarray:
    return bone_affine(rig.centres, turns, shifts).double().numpy()


def shaken(bones: int, size: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Poses of two frames, the rest first, in which each bone is turned and moved a little."""
    generator = torch.Generator().manual_seed(0)
    turns, shifts = (part.expand(2, *part.shape).clone() for part in rest_pose(bones))
    turns[1] = rotation_vector_to_matrix(size * torch.randn(bones, 3, generator=generator))
    shifts[1] = size * torch.randn(bones, 3, generator=generator)
    return turns, shifts


def test_the_rows_are_the_derivatives_of_the_pixel(bending) -> None:
    subject, _, video = bending
    found = tracker(subject, video.frames)
    rig, skin = found.rig, found.point_skin
    turns, shifts = (part[1].double() for part in shaken(len(rig.centres), 0.1))
    corners, share, camera = found.painter.faces[5], np.array([0.2, 0.5, 0.3]), found.painter.w2c[1]
    centres = rig.centres.double()

    def affine(bone: int, step: torch.Tensor) -> np.ndarray:
        turn, shift = turns.clone(), shifts.clone()
        turn[bone] = rotation_vector_to_matrix(step[:3]) @ turn[bone]
        shift[bone] += step[3:]
        return torch.cat([turn, (centres + shift - (turn @ centres[..., None])[..., 0])[..., None]], dim=-1).numpy()

    def pixel(matrices: np.ndarray) -> np.ndarray:
        point = share @ posed(found.points, skin, matrices[None])[0][corners]
        x, y, z = camera[:3, :3] @ point + camera[:3, 3]
        return np.array([-x / z, y / z])

    bones, levers, rows = np.zeros(MAX_HUNG, np.int64), np.zeros((MAX_HUNG, 4)), np.zeros((2, MAX_HUNG, 6))
    here = affine(0, torch.zeros(6, dtype=torch.float64))
    origin = (centres + shifts).numpy()
    count = _hang(corners, share, found.points, *skin, here, origin, bones, levers)
    _rows(share @ posed(found.points, skin, here[None])[0][corners], camera, 1.0, levers, count, rows)
    for a in range(count):
        for k in range(6):
            step = torch.zeros(6, dtype=torch.float64)
            step[k] = 1e-6
            numeric = (pixel(affine(bones[a], step)) - pixel(affine(bones[a], -step))) / 2e-6
            np.testing.assert_allclose(rows[:, a, k], numeric, atol=1e-4)


def left_of_shaking(bending, part: Round) -> float:
    """The share of the points' mean distance from rest that is left after a round on the picture at rest."""
    subject, _, video = bending
    found = tracker(subject, video.frames)
    still = resized(on_grey(video.frames, video.frames[..., 3] / np.float32(255)), part.size)[0]
    poses = shaken(len(found.rig.centres), 0.01)

    def away(pose: tuple[torch.Tensor, torch.Tensor]) -> float:
        moved = posed(found.points, found.point_skin, _affine(found.rig, pose[0][1:], pose[1][1:]))[0]
        return float(np.linalg.norm(moved - found.points, axis=1).mean())

    return away(found.pixel_fit.improve(*poses, lambda size: still[None], (part,))) / away(poses)


def test_shaken_bones_come_to_rest(bending) -> None:
    assert left_of_shaking(bending, ROUND) < 0.4


def test_longer_steps_come_nearer(bending) -> None:
    longer, plain = (left_of_shaking(bending, replace(ROUND, steps=3, length=length)) for length in (1.6, 1.0))
    assert longer < plain


@pytest.mark.parametrize("spoilt", [False, True])
def test_only_a_rendered_video_is_crisp(bending, spoilt: bool) -> None:
    subject, _, video = bending
    frames = video.frames.astype(np.float32)
    if spoilt:
        frames = gaussian_filter(frames, (0, 0, 1.5, 1.5, 0))
        frames += np.random.default_rng(0).normal(0, 12, frames.shape)
    found = tracker(subject, np.round(frames).clip(0, 255).astype(np.uint8), own_alpha=not spoilt)
    found.run(lambda: None)
    assert found.crisp != spoilt


def test_what_comes_from_the_last_frame_mends_the_ones_before(bending) -> None:
    subject, _, video = bending
    found = tracker(subject, video.frames)
    right = [tuple(part[frame] for part in found.run(lambda: None)) for frame in range(3)]
    wrong = [right[0], tuple(part[1] for part in shaken(len(found.rig.centres), 0.2)), right[2]]
    mended = found._backwards(wrong, lambda: None)
    assert found._excess(1, mended[1]) < 0.2 * found._excess(1, wrong[1])
    assert found._backwards(right, lambda: None)[1] is right[1]  # nothing is wrong


def test_softening_keeps_what_is_even_and_the_sum() -> None:
    even = np.full((1, 2, 9, 9, 4), 0.25, np.float32)
    np.testing.assert_allclose(softened(even), even, atol=1e-6)
    dot = np.zeros((1, 1, 9, 9, 4), np.float32)
    dot[0, 0, 4, 4] = 1.0
    assert softened(dot)[0, 0, ..., 0].sum() == pytest.approx(1.0, abs=1e-6)
    assert softened(dot)[0, 0, 4, 4, 0] == pytest.approx((6 / 16) ** 2)
