"""Pulling the released model from a hub of our own: whole, cut and resumed, damaged, forbidden."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants

from backend.mv_vdm.pipeline import MVVDM
from backend.mv_vdm.sampling import SamplerSettings
from backend.protocol import condition_cameras
from backend.weights.command import main
from backend.weights.sources import IP_ADAPTER, MOTION, MOTION_ADAPTER, MVDREAM
from benchmarks.released_set import write_released
from tests.hub import Hub

ROOT = Path(__file__).resolve().parent.parent
UNET = f"{MVDREAM.repository}/unet/diffusion_pytorch_model.bin"
CHECKPOINT = f"{MOTION.repository}/animate3d_motion_modules.ckpt"
ADAPTER = f"{MOTION_ADAPTER.repository}/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("released")
    write_released(root)
    return root


@pytest.fixture
def hub(released) -> Iterator[Hub]:
    with Hub(released) as server:
        yield server


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """Folders of this test's own, and the network allowed; what a process of its own reads from its environment."""
    monkeypatch.setenv("ANIMATE3D_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 14)  # our files are small
    return tmp_path


def pull(hub: Hub, *options: str) -> int:
    return main(["pull", "animate3d", "--yes", "--from", hub.url, *options])


def refusal(capsys, hub: Hub, *options: str) -> str:
    """What a pull that must fail says: one line on stderr."""
    capsys.readouterr()
    assert pull(hub, *options) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said
    return said


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """A process of its own, as an artist would start it, with nobody to ask."""
    command = [sys.executable, "-m", "backend", "weights", *arguments]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    return subprocess.run(
        command, env=kept | environment, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )


def test_one_command_brings_a_model_that_generates(hub, tmp_path):
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "ANIMATE3D_WEIGHTS": str(tmp_path / "weights"),
    }
    process = run("pull", "animate3d", "--yes", **environment)
    assert process.returncode == 0, process.stderr
    for source in (MVDREAM, IP_ADAPTER, MOTION):
        assert f"{source.licence.name}: {source.licence.link}" in process.stdout
    model = MVVDM.from_pretrained(tmp_path / "weights" / "animate3d")
    pictures = np.zeros((4, 64, 64, 4), np.uint8)
    settings = SamplerSettings(steps=1, guidance_scale=1.0, freeinit_iterations=1)
    video = model.generate("a cactus sways", pictures, condition_cameras(), settings, num_frames=2)
    assert video.shape == (4, 2, 64, 64, 3)
    manifest = json.loads((tmp_path / "weights" / "animate3d" / "manifest.json").read_text())
    for source in (MVDREAM, MOTION):
        entry = manifest["sources"][source.repository]
        assert (entry["revision"], entry["commit"]) == (source.revision, hub.commit(source.repository))
    assert ADAPTER not in hub.sent  # the checkpoint is whole, so 1.8 GB stay where they are
    assert not (tmp_path / "hf" / "animate3d").exists()  # the downloads were let go


def test_a_pull_that_was_cut_goes_on_where_it_stopped(hub, home, released, capsys):
    size = (released / UNET).stat().st_size
    hub.limit = size // 2
    assert "The hub answered 503" in refusal(capsys, hub)
    before = hub.sent[UNET]
    assert size // 4 < before < size
    hub.limit = None
    assert pull(hub) == 0
    again = hub.sent[UNET] - size
    assert again <= constants.DOWNLOAD_CHUNK_SIZE  # of a 2.4 MB file
    assert hub.sent[CHECKPOINT] == (released / CHECKPOINT).stat().st_size
    assert (home / "weights" / "animate3d" / "model.json").is_file()


def test_kept_downloads_are_not_fetched_again(hub, home):
    assert pull(hub, "--keep") == 0
    sent = sum(hub.sent.values())
    assert pull(hub, "--keep", "--dtype", "bfloat16") == 0
    assert sum(hub.sent.values()) == sent


