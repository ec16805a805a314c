"""Does the rasterizer of this device draw what the CPU's draws? `python benchmarks/rasterizer_device.py --device cuda`.

The same Gaussians and cameras on both: largest and mean difference of colour and alpha, relative L2 of the gradients of
a randomly weighted picture, and the milliseconds of forward and backward for one picture and for many at once. gsplat
cuts a splat off where its alpha falls below 1/255, where our definition fades out: pixels may differ by a few 255ths.
Exit code 0 only when pictures and gradients are near (`LIMITS`).
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from mv_vdm_speed import synchronise
from rasterizer import ring_of_cameras, scene

from backend import device as devices
from backend.protocol import write_json
from backend.splats.cuda_gsplat import gsplat_usable
from backend.splats.rasterize import rasterize

FOVY = 40.0
NAMES = ("means", "quats", "scales", "opacities", "colors")
LIMITS = {"rgb_mean": 2e-3, "alpha_mean": 2e-3, "gradient": 0.05}


def draw(inputs: list[torch.Tensor], c2w: torch.Tensor, size: int, weight: torch.Tensor) -> list[torch.Tensor]:
    """rgb, alpha and the gradients of the weighted picture."""
    rgb, alpha = rasterize(*inputs, c2w, FOVY, size, size)
    picture = torch.cat([rgb, alpha[..., None]], dim=-1)
    return [rgb.detach(), alpha.detach(), *torch.autograd.grad((picture * weight).sum(), inputs)]


def compare(device: torch.device, gaussians: int, size: int) -> dict[str, float]:
    inputs, c2w = scene(gaussians, 0), ring_of_cameras(4)
    weight = torch.rand(len(c2w), size, size, 4, generator=torch.Generator().manual_seed(1))
    wanted = draw(inputs, c2w, size, weight)
    moved = [tensor.detach().to(device).requires_grad_() for tensor in inputs]
    got = [tensor.cpu() for tensor in draw(moved, c2w.to(device), size, weight.to(device))]
    found = {}
    for name, a, b in zip(("rgb", "alpha"), got, wanted, strict=False):
        found |= {f"{name}_largest": float((a - b).abs().max()), f"{name}_mean": float((a - b).abs().mean())}
    for name, a, b in zip(NAMES, got[2:], wanted[2:], strict=True):
        found[f"gradient_{name}"] = float((a - b).norm() / b.norm())
    return found


def milliseconds(device: torch.device, gaussians: int, size: int, images: int, repeats: int) -> float:
    """Median of forward and backward; every picture has its own means, as frames do."""
    inputs = [tensor.detach().to(device) for tensor in scene(gaussians, 0)]
    inputs[0] = inputs[0].expand(images, -1, -1).clone()
    inputs = [tensor.requires_grad_() for tensor in inputs]
    c2w, weight = ring_of_cameras(images).to(device), torch.rand(images, size, size, 4, device=device)
    times = []
    for _ in range(repeats + 1):
        synchronise(device)
        started = time.perf_counter()
        draw(inputs, c2w, size, weight)
        synchronise(device)
        times.append(1e3 * (time.perf_counter() - started))
    return float(np.median(times[1:]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--gaussians", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=256, help="side of the picture in pixels")
    parser.add_argument("--images", type=int, default=60, help="at once")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--report", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    device = devices.pick(options.device)
    found = compare(device, options.gaussians, options.size)
    holds = all(value <= limit for name, value in found.items() for part, limit in LIMITS.items() if part in name)
    for images in (1, options.images):
        found[f"milliseconds_of_{images}"] = milliseconds(
            device, options.gaussians, options.size, images, options.repeats
        )
    for name, value in found.items():
        print(f"{name:25} {value:.4g}", flush=True)
    print("near" if holds else "FAR")
    if options.report:
        used = "gsplat" if device.type == "cuda" and gsplat_usable() else "the CPU rasterizer"
        about = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "device": devices.name(device)}
        options_used = {"gaussians": options.gaussians, "size": options.size, "rasterizer": used, "holds": holds}
        write_json(options.report, {**about, "versions": devices.versions(), **options_used, **found})
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
