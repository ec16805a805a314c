"""All that is promised of a GPU, measured in one go within a fixed time.

    python benchmarks/gpu.py prepare --assets ../shared/assets/dev --golden ../shared/reference/golden --data DIR
    python benchmarks/gpu.py build --wheel gsplat-1.5.3-py3-none-any.whl --site DIR --channels 4
    python benchmarks/gpu.py run --data DIR --out OUT --seconds 150 --gsplat DIR

`prepare` needs the bpy package: it renders the videos that the fit is measured on, and copies the true motions and the
golden network, so that the machine with the GPU needs neither. `build` compiles gsplat's kernels there (nvcc, minutes;
it may run in the background), `run` uses them if they are finished. Each part of `run` is a process with its own time
limit: one that fails or is slow costs the others nothing. The most important come first, and what no longer fits into
the time is left out. `OUT/gpu.json`, written anew after each part, holds their reports and says how each ended, and
`OUT/gpu.log` what they printed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

HERE = Path(__file__).resolve().parent
NAMES = ("fox_run", "horse_gallop", "chest_open")
APPEARANCES = ("color", "position")
FINISHED = "finished"  # a file beside gsplat's kernels
MARGIN = 3.0  # seconds kept for the end
LEAST = 12.0  # seconds under which no part is begun: it would only load its libraries


@dataclass(frozen=True)
class Part:
    """One benchmark: a script of this folder, its arguments, and the seconds after which it is ended."""

    name: str
    script: str
    arguments: tuple[str, ...]
    limit: float
    gsplat: bool = False  # only where its kernels are there; the others run without


def parts(data: Path, device: str, tiny: bool) -> list[Part]:
    """The most important first."""
    at = ("--device", device)
    size = ("--size", "tiny" if tiny else "full")
    short = ("--steps", "2", "--passes", "1") if tiny else ()
    assets = ("--assets", str(data / "assets"), "--videos", str(data / "videos"))
    speed = (*at, *size, "--no-counts")
    compiled = () if tiny else ("--compile",)
    least = ("--reconstruction", "1", "--sds", "2", "--pixels", "32")
    few = ("--names", NAMES[0], "--size", "64") if tiny else ("--names", ",".join(NAMES))
    fit = (*assets, *at, *few)
    low = short or ("--passes", "1")
    paper = (*assets, *at, *size, "--name", NAMES[0])
    # Without gsplat the processor draws, and an iteration takes several times as long.
    fewer, more = (least, least) if tiny else (("--reconstruction", "2", "--sds", "6"), ())
    cloud = ("--gaussians", "500", "--size", "64", "--images", "2") if tiny else ()
    return [
        Part("speed_fast", "mv_vdm_speed.py", (*speed, *short, "--mode", "fast"), 75),
        Part("speed_compiled", "mv_vdm_speed.py", (*speed, *short, "--mode", "fast", *compiled), 200),
        Part("speed_low", "mv_vdm_speed.py", (*speed, *low, "--mode", "low"), 50),
        Part("fit", "motion_fit.py", fit, 60),
        Part("gsplat", "rasterizer_device.py", (*at, *cloud), 25, gsplat=True),
        Part("paper_gsplat", "paper_speed.py", (*paper, *more), 45, gsplat=True),
        Part("parity", "parity_device.py", ("--unet-set", str(data / "golden"), *at), 30),
        Part("paper", "paper_speed.py", (*paper, *fewer), 55),
        Part("fit_position", "motion_fit.py", (*fit, "--appearance", "position"), 40),
    ]


def run(options: argparse.Namespace) -> int:
    """Runs the parts; 0 when all of them ended well."""
    options.out.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + options.seconds - MARGIN
    outcome: dict[str, dict] = {}
    chosen = parts(options.data, options.device, options.tiny)
    if options.only:
        chosen = [part for part in chosen if part.name in options.only.split(",")]
    with tempfile.TemporaryDirectory() as folder, (options.out / "gpu.log").open("w", encoding="utf-8") as log:
        warm = [_start(command, log, _few_threads()) for command in _compile_kernels(options.data)]
        # The kernels may be finished by the end: what had to wait for them gets a second chance.
        for part in (*chosen, *(part for part in chosen if part.gsplat)):
            if outcome.get(part.name, {}).get("seconds") is not None:
                continue
            report = Path(folder) / f"{part.name}.json"
            outcome[part.name] = _run_part(part, report, until, log, options)
            print(part.name, outcome[part.name], flush=True)
            if report.exists():  # also that of a part that was cut off
                outcome[part.name]["report"] = json.loads(report.read_text(encoding="utf-8"))
            text = json.dumps({"seconds_allowed": options.seconds, "parts": outcome}, indent=1)
            (options.out / "gpu.json").write_text(text + "\n", encoding="utf-8")
        for process in warm:
            _end(process)
    return int(any(part["ended"] != "well" for part in outcome.values()))


def _compile_kernels(data: Path) -> list[list[str]]:
    """Small runs whose results are thrown away: they compile numba's kernels, which the timed ones find in its cache.

    They run beside the first part, which keeps the GPU busy and one of the processor's cores.
    """
    assets = ("--assets", str(data / "assets"), "--videos", str(data / "videos"))
    small = ("--gaussians", "100", "--images", "2", "--repeats", "1", "--reference-gaussians", "10")
    return [
        ["motion_fit.py", *assets, "--names", NAMES[0], "--size", "64", "--device", "cpu"],
        ["rasterizer.py", *small, "--report", os.devnull],
    ]


def _few_threads() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


def _run_part(part: Part, report: Path, until: float, log: TextIO, options: argparse.Namespace) -> dict:
    """How the part ended: well | with an error | out of time | left out."""
    left, site = until - time.monotonic(), options.gsplat and options.gsplat.resolve()
    environment = dict(os.environ)
    if part.gsplat:
        if site is None or not (site / FINISHED).exists():
            return {"ended": "left out", "why": "gsplat's kernels are not there"}
        environment |= gsplat_environment(site)
    if left < LEAST:
        return {"ended": "left out", "why": "no time left"}
    log.write(f"\n=== {part.name}\n")
    log.flush()
    started = time.monotonic()
    process = _start([part.script, *part.arguments, "--report", str(report)], log, environment)
    try:
        code = process.wait(min(options.patience * part.limit, left))
        ended = "well" if code == 0 else "with an error"
    except subprocess.TimeoutExpired:
        code, ended = None, "out of time"
    finally:
        _end(process)
    return {"ended": ended, "exit_code": code, "seconds": round(time.monotonic() - started, 1)}


def _start(command: list[str], log: TextIO, environment: Mapping[str, str]) -> subprocess.Popen:
    environment = {**environment, "PYTHONUNBUFFERED": "1", "COLUMNS": "120"}
    script = [sys.executable, str(HERE / command[0]), *command[1:]]
    own = {"start_new_session": True} if os.name == "posix" else {}
    return subprocess.Popen(script, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, **own)


def _end(process: subprocess.Popen) -> None:
    """With all that it started."""
    if process.poll() is not None:
        return
    if os.name == "posix":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def gsplat_environment(site: Path) -> dict[str, str]:
    """What makes Python find the package in `site` and torch the kernels beside it, with the flags of the build."""
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "TORCH_EXTENSIONS_DIR": str(site / "kernels")}


def build(options: argparse.Namespace) -> int:
    """Unpacks gsplat's wheel into a folder and compiles its kernels for the GPU of this machine."""
    site = options.site.resolve()
    with zipfile.ZipFile(options.wheel) as wheel:
        wheel.extractall(site)
    if options.channels:
        _leave_out_channels(site / "gsplat" / "cuda" / "csrc", options.channels)
    environment = {**os.environ, **gsplat_environment(site)}
    started = time.monotonic()
    code = subprocess.call([sys.executable, "-c", "from gsplat.cuda._backend import _C; assert _C"], env=environment)
    seconds = round(time.monotonic() - started, 1)
    print(f"gsplat's kernels: exit code {code} after {seconds} s", flush=True)
    if code == 0:
        (site / FINISHED).write_text(f"{seconds}\n", encoding="utf-8")
    return code


