"""Does a model do what the prompt says? Prompt to vertices on objects it never saw, against the true motions.

    python benchmarks/starter.py --weights weights/starter --objects 6 --report out/starter.json --save out/starter
    python benchmarks/starter.py --set pairs --objects 6             trained objects, with motions they were not shown
    python benchmarks/starter.py --meshes ../shared/assets/dev/gt ../shared/assets/dev --objects 99

Each object is asked for each motion, in sentences that were kept out of training: its condition views and a sentence go
in, the generated video is fitted, and the vertices are compared with what the formulas give on that same object.

retrieved    the most alike of all motions is the right one, whatever its phase, amplitude and speed (`in_phase`: when
             all must start at rest)
amplitude    the share of the true motion that is there: its projection over its size (`size`: of all displacement)
unexplained  mean vertex error over that of standing still
psnr         dB of the generated frames against the nearest true clip, where either shows the object
residual     cross-view consistency: mean distance of the pixels from the one motion fitted to all views, % of the width
drift        identity: how far colours leave those of the object, % of the box
first        largest displacement in frame 0
*swapped* is the share of pairs of prompts on one object whose results differ by more than half of the larger one.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backend import device as devices
from backend.evaluation.retrieval import KnownMotions
from backend.evaluation.video import colour_drift, masked_psnr, view_residual
from backend.motion.fit import fit_motion
from backend.motion.matte import key_matte
from backend.motion.settings import for_generated, preset
from backend.mv_vdm.pipeline import MVVDM
from backend.mv_vdm.sampling import SamplerSettings
from backend.presets import sampler_settings
from backend.prompts import understand
from backend.protocol import UserError, Video, transform_points, write_json
from backend.training.captions import caption
from backend.training.clips import Clip, render_clip, straight
from backend.training.motions import MOTIONS, animate
from benchmarks.starter_objects import Thing, meshes, seen_shapes, unseen_shapes
from benchmarks.starter_pictures import Sheet

FIGURES = ("retrieved", "in_phase", "amplitude", "size", "unexplained", "psnr", "residual", "drift", "first",
           "seconds_video", "seconds_fit")  # fmt: skip
MEDIANS = ("amplitude", "size", "unexplained", "psnr", "residual", "drift")
SHEET_PIXELS = 64


def main() -> int:
    options = _options()
    device = devices.pick(options.device)
    model = MVVDM.from_pretrained(options.weights, device)
    if model.info.appearance != "position":
        print("This benchmark reads positions off the pictures: give weights that animate them.", file=sys.stderr)
        return 2
    own = {"steps": options.steps, "guidance_scale": options.guidance}
    sampler = sampler_settings("draft", model.info.sampler)
    sampler = replace(sampler, **{key: value for key, value in own.items() if value is not None})
    motions = options.motions or [name for name in MOTIONS if name in model.info.motions]
    rows, swapped = [], []
    for thing in itertools.islice(_things(options), options.objects):
        asked = [motion for motion in motions if motion != thing.trained]
        for row in Judge(model, sampler, thing, options).rows(asked, swapped):
            rows.append(row)
            print(_line(row), flush=True)
            if options.report:  # after each clip: the whole may take an hour
                _write(options, rows, swapped, sampler, device)
    if not rows:
        print("There is nothing to animate.", file=sys.stderr)
        return 1
    show(summarize(rows), swapped)
    if options.report:
        _write(options, rows, swapped, sampler, device)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path("weights/starter"))
    parser.add_argument("--motions", nargs="+", choices=MOTIONS, help="what is asked for; what the model promises")
    parser.add_argument("--objects", type=int, default=6, help="how many, at most (default %(default)s)")
    parser.add_argument("--set", choices=("shapes", "pairs"), default="shapes", help="of procedural objects")
    parser.add_argument("--meshes", nargs="+", type=Path, metavar="DIR", help="instead of procedural ones: folders of "
                        "models, or of .npz files of vertices [F, V, 3] and faces; their first frames")  # fmt: skip
    parser.add_argument("--names", nargs="+", help="only these meshes")
    parser.add_argument("--say", choices=("unseen", "seen", "plain"), default="unseen",
                        help="paraphrases kept out of training, trained ones, or “it bounces”")  # fmt: skip
    parser.add_argument("--steps", type=int, help="sampling steps; the model's own by default")
    parser.add_argument("--guidance", type=float, help="guidance scale; the model's own by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--report", type=Path, metavar="FILE.json")
    parser.add_argument("--save", type=Path, metavar="DIR", help="for each object and motion the baked vertices (world "
                        "space) and the video, and for each object a contact sheet, truth below")  # fmt: skip
    return parser.parse_args()


def _things(options: argparse.Namespace) -> Iterator[Thing]:
    if options.meshes:
        return meshes(options.meshes, options.names)
    return unseen_shapes() if options.set == "shapes" else seen_shapes()


@dataclass(frozen=True)
class Result:
    """What came of one prompt."""

    video: np.ndarray  # [4, F, S, S, 4] uint8, straight alpha
    offsets: np.ndarray  # [F, V, 3] float32, subject space
    seconds_video: float
    seconds_fit: float


class Judge:
    """Asks for motions of one object and looks at what comes."""

    def __init__(self, model: MVVDM, sampler: SamplerSettings, thing: Thing, options: argparse.Namespace) -> None:
        self.model, self.sampler, self.thing, self.options = model, sampler, thing, options
        self.subject = thing.subject(2 * model.info.resolution)
        self.known = KnownMotions(thing.rest, model.info.num_frames)
        self.pictures = straight(render_clip(self._clip("", thing.rest[None]), self.subject.condition_size))[:, 0]
        self.sheet = Sheet()

    def rows(self, motions: list[str], swapped: list[bool]) -> Iterator[dict]:
        """A row of figures for each motion; adds to `swapped` whether each pair of prompts differs."""
        found: list[np.ndarray] = []
        for motion in motions:
            rng = np.random.default_rng(zlib.crc32(f"{self.thing.name} {motion}".encode()))
            said = f"it {MOTIONS[motion].verbs[0]}"
            if self.options.say != "plain":
                said = caption(motion, 1.0, rng, unseen=self.options.say == "unseen")
            result = self._run(said)
            swapped += [differ(result.offsets, other) for other in found]
            found.append(result.offsets)
            row = {"object": self.thing.name, "motion": motion, "prompt": said, **self._figures(motion, result)}
            if self.options.save:
                self._keep(motion, row, result)
            yield row

    def _run(self, prompt: str) -> Result:
        """The road of a job, but that our own rasterizer makes the views."""
        started = time.perf_counter()
        prompt = understand(prompt, self.model.info.motions).prompt
        frames = self.model.generate(prompt, self.pictures, self.subject.condition_c2w, self.sampler, self.options.seed)
        generated = time.perf_counter()
        matte = key_matte(frames, self.pictures[..., 3] / 255.0)
        fit = for_generated(preset("draft"))
        video, device = Video(frames, self.model.info.appearance), self.model.device
        offsets = fit_motion(self.subject, None, video, matte, fit, device, lambda step, steps: None)
        return Result(frames, offsets, generated - started, time.perf_counter() - generated)

    def _figures(self, motion: str, result: Result) -> dict[str, float | str]:
        offsets, rest = result.offsets, self.thing.rest
        truth = animate(motion, rest, len(offsets), 1.0) - rest
        alike, in_phase = self.known.most_alike(offsets), self.known.most_alike(offsets, any_phase=False)
        return {
            "taken_for": alike.motion,
            "retrieved": float(alike.motion == motion),
            "in_phase": float(in_phase.motion == motion),
            "amplitude": float((offsets * truth).sum() / np.square(truth).sum()),
            "size": float(np.sqrt(np.square(offsets).sum() / np.square(truth).sum())),
            "unexplained": error(offsets, truth) / error(np.zeros_like(truth), truth),
            "psnr": masked_psnr(result.video, self._nearest_true_video(offsets)),
            "residual": view_residual(result.video, offsets, self.subject),
            "drift": colour_drift(result.video, self.subject),
            "first": float(np.abs(offsets[0]).max()),
            "seconds_video": result.seconds_video,
            "seconds_fit": result.seconds_fit,
        }

    def _nearest_true_video(self, offsets: np.ndarray) -> np.ndarray:
        near = self.known.nearest(offsets)
        moved = animate(near.motion, self.thing.rest, len(offsets), near.strength, near.timing)
        return straight(render_clip(self._clip(near.motion, moved), self.model.info.resolution))

    def _clip(self, motion: str, trajectories: np.ndarray) -> Clip:
        return Clip(self.thing.rest, self.thing.faces, trajectories, motion, 1.0, "loop", "")

    def _keep(self, motion: str, row: dict, result: Result) -> None:
        """Writes the vertices as a bake would set them, and the sheet of what there is so far."""
        thing, folder = self.thing, self.options.save
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            folder / f"{thing.name}_{motion}.npz",
            vertices=transform_points(thing.to_world, thing.rest + result.offsets).astype(np.float32),
            faces=thing.faces.astype(np.int32),
            to_world=thing.to_world,
            motion=motion,
            prompt=row["prompt"],
            video=result.video,
        )
        truth = animate(motion, thing.rest, len(result.offsets), 1.0)
        drawn = straight(render_clip(self._clip(motion, truth), SHEET_PIXELS))
        mark = "" if row["retrieved"] else f"\nlike {row['taken_for']}"
        words = f"{motion}{mark}\n{row['psnr']:.1f} dB\namp {row['amplitude']:.2f}"
        self.sheet.add(words, result.video, drawn)
        self.sheet.save(folder / f"sheet_{thing.name}.png")


def error(offsets: np.ndarray, truth: np.ndarray) -> float:
    """Mean vertex distance over frames 1.., [F, V, 3] both."""
    return float(np.linalg.norm(offsets[1:] - truth[1:], axis=-1).mean())


def differ(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.linalg.norm(a - b) > 0.5 * max(np.linalg.norm(a), np.linalg.norm(b)))


def summarize(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Shares and medians for each motion, each object and all."""
    groups = {"all": rows}
    for key in ("motion", "object"):
        groups |= {name: [row for row in rows if row[key] == name] for name in dict.fromkeys(r[key] for r in rows)}
    return {
        name: {f: float((np.median if f in MEDIANS else np.mean)([row[f] for row in group])) for f in FIGURES}
        | {"clips": len(group)}
        for name, group in groups.items()
    }


