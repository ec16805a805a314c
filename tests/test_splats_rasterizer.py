"""The CPU rasterizer against the dense float64 reference, and the reference against finite differences."""

import math

import pytest
import torch

from backend.splats import rasterize
from backend.splats.cuda_gsplat import gsplat_usable

NAMES = ("means", "quats", "scales", "opacities", "colors")


def camera(azimuth: float, elevation: float = 15.0, distance: float = 3.0) -> torch.Tensor:
    """OpenGL camera-to-world [4, 4] that looks at the origin; degrees."""
    az, el = math.radians(azimuth), math.radians(elevation)
    back = torch.tensor([math.cos(el) * math.cos(az), math.cos(el) * math.sin(az), math.sin(el)], dtype=torch.float64)
    right = torch.tensor([-math.sin(az), math.cos(az), 0.0], dtype=torch.float64)
    c2w = torch.eye(4, dtype=torch.float64)
    c2w[:3, 0], c2w[:3, 1], c2w[:3, 2], c2w[:3, 3] = right, torch.linalg.cross(back, right), back, distance * back
    return c2w


def cameras(count: int) -> torch.Tensor:
    return torch.stack([camera(110.0 * i) for i in range(count)])


def cloud(images: int | None, count: int, seed: int = 0) -> list[torch.Tensor]:
    """Random float64 Gaussians about the origin; geometry differs per image, the rest is shared."""
    g = torch.Generator().manual_seed(seed)
    lead = () if images is None else (images,)
    means = 0.4 * torch.randn(*lead, count, 3, generator=g, dtype=torch.float64)
    quats = torch.randn(*lead, count, 4, generator=g, dtype=torch.float64)
    scales = 0.1 * torch.rand(count, 3, generator=g, dtype=torch.float64) + 0.005
    opacities = 0.9 * torch.rand(count, generator=g, dtype=torch.float64) + 0.05
    colors = torch.rand(*lead, count, 3, generator=g, dtype=torch.float64)
    # The CPU rasterizer works in float32: start from numbers that both can hold.
    return [t.float().double() for t in (means, quats, scales, opacities, colors)]


def loss(inputs, c2w, fovy=40.0, width=50, height=44, **options) -> torch.Tensor:
    """A fixed random linear function of both outputs, in float64."""
    rgb, alpha = rasterize(*inputs, c2w, fovy, width, height, **options)
    g = torch.Generator().manual_seed(7)
    weights = torch.randn(*rgb.shape[:3], 4, generator=g, dtype=torch.float64)
    return (torch.cat([rgb, alpha[..., None]], -1).double() * weights).sum()


def gradients(inputs, c2w, **options) -> list[torch.Tensor]:
    leaves = [t.clone().requires_grad_() for t in inputs]
    return list(torch.autograd.grad(loss(leaves, c2w, **options), leaves))


def assert_same(inputs, c2w, fovy=40.0, width=50, height=44) -> torch.Tensor:
    """Values to 1e-5, gradients to 1 %; returns alpha [B, H, W]."""
    fast, exact = (rasterize(*inputs, c2w, fovy, width, height, reference=slow) for slow in (False, True))
    for ours, theirs in zip(fast, exact, strict=True):
        assert ours.isfinite().all()
        assert (ours - theirs).abs().max() < 1e-5
    options = {"fovy": fovy, "width": width, "height": height}
    fast_grads, exact_grads = gradients(inputs, c2w, **options), gradients(inputs, c2w, reference=True, **options)
    for name, ours, theirs in zip(NAMES, fast_grads, exact_grads, strict=True):
        assert ours.isfinite().all(), name
        assert (ours - theirs).norm() <= 0.01 * theirs.norm() + 1e-6, name
        assert (ours - theirs).abs().max() <= 0.01 * theirs.abs().max() + 1e-6, name
    assert fast[1].min() >= 0 and fast[1].max() <= 1
    return fast[1]


def test_agrees_with_the_reference_over_images_with_their_own_geometry():
    alpha = assert_same(cloud(3, 80), cameras(3))
    assert alpha.max() > 0.9  # some pixels must end early, or half the code is not exercised


def test_agrees_when_the_geometry_is_shared_and_every_camera_has_its_own_angle():
    inputs, c2w = cloud(None, 40, seed=1), cameras(2)
    fovy = torch.tensor([30.0, 55.0])
    assert_same(inputs, c2w, fovy, 33, 17)


def test_opaque_layers_stop_the_light():
    inputs = cloud(2, 150, seed=2)
    inputs[3] = torch.full_like(inputs[3], 1.0)
    inputs[2] = 4 * inputs[2]
    assert assert_same(inputs, cameras(2)).max() > 0.9995


def test_splats_behind_outside_huge_tiny_and_transparent():
    inputs = cloud(2, 30, seed=3)
    means, _, scales, opacities, _ = inputs
    means[:, 0] = torch.tensor([6.0, 0.0, 2.0])  # behind the first camera
    means[:, 1] = torch.tensor([0.0, 40.0, 0.0])  # far outside
    means[:, 2] = camera(0.0)[:3, 3]  # at the first camera's eye
    scales[3], scales[4], scales[5] = 5.0, 1e-7, 0.0
    opacities[6], opacities[7] = 0.0, 1.0
    assert_same(inputs, cameras(2))


