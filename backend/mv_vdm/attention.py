"""The three attention layers of MV-VDM, as diffusers attention processors that own their extra weights.

One token layout everywhere: ``[(b f n), l, c]`` with b samples, f frames, n views and l = height * width cells. It is
the channels-last view of the images that the convolutions see, and it turns both "all views of a frame" and "all
frames of a cell" into plain views of the same memory, so no layer here copies its queries, keys or values to regroup
them (except cross-attention, whose text differs per view).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import SinusoidalPositionalEmbedding
from torch import nn

from .positions import cached_cell_codes, cached_sine_table_2d

CELL_LOGIT = 30.0  # logit of a cell's own code at the start: more than half of the weight goes to the own cell


@dataclass(frozen=True)
class Layout:
    """How the tokens ``[(b f n), l, c]`` of one level divide, and the IP-Adapter's image tokens."""

    batch: int
    num_frames: int
    num_views: int
    height: int
    width: int
    image_tokens: torch.Tensor | None = None  # [(b n), 4, cross_attention_dim]
    frame_numbers: torch.Tensor | None = None  # [f], where the frames are not 0, 1, 2, ...


def split_heads(tokens: torch.Tensor, heads: int) -> torch.Tensor:
    """[batch, length, channels] -> [batch, heads, length, channels / heads], a view."""
    return tokens.unflatten(2, (heads, -1)).transpose(1, 2)


def weigh(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Softmax attention over [..., length, d] tensors; scale 1 / sqrt(d)."""
    if query.requires_grad and query.device.type == "cpu":
        # The fused kernel's backward pass on CPUs takes 40 % of a small model's training step, and knows no AMX.
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        return scores.softmax(-1, dtype=scores.dtype) @ value
    return F.scaled_dot_product_attention(query, key, value)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
    """Softmax attention over [batch, length, channels] tensors; scale 1 / sqrt(channels / heads)."""
    split = (split_heads(tensor, heads) for tensor in (query, key, value))
    return weigh(*split).transpose(1, 2).flatten(2)


class MultiViewI2VProcessor(nn.Module):
    """Self-attention over all views of a frame, plus the MV2V-Adapter's look at frame 0 (paper section 3.1).

    out = W_o (A(Wq x, Wk x, Wv x) + W_i2v A(Wq_i2v x, K0, V0) + b_i2v), with K0, V0 = Wk x, Wv x of frame 0 of the same
    sample, all views. They are one slice of the keys and values that the first term needs anyway.
    """

    def __init__(self, channels: int, heads: int, near_identity: bool):
        super().__init__()
        self.to_q_i2v = nn.Linear(channels, channels, bias=False)
        self.to_out_i2v = nn.Linear(channels, channels)
        self.near_identity = near_identity
        if near_identity:
            self._start_near_identity(channels, heads)

    def _start_near_identity(self, channels: int, heads: int) -> None:
        """Let every cell see its own cell of frame 0 from the first step; trained from scratch it finds it too late."""
        self.cell_gain = nn.Parameter(torch.full([heads], (CELL_LOGIT * (channels // heads) ** 0.5) ** 0.5))
        nn.init.normal_(self.to_q_i2v.weight, std=0.1 * channels**-0.5)
        nn.init.eye_(self.to_out_i2v.weight)
        nn.init.zeros_(self.to_out_i2v.bias)

    def _add_cell_codes(self, tokens: torch.Tensor, heads: int, layout: Layout) -> torch.Tensor:
        """Adds each cell's code to every head. tokens: [b, (k n l), c] with any number k of frames."""
        cells = layout.num_views * layout.height * layout.width
        by_cell = tokens.unflatten(2, (heads, -1)).unflatten(1, (-1, cells))  # [b, k, (n l), heads, d]
        codes = cached_cell_codes(
            layout.num_views, layout.height, layout.width, by_cell.shape[-1], tokens.device, tokens.dtype
        )
        return (by_cell + codes[:, None] * self.cell_gain[:, None]).flatten(3).flatten(1, 2)

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        layout: Layout | None = None,
    ) -> torch.Tensor:
        """hidden_states: [(b f n), l, c], already normalised -> the same shape."""
        cells = layout.num_views * layout.height * layout.width
        tokens = hidden_states.reshape(-1, cells, hidden_states.shape[2])  # [(b f), (n l), c]
        key, value = attn.to_k(tokens), attn.to_v(tokens)
        own_frame = attend(attn.to_q(tokens), key, value, attn.heads)

        key_0, value_0 = (t.unflatten(0, (layout.batch, -1))[:, 0] for t in (key, value))  # [b, (n l), c]
        query = self.to_q_i2v(tokens).reshape(layout.batch, -1, tokens.shape[2])  # [b, (f n l), c]
        if self.near_identity:
            query, key_0 = (self._add_cell_codes(t, attn.heads, layout) for t in (query, key_0))
        first_frame = self.to_out_i2v(attend(query, key_0, value_0, attn.heads)).view_as(own_frame)
        return attn.to_out[0](own_frame + first_frame).view_as(hidden_states)


