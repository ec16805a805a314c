"""The starter recipe within a time limit, on one machine: data, training, weights and logs to take away.

    python -m backend train starter --out runs/mine --minutes 25 --workers 12 --start weights/starter --codec-only
    python -m backend train starter --out runs/mine --minutes 25 --workers 12                   goes on; times add up

Worker processes draw clips, the GPU (or the CPU) encodes them and trains. What is to be taken away lies in
`runs/mine/delivery`: `weights` in half precision, the logs, and `run`, from which `--resume` goes on elsewhere: the
codec, the tokenizer and, where it fits into the limit, the whole state; else a later session begins with the weights.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors import safe_open

from backend.mv_vdm.checkpoints import read_tensors
from backend.protocol import UserError, write_json
from backend.training.codec import run_codec
from backend.training.export import load_run
from backend.training.latents import LatentStore
from backend.training.loop import RunLog
from backend.training.prefetch import Prefetcher
from backend.training.samples import sampler_of
from backend.training.starter import StarterModel, StarterSettings, first_clip
from backend.training.video import STATE, run_tokenizer, train_video

DELIVERY, WEIGHTS, RUN = "delivery", "weights", "run"
LOGS = ("video.csv", "video.png", "tensorboard")


@dataclass(frozen=True)
class SessionSettings:
    """A session on a machine that is lent for a while."""

    minutes: float = 25.0  # in all, from the start of the program to the end of the delivery
    reserve: float = 0.5  # minutes of them that are kept for measuring, saving and delivering
    steps: float = math.inf  # of all sessions together, to whose end the schedule runs; inf: it ends with this session
    workers: int = 4  # processes that draw clips
    ahead: int = 1000  # steps for which clips are made in advance
    most_mb: float = 60.0  # of the delivery


def run_session(
    out: Path,
    settings: StarterSettings,
    session: SessionSettings,
    start: Path | None,
    resume: Path | None = None,
    codec_only: bool = False,
) -> bool:
    """Trains until the time is over or the training is done, and delivers. Returns whether it is done.

    Args:
        start: weights that a fresh run begins with, and whose codec is used where `out` has none; None: from nothing.
        resume: the delivery of an earlier session, where the folder of its run is gone.
        codec_only: of `start` only the codec is used.

    Raises:
        UserError: nothing to begin with.
    """
    until = time.monotonic() + 60.0 * (session.minutes - session.reserve)
    weights = start if resume is None else resume / WEIGHTS
    if not (out / STATE).exists():
        _begin(out, weights, resume)
    if codec_only or (out / STATE).exists():
        weights = None  # the state knows better
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    codec = run_codec(out).to(device)
    store = LatentStore(
        out / "clips", codec, run_tokenizer(out), settings.size, settings.frames, settings.motions,
        first_clip(settings), shard_clips=settings.shard_clips,
    )  # fmt: skip
    draw, (steps, seconds) = sampler_of(out, settings), _done(out)

    def wanted(step: int) -> int:
        return store.reached(int(min(step + session.ahead, session.steps)) * settings.batch, settings.repeats)

    with Prefetcher(store, session.workers, wanted(steps)) as ahead:

        def show(step: int, model: StarterModel, log: RunLog) -> None:
            ahead.wanted = wanted(step)
            draw(step, model, log)

        whole = seconds + until - time.monotonic() if session.steps == math.inf else math.inf
        done = train_video(out, session.steps, settings, weights, show=show, until=until, seconds=whole,
                           obtain=ahead.wait_for)  # fmt: skip
    deliver(out, settings, session)
    return done


def _done(out: Path) -> tuple[int, float]:
    """Steps and seconds of the sessions before."""
    if not (out / STATE).exists():
        return 0, 0.0
    with safe_open(out / STATE, framework="pt") as state:
        step, seconds = state.get_tensor("counters").tolist()
    return int(step), seconds


def _begin(out: Path, weights: Path | None, resume: Path | None) -> None:
    """Puts into the folder of a new run what it needs to begin."""
    out.mkdir(parents=True, exist_ok=True)
    if resume is not None:
        shutil.copytree(resume / RUN, out, dirs_exist_ok=True)
        for name in LOGS:
            source = resume / name
            if source.is_dir():
                shutil.copytree(source, out / name, dirs_exist_ok=True)
            elif source.exists():
                shutil.copyfile(source, out / name)
    if not (out / "vae").exists():
        if weights is None or not (weights / "vae").is_dir():
            raise UserError(f"There is no codec in “{weights or out}”.", "Give --start weights, or train a codec.")
        codec = AutoencoderKL.from_config(json.loads((weights / "vae" / "config.json").read_text(encoding="utf-8")))
        codec.load_state_dict(_tensors(weights / "vae"))
        codec.save_pretrained(out / "vae")


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.float() for name, tensor in read_tensors(folder).items()}


def deliver(out: Path, settings: StarterSettings, session: SessionSettings) -> None:
    """Fills `out/delivery`, which stays below the limit."""
    folder = out / DELIVERY
    shutil.rmtree(folder, ignore_errors=True)
    model = load_run(out, settings)
    for network in (model.unet, model.vae, model.text_encoder, model.image_encoder):
        network.half()
    model.save_pretrained(folder / WEIGHTS)
    for name in LOGS:
        if (out / name).is_dir():
            shutil.copytree(out / name, folder / name)
        elif (out / name).exists():
            shutil.copyfile(out / name, folder / name)
    for name in ("vae", "tokenizer"):
        shutil.copytree(out / name, folder / RUN / name)
    state = out / STATE
    whole = _megabytes(folder) + state.stat().st_size / 1e6 <= session.most_mb
    if whole:
        shutil.copyfile(state, folder / RUN / STATE)
    about = {"session": asdict(session), "settings": asdict(settings), "whole_state": whole}
    write_json(folder / "session.json", about)
    print(f"{folder}: {_megabytes(folder):.1f} MB{'' if whole else ', without the optimiser'}", flush=True)


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
