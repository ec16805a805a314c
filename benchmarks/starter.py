"""Does a model do what the prompt says? Prompt to vertices on objects it never saw, against the true motions.

    python benchmarks/starter.py --weights weights/starter --objects 3 --report out/bench/starter.json
    python benchmarks/starter.py --meshes ../shared/assets/dev/gt      (the rest poses of a folder of vertices as .npz)

Each object is asked for each motion: its condition views and a sentence go in, the generated video is fitted, and the
vertices are compared with what the formulas give on that same object. *unexplained* is mean vertex error over that of
standing still, *amplitude* the share of the true motion that is there (its projection), *named* whether the truth is
the nearest of all motions, *retrieved* whether it is the one most alike in direction, whatever amplitude and speed.
*swapped* is the share of pairs of prompts whose results differ by more than half of the larger one.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backend.motion.fit import fit_motion
from backend.motion.settings import for_generated, preset
from backend.mv_vdm.pipeline import MVVDM
from backend.mv_vdm.sampling import SamplerSettings
from backend.protocol import (
    CAMERA_FOVY,
    Subject,
    Video,
    condition_cameras,
    subject_to_world,
    transform_points,
    write_json,
)
from backend.training.captions import caption
from backend.training.clips import HELD_OUT_SEED, Clip, render_clip
from backend.training.motions import MOTIONS, TIMINGS, animate
from backend.training.shapes import random_object

FIRST_SEED = HELD_OUT_SEED + 10_000  # apart from what training measures itself on
FIGURES = ("unexplained", "amplitude", "named", "retrieved", "seconds_video", "seconds_fit")


@dataclass(frozen=True)
class Thing:
    """An object in subject space."""

    name: str
    rest: np.ndarray  # [V, 3] float64
    faces: np.ndarray  # [T, 3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path("weights/starter"))
    parser.add_argument("--motions", nargs="+", choices=MOTIONS, help="what is asked for; what the model promises")
    parser.add_argument("--objects", type=int, default=3, help="how many, procedural or meshes (default %(default)s)")
    parser.add_argument("--meshes", type=Path, metavar="DIR", help="instead of procedural objects: .npz files of "
                        "vertices [F, V, 3] and faces, Blender's axes; frame 0 counts")  # fmt: skip
    parser.add_argument("--say", choices=("unseen", "seen", "plain"), default="unseen",
                        help="paraphrases kept out of training, trained ones, or “it bounces”")  # fmt: skip
    parser.add_argument("--steps", type=int, help="sampling steps; the model's own by default")
    parser.add_argument("--guidance", type=float, help="guidance scale; the model's own by default")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--save", type=Path, metavar="DIR", help="folder for generated frames and fitted vertices")
    options = parser.parse_args()
    model = MVVDM.from_pretrained(options.weights)
    chosen = {"steps": options.steps, "guidance_scale": options.guidance}
    sampler = replace(model.info.sampler, **{key: value for key, value in chosen.items() if value is not None})
    motions = options.motions or list(model.info.motions)
    rows, swapped = [], []
    for thing in itertools.islice(things(options.meshes), options.objects):
        offsets = {}
        for motion in motions:
            clip = clip_of(thing, motion, options.say, model.info.num_frames)
            row, offsets[motion] = judge(model, sampler, clip, options.save, f"{thing.name}_{motion}")
            rows.append({"object": thing.name, "motion": motion, "caption": clip.caption, **row})
            print(" ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in rows[-1].values()), flush=True)
        swapped += [differ(a, b) for a, b in itertools.combinations(offsets.values(), 2)]
    summary = show(rows, motions)
    share = float(np.mean(swapped)) if swapped else None
    print(f"swapped prompts give another motion: {share if share is None else round(share, 3)} of {len(swapped)} pairs")
    if options.report:
        write_json(options.report, {"summary": summary, "swapped": share, "clips": rows, "sampler": vars(sampler)})


def things(meshes: Path | None) -> Iterator[Thing]:
    """The files of a folder, or without one ever new procedural objects."""
    if meshes is None:
        for seed in itertools.count(FIRST_SEED):
            yield Thing(str(seed), *random_object(np.random.default_rng(seed)))
    else:
        for path in sorted(meshes.glob("*.npz")):
            with np.load(path, allow_pickle=False) as arrays:
                world, faces = arrays["vertices"][0].astype(np.float64), arrays["faces"].astype(np.int64)
            yield Thing(path.stem, transform_points(np.linalg.inv(subject_to_world(world)), world), faces)


def clip_of(thing: Thing, motion: str, say: str, frames: int) -> Clip:
    """What is asked for and what would be right."""
    trajectories = animate(motion, thing.rest, frames, 1.0)
    rng = np.random.default_rng(sum(f"{thing.name} {motion}".encode()))
    said = f"it {MOTIONS[motion].verbs[0]}" if say == "plain" else caption(motion, 1.0, rng, unseen=say == "unseen")
    return Clip(thing.rest, thing.faces, trajectories, motion, 1.0, "loop", said)


def judge(
    model: MVVDM, sampler: SamplerSettings, clip: Clip, save: Path | None, name: str
) -> tuple[dict[str, float], np.ndarray]:
    """The figures of one clip, and the fitted offsets [F, V, 3]."""
    started = time.perf_counter()
    subject = subject_of(clip)
    pictures = straight(render_clip(clip, 2 * model.info.resolution, [(view, 0) for view in range(4)]))
    video = Video(model.generate(clip.caption, pictures, subject.condition_c2w, sampler, 0), "position")
    generated = time.perf_counter()
    matte = video.frames[..., 3].astype(np.float32) / 255
    fit = for_generated(preset("draft"))
    offsets = fit_motion(subject, None, video, matte, fit, torch.device("cpu"), lambda step, steps: None)
    fitted = time.perf_counter()
    if save:
        save.mkdir(parents=True, exist_ok=True)
        truth = render_clip(clip, model.info.resolution)
        np.savez(save / f"{name}.npz", vertices=clip.rest + offsets, truth=clip.trajectories, faces=clip.faces,
                 video=video.frames, true_video=truth)  # fmt: skip
    figures = compare(offsets, clip) | {"seconds_video": generated - started, "seconds_fit": fitted - generated}
    return figures, offsets


def compare(offsets: np.ndarray, clip: Clip) -> dict[str, float]:
    """Fitted offsets [F, V, 3] against the true ones and against those of all other motions."""
    truth = clip.trajectories - clip.rest
    frames = len(truth)
    plain = {name: animate(name, clip.rest, frames, 1.0) - clip.rest for name in MOTIONS}
    nearest = min(plain, key=lambda name: error(offsets, plain[name]))
    alike = {
        name: max(cosine(offsets, animate(name, clip.rest, frames, 1.0, timing) - clip.rest) for timing in TIMINGS)
        for name in MOTIONS
    }
    return {
        "unexplained": error(offsets, truth) / error(np.zeros_like(truth), truth),
        "amplitude": float((offsets * truth).sum() / np.square(truth).sum()),
        "named": float(nearest == clip.motion),
        "retrieved": float(max(alike, key=alike.get) == clip.motion),
    }


def error(offsets: np.ndarray, truth: np.ndarray) -> float:
    """Mean vertex distance over frames 1.., [F, V, 3] both."""
    return float(np.linalg.norm(offsets[1:] - truth[1:], axis=-1).mean())


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of the angle between two displacement fields: likeness whatever the amplitude."""
    return float((a * b).sum() / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12))


