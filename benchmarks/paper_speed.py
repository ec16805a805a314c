"""What the `paper` preset's two stages cost with a model of the released size: `python benchmarks/paper_speed.py`.

    python benchmarks/paper_speed.py --assets DIR --videos DIR --name fox_run --report paper.json

Times a slice of each stage and multiplies: nothing of what is called `extrapolated` was run whole. Reconstruction costs
more the more frames take part, so its slice goes through all of them in the shares of the full run (750 iterations, a
further frame each 50). 4D-SDS costs the same at every iteration (250). The weights are random, so the motion is worth
nothing; numbers and sizes are the released model's. By count its 250 iterations are 26 PFLOP.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import motion_videos as videos
import numpy as np
import torch
from motion_fit import make_splats
from mv_vdm_counts import SIZES
from mv_vdm_speed import matmul_tflops, peak_memory, random_model, synchronise

from backend import device as devices
from backend.motion.hexplane import HexPlane
from backend.motion.matte import key_matte
from backend.motion.render_fit import fit_by_rendering
from backend.motion.sds_fit import SdsSettings
from backend.motion.settings import preset
from backend.mv_vdm.execution import FAST, Execution, for_large_model
from backend.mv_vdm.pipeline import MVVDM
from backend.presets import sds_settings
from backend.protocol import write_json
from backend.splats.cuda_gsplat import gsplat_usable
from backend.splats.gaussians import Gaussians
from backend.steps import refine_motion

SDS_PFLOP = 26.0  # 250 guided iterations with the full VAE encoder, forward and backward


class Clock:
    """The seconds of each iteration, from the callback of a stage."""

    def __init__(self, device: torch.device, tell: Callable[[list[float]], None]) -> None:
        self.device, self.tell, self.ends = device, tell, []

    def start(self) -> Clock:
        synchronise(self.device)
        self.ends = [time.perf_counter()]
        return self

    def __call__(self, step: int, steps: int) -> None:
        synchronise(self.device)
        self.ends.append(time.perf_counter())
        self.tell(self.seconds)

    @property
    def seconds(self) -> list[float]:
        return np.diff(self.ends).tolist()


class Report:
    """Figures that are written as soon as they are known: what comes later may be cut off."""

    def __init__(self, path: Path | None, device: torch.device) -> None:
        self.path = path
        self.content: dict = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": devices.name(device),
            "versions": devices.versions(),
        }

    def add(self, **figures: object) -> None:
        self.content |= figures
        if self.path:
            write_json(self.path, self.content)


def main() -> int:
    options = _options()
    device = devices.pick(options.device)
    report = Report(options.report, device)
    asset = videos.assets(options.assets, [options.name])[0]
    made = videos.true_video(asset, "color", options.videos)
    drawn_by = "gsplat" if device.type == "cuda" and gsplat_usable() else "the CPU rasterizer"
    report.add(rasterizer=drawn_by, threads=torch.get_num_threads(), asset=options.name, size=options.size)
    splats = _splats(made, device, report)
    field = _reconstruct(made, splats, device, options, report)
    if options.sds:
        _refine(made, splats, field, device, options, report)
    for name, value in report.content.items():
        print(f"{name:45} {value:.4g}" if isinstance(value, float) else f"{name:45} {value}", flush=True)
    return 0


def _splats(made: videos.TrueVideo, device: torch.device, report: Report) -> Gaussians:
    """As the road makes them; once to warm up."""
    make_splats(made.subject, made, made.frames, device)
    synchronise(device)
    started = time.perf_counter()
    splats = make_splats(made.subject, made, made.frames, device)
    synchronise(device)
    report.add(gaussians=len(splats), splats_seconds=time.perf_counter() - started)
    return splats


def _reconstruct(
    made: videos.TrueVideo, splats: Gaussians, device: torch.device, options: argparse.Namespace, report: Report
) -> HexPlane:
    paper = replace(preset("paper"), image_size=options.pixels)
    per_frame = options.reconstruction
    frames, subject = made.frames, made.subject
    matte = key_matte(frames, frames[:, 0, ..., 3].astype(np.float32) / 255.0)
    last = frames.shape[1] - 1

    def tell(seconds: list[float]) -> None:
        """After each iteration; the first ones are those with few frames."""
        if len(seconds) % last == 0:
            report.add(reconstruction_iterations=len(seconds), reconstruction_with_all_frames_seconds=seconds[-1])

    warm = replace(paper, iterations=last, frames_every=1)  # every number of frames has buffers of its own
    fit_by_rendering(subject, splats, frames, matte, warm, device, lambda step, steps: None)
    slice_of = replace(paper, iterations=last * per_frame, frames_every=per_frame)
    clock = Clock(device, tell)
    with peak_memory(device) as peak:
        field, losses = fit_by_rendering(subject, splats, frames, matte, slice_of, device, clock.start())
    # The first interval holds the preparations, which come once.
    each = float(np.mean(clock.seconds[1:]))
    report.add(
        reconstruction_iteration_seconds=each,
        reconstruction_preparation_seconds=clock.seconds[0],
        reconstruction_peak_gb=peak[0],
        reconstruction_loss=[losses[0], losses[-1]],
        reconstruction_extrapolated_seconds=each * paper.iterations,
    )
    return field


def _refine(
    made: videos.TrueVideo,
    splats: Gaussians,
    field: HexPlane,
    device: torch.device,
    options: argparse.Namespace,
    report: Report,
) -> None:
    """4D-SDS in the released settings, all but the number of iterations."""
    execution = for_large_model(device, FAST) if options.size == "full" else Execution()
    ceiling = matmul_tflops(device, execution.dtype)
    model = random_model(SIZES[options.size], device, execution)
    whole = sds_settings("paper").iterations

    def tell(seconds: list[float]) -> None:
        report.add(sds_iterations=len(seconds), sds_iteration_seconds=float(np.median(seconds[1:] or seconds)))

    with peak_memory(device) as peak:
        settings = replace(sds_settings("paper"), anchor_size=options.pixels)
        _sds(model, made, splats, field, replace(settings, iterations=1), lambda step, steps: None)
        clock = Clock(device, tell)
        _sds(model, made, splats, field, replace(settings, iterations=options.sds), clock.start())
    each = report.content["sds_iteration_seconds"]
    floor = SDS_PFLOP * 1e3 / whole / ceiling
    report.add(
        sds_preparation_seconds=clock.seconds[0] - each,
        sds_peak_gb=peak[0],
        sds_extrapolated_seconds=each * whole,
        matmul_tflops=ceiling,
    )
    if options.size == "full":
        report.add(sds_floor_seconds=floor * whole, sds_times_the_floor=each / floor)
    total = report.content["reconstruction_extrapolated_seconds"] + each * whole
    report.add(both_stages_extrapolated_seconds=total)


def _sds(
    model: MVVDM,
    made: videos.TrueVideo,
    splats: Gaussians,
    field: HexPlane,
    settings: SdsSettings,
    callback: Callable[[int, int], None],
) -> None:
    refine_motion(made.subject, model, "it runs", field, made.frames.shape[1], splats, settings, 0, callback)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True, metavar="DIR", help="as in benchmarks/motion_fit.py")
    parser.add_argument("--videos", type=Path, required=True, metavar="DIR", help="as in benchmarks/motion_fit.py")
    parser.add_argument("--name", default="fox_run", help="the asset")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", choices=SIZES, default="full", help="of the model")
    parser.add_argument("--pixels", type=int, default=256, help="of the pictures that are compared; the paper's 256")
    parser.add_argument("--reconstruction", type=int, default=4, help="iterations per number of frames; the paper's 50")
    parser.add_argument("--sds", type=int, default=10, help="iterations of 4D-SDS; the paper's 250")
    parser.add_argument("--report", type=Path, metavar="FILE.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
