"""How fast MV-VDM is and how much memory it takes, with random weights: `python benchmarks/mv_vdm_speed.py --mode low`.

Always: operations of one guided step, in the reference's dense form and as done here, and the memory of each mode, all
by count. On a GPU: a whole run (text, pictures, 25 steps x 3 FreeInit passes with guidance, decoding) after one to warm
up: seconds per step and per run, peak memory, TFLOP/s and their share of a large matrix product's, timed just before.
On a CPU the full size gets one forward pass without guidance. `--report FILE.json` adds date, device and versions.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
import torch
from diffusers import DDIMScheduler
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backend import device as devices
from backend.memory import PeakMemory
from backend.mv_vdm.execution import MODES, Execution, for_large_model, pick_mode
from backend.mv_vdm.pipeline import MVVDM, ModelInfo
from backend.mv_vdm.sampling import SamplerSettings
from backend.mv_vdm.unet import MVVDMUNet
from backend.protocol import condition_cameras, write_json
from backend.training.captions import build_tokenizer
from benchmarks.mv_vdm_counts import (
    SIZES,
    Size,
    builders,
    count_flops,
    count_memory_gb,
    count_reference_flops,
    step_inputs,
)

ATTENTION = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
FALLBACKS = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear", "clip_sample": False}


def main() -> None:
    options = read_options()
    device, size = devices.pick(options.device), SIZES[options.size]
    mode = pick_mode(devices.free_memory_gb(device), device) if options.mode == "auto" else MODES[options.mode]
    execution = replace(for_large_model(device, mode), compile=options.compile)
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cpu.get_capabilities()["cpu_name"] if device.type == "cpu" else devices.name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "versions": devices.versions(),
        "size": options.size,
        "mode": mode.name,
        "compute": str(execution.dtype),
        "stored": str(execution.stored or execution.dtype),
        "compiled": options.compile,
        "attention": options.attention,
    }
    if not options.no_counts:
        report["counts"] = counts(size)
        show("By count", report["counts"])
    if not options.count_only:
        report["measured"] = measure(size, device, execution, options)
        show(f"Measured on {report['device']}, mode {mode.name}", report["measured"])
    if options.report:
        write_json(options.report, report)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--mode", choices=("auto", *MODES), default="auto")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--passes", type=int, default=3, help="FreeInit passes")
    parser.add_argument("--attention", choices=ATTENTION, help="which attention kernels to prefer; torch's choice else")
    parser.add_argument("--compile", action="store_true", help="let torch compile the UNet")
    parser.add_argument("--count-only", action="store_true", help="no run")
    parser.add_argument("--no-counts", action="store_true", help="no table of what was counted: saves half a minute")
    parser.add_argument("--report", type=Path)
    return parser.parse_args()


def counts(size: Size) -> dict[str, float]:
    """TFLOP per step and GB per mode."""
    found = {
        "guided_step_reference_tflop": count_reference_flops(size, 2) / 1e12,
        "guided_step_tflop": count_flops(size, 2) / 1e12,
        "unguided_step_tflop": count_flops(size, 1) / 1e12,
    }
    for mode in MODES.values():
        for part, gb in count_memory_gb(size, mode, guided=True).items():
            found[f"{mode.name}_{part}_peak_gb"] = gb
    return found


def measure(size: Size, device: torch.device, execution: Execution, options: argparse.Namespace) -> dict[str, float]:
    prefer = nullcontext()
    if options.attention:
        prefer = sdpa_kernel([ATTENTION[options.attention], *FALLBACKS], set_priority=True)
    with prefer:
        if device.type == "cpu" and options.size == "full":
            return measure_forward(size, device, execution)
        return measure_run(size, device, execution, SamplerSettings(options.steps, 7.5, options.passes))


def measure_run(size: Size, device: torch.device, execution: Execution, settings: SamplerSettings) -> dict[str, float]:
    """A whole guided run, after a short one."""
    ceiling = matmul_tflops(device, execution.dtype)
    model = random_model(size, device, execution)
    pictures = np.random.default_rng(0).integers(0, 256, (4, size.resolution, size.resolution, 4), np.uint8)
    ends: list[float] = []

    def note(*_: object) -> None:
        synchronise(device)
        ends.append(time.perf_counter())

    def run(settings: SamplerSettings) -> float:
        ends.clear()
        synchronise(device)
        started = time.perf_counter()
        model.generate("it sways", pictures, condition_cameras(), settings, callback=note)
        return time.perf_counter() - started

    first = run(replace(settings, steps=2, freeinit_iterations=1))
    with peak_memory(device) as peak:
        seconds = run(settings)
    halves = 2 if execution.mode.split_guidance else 1
    flops = halves * count_flops(size, 2 // halves)
    step = float(np.median(np.diff(ends)))
    return {
        "warm_up_seconds": first,
        "run_seconds": seconds,
        "steps": len(ends),
        "step_seconds": step,
        "peak_gb": peak[0],
        **rates(flops, step, ceiling),
    }


@torch.inference_mode()
def measure_forward(size: Size, device: torch.device, execution: Execution) -> dict[str, float]:
    """One forward pass of the UNet without guidance."""
    ceiling = matmul_tflops(device, execution.dtype)
    with peak_memory(device) as peak:
        network = random_unet(size, device, execution)
        inputs = {
            key: value.to(device, execution.dtype) if value.is_floating_point() else value
            for key, value in step_inputs(size, 1).items()
        }
        started = time.perf_counter()
        out = network(**inputs)
        seconds = time.perf_counter() - started
    if not out.isfinite().all():
        raise SystemExit("The network's output is not finite.")
    return {"forward_seconds": seconds, "peak_gb": peak[0], **rates(count_flops(size, 1), seconds, ceiling)}


def rates(flops: int, seconds: float, ceiling: float) -> dict[str, float]:
    reached = flops / seconds / 1e12
    return {"tflops": reached, "matmul_tflops": ceiling, "share_of_matmul": reached / ceiling}


def random_model(size: Size, device: torch.device, execution: Execution) -> MVVDM:
    """Everything with random weights; only the sizes are the released model's."""
    networks = {"unet": random_unet(size, device, execution)}
    for name, build in builders(size).items():
        if name != "unet":
            with device:  # where a billion random numbers take no time
                networks[name] = build().eval().requires_grad_(False)
            parked = execution.mode.park_unused
            execution.place(networks[name], "cpu" if parked else device, is_vae=name == "vae")
    if execution.compile:
        networks["unet"].compile_layers()
    info = ModelInfo(num_frames=size.frames, resolution=size.resolution)
    return MVVDM(
        **networks,
        tokenizer=build_tokenizer(),
        scheduler=DDIMScheduler(**SCHEDULE, steps_offset=1, timestep_spacing="leading"),
        info=info,
        mode=execution.mode,
    )


