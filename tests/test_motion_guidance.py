"""4D-SDS: the released formula, its gradients, and that following it does what the model wants."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from test_mv_vdm_pipeline import SIZE, tiny_model

from backend.motion.guidance import (
    CameraRange,
    GuidanceSettings,
    VideoGuidance,
    as_pictures,
    random_cameras,
    sds_loss,
    sds_target,
)
from backend.mv_vdm.pipeline import MVVDM
from backend.protocol import condition_cameras

PROMPT = "a cactus is swaying"
FRAMES = 3


@pytest.fixture(scope="module", params=["color", "position"])
def model(request) -> MVVDM:
    """Like the released model (RGB, predicts noise), and like the starter (RGBA, predicts the clean difference)."""
    model = tiny_model(request.param)
    for network in (model.unet, model.vae, model.text_encoder, model.image_encoder):
        network.requires_grad_(False)
    return model


def some_renders(model: MVVDM, size: int = SIZE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(4, FRAMES, model.info.image_channels, size, size, generator=generator).requires_grad_()


def ask(model: MVVDM, renders: torch.Tensor, progress: float = 0.0, encoder=None, **settings) -> torch.Tensor:
    guidance = VideoGuidance(model, PROMPT, GuidanceSettings(**settings), encoder)
    return guidance(renders, condition_cameras(), torch.Generator().manual_seed(1), progress)


def test_gradient_reaches_all_renders_but_those_of_frame_0(model):
    renders = some_renders(model, 2 * SIZE)
    ask(model, renders).backward()
    assert not renders.grad[:, 0].any()
    assert all(renders.grad[view, frame].any() for view in range(4) for frame in range(1, FRAMES))


def test_gradient_of_the_latents_is_their_distance_from_the_target():
    latents = torch.randn(4, 2, 5, 3, 3, requires_grad=True)
    target = torch.cat([latents.detach()[:, :, :1], torch.randn(4, 2, 4, 3, 3)], dim=2)
    sds_loss(latents, target).backward()
    assert torch.allclose(latents.grad, (latents.detach() - target) / (4 * 5) * 5 / 4)


def follow(model: MVVDM, renders: torch.Tensor, steps: int) -> list[float]:
    """Losses on the way, with the same noise each time, so that they can be compared."""
    optimizer, losses = torch.optim.Adam([renders], lr=0.05), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = ask(model, renders, guidance_scale=0.0)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_following_the_gradient_lowers_the_loss(model):
    losses = follow(model, some_renders(model), 12)
    assert losses[-1] < losses[0]


def test_a_model_that_wants_everything_to_stand_still_gets_it():
    model = tiny_model("position")
    for network in (model.unet, model.vae):
        network.requires_grad_(False)
    torch.nn.init.zeros_(model.unet.conv_out.weight)  # its output is the difference to frame 0
    torch.nn.init.zeros_(model.unet.conv_out.bias)
    renders = some_renders(model)
    losses = follow(model, renders, 40)
    assert losses[-1] < 0.1 * losses[0]


def test_encoding_in_parts_changes_nothing(model):
    whole, parts = some_renders(model), some_renders(model)
    ask(model, whole).backward()
    ask(model, parts, encode_batch=5).backward()
    assert torch.allclose(whole.grad, parts.grad, rtol=1e-4, atol=1e-9)


def test_the_same_generator_gives_the_same_loss_and_another_does_not(model):
    renders = some_renders(model)
    guidance = VideoGuidance(model, PROMPT)
    one, same, other = (
        float(guidance(renders.detach(), condition_cameras(), torch.Generator().manual_seed(seed)))
        for seed in (1, 1, 2)
    )
    assert one == same != other


def test_another_encoder_takes_the_vaes_place(model):
    seen = []

    def tiny(pixels: torch.Tensor) -> torch.Tensor:
        seen.append((pixels.min() >= -1, pixels.max() <= 1, pixels.shape[1:]))
        pooled = torch.nn.functional.avg_pool2d(pixels, 2)
        return pooled[:, torch.arange(4) % pooled.shape[1]]

    renders = some_renders(model)
    ask(model, renders, encoder=tiny).backward()
    assert seen == [(True, True, (model.info.image_channels, SIZE, SIZE))] and renders.grad.any()


def target_of(model: MVVDM, **settings) -> tuple[torch.Tensor, torch.Tensor]:
    """(latents, target) without gradient."""
    generator = torch.Generator().manual_seed(0)
    shape = (4, model.vae.config.latent_channels, FRAMES, 8, 8)
    latents = torch.randn(shape, generator=generator)
    noise = torch.randn(latents[:, :, 1:].shape, generator=generator)
    text = model.encode_prompt([PROMPT, ""])
    pictures = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 4), np.uint8)
    conditions = model.combine_conditions(text, model.encode_images(pictures), condition_cameras())
    return latents, sds_target(model.denoiser, latents, noise, 100, *conditions, GuidanceSettings(**settings))


def test_guidance_extrapolates_from_the_prompted_prediction(model):
    """s = 5 is an ordinary guidance scale of 6: the target moves s times the step from without to with the prompt."""
    plain, once, five = (target_of(model, guidance_scale=s, std_rescale=0.0)[1] for s in (0.0, 1.0, 5.0))
    assert torch.allclose(five - plain, 5 * (once - plain), atol=1e-4)


def test_spread_is_brought_back_by_its_share(model):
    latents, raw = target_of(model, std_rescale=0.0)
    plain = target_of(model, guidance_scale=0.0)[1]
    factor = plain[:, :, 1:].std() / raw[:, :, 1:].std()
    got = target_of(model)[1]
    assert torch.equal(got[:, :, 0], latents[:, :, 0])
    assert torch.allclose(got[:, :, 1:], (0.25 * factor + 0.75) * raw[:, :, 1:], atol=1e-5)


def test_splitting_the_two_halves_changes_nothing(model):
    together = target_of(model)[1]
    split = dataclasses.replace(model, mode=dataclasses.replace(model.mode, split_guidance=True))
    assert torch.allclose(target_of(split)[1], together, atol=1e-5)


def test_noise_levels_are_the_released_ones_and_may_fall():
    assert GuidanceSettings().timestep_range(1000, 1.0) == (20, 200)
    falling = GuidanceSettings(anneal=True)
    assert [falling.timestep_range(1000, progress)[1] for progress in (0.0, 0.25, 1.0)] == [200, 110, 20]
    with pytest.raises(ValueError):
        GuidanceSettings(min_noise=0.5, max_noise=0.2)


def test_all_noise_levels_are_drawn_ends_included(model, monkeypatch):
    levels = []
    monkeypatch.setattr(
        "backend.motion.guidance.sds_target", lambda denoiser, latents, noise, t, *rest: levels.append(t) or latents
    )
    guidance = VideoGuidance(model, PROMPT, GuidanceSettings(min_noise=0.02, max_noise=0.022))
    generator, renders = torch.Generator().manual_seed(0), some_renders(model).detach()
    for _ in range(20):
        guidance(renders, condition_cameras(), generator)
    assert set(levels) == {20, 21, 22}


def test_renders_become_eight_bit_pictures():
    rgb = torch.tensor([0.0, 0.5, 1.2]).view(1, 3, 1, 1)
    assert as_pictures(rgb)[0, 0, 0].tolist() == [0, 127, 255, 255]
    premultiplied = torch.tensor([0.25, 0.0, 0.5, 0.5]).view(1, 4, 1, 1)
    assert as_pictures(premultiplied)[0, 0, 0].tolist() == [128, 0, 255, 128]


def test_posterior_noise_is_drawn_only_where_the_model_samples_it(model):
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    VideoGuidance(model, PROMPT).encode(some_renders(model), generator)
    assert torch.equal(generator.get_state(), before) != model.info.posterior_sample


def test_random_cameras_are_those_of_the_released_code():
    generator, elevations = torch.Generator().manual_seed(0), []
    for _ in range(200):
        c2w, fovy = random_cameras(generator)
        position = c2w[:, :3, 3]
        distance = np.linalg.norm(position, axis=1)
        assert 15.0 <= fovy <= 60.0 and np.ptp(distance) < 1e-9
        assert 0.8 <= distance[0] * math.tan(math.radians(fovy) / 2) <= 1.0
        azimuth = np.degrees(np.arctan2(position[:, 1], position[:, 0]))
        assert np.allclose(np.diff(azimuth) % 360, 90.0)
        elevations.append(math.degrees(math.asin(position[0, 2] / distance[0])))
        assert np.allclose(c2w[:, :3, 2] * distance[:, None], position)  # they look at the origin
    assert min(elevations) >= 0.0 and max(elevations) <= 30.0 and np.std(elevations) > 5.0


def test_random_cameras_keep_to_other_ranges():
    ranges = CameraRange(elevation=(15.0, 15.0), fovy=(40.0, 40.0), half_height=(1.0, 1.0))
    c2w, fovy = random_cameras(torch.Generator().manual_seed(0), 2, ranges)
    assert fovy == 40.0 and len(c2w) == 2
    assert np.allclose(c2w[:, 2, 3], math.sin(math.radians(15)) / math.tan(math.radians(20)))


def test_released_autoencoder_class_lets_gradients_through():
    """The class, at its smallest with an attention layer as the released one has."""
    vae = AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
                        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4)  # fmt: skip
    model = dataclasses.replace(tiny_model("color"), vae=vae.eval().requires_grad_(False))
    renders = some_renders(model)
    ask(model, renders).backward()
    assert renders.grad[:, 1:].isfinite().all() and renders.grad[:, 1:].any()
