"""The command lines of the two recipes: `python -m backend train paper | starter`."""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path

import torch

from backend.training.motions import MOTIONS
from backend.training.paper import PaperSettings, train_paper
from backend.training.session import SessionSettings, run_session
from backend.training.starter import StarterSettings, for_cpu


def add_recipes(stages: argparse._SubParsersAction) -> None:
    """Adds both commands; each sets `run`, which takes the options."""
    paper = stages.add_parser("paper", help="train MV-VDM's own layers of the released model on rendered clips")
    paper.add_argument("--weights", type=Path, required=True, metavar="DIR", help="the converted model, which stays")
    paper.add_argument(
        "--shards", type=Path, required=True, metavar="DIR", help="of tools/render_dataset.py, in colour"
    )
    paper.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run; goes on where it was")
    paper.add_argument("--steps", type=int, default=20_000, help="of training in all (default %(default)s)")
    paper.add_argument("--batch", type=int, default=PaperSettings.batch, help="clips a step, of all processes together")
    paper.add_argument("--clips-at-once", type=int, default=1, help="in one process; more need more memory")
    paper.add_argument("--rate", type=float, default=PaperSettings.learning_rate, help="learning rate")
    paper.add_argument("--frames", type=int, default=PaperSettings.frames, help="of each clip (default %(default)s)")
    paper.add_argument("--precision", choices=("bf16", "no"), default="bf16")
    paper.add_argument("--minutes", type=float, default=math.inf, help="saves and ends then")
    paper.set_defaults(run=_paper)
    session = SessionSettings()
    starter = stages.add_parser("starter", help="the video model within a time limit, with what is to be taken away")
    starter.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the run; goes on where it was"
    )
    starter.add_argument("--minutes", type=float, default=session.minutes, help="in all (default %(default)s)")
    starter.add_argument("--steps", type=float, default=session.steps, help="of all sessions together, to "
                         "whose end the schedule runs; by default it ends with this session")  # fmt: skip
    add_settings(starter)
    starter.add_argument("--workers", type=int, default=session.workers, help="processes that draw clips")
    starter.add_argument("--start", type=Path, metavar="DIR", help="weights whose codec is used, and to begin with")
    starter.add_argument("--codec-only", action="store_true", help="of --start only the codec is used")
    starter.add_argument("--resume", type=Path, metavar="DIR", help="delivery of an earlier session, run elsewhere")
    starter.add_argument("--most-mb", type=float, default=session.most_mb, help="of the delivery")
    starter.set_defaults(run=_starter)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The options that `settings_of` reads."""
    parser.add_argument("--model", choices=("large", "small"), help="128 pixels for a GPU, or 64 for a CPU; by default "
                        "whichever is there")  # fmt: skip
    parser.add_argument("--batch", type=int, help="clips a step; the model's own by default")
    parser.add_argument("--rate", type=float, help="learning rate at its peak; the model's own by default")
    parser.add_argument("--seed", type=int, help="another one trains on other clips")
    parser.add_argument(
        "--motions", nargs="+", choices=MOTIONS, default=tuple(MOTIONS), metavar="MOTION", help="what to teach"
    )


def settings_of(options: argparse.Namespace) -> StarterSettings:
    settings = StarterSettings()
    if options.model == "small" or (options.model is None and not torch.cuda.is_available()):
        settings = for_cpu(settings)
    own = {
        "batch": options.batch,
        "learning_rate": options.rate,
        "seed": options.seed,
        "motions": tuple(options.motions),
    }
    return replace(settings, **{name: value for name, value in own.items() if value is not None})


def _paper(options: argparse.Namespace) -> None:
    settings = replace(
        PaperSettings(), batch=options.batch, clips_at_once=options.clips_at_once, learning_rate=options.rate,
        frames=options.frames, precision=options.precision,
    )  # fmt: skip
    until = time.monotonic() + 60.0 * options.minutes
    train_paper(options.out, options.weights, options.shards, options.steps, settings, until)


def _starter(options: argparse.Namespace) -> None:
    session = SessionSettings(
        minutes=options.minutes, steps=options.steps, workers=options.workers, most_mb=options.most_mb
    )
    run_session(options.out, settings_of(options), session, options.start, options.resume, options.codec_only)
