"""What draft, standard and paper mean for the video; `backend.motion.settings` says it for the fit."""

from __future__ import annotations

from dataclasses import replace

from backend.mv_vdm.sampling import SamplerSettings

DRAFT_STEPS = 8  # a small model that predicts clean latents needs no more, and for a look a big one neither
STANDARD_STEPS = 25


def sampler_settings(preset: str, own: SamplerSettings) -> SamplerSettings:
    """How to sample a model, from how it wants to be sampled (`own`): its guidance and clamping are always kept.

    draft: few steps in one pass. standard: one pass of the model's own steps. paper: DDIM, 25 steps, three passes.
    """
    if preset == "paper":
        paper = SamplerSettings()
        return replace(own, steps=paper.steps, freeinit_iterations=paper.freeinit_iterations, solver=paper.solver)
    most = DRAFT_STEPS if preset == "draft" else STANDARD_STEPS
    return replace(own, steps=min(own.steps, most), freeinit_iterations=1)
