"""The UNet part of the parity check: a folder with a network of the reference, its inputs and its outputs.

Everything about sizes is read from the folder's config.json: views, frames, latent size, widths, heads, groups. The
reference orders images ``(b n f)`` where the network here orders them ``(b f n)``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from safetensors.torch import load_file
from torch import Tensor, nn

from backend.mv_vdm import unet as unet_code
from backend.mv_vdm.attention import Layout, SpatioTemporalProcessor, TextAndImageProcessor
from backend.mv_vdm.positions import sine_table_2d
from backend.mv_vdm.unet import MVVDMUNet, run_motion_module, run_spatial_transformer

UNET_LIMIT = 1e-5  # relative L2, float32 on the CPU
TABLE_LIMIT = 1e-6
TRACE_LIMIT = 1e-4  # a few single numbers scatter more than the norm of a tensor


@dataclass(frozen=True)
class Row:
    """One comparison: relative L2 error, what is allowed, and the reference's own noise floor where it is known."""

    name: str
    error: float
    limit: float
    floor: float | None = None

    @property
    def holds(self) -> bool:
        return self.error <= self.limit  # false for nan


def relative(got: Tensor, wanted: Tensor) -> float:
    """Relative L2 error; nan where the shapes differ, so that no broadcast hides a mistake."""
    if got.shape != wanted.shape:
        return float("nan")
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


@dataclass(frozen=True)
class UNetSet:
    """A folder in the format of ``golden/A``."""

    folder: Path
    config: dict

    @classmethod
    def open(cls, folder: Path) -> UNetSet:
        return cls(folder, json.loads((folder / "config.json").read_text(encoding="utf-8")))

    def tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / name)

    def build(self, i2v_cond_time_zero: bool = False) -> MVVDMUNet:
        """Our UNet of this size, with random weights."""
        unet, motion, adapter = (self.config[part] for part in ("unet_config", "motion_config", "ip_adapter"))
        same = (
            "in_channels out_channels block_out_channels layers_per_block norm_num_groups norm_eps "
            "cross_attention_dim num_attention_heads camera_embedding_dim down_block_types up_block_types"
        ).split()
        return MVVDMUNet(
            **{name: unet[name] for name in same},
            motion_num_attention_heads=motion["motion_num_attention_heads"],
            motion_max_seq_length=motion["motion_max_seq_length"],
            num_image_tokens=adapter["num_tokens"],
            image_embed_dim=adapter["image_embed_dim"],
            i2v_cond_time_zero=i2v_cond_time_zero,
        )

    def network(self, i2v_cond_time_zero: bool = False) -> MVVDMUNet:
        """The same with the reference's weights."""
        network = self.build(i2v_cond_time_zero)
        network.load_state_dict(self.tensors("weights.safetensors"))
        return network.eval()


@torch.no_grad()
def unet_rows(folder: Path) -> Iterator[Row]:
    """Forward passes, captured modules, the trace and the position tables of one folder."""
    data = UNetSet.open(folder)
    network, inputs = data.network(), data.tensors("forward.safetensors")
    floor = data.config["noise_floor_float32_vs_float64"]["rel_l2"]
    output, seen = traced_forward(network, inputs, data.config["num_views"])
    yield Row("UNet forward", relative(output, inputs["output"]), UNET_LIMIT, floor)
    yield Row("UNet forward against float64", relative(output, inputs["output_float64"]), UNET_LIMIT, floor)
    with_zero = forward(data.network(i2v_cond_time_zero=True), inputs, data.config["num_views"])
    wanted = inputs["output_i2v_cond_time_zero"]
    yield Row("UNet forward, i2v_cond_time_zero", relative(with_zero, wanted), UNET_LIMIT, floor)
    for file, entry in data.config["files"].items():
        if isinstance(entry, dict) and "module" in entry:
            yield Row(entry["module"], module_error(data, network, inputs, entry["module"], file), UNET_LIMIT)
    yield from trace_rows(json.loads((folder / "trace.json").read_text(encoding="utf-8")), seen)
    for name, wanted in data.tensors("sine_pos_2d.safetensors").items():
        _, channels, height, width = wanted.shape
        table = sine_table_2d(height, width, channels).T.reshape(wanted.shape)
        yield Row(f"position table {name}", relative(table, wanted), TABLE_LIMIT)


def forward(network: MVVDMUNet, inputs: dict[str, Tensor], views: int) -> Tensor:
    names = ("sample", "timestep", "encoder_hidden_states", "camera", "image_embeds")
    return network(*(inputs[name] for name in names), num_views=views)


