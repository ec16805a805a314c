"""A session on a lent machine: it ends in time, several add up, and what it leaves can be used and taken elsewhere."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from backend.mv_vdm.pipeline import MVVDM
from backend.protocol import UserError
from backend.training.captions import build_tokenizer
from backend.training.codec import CodecSettings, build_codec
from backend.training.latents import LatentStore
from backend.training.prefetch import Prefetcher
from backend.training.session import DELIVERY, SessionSettings, deliver, run_session
from backend.training.starter import StarterSettings, quick
from backend.training.video import STATE

TINY = quick(StarterSettings())
SESSION = SessionSettings(minutes=0.0, reserve=0.0, steps=3, workers=1, ahead=4)


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def tiny_store(folder: Path) -> LatentStore:
    torch.manual_seed(0)
    codec = build_codec(CodecSettings(channels=(8, 8, 8, 8), latent_channels=4)).eval()
    return LatentStore(folder, codec, build_tokenizer(), size=64, frames=4, shard_clips=2)


def test_workers_make_the_same_clips_as_the_run_would(tmp_path: Path) -> None:
    ahead, own = tiny_store(tmp_path / "ahead"), tiny_store(tmp_path / "own")
    with Prefetcher(ahead, workers=1, wanted=2):
        deadline = time.monotonic() + 600
        while not all(ahead.path(index).exists() for index in range(2)) and time.monotonic() < deadline:
            time.sleep(0.05)
    ahead.codec = None  # would fail if a clip had to be made
    for index in range(2):
        torch.testing.assert_close(ahead.shard(index), own.shard(index), rtol=0, atol=0)
    assert not list(ahead.folder.glob("*.part"))


def test_sessions_add_up_here_and_elsewhere(tmp_path: Path) -> None:
    """The time is over at once, so that each session makes one step."""
    out, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    settings = replace(TINY, motions=("bounce", "sway"))
    build_codec(CodecSettings(channels=(8, 8, 8, 8), latent_channels=4)).save_pretrained(out / "vae")
    assert not run_session(out, settings, SESSION, start=None)
    assert (out / DELIVERY / "run" / STATE).exists() and (out / DELIVERY / "video.png").exists()
    shutil.copytree(out / DELIVERY, tmp_path / "taken")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert not run_session(elsewhere, settings, SESSION, None, resume=tmp_path / "taken")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert run_session(elsewhere, settings, SESSION, None)
    steps = [row.split(",")[0] for row in (elsewhere / "video.csv").read_text().split() if "loss" in row]
    assert steps[-1] == "step=3"
    model = MVVDM.from_pretrained(elsewhere / DELIVERY / "weights")
    assert list(model.info.motions) == ["bounce", "sway"]
    deliver(elsewhere, settings, replace(SESSION, most_mb=0.5))  # too little for the optimiser
    assert not (elsewhere / DELIVERY / "run" / STATE).exists() and (elsewhere / DELIVERY / "weights" / "unet").exists()


def test_nothing_to_begin_with_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no codec"):
        run_session(tmp_path / "run", TINY, SESSION, start=tmp_path)