def show(summary: dict[str, dict[str, float]], swapped: list[bool]) -> None:
    table = Table("", *FIGURES, "clips")
    for name, figures in summary.items():
        table.add_row(name, *(f"{value:.3g}" for value in figures.values()))
    Console(width=160).print(table)
    print(f"swapped prompts give another motion: {_share(swapped)} of {len(swapped)} pairs")


def _share(swapped: list[bool]) -> float | None:
    return round(float(np.mean(swapped)), 3) if swapped else None


def _line(row: dict) -> str:
    figures = " ".join(f"{name} {row[name]:.3g}" for name in FIGURES)
    return f"{row['object']} {row['motion']} (like {row['taken_for']}): {figures} “{row['prompt']}”"


def _write(
    options: argparse.Namespace, rows: list[dict], swapped: list[bool], sampler: SamplerSettings, device: torch.device
) -> None:
    write_json(
        options.report,
        {"summary": summarize(rows), "swapped": _share(swapped), "pairs": len(swapped), "sampler": asdict(sampler),
         "say": options.say, "seed": options.seed, "device": device.type, "threads": torch.get_num_threads(),
         "versions": devices.versions(), "clips": rows},
    )  # fmt: skip


if __name__ == "__main__":
    try:
        code = main()
    except UserError as problem:
        print(f"{problem.message} {problem.hint}", file=sys.stderr)
        code = 1
    sys.stdout.flush()
    os._exit(code)  # the bpy package, where models were read, reports leaks at an ordinary end
