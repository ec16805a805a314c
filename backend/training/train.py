"""`python -m backend train codec | video | export`: the commands that make the starter model, in that order.

`starter` does the last two within a time limit; `paper` goes on from the released model.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from backend.protocol import UserError
from backend.training.codec import CodecSettings, train_codec
from backend.training.export import export_starter
from backend.training.motions import MOTIONS
from backend.training.recipes import add_recipes, add_settings, settings_of
from backend.training.samples import sampler_of
from backend.training.video import train_video


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m backend train", description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True)
    codec = stages.add_parser("codec", help="train the picture codec; a run that was stopped goes on")
    codec.add_argument("--steps", type=int, default=2200, help="of training in all (default %(default)s)")
    codec.add_argument("--rate", type=float, default=CodecSettings.learning_rate, help="learning rate at its peak")
    video = stages.add_parser("video", help="train the video model on the codec's latents; a stopped run goes on")
    video.add_argument("--steps", type=int, default=5000, help="of training in all (default %(default)s)")
    add_settings(video)
    video.add_argument("--start", type=Path, metavar="DIR", help="weights to start from, such as weights/starter")
    video.add_argument("--rendered", type=Path, metavar="DIR", help="shards of tools/render_dataset.py to train on too")
    for stage in (codec, video):
        stage.add_argument("--threads", type=int, default=torch.get_num_threads())
        stage.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    export = stages.add_parser("export", help="write a finished run as a folder of weights")
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    export.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder of weights to write")
    known = {"nargs": "+", "choices": MOTIONS, "default": tuple(MOTIONS), "metavar": "MOTION"}
    export.add_argument("--motions", help="what prompts may ask for", **known)
    add_recipes(stages)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        return _run(options)
    except UserError as error:
        print(f"{error.message} {error.hint}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    if "run" in options:
        options.run(options)
        return 0
    if options.stage == "export":
        export_starter(options.out, options.to, options.motions)
        return 0
    torch.set_num_threads(options.threads)
    if options.stage == "codec":
        train_codec(options.out, options.steps, replace(CodecSettings(), learning_rate=options.rate))
    else:
        settings = settings_of(options)
        show = sampler_of(options.out, settings)
        train_video(options.out, options.steps, settings, options.start, options.rendered, show)
    return 0