def random_unet(size: Size, device: torch.device, execution: Execution) -> MVVDMUNet:
    """Built without memory and filled in the type that it is kept in."""
    with torch.device("meta"):
        network = builders(size)["unet"]().to(execution.stored or execution.dtype)
    network = network.to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.dim() > 1:  # weights that keep the size of what goes through
            tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
        else:
            tensor.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    execution.place(network, device)
    return network


def matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of a large matrix product: the ceiling."""
    length = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(length, length, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(8):
        synchronise(device)
        started = time.perf_counter()
        left @ right
        synchronise(device)
        times.append(time.perf_counter() - started)
    return 2 * length**3 / min(times) / 1e12


def synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[float]]:
    """Yields a list that holds the peak in GB afterwards: allocated on the GPU, or resident in this process."""
    peak: list[float] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.append(torch.cuda.max_memory_allocated(device) / devices.GB)
    else:
        watch = PeakMemory(with_parent=False)
        watch.take()
        yield peak
        peak.append(max(watch.take(), psutil.Process().memory_info().rss / devices.GB))


def show(title: str, values: dict[str, float]) -> None:
    table = Table("figure", "value", title=title)
    for name, value in values.items():
        table.add_row(name, f"{value:.4g}")
    Console().print(table)


if __name__ == "__main__":
    main()