class TextAndImageProcessor(nn.Module):
    """Cross-attention to the text and, with the same queries, to the IP-Adapter's image tokens (scale 1)."""

    def __init__(self, channels: int, cross_attention_dim: int):
        super().__init__()
        # Lists of one, as diffusers' IP-Adapter names them.
        self.to_k_ip = nn.ModuleList([nn.Linear(cross_attention_dim, channels, bias=False)])
        self.to_v_ip = nn.ModuleList([nn.Linear(cross_attention_dim, channels, bias=False)])

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        layout: Layout | None = None,
    ) -> torch.Tensor:
        """hidden_states: [(b f n), l, c]; encoder_hidden_states: [(b n), tokens, d], shared by the frames."""
        # All frames of a view ask the same text, so the frames join the queries and nothing is repeated.
        by_sample = (layout.batch, layout.num_frames, layout.num_views)
        query = attn.to_q(hidden_states).unflatten(0, by_sample).transpose(1, 2)  # [b, n, f, l, c]
        query = query.flatten(2, 3).flatten(0, 1)  # [(b n), (f l), c]
        text, image = encoder_hidden_states, layout.image_tokens
        out = attend(query, attn.to_k(text), attn.to_v(text), attn.heads)
        out = out + attend(query, self.to_k_ip[0](image), self.to_v_ip[0](image), attn.heads)
        out = out.unflatten(1, (layout.num_frames, -1)).unflatten(0, (layout.batch, -1)).transpose(1, 2)
        return attn.to_out[0](out).flatten(0, 2)


class AlphaBlender(nn.Module):
    """A learned mix of two branches: sigmoid(mix_factor) of the first, the rest of the second."""

    def __init__(self):
        super().__init__()
        self.mix_factor = nn.Parameter(torch.zeros(1))

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        share = self.mix_factor.to(torch.promote_types(first.dtype, torch.float32)).sigmoid()
        return torch.lerp(second, first, share.to(first.dtype))


class SpatioTemporalProcessor(nn.Module):
    """The motion modules' attention: over the frames of a cell, blended with all views and cells of a frame.

    The temporal branch uses the layer's own weights (AnimateDiff's) after adding the time table to q, k and v; the
    spatial branch has its own weights, adds the sine table over the image plane (the same in every view), and never
    sees time.
    """

    def __init__(self, channels: int, max_frames: int):
        super().__init__()
        self.to_q_sp = nn.Linear(channels, channels, bias=False)
        self.to_k_sp = nn.Linear(channels, channels, bias=False)
        self.to_v_sp = nn.Linear(channels, channels, bias=False)
        self.to_out_sp = nn.Linear(channels, channels)
        self.alpha_blender = AlphaBlender()
        self.time_pos_embed = SinusoidalPositionalEmbedding(channels, max_frames)

    def _over_frames(self, attn: Attention, tokens: torch.Tensor, layout: Layout) -> torch.Tensor:
        """tokens: [b, f, (n l), c] -> [b, f, (n l), c], each cell attending to itself in all frames."""
        table = self.time_pos_embed.pe[0]  # [max frames, c]
        numbers = slice(layout.num_frames) if layout.frame_numbers is None else layout.frame_numbers
        tokens = tokens + table[numbers][:, None]
        # Cells and heads lie next to each other in memory: as one "heads" axis they need no copy.
        query, key, value = (
            layer(tokens).unflatten(3, (attn.heads, -1)).flatten(2, 3).transpose(1, 2)  # [b, (n l heads), f, d]
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        out = weigh(query, key, value).transpose(1, 2)
        return attn.to_out[0](out.reshape(tokens.shape))

    def _over_views(self, attn: Attention, tokens: torch.Tensor, layout: Layout) -> torch.Tensor:
        """tokens: [(b f), n, l, c] -> [(b f), (n l), c], all views and cells of a frame attending to each other."""
        table = cached_sine_table_2d(layout.height, layout.width, tokens.shape[3], tokens.device, tokens.dtype)
        tokens = (tokens + table).flatten(1, 2)
        return self.to_out_sp(attend(self.to_q_sp(tokens), self.to_k_sp(tokens), self.to_v_sp(tokens), attn.heads))

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        layout: Layout | None = None,
    ) -> torch.Tensor:
        """hidden_states: [(b f n), l, c], already normalised, no position added -> the same shape."""
        channels = hidden_states.shape[2]
        temporal = self._over_frames(attn, hidden_states.reshape(layout.batch, layout.num_frames, -1, channels), layout)
        spatial = self._over_views(attn, hidden_states.unflatten(0, (-1, layout.num_views)), layout)
        return self.alpha_blender(spatial.view_as(hidden_states), temporal.view_as(hidden_states))
