"""The released model at full size, with random values: is it converted and loaded in the memory of an ordinary machine?

    python benchmarks/weights_full.py --report out/bench/weights_full.json

Writes the 11 GB of released files (`released_set`), converts them as `python -m backend weights convert` does, verifies
and loads the result, each in a process of its own, and deletes everything. *peak* is the most memory that was resident;
*own* leaves out pages of mapped files, which the system takes back when it needs them.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

STAGES = ("write", "convert", "verify", "load", "load_float32")
TARGET_GB = 16.0
POLL = 0.05  # seconds


def write(folder: Path) -> None:
    from benchmarks.released_set import FULL, write_released

    write_released(folder / "released", FULL)


def convert(folder: Path) -> None:
    from backend.weights.command import main

    if main(["convert", str(folder / "released"), "--to", str(folder / "model")]):
        raise SystemExit(1)


def verify(folder: Path) -> None:
    from backend.weights.command import main

    if main(["verify", str(folder / "model")]):
        raise SystemExit(1)


def load(folder: Path, dtype: str = "float16") -> None:
    """In float16 the files stay mapped; in float32, as CPUs need it, everything is read and doubled."""
    import torch

    from backend.mv_vdm.execution import Execution
    from backend.mv_vdm.pipeline import MVVDM

    model = MVVDM.from_pretrained(folder / "model", "cpu", Execution(getattr(torch, dtype)))
    numbers = sum(tensor.numel() for tensor in model.unet.state_dict().values())
    if numbers != 1_527_409_902:
        raise SystemExit(f"The UNet has {numbers} elements.")


def load_float32(folder: Path) -> None:
    load(folder, "float32")


def measure(stage: str, folder: Path) -> dict:
    """Runs one stage in a process of its own; seconds, and gigabytes at their peak."""
    begin = time.perf_counter()
    command = [sys.executable, __file__, "--stage", stage, "--folder", str(folder)]
    with psutil.Popen(command) as process:
        peak = own = 0
        while process.poll() is None:
            try:
                memory = process.memory_info()
            except psutil.Error:
                break
            peak, own = max(peak, memory.rss), max(own, memory.rss - getattr(memory, "shared", 0))
            time.sleep(POLL)
    if process.returncode:
        raise SystemExit(f"The stage {stage} failed.")
    return {"seconds": time.perf_counter() - begin, "peak_gb": peak / 1e9, "own_gb": own / 1e9}


def size_gb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


def run(place: Path | None) -> dict:
    with tempfile.TemporaryDirectory(prefix="weights_full_", dir=place) as name:
        folder = Path(name)
        stages = {stage: measure(stage, folder) for stage in STAGES}
        return {
            "device": platform.processor() or platform.machine(),
            "released_gb": size_gb(folder / "released"),
            "converted_gb": size_gb(folder / "model"),
            "stages": stages,
        }


def show(report: dict) -> bool:
    title = f"{report['released_gb']:.2f} GB as released, {report['converted_gb']:.2f} GB converted"
    table = Table("", "seconds", "peak GB", "own GB", title=title)
    for stage, row in report["stages"].items():
        table.add_row(stage, *(f"{row[name]:.1f}" for name in ("seconds", "peak_gb", "own_gb")))
    Console().print(table)
    good = all(report["stages"][stage]["peak_gb"] <= TARGET_GB for stage in STAGES[1:])
    print(f"{'Within' if good else 'NOT within'} {TARGET_GB:.0f} GB.")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, metavar="FILE.json")
    parser.add_argument("--folder", type=Path, help="where 16 GB are free; the system's folder for temporary files")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        globals()[options.stage](options.folder)
        return 0
    report = run(options.folder)
    if options.report:
        from backend.protocol import write_json

        options.report.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.report, report)
    return 0 if show(report) else 1


if __name__ == "__main__":
    sys.exit(main())
