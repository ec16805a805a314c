"""How right is the motion that the fit reads off a video, against known motion?

    python benchmarks/motion_fit.py --assets DIR --appearance color --report fit.json --save out/fit --sheets out/sheets

Each animated asset is rendered as a perfect model would see it move (four views, 16 frames), the fit gets the mesh of
frame 0 and that video, and its vertices are compared with the truth. `--degraded` makes the video as bad as generated
ones are, `--still` shows the first frame all the time. Needs the bpy package, but not where `--videos` has them all.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # both as in backend/__main__.py, before numpy is imported
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import imageio.v3 as iio
import motion_videos as videos
import numpy as np
import torch

from backend import device as devices
from backend.evaluation.motion import novel_view_psnr, score_motion
from backend.memory import PeakMemory, take_gpu_peak
from backend.motion.fit import fit_motion, road_of
from backend.motion.matte import key_matte
from backend.motion.settings import FitSettings, preset
from backend.protocol import Subject, Video, position_code, transform_points, write_json, write_npz
from backend.splats.appearance import refine_shape, solve_colors
from backend.splats.gaussians import Gaussians, from_mesh
from backend.training.render import render

FIELDS = {  # which settings stand for each field
    "default": preset("standard"),
    "hexplane": preset("paper"),
}
SPLATS = 20_000
COLUMNS = (
    "nothing",
    "error",
    "unexplained",
    "worst",
    "edges",
    "true_edges",
    "jitter",
    "psnr",
    "seconds",
    "cpu_seconds",
    "memory_gb",
)
SHEET_FRAMES = (0, 3, 6, 9, 12, 15)


def main() -> int:
    options = _options()
    settings, device = FIELDS[options.field], devices.pick(options.device)
    names = [name for name in options.names.split(",") if name]
    print(f"{'asset':14}" + "".join(f"{column:>12}" for column in COLUMNS), flush=True)
    rows, peak = [], PeakMemory(with_parent=False)
    with tempfile.TemporaryDirectory() as temporary:
        for asset in videos.assets(options.assets, names):
            made = videos.true_video(asset, options.appearance, options.videos or Path(temporary))
            row = _run(asset, made, options, settings, device, peak)
            rows.append(row)
            print(f"{row['name']:14}" + "".join(f"{row[column]:12.3f}" for column in COLUMNS), flush=True)
            if options.report:  # after each asset: the whole takes a while
                _write_report(options, settings, device, rows)
    print("  ".join(f"{name} {value:.3f}" for name, value in _summary(rows).items()))
    return 0


def _write_report(options: argparse.Namespace, settings: FitSettings, device: torch.device, rows: list[dict]) -> None:
    kept = {
        key: str(value)
        for key, value in vars(options).items()
        if key not in ("assets", "report", "save", "sheets", "videos")
    }
    content = {
        "options": kept,
        "settings": asdict(settings),
        "versions": devices.versions(),
        "device": devices.name(device),
        "threads": torch.get_num_threads(),
        "summary": _summary(rows),
        "rows": rows,
    }
    write_json(options.report, content)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--assets", type=Path, required=True, metavar="DIR", help="with manifest.json and gt/")
    parser.add_argument("--names", default="", metavar="A,B", help="only these assets")
    parser.add_argument("--appearance", default="color", choices=("color", "position"), help="what the video shows")
    parser.add_argument("--field", default="default", choices=FIELDS, help="hexplane: the paper's")
    parser.add_argument("--size", type=int, default=256, choices=(64, 128, 256), help="pixels of the video")
    parser.add_argument("--degraded", action="store_true", help="blur, noise, drift; true colours lose their alpha")
    parser.add_argument("--keyed", action="store_true", help="no alpha: the fit gets our matte instead")
    parser.add_argument("--still", action="store_true", help="the video shows its first frame all the time")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--report", type=Path, metavar="FILE.json")
    parser.add_argument("--save", type=Path, metavar="DIR", help="NAME.npz with `vertices` [16, V, 3] in world space")
    parser.add_argument("--sheets", type=Path, metavar="DIR", help="NAME.png: truth above, fit below")
    parser.add_argument("--videos", type=Path, metavar="DIR", help="keeps the rendered videos for the next run")
    return parser.parse_args()


def _run(
    asset: videos.Asset,
    made: videos.TrueVideo,
    options: argparse.Namespace,
    settings: FitSettings,
    device: torch.device,
    peak: PeakMemory,
) -> dict:
    frames, matte = prepare(made.frames, options)
    subject, video = made.subject, Video(frames, options.appearance)
    peak.take()
    take_gpu_peak()
    started, started_cpu = time.monotonic(), time.process_time()
    splats = None
    if road_of(settings, options.appearance, len(subject.faces) > 0) == "rendering":
        splats = make_splats(subject, made, frames, device)
    offsets = fit_motion(subject, splats, video, matte, settings, device, lambda step, steps: None)
    seconds, cpu_seconds, memory = time.monotonic() - started, time.process_time() - started_cpu, peak.take()
    gpu_memory = take_gpu_peak()
    to_subject = np.linalg.inv(subject.to_world)
    truth = transform_points(to_subject, asset.vertices.astype(np.float64)).astype(np.float32)
    found = truth[:1] + offsets
    score = asdict(score_motion(found, truth, asset.faces, subject.weld))
    if options.still:  # the share of the diagonal by which a vertex moves where nothing does
        score["error"] = _motion(found)
    psnr = novel_view_psnr(found, truth, asset.faces)
    if options.save:
        world = asset.vertices[:1] + offsets @ subject.to_world[:3, :3].T
        write_npz(options.save / f"{asset.name}.npz", vertices=world.astype(np.float32))
    if options.sheets:
        _write_sheet(options.sheets / f"{asset.name}.png", truth, found, asset.faces, subject)
    return {
        "name": asset.name,
        **score,
        "psnr": psnr,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "memory_gb": memory,
        "gpu_memory_gb": gpu_memory,
    }


def prepare(frames: np.ndarray, options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """The video [4, F, S, S, C] uint8 as the options want it, and its matte [4, F, S, S]."""
    frames = videos.resize(frames, options.size)
    if options.still:
        frames = np.repeat(frames[:, :1], frames.shape[1], axis=1)
    first_alpha = frames[:, 0, ..., 3].astype(np.float32) / 255.0
    if options.degraded:
        frames = videos.degrade(frames, videos.Degradation())
    # Only a model of true colours has no alpha of its own.
    if options.keyed or (options.degraded and options.appearance == "color"):
        frames = videos.over_grey(frames)
    return frames, key_matte(frames, first_alpha)


def make_splats(subject: Subject, made: videos.TrueVideo, frames: np.ndarray, device: torch.device) -> Gaussians:
    """As the road makes them, from the captured pictures."""
    gaussians = from_mesh(torch.from_numpy(subject.vertices), torch.from_numpy(subject.faces).long(), SPLATS, 0)
    pictures = made.ring if len(made.ring) else frames[:, 0]
    cameras = subject.appearance_c2w if len(made.ring) else subject.condition_c2w
    images = torch.from_numpy(pictures).float() / 255.0
    images = torch.cat([images[..., :3] * images[..., 3:], images[..., 3:]], dim=-1).to(device)
    c2w, gaussians = torch.from_numpy(cameras).float().to(device), gaussians.to(device)
    if len(made.ring):
        return solve_colors(gaussians, images, c2w, subject.fovy)
    code = torch.from_numpy(position_code(gaussians.means.cpu().numpy(), *subject.box))
    return refine_shape(gaussians.with_colors(code), images, c2w, subject.fovy)


def _motion(found: np.ndarray) -> float:
    """Mean motion of the vertices [F, V, 3] after frame 0, percent of the diagonal."""
    diagonal = np.linalg.norm(np.ptp(found[0], axis=0))
    return float(100.0 * np.linalg.norm(found[1:] - found[:1], axis=-1).mean() / diagonal)


def _summary(rows: list[dict]) -> dict[str, float]:
    unexplained = np.array([row["unexplained"] for row in rows])
    return {
        "median unexplained": float(np.median(unexplained)),
        "above .40": int((unexplained > 0.4).sum()),
        "median jitter": float(np.median([row["jitter"] for row in rows])),
        "most edges beyond truth": float(max(row["edges"] - row["true_edges"] for row in rows)),
        "median seconds": float(np.median([row["seconds"] for row in rows])),
        "median cpu seconds": float(np.median([row["cpu_seconds"] for row in rows])),  # tells on a busy machine
        "most memory GB": float(max(row["memory_gb"] for row in rows)),
    }


def _write_sheet(path: Path, truth: np.ndarray, found: np.ndarray, faces: np.ndarray, subject: Subject) -> None:
    """Views 0 and 1 in position codes: a row of the truth above a row of the fit, for each."""
    code = position_code(truth[0], *subject.box).astype(np.float32)
    rows = []
    for view in (0, 1):
        for motion in (truth, found):
            cells = [render(motion[f].astype(np.float64), faces, code, subject.condition_c2w[view], 192)
                     for f in SHEET_FRAMES]  # fmt: skip
            rows.append(np.concatenate([cell[..., :3] + (1 - cell[..., 3:]) for cell in cells], axis=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    iio.imwrite(path, np.round(255 * np.clip(np.concatenate(rows), 0, 1)).astype(np.uint8))


if __name__ == "__main__":
    sys.exit(main())
