"""Position tables that the attention layers add to their inputs.

Two are the released model's: the sinusoid over time (a buffer that is stored with the weights, so diffusers'
``SinusoidalPositionalEmbedding`` holds it) and the DETR-style sine table over the image plane below, which has no key
in the weight files and is computed. The third, ``cell_codes``, is only used with ``i2v_near_identity_init``.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch

SINE_TEMPERATURE = 10000.0


def sine_table_2d(height: int, width: int, channels: int) -> torch.Tensor:
    """The spatial branch's table: y features first, then x; even channels sine, odd channels cosine.

    Rows count 1..height and columns 1..width; each is divided by its last value (+1e-6) and scaled to 2 pi.

    Returns:
        Tensor [height * width, channels], rows in raster order.
    """
    per_axis = channels // 2
    pairs = torch.arange(per_axis) // 2
    frequency = SINE_TEMPERATURE ** (2 * pairs / per_axis)  # [per_axis]

    def axis_features(size: int) -> torch.Tensor:
        position = torch.arange(1, size + 1, dtype=torch.float32)
        angle = (position / (position[-1] + 1e-6) * 2 * math.pi)[:, None] / frequency  # [size, per_axis]
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=2).flatten(1)

    rows = axis_features(height)[:, None].expand(height, width, per_axis)
    columns = axis_features(width)[None].expand(height, width, per_axis)
    return torch.cat([rows, columns], dim=2).reshape(height * width, channels)


def cell_codes(num_views: int, height: int, width: int, channels: int) -> torch.Tensor:
    """Unit codes whose dot product is largest for the same cell of the same view.

    A query and a key that both carry their cell's code prefer each other: the logit is a sum of one bump over y, one
    over x and one over the views, so the attention weight is the product of the three.

    Returns:
        Tensor [num_views * height * width, channels]; every row has length 1.
    """
    harmonics = channels // 6  # cosine and sine of each, for y, x and view

    def circle(size: int, period: int) -> torch.Tensor:
        order = torch.arange(1, harmonics + 1, dtype=torch.float32)
        angle = torch.arange(size, dtype=torch.float32)[:, None] * order * (2 * math.pi / period)
        return torch.cat([angle.cos(), angle.sin()], dim=1)  # [size, 2 * harmonics]

    # Rows and columns go half way round their circle: the two ends of an image are not neighbours.
    shape = (num_views, height, width, 2 * harmonics)
    views = circle(num_views, num_views)[:, None, None].expand(shape)
    rows = circle(height, 2 * height)[None, :, None].expand(shape)
    columns = circle(width, 2 * width)[None, None].expand(shape)
    codes = torch.zeros(num_views, height, width, channels)
    codes[..., : 6 * harmonics] = torch.cat([rows, columns, views], dim=3)
    return codes.flatten(0, 2) / math.sqrt(3 * harmonics)


def cached_sine_table_2d(
    height: int, width: int, channels: int, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """``sine_table_2d`` on a device; remembered, because every layer of every step asks for the same few."""
    return remembered(sine_table_2d, (height, width, channels), device, dtype)


def cached_cell_codes(
    num_views: int, height: int, width: int, channels: int, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """``cell_codes`` on a device; remembered for the same reason."""
    return remembered(cell_codes, (num_views, height, width, channels), device, dtype)


# Not around the two above: torch's compiler takes their results for constants, but looks through this decorator.
@lru_cache(maxsize=128)
def remembered(
    make: Callable[..., torch.Tensor], sizes: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    with torch.inference_mode(False):  # an inference tensor could not take part in a later training step
        return make(*sizes).to(device, dtype)
