"""The paper's field and its ARAP loss against outputs of the reference implementation."""

from pathlib import Path

import pytest
import torch

from backend.motion.arap import Neighbourhood, arap_loss, edge_rotations
from backend.motion.hexplane import HexPlane
from backend.motion.rotations import (
    in_reference_sign,
    matrix_to_quaternion,
    nearest_rotation,
    nearest_rotation_svd,
    quaternion_product,
    quaternion_to_matrix,
    rotation_vector_to_matrix,
    rotation_vector_to_quaternion,
)

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "reference" / "golden" / "geometry"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the reference's golden data is not beside this checkout")


def load(name: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(GOLDEN / f"{name}.safetensors")


def golden_hexplane(data: dict[str, torch.Tensor]) -> HexPlane:
    field = HexPlane(data["xyz"], ((5, 6, 7, 3), (9, 8, 10, 4)), channels=4)
    with torch.no_grad():
        for s, planes in enumerate(field.grids):
            for p, plane in enumerate(planes):
                plane.copy_(data[f"grid{s}_plane{p}"])
        names = ("delta_xyz", "delta_rot", "delta_scaling", "global_rot", "global_trans")
        networks = (
            field.delta_xyz,
            field.delta_rotation,
            field.delta_scale,
            field.global_rotation,
            field.global_translation,
        )
        for name, network in zip(names, networks, strict=True):
            network[0].weight.copy_(data[f"{name}_network.layers.0.weight"])
            network[2].weight.copy_(data[f"{name}_network.layers.2.weight"])
    return field


@needs_golden
@pytest.mark.parametrize(("tag", "time"), [("tm06", -0.6), ("t1", 1.0)])
def test_hexplane_matches_the_reference(tag: str, time: float) -> None:
    data = load("hexplane")
    field, times = golden_hexplane(data), torch.tensor([time])
    with torch.no_grad():
        torch.testing.assert_close(field.features(data["xyz"], times)[0], data[f"{tag}_features"])
        turn, shift = field.global_motion(times)
        torch.testing.assert_close(turn[0], data[f"{tag}_global_matrix"])
        torch.testing.assert_close(shift, data[f"{tag}_global_trans"])
        means, rotations, scales = field.deform_gaussians(
            data["xyz"], data["rotation_raw"], data["scaling_raw"].exp(), times
        )
        positions, _ = field.deform(data["xyz"], times)
    torch.testing.assert_close(means[0], data[f"{tag}_xyz"])
    torch.testing.assert_close(positions[0], data[f"{tag}_xyz"])
    torch.testing.assert_close(scales[0], data[f"{tag}_scaling"])
    torch.testing.assert_close(rotations[0], data[f"{tag}_rotation"], atol=1e-5, rtol=1e-5)


@needs_golden
@pytest.mark.parametrize("case", ["k3", "k3_sample16", "k6_radius05", "rigid", "rigid_z"])
def test_arap_matches_the_reference(case: str) -> None:
    data = load("arap")
    nodes = data.get(f"{case}_nodes", data["nodes"]).clone().requires_grad_()
    ii, jj, nn = data[f"{case}_ii"], data[f"{case}_jj"], data[f"{case}_nn"]
    index = torch.arange(40)[:, None].repeat(1, int(nn.max()) + 1)
    index[ii, nn] = jj
    neighbours, sample = Neighbourhood(index), data.get(f"{case}_sample_idx")
    loss = arap_loss(nodes[0], nodes[1:], neighbours, sample, reference_quirk=True)
    loss.backward()
    torch.testing.assert_close(loss.detach()[None], data[f"{case}_error"], rtol=1e-5, atol=1e-5)
    if case != "rigid":  # its gradient is rounding noise
        torch.testing.assert_close(nodes.grad, data[f"{case}_grad"], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        edges = nodes[:, :, None] - nodes[:, index]
        rotation = edge_rotations(edges[0], edges[1:], reference_quirk=True)
    torch.testing.assert_close(rotation, data[f"{case}_rotation"], rtol=1e-4, atol=1e-4)


@needs_golden
def test_nearest_neighbours_are_the_references() -> None:
    data = load("arap")
    expected = data["k3_jj"].view(40, 3)
    assert torch.equal(Neighbourhood.nearest(data["nodes"][0].numpy()).index.sort().values, expected.sort().values)


def test_closed_form_rotations_equal_svd() -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(500, 3, 3, generator=generator, dtype=torch.float64)
    matrices[100:200, :, 2] = 0.0  # rank 2
    matrices[200:220] *= 1e-9
    ours, theirs = nearest_rotation(matrices), nearest_rotation_svd(matrices)
    gain = [torch.einsum("nij,nij->n", r, matrices) / matrices.flatten(1).norm(dim=1) for r in (ours, theirs)]
    torch.testing.assert_close(gain[0], gain[1], rtol=1e-9, atol=1e-9)
    unique = torch.linalg.svdvals(matrices[:100])  # where the answer is well determined, the matrices agree too
    clear = (unique[:, 1] - unique[:, 2]) > 0.1
    torch.testing.assert_close(ours[:100][clear], theirs[:100][clear], rtol=1e-6, atol=1e-6)


def test_rotations_of_degenerate_matrices_are_rotations() -> None:
    matrices = torch.stack([torch.zeros(3, 3), torch.ones(3, 3), -torch.eye(3), torch.diag(torch.tensor([1.0, 0, 0]))])
    rotation = nearest_rotation(matrices)
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), torch.eye(3).expand(4, 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(4))


def test_quaternions_without_a_matrix_have_the_references_sign() -> None:
    quaternions = torch.nn.functional.normalize(torch.randn(500, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    expected = matrix_to_quaternion(quaternion_to_matrix(quaternions))
    torch.testing.assert_close(in_reference_sign(quaternions), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(quaternions, expected)


def test_turning_twice_is_a_product_of_quaternions() -> None:
    first, second = torch.tensor([[0.3, -1.0, 0.2], [0.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.5, -0.4], [0.1, 0.0, 2.0]])
    product = quaternion_product(rotation_vector_to_quaternion(second), rotation_vector_to_quaternion(first))
    expected = rotation_vector_to_matrix(second) @ rotation_vector_to_matrix(first)
    torch.testing.assert_close(quaternion_to_matrix(product), expected)


def test_no_rotation_has_a_gradient() -> None:
    vector = torch.zeros(3, requires_grad=True)
    (jacobian,) = torch.autograd.functional.jacobian(rotation_vector_to_quaternion, (vector,))
    torch.testing.assert_close(jacobian, torch.cat([torch.zeros(1, 3), 0.5 * torch.eye(3)]))


def test_arap_is_zero_for_rigid_motion() -> None:
    generator = torch.Generator().manual_seed(1)
    rest = torch.randn(60, 3, generator=generator)
    turn = rotation_vector_to_matrix(torch.tensor([[0.0, 0.0, 2.5], [1.0, -2.0, 0.5], [0.0, 0.0, 3.14159]]))
    moved = rest @ turn.transpose(1, 2) + torch.tensor([0.3, -1.0, 2.0])
    assert float(arap_loss(rest, moved, Neighbourhood.nearest(rest.numpy(), 5))) < 1e-7
    assert float(arap_loss(rest, 1.2 * moved, Neighbourhood.nearest(rest.numpy(), 5))) > 1.0
