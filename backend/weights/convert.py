"""From the released files to one folder that `MVVDM.from_pretrained` loads.

The UNet's tensors keep their names (reference: the official `inference.py`): MVDream's UNet, over it the IP-Adapter's
layers, over them AnimateDiff's motion adapter where it is needed, over all the trained motion modules. Nothing is
loaded as a whole: tensors are mapped from the originals and pass through memory one shard at a time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from diffusers.models.embeddings import SinusoidalPositionalEmbedding
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModelWithProjection

from backend.mv_vdm.checkpoints import (
    WeightsError,
    check_tensors,
    read_json_file,
    stored_bytes,
    write_manifest,
    write_tensors,
)
from backend.mv_vdm.pipeline import ModelInfo
from backend.mv_vdm.unet import MVVDMUNet
from backend.weights.originals import Original, Originals, read_original, unwrap
from backend.weights.space import check_space

Tensors = dict[str, torch.Tensor]

# What the released pipeline samples with (`configs/inference/inference.yaml`), not the scheduler of MVDream's folder.
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "steps_offset": 1,
    "clip_sample": False,
}
HEADS = 8  # the official code builds the UNet with 8 heads everywhere, whatever MVDream's attention_head_dim says
TIME_TABLE = ".time_pos_embed.pe"
ADAPTER_TABLE = ".pos_embed.pe"  # AnimateDiff's own time tables, which MV-VDM takes out
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # diffusers before 0.18


@dataclass(frozen=True)
class ConvertSettings:
    """How the converted model is stored.

    dtype: float16 keeps three more bits of every weight than bfloat16 at the same size, and is what the official
        guidance computes in; a value that it can't hold is an error, never an infinity.
    shard_bytes: the largest file; about this much memory is in use at a time.
    """

    dtype: str = "float16"
    shard_bytes: int = 1_000_000_000

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)


@dataclass(frozen=True)
class Network:
    """One network, ready to be written: its tensors fit it."""

    config: dict
    tensors: Tensors


def lacks_adapter(originals: Originals) -> bool:
    """Whether the motion checkpoint leaves parts of AnimateDiff's motion adapter open."""
    parts = _unet_parts(originals)
    wanted = _unet(originals, parts).state_dict()
    _check_motion(originals["motion"], parts["motion"], wanted)
    return any(name not in parts["motion"] for name in wanted if "motion_modules." in name and not _is_new(name))


def _is_new(name: str) -> bool:
    """Whether only Animate3D's checkpoint can hold a tensor: a layer that neither MVDream nor AnimateDiff has."""
    return "i2v." in name or ("motion_modules." in name and ".processor." in name)


def _check_motion(original: Original, motion: Tensors, wanted: Mapping[str, torch.Tensor]) -> None:
    """Raises `WeightsError` unless the checkpoint is one of this model's, and holds all that it alone can hold."""
    foreign = sorted(motion.keys() - wanted.keys())
    missing = [name for name in wanted if _is_new(name) and not name.endswith(TIME_TABLE) and name not in motion]
    if foreign or missing:
        raise WeightsError(
            f"The file {original.path.name} does not hold this model's motion modules: {len(missing)} tensors are "
            f"missing and {len(foreign)} are foreign, for example {(missing + foreign)[0]}.",
            "Choose a checkpoint that was trained from Animate3D's.",
        )


