"""The sampler: against the reference pipeline's runs, and by its own properties."""

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file

from backend.mv_vdm.sampling import (
    SOLVERS,
    Conditions,
    Denoiser,
    SamplerSettings,
    clean_estimate,
    low_pass_filter,
    make_solver,
    reinitialise_noise,
    sample_latents,
)
from backend.mv_vdm.unet import MVVDMUNet

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "reference" / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the reference implementation's outputs are not here")


def released_schedule(**changes) -> DDIMScheduler:
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear", "clip_sample": False}
    return DDIMScheduler(**settings | {"steps_offset": 1, "timestep_spacing": "leading"} | changes)


def starter_schedule() -> DDIMScheduler:
    return released_schedule(
        prediction_type="sample", rescale_betas_zero_snr=True, timestep_spacing="trailing", steps_offset=0
    )


class FixedUNet:
    """Stands for the network: answers with a function of its inputs and remembers its batches."""

    def __init__(self, answer):
        self.answer, self.batches = answer, []

    def __call__(self, sample, timestep, text, camera, image, num_views, pooled_text=None):
        self.batches.append((len(sample), num_views, text[:, 0, 0].tolist()))
        return self.answer(sample, text)


def some_conditions(text: float, views: int = 2) -> Conditions:
    return Conditions(torch.full((views, 1, 1), text), torch.zeros(views, 1), torch.zeros(views, 16))


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "sampling" / "sampling.safetensors")


def golden_conditions(data: dict[str, torch.Tensor]) -> tuple[Conditions, Conditions]:
    conditional = Conditions(data["prompt_embeds"].expand(4, -1, -1), data["image_embeds"], data["camera"])
    no_prompt = data["negative_prompt_embeds"].expand(4, -1, -1)
    return conditional, Conditions(no_prompt, torch.zeros_like(data["image_embeds"]), data["camera"])


@needs_golden
@torch.no_grad()
def test_first_guided_prediction_matches_the_reference(golden):
    unet = MVVDMUNet(block_out_channels=(32, 32, 40, 48), norm_num_groups=8, cross_attention_dim=32, image_embed_dim=24)
    unet.load_state_dict(load_file(GOLDEN / "A" / "weights.safetensors"))
    latents = torch.cat([golden["first_frame_latents"][:, :, None], golden["initial_noise"]], dim=2)
    denoiser = Denoiser(unet.eval(), released_schedule())
    got = denoiser.guided(latents, golden["ddim_timesteps_4"][0], *golden_conditions(golden), scale=7.5)
    without, with_text = golden["plain_noise_pred_step0"].chunk(2)
    assert relative(got, without + 7.5 * (with_text - without)) < 1e-5


