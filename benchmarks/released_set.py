"""A set of files in the released layout with random values, at any size: what the weights tool is tried on.

Names and shapes come from the classes that wrote the real files (diffusers' UNet2DConditionModel, MotionAdapter and
AutoencoderKL, transformers' CLIP), built on the meta device; the formats are theirs as well: pickles written by
`torch.save` where the real files are pickles. The old names in them are spelled out here.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel
from diffusers.models.embeddings import TimestepEmbedding
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from backend.mv_vdm.unet import MVVDMUNet
from backend.weights.sources import IP_ADAPTER, MOTION, MOTION_ADAPTER, MVDREAM

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Size:
    """How large the networks are; the defaults are the released model's."""

    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    groups: int = 32
    text_width: int = 768
    text_layers: int = 12
    text_length: int = 77
    vocabulary: int = 49408
    vae_widths: tuple[int, ...] = (128, 256, 512, 512)
    image_width: int = 1280
    image_layers: int = 32
    image_projection: int = 1024
    image_size: int = 224
    image_patch: int = 14
    latent_size: int = 32


FULL = Size()
TINY = Size(
    widths=(8, 16, 32, 32),
    groups=8,
    text_width=16,
    text_layers=1,
    text_length=8,
    vocabulary=514,
    vae_widths=(8, 8, 8, 8),
    image_width=32,
    image_layers=1,
    image_projection=8,
    image_size=16,
    image_patch=8,
    latent_size=8,
)
LEVELS = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}


def write_released(root: Path, size: Size = TINY, seed: int = 0) -> None:
    """Writes `root/OWNER/NAME/…` for the four repositories; one file's tensors are in memory at a time."""
    torch.manual_seed(seed)
    mvdream, adapter = root / MVDREAM.repository, root / MOTION_ADAPTER.repository
    write_pickle(mvdream / "unet/diffusion_pytorch_model.bin", mvdream_unet(size))
    write_json(mvdream / "unet/config.json", unet_config(size))
    write_vae(mvdream / "vae", size)
    write_text_encoder(mvdream / "text_encoder", size)
    write_tokenizer(mvdream / "tokenizer", size)
    write_image_encoder(root / IP_ADAPTER.repository / "models/image_encoder", size)
    write_pickle(root / IP_ADAPTER.repository / "models/ip-adapter_sd15.bin", ip_adapter(size))
    write_pickle(root / MOTION.repository / "animate3d_motion_modules.ckpt", {"state_dict": motion_modules(size)})
    adapter.mkdir(parents=True)
    save_file(motion_adapter(size), adapter / "diffusion_pytorch_model.safetensors")


def fill(tensors: Tensors) -> Tensors:
    """Small random values in the place of meta tensors."""
    return {name: torch.empty(t.shape).uniform_(-0.05, 0.05) for name, t in tensors.items()}


def on_meta(build: type, *arguments, **options) -> nn.Module:
    with torch.device("meta"):
        return build(*arguments, **options)


def unet_config(size: Size) -> dict:
    return {
        "_class_name": "MultiViewUNet2DConditionModel",
        "_diffusers_version": "0.24.0",
        "attention_head_dim": 8,
        "block_out_channels": size.widths,
        "camera_embedding_dim": 16,
        "cross_attention_dim": size.text_width,
        **LEVELS,
        "in_channels": 4,
        "layers_per_block": 2,
        "norm_eps": 1e-5,
        "norm_num_groups": size.groups,
        "out_channels": 4,
        "sample_size": size.latent_size,
    }


def mvdream_unet(size: Size) -> Tensors:
    """Stable Diffusion's 686 tensors and the 4 of the camera."""
    shape = unet_config(size)
    shape = {name: shape[name] for name in ("block_out_channels", "norm_num_groups", "cross_attention_dim", *LEVELS)}
    network = on_meta(UNet2DConditionModel, attention_head_dim=8, **shape)
    camera = on_meta(TimestepEmbedding, 16, size.widths[0] * 4)
    return fill(network.state_dict() | {f"camera_embedding.{name}": t for name, t in camera.state_dict().items()})


def motion_adapter(size: Size) -> Tensors:
    network = on_meta(
        MotionAdapter,
        block_out_channels=size.widths,
        motion_num_attention_heads=8,
        motion_norm_num_groups=size.groups,
        motion_max_seq_length=32,
        use_motion_mid_block=True,
    )
    return fill(network.state_dict())


