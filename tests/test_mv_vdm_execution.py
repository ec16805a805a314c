"""How MV-VDM is held and run: precisions, memory modes, and what a step costs by count."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import nn
from torch._dynamo.backends.debugging import aot_eager

from backend import jobs
from backend.mv_vdm.execution import (
    BALANCED,
    FAST,
    LOW,
    MODES,
    NEEDED_GB,
    Execution,
    for_large_model,
    next_smaller,
    pick_mode,
)
from backend.mv_vdm.layers import upsample
from backend.mv_vdm.pipeline import MVVDM
from backend.mv_vdm.sampling import Conditions, Denoiser, SamplerSettings
from backend.mv_vdm.unet import MVVDMUNet
from backend.protocol import condition_cameras
from benchmarks.mv_vdm_counts import FULL, count_flops, count_memory_gb, count_reference_flops

CPU = torch.device("cpu")
TINY = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttn", "Down"),
    "up_block_types": ("Up", "CrossAttn"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "num_attention_heads": 2,
    "motion_num_attention_heads": 2,
    "image_embed_dim": 8,
}


LAYERS = (ResnetBlock2D, Transformer2DModel, AnimateDiffTransformer3D)


def tiny_unet(**fields) -> MVVDMUNet:
    torch.manual_seed(0)
    return MVVDMUNet(**TINY, **fields).eval().requires_grad_(False)


def tiny_inputs(texts: int = 1) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(4, 4, 3, 8, 8, generator=g),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(4 * texts, 5, 16, generator=g),
        "camera": torch.randn(4, 16, generator=g),
        "image_embeds": torch.randn(4 * texts, 8, generator=g),
    }


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


@torch.no_grad()
@pytest.mark.parametrize("starter", [False, True])
def test_two_texts_of_one_sample_equal_two_samples(starter):
    unet = tiny_unet(pooled_text=starter, i2v_cond_time_zero=starter)
    inputs = tiny_inputs(texts=2)
    pooled = {"pooled_text": torch.randn(8, 16)} if starter else {}
    twice = {name: torch.cat([inputs[name]] * 2) for name in ("sample", "camera")}
    assert relative(unet(**inputs, **pooled), unet(**inputs | twice, **pooled)) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (8, 8)])
def test_upsampling_is_a_convolution_of_the_doubled_image(height, width):
    conv, images = nn.Conv2d(6, 4, 3, padding=1), torch.randn(2, 6, height, width)
    wanted = conv(nn.functional.interpolate(images, scale_factor=2.0, mode="nearest"))
    assert relative(upsample(conv, images), wanted) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 0.005), (torch.bfloat16, 0.04)])
def test_half_precision_stays_near_float32(dtype, bound):
    unet, inputs = tiny_unet(), tiny_inputs()
    wanted = unet(**inputs)
    inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    got = unet.to(dtype)(**inputs)
    assert got.dtype == dtype and 0 < relative(got, wanted) < bound


@torch.no_grad()
def test_stored_weights_are_rounded_and_computed_with_in_float32():
    """Half of the memory, and exactly the numbers of the rounded weights."""
    rounded, stored = tiny_unet(), tiny_unet()
    for module in rounded.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(torch.bfloat16).to(torch.float32)
    rounded.encoder_hid_proj.load_state_dict(tiny_unet().encoder_hid_proj.state_dict())
    Execution(torch.float32, stored=torch.bfloat16).place(stored, "cpu")
    assert stored.conv_in.weight.dtype == torch.bfloat16 and stored.conv_norm_out.weight.dtype == torch.float32
    projection = (network.encoder_hid_proj.image_projection_layers[0].image_embeds for network in (stored, rounded))
    (kept, wanted) = (layer.weight for layer in projection)
    assert kept.dtype == torch.float32 and torch.equal(kept, wanted)
    assert relative(stored(**tiny_inputs()), rounded(**tiny_inputs())) < 1e-6
    assert stored.conv_in.weight.dtype == torch.bfloat16  # also after the call


@torch.no_grad()
def test_split_guidance_gives_the_same_in_two_smaller_batches(released_schedule):
    unet, inputs, batches = tiny_unet(), tiny_inputs(texts=2), []
    unet.register_forward_pre_hook(lambda _, arguments, named: batches.append(len(arguments[2])), with_kwargs=True)
    text, image = inputs["encoder_hidden_states"], inputs["image_embeds"]
    conditions = [Conditions(text[half], image[half], inputs["camera"]) for half in (slice(4), slice(4, 8))]
    joined, split = (
        Denoiser(unet, released_schedule, split_guidance=mode.split_guidance).clean(
            inputs["sample"], inputs["timestep"], *conditions, SamplerSettings()
        )
        for mode in (FAST, LOW)
    )
    assert batches == [8, 4, 4] and relative(split, joined) < 1e-5


@pytest.fixture
def released_schedule():
    from diffusers import DDIMScheduler

    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="linear", clip_sample=False)


def pictures_of(model: MVVDM) -> np.ndarray:
    condition = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 4), np.uint8)
    settings = replace(model.info.sampler, guidance_scale=2.0)
    return model.generate("a cactus is swaying", condition, condition_cameras(), settings)


def test_all_modes_make_the_same_pictures(tiny_weights):
    fast, balanced, low = (
        pictures_of(MVVDM.from_pretrained(tiny_weights, execution=Execution(mode=mode))).astype(int)
        for mode in MODES.values()
    )
    assert np.abs(balanced - fast).max() <= 1 and np.abs(low - fast).max() <= 1


def test_a_large_model_on_a_cpu_runs_through_the_whole_road(tiny_weights):
    model = MVVDM.from_pretrained(tiny_weights, execution=for_large_model(CPU, LOW))
    assert model.unet.conv_in.weight.dtype == torch.bfloat16
    got, wanted = (pictures_of(m)[..., 3].astype(int) for m in (model, MVVDM.from_pretrained(tiny_weights)))
    assert got.shape[:2] == (4, 16) and np.abs(got - wanted).mean() < 5  # of 255


@pytest.mark.skipif(not torch.cuda.is_available(), reason="nothing can be moved out without a GPU")
def test_unused_networks_leave_the_gpu(tiny_weights):
    model = MVVDM.from_pretrained(tiny_weights, "cuda", for_large_model(torch.device("cuda"), BALANCED))
    assert pictures_of(model).any()
    assert model.unet.device.type == "cuda"
    assert {network.device.type for network in (model.vae, model.text_encoder, model.image_encoder)} == {"cpu"}


def test_modes_follow_the_free_memory_and_get_smaller():
    for device, kind in ((CPU, "cpu"), (torch.device("cuda"), "gpu")):
        needed = NEEDED_GB[kind]
        assert pick_mode(needed["fast"], device) is FAST
        assert pick_mode(needed["fast"] - 0.1, device) is BALANCED
        assert pick_mode(needed["balanced"] - 0.1, device) is LOW
    assert [next_smaller(mode) for mode in (FAST, BALANCED, LOW)] == [BALANCED, LOW, None]


def test_small_models_run_whole_and_large_ones_as_the_device_needs(tiny_weights, monkeypatch):
    assert jobs._execution(tiny_weights, CPU, "auto") == Execution()
    assert jobs._execution(tiny_weights, CPU, "low") == Execution(mode=LOW)
    monkeypatch.setattr(jobs, "LARGE_MODEL", 0)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert jobs._execution(tiny_weights, CPU, "fast") == Execution(mode=FAST)
    assert jobs._execution(tiny_weights, CPU, "low") == Execution(stored=torch.bfloat16, mode=LOW)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert jobs._execution(tiny_weights, CPU, "fast") == Execution(torch.bfloat16, mode=FAST)
    low = jobs._execution(tiny_weights, CPU, "low")
    assert low.mode is LOW and torch.bfloat16 in (low.dtype, low.stored)
    monkeypatch.setattr(jobs.devices, "free_memory_gb", lambda device: 1.0)
    assert jobs._execution(tiny_weights, CPU, "auto").mode is LOW


def test_full_size_fits_by_count():
    """The released model at 256 pixels and 16 frames, guided, in half precision; the VAE counts in float32."""
    peaks = {mode: max(count_memory_gb(FULL, mode, guided=True).values()) for mode in MODES.values()}
    assert peaks[FAST] < NEEDED_GB["gpu"]["fast"] < 12 and peaks[LOW] < 5
    assert peaks[BALANCED] + 1 < NEEDED_GB["gpu"]["balanced"]


def test_a_guided_step_does_less_than_the_reference():
    reference = count_reference_flops(FULL, texts=2)
    assert abs(reference / 1e12 - 51.9) < 0.1  # counted on the reference implementation
    assert count_flops(FULL, texts=2) < 0.951 * reference


@torch.no_grad()
def test_the_layers_compile_in_one_piece_and_only_once_for_each_shape():
    """Traced by torch's compiler without a break; what the C++ compiler makes of it is torch's affair."""
    traced = []

    def backend(graph, inputs):
        traced.append(graph)
        return aot_eager(graph, inputs)

    unet = tiny_unet()
    wanted = unet(**tiny_inputs(texts=2))
    unet.compile_layers(fullgraph=True, backend=backend)
    assert relative(unet(**tiny_inputs(texts=2)), wanted) < 1e-5
    kinds = len(traced)
    layers = sum(isinstance(module, LAYERS) for module in unet.modules())
    assert kinds < layers
    unet(**tiny_inputs(texts=2))
    assert len(traced) == kinds
    torch._dynamo.reset()


@torch.no_grad()
def test_layers_that_cannot_be_compiled_run_as_they_are():
    def without_compiler(graph, inputs):
        raise RuntimeError("Cannot find a working triton installation.")

    unet = tiny_unet()
    wanted = unet(**tiny_inputs())
    unet.compile_layers(backend=without_compiler)
    torch.testing.assert_close(unet(**tiny_inputs()), wanted)
    torch._dynamo.reset()


def test_benchmark_runs_and_reports(tmp_path):
    script = Path(__file__).resolve().parent.parent / "benchmarks" / "mv_vdm_speed.py"
    command = [sys.executable, str(script), "--size", "tiny", "--device", "cpu", "--mode", "low", "--no-counts"]
    report = tmp_path / "report.json"
    subprocess.run([*command, "--steps", "2", "--passes", "1", "--report", str(report)], check=True, timeout=300)
    report = json.loads(report.read_text())
    assert report["mode"] == "low" and report["measured"]["steps"] == 2
    assert 0 < report["measured"]["share_of_matmul"] < 1
