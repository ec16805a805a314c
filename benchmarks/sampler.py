"""How few steps are enough? Distance to the released 25 x 3 DDIM result against cost, for solvers, steps and FreeInit.

    python benchmarks/sampler.py --report out/bench/sampler.json                 the shipped starter model
    python benchmarks/sampler.py --weights DIR --clips 2 --guidance 7.5          any model folder

Two tables; cost is network evaluations (guided ones count twice).

*Closed form*: data whose best noise-predicting network is a formula, under the released schedule, so that what is
measured is the solver's error alone: the share of the data's spread that is wrong against 500 DDIM steps from the same
noise. *choices*: many mixtures of 16 points of 8 numbers, of which the prompt allows 4, without and with guidance 7.5;
a solver must choose well while all is noise. *details*: independent numbers of spreads from 1 to .01; it must also end
well. This says how solvers cope with the released schedule and guidance, not what the released model draws.

*Model*: held-out procedural objects and prompts, the same noise for each row. *to 25x3* and *to 25x1* are distances to
those DDIM results over their own distance from frame 0, *pixels* the RMS difference to 25x3 of the decoded pictures in
8-bit steps, *truth* the distance to the true clip over that of standing still (position-coded models only).
The starter predicts clean latents close to the mean of what can follow, nearly the same at each step, so few steps do
as well as many: its table can show that a setting breaks nothing, not that a sharper model may do with as few.
Where the last timestep keeps no signal, as the starter's, FreeInit forgets the earlier passes: further ones only change
the noise, so rows of one and of three passes differ as two samples do.
A network with random weights predicts noise of no distribution at all: its distances would mean nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backend.mv_vdm.pipeline import MVVDM
from backend.mv_vdm.sampling import Conditions, Denoiser, SamplerSettings, sample_latents
from backend.protocol import condition_cameras, write_json
from backend.training.clips import HELD_OUT_SEED, make_clip, render_clip, straight
from backend.training.codec import to_model_range
from backend.training.motions import MOTIONS

FIRST_SEED = HELD_OUT_SEED + 20_000  # apart from what training and the other benchmarks measure themselves on
RELEASED = SamplerSettings()
VARIANTS = (
    RELEASED,
    replace(RELEASED, coarse_to_fine=True),
    *(SamplerSettings(steps, freeinit_iterations=1) for steps in (25, 15, 8, 4)),
    *(SamplerSettings(n, freeinit_iterations=1, solver=name) for name in ("dpm", "unipc") for n in (25, 15, 12, 8, 4)),
    *(SamplerSettings(12, solver=name, coarse_to_fine=True) for name in ("dpm", "unipc")),
    SamplerSettings(15, solver="unipc"),
)
POINTS, WIDTH, ALLOWED, SPREAD = 16, 8, 4, 0.05


def describe(settings: SamplerSettings) -> str:
    passes = "+".join(map(str, settings.pass_steps)) if settings.coarse_to_fine else settings.steps
    many = "" if settings.coarse_to_fine or settings.freeinit_iterations == 1 else f" x {settings.freeinit_iterations}"
    return f"{settings.solver} {passes}{many}"


def evaluations(settings: SamplerSettings) -> int:
    return settings.total_steps * (2 if settings.guidance_scale > 1 else 1)


class ClosedFormUNet:
    """The best network for a known distribution; stands where `MVVDMUNet` stands. Frame 0 takes no part."""

    def __init__(self, clean: Callable[[Tensor, Tensor, int], Tensor], alphas_cumprod: Tensor) -> None:
        """clean(noisy [N], signal, allowed) -> the mean of the clean numbers [N] that can have become these."""
        self.clean, self.alphas_cumprod = clean, alphas_cumprod.double()

    def __call__(self, sample: Tensor, timestep: Tensor, text: Tensor, *_, **__) -> Tensor:
        signal, rest = self.alphas_cumprod[int(timestep)], sample[:, :, 1:]
        noisy, answers = rest.double().flatten(), []
        for allowed in text[:: len(sample), 0, 0].int().tolist():  # the prompt is told by the text's first number
            noise = (noisy - signal.sqrt() * self.clean(noisy, signal, allowed)) / (1 - signal).sqrt()
            answers.append(torch.cat([torch.zeros_like(sample[:, :, :1]), noise.view_as(rest).float()], dim=2))
        return torch.cat(answers)


def choices(count: int) -> Callable[[Tensor, Tensor, int], Tensor]:
    """Mixtures of narrow Gaussians round points; only the first `allowed` points of each are meant."""
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(count // WIDTH, POINTS, WIDTH, generator=generator, dtype=torch.float64)

    def clean(noisy: Tensor, signal: Tensor, allowed: int) -> Tensor:
        centres, variance = points[:, :allowed], signal * SPREAD**2 + 1 - signal
        away = noisy.view(-1, 1, WIDTH) - signal.sqrt() * centres
        weight = (-0.5 * away.square().sum(-1) / variance).softmax(dim=1)[..., None]
        return (weight * (centres + signal.sqrt() * SPREAD**2 / variance * away)).sum(dim=1).flatten()

    return clean


def details(count: int) -> Callable[[Tensor, Tensor, int], Tensor]:
    """Independent Gaussians from coarse to fine."""
    variance = torch.logspace(0, -2, count, dtype=torch.float64).square()
    return lambda noisy, signal, _: signal.sqrt() * variance / (signal * variance + 1 - signal) * noisy


def closed_form(data: Callable[[int], Callable], scale: float) -> dict[str, float]:
    """The error of each single-pass variant at a guidance scale."""
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear", "clip_sample": False}
    scheduler, shape = DDIMScheduler(**schedule, steps_offset=1), (1, 8, 16, 16, 16)
    unet = ClosedFormUNet(data(int(np.prod(shape))), scheduler.alphas_cumprod)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    some, none = (
        Conditions(torch.full((1, 1, 1), float(n)), torch.zeros(1, 1), torch.zeros(1, 16)) for n in (ALLOWED, POINTS)
    )

    def sample(settings: SamplerSettings) -> Tensor:
        settings = replace(settings, guidance_scale=scale)
        first = torch.zeros(1, 8, 16, 16)
        return sample_latents(Denoiser(unet, scheduler), first, lambda: noise, some, none, settings)[:, :, 1:]

    limit = sample(SamplerSettings(steps=500, freeinit_iterations=1))
    return {
        describe(settings): float((sample(settings) - limit).norm() / (limit - limit.mean()).norm())
        for settings in VARIANTS
        if settings.freeinit_iterations == 1
    }


def closed_form_rows() -> list[dict]:
    problems = {
        "choices": closed_form(choices, 1.0),
        f"choices, guidance {RELEASED.guidance_scale}": closed_form(choices, RELEASED.guidance_scale),
        "details": closed_form(details, 1.0),
    }
    return [
        {"settings": row, **{name: errors[row] for name, errors in problems.items()}} for row in problems["choices"]
    ]


@torch.no_grad()
def judge_clip(model: MVVDM, motion: str, seed: int, guidance: float) -> list[dict]:
    """The figures of all variants on one held-out clip."""
    clip = make_clip(seed, model.info.num_frames, motion)
    pictures = straight(render_clip(clip, 2 * model.info.resolution, [(view, 0) for view in range(4)]))
    conditions = model.encode_conditions(clip.caption, pictures, condition_cameras())
    first = model.encode_first_frames(pictures, torch.Generator().manual_seed(seed))
    still = first[:, :, None]
    shape = (*first.shape[:2], model.info.num_frames - 1, *first.shape[2:])
    results, rows = {}, []
    for variant in VARIANTS:
        settings = replace(variant, guidance_scale=guidance, clean_clamp=model.info.sampler.clean_clamp)
        generator, started = torch.Generator().manual_seed(seed), time.perf_counter()
        draw = lambda generator=generator: torch.randn(shape, generator=generator).to(first)  # noqa: E731
        results[variant] = sample_latents(model.denoiser, first, draw, *conditions, settings)
        rows.append({"settings": describe(settings), "evaluations": evaluations(settings),
                     "seconds": time.perf_counter() - started})  # fmt: skip
    truth = true_latents(model, clip) if model.info.appearance == "position" else None
    best, single = results[RELEASED], results[replace(RELEASED, freeinit_iterations=1)]
    pixels = model.decode(best).astype(np.float32)
    for row, got in zip(rows, results.values(), strict=True):
        row["to_25x3"] = float((got - best).norm() / (best - still)[:, :, 1:].norm())
        row["to_25x1"] = float((got - single).norm() / (single - still)[:, :, 1:].norm())
        row["pixels"] = float(np.sqrt(np.square(model.decode(got) - pixels).mean()))
        if truth is not None:
            row["truth"] = float((got - truth)[:, :, 1:].norm() / (still - truth)[:, :, 1:].norm())
    return rows


def true_latents(model: MVVDM, clip: object) -> Tensor:
    """The true clip through the codec, [n, c, f, h, w]."""
    pictures = to_model_range(render_clip(clip, model.info.resolution))  # [n, f, 4, S, S], premultiplied
    if model.info.image_channels == 3:
        pictures = pictures[:, :, :3] + 0.5 * (1 - pictures[:, :, 3:])  # on grey, in -1..1
    latents = model.encode_pixels(pictures.flatten(0, 1))
    return latents.unflatten(0, pictures.shape[:2]).transpose(1, 2)


def show(title: str, rows: list[dict]) -> None:
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=120).print(table)


def mean_rows(clips: list[list[dict]]) -> list[dict]:
    """One row for each setting, the figures averaged over the clips."""
    return [
        {
            name: float(np.mean([row[name] for row in same])) if isinstance(value, float) else value
            for name, value in same[0].items()
        }
        for same in zip(*clips, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path(__file__).resolve().parents[1] / "weights" / "starter")
    parser.add_argument("--clips", type=int, default=4, help="held-out clips; 0 for the closed form alone")
    parser.add_argument("--guidance", type=float, help="guidance scale; the model's own by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    exact = closed_form_rows()
    show("Closed form: solver's error", exact)
    report = {"date": time.strftime("%Y-%m-%d"), "device": options.device, "torch": torch.__version__}
    report["closed_form"] = exact
    if options.clips:
        model = MVVDM.from_pretrained(options.weights, options.device)
        guidance = model.info.sampler.guidance_scale if options.guidance is None else options.guidance
        motions = list(MOTIONS)
        clips = []
        for index in range(options.clips):
            clips.append(judge_clip(model, motions[index % len(motions)], FIRST_SEED + index, guidance))
            print(f"clip {index + 1} of {options.clips}", flush=True)
        summary = mean_rows(clips)
        show(f"{model.info.name}, guidance {guidance}: mean of {options.clips} clips", summary)
        report |= {"model": model.info.name, "guidance_scale": guidance, "summary": summary, "clips": clips}
    if options.report:
        write_json(options.report, report)


if __name__ == "__main__":
    main()
