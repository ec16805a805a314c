"""What the presets mean for the sampler."""

from dataclasses import replace

import pytest

from backend.mv_vdm.sampling import SamplerSettings
from backend.presets import sampler_settings, sds_settings, with_choices
from backend.protocol import JobSettings

RELEASED = SamplerSettings()
STARTER = SamplerSettings(steps=4, guidance_scale=1.0, freeinit_iterations=1, clean_clamp=3.0)


def test_paper_is_the_released_pipeline_whatever_the_model_wants():
    own = replace(STARTER, solver="dpm", coarse_to_fine=True)
    assert sampler_settings("paper", own) == replace(RELEASED, guidance_scale=1.0, clean_clamp=3.0)
    assert sampler_settings("paper", RELEASED) == RELEASED


def test_standard_takes_fewer_steps_of_a_better_solver_and_keeps_freeinit():
    assert sampler_settings("standard", RELEASED) == replace(RELEASED, steps=15, solver="unipc")


def test_standard_leaves_a_model_that_wants_few_steps_alone():
    assert sampler_settings("standard", STARTER) == STARTER


@pytest.mark.parametrize(("own", "steps"), [(RELEASED, 8), (STARTER, 4)])
def test_draft_is_one_short_pass(own, steps):
    assert sampler_settings("draft", own) == replace(own, steps=steps, freeinit_iterations=1)


def test_a_jobs_own_settings_go_before_the_presets():
    job = JobSettings("it sways", steps=5, passes=2, solver="dpm", guidance=3, coarse_to_fine=True, negative_prompt="x")
    wanted = SamplerSettings(5, 3, 2, "dpm", coarse_to_fine=True, negative_prompt="x", clean_clamp=3.0)
    assert with_choices(STARTER, job) == wanted
    assert with_choices(STARTER, JobSettings("it sways")) == STARTER


def test_only_the_paper_refines_and_by_its_own_numbers():
    assert sds_settings("draft") is None and sds_settings("standard") is None
    sds = sds_settings("paper")
    assert (sds.iterations, sds.sds_weight, sds.rgb_weight, sds.arap_weight) == (250, 0.01, 100.0, 10.0)
    assert (sds.guidance.guidance_scale, sds.guidance.timestep_range(1000, 0.0)) == (5.0, (20, 200))
    assert (sds.rates.grid, sds.rates.network) == (0.01, 1e-4)
