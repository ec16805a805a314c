"""The motion of true-colour videos by tracking, on small scenes whose true motion is known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_motion_fit import bend, cylinder, make_subject

from backend import protocol
from backend.motion.fit import fit_motion
from backend.motion.outline import outline_pulls
from backend.motion.patch_match import match_patches
from backend.motion.pictures import on_grey, resized
from backend.motion.rotations import matrix_to_rotation_vector, rotation_vector_to_matrix
from backend.motion.settings import STANDARD
from backend.motion.surface_views import FAR, MAX_DRAWN, Painter, drawn_mesh, surface_colours
from backend.training.render import render

CPU = torch.device("cpu")
SIZE = 96
DEV = Path(__file__).resolve().parents[2] / "shared" / "assets" / "dev"


def stripes(points: np.ndarray) -> np.ndarray:
    """Colours [V, 3] that vary over a surface without naming its points."""
    waves = np.stack(
        [np.sin(9 * points[:, 2]), np.cos(7 * points[:, 1] + 2), np.sin(8 * points[:, 0] + points[:, 2])], 1
    )
    return (0.5 + 0.3 * waves).astype(np.float32)


def coloured_video(poses: np.ndarray, faces: np.ndarray, colours: np.ndarray, size: int = SIZE) -> protocol.Video:
    """Straight RGBA of poses [F, V, 3] with vertex colours [V, 3]."""
    views = [
        np.stack([render(pose.astype(np.float64), faces, colours, camera, size) for pose in poses])
        for camera in protocol.condition_cameras()
    ]
    image = np.stack(views).astype(np.float64)
    image[..., :3] /= np.maximum(image[..., 3:], 1e-3)
    return protocol.Video(np.round(255 * image.clip(0, 1)).astype(np.uint8), "color")


def track(subject: protocol.Subject, video: protocol.Video) -> np.ndarray:
    matte = video.frames[..., 3].astype(np.float32) / 255
    return fit_motion(subject, None, video, matte, STANDARD, CPU, lambda step, steps: None)


def unexplained(offsets: np.ndarray, poses: np.ndarray) -> float:
    error = np.linalg.norm(offsets + poses[:1] - poses, axis=-1)[1:].mean()
    return float(error / np.linalg.norm(poses - poses[:1], axis=-1)[1:].mean())


@pytest.fixture(scope="module")
def bending() -> tuple[protocol.Subject, np.ndarray, np.ndarray]:
    vertices, faces = cylinder()
    poses = np.stack([bend(vertices, 0.9 * np.sin(np.pi * k / 7)) for k in range(6)])
    return make_subject(vertices, faces), poses, faces


def test_a_bend_is_recovered_from_a_coloured_video(bending) -> None:
    subject, poses, faces = bending
    offsets = track(subject, coloured_video(poses, faces, stripes(poses[0])))
    assert offsets.shape == poses.shape and offsets.dtype == np.float32 and not offsets[0].any()
    assert unexplained(offsets, poses) < 0.1


def test_an_outline_alone_tells_most_of_a_bend(bending) -> None:
    subject, poses, faces = bending
    colours = np.full((len(poses[0]), 3), 0.8, np.float32)
    assert (
        unexplained(track(subject, coloured_video(poses, faces, colours)), poses) < 0.3
    )  # measured .28: turns about its own axis and slides along it are not seen


def test_a_still_video_moves_nothing(bending) -> None:
    subject, poses, faces = bending
    video = coloured_video(np.repeat(poses[:1], 4, axis=0), faces, stripes(poses[0]))
    offsets = track(subject, video)
    assert np.linalg.norm(offsets, axis=-1).mean() < 0.001 * 2 * protocol.SUBJECT_RADIUS


def test_an_empty_video_moves_nothing(bending) -> None:
    subject = bending[0]
    offsets = track(subject, protocol.Video(np.zeros((4, 3, 48, 48, 4), np.uint8), "color"))
    assert np.abs(offsets).max() < 1e-4


@pytest.mark.parametrize("kind", ["triangle", "no area"])
def test_odd_surfaces_give_finite_offsets(kind: str) -> None:
    vertices, faces = np.array([[0, -0.6, -0.4], [0, 0.6, -0.4], [0, 0.0, 0.5]]), np.array([[0, 1, 2]])
    poses = np.stack([vertices + np.array([0.0, 0.04 * k, 0.02 * k]) for k in range(3)])
    video = coloured_video(poses, faces, stripes(vertices))
    offsets = track(make_subject(vertices, np.array([[0, 1, 1]]) if kind == "no area" else faces), video)
    assert np.isfinite(offsets).all() and not offsets[0].any()


def test_the_surface_is_drawn_as_the_video_shows_it_at_rest(bending) -> None:
    subject, poses, faces = bending
    video = coloured_video(poses[:1], faces, stripes(poses[0]))
    first = on_grey(video.frames, video.frames[..., 3] / 255.0)[0]
    points, triangles, _ = drawn_mesh(subject.vertices, subject.faces, subject.weld)
    painter = Painter(points, triangles, subject.condition_c2w, subject.fovy, first)
    drawn, _ = painter.draw(points, SIZE)
    assert np.abs(drawn - first).mean() < 0.003
    half, _ = painter.draw(points, SIZE // 2)
    assert np.abs(half - resized(first, SIZE // 2)).mean() < 0.006


def test_large_meshes_are_drawn_coarser() -> None:
    vertices, faces = cylinder(400, 300)
    subject = make_subject(vertices, faces)
    points, triangles, vertex = drawn_mesh(subject.vertices, subject.faces, subject.weld)
    assert len(points) <= MAX_DRAWN < len(vertices) and len(triangles) < len(faces)
    assert triangles.max() < len(points)
    np.testing.assert_allclose(points, subject.vertices[vertex])


def test_patches_are_found_to_a_fraction_of_a_pixel() -> None:
    y, x = np.mgrid[:40, :40].astype(np.float64)

    def picture(dx: float, dy: float) -> np.ndarray:
        u, v = x - dx, y - dy
        return np.stack([np.sin(0.5 * u) * np.cos(0.4 * v), np.cos(0.3 * u + 0.5 * v)], axis=-1)[None].astype(
            np.float32
        )

    place = np.array([[20.5, 20.5], [15.5, 22.5]])
    moved, cost, information = match_patches(
        picture(0, 0), picture(2.3, -1.6), np.zeros(2, np.int64), place, 3, 4, 1e-5, 1e-3
    )
    np.testing.assert_allclose(moved, [[2.3, -1.6]] * 2, atol=0.05)
    assert cost.max() < 1.5e-3  # 1.2e-3: bilinear reading blunts these short waves, the match itself is right
    assert np.linalg.eigvalsh(information).min() > 0.8


def test_an_edge_is_known_across_but_not_along() -> None:
    picture = np.zeros((1, 32, 32, 1), np.float32)
    picture[:, :, 16:] = 1.0
    place = np.array([[16.0, 16.0]])
    information = match_patches(picture, picture, np.zeros(1, np.int64), place, 3, 2, 1e-5, 1e-3)[2][0]
    assert information[0, 0] > 0.9 and information[1, 1] < 0.05


def test_outlines_pull_both_ways() -> None:
    drawn, wanted = np.zeros((1, 32, 32)), np.zeros((1, 32, 32))
    drawn[0, 10:20, 8:18] = 1
    wanted[0, 10:20, 12:22] = 1  # four pixels to the right
    rows, columns = np.nonzero(drawn[0])
    where = np.stack([columns, rows], axis=1) + 0.5
    points, move = outline_pulls(drawn, wanted, np.zeros(len(where), np.int64), where, 8.0)
    assert len(points) > 20
    assert (move[:, 0] > 1.0).all() and np.abs(move[:, 1]).max() < 1.0
    assert set(where[points, 0]) >= {8.5, 17.5}


def test_rotation_vectors_come_back() -> None:
    vectors = torch.tensor([[0.0, 0.0, 0.0], [0.3, -0.2, 0.1], [0.0, 3.0, 0.0], [1e-8, 0.0, 0.0]])
    torch.testing.assert_close(
        matrix_to_rotation_vector(rotation_vector_to_matrix(vectors)), vectors, atol=1e-4, rtol=1e-4
    )


@pytest.mark.skipif(not DEV.is_dir(), reason="the development assets are not beside this checkout")
def test_a_galloping_horse_is_followed() -> None:
    with np.load(DEV / "gt" / "horse_gallop.npz") as truth:
        world, faces = truth["vertices"][:5], truth["faces"]
    to_subject = np.linalg.inv(protocol.subject_to_world(world[0]))
    poses = protocol.transform_points(to_subject, world)
    video = coloured_video(poses, faces, stripes(poses[0]))
    assert unexplained(track(make_subject(poses[0], faces), video), poses) < 0.25


def test_what_the_outline_cut_is_no_hole_once_the_surface_turns(bending) -> None:
    subject, poses, faces = bending
    video = coloured_video(poses[:1], faces, stripes(poses[0]))
    first = on_grey(video.frames, video.frames[..., 3] / 255.0)[0]
    points, triangles, _ = drawn_mesh(subject.vertices, subject.faces, subject.weld)
    painter = Painter(points, triangles, subject.condition_c2w, subject.fovy, first)
    about_its_axis = rotation_vector_to_matrix(torch.tensor([0.0, 0.0, 1.0])).numpy()
    drawn, depths = painter.draw(points @ about_its_axis.T, SIZE)
    covered = (depths < FAR).reshape(4, SIZE, 2, SIZE, 2).all(axis=(2, 4))
    assert np.percentile(drawn[..., 3][covered], 5) > 0.95  # .82 where cut pixels are drawn as see-through


def test_what_is_see_through_inside_of_the_outline_stays_so() -> None:
    picture = np.full((1, 16, 16, 4), 0.5, np.float32)
    picture[0, 2:14, 2:14] = [0.9, 0.1, 0.1, 1.0]
    picture[0, 6:10, 6:10] = [0.5, 0.5, 0.5, 0.0]
    picture[0, :2, :, 3] = picture[0, 14:, :, 3] = picture[0, :, :2, 3] = picture[0, :, 14:, 3] = 0.0
    covered = np.zeros((1, 32, 32), bool)
    covered[:, 4:28, 4:28] = True
    alpha = surface_colours(picture, covered)[0, ..., 3]
    assert alpha[7:9, 7:9].max() < 0.01
    assert alpha[2, 2:14].min() > 0.9 and alpha[1, 3:13].min() > 0.9  # the outline, and a pixel beyond
