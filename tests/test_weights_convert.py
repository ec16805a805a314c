"""From files in the released layout (random values, smallest size) to a model that runs; and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.mv_vdm.checkpoints import WeightsError, read_tensors, verify_manifest
from backend.mv_vdm.pipeline import MVVDM
from backend.mv_vdm.sampling import SamplerSettings
from backend.protocol import condition_cameras
from backend.weights.command import main
from backend.weights.convert import ConvertSettings, convert, lacks_adapter
from backend.weights.originals import find_originals, own_motion
from backend.weights.sources import IP_ADAPTER, MOTION, MOTION_ADAPTER, MVDREAM, REQUIRED, SOURCES
from benchmarks.released_set import write_released

UNET = f"{MVDREAM.repository}/unet/diffusion_pytorch_model.bin"
CHECKPOINT = f"{MOTION.repository}/animate3d_motion_modules.ckpt"
IP = f"{IP_ADAPTER.repository}/models/ip-adapter_sd15.bin"
IMAGE = f"{IP_ADAPTER.repository}/models/image_encoder/model.safetensors"


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("released")
    write_released(root)
    return root


@pytest.fixture(scope="module")
def converted(released, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "animate3d"
    assert main(["convert", str(released), "--to", str(folder)]) == 0
    return folder


@pytest.fixture
def changed(released, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(released, tmp_path / "released"))


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def refusal(capsys, released: Path, target: Path, *options: str) -> str:
    """What a conversion that must fail says: one line on stderr, and no folder."""
    capsys.readouterr()
    assert main(["convert", str(released), "--to", str(target), *options]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said and not target.exists()
    return said


def test_the_converted_model_generates(converted):
    model = MVVDM.from_pretrained(converted)
    pictures = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 4), np.uint8)
    settings = SamplerSettings(steps=1, guidance_scale=7.5, freeinit_iterations=1)
    video = model.generate("a cactus sways", pictures, condition_cameras(), settings, num_frames=2)
    assert video.shape == (4, 2, 64, 64, 3) and video.std() > 0
    assert model.info.appearance == "color" and model.scheduler.config.beta_schedule == "linear"


def test_every_tensor_comes_from_where_the_official_code_takes_it(released, converted):
    unet, mvdream, motion = read_tensors(converted / "unet"), load(released / UNET), load(released / CHECKPOINT)
    motion, ip = motion["state_dict"], load(released / IP)
    assert (len(unet), len(mvdream), len(motion)) == (1614, 690, 888)
    projection = "encoder_hid_proj.image_projection_layers.0"
    for name, tensor in unet.items():
        if name in motion:
            source = motion[name]
        elif name in mvdream:
            source = mvdream[name]
        elif name.startswith(projection):
            kind = name.removeprefix(f"{projection}.").replace("image_embeds", "proj")
            source = ip["image_proj"][kind]
        else:
            continue
        assert torch.equal(tensor, source.half()), name


@pytest.mark.parametrize(
    ("number", "layer"),
    [
        (1, "down_blocks.0.attentions.0"),
        (3, "down_blocks.0.attentions.1"),
        (11, "down_blocks.2.attentions.1"),
        (13, "up_blocks.1.attentions.0"),
        (17, "up_blocks.1.attentions.2"),
        (19, "up_blocks.2.attentions.0"),
        (29, "up_blocks.3.attentions.2"),
        (31, "mid_block.attentions.0"),
    ],
)
def test_the_ip_adapters_numbers_name_cross_attentions(released, converted, number, layer):
    unet, ip = read_tensors(converted / "unet"), load(released / IP)["ip_adapter"]
    for kind in ("to_k_ip", "to_v_ip"):
        stored = unet[f"{layer}.transformer_blocks.0.attn2.processor.{kind}.0.weight"]
        assert torch.equal(stored, ip[f"{number}.{kind}.weight"].half())


def test_old_names_of_vae_and_text_encoder_are_renamed(released, converted):
    old = load(released / MVDREAM.repository / "vae/diffusion_pytorch_model.bin")
    new = read_tensors(converted / "vae")
    assert torch.equal(
        new["decoder.mid_block.attentions.0.to_out.0.weight"],
        old["decoder.mid_block.attentions.0.proj_attn.weight"].half(),
    )
    text = load(released / MVDREAM.repository / "text_encoder/pytorch_model.bin")
    assert torch.equal(
        read_tensors(converted / "text_encoder")["final_layer_norm.weight"],
        text["text_model.final_layer_norm.weight"].half(),
    )


def test_the_manifest_says_where_everything_came_from(released, converted):
    manifest = json.loads((converted / "manifest.json").read_text())
    assert set(manifest["sources"]) == {source.repository for source in REQUIRED}
    motion = manifest["sources"][MOTION.repository]
    assert motion["revision"] == "main" and motion["licence"]["name"] == "Apache-2.0"
    assert len(motion["files"]["animate3d_motion_modules.ckpt"]) == 64 and manifest["dtype"] == "float16"
    assert MVDREAM.licence.link in (converted / "LICENCES.txt").read_text()
    verify_manifest(converted)


def wrapped(kind: str, motion: dict) -> dict:
    if kind == "module.":
        return {"state_dict": {f"module.{name}": t for name, t in motion.items()}, "epoch": 3, "optimizer": {"lr": 1.0}}
    if kind == "bare":
        return motion
    return {name: t for name, t in motion.items() if not name.endswith("time_pos_embed.pe")}


@pytest.mark.parametrize("kind", ["module.", "bare", "parameters only"])
def test_checkpoints_of_a_training_run_are_understood(kind, released, tmp_path):
    motion = load(released / CHECKPOINT)["state_dict"]
    tables = [name for name in motion if name.endswith("time_pos_embed.pe")]
    torch.save(wrapped(kind, motion), tmp_path / "mine.ckpt")
    assert (
        main(["convert", str(released), "--to", str(tmp_path / "model"), "--motion", str(tmp_path / "mine.ckpt")]) == 0
    )
    unet = read_tensors(tmp_path / "model" / "unet")
    for name, tensor in motion.items():
        if name not in tables:
            assert torch.equal(unet[name], tensor.half())
        elif kind == "parameters only":  # then it is the sinusoid itself: sin 0, cos 0
            assert unet[name][0, 0, :2].tolist() == [0, 1]


def test_a_full_save_replaces_all_others(released, converted, tmp_path):
    everything = {name: tensor.float() + 1 for name, tensor in read_tensors(converted / "unet").items()}
    torch.save(everything, tmp_path / "full.ckpt")
    found = find_originals(REQUIRED, [released]) | own_motion(tmp_path / "full.ckpt")
    convert(found, tmp_path / "model", ConvertSettings("float32"))
    unet = read_tensors(tmp_path / "model" / "unet")
    assert all(torch.equal(unet[name], tensor) for name, tensor in everything.items())


def test_the_motion_adapter_fills_what_a_checkpoint_leaves_open(released, converted, tmp_path):
    motion = load(released / CHECKPOINT)["state_dict"]
    torch.save({name: t for name, t in motion.items() if ".processor." in name}, tmp_path / "new_layers.ckpt")
    required = find_originals(REQUIRED, [released])
    assert not lacks_adapter(required)
    assert lacks_adapter(required | own_motion(tmp_path / "new_layers.ckpt"))
    found = find_originals(SOURCES, [released]) | own_motion(tmp_path / "new_layers.ckpt")
    convert(found, tmp_path / "model", ConvertSettings())
    adapter = load_file(released / MOTION_ADAPTER.repository / "diffusion_pytorch_model.safetensors")
    unet = read_tensors(tmp_path / "model" / "unet")
    own = [name for name in adapter if name in unet]
    assert (len(adapter), len(own)) == (567, 546)
    assert all(torch.equal(unet[name], adapter[name].half()) for name in own)


def test_large_models_are_cut_into_shards(released, converted, tmp_path):
    convert(find_originals(REQUIRED, [released]), tmp_path / "model", ConvertSettings("bfloat16", 500_000))
    whole, shards = read_tensors(converted / "unet"), read_tensors(tmp_path / "model" / "unet")
    assert len(list((tmp_path / "model" / "unet").glob("*.safetensors"))) > 2
    assert all(shards[name].dtype == torch.bfloat16 for name in whole)
    assert all(torch.allclose(shards[name].float(), tensor.float(), atol=1e-2) for name, tensor in whole.items())


class Evil:
    """What it is unpickled into depends on who opens it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


