"""The CPU rasterizer: numba kernels behind a torch.autograd.Function, float32. See `rasterize.rasterize`."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

from . import cpu_projection as projection
from . import cpu_tiles as tiling

MAX_SPLATS_AT_ONCE = 2_000_000
MAX_PAIRS_AT_ONCE = 4_000_000
"""Bounds on what is in memory at once: projected splats (about 60 bytes each), (splat, tile) pairs (40 bytes each)."""


@dataclass(frozen=True)
class _Cameras:
    view: np.ndarray  # [B, 3, 4] float64, world to camera, OpenCV frame
    focal: np.ndarray  # [B] float64, px
    width: int
    height: int

    def part(self, images: slice) -> "_Cameras":
        return _Cameras(self.view[images], self.focal[images], self.width, self.height)


@dataclass(frozen=True)
class _Projected:
    centre: np.ndarray  # [B, N, 2] float64
    shape: np.ndarray  # [B, N, 6] float32
    box: np.ndarray  # [B, N, 4] int32
    slot: np.ndarray  # [B, N + 1] int64

    def part(self, images: slice) -> "_Projected":
        return _Projected(self.centre[images], self.shape[images], self.box[images], self.slot[images])


@dataclass(frozen=True)
class _Tiles:
    first_pair: np.ndarray  # [B + 1] int64
    tile_start: np.ndarray  # [B, tiles + 1] int64
    ids: np.ndarray  # [pairs] int32


def rasterize_cpu(
    means: Tensor,  # [Bx, N, 3], each Bx being 1 or B
    quats: Tensor,  # [Bx, N, 4]
    scales: Tensor,  # [Bx, N, 3]
    opacities: Tensor,  # [Bx, N]
    colors: Tensor,  # [Bx, N, 3]
    view: Tensor,  # [B, 4, 4] world to camera, OpenCV frame
    focal: Tensor,  # [B] px
    width: int,
    height: int,
    keep: Tensor | None = None,  # [B, N] bool: who gets gradients in which image; all where None
) -> tuple[Tensor, Tensor]:
    """Premultiplied rgb [B, H, W, 3] and alpha [B, H, W], float32, differentiable in the first five arguments.

    Tensors on another device (MPS) are drawn on the CPU and the pictures handed back there.
    """
    _follow_thread_settings()
    rows = view[:, :3].detach().double().cpu().contiguous()
    cameras = _Cameras(rows.numpy(), focal.double().cpu().contiguous().numpy(), width, height)
    inputs = (t.float().cpu().contiguous() for t in (means, quats, scales, opacities, colors))
    wanted = torch.ones(1, means.shape[1], dtype=torch.bool) if keep is None else keep.cpu().contiguous()
    rgb, alpha = _Rasterize.apply(*inputs, wanted, cameras)
    return rgb.to(means.device), alpha.to(means.device)


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means, quats, scales, opacities, colors, keep, cameras: _Cameras):
        images = len(cameras.focal)
        rgb = torch.empty(images, cameras.height, cameras.width, 3)
        alpha = torch.empty(images, cameras.height, cameras.width)
        arrays = [t.detach().numpy() for t in (means, quats, scales, opacities, colors)]
        ctx.whole = None
        for batch in _batches(arrays, cameras):
            part, projected, tiles = batch
            if part == slice(0, images):
                ctx.whole = batch  # all images fit into the memory bounds at once, so it may wait for the backward pass
            tiling.blend(
                tiles.ids, tiles.tile_start, projected.centre, projected.shape, _images(arrays[4], part), _jobs(),
                rgb.numpy()[part], alpha.numpy()[part],
            )  # fmt: skip
        ctx.save_for_backward(means, quats, scales, opacities, colors, keep, rgb, alpha)
        ctx.cameras = cameras
        return rgb, alpha

    @staticmethod
    def backward(ctx, d_rgb: Tensor, d_alpha: Tensor):
        *inputs, keep, rgb, alpha = ctx.saved_tensors
        keep = keep.numpy()
        _follow_thread_settings()
        arrays = [t.detach().numpy() for t in inputs]
        grads = [np.zeros_like(a) for a in arrays]
        d_rgb, d_alpha = d_rgb.contiguous().numpy(), d_alpha.contiguous().numpy()
        # What did not fit at once is projected again, so that no memory is held between the two passes.
        for part, projected, tiles in [ctx.whole] if ctx.whole else _batches(arrays, ctx.cameras):
            sums = np.empty((len(tiles.ids), projection.SUMS), np.float32)
            means, quats, scales, _, colors = (_images(a, part) for a in arrays)
            tiling.unblend(
                tiles.ids, tiles.tile_start, tiles.first_pair, projected.slot, projected.box, projected.centre,
                projected.shape, colors, _images(keep, part), _jobs(), rgb.numpy()[part], alpha.numpy()[part],
                d_rgb[part], d_alpha[part], sums,
            )  # fmt: skip
            cameras = ctx.cameras.part(part)
            projection.unproject(
                means, quats, scales, cameras.view, cameras.focal, cameras.width, cameras.height, projected.shape,
                tiles.first_pair, projected.slot, _images(keep, part), sums, *(_images(g, part) for g in grads),
            )  # fmt: skip
        return *(torch.from_numpy(g) for g in grads), None, None


def _batches(arrays: list[np.ndarray], cameras: _Cameras) -> Iterator[tuple[slice, _Projected, _Tiles]]:
    """Projects and tiles the images, as many at once as the memory bounds allow."""
    images, count = len(cameras.focal), arrays[0].shape[1]
    step = max(1, MAX_SPLATS_AT_ONCE // max(1, count))
    for start in range(0, images, step):
        block = slice(start, min(images, start + step))
        projected = _project(arrays, cameras.part(block), block)
        pairs = projected.slot[:, -1]
        first = 0
        while first < len(pairs):
            fits = int(np.searchsorted(np.cumsum(pairs[first:]), MAX_PAIRS_AT_ONCE, side="right"))
            part = slice(first, first + max(1, fits))
            yield slice(start + part.start, min(block.stop, start + part.stop)), *_tile(projected.part(part), cameras)
            first = part.stop


def _project(arrays: list[np.ndarray], cameras: _Cameras, block: slice) -> _Projected:
    images, count = len(cameras.focal), arrays[0].shape[1]
    projected = _Projected(
        np.empty((images, count, 2)),
        np.empty((images, count, 6), np.float32),
        np.empty((images, count, 4), np.int32),
        np.empty((images, count + 1), np.int64),
    )
    inputs = (_images(a, block) for a in arrays[:4])
    projection.project(
        *inputs, cameras.view, cameras.focal, cameras.width, cameras.height,
        projected.centre, projected.shape, projected.box,
    )  # fmt: skip
    tiling.assign_slots(projected.box, projected.slot)
    return projected


def _tile(projected: _Projected, cameras: _Cameras) -> tuple[_Projected, _Tiles]:
    tiles_x, tiles_y = -(-cameras.width // projection.TILE), -(-cameras.height // projection.TILE)
    first_pair = np.concatenate([[0], np.cumsum(projected.slot[:, -1])])
    tile_start = np.empty((len(projected.box), tiles_x * tiles_y + 1), np.int64)
    ids = np.empty(first_pair[-1], np.int32)
    tiling.fill_tiles(projected.shape, projected.box, first_pair, tiles_x, tile_start, ids)
    return projected, _Tiles(first_pair, tile_start, ids)


def _images(array: np.ndarray, part: slice) -> np.ndarray:
    """The part's own rows, or the one row that all images share."""
    return array if len(array) == 1 else array[part]


def _jobs() -> int:
    return 4 * numba.get_num_threads()


def _follow_thread_settings() -> None:
    """As many threads as torch uses; NUMBA_NUM_THREADS wins where it is set."""
    limit = numba.config.NUMBA_NUM_THREADS
    numba.set_num_threads(limit if "NUMBA_NUM_THREADS" in os.environ else min(limit, torch.get_num_threads()))