@needs_golden
@torch.no_grad()
def test_freeinit_run_follows_the_reference(golden):
    """Two passes of four steps; the network is replaced by the predictions that the reference's latents imply."""
    wanted, scheduler = golden["freeinit_latents_per_step"].double(), released_schedule()
    signal = [float(scheduler.alphas_cumprod[t]) for t in golden["ddim_timesteps_4"]] + [1.0]
    starts = [golden["initial_noise"], golden["freeinit_reinit_latents"]]
    first, before = golden["first_frame_latents"], []

    def implied(latents, text):
        step = len(before)
        before.append(latents)
        x = latents.double() if step % 4 == 0 else wanted[step - 1]
        now, then = signal[step % 4], signal[step % 4 + 1]
        # DDIM: x' = sqrt(a') (x - sqrt(1 - a) e) / sqrt(a) + sqrt(1 - a') e, solved for e
        slope = (1 - then) ** 0.5 - (then * (1 - now) / now) ** 0.5
        return ((wanted[step] - (then / now) ** 0.5 * x) / slope).float()

    noises = iter([golden["initial_noise"], golden["freeinit_z_rand"]])
    settings = SamplerSettings(steps=4, guidance_scale=1.0, freeinit_iterations=2)
    seen = []
    got = sample_latents(
        Denoiser(FixedUNet(implied), scheduler),
        first,
        lambda: next(noises),
        *golden_conditions(golden),
        settings,
        lambda *step: seen.append(step),
    )
    assert relative(got, golden["freeinit_final_latents"]) < 1e-5
    assert relative(seen[3][2], golden["plain_final_latents"]) < 1e-5  # the first pass is the run without FreeInit
    assert [step[:2] for step in seen] == [(step, 8) for step in range(1, 9)]
    for step, latents in enumerate(before):
        start = torch.cat([first[:, :, None], starts[step // 4]], dim=2)
        assert relative(latents, start if step % 4 == 0 else wanted[step - 1].float()) < 1e-5


@needs_golden
def test_schedule_and_freeinit_match_the_reference(golden):
    scheduler = released_schedule()
    assert torch.equal(scheduler.alphas_cumprod, golden["alphas_cumprod"])
    solver = make_solver(scheduler, "ddim")
    solver.set_timesteps(25)
    assert torch.equal(solver.timesteps, golden["ddim_timesteps_25"])
    assert torch.allclose(low_pass_filter(7, 16, 16), golden["freeinit_filter"])
    got = reinitialise_noise(
        golden["plain_final_latents"][:, :, 1:],
        golden["initial_noise"],
        golden["freeinit_z_rand"],
        scheduler.alphas_cumprod[-1],
    )
    assert relative(got, golden["freeinit_reinit_latents"]) < 1e-5


def test_guidance_asks_without_the_prompt_first_and_extrapolates():
    unet = FixedUNet(lambda sample, text: text[:, :, :, None, None].expand(-1, *sample.shape[1:]))
    latents = torch.zeros(2, 1, 3, 4, 4)
    got = Denoiser(unet, released_schedule()).guided(latents, 10, some_conditions(2.0), some_conditions(1.0), scale=3.0)
    assert unet.batches == [(2, 2, [1.0, 1.0, 2.0, 2.0])]  # the latents once, under two texts
    assert torch.equal(got, torch.full_like(latents, 1.0 + 3.0 * (2.0 - 1.0)))


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_guidance_is_skipped_at_one_and_below(scale):
    unet = FixedUNet(lambda sample, text: text[:, :, :, None, None].expand_as(sample))
    denoiser, latents = Denoiser(unet, released_schedule()), torch.zeros(2, 1, 3, 4, 4)
    got = denoiser.guided(latents, 10, some_conditions(2.0), some_conditions(1.0), scale)
    assert unet.batches == [(2, 2, [2.0, 2.0])] and torch.equal(got, torch.full_like(got, 2.0))


@pytest.mark.parametrize("scheduler", [released_schedule(), starter_schedule()], ids=["released", "starter"])
@pytest.mark.parametrize("solver", SOLVERS)
@torch.no_grad()
def test_frame_0_stays_and_a_perfect_network_is_followed(scheduler, solver):
    """A network that always knows the clean clip must lead to it, whatever it is asked to predict."""
    torch.manual_seed(0)
    truth, seen = torch.randn(2, 3, 4, 8, 8), []

    def perfect(latents, text):
        assert torch.equal(latents[:, :, 0], truth[:, :, 0])
        if scheduler.config.prediction_type == "sample":
            return truth
        signal = scheduler.alphas_cumprod[int(denoiser_step[0])]
        return (latents - signal.sqrt() * truth) / (1 - signal).sqrt()

    denoiser_step = [0]

    class Spy(FixedUNet):
        def __call__(self, sample, timestep, *rest, **named):
            denoiser_step[0] = timestep
            return super().__call__(sample, timestep, *rest, **named)

    settings = SamplerSettings(steps=6, guidance_scale=1.0, freeinit_iterations=2, solver=solver)
    got = sample_latents(
        Denoiser(Spy(perfect), scheduler),
        truth[:, :, 0],
        lambda: torch.randn(2, 3, 3, 8, 8),
        some_conditions(1.0),
        some_conditions(0.0),
        settings,
        lambda step, total, clean: seen.append(clean),
    )
    assert torch.equal(got[:, :, 0], truth[:, :, 0])
    assert torch.allclose(got, truth, atol=1e-4)
    assert len(seen) == 12 and all(torch.allclose(clean, truth, atol=1e-4) for clean in seen)


@torch.no_grad()
def test_residual_and_clamp_shape_the_clean_guess():
    first = torch.full((2, 1, 1, 4, 4), 5.0)
    latents = torch.cat([first, torch.zeros(2, 1, 2, 4, 4)], dim=2)
    denoiser = Denoiser(FixedUNet(lambda sample, text: torch.ones_like(sample)), starter_schedule(), True)
    conditions = (some_conditions(1.0), some_conditions(0.0))
    plain = SamplerSettings(guidance_scale=1.0)
    assert (denoiser.clean(latents, torch.tensor(999), *conditions, plain) == 6.0).all()
    clamped = SamplerSettings(guidance_scale=1.0, clean_clamp=4.0)
    assert (denoiser.clean(latents, torch.tensor(999), *conditions, clamped) == 4.0).all()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_clean_estimate_inverts_what_training_asks_for(kind):
    torch.manual_seed(0)
    clean, noise, timestep = torch.randn(2, 8), torch.randn(2, 8), torch.tensor([400, 400])
    scheduler = released_schedule(prediction_type=kind)
    noisy = scheduler.add_noise(clean, noise, timestep)
    target = {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": scheduler.get_velocity(clean, noise, timestep),
    }[kind]
    assert torch.allclose(clean_estimate(target, noisy, scheduler.alphas_cumprod[400], kind), clean, atol=1e-4)


def test_freeinit_keeps_slow_content_and_replaces_fast():
    torch.manual_seed(0)
    slow = torch.ones(1, 1, 8, 16, 16) * 3.0
    noise = torch.zeros_like(slow)
    got = reinitialise_noise(slow, noise, torch.randn_like(slow), torch.tensor(1.0))
    assert abs(float(got.mean()) - 3.0) < 0.02 and 0.5 < float(got.std()) < 1.5


def test_wrong_settings_are_refused():
    for wrong in ({"solver": "euler"}, {"steps": 0}, {"freeinit_iterations": 0}):
        with pytest.raises(ValueError):
            SamplerSettings(**wrong)


def test_coarse_to_fine_takes_a_growing_share_of_the_steps():
    assert SamplerSettings().pass_steps == (25, 25, 25)
    settings = SamplerSettings(coarse_to_fine=True)
    assert settings.pass_steps == (8, 16, 25) and settings.total_steps == 49  # int(25 / 3 * k), as diffusers
    assert SamplerSettings(steps=2, coarse_to_fine=True).pass_steps == (1, 1, 2)


@pytest.mark.parametrize("solver", ["dpm", "unipc"])
@torch.no_grad()
def test_fast_solvers_reach_the_limit_of_many_steps_sooner(solver):
    """On Gaussian data, whose best network is known in closed form, with few steps against the exact solution."""
    spread, scheduler = 0.5, released_schedule()
    noise = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    class BestUNet(FixedUNet):
        def __call__(self, sample, timestep, *rest, **named):
            signal = scheduler.alphas_cumprod[int(timestep)]
            return (1 - signal).sqrt() * sample / (signal * spread**2 + 1 - signal)

    def sample(solver, steps):
        settings = SamplerSettings(steps=steps, guidance_scale=1.0, freeinit_iterations=1, solver=solver)
        conditions = some_conditions(1.0), some_conditions(0.0)
        denoiser = Denoiser(BestUNet(None), scheduler)
        return sample_latents(denoiser, torch.zeros(2, 1, 4, 4), lambda: noise, *conditions, settings)[:, :, 1:]

    signal = scheduler.alphas_cumprod[-1]
    exact = noise * spread / (signal * spread**2 + 1 - signal).sqrt()
    assert relative(sample(solver, 8), exact) < 0.5 * relative(sample("ddim", 8), exact)


def test_a_callback_can_cancel():
    class Cancelled(Exception):
        pass

    def cancel(step, total, clean):
        raise Cancelled

    denoiser = Denoiser(FixedUNet(lambda sample, text: sample), starter_schedule())
    settings = SamplerSettings(steps=3, guidance_scale=1.0, freeinit_iterations=1)
    with pytest.raises(Cancelled):
        sample_latents(
            denoiser,
            torch.zeros(2, 1, 4, 4),
            lambda: torch.zeros(2, 1, 3, 4, 4),
            some_conditions(1.0),
            some_conditions(0.0),
            settings,
            cancel,
        )
    assert len(denoiser.unet.batches) == 1