def test_values_that_are_not_numbers_hide_only_their_own_splat():
    inputs = [t.float() for t in cloud(None, 20, seed=4)]
    want = rasterize(*[t[1:] for t in inputs], cameras(1), 40.0, 32, 32)[0]
    inputs[0][0] = math.nan
    assert torch.equal(rasterize(*inputs, cameras(1), 40.0, 32, 32)[0], want)


def test_nothing_to_draw():
    rgb, alpha = rasterize(*cloud(None, 0), cameras(2), 40.0, 20, 18)
    assert rgb.shape == (2, 18, 20, 3) and alpha.shape == (2, 18, 20)
    assert not rgb.any() and not alpha.any()


def test_reference_gradients_agree_with_finite_differences():
    inputs, c2w = cloud(2, 12, seed=5), cameras(2)
    analytic = gradients(inputs, c2w, reference=True)
    step = 1e-6
    for k, gradient in enumerate(analytic):
        for entry in gradient.abs().flatten().topk(3).indices.tolist():
            sides = []
            for sign in (-1, 1):
                moved = [t.clone() for t in inputs]
                moved[k].view(-1)[entry] += sign * step
                sides.append(loss(moved, c2w, reference=True))
            numeric = (sides[1] - sides[0]) / (2 * step)
            assert numeric == pytest.approx(gradient.flatten()[entry].item(), rel=0.01), NAMES[k]


def test_background_shows_through():
    inputs = [t.float() for t in cloud(None, 20)]
    background = torch.tensor([0.2, 0.4, 0.6], requires_grad=True)
    rgb, alpha = rasterize(*inputs, cameras(1), 40.0, 32, 32)
    over, _ = rasterize(*inputs, cameras(1), 40.0, 32, 32, background=background)
    assert torch.allclose(over, rgb + (1 - alpha[..., None]) * background)
    over.sum().backward()
    assert torch.allclose(background.grad, (1 - alpha).sum().expand(3))


def test_camera_convention():
    """From the front (on +x, z up), +y is right and +z is up."""
    means = torch.tensor([[0.0, 0.5, 0.5]])
    scales, quats = torch.full((1, 3), 0.02), torch.tensor([[1.0, 0, 0, 0]])
    _, alpha = rasterize(means, quats, scales, torch.ones(1), torch.ones(1, 3), camera(0.0, 0.0)[None], 40.0, 64, 64)
    row, column = divmod(int(alpha.argmax()), 64)
    offset = 0.5 / 3 * 32 / math.tan(math.radians(20))
    assert abs(column + 0.5 - (32 + offset)) < 1 and abs(row + 0.5 - (32 - offset)) < 1


def test_images_in_blocks_equal_images_at_once(monkeypatch):
    inputs, c2w = cloud(5, 40, seed=6), cameras(5)
    whole = gradients(inputs, c2w)
    monkeypatch.setattr("backend.splats.cpu.MAX_SPLATS_AT_ONCE", 80)
    monkeypatch.setattr("backend.splats.cpu.MAX_PAIRS_AT_ONCE", 100)
    for a, b in zip(whole, gradients(inputs, c2w), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_only_those_that_are_kept_get_gradients():
    inputs, c2w = cloud(2, 60), cameras(2)
    keep = torch.rand(2, 60, generator=torch.Generator().manual_seed(3)) < 0.3
    kept, exact = gradients(inputs, c2w, keep=keep), gradients(inputs, c2w, keep=keep, reference=True)
    for name, ours, theirs in zip(NAMES, kept, exact, strict=True):
        assert (ours - theirs).abs().max() < 0.01 * theirs.abs().max(), name
    everything = gradients(inputs, c2w)[0]
    assert not kept[0][~keep].any() and torch.allclose(kept[0][keep], everything[keep], rtol=1e-3, atol=1e-3)
    assert torch.equal(loss(inputs, c2w, keep=keep), loss(inputs, c2w))


def test_results_do_not_depend_on_the_number_of_threads():
    inputs, c2w = cloud(2, 60, seed=8), cameras(2)
    before = torch.get_num_threads()
    several = gradients(inputs, c2w)
    torch.set_num_threads(1)
    one = gradients(inputs, c2w)
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(several, one, strict=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="here gsplat may well have its kernels")
def test_without_kernels_gsplat_is_not_used():
    assert gsplat_usable() is False


def test_shapes_that_do_not_fit_are_refused():
    inputs = cloud(2, 5)
    with pytest.raises(ValueError, match="means"):
        rasterize(*inputs, cameras(3), 40.0, 8, 8)
    inputs[1] = inputs[1][:, :4]
    with pytest.raises(ValueError, match="do not fit together"):
        rasterize(*inputs, cameras(2), 40.0, 8, 8)