def convert(originals: Originals, folder: Path, settings: ConvertSettings) -> None:
    """Writes the model folder, whole or not at all; raises `WeightsError`.

    Args:
        originals: all parts of the required sources; of the motion adapter where `lacks_adapter` says so.
        folder: replaced where it exists.
    """
    networks: dict[str, Callable[[], Network]] = {
        "unet": lambda: _convert_unet(originals),
        "vae": lambda: _convert_vae(originals),
        "text_encoder": lambda: _convert_clip(originals, "text", CLIPTextConfig, CLIPTextModel),
        "image_encoder": lambda: _convert_clip(originals, "image", CLIPVisionConfig, CLIPVisionModelWithProjection),
    }
    info = _guarded(lambda: _model_info(originals), originals["unet config"])
    # Each network is opened twice, to be checked and to be written, so that the pages of only one are in memory.
    size = sum(stored_bytes(t, settings.torch_dtype) for build in networks.values() for t in build().tensors.values())
    check_space([(folder.parent, size)])
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for name, build in networks.items():
            network = build()
            write_tensors(partial / name, network.tensors, settings.shard_bytes, settings.torch_dtype)
            _write_json(partial / name / "config.json", network.config)
            del network
        _copy_tokenizer(originals, partial / "tokenizer")
        DDIMScheduler(**SCHEDULE).save_config(partial / "scheduler")
        _write_json(partial / "model.json", asdict(info))
        (partial / "LICENCES.txt").write_text(licence_text(originals), encoding="utf-8")
        write_manifest(partial, _about(originals, settings))
        _put_in_place(partial, folder)
    except (OSError, SafetensorError) as error:  # a full disk, or a model that is in use on Windows
        reason = getattr(error, "strerror", None) or str(error)
        raise WeightsError(f"The folder {folder} can't be written: {reason}.", "Mend that and convert again.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(partial: Path, folder: Path) -> None:
    """Swaps folders, so that there is a whole model at every moment but one."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _convert_unet(originals: Originals) -> Network:
    """The 1614 tensors (at full size) from four files."""
    parts = _unet_parts(originals)
    network = _unet(originals, parts)
    wanted = network.state_dict()
    _check_motion(originals["motion"], parts["motion"], wanted)
    tensors = parts["unet"] | _rename_ip_adapter(parts["ip-adapter"], list(wanted), originals["ip-adapter"])
    tensors |= {name: t for name, t in parts.get("motion-adapter", {}).items() if not name.endswith(ADAPTER_TABLE)}
    tensors |= _time_tables(wanted) | parts["motion"]
    _check(network, tensors, [originals[part] for part in parts])
    return Network(json.loads(network.to_json_string()), tensors)


def _unet_parts(originals: Originals) -> dict[str, Tensors]:
    names = [name for name in ("unet", "ip-adapter", "motion-adapter", "motion") if name in originals]
    return {name: unwrap(read_original(originals[name].path)) for name in names}


def _unet(originals: Originals, parts: Mapping[str, Tensors]) -> MVVDMUNet:
    """The network on the meta device; its shape follows from MVDream's config and the shapes of the other files."""
    source = _config(originals["unet config"])
    projection = parts["ip-adapter"].get("image_proj.proj.weight")
    table = next((t for name, t in parts["motion"].items() if name.endswith(TIME_TABLE)), None)
    if projection is None or projection.dim() != 2:
        raise WeightsError(f"The file {originals['ip-adapter'].path.name} is no IP-Adapter for Stable Diffusion 1.5.")

    def build() -> MVVDMUNet:
        same = ("in_channels", "out_channels", "block_out_channels", "layers_per_block", "norm_num_groups", "norm_eps")
        return MVVDMUNet(
            **{name: source[name] for name in same},
            down_block_types=[kind.removesuffix("DownBlock2D") or "Down" for kind in source["down_block_types"]],
            up_block_types=[kind.removesuffix("UpBlock2D") or "Up" for kind in source["up_block_types"]],
            cross_attention_dim=source["cross_attention_dim"],
            camera_embedding_dim=source["camera_embedding_dim"],
            num_attention_heads=HEADS,
            motion_num_attention_heads=HEADS,
            motion_max_seq_length=32 if table is None else table.shape[1],
            image_embed_dim=projection.shape[1],
            num_image_tokens=projection.shape[0] // source["cross_attention_dim"],
        )

    return _on_meta(build, originals["unet config"])


def _rename_ip_adapter(tensors: Tensors, wanted: list[str], original: Original) -> Tensors:
    """IP-Adapter's numbers to names: odd ones count the cross-attentions, those of the way down, then up, then mid."""
    order = {"down_blocks": 0, "up_blocks": 1, "mid_block": 2}
    layers = [name.removesuffix("to_k_ip.0.weight") for name in wanted if name.endswith("to_k_ip.0.weight")]
    layers.sort(key=lambda name: order[name.split(".")[0]])
    projection = "encoder_hid_proj.image_projection_layers.0"
    names = {f"image_proj.proj.{kind}": f"{projection}.image_embeds.{kind}" for kind in ("weight", "bias")}
    names |= {f"image_proj.norm.{kind}": f"{projection}.norm.{kind}" for kind in ("weight", "bias")}
    for index, layer in enumerate(layers):
        for kind in ("to_k_ip", "to_v_ip"):
            names[f"ip_adapter.{2 * index + 1}.{kind}.weight"] = f"{layer}{kind}.0.weight"
    if tensors.keys() != names.keys():
        odd = sorted(tensors.keys() ^ names.keys())
        raise WeightsError(
            f"The file {original.path.name} is an IP-Adapter of another model: {len(odd)} tensors differ, for example "
            f"{odd[0]}."
        )
    return {names[name]: tensor for name, tensor in tensors.items()}


def _time_tables(wanted: Mapping[str, torch.Tensor]) -> Tensors:
    """The sinusoids over time, which a checkpoint of trainable parameters only does not hold."""
    shapes = {name: tensor.shape for name, tensor in wanted.items() if name.endswith(TIME_TABLE)}
    return {name: SinusoidalPositionalEmbedding(shape[2], shape[1]).pe for name, shape in shapes.items()}


def _convert_vae(originals: Originals) -> Network:
    config = _config(originals["vae config"])
    network = _on_meta(lambda: AutoencoderKL.from_config(config), originals["vae config"])
    tensors = {}
    for name, tensor in read_original(originals["vae"].path).items():
        before, _, kind = name.rpartition(".")
        layer, _, last = before.rpartition(".")
        tensors[f"{layer}.{OLD_ATTENTION[last]}.{kind}" if last in OLD_ATTENTION else name] = tensor
    _check(network, tensors, [originals["vae"]])
    return Network(json.loads(network.to_json_string()), tensors)


def _convert_clip(
    originals: Originals, part: str, config_class: type, network_class: Callable[..., nn.Module]
) -> Network:
    """transformers 5 no longer puts `text_model.` before the text encoder's names, and positions are no tensors."""
    source = originals[f"{part} config"]
    content = _config(source)
    config = _guarded(lambda: config_class.from_dict(content), source)
    network = _on_meta(lambda: network_class(config), source)
    tensors = {
        name if part == "image" else name.removeprefix("text_model."): tensor
        for name, tensor in read_original(originals[part].path).items()
        if not name.endswith("position_ids")
    }
    _check(network, tensors, [originals[part]])
    return Network(config.to_dict(), tensors)


def _copy_tokenizer(originals: Originals, folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ("vocabulary", "merges", "config", "specials"):
        original = originals[f"tokenizer {name}"]
        shutil.copyfile(original.path, folder / Path(original.name).name)
    original = originals["tokenizer vocabulary"]
    _guarded(lambda: CLIPTokenizer.from_pretrained(folder, local_files_only=True)("a"), original)


def _model_info(originals: Originals) -> ModelInfo:
    """The released model's, with the picture size that follows from the networks."""
    unet, vae = _config(originals["unet config"]), _config(originals["vae config"])
    size = unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)
    licences = sorted({original.source.licence.name for original in originals.values()})
    return replace(ModelInfo(), resolution=size, licence=", ".join(licences))


def licence_text(originals: Originals) -> str:
    """Who made what, and on which terms; kept beside the weights."""
    lines = ["This folder was made from the work of others. Their terms go with it.", ""]
    for source in dict.fromkeys(original.source for original in originals.values()):
        lines += [
            source.repository,
            f"    {source.licence.name}: {source.licence.link}",
            f"    {source.licence.summary}",
        ]
    return "\n".join(lines) + "\n"


def _about(originals: Originals, settings: ConvertSettings) -> dict:
    """What the manifest says beside its list of files."""
    sources = {}
    for original in originals.values():
        source = original.source
        entry = sources.setdefault(
            source.repository,
            {
                "revision": source.revision,
                "commit": original.commit,
                "licence": asdict(source.licence),
                "files": {},
            },
        )
        entry["files"][original.name] = original.sha256
    return {"sources": sources, "dtype": settings.dtype, "converted": datetime.now(UTC).isoformat(timespec="seconds")}


def _config(original: Original) -> dict:
    return read_json_file(original.path)


def _check(network: nn.Module, tensors: Tensors, originals: list[Original]) -> None:
    """`check_tensors`, naming files instead of a folder."""
    names = " and ".join(original.path.name for original in originals)
    check_tensors(network, tensors, Path(names))


def _on_meta(build: Callable[[], nn.Module], original: Original) -> nn.Module:
    """A network's shapes without its memory."""
    with torch.device("meta"):
        return _guarded(build, original)


def _guarded(build: Callable[[], object], original: Original) -> object:
    """Whatever a library says of a file that makes no sense, the user hears one sentence."""
    try:
        return build()
    except Exception as error:
        raise WeightsError(f"The file {original.name} of {original.source.repository} makes no sense.") from error


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