def _leave_out_channels(sources: Path, most: int) -> None:
    """Takes away the kernels for pictures with more channels: they are most of the build, and we draw three."""

    def kept(line: str) -> bool:
        variant = re.fullmatch(r"\s*__(?:INS|LAUNCH_KERNEL)__\((\d+)\)\s*", line)
        return variant is None or int(variant[1]) <= most

    for path in (*sources.glob("*.cu"), *sources.glob("*.cpp")):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(line for line in lines if kept(line)), encoding="utf-8")


def prepare(options: argparse.Namespace) -> int:
    """Puts into `data` all that `run` reads: true motions, rendered videos, the golden network."""
    from motion_videos import assets, true_video  # the videos that are missing need bpy

    manifest = json.loads((options.assets / "manifest.json").read_text(encoding="utf-8"))
    kept = [entry for entry in manifest["assets"] if entry["name"] in NAMES]
    (options.data / "assets" / "gt").mkdir(parents=True, exist_ok=True)
    (options.data / "assets" / "manifest.json").write_text(json.dumps({"assets": kept}), encoding="utf-8")
    for asset in assets(options.assets, NAMES):
        shutil.copyfile(
            options.assets / "gt" / f"{asset.name}.npz", options.data / "assets" / "gt" / f"{asset.name}.npz"
        )
        for appearance in APPEARANCES:
            true_video(asset, appearance, options.data / "videos")
            _compress(options.data / "videos" / f"{asset.name}_{appearance}" / "video" / "video.npz")
    (options.data / "golden").mkdir(exist_ok=True)
    for name in ("config.json", "weights.safetensors", "forward.safetensors"):
        shutil.copyfile(options.golden / "A" / name, options.data / "golden" / name)
    size = sum(path.stat().st_size for path in options.data.rglob("*") if path.is_file())
    print(f"{options.data}: {size / 1e6:.1f} MB")
    return 0