def test_files_in_hugging_faces_own_cache_are_used(hub, home, released, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    name, repository = CHECKPOINT.rsplit("/", 1)[1], MOTION.repository
    cached = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "snapshots"
    (cached / hub.commit(repository)).mkdir(parents=True)
    shutil.copy(released / CHECKPOINT, cached / hub.commit(repository) / name)
    found = huggingface_hub.try_to_load_from_cache(repository, name, revision=hub.commit(repository))
    assert Path(found).is_file()
    assert pull(hub) == 0
    assert CHECKPOINT not in hub.sent and Path(found).is_file()


def test_flipped_bytes_are_noticed_and_fetched_again(hub, home, capsys):
    hub.flipped = "animate3d_motion_modules.ckpt"
    assert "animate3d_motion_modules.ckpt arrived damaged" in refusal(capsys, hub)
    hub.flipped = None
    assert pull(hub) == 0


def test_small_files_are_checked_as_well(hub, home, capsys):
    hub.flipped = "merges.txt"
    assert "tokenizer/merges.txt arrived damaged" in refusal(capsys, hub)


def test_the_motion_adapter_is_fetched_where_it_is_needed(hub, home, released, tmp_path):
    motion = torch.load(released / CHECKPOINT, weights_only=True)["state_dict"]
    torch.save({name: t for name, t in motion.items() if ".processor." in name}, tmp_path / "mine.ckpt")
    assert pull(hub, "--motion", str(tmp_path / "mine.ckpt")) == 0
    assert hub.sent[ADAPTER] == (released / ADAPTER).stat().st_size and CHECKPOINT not in hub.sent


def test_a_folder_needs_no_network(released, home):
    assert main(["pull", "animate3d", "--from", str(released)], offline=True) == 0
    assert (home / "weights" / "animate3d" / "model.json").is_file()


def test_the_users_offline_switch_is_obeyed(hub, tmp_path):
    for switch in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        environment = {switch: "1", "HF_ENDPOINT": hub.url, "ANIMATE3D_WEIGHTS": str(tmp_path)}
        process = run("pull", "animate3d", "--yes", **environment)
        assert process.returncode == 1 and process.stderr.startswith("The network is switched off")
        assert process.stderr.count("\n") == 1
    assert hub.requests == 0


def test_nothing_is_fetched_before_somebody_accepts_the_licences(hub, tmp_path):
    process = run("pull", "animate3d", HF_ENDPOINT=hub.url, ANIMATE3D_WEIGHTS=str(tmp_path))
    assert process.returncode == 1 and "--yes" in process.stderr and process.stderr.count("\n") == 1
    assert "CreativeML OpenRAIL-M" in process.stdout
    assert hub.requests == 0


def test_no_space_is_said_before_the_download(hub, home, capsys, monkeypatch):
    usage = shutil.disk_usage(home)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=502_000_000))
    assert "0.5 GB free" in refusal(capsys, hub)
    assert not hub.sent


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of a file")
def test_a_disk_that_fills_up_during_the_download_is_told(hub, home, capsys):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        assert "The download of yanqinJiang/mvdream-sd1.5-diffusers stopped" in refusal(capsys, hub)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert pull(hub) == 0


def test_revisions_are_settings(hub, home, capsys):
    assert "has no revision gone" in refusal(capsys, hub, "--revision", "motion=gone")
    assert "no source “movement”" in refusal(capsys, hub, "--revision", "movement=main")


def test_a_repository_that_is_gone_is_told(home, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    with Hub(tmp_path / "empty") as empty:
        assert "no repository yanqinJiang/mvdream-sd1.5-diffusers" in refusal(capsys, empty)


def test_a_file_that_is_gone_is_told(home, released, capsys, tmp_path):
    shutil.copytree(released, tmp_path / "less")
    (tmp_path / "less" / UNET).unlink()
    with Hub(tmp_path / "less") as less:
        assert "no file unet/diffusion_pytorch_model.bin" in refusal(capsys, less)


def test_a_hub_that_is_not_there_is_told(home, capsys, tmp_path):
    with Hub(tmp_path) as gone:
        pass
    assert "The hub can't be reached" in refusal(capsys, gone)
