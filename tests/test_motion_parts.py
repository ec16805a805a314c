"""Parts that swing and parts that grow: what a mesh says about them, and small videos of a lid and a post."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from test_motion_fit import make_subject
from test_motion_tracking import coloured_video, stripes, track, unexplained

from backend.motion.bones import build_rig
from backend.motion.evidence import between
from backend.motion.graph import build_graph, nearest_owner
from backend.motion.growth import GrowingField, _shares
from backend.motion.parts import contact_zones, group_pieces, zone_axes
from backend.motion.rotations import rotation_vector_to_matrix
from backend.motion.stillness import drifted, only_drifts


def box(low: tuple, high: tuple, heights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A closed box: vertices [V, 3], triangles; `heights` are where it is cut across z (low and high, if not given)."""
    heights = np.array([low[2], high[2]]) if heights is None else heights
    ring = np.array([[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]])
    vertices = np.concatenate([np.column_stack([ring, np.full(4, z)]) for z in heights])
    faces = [[0, 2, 1], [0, 3, 2]]
    for level in range(0, 4 * (len(heights) - 1), 4):
        for a, b in ((0, 1), (1, 2), (2, 3), (3, 0)):
            faces += [[level + a, level + b, level + b + 4], [level + a, level + b + 4, level + a + 4]]
    top = 4 * (len(heights) - 1)
    return vertices, np.array([*faces, [top, top + 1, top + 2], [top, top + 2, top + 3]])


