"""The UNet part of the parity check: a folder with a network of the reference, its inputs and its outputs.

Everything about sizes is read from the folder's config.json: views, frames, latent size, levels, widths, heads,
groups. What its list of files names must be there; of what it does not name, trace.json, sine_pos_2d.safetensors and
the outputs beside `output` are compared where they are there. The reference orders images ``(b n f)`` where the network
here orders them ``(b f n)``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from backend.mv_vdm.attention import Layout, SpatioTemporalProcessor, TextAndImageProcessor
from backend.mv_vdm.layers import LayerFunctions, run_motion_module, run_spatial_transformer
from backend.mv_vdm.positions import sine_table_2d
from backend.mv_vdm.unet import MVVDMUNet

UNET_LIMIT = 1e-5  # relative L2, float32 on the CPU
ROUNDING = 2.0**-25  # what writing numbers as float32 costs: the least floor of a table
DOUBLE_LIMIT = 1e-10  # float64 against the reference's float64
TABLE_LIMIT = 1e-6
TRACE_LIMIT = 1e-4  # a few single numbers scatter more than the norm of a tensor


class SetError(Exception):
    """A folder's files are missing or damaged; the message is one plain sentence."""


@dataclass(frozen=True)
class Row:
    """One comparison: relative L2 error, what is allowed, and the reference's own noise floor.

    floor: the error of the reference's float32 result against float64: the reference's where it tells its own, else
        this code's, whose float64 forward pass equals the reference's to 15 digits. None where nothing is rounded.
    """

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


def compare(
    name: str,
    compute: Callable[[torch.dtype], Tensor],
    wanted: Tensor,
    limit: float,
    floor: float | None = None,
    floors: bool = True,
) -> Row:
    """A row of what ``compute`` gives in float32; its floor is what it gives in float64, unless it is known."""
    if floor is None and floors:
        floor = relative(compute(torch.float64), wanted)
    return Row(name, relative(compute(torch.float32), wanted), limit, floor)


