"""How fast the CPU rasterizer is: `python benchmarks/rasterizer.py --report FILE.json`.

Three measurements: one image of many anisotropic Gaussians, 64 images at once with the peak of memory, and a size that
the plain torch reference can do too, with the ratio. Times are the best and the median of several runs in milliseconds
of wall time; on a machine that does other things as well, trust the best.
"""

import argparse
import json
import math
import platform
import resource
import statistics
import sys
import time
from pathlib import Path

import numba
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from backend.splats import rasterize


def ring_of_cameras(count: int) -> Tensor:
    """OpenGL camera-to-world [count, 4, 4]: elevation 15 degrees, distance 3, evenly round the object."""
    azimuth = torch.arange(count, dtype=torch.float64) * 2 * math.pi / count
    elevation = torch.full_like(azimuth, math.radians(15))
    zero = torch.zeros_like(azimuth)
    back = torch.stack([elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()], -1)
    right = torch.stack([-azimuth.sin(), azimuth.cos(), zero], -1)
    c2w = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    c2w[:, :3] = torch.stack([right, torch.linalg.cross(back, right), back, 3 * back], -1)
    return c2w


def scene(count: int, seed: int) -> list[Tensor]:
    """Randomly turned, anisotropic Gaussians (up to 9 : 1) on a sphere that fills most of the picture."""
    g = torch.Generator().manual_seed(seed)
    means = 0.9 * torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=-1)
    spacing = 0.9 * math.sqrt(4 * math.pi / count)
    scales = spacing * (0.1 + 0.8 * torch.rand(count, 3, generator=g))
    quats, colors = torch.randn(count, 4, generator=g), torch.rand(count, 3, generator=g)
    opacities = 0.5 + 0.5 * torch.rand(count, generator=g)
    return [t.requires_grad_() for t in (means, quats, scales, opacities, colors)]


def measure(inputs: list[Tensor], images: int, size: int, repeats: int, reference: bool = False) -> dict[str, float]:
    """Best and median milliseconds of forward, backward and their sum, after one run to warm up."""
    c2w = ring_of_cameras(images)
    forward, backward = [], []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        rgb, alpha = rasterize(*inputs, c2w, 40.0, size, size, reference=reference)
        middle = time.perf_counter()
        ones = [torch.ones_like(rgb), torch.ones_like(alpha)]
        begin_backward = time.perf_counter()
        torch.autograd.grad([rgb, alpha], inputs, ones)
        forward.append(1e3 * (middle - begin))
        backward.append(1e3 * (time.perf_counter() - begin_backward))
    both = [f + b for f, b in zip(forward, backward, strict=True)]
    times = {"forward": forward[1:], "backward": backward[1:], "sum": both[1:]}
    best = {f"{name}_ms": min(values) for name, values in times.items()}
    return best | {f"{name}_median_ms": statistics.median(values) for name, values in times.items()}


def peak_megabytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def run(arguments: argparse.Namespace) -> dict:
    inputs = scene(arguments.gaussians, arguments.seed)
    shape = {"gaussians": arguments.gaussians, "size": arguments.size}
    single = shape | {"images": 1} | measure(inputs, 1, arguments.size, arguments.repeats)
    before = peak_megabytes()
    many = shape | {"images": arguments.images}
    many |= measure(inputs, arguments.images, arguments.size, max(1, arguments.repeats // 10))
    many |= {"peak_mb": peak_megabytes(), "peak_before_mb": before}
    small_inputs = scene(arguments.reference_gaussians, arguments.seed)
    small = {"gaussians": arguments.reference_gaussians, "size": arguments.reference_size, "images": 1}
    ours = small | measure(small_inputs, 1, arguments.reference_size, arguments.repeats)
    dense = small | measure(small_inputs, 1, arguments.reference_size, max(1, arguments.repeats // 10), reference=True)
    return {
        "device": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numba": numba.__version__},
        "seed": arguments.seed,
        "repeats": arguments.repeats,
        "one_image": single,
        "many_images": many,
        "small": ours,
        "small_reference": dense,
        "reference_over_ours": dense["sum_ms"] / ours["sum_ms"],
    }


def show(report: dict) -> None:
    table = Table(title=f"CPU rasterizer, {report['threads']} threads, milliseconds (best of {report['repeats']})")
    for column in ("", "Gaussians", "images", "size", "forward", "backward", "sum", "per image"):
        table.add_column(column, justify="left" if not column else "right")
    names = {"one_image": "one image", "many_images": "many images", "small": "small", "small_reference": "plain torch"}
    for key, name in names.items():
        r = report[key]
        times = [f"{r[k]:.1f}" for k in ("forward_ms", "backward_ms", "sum_ms")]
        per_image = f"{r['sum_ms'] / r['images']:.1f}"
        table.add_row(name, str(r["gaussians"]), str(r["images"]), f"{r['size']}²", *times, per_image)
    console = Console()
    console.print(table)
    many = report["many_images"]
    console.print(
        f"Plain torch takes {report['reference_over_ours']:.0f} times as long as ours. "
        f"{many['images']} images at once raise the peak of memory from {many['peak_before_mb']:.0f} "
        f"to {many['peak_mb']:.0f} MB."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Times the CPU rasterizer.")
    parser.add_argument("--report", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--gaussians", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=256, help="side of the picture in pixels")
    parser.add_argument("--images", type=int, default=64, help="images in the batch measurement")
    parser.add_argument("--reference-gaussians", type=int, default=500)
    parser.add_argument("--reference-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    report = run(arguments)
    if arguments.report:
        arguments.report.write_text(json.dumps(report, indent=1) + "\n")
    if sys.stdout.isatty() or not arguments.report:
        show(report)


if __name__ == "__main__":
    main()
