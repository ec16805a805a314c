"""`python -m backend train codec | video | export`: the commands that make the starter model, in that order."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from backend.training.codec import CodecSettings, train_codec
from backend.training.export import export_starter
from backend.training.starter import StarterSettings, train_video


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m backend train", description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True)
    for name, minutes, explanation in (
        ("codec", 20, "the picture codec"),
        ("video", 100, "the video model, on the codec's latents"),
    ):
        stage = stages.add_parser(name, help=f"train {explanation}; a run that was stopped goes on")
        stage.add_argument("--minutes", type=float, default=minutes, help="of training in all (default %(default)s)")
        stage.add_argument("--threads", type=int, default=torch.get_num_threads())
        stage.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    export = stages.add_parser("export", help="write a finished run as a folder of weights")
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    export.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder of weights to write")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.stage == "export":
        export_starter(options.out, options.to)
        return 0
    torch.set_num_threads(options.threads)
    if options.stage == "codec":
        train_codec(options.out, options.minutes, CodecSettings())
    else:
        train_video(options.out, options.minutes, StarterSettings())
    return 0