def differ(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.linalg.norm(a - b) > 0.5 * max(np.linalg.norm(a), np.linalg.norm(b)))


def subject_of(clip: Clip) -> Subject:
    """The clip's object as capture would hand it over, without pictures."""
    weld = np.unique(clip.rest.round(9), axis=0, return_inverse=True)[1].reshape(-1)
    cameras = condition_cameras()
    return Subject(
        vertices=clip.rest.astype(np.float32),
        faces=clip.faces.astype(np.int32),
        weld=weld.astype(np.int32),
        to_world=np.eye(4),
        object_names=("object",),
        object_counts=(len(clip.rest),),
        condition_c2w=cameras,
        appearance_c2w=cameras[:0],
        condition_size=128,
        appearance_size=0,
        fovy=CAMERA_FOVY,
    )


def straight(premultiplied: np.ndarray) -> np.ndarray:
    """uint8 pictures [..., 4] from premultiplied to straight alpha."""
    alpha = premultiplied[..., 3:].astype(np.float32) / 255
    color = np.where(alpha > 0, premultiplied[..., :3] / np.maximum(alpha, 1 / 255), 0.0)
    return np.concatenate([color.clip(0, 255).round().astype(np.uint8), premultiplied[..., 3:]], axis=-1)


def show(rows: list[dict], motions: list[str]) -> dict[str, dict[str, float]]:
    """Prints and returns the mean of each figure per motion, and over all."""
    groups = {name: [row for row in rows if row["motion"] == name] for name in motions} | {"all": rows}
    summary = {name: {f: float(np.mean([row[f] for row in group])) for f in FIGURES} for name, group in groups.items()}
    table = Table("motion", *FIGURES)
    for name, means in summary.items():
        table.add_row(name, *(f"{means[figure]:.3f}" for figure in FIGURES))
    Console().print(table)
    return summary


if __name__ == "__main__":
    main()
