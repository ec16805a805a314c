"""From noise to latents: guidance, solvers and FreeInit (paper section 4.1 and the released settings).

The solvers see clean latents (x0) whatever the network predicts: guidance, the step preview, clamping and the
difference to frame 0 are then the same few lines for every model, and diffusers' schedulers run with
``prediction_type="sample"``.
Latents are [n, c, f, h, w]: n views of one clip. Frame 0 is given and stays what it is.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

from backend.protocol import SOLVERS

from .resume import StepLog
from .unet import MVVDMUNet

Solver = DDIMScheduler | DPMSolverMultistepScheduler | UniPCMultistepScheduler
FREEINIT_STOP = 0.25  # stop frequency in space and time, the released setting
FREEINIT_ORDER = 4  # of the Butterworth filter


@dataclass(frozen=True)
class SamplerSettings:
    """How to sample; the defaults are the paper's.

    steps: network evaluations per pass (DDIM with 25).
    guidance_scale: 7.5 for the released model; at 1 or below guidance is skipped, which halves the work. The starter
        model predicts clean latents and needs little: 1 to 1.5.
    freeinit_iterations: passes in all; the released pipeline runs 3, and 1 means no FreeInit.
    solver: "ddim", with the time spacing of the model's scheduler, or one meant for few steps: "dpm" (DPM-Solver++ 2M)
        or "unipc" (UniPC of order 2).
    coarse_to_fine: earlier FreeInit passes take fewer steps, of n passes pass k = 1..n takes k / n of them (FreeInit
        section 4.4, diffusers' ``use_fast_sampling``); off in the released pipeline.
    clean_clamp: clean latents are clamped to +- this; None for the released model.
    negative_prompt: what the unconditional half is told; the released pipeline says nothing.
    """

    steps: int = 25
    guidance_scale: float = 7.5
    freeinit_iterations: int = 3
    solver: str = "ddim"
    coarse_to_fine: bool = False
    clean_clamp: float | None = None
    negative_prompt: str = ""

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f"The solver {self.solver!r} is none of {', '.join(SOLVERS)}.")
        if self.steps < 1 or self.freeinit_iterations < 1:
            raise ValueError("Sampling needs at least one step and one pass.")

    @property
    def pass_steps(self) -> tuple[int, ...]:
        """Steps of each FreeInit pass."""
        passes = self.freeinit_iterations
        if not self.coarse_to_fine:
            return (self.steps,) * passes
        return tuple(max(1, self.steps * number // passes) for number in range(1, passes + 1))

    @property
    def total_steps(self) -> int:
        """Steps over all FreeInit passes: what progress counts to."""
        return sum(self.pass_steps)


@dataclass(frozen=True)
class Conditions:
    """What the network is told, per view; n is the number of views, or views times samples."""

    text: torch.Tensor  # [n, tokens, d]
    image: torch.Tensor  # [n, D], CLIP image embeddings; zeros where unconditional
    camera: torch.Tensor  # [n, 16]
    pooled_text: torch.Tensor | None = None  # [n, d]

    def joined(self, other: "Conditions") -> "Conditions":
        """These and the other's as one batch of two samples."""
        return Conditions(
            text=torch.cat([self.text, other.text]),
            image=torch.cat([self.image, other.image]),
            camera=torch.cat([self.camera, other.camera]),
            pooled_text=None if self.pooled_text is None else torch.cat([self.pooled_text, other.pooled_text]),
        )

    def predict(
        self, unet: MVVDMUNet, latents: torch.Tensor, timestep: torch.Tensor | int, num_views: int
    ) -> torch.Tensor:
        """One network evaluation of latents [(b n), c, f, h, w], in the network's precision, returned in theirs.

        These may be k conditions for each sample (``joined``) that differ in text and image only.
        """
        return unet(
            latents.to(self.text.dtype),
            timestep,
            self.text,
            self.camera[: len(latents)],
            self.image,
            num_views=num_views,
            pooled_text=self.pooled_text,
        ).to(latents.dtype)


class StepCallback(Protocol):
    """Called after every step; ``clean`` [n, c, f, h, w] is the current guess of the result. It may raise to cancel."""

    def __call__(self, step: int, total: int, clean: torch.Tensor) -> None: ...


def clean_estimate(
    prediction: torch.Tensor, latents: torch.Tensor, signal: torch.Tensor, prediction_type: str
) -> torch.Tensor:
    """The clean latents that a prediction means; ``signal`` is alphas_cumprod at the timestep."""
    if prediction_type == "sample":
        return prediction
    if prediction_type == "v_prediction":
        return signal.sqrt() * latents - (1 - signal).sqrt() * prediction
    return (latents - (1 - signal).sqrt() * prediction) / signal.sqrt()


def make_solver(scheduler: DDIMScheduler, solver: str) -> Solver:
    """A fresh solver on the model's noise schedule that steps with clean latents."""
    if solver == "ddim":
        return DDIMScheduler.from_config(scheduler.config, prediction_type="sample", clip_sample=False)
    same = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "rescale_betas_zero_snr")
    options = {name: scheduler.config[name] for name in same} | {"solver_order": 2, "prediction_type": "sample"}
    # Steps of equal log-SNR need half as many as steps of equal time, but can't start where there is no signal at all.
    no_signal = scheduler.config.rescale_betas_zero_snr
    options |= {"timestep_spacing": "trailing"} if no_signal else {"use_exponential_sigmas": True}
    if solver == "unipc":
        return UniPCMultistepScheduler(**options)
    return DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", **options)