def test_a_pickle_with_code_inside_does_not_run(changed, tmp_path, capsys):
    marker = tmp_path / "it ran"
    torch.save(load(changed / CHECKPOINT) | {"extra": Evil(marker)}, changed / CHECKPOINT)
    torch.load(changed / CHECKPOINT, weights_only=False)
    assert marker.exists()  # the trap works …
    marker.unlink()
    said = refusal(capsys, changed, tmp_path / "model")
    assert "could run code" in said and "animate3d_motion_modules.ckpt" in said
    assert not marker.exists()  # … and was not sprung


def change(path: Path, edit) -> None:
    content = load(path)
    edit(content)
    torch.save(content, path)


def test_wrong_shapes_are_refused(changed, tmp_path, capsys):
    change(changed / UNET, lambda unet: unet.update({"conv_in.weight": torch.zeros(2, 2)}))
    assert "conv_in.weight is [2, 2] and should be [8, 4, 3, 3]" in refusal(capsys, changed, tmp_path / "model")


def test_a_missing_tensor_is_refused(changed, tmp_path, capsys):
    change(changed / CHECKPOINT, lambda c: c["state_dict"].pop(next(n for n in c["state_dict"] if "i2v" in n)))
    assert "1 tensors are missing and 0 are foreign" in refusal(capsys, changed, tmp_path / "model")