def motion_modules(size: Size) -> Tensors:
    """The 888 trained tensors."""
    network = on_meta(
        MVVDMUNet,
        block_out_channels=size.widths,
        norm_num_groups=size.groups,
        cross_attention_dim=size.text_width,
        image_embed_dim=size.image_projection,
    )
    return fill({name: t for name, t in network.state_dict().items() if "i2v." in name or "motion_modules." in name})


def ip_adapter(size: Size) -> dict[str, Tensors]:
    """Two tables; the second counts the cross-attentions with odd numbers: down, up, mid."""
    a, b, c, d = size.widths
    widths = [a, a, b, b, c, c, c, c, c, b, b, b, a, a, a, d]
    text, layers = size.text_width, {}
    for index, width in enumerate(widths):
        for kind in ("to_k_ip", "to_v_ip"):
            layers[f"{2 * index + 1}.{kind}.weight"] = torch.empty(width, text, device="meta")
    projection = {
        "proj.weight": torch.empty(4 * text, size.image_projection, device="meta"),
        "proj.bias": torch.empty(4 * text, device="meta"),
        "norm.weight": torch.empty(text, device="meta"),
        "norm.bias": torch.empty(text, device="meta"),
    }
    return {"image_proj": fill(projection), "ip_adapter": fill(layers)}


def write_vae(folder: Path, size: Size) -> None:
    """With the names of diffusers' first attention blocks."""
    network = on_meta(
        AutoencoderKL,
        block_out_channels=size.vae_widths,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=size.groups,
    )
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {
        re.sub(r"\.(to_q|to_k|to_v|to_out\.0)\.", lambda match: f".{old[match[1]]}.", name): tensor
        for name, tensor in fill(network.state_dict()).items()
    }
    write_pickle(folder / "diffusion_pytorch_model.bin", tensors)
    write_json(folder / "config.json", dict(network.config))


def write_text_encoder(folder: Path, size: Size) -> None:
    """With the prefix and the position numbers that transformers 4 wrote."""
    config = CLIPTextConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.text_width,
        intermediate_size=4 * size.text_width,
        num_hidden_layers=size.text_layers,
        num_attention_heads=size.text_width // 64 or 2,
        max_position_embeddings=size.text_length,
        bos_token_id=size.vocabulary - 2,
        eos_token_id=size.vocabulary - 1,
    )
    tensors = fill(on_meta(CLIPTextModel, config).state_dict())
    old = {f"text_model.{name}": tensor for name, tensor in tensors.items()}
    old["text_model.embeddings.position_ids"] = torch.arange(size.text_length)[None]
    write_pickle(folder / "pytorch_model.bin", old)
    write_json(folder / "config.json", config.to_dict())


def write_image_encoder(folder: Path, size: Size) -> None:
    config = CLIPVisionConfig(
        hidden_size=size.image_width,
        intermediate_size=4 * size.image_width,
        num_hidden_layers=size.image_layers,
        num_attention_heads=16,
        image_size=size.image_size,
        patch_size=size.image_patch,
        projection_dim=size.image_projection,
        hidden_act="gelu",
    )
    tensors = fill(on_meta(CLIPVisionModelWithProjection, config).state_dict())
    cells = (size.image_size // size.image_patch) ** 2 + 1
    tensors["vision_model.embeddings.position_ids"] = torch.arange(cells)[None]
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    write_json(folder / "config.json", config.to_dict())


def write_tokenizer(folder: Path, size: Size) -> None:
    """CLIP's byte-level vocabulary without any merge, so it spells; the real one has 49 408 entries."""
    letters = sorted(ByteLevel.alphabet())
    marks = ["<|startoftext|>", "<|endoftext|>"]
    entries = [*letters, *(f"{letter}</w>" for letter in letters)]
    entries += [f"<unused{index}>" for index in range(size.vocabulary - len(entries) - 2)]
    write_json(folder / "vocab.json", {entry: index for index, entry in enumerate([*entries, *marks])})
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    special = {
        "bos_token": {"content": marks[0], "lstrip": False, "normalized": True, "rstrip": False, "single_word": False},
        "eos_token": {"content": marks[1], "lstrip": False, "normalized": True, "rstrip": False, "single_word": False},
        "pad_token": marks[1],
        "unk_token": {"content": marks[1], "lstrip": False, "normalized": True, "rstrip": False, "single_word": False},
    }
    write_json(folder / "special_tokens_map.json", special)
    marked = {name: {"__type": "AddedToken", **v} if isinstance(v, dict) else v for name, v in special.items()}
    settings = {"do_lower_case": True, "model_max_length": size.text_length, "tokenizer_class": "CLIPTokenizer"}
    write_json(folder / "tokenizer_config.json", marked | settings)


def write_pickle(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")
