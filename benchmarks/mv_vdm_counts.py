"""What one step of MV-VDM costs, by count: floating-point operations and memory, without a GPU and without weights.

Operations are counted by torch on the meta device, memory on fake tensors: every storage that lives during a forward
pass, at the size it would have. Both count what the code really does; neither knows a GPU's driver or workspaces.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backend.mv_vdm import positions
from backend.mv_vdm import unet as unet_code
from backend.mv_vdm.attention import TextAndImageProcessor
from backend.mv_vdm.execution import MemoryMode
from backend.mv_vdm.unet import MVVDMUNet

GB = 1024.0**3
VIEWS = 4


@dataclass(frozen=True)
class Size:
    """The networks' sizes and what is generated; the defaults are the released model's."""

    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    groups: int = 32
    text_width: int = 768
    text_layers: int = 12
    tokens: int = 77
    vocabulary: int = 49408
    image_width: int = 1280
    image_layers: int = 32
    image_heads: int = 16
    image_embed: int = 1024
    image_size: int = 224
    vae_widths: tuple[int, ...] = (128, 256, 512, 512)
    frames: int = 16
    resolution: int = 256

    @property
    def latent(self) -> int:
        return self.resolution // 8


FULL = Size()
TINY = Size(
    widths=(32, 32, 64, 64),
    text_width=32,
    text_layers=1,
    vocabulary=512,
    image_width=32,
    image_layers=1,
    image_heads=2,
    image_embed=16,
    image_size=28,
    vae_widths=(32, 32, 32, 32),
    frames=4,
    resolution=64,
)
SIZES = {"full": FULL, "tiny": TINY}


def builders(size: Size) -> dict[str, Callable[[], nn.Module]]:
    """How to build each network, with random weights, on whatever device and in whatever type is the default then."""
    text = CLIPTextConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.text_width,
        intermediate_size=4 * size.text_width,
        num_hidden_layers=size.text_layers,
        num_attention_heads=size.text_width // 16 if size.text_width < 64 else size.text_width // 64,
        max_position_embeddings=size.tokens,
        projection_dim=size.text_width,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    image = CLIPVisionConfig(
        hidden_size=size.image_width,
        intermediate_size=4 * size.image_width,
        num_hidden_layers=size.image_layers,
        num_attention_heads=size.image_heads,
        image_size=size.image_size,
        patch_size=14,
        projection_dim=size.image_embed,
    )
    return {
        "unet": lambda: MVVDMUNet(
            block_out_channels=size.widths,
            norm_num_groups=size.groups,
            cross_attention_dim=size.text_width,
            image_embed_dim=size.image_embed,
        ),
        "vae": lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=size.vae_widths,
            layers_per_block=2,
            latent_channels=4,
            sample_size=size.resolution,
        ),
        "text_encoder": lambda: CLIPTextModel(text),
        "image_encoder": lambda: CLIPVisionModelWithProjection(image),
    }


def step_inputs(size: Size, texts: int) -> dict[str, Tensor]:
    """What a step gives to the network: one clip under so many texts (2 with guidance)."""
    return {
        "sample": torch.randn(VIEWS, 4, size.frames, size.latent, size.latent),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(texts * VIEWS, size.tokens, size.text_width),
        "camera": torch.randn(VIEWS, 16),
        "image_embeds": torch.randn(texts * VIEWS, size.image_embed),
    }


def count_flops(size: Size, texts: int) -> int:
    """Operations of one step as it is done here (a multiplication and an addition are two)."""
    with torch.device("meta"):
        network, inputs = builders(size)["unet"]().eval(), step_inputs(size, texts)
        return _flops(network, inputs)


def count_reference_flops(size: Size, texts: int) -> int:
    """Operations of the reference's dense form.

    Every text has a copy of the sample from the start, upsampling convolves the large image, and the embedding and the
    keys and values of text and image tokens are computed anew for each frame.
    """
    with torch.device("meta"):
        network, inputs = builders(size)["unet"]().eval(), step_inputs(size, texts)
        for name in ("sample", "camera"):
            inputs[name] = inputs[name].repeat(texts, *[1] * (inputs[name].dim() - 1))
        with patch.object(unet_code, "upsample", _dense_upsample):
            flops = _flops(network, inputs)
    repeats = texts * VIEWS * (size.frames - 1)
    for module in network.modules():
        processor = getattr(module, "processor", None)
        if isinstance(processor, TextAndImageProcessor):
            flops += 2 * repeats * size.tokens * (module.to_k.weight.numel() + module.to_v.weight.numel())
            of_image = processor.to_k_ip[0].weight.numel() + processor.to_v_ip[0].weight.numel()
            flops += 2 * repeats * network.config.num_image_tokens * of_image
        if hasattr(module, "time_emb_proj"):
            flops += 2 * repeats * module.time_emb_proj.weight.numel()
    return flops


def _dense_upsample(conv: nn.Conv2d, images: Tensor) -> Tensor:
    return conv(F.interpolate(images, scale_factor=2.0, mode="nearest"))


@torch.no_grad()
def _flops(network: nn.Module, inputs: dict[str, Tensor]) -> int:
    with FlopCounterMode(display=False) as counter:
        network(**inputs)
    return counter.get_total_flops()


class _LivingStorages(TorchDispatchMode):
    """Adds up the bytes of all storages that live at the same time."""

    def __init__(self, first: Iterator[Tensor]) -> None:
        super().__init__()
        self._sizes: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
        self.now = self.peak = 0
        for tensor in first:
            self._notice(tensor)

    def _notice(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._sizes:
            self._sizes[storage] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._notice(tensor)
        return out


def count_memory_gb(size: Size, mode: MemoryMode, guided: bool, dtype: torch.dtype = torch.float16) -> dict[str, float]:
    """Gigabytes at the peaks of a step and of decoding, all networks that are resident then counted in.

    The VAE counts in float32, as the largest it may be.
    """
    texts = 2 if guided and not mode.split_guidance else 1
    with _fake_tensors():
        networks = {}
        for name, build in builders(size).items():
            networks[name] = _in_type(build, torch.float32 if name == "vae" else dtype)
        bytes_of = {name: sum(_size(t) for t in _tensors(network)) for name, network in networks.items()}
        inputs = {
            key: value.to(dtype) if value.is_floating_point() else value
            for key, value in step_inputs(size, texts).items()
        }
        step = _peak(networks["unet"], lambda: networks["unet"](**inputs), inputs.values())
        latents = torch.empty(min(mode.decode_batch, VIEWS * size.frames), 4, size.latent, size.latent)
        decode = _peak(networks["vae"], lambda: networks["vae"].decode(latents), [latents])
    others = 0 if mode.park_unused else sum(bytes_of.values()) - bytes_of["unet"] - bytes_of["vae"]
    step += others + (0 if mode.park_unused else bytes_of["vae"])
    decode += others + bytes_of["unet"]
    return {"step": step / GB, "decode": decode / GB}


@contextmanager
def _fake_tensors() -> Iterator[None]:
    """Tensors without memory. The tables that the layers remember must not be fake ones afterwards."""
    positions.remembered.cache_clear()
    try:
        with FakeTensorMode(), torch.device("cpu"):
            yield
    finally:
        positions.remembered.cache_clear()


def _in_type(build: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return build().eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


def _size(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


@torch.no_grad()
def _peak(network: nn.Module, run: Callable[[], object], inputs) -> int:
    with _LivingStorages([*_tensors(network), *inputs]) as living:
        run()
    return living.peak