def test_a_checkpoint_of_another_model_is_refused(changed, tmp_path, capsys):
    shutil.copy(changed / UNET, tmp_path / "other.ckpt")
    said = refusal(capsys, changed, tmp_path / "model", "--motion", str(tmp_path / "other.ckpt"))
    assert "other.ckpt does not hold this model's motion modules" in said


def test_an_ip_adapter_of_another_model_is_refused(changed, tmp_path, capsys):
    change(changed / IP, lambda ip: ip["ip_adapter"].update({"33.to_k_ip.weight": torch.zeros(8, 16)}))
    assert "33.to_k_ip.weight" in refusal(capsys, changed, tmp_path / "model")


def test_a_missing_file_is_named(changed, tmp_path, capsys):
    (changed / MVDREAM.repository / "vae/diffusion_pytorch_model.bin").unlink()
    said = refusal(capsys, changed, tmp_path / "model")
    assert "yanqinJiang/mvdream-sd1.5-diffusers/vae/diffusion_pytorch_model.bin" in said


@pytest.mark.parametrize("name", [UNET, CHECKPOINT, IMAGE])
def test_a_cut_file_is_refused(name, changed, tmp_path, capsys):
    content = (changed / name).read_bytes()
    (changed / name).write_bytes(content[: len(content) // 2])
    assert Path(name).name in refusal(capsys, changed, tmp_path / "model")


def test_a_safetensors_header_that_lies_is_refused(changed, tmp_path, capsys):
    content = (changed / IMAGE).read_bytes()
    (changed / IMAGE).write_bytes((1 << 60).to_bytes(8, "little") + content[8:])
    assert "can't be read" in refusal(capsys, changed, tmp_path / "model")


def test_a_config_that_makes_no_sense_is_refused(changed, tmp_path, capsys):
    path = changed / MVDREAM.repository / "unet/config.json"
    path.write_text(path.read_text().replace('"layers_per_block": 2', '"layers_per_block": "two"'))
    assert "unet/config.json" in refusal(capsys, changed, tmp_path / "model")


def test_values_that_half_precision_cannot_hold_are_refused(changed, tmp_path, capsys):
    change(changed / UNET, lambda unet: unet["conv_out.bias"].fill_(1e6))
    assert "conv_out.bias has values that float16 can't hold" in refusal(capsys, changed, tmp_path / "model")
    assert main(["convert", str(changed), "--to", str(tmp_path / "wide"), "--dtype", "bfloat16"]) == 0


def test_a_failed_conversion_keeps_the_model_that_was_there(changed, converted, tmp_path):
    target = Path(shutil.copytree(converted, tmp_path / "model"))
    tensors = load_file(changed / IMAGE)
    save_file({name: t for name, t in tensors.items() if "visual_projection" not in name}, changed / IMAGE)
    with pytest.raises(WeightsError, match=r"visual_projection\.weight"):
        convert(find_originals(REQUIRED, [changed]), target, ConvertSettings())
    verify_manifest(target)
    assert [path.name for path in tmp_path.glob("model*")] == ["model"]


def test_a_folder_with_other_things_in_it_is_not_replaced(released, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["convert", str(released), "--to", str(tmp_path)]) == 1
    assert "holds something else than a model" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").exists()


def test_no_space_is_said_before_anything_is_written(released, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=400_000_000))
    assert "0.4 GB free" in refusal(capsys, released, tmp_path / "model")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of a file")
def test_a_disk_that_is_full_after_all_leaves_nothing_half(released, tmp_path, capsys):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        assert "can't be written" in refusal(capsys, released, tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_folders_may_be_laid_out_as_a_studio_likes(released, tmp_path):
    flat = tmp_path / "all in one"
    for source in REQUIRED:
        shutil.copytree(released / source.repository, flat, dirs_exist_ok=True)
    cache = tmp_path / "hub"
    for source in REQUIRED:
        owner, name = source.repository.split("/")
        shutil.copytree(released / source.repository, cache / f"models--{owner}--{name}" / "snapshots" / "abc")
    ours = {part: original.sha256 for part, original in find_originals(REQUIRED, [released]).items()}
    for folder in (flat, cache):
        found = find_originals(REQUIRED, [folder])
        assert {part: original.sha256 for part, original in found.items()} == ours
    assert found["motion"].commit == "abc"