def traced_forward(network: MVVDMUNet, inputs: dict[str, Tensor], views: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and that of every sub-module by name.

    The network runs most blocks through functions of its own instead of the blocks' ``forward``, so these are listened
    to as well.
    """
    names = {module: name for name, module in network.named_modules()}
    seen: dict[str, Tensor] = {}

    def listen(module: nn.Module, inputs: tuple, output: Tensor | list[Tensor]) -> None:
        seen[names[module]] = output[0] if isinstance(output, list) else output

    def listening(function):
        def run(module: nn.Module, *rest):
            seen[names[module]] = output = function(module, *rest)
            return output

        return run

    with ExitStack() as stack:
        for module in names:
            stack.callback(module.register_forward_hook(listen).remove)
        for name in ("run_resnet", "run_spatial_transformer", "run_motion_module"):
            stack.enter_context(patch.object(unet_code, name, listening(getattr(unet_code, name))))
        return forward(network, inputs, views), seen


def trace_rows(trace: list[dict], seen: dict[str, Tensor]) -> Iterator[Row]:
    """Mean, spread and first eight values of the sub-modules' outputs, over the reference's spread; the worst of all.

    Both orders of images begin with the same one, and neither mean nor spread depends on the order. Blocks that the
    network here does not run as a whole (the middle block, upsamplers) can't be heard.
    """
    worst, where, found = 0.0, "", 0
    for entry in trace:
        output = seen.get(entry["module"])
        if output is None:
            continue
        found += 1
        got = torch.tensor([output.mean(), output.std(), *output.flatten()[:8]], dtype=torch.float64)
        wanted = torch.tensor([entry["mean"], entry["std"], *entry["first8"]], dtype=torch.float64)
        error = float((got - wanted).abs().max() / entry["std"])
        if not error <= worst:
            worst, where = error, entry["module"]
    yield Row(
        f"trace of {found} of {len(trace)} sub-modules, worst {where}", worst if found else float("nan"), TRACE_LIMIT
    )


def module_error(data: UNetSet, network: MVVDMUNet, inputs: dict[str, Tensor], name: str, file: str) -> float:
    """The error of one captured module, run alone on the reference's input."""
    capture = data.tensors(file)
    got = run_module(network, network.get_submodule(name), capture, inputs, data.config["num_views"])
    return relative(got, capture["output"])


def run_module(
    network: MVVDMUNet, module: nn.Module, capture: dict[str, Tensor], inputs: dict[str, Tensor], views: int
) -> Tensor:
    """A captured module's output in the reference's layout."""
    hidden, (rows, _, frames, height, width) = capture["hidden_states"], inputs["sample"].shape
    sizes = (rows // views, views, frames)

    def layout(cells: int, image_tokens: Tensor | None = None) -> Layout:
        return Layout(rows // views, frames, views, *level_size(cells, height, width), image_tokens)

    if isinstance(module, AnimateDiffTransformer3D):
        images = ours(hidden, sizes)
        return theirs(run_motion_module(module, images, layout(height * width)), sizes)
    if isinstance(module, Transformer2DModel):
        tokens = network.encoder_hid_proj([inputs["image_embeds"][:, None]])[0][:, 0]
        images = ours(hidden, sizes).contiguous(memory_format=torch.channels_last)
        text = inputs["encoder_hidden_states"]
        return theirs(run_spatial_transformer(module, images, text, layout(height * width, tokens)), sizes)
    if isinstance(module.processor, SpatioTemporalProcessor):  # [(b n l), f, c]
        by_cell = hidden.unflatten(0, (*sizes[:2], -1))  # [b, n, l, f, c]
        cells = by_cell.shape[2]
        got = module(by_cell.permute(0, 3, 1, 2, 4).flatten(0, 2), layout=layout(cells))
        return got.unflatten(0, (sizes[0], frames, views)).permute(0, 2, 3, 1, 4).flatten(0, 2)
    if isinstance(module.processor, TextAndImageProcessor):
        at_level = layout(hidden.shape[1], capture["encoder_hidden_states_ip"][:, 0])
        return theirs(module(ours(hidden, sizes), capture["encoder_hidden_states_text"], layout=at_level), sizes)
    return theirs(module(ours(hidden, sizes), layout=layout(hidden.shape[1])), sizes)


def level_size(cells: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of the level with so many cells; each has half the size of the one before, rounded up."""
    while height * width > cells:
        height, width = (height + 1) // 2, (width + 1) // 2
    return height, width


def ours(images: Tensor, sizes: tuple[int, int, int]) -> Tensor:
    """[(b n f), ...] -> [(b f n), ...]; sizes are (b, n, f)."""
    return images.unflatten(0, sizes).transpose(1, 2).flatten(0, 2)


def theirs(images: Tensor, sizes: tuple[int, int, int]) -> Tensor:
    """[(b f n), ...] -> [(b n f), ...]."""
    batch, views, frames = sizes
    return images.unflatten(0, (batch, frames, views)).transpose(1, 2).flatten(0, 2)
