"""Pieces that no view shows: they move with what they lie in."""

import numpy as np
import torch
from test_motion_fit import make_subject
from test_motion_parts import box, joined

from backend.motion.bones import RigField, build_rig
from backend.motion.fit import _rest_samples
from backend.motion.graph import SurfaceGraph, build_graph
from backend.motion.hidden import followed_nodes, seen_at_rest

BODY = box((-0.4, -0.4, -0.4), (0.4, 0.4, 0.0))
LID = (CLOSED := box((-0.4, -0.4, 0.01), (0.4, 0.4, 0.3)))[0], CLOSED[1][2:]  # open below
COIN = box((-0.1, -0.1, 0.06), (0.1, 0.1, 0.22))  # under the lid, and nearer to it than to the body


def followed(*meshes: tuple[np.ndarray, np.ndarray]) -> tuple[SurfaceGraph, np.ndarray]:
    """The graph of some meshes, and the piece that the nodes of each piece follow."""
    subject = make_subject(*joined(*meshes))
    graph = build_graph(subject.vertices, subject.faces, subject.weld)
    follows = followed_nodes(subject, graph, *_rest_samples(subject, graph, 4000))
    return graph, np.array([graph.component[follows[graph.component == k]] for k in range(len(meshes))], object)


def test_contents_follow_what_they_rest_on_and_not_the_lid_above() -> None:
    graph, piece = followed(BODY, LID, COIN)
    body, lid, coin = (graph.component[graph.owner[k]] for k in (0, 8, 16))
    assert (piece[coin] == body).all()
    assert (piece[body] == body).all() and (piece[lid] == lid).all()


def test_what_a_view_shows_follows_nothing() -> None:
    beside = box((0.5, -0.1, -0.4), (0.7, 0.1, -0.2))
    piece = followed(BODY, beside)[1]
    assert all((found == k).all() for k, found in enumerate(piece))


def test_inside_a_closed_box_nothing_is_seen() -> None:
    subject = make_subject(*joined(BODY, box((-0.2, -0.2, -0.3), (0.2, 0.2, -0.1))))
    seen = seen_at_rest(subject, subject.vertices.astype(np.float64))
    assert seen[4:8].all() and not seen[8:].any()


def test_hidden_pieces_have_no_bones_and_move_with_the_part_they_follow() -> None:
    subject = make_subject(*joined(BODY, LID, COIN))
    graph = build_graph(subject.vertices, subject.faces, subject.weld)
    follows = followed_nodes(subject, graph, *_rest_samples(subject, graph, 4000))
    rig = build_rig(graph, 16, 0.04, torch.device("cpu"), follows=follows)
    assert rig.part.max() == 1  # body and lid
    body = rig.part == rig.part[rig.node_weights[graph.owner[0]].argmax()]
    shift = torch.where(body[:, None], torch.tensor([0.0, 0.1, 0.0]), torch.tensor([0.0, 0.0, 0.3]))
    turns = torch.eye(3).expand(2, len(rig.centres), 3, 3)
    field = RigField(rig, turns, torch.stack([torch.zeros_like(shift), shift]))
    points = torch.tensor(subject.vertices)
    moved = field.positions(points, graph.owner, torch.tensor([1.0]))[0] - points
    torch.testing.assert_close(moved[16:], torch.tensor([0.0, 0.1, 0.0]).expand(8, 3))
    torch.testing.assert_close(moved[8:16], torch.tensor([0.0, 0.0, 0.3]).expand(8, 3))
