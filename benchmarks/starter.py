"""Does a model do what the prompt says? Prompt to vertices on held-out procedural objects, against the true motion.

    python benchmarks/starter.py --weights weights/starter --clips 4 --report out/bench/starter.json

For each motion: objects that training never saw, their condition views, a sentence; the generated video is fitted and
the vertices compared with the formula's. *unexplained* is mean vertex error over that of standing still, *amplitude*
the share of the true motion that is there (its projection), *named* whether the truth is the nearest of all motions.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backend.motion.fit import fit_motion
from backend.motion.settings import for_generated, preset
from backend.mv_vdm.pipeline import MVVDM
from backend.protocol import (
    CAMERA_FOVY,
    Subject,
    Video,
    condition_cameras,
    write_json,
)
from backend.training.clips import HELD_OUT_SEED, Clip, make_clip, render_clip
from backend.training.motions import MOTIONS, animate

FIRST_SEED = HELD_OUT_SEED + 10_000  # apart from what training measures itself on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path("weights/starter"))
    parser.add_argument("--clips", type=int, default=4, help="objects per motion")
    parser.add_argument("--steps", type=int, help="sampling steps; the model's own by default")
    parser.add_argument("--guidance", type=float, help="guidance scale; the model's own by default")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--save", type=Path, help="folder for predicted and true vertices")
    options = parser.parse_args()
    model = MVVDM.from_pretrained(options.weights)
    chosen = {"steps": options.steps, "guidance_scale": options.guidance}
    settings = replace(model.info.sampler, **{key: value for key, value in chosen.items() if value is not None})
    rows = []
    for motion in MOTIONS:
        for _ in range(options.clips):
            seed = FIRST_SEED + len(rows)
            clip = make_clip(seed, model.info.num_frames, motion)
            rows.append({"motion": motion, "caption": clip.caption, **judge(model, settings, clip, options.save, seed)})
            print(" ".join(f"{value:.3f}" if isinstance(value, float) else str(value) for value in rows[-1].values()),
                  flush=True)  # fmt: skip
    summary = show(rows)
    if options.report:
        write_json(options.report, {"summary": summary, "clips": rows, "sampler": vars(settings)})


def judge(model: MVVDM, settings: object, clip: Clip, save: Path | None, seed: int) -> dict[str, float]:
    """The figures of one clip."""
    started = time.perf_counter()
    frames = len(clip.trajectories)
    subject = subject_of(clip)
    pictures = straight(render_clip(clip, 2 * model.info.resolution, [(view, 0) for view in range(4)]))
    video = Video(model.generate(clip.caption, pictures, subject.condition_c2w, settings, 0), "position")
    generated = time.perf_counter()
    matte = video.frames[..., 3].astype(np.float32) / 255
    fit = for_generated(preset("draft"))
    offsets = fit_motion(subject, None, video, matte, fit, torch.device("cpu"), lambda step, steps: None)
    fitted = time.perf_counter()
    truth = clip.trajectories - clip.rest
    if save:
        save.mkdir(parents=True, exist_ok=True)
        np.savez(save / f"{seed}.npz", vertices=clip.rest + offsets, truth=clip.trajectories, faces=clip.faces)
    others = {name: animate(name, clip.rest, frames, clip.strength) - clip.rest for name in MOTIONS}
    nearest = min(others, key=lambda name: error(offsets, others[name]))
    return {
        "unexplained": error(offsets, truth) / error(np.zeros_like(truth), truth),
        "amplitude": float((offsets * truth).sum() / np.square(truth).sum()),
        "named": float(nearest == clip.motion),
        "seconds_video": generated - started,
        "seconds_fit": fitted - generated,
    }


def error(offsets: np.ndarray, truth: np.ndarray) -> float:
    """Mean vertex distance over frames 1.., [F, V, 3] both."""
    return float(np.linalg.norm(offsets[1:] - truth[1:], axis=-1).mean())


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


def show(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Prints and returns the mean of each figure per motion, and over all."""
    figures = ("unexplained", "amplitude", "named", "seconds_video", "seconds_fit")
    groups = {name: [row for row in rows if row["motion"] == name] for name in MOTIONS} | {"all": rows}
    summary = {name: {f: float(np.mean([row[f] for row in group])) for f in figures} for name, group in groups.items()}
    table = Table("motion", *figures)
    for name, means in summary.items():
        table.add_row(name, *(f"{means[figure]:.3f}" for figure in figures))
    Console().print(table)
    return summary


if __name__ == "__main__":
    main()