def in_type(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The same with all floating-point tensors in one type."""
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def read_json(path: Path) -> dict | list:
    """Raises ``SetError``."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SetError(f"There is no file {path.name} in {path.parent}.") from None
    except (OSError, ValueError, RecursionError):
        raise SetError(f"The file {path.name} in {path.parent} can't be read.") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Raises ``SetError``."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise SetError(f"There is no file {path.name} in {path.parent}.") from None
    except (OSError, ValueError, SafetensorError):
        raise SetError(f"The file {path.name} in {path.parent} can't be read.") from None


@dataclass(frozen=True)
class UNetSet:
    """A folder in the format of ``golden/A``."""

    folder: Path
    config: dict

    @classmethod
    def open(cls, folder: Path) -> UNetSet:
        if not folder.is_dir():
            raise SetError(f"There is no folder {folder}.")
        return cls(folder, read_json(folder / "config.json"))

    @property
    def floor(self) -> float | None:
        """Of the whole network, as the reference measured it."""
        return self.config.get("noise_floor_float32_vs_float64", {}).get("rel_l2")

    def tensors(self, name: str) -> dict[str, Tensor]:
        return read_tensors(self.folder / name)

    def has(self, name: str) -> bool:
        """Whether a file is to be compared."""
        return name in self.config["files"] or (self.folder / name).is_file()

    def build(self, i2v_cond_time_zero: bool = False) -> MVVDMUNet:
        """Our UNet of this size, with random weights. Raises ``SetError``."""
        try:
            unet, motion, adapter = (self.config[part] for part in ("unet_config", "motion_config", "ip_adapter"))
            same = (
                "in_channels out_channels block_out_channels layers_per_block norm_num_groups norm_eps "
                "cross_attention_dim num_attention_heads camera_embedding_dim"
            ).split()
            return MVVDMUNet(
                **{name: unet[name] for name in same},
                down_block_types=[short_kind(kind, "Down") for kind in unet["down_block_types"]],
                up_block_types=[short_kind(kind, "Up") for kind in unet["up_block_types"]],
                motion_num_attention_heads=motion["motion_num_attention_heads"],
                motion_max_seq_length=motion["motion_max_seq_length"],
                num_image_tokens=adapter["num_tokens"],
                image_embed_dim=adapter["image_embed_dim"],
                i2v_cond_time_zero=i2v_cond_time_zero,
            )
        except LookupError as error:
            raise SetError(f"The config.json of {self.folder} does not say {error}, which a network needs.") from None
        except (TypeError, ValueError, RuntimeError, ArithmeticError, AttributeError, AssertionError):
            raise SetError(f"No network can be built from the config.json of {self.folder}.") from None

    def network(self, i2v_cond_time_zero: bool = False, dtype: torch.dtype = torch.float32) -> MVVDMUNet:
        """The same with the reference's weights. Raises ``SetError``."""
        network, tensors = self.build(i2v_cond_time_zero), self.tensors("weights.safetensors")
        wanted = network.state_dict()
        shapes, ours = ({key: tensor.shape for key, tensor in state.items()} for state in (tensors, wanted))
        differ = [key for key in sorted(shapes.keys() | ours.keys()) if shapes.get(key) != ours.get(key)]
        if differ:
            raise SetError(f"{len(differ)} weights of {self.folder} differ in name or shape, for example {differ[0]}.")
        network.load_state_dict(tensors)
        return nn.Module.to(network, dtype).eval()


def short_kind(kind: str, plain: str) -> str:
    """A level's kind: "CrossAttn" in "CrossAttnDownBlock2D", or the plain one."""
    return "CrossAttn" if kind.startswith("CrossAttn") else plain


@torch.no_grad()
def unet_rows(folder: Path) -> Iterator[Row]:
    """Forward passes, captured modules, the trace and the position tables of one folder. Raises ``SetError``."""
    data = UNetSet.open(folder)
    network, inputs = data.network(), data.tensors("forward.safetensors")
    yield from forward_rows(data, network, inputs)
    double = data.network(dtype=torch.float64)
    entries = data.config["files"].items()
    captures = [(entry["module"], file) for file, entry in entries if isinstance(entry, dict) and "module" in entry]
    if not captures:
        raise SetError(f"The config.json of {folder} names no captured modules.")
    for name, file in captures:
        capture = data.tensors(file)

        def run(dtype: torch.dtype, name: str = name, capture: dict[str, Tensor] = capture) -> Tensor:
            own = double if dtype == torch.float64 else network
            both = in_type(capture, dtype), in_type(inputs, dtype)
            return run_module(own, own.get_submodule(name), *both, data.config["num_views"])

        yield compare(name, run, capture["output"], UNET_LIMIT)
    if data.has("sine_pos_2d.safetensors"):
        for name, wanted in data.tensors("sine_pos_2d.safetensors").items():
            _, channels, height, width = wanted.shape
            table = sine_table_2d(height, width, channels).T.reshape(wanted.shape)
            yield Row(f"position table {name}", relative(table, wanted), TABLE_LIMIT, ROUNDING)


def forward_rows(data: UNetSet, network: MVVDMUNet, inputs: dict[str, Tensor]) -> Iterator[Row]:
    """The whole network, in both settings, in float64, and its sub-modules on the way."""
    views, named = data.config["num_views"], data.config["files"].get("forward.safetensors", {})
    output, seen = traced_forward(network, inputs, views)
    yield Row("UNet forward", relative(output, inputs["output"]), UNET_LIMIT, data.floor)

    def wanted(name: str) -> bool:
        return name in inputs or name in named

    if wanted("output_float64"):
        yield Row("UNet forward against float64", relative(output, inputs["output_float64"]), UNET_LIMIT, data.floor)
        double = forward(data.network(dtype=torch.float64), in_type(inputs, torch.float64), views)
        yield Row("UNet forward in float64", relative(double, inputs["output_float64"]), DOUBLE_LIMIT)
    if wanted("output_i2v_cond_time_zero"):
        with_zero = forward(data.network(i2v_cond_time_zero=True), inputs, views)
        error = relative(with_zero, inputs["output_i2v_cond_time_zero"])
        yield Row("UNet forward, i2v_cond_time_zero", error, UNET_LIMIT, data.floor)
    if data.has("trace.json"):
        yield from trace_rows(read_json(data.folder / "trace.json"), seen)


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
        heard = LayerFunctions(*map(listening, astuple(network.functions)))
        stack.enter_context(patch.object(network, "functions", heard))
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