def _compress(path: Path) -> None:
    """A job's video is kept as it is, since that is faster; but this one travels."""
    with np.load(path) as arrays:
        content = dict(arrays)
    np.savez_compressed(path, **content)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("prepare", help="render and copy what the others need")
    command.add_argument("--assets", type=Path, required=True, metavar="DIR", help="as in benchmarks/motion_fit.py")
    command.add_argument("--golden", type=Path, required=True, metavar="DIR", help="as in benchmarks/parity.py")
    command.add_argument("--data", type=Path, required=True, metavar="DIR")
    command.set_defaults(do=prepare)
    command = commands.add_parser("build", help="compile gsplat's kernels")
    command.add_argument("--wheel", type=Path, required=True, metavar="FILE.whl")
    command.add_argument("--site", type=Path, required=True, metavar="DIR", help="for the package and its kernels")
    command.add_argument("--channels", type=int, metavar="N", help="only kernels for pictures with up to N channels")
    command.set_defaults(do=build)
    command = commands.add_parser("run", help="measure")
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help="what `prepare` made")
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.add_argument("--seconds", type=float, default=150.0, help="for everything")
    command.add_argument("--patience", type=float, default=1.0, help="on each part's limit: more for slow machines")
    command.add_argument("--device", default="cuda")
    command.add_argument("--gsplat", type=Path, metavar="DIR", help="the folder that `build` fills")
    command.add_argument("--only", default="", metavar="A,B", help="only these parts")
    command.add_argument("--tiny", action="store_true", help="the smallest sizes: does everything start?")
    command.set_defaults(do=run)
    options = parser.parse_args()
    return options.do(options)


if __name__ == "__main__":
    sys.exit(main())
