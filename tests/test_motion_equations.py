"""The solver's normal equations against those of derivatives that torch takes by itself."""

from dataclasses import replace

import numba
import numpy as np
import pytest
import torch
from test_motion_fit import cylinder, make_subject

from backend import protocol
from backend.motion.bones import Joints, Rig, build_rig
from backend.motion.graph import build_graph
from backend.motion.observations import Observations, pixel_errors
from backend.motion.rig_fit import NormalEquations, joint_gaps
from backend.motion.rotations import rotation_vector_to_matrix

FRAMES, BONES, SEEN = 3, 6, 40


@pytest.fixture(scope="module")
def rig() -> Rig:
    subject = make_subject(*cylinder())
    graph = build_graph(subject.vertices, subject.faces, subject.weld)
    found = build_rig(graph, BONES, 0.04, torch.device("cpu"), Joints(hinge=2.0))
    return replace(found, **{name: getattr(found, name).double() for name in ("centres", "joints", "strength")})


@pytest.fixture
def poses(rig: Rig) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    turns = rotation_vector_to_matrix(0.3 * torch.randn(FRAMES, BONES, 3, generator=generator, dtype=torch.float64))
    return turns, 0.1 * torch.randn(FRAMES, BONES, 3, generator=generator, dtype=torch.float64)


def some_observations(rig: Rig, informed: bool) -> Observations:
    generator = torch.Generator().manual_seed(1)
    random = {"generator": generator, "dtype": torch.float64}
    view = torch.randint(4, (SEEN,), generator=generator)
    weights = torch.rand(SEEN, 3, **random)
    return Observations(
        torch.arange(SEEN) * (FRAMES - 1) // SEEN,
        0.3 * torch.randn(SEEN, 3, **random),
        torch.stack([torch.randperm(BONES, generator=generator)[:3] for _ in range(SEEN)]),
        weights / weights.sum(dim=1, keepdim=True),
        view,
        torch.from_numpy(np.linalg.inv(protocol.condition_cameras()))[view, :3].double(),
        0.2 * torch.randn(SEEN, 2, **random),
        torch.rand(SEEN, **random),
        torch.rand(SEEN, 2, 2, **random) if informed else None,
    )


def expected(rig: Rig, poses, errors, weight) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrix and right side [T, 6 B, 6 B], [T, 6 B] of errors(turns, shifts) [T, n] with weights [T, n]."""
    turns, shifts = (part[1:] for part in poses)
    steps = torch.zeros(FRAMES - 1, BONES, 6, dtype=torch.float64)

    def moved(step: torch.Tensor) -> torch.Tensor:
        return errors(rotation_vector_to_matrix(step[..., :3]) @ turns, shifts + step[..., 3:])

    by_step = torch.autograd.functional.jacobian(moved, steps)  # [T, n, T, B, 6]
    rows = torch.stack([by_step[t, :, t].flatten(1) for t in range(FRAMES - 1)])
    residual = moved(steps)
    return rows.mT @ (weight[..., None] * rows), -(rows.mT @ (weight * residual)[..., None])[..., 0]


def compare(system: NormalEquations, matrix: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(system.right, right, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(system.matrix.tril(), matrix.tril(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("informed", [False, True])
def test_observations(rig: Rig, poses, informed: bool) -> None:
    seen, robust = some_observations(rig, informed), 0.2

    def errors(turns: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
        away = pixel_errors(rig, seen, turns, shifts)[0]
        if informed:
            away = (seen.information @ away[..., None])[..., 0]
        return away.view(FRAMES - 1, -1)

    squared = (errors(*(part[1:] for part in poses)).view(-1, 2) ** 2).sum(dim=-1)
    weight = seen.confidence * (robust**2 / (robust**2 + squared)) ** 2
    system = NormalEquations(rig, *poses)
    system.add_pixels(seen, robust)
    compare(system, *expected(rig, poses, errors, weight.repeat_interleave(2).view(FRAMES - 1, -1)))


@pytest.mark.parametrize("kept", [False, True])
def test_links(rig: Rig, poses, kept: bool) -> None:
    since = tuple(part[1:].flip(0) for part in poses) if kept else None

    def errors(turns: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
        gaps = joint_gaps(rig, turns, shifts)
        return (gaps - joint_gaps(rig, *since) if kept else gaps).flatten(1)

    torn = errors(*(part[1:] for part in poses)).view(FRAMES - 1, -1, 3)
    weight = 0.5 * rig.strength / (1 + (torn**2).sum(dim=-1).mean(dim=0) / 0.1**2)
    system = NormalEquations(rig, *poses)
    system.add_links(0.5, 0.5, since, yields=0.1)
    compare(system, *expected(rig, poses, errors, weight.repeat_interleave(3).expand(FRAMES - 1, -1)))


def test_any_number_of_threads_gives_the_same_sums(rig: Rig, poses) -> None:
    seen, sums = some_observations(rig, informed=True), []
    used = numba.get_num_threads()
    for threads in {1, used}:
        numba.set_num_threads(threads)
        system = NormalEquations(rig, *poses)
        system.add_pixels(seen, 0.2)
        sums.append(system.matrix)
    assert used == 1 or torch.equal(*sums)
