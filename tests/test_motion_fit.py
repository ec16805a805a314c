"""The motion stage on small scenes whose true motion is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from backend import protocol
from backend.motion.correspondence import decode_positions, project
from backend.motion.fit import fit_motion, fit_video
from backend.motion.render_fit import fit_by_rendering
from backend.motion.settings import DRAFT, PAPER
from backend.splats.gaussians import from_mesh

CPU = torch.device("cpu")


def make_subject(vertices: np.ndarray, faces: np.ndarray) -> protocol.Subject:
    vertices = vertices.astype(np.float32)
    weld = np.unique(np.round(vertices * 1e5).astype(np.int64), axis=0, return_inverse=True)[1]
    return protocol.Subject(
        vertices=vertices,
        faces=np.asarray(faces, np.int32).reshape(-1, 3),
        weld=weld.reshape(-1).astype(np.int32),
        to_world=np.eye(4),
        object_names=("thing",),
        object_counts=(len(vertices),),
        condition_c2w=protocol.condition_cameras(),
        appearance_c2w=np.zeros((0, 4, 4)),
        condition_size=64,
        appearance_size=64,
    )


def cylinder(rings: int = 24, around: int = 16) -> tuple[np.ndarray, np.ndarray]:
    height, angle = np.meshgrid(np.linspace(-0.7, 0.7, rings), np.arange(around) * 2 * np.pi / around, indexing="ij")
    vertices = np.stack([0.15 * np.cos(angle), 0.15 * np.sin(angle), height], axis=-1).reshape(-1, 3)
    a = (np.arange(rings - 1)[:, None] * around + np.arange(around)).ravel()
    b = (np.arange(rings - 1)[:, None] * around + (np.arange(around) + 1) % around).ravel()
    return vertices, np.concatenate(
        [np.stack([a, b, b + around], axis=1), np.stack([a, b + around, a + around], axis=1)]
    )


def bend(vertices: np.ndarray, angle: float) -> np.ndarray:
    """The upright cylinder bent towards +y by `angle` over its length, its foot held."""
    along = (vertices[:, 2] + 0.7) / 1.4
    turn = angle * along
    radius = 1.4 / angle if abs(angle) > 1e-6 else 0.0
    if radius == 0.0:
        return vertices.copy()
    reach = radius - vertices[:, 1]
    return np.stack([vertices[:, 0], radius - reach * np.cos(turn), reach * np.sin(turn) - 0.7], axis=1)


def coded_video(poses: np.ndarray, faces: np.ndarray, size: int = 64) -> protocol.Video:
    """Position-coded RGBA of poses [F, V, 3] by a z-buffer of many points on the triangles, 2 x 2 samples a pixel."""
    rng = np.random.default_rng(0)
    corner = poses[0][faces]
    area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1)
    face = rng.choice(len(faces), 150_000, p=area / area.sum())
    mix = rng.dirichlet(np.ones(3), len(face))[..., None]
    rest = (mix * poses[0][faces[face]]).sum(axis=1)
    codes = protocol.position_code(rest, poses[0].min(axis=0), poses[0].max(axis=0))
    fine = 2 * size
    frames = np.zeros((4, len(poses), size, size, 4), np.uint8)
    for f, pose in enumerate(poses):
        points = (mix * pose[faces[face]]).sum(axis=1)
        for v, camera in enumerate(protocol.condition_cameras()):
            pixel, depth = project(points, camera, protocol.CAMERA_FOVY, fine)
            cell = np.floor(pixel).astype(int)
            order = np.argsort(-depth)  # far ones first, near ones overwrite them
            order = order[((cell >= 0) & (cell < fine)).all(axis=1)[order]]
            image = np.zeros((fine, fine, 4))
            image[cell[order, 1], cell[order, 0], :3] = codes[order]
            image[cell[order, 1], cell[order, 0], 3] = 1
            image = image.reshape(size, 2, size, 2, 4).mean(axis=(1, 3))
            image[..., :3] /= np.maximum(image[..., 3:], 1e-9)
            frames[v, f] = np.round(255 * image)
    return protocol.Video(frames, "position")


def solve(subject: protocol.Subject, video: protocol.Video) -> np.ndarray:
    matte = video.frames[..., 3].astype(np.float32) / 255
    return fit_video(subject, None, video, matte, "draft", CPU, lambda step, total: None)


def unexplained(offsets: np.ndarray, poses: np.ndarray) -> float:
    error = np.linalg.norm(poses[0] + offsets - poses, axis=-1)[1:].mean()
    return float(error / np.linalg.norm(poses - poses[:1], axis=-1)[1:].mean())


@pytest.fixture(scope="module")
def bending() -> tuple[protocol.Subject, np.ndarray, protocol.Video]:
    vertices, faces = cylinder()
    poses = np.stack([bend(vertices, 0.9 * np.sin(np.pi * k / 7)) for k in range(8)])
    return make_subject(vertices, faces), poses, coded_video(poses, faces)


def test_a_bend_is_recovered_from_its_position_coded_video(bending) -> None:
    subject, poses, video = bending
    offsets = solve(subject, video)
    assert offsets.shape == poses.shape and offsets.dtype == np.float32
    assert not offsets[0].any()
    assert unexplained(offsets, poses) < 0.06


def test_a_soft_and_noisy_video_still_gives_most_of_the_bend(bending) -> None:
    from scipy.ndimage import gaussian_filter

    subject, poses, video = bending
    image = video.frames.astype(np.float64) / 255
    image[..., :3] *= image[..., 3:]
    image = gaussian_filter(image, (0, 0, 1, 1, 0))
    image[..., :3] /= np.maximum(image[..., 3:], 1e-3)
    image[..., :3] = 0.93 * image[..., :3] + 0.05  # the codec's colours are off
    image += 0.03 * np.random.default_rng(0).standard_normal(image.shape)
    noisy = np.round(255 * image.clip(0, 1)).astype(np.uint8)
    assert unexplained(solve(subject, protocol.Video(noisy, "position")), poses) < 0.2


def test_a_still_video_gives_nearly_no_motion(bending) -> None:
    subject, _, video = bending
    still = protocol.Video(np.repeat(video.frames[:, :1], 6, axis=1), "position")
    offsets = solve(subject, still)
    assert np.linalg.norm(offsets, axis=-1).max() < 0.01


def test_a_whole_turn_is_not_lost() -> None:
    """Gauss-Newton from the rest pose alone would fail beyond a right angle."""
    box = np.array([[x, y, z] for x in (-0.3, 0.3) for y in (-0.5, 0.5) for z in (-0.4, 0.4)])
    faces = np.array(
        [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
         [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]]
    )  # fmt: skip
    turns = np.arange(7) * np.pi / 6
    poses = np.stack(
        [box @ np.array([[np.cos(a), np.sin(a), 0], [-np.sin(a), np.cos(a), 0], [0, 0, 1]]) for a in turns]
    )
    assert unexplained(solve(make_subject(box, faces), coded_video(poses, faces)), poses) < 0.06


@pytest.mark.parametrize("kind", ["triangle", "24 vertices", "shards", "no faces"])
def test_odd_objects_give_finite_offsets(kind: str) -> None:
    rng = np.random.default_rng(0)
    if kind == "triangle":
        vertices, faces = np.array([[0, -0.6, -0.4], [0, 0.6, -0.4], [0, 0.0, 0.5]]), np.array([[0, 1, 2]])
    elif kind == "24 vertices":
        vertices, faces = cylinder(3, 8)
    else:
        shards = rng.uniform(-0.45, 0.45, (500, 1, 3)) + rng.uniform(-0.06, 0.06, (500, 4, 3))
        vertices = shards.reshape(-1, 3)
        tetrahedron = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]])
        faces = (tetrahedron + 4 * np.arange(500)[:, None, None]).reshape(-1, 3)
    poses = np.stack([vertices + np.array([0.0, 0.05 * k, 0.03 * k]) for k in range(4)])
    video = coded_video(poses, faces)
    subject = make_subject(vertices, faces[:0] if kind == "no faces" else faces)
    offsets = solve(subject, video)
    assert np.isfinite(offsets).all() and not offsets[0].any()
    assert unexplained(offsets, poses) < 0.25


def test_an_empty_video_gives_no_motion() -> None:
    vertices, faces = cylinder(6, 8)
    video = protocol.Video(np.zeros((4, 4, 32, 32, 4), np.uint8), "position")
    assert np.abs(solve(make_subject(vertices, faces), video)).max() < 1e-4


def test_decoding_inverts_the_code() -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (50, 3))
    low, high = np.array([-1.0, -1, -1]), np.array([1.0, 1, 1])
    frames = np.concatenate([protocol.position_code(points, low, high), np.ones((50, 1))], axis=1)
    decoded, confidence = decode_positions(frames, (low, high))
    np.testing.assert_allclose(decoded, points, atol=1e-9)
    np.testing.assert_allclose(confidence, 1.0)
    assert decode_positions(frames * [1, 1, 1, 0.3], (low, high))[1].max() == 0.0


def test_a_callback_that_raises_ends_the_fit(bending) -> None:
    class CancelledError(Exception):
        pass

    def cancel(step: int, total: int) -> None:
        raise CancelledError

    subject, _, video = bending
    matte = video.frames[..., 3].astype(np.float32) / 255
    with pytest.raises(CancelledError):
        fit_video(subject, None, video, matte, "draft", CPU, cancel)


def coloured_splats(subject: protocol.Subject, count: int):
    splats = from_mesh(torch.from_numpy(subject.vertices), torch.from_numpy(subject.faces).long(), count)
    return splats.with_colors(torch.from_numpy(protocol.position_code(splats.means.numpy(), *subject.box)).float())


def test_the_paper_preset_lowers_its_own_loss(bending) -> None:
    subject, _, video = bending
    matte = video.frames[..., 3].astype(np.float32) / 255
    settings = replace(PAPER, iterations=24, frames_every=1000, image_size=64)  # frame 1 only: losses compare
    frames = np.stack([video.frames[:, 0], video.frames[:, 3]], axis=1)
    field, losses = fit_by_rendering(
        subject, coloured_splats(subject, 800), frames, matte[:, [0, 3]], settings, CPU, lambda step, total: None
    )
    assert np.mean(losses[-3:]) < 0.97 * np.mean(losses[:3])
    assert len(field.grids) == 2 and field.grids[1][2].shape == (1, 16, 16, 100)


def test_colour_videos_can_be_rendered(bending) -> None:
    subject, poses, video = bending
    matte = video.frames[..., 3].astype(np.float32) / 255
    steps: list[tuple[int, int]] = []
    settings = replace(DRAFT, road="rendering", iterations=6, frames_every=1, image_size=32)
    colour = protocol.Video(video.frames, "color")
    offsets = fit_motion(
        subject, coloured_splats(subject, 800), colour, matte, settings, CPU, lambda *s: steps.append(s)
    )
    assert offsets.shape == poses.shape and not offsets[0].any() and np.isfinite(offsets).all()
    assert offsets[1:].any() and steps[-1] == (6, 6)
