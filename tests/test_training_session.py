"""A session on a lent machine: it ends in time, several add up, and what it leaves can be used and taken elsewhere."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
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
from backend.training.train import main as train
from backend.training.video import STATE

ROOT = Path(__file__).resolve().parent.parent
KILLED = """
import sys, time
from pathlib import Path
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
if __name__ == "__main__":
    from test_training_session import Prefetcher, tiny_store
    ahead = Prefetcher(tiny_store(Path({folder!r})), workers=1, wanted=10**6)
    ahead.__enter__()
    ahead.wait_for(0)
    print(ahead.process.pid, flush=True)
    time.sleep(600)
"""
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
    delivered = (elsewhere / DELIVERY / "weights").rglob("*.json")
    assert not [path for path in delivered if str(tmp_path) in path.read_text()]  # names no folder of this machine
    deliver(elsewhere, settings, replace(SESSION, most_mb=0.5))  # too little for the optimiser
    assert not (elsewhere / DELIVERY / "run" / STATE).exists() and (elsewhere / DELIVERY / "weights" / "unet").exists()


def test_nothing_to_begin_with_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no codec"):
        run_session(tmp_path / "run", TINY, SESSION, start=tmp_path)


def test_a_killed_run_leaves_no_process_that_draws_clips(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(KILLED.format(root=str(ROOT), folder=str(tmp_path / "clips")))
    run = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    maker = psutil.Process(int(run.stdout.readline()))
    workers = maker.children(recursive=True)
    run.kill()
    run.wait()
    gone, left = psutil.wait_procs([maker, *workers], timeout=300)
    assert maker in gone and not left


@pytest.mark.parametrize("command", [["export", "--to", "weights"], ["video", "--steps", "3"]])
def test_a_folder_without_a_run_or_a_codec_is_a_sentence(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert train([*command, "--out", str(tmp_path / "nothing")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("There is no") and "Traceback" not in error
