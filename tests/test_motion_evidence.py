"""What the fit does where pictures are wrong: frames that a pose does not explain, views that drift."""

import numpy as np
import torch
from test_motion_fit import cylinder, make_subject

from backend import protocol
from backend.motion.bones import build_rig
from backend.motion.correspondence import Correspondences, project
from backend.motion.evidence import between, bridged, mismatch, rest_pose
from backend.motion.graph import build_graph, nearest_owner
from backend.motion.observations import observe, pixel_errors
from backend.motion.rig_fit import RigFitSettings, fit_rig, noise_of
from backend.motion.rotations import rotation_vector_to_matrix
from backend.motion.view_drift import estimate_drift, no_drift, take_off_drift

SIZE = 64
FRAMES = 6


def test_frames_between_good_ones_are_bridged() -> None:
    angle = torch.tensor([0.0, 0.4, 2.0, 0.8, -3.0])
    turns = rotation_vector_to_matrix(torch.stack([angle, angle * 0, angle * 0], dim=-1))[:, None]
    shifts = angle.view(-1, 1, 1).expand(5, 1, 3)
    good = np.array([True, True, False, True, False])
    found = bridged((turns, shifts), good)
    torch.testing.assert_close(found[1][:, 0, 0], torch.tensor([0.0, 0.4, 0.6, 0.8, 0.8]))
    torch.testing.assert_close(found[0][2], between((turns[1], shifts[1]), (turns[3], shifts[3]), 0.5)[0])


def test_a_pose_goes_on_beyond_the_second() -> None:
    rest = rest_pose(1)
    turned = rotation_vector_to_matrix(torch.tensor([[0.2, 0.0, 0.0]])), torch.full((1, 3), 0.1)
    ahead = between(rest, turned, 1.5)
    torch.testing.assert_close(ahead[0], rotation_vector_to_matrix(torch.tensor([[0.3, 0.0, 0.0]])))
    torch.testing.assert_close(ahead[1], torch.full((1, 3), 0.15))


def test_the_mismatch_counts_where_either_shows_something() -> None:
    drawn, wanted = np.zeros((1, 8, 8, 4)), np.zeros((1, 8, 8, 4))
    drawn[0, :4, :, 3] = 1
    assert mismatch(drawn, drawn) == 0.0
    wanted[0, 4:, :, 3] = 1
    assert abs(mismatch(drawn, wanted) - 0.09) < 1e-9  # clipped, everywhere in both


def _seen(drift: np.ndarray, noise: float = 0.0) -> tuple:
    """A cylinder that moves up, seen by four views that drift [4, 3] (scale, x, y in tangents) by the last frame."""
    vertices, faces = cylinder()
    subject = make_subject(vertices, faces)
    graph = build_graph(subject.vertices, subject.faces, subject.weld)
    rig = build_rig(graph, 8, 0.04, torch.device("cpu"))
    samples, rng = subject.vertices.astype(np.float64), np.random.default_rng(0)
    focal = 0.5 * SIZE / np.tan(np.radians(subject.fovy) / 2)
    frame, view, sample, pixel = [], [], [], []
    for f in range(1, FRAMES):
        share = f / (FRAMES - 1)
        for v, camera in enumerate(protocol.condition_cameras()):
            where = project(samples + np.array([0, 0, 0.1 * share]), camera, subject.fovy, SIZE)[0] - 0.5 * SIZE
            own = drift[v] * share
            where = where * (1 + own[0]) + own[1:] * [1, -1] * focal + 0.5 * SIZE
            frame.append(np.full(len(samples), f))
            view.append(np.full(len(samples), v))
            sample.append(np.arange(len(samples)))
            pixel.append(where + noise * rng.standard_normal(where.shape))
    found = [np.concatenate(part) for part in (frame, view, sample, pixel)]
    skin = rig.weights(samples, nearest_owner(graph, samples))
    cameras = np.stack(protocol.condition_cameras())
    seen = observe(Correspondences(*found, np.ones(len(found[0])), SIZE), samples, skin, cameras, subject.fovy, 3000)
    rest = rest_pose(len(rig.centres))
    return rig, seen, tuple(part.expand(FRAMES, *part.shape).clone() for part in rest)


DRIFT = np.array([[0.05, 0.01, 0.0], [-0.04, 0.0, 0.01], [0.03, -0.01, -0.01], [-0.04, 0.0, 0.0]])


def test_what_one_view_does_alone_is_its_drift() -> None:
    rig, seen, rest = _seen(DRIFT)
    raised = rest[0], rest[1] + torch.linspace(0, 1, FRAMES).view(-1, 1, 1) * torch.tensor([0.0, 0.0, 0.1])
    found = estimate_drift(rig, seen, *raised, no_drift(seen, FRAMES - 1), 0.3)
    middle = found[2].numpy()  # the third of five, 0.6 of the way; smooth in time
    assert np.abs(middle - 0.6 * DRIFT).max() < 0.006
    steady = take_off_drift(seen, found)
    left, all_of_it = (
        pixel_errors(rig, what, raised[0][1:], raised[1][1:])[0].norm(dim=-1).mean() for what in (steady, seen)
    )
    assert left < 0.4 * all_of_it
    assert noise_of(rig, seen, *raised, 1e-3) < 1.5  # what a whole bone has in common is no noise


def test_a_fit_of_drifting_views_keeps_the_shape() -> None:
    rig, seen, rest = _seen(DRIFT)
    settings = RigFitSettings()
    found = fit_rig(rig, seen, rest, settings, lambda: None)[1][-1]
    followed = fit_rig(rig, seen, rest, RigFitSettings(drift_from=0.0), lambda: None)[1][-1]  # as if none drifted
    torn = [shift.std(dim=0).norm() for shift in (found, followed)]  # all bones truly move alike
    assert torn[0] < 0.6 * torn[1] and abs(float(found[:, 2].mean()) - 0.1) < 0.01


def test_noisy_pixels_count_less() -> None:
    rig, seen, rest = _seen(0 * DRIFT, noise=1.0)
    settings = RigFitSettings()
    found = fit_rig(rig, seen, rest, settings, lambda: None)
    assert noise_of(rig, seen, *found, settings.clean) > 3
    follows = fit_rig(rig, seen, rest, RigFitSettings(clean=1.0), lambda: None)  # as if it were clean
    shake = [part[1].diff(n=2, dim=0).norm(dim=-1).mean() for part in (found, follows)]
    assert shake[0] < 0.75 * shake[1]