def low_pass_filter(frames: int, height: int, width: int) -> torch.Tensor:
    """FreeInit's Butterworth mask [f, h, w] in fftshift-ed order; its centre is at index size / 2 of every axis."""
    axes = [2 * torch.arange(size, dtype=torch.float64) / size - 1 for size in (frames, height, width)]
    grid = torch.meshgrid(*axes, indexing="ij")
    distance = sum(axis.square() for axis in grid)
    return (1 / (1 + (distance / FREEINIT_STOP**2) ** FREEINIT_ORDER)).float()


def reinitialise_noise(
    result: torch.Tensor, first_noise: torch.Tensor, fresh_noise: torch.Tensor, last_signal: torch.Tensor
) -> torch.Tensor:
    """FreeInit: the low frequencies of the re-noised result, the high ones of fresh noise. All [n, c, f, h, w].

    Args:
        result: the latents of the previous pass, without frame 0.
        first_noise: what the first pass started from.
        last_signal: alphas_cumprod at the last timestep.
    """
    axes = (-3, -2, -1)
    noised = last_signal.sqrt() * result + (1 - last_signal).sqrt() * first_noise
    mask = low_pass_filter(*result.shape[2:]).to(result.device)
    low, high = (torch.fft.fftshift(torch.fft.fftn(part, dim=axes), dim=axes) for part in (noised, fresh_noise))
    mixed = low * mask + high * (1 - mask)
    return torch.fft.ifftn(torch.fft.ifftshift(mixed, dim=axes), dim=axes).real


@dataclass(frozen=True)
class Denoiser:
    """The network, its noise schedule and what its output means."""

    unet: MVVDMUNet
    scheduler: DDIMScheduler
    residual_to_first_frame: bool = False  # the output is the difference to frame 0; only with "sample" prediction
    split_guidance: bool = False  # two evaluations of one half each: more work, half of the activations

    def clean(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        conditional: Conditions,
        unconditional: Conditions,
        settings: SamplerSettings,
    ) -> torch.Tensor:
        """The guided guess of the clean latents [n, c, f, h, w] from noisy ones whose frame 0 is clean."""
        output = self.guided(latents, timestep, conditional, unconditional, settings.guidance_scale)
        clean = self.to_clean(output, latents, timestep)
        return clean if settings.clean_clamp is None else clean.clamp(-settings.clean_clamp, settings.clean_clamp)

    def guided(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor | int,
        conditional: Conditions,
        unconditional: Conditions,
        scale: float,
    ) -> torch.Tensor:
        """Classifier-free guidance, p_u + s (p_c - p_u); at 1 and below only the conditional half is asked."""
        if scale <= 1.0:
            return conditional.predict(self.unet, latents, timestep, len(latents))
        without, with_text = self.paired(latents, timestep, conditional, unconditional)
        return without + scale * (with_text - without)

    def paired(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor | int,
        conditional: Conditions,
        unconditional: Conditions,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The network's output (without, with) the prompt and images; in one batch the first half is without."""
        views = len(latents)
        if self.split_guidance:
            return tuple(half.predict(self.unet, latents, timestep, views) for half in (unconditional, conditional))
        return unconditional.joined(conditional).predict(self.unet, latents, timestep, views).chunk(2)

    def to_clean(self, output: torch.Tensor, latents: torch.Tensor, timestep: torch.Tensor | int) -> torch.Tensor:
        """The clean latents that the network's output for these latents means, all [n, c, f, h, w]."""
        if self.residual_to_first_frame:
            output = output + latents[:, :, :1]
        signal = self.scheduler.alphas_cumprod[int(timestep)].to(latents.device)
        return clean_estimate(output, latents, signal, self.scheduler.config.prediction_type)


def sample_latents(
    denoiser: Denoiser,
    first_frame: torch.Tensor,
    draw_noise: Callable[[], torch.Tensor],
    conditional: Conditions,
    unconditional: Conditions,
    settings: SamplerSettings,
    callback: StepCallback | None = None,
    log: StepLog | None = None,
) -> torch.Tensor:
    """Samples frames 1.. of a clip.

    Args:
        first_frame: clean latents of frame 0, [n, c, h, w], float32.
        draw_noise: gives N(0, 1) noise [n, c, f - 1, h, w]; called at the start and for every further FreeInit pass.
        log: steps of this run that were done before; further ones are added.

    Returns:
        Latents [n, c, f, h, w] with ``first_frame`` as frame 0.
    """
    first = first_frame[:, :, None]
    first_noise = draw_noise()
    latents = torch.cat([first, first_noise], dim=2)
    last_signal = denoiser.scheduler.alphas_cumprod[-1].to(first.device)
    done = 0
    for iteration, steps in enumerate(settings.pass_steps):
        if iteration > 0:
            noise = reinitialise_noise(latents[:, :, 1:], first_noise, draw_noise(), last_signal)
            latents = torch.cat([first, noise], dim=2)
        solver = make_solver(denoiser.scheduler, settings.solver)
        solver.set_timesteps(steps)
        for index, timestep in enumerate(solver.timesteps):
            clean = None if log is None else log.read(done, latents)
            if clean is None:
                started = time.monotonic()
                clean = denoiser.clean(latents, timestep, conditional, unconditional, settings)
                if log is not None:
                    log.write(done, clean, time.monotonic() - started)
            # Frame 0 is known: whatever was predicted for it is thrown away.
            clean = torch.cat([first, clean[:, :, 1:]], dim=2)
            if index + 1 < steps:
                latents = solver.step(clean, timestep, latents, return_dict=False)[0]
                latents = torch.cat([first, latents[:, :, 1:]], dim=2)
            else:
                latents = clean  # where every solver ends, but for trailing spacings that miss the end by a timestep
            done += 1
            if callback is not None:
                callback(done, settings.total_steps, clean)
    return latents
