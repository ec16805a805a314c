"""What draft, standard and paper mean for the video and 4D-SDS; `backend.motion.settings` says it for the fit."""

from __future__ import annotations

from dataclasses import replace

from backend.motion.sds_fit import SdsSettings
from backend.mv_vdm.sampling import SamplerSettings
from backend.protocol import JobSettings

DRAFT_STEPS = 8  # a small model that predicts clean latents needs no more, and for a look a big one neither
# Fewest steps with which UniPC comes nearer to the exact solution than 25 of DDIM on all three closed-form problems of
# `benchmarks/sampler.py`, under the released schedule and guidance; with 12 it no longer does under guidance.
STANDARD_STEPS, STANDARD_SOLVER = 15, "unipc"


def sampler_settings(preset: str, own: SamplerSettings) -> SamplerSettings:
    """How to sample a model, from how it wants to be sampled (`own`): its guidance and clamping are always kept.

    draft: few steps in one pass. standard: the model's own steps and FreeInit passes, but instead of many steps fewer
    of a better solver. paper: DDIM, 25 steps, three passes.
    """
    if preset == "paper":
        paper = SamplerSettings()
        return replace(
            own, steps=paper.steps, freeinit_iterations=paper.freeinit_iterations, solver=paper.solver,
            coarse_to_fine=paper.coarse_to_fine,
        )  # fmt: skip
    if preset == "draft":
        return replace(own, steps=min(own.steps, DRAFT_STEPS), freeinit_iterations=1)
    if own.steps <= STANDARD_STEPS:
        return own
    return replace(own, steps=STANDARD_STEPS, solver=STANDARD_SOLVER)


def with_choices(sampler: SamplerSettings, job: JobSettings) -> SamplerSettings:
    """A preset's sampler with what a job's own settings say otherwise."""
    chosen = {
        "steps": job.steps,
        "freeinit_iterations": job.passes,
        "solver": job.solver,
        "guidance_scale": job.guidance,
        "coarse_to_fine": job.coarse_to_fine,
        "negative_prompt": job.negative_prompt or None,
    }
    return replace(sampler, **{name: value for name, value in chosen.items() if value is not None})


def sds_settings(preset: str) -> SdsSettings | None:
    """How 4D-SDS refines the fitted motion; None where it is left out, as in all presets but the paper's.

    `benchmarks/sds.py`, mean unexplained motion: of the starter model's videos .61 before, .50 after, of which .54 by
    ARAP alone; of better ones (the true motion, degraded) .18 before and .22 after. And it takes longer than all the
    rest of a job.
    """
    return SdsSettings() if preset == "paper" else None