def joined(*meshes: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    starts = np.cumsum([0, *(len(vertices) for vertices, _ in meshes)])
    faces = [faces + start for (_, faces), start in zip(meshes, starts, strict=False)]
    return np.concatenate([vertices for vertices, _ in meshes]), np.concatenate(faces)


def grid(low: tuple, high: tuple) -> np.ndarray:
    """Points all over the surface of a box."""
    axes = [np.linspace(a, b, max(int((b - a) / 0.02), 2)) for a, b in zip(low, high, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    return points[((points == low) | (points == high)).any(axis=1)]


def test_a_plank_belongs_to_what_it_lies_on_and_a_lid_does_not() -> None:
    chest, lid = grid((0, 0, 0), (0.8, 0.8, 0.5)), grid((0, 0, 0.52), (0.8, 0.8, 1.0))
    plank = grid((0.1, -0.02, 0.1), (0.7, -0.01, 0.3))
    samples = np.concatenate([plank, chest, lid])
    piece = np.repeat([0, 1, 2], [len(plank), len(chest), len(lid)])
    # Without top and bottom the two boxes touch along their rims alone, as a chest and its lid do.
    hollow = (piece == 0) | ~((np.abs(samples[:, 2] - 0.51) < 0.02) & (np.abs(samples[:, :2] - 0.4) < 0.35).all(axis=1))
    part = group_pieces(samples[hollow], piece[hollow])
    assert part[0] == part[1] != part[2]


def test_the_zone_where_parts_touch_has_the_hinge_among_its_axes() -> None:
    chest, lid = grid((0, 0, 0), (0.8, 0.6, 0.4)), grid((0, 0, 0.41), (0.8, 0.6, 0.7))
    zones = contact_zones(np.concatenate([chest, lid]), np.repeat([0, 1], [len(chest), len(lid)]))
    points, directions = zones[1][0].axes[:, 0], zones[1][0].axes[:, 1]
    along_y = np.abs(directions @ [0, 1, 0]) > 0.99
    assert zones[1][0].other == 0
    assert np.abs(points[along_y][:, [0, 2]] - [0.8, 0.4]).max(axis=1).min() < 0.03


def test_axes_of_points_on_a_line_are_finite() -> None:
    axes, slides = zone_axes(np.outer(np.linspace(0, 1, 5), [1.0, 2.0, 0.5]))
    assert np.isfinite(axes).all()
    np.testing.assert_allclose(slides @ slides.T, np.eye(3), atol=1e-9)


def test_a_lid_that_flies_open_between_two_frames_is_followed() -> None:
    vertices, faces = joined(box((-0.4, -0.4, -0.4), (0.4, 0.4, 0.0)), box((-0.4, -0.4, 0.01), (0.4, 0.4, 0.2)))
    lid, hinge = np.arange(len(vertices)) >= 8, np.array([-0.4, 0.0, 0.0])
    poses = []
    for angle in (0.0, 0.1, 1.3, 1.9):
        turn = rotation_vector_to_matrix(torch.tensor([0.0, -angle, 0.0])).numpy()
        poses.append(np.where(lid[:, None], (vertices - hinge) @ turn.T + hinge, vertices))
    poses = np.stack(poses)
    # Each its own colours, and those of the lid's underside are never seen at rest.
    colours = np.where(lid[:, None], stripes(vertices), 1.0 - stripes(vertices[:, [2, 0, 1]])).astype(np.float32)
    assert unexplained(track(make_subject(vertices, faces), coloured_video(poses, faces, colours)), poses) < 0.1


def test_a_plain_post_that_grows_keeps_its_foot_and_its_bevels() -> None:
    bevelled = np.array([-0.2, -0.19, -0.18, 0.08, 0.09, 0.1])
    vertices, faces = joined(
        box((-0.3, -0.3, -0.3), (0.3, 0.3, -0.2)), box((-0.1, -0.1, -0.2), (0.1, 0.1, 0.1), bevelled)
    )
    upper = vertices[:, 2] > 0.0
    poses = np.stack([vertices + np.where(upper, k * 0.08, 0.0)[:, None] * [0, 0, 1] for k in range(5)])
    colours = np.where((np.arange(len(vertices)) < 8)[:, None], [0.8, 0.8, 0.8], [0.9, 0.3, 0.2]).astype(np.float32)
    offsets = track(make_subject(vertices, faces), coloured_video(poses, faces, colours))
    assert unexplained(offsets, poses) < 0.2
    lengths = np.diff((poses[:1] + offsets)[:, 8::4, 2], axis=1)
    assert np.abs(lengths[-1, -2:] / 0.01 - 1).max() < 0.8  # the whole grows to more than twice its length


def test_growth_goes_where_edges_are_long() -> None:
    vertices, faces = box((-0.1, -0.1, -0.2), (0.1, 0.1, 0.2), np.array([-0.2, -0.19, -0.18, 0.18, 0.19, 0.2]))
    graph = build_graph(vertices.astype(np.float32), faces, np.arange(len(vertices)))
    rig = build_rig(graph, 4, 0.04, torch.device("cpu"))
    doubled = torch.diag(torch.tensor([1.0, 1.0, 2.0])).expand(2, len(rig.centres), 3, 3).clone()
    doubled[0] = torch.eye(3)
    shifts = rig.centres @ (doubled[1, 0] - torch.eye(3))
    field = GrowingField(
        rig, (doubled, torch.stack([shifts * 0, shifts])), torch.zeros(len(rig.centres)).long(), torch.eye(3)[None]
    )
    points = torch.tensor(vertices, dtype=torch.float32)
    height = field.positions(points, graph.owner, torch.tensor([1.0]))[0, ::4, 2].numpy()
    np.testing.assert_allclose(height, [-0.4, -0.39, -0.38, 0.38, 0.39, 0.4], atol=0.006)


def test_half_way_to_a_grown_bone_is_half_grown() -> None:
    first = torch.eye(3)[None], torch.zeros(1, 3)
    turn = rotation_vector_to_matrix(torch.tensor([0.0, 0.0, 1.0]))
    second = turn[None] @ torch.diag(torch.tensor([1.0, 1.0, 3.0])), torch.ones(1, 3)
    half = between(first, second, 0.5)
    expected = rotation_vector_to_matrix(torch.tensor([0.0, 0.0, 0.5])) @ torch.diag(torch.tensor([1.0, 1.0, 2.0]))
    torch.testing.assert_close(half[0][0], expected)
    torch.testing.assert_close(half[1], torch.full((1, 3), 0.5))


def test_a_sample_belongs_to_its_own_part_not_to_the_nearest() -> None:
    vertices, faces = joined(box((0, 0, 0), (1, 1, 0.1)), box((0.3, 0.3, 0.101), (0.7, 0.7, 0.2)))
    graph = build_graph(vertices.astype(np.float32), faces, np.arange(len(vertices)))
    point = np.array([[0.3, 0.3, 0.101]])
    plate = graph.component[graph.owner[0]]
    assert graph.component[nearest_owner(graph, point, np.array([plate]))[0]] == plate
    assert graph.component[nearest_owner(graph, point)[0]] != plate


def test_a_drifting_view_shows_the_rest_elsewhere() -> None:
    picture = np.zeros((1, 64, 64, 1), np.float32)
    picture[0, 20:30, 20:30] = 1.0
    moved = drifted(picture, torch.tensor([[0.0, 0.02, -0.02]]), 100.0)  # x to the right, y up
    np.testing.assert_allclose(moved[0, 22:32, 22:32, 0], 1.0, atol=1e-5)
    assert moved.sum() == pytest.approx(100.0)


def test_a_motion_that_explains_less_than_drift_is_none() -> None:
    still = np.array([0.0, 0.02, 0.02])
    assert only_drifts(still, np.array([0.0, 0.018, 0.018]), np.array([0.0, 0.01, 0.01]))
    assert not only_drifts(still, np.array([0.0, 0.01, 0.01]), np.array([0.0, 0.01, 0.01]))
    assert not only_drifts(still, np.array([0.0, 0.015, 0.015]), np.array([0.0, 0.03, 0.03]))


def test_loose_points_that_grow_are_scaled() -> None:
    place = np.linspace(0.0, 1.0, 5)
    shares = _shares(csr_matrix((5, 5)), place)
    np.testing.assert_allclose(shares[1:-1], place[1:-1])
