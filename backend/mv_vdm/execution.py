"""How a model is held and run: its precision, and how much memory it may use. The numbers differ by rounding only."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers.hooks import apply_layerwise_casting
from torch import nn

# Layers that read the type of their own weights, and must therefore be in the type that is computed in.
NEVER_STORED = ("patch_embed", "encoder_hid_proj")


@dataclass(frozen=True)
class MemoryMode:
    """What is given up for memory.

    park_unused: the encoders and the VAE wait in the machine's memory while they have nothing to do.
    split_guidance: the conditional and the unconditional half run one after the other: no work is shared.
    decode_batch: pictures that the VAE decodes at once.
    """

    name: str
    park_unused: bool
    split_guidance: bool
    decode_batch: int


FAST = MemoryMode("fast", park_unused=False, split_guidance=False, decode_batch=16)
BALANCED = MemoryMode("balanced", park_unused=True, split_guidance=False, decode_batch=4)
LOW = MemoryMode("low", park_unused=True, split_guidance=True, decode_batch=1)
MODES = {mode.name: mode for mode in (FAST, BALANCED, LOW)}  # from the fastest to the smallest

# What the released model needs beside the driver, with 16 frames at 256 pixels: `benchmarks/mv_vdm_speed.py` counts
# and measures it; a gigabyte is left for the rest. On a CPU `fast` computes in float32 and the others hold half.
NEEDED_GB = {"gpu": {"fast": 8.5, "balanced": 5.7}, "cpu": {"fast": 16.0, "balanced": 11.0}}


@dataclass(frozen=True)
class Execution:
    """How the networks are held and run.

    dtype: what the UNet and the encoders compute in; latents, guidance and the solver are float32 throughout.
    vae_dtype: likewise of the VAE, which overflows in float16; None: the same.
    stored: what the weights of linear and convolution layers are kept in between their calls; None: ``dtype``.
    compile: let torch compile the UNet: minutes at the first step (and a C++ compiler), then less time per step.
    """

    dtype: torch.dtype = torch.float32
    vae_dtype: torch.dtype | None = None
    stored: torch.dtype | None = None
    mode: MemoryMode = FAST
    compile: bool = False

    def place(self, network: nn.Module, device: torch.device | str, is_vae: bool = False) -> None:
        """Brings a network into its precision, and onto the device."""
        dtype = self.vae_dtype or self.dtype if is_vae else self.dtype
        if self.stored is None:
            on_cpu = torch.device(device).type == "cpu"
            # GPUs convolve channels-last images, as the UNet's are, with weights of the same layout.
            layout = torch.preserve_format if on_cpu else torch.channels_last
            # torch's own `to`: diffusers' warns of layers that want float32, of which there are none.
            nn.Module.to(network, device, dtype, memory_format=layout)
            return
        network.to(device)
        apply_layerwise_casting(network, self.stored, dtype, skip_modules_pattern=NEVER_STORED)
        for module in network.modules():
            if not hasattr(module, "_diffusers_hook"):
                for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                    if tensor.is_floating_point():
                        tensor.data = tensor.data.to(dtype)


def pick_mode(free_gb: float, device: torch.device) -> MemoryMode:
    """The fastest mode in which the released model fits into the free memory."""
    needed = NEEDED_GB["cpu" if device.type == "cpu" else "gpu"]
    return next((MODES[name] for name, gb in needed.items() if gb <= free_gb), LOW)


def next_smaller(mode: MemoryMode) -> MemoryMode | None:
    """The mode that needs less memory, None after the last."""
    return dict(pairwise(MODES.values())).get(mode)


def for_large_model(device: torch.device, mode: MemoryMode) -> Execution:
    """How a model of the released size runs.

    GPUs: float16, as the released pipeline; on the golden network it is 8 times nearer to float32 than bfloat16 is.
    CPUs: those with matrix units for bfloat16 (AMX) compute in it, several times faster than in float32; few others
    compute in half precision at all, so where memory is short they keep half and compute whole.
    """
    if device.type == "cuda":
        safe = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
        return Execution(torch.float16, vae_dtype=safe, mode=mode)
    if device.type == "mps":
        return Execution(torch.float16, vae_dtype=torch.float32, mode=mode)
    abilities = torch.cpu.get_capabilities()
    if abilities.get("amx_bf16") or (mode != FAST and abilities.get("avx512_bf16")):
        return Execution(torch.bfloat16, mode=mode)
    return Execution(torch.float32, stored=None if mode == FAST else torch.bfloat16, mode=mode)
