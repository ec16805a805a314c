"""What the layers of MV-VDM's network do with channels-last images: resnet, image transformer, motion module.

The modules are diffusers' and hold the weights; their own forward passes are not used (see ``unet``).
"""

from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from itertools import product
from typing import Self

import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import nn

from .attention import Layout
from .positions import cached_cell_codes, cached_sine_table_2d

MOST_SHAPES = 64  # for which torch compiles one function; the released network needs 16 of the resnet's


def repeat_rows(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """[(b ...), ...] -> [(k b ...), ...] with so many rows; itself where it has them already."""
    copies = rows // len(tensor)
    return tensor if copies == 1 else tensor.repeat(copies, *[1] * (tensor.dim() - 1))


def upsample(conv: nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
    """Nearest-neighbour doubling and a 3 x 3 convolution, as four 2 x 2 convolutions of the small images.

    Of three taps over doubled pixels two always see the same pixel, so their weights are added up beforehand: 4 / 9 of
    the products. images: [b, c, h, w] -> [b, c_out, 2 h, 2 w].
    """
    (height, width), bias = images.shape[2:], conv.bias.to(images.dtype)
    weight = conv.weight.to(torch.promote_types(images.dtype, torch.float32))
    padded = F.pad(images, (1, 1, 1, 1)).contiguous(memory_format=torch.channels_last)
    shape = (len(images), conv.out_channels, 2 * height, 2 * width)
    out = images.new_empty(shape).contiguous(memory_format=torch.channels_last)
    for y, x in product((0, 1), repeat=2):
        taps = add_taps(add_taps(weight, 2, y), 3, x).to(images.dtype)
        out[:, :, y::2, x::2] = F.conv2d(padded[:, :, y : y + height + 1, x : x + width + 1], taps, bias)
    return out


def add_taps(weight: torch.Tensor, axis: int, odd: int) -> torch.Tensor:
    """Three taps on doubled pixels -> the two that an even, or odd, output pixel has on the pixels themselves."""
    first, middle, last = weight.unbind(axis)
    return torch.stack([first + middle, last] if odd else [first, middle + last], axis)


def run_resnet(block: ResnetBlock2D, images: torch.Tensor, embedding: torch.Tensor, layout: Layout) -> torch.Tensor:
    """diffusers' ResnetBlock2D for channels-last images [(b f n), c, h, w].

    embedding: [b, f or 1, n, e], has already passed SiLU.
    """
    hidden = block.conv1(F.silu(block.norm1(images)))
    shift = block.time_emb_proj(embedding).expand(-1, layout.num_frames, -1, -1).flatten(0, 2)
    hidden = hidden + repeat_rows(shift, len(hidden))[:, :, None, None]
    hidden = block.conv2(F.silu(block.norm2(hidden)))
    return hidden + (images if block.conv_shortcut is None else block.conv_shortcut(images))


def to_tokens(images: torch.Tensor) -> torch.Tensor:
    """[batch, c, h, w] -> [batch, (h w), c]; a view of channels-last images."""
    return images.permute(0, 2, 3, 1).flatten(1, 2)


def to_images(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """[batch, (h w), c] -> [batch, c, h, w], channels-last; a view."""
    return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def at_level(layout: Layout, images: torch.Tensor) -> Layout:
    """The layout of the level that these images belong to."""
    batch, (height, width) = len(images) // (layout.num_frames * layout.num_views), images.shape[2:]
    return replace(layout, batch=batch, height=height, width=width)


def run_spatial_transformer(
    module: Transformer2DModel, images: torch.Tensor, text: torch.Tensor, layout: Layout
) -> torch.Tensor:
    """Multi-view attention with MV2V, cross-attention, feed-forward. images: [(b f n), c, h, w].

    text [(k b n), tokens, d] may hold k texts per sample: there are [(k b f n), c, h, w] images from then on.
    """
    layout = at_level(layout, images)
    tokens = to_tokens(module.proj_in(module.norm(images)))
    for block in module.transformer_blocks:
        tokens = tokens + block.attn1(block.norm1(tokens), layout=layout)
        layout = replace(layout, batch=len(text) // layout.num_views)
        tokens = repeat_rows(tokens, layout.batch * layout.num_frames * layout.num_views)
        tokens = tokens + block.attn2(block.norm2(tokens), encoder_hidden_states=text, layout=layout)
        tokens = tokens + block.ff(block.norm3(tokens))
    out = module.proj_out(to_images(tokens, layout.height, layout.width))
    return out + repeat_rows(images, len(out))


def run_motion_module(module: AnimateDiffTransformer3D, images: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Spatiotemporal attention twice, feed-forward. images: [(b f n), c, h, w]."""
    layout = at_level(layout, images)
    tokens = module.proj_in(normalise_videos(module.norm, to_tokens(images), layout))
    for block in module.transformer_blocks:
        tokens = tokens + block.attn1(block.norm1(tokens), layout=layout)
        tokens = tokens + block.attn2(block.norm2(tokens), layout=layout)
        tokens = tokens + block.ff(block.norm3(tokens))
    return to_images(module.proj_out(tokens), layout.height, layout.width) + images


def normalise_videos(norm: nn.GroupNorm, tokens: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Group normalisation over all frames and cells of each view's video. tokens: [(b f n), l, c]."""
    by_sample = tokens.unflatten(0, (layout.batch, layout.num_frames, layout.num_views))
    videos = by_sample.permute(0, 2, 4, 1, 3)  # [b, n, c, f, l]
    normed = norm(videos.flatten(3).flatten(0, 1)).view(videos.shape)
    return normed.permute(0, 3, 1, 4, 2).flatten(0, 2)


@dataclass(frozen=True)
class LayerFunctions:
    """What runs the three kinds of layers."""

    resnet: Callable[..., torch.Tensor] = run_resnet
    spatial_transformer: Callable[..., torch.Tensor] = run_spatial_transformer
    motion_module: Callable[..., torch.Tensor] = run_motion_module

    def compiled(self, **options: object) -> Self:
        """The same by torch's compiler, at their first call.

        Layers of equal shapes share what is compiled: the released network's 59 are of 27 kinds. What can't be compiled
        (on a GPU that takes Triton, elsewhere a C++ compiler) runs as it is.
        """
        for table in (cached_sine_table_2d, cached_cell_codes):
            torch.compiler.assume_constant_result(table)
        torch._dynamo.config.suppress_errors = True
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_SHAPES)
        return type(self)(*(torch.compile(function, dynamic=False, **options) for function in astuple(self)))
