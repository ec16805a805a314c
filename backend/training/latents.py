"""Clips as the video model trains on them: latents, condition images and tokens, made once and kept on disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from backend.device import multiplies_bfloat16
from backend.training.captions import MAX_TOKENS
from backend.training.clips import Clip, ClipSource
from backend.training.codec import to_model_range
from backend.training.motions import MOTIONS

ENCODED_AT_ONCE = 4  # clips


class LatentStore:
    """Shards of encoded clips in a folder; a missing shard is made when it is first wanted."""

    def __init__(
        self,
        folder: Path,
        codec: AutoencoderKL,
        tokenizer: PreTrainedTokenizerFast,
        size: int,
        frames: int,
        motions: Sequence[str] = tuple(MOTIONS),
        first_seed: int = 0,
        balanced: bool = False,
        shard_clips: int = 32,
        shards_in_use: int = 16,
        rendered: Sequence[Clip] = (),
        rendered_share: float = 0.0,
        obtain: Callable[[int], None] | None = None,
    ) -> None:
        """`balanced`: the motions in turn instead of drawn ones; `shard_clips` to a file.

        A step draws from the last `shards_in_use` shards, which are held in the codec's memory. `rendered_share` of the
        clips are drawn from `rendered` instead of being made. `obtain` waits for a missing shard that others make.
        """
        self.folder, self.codec, self.tokenizer = folder, codec, tokenizer
        self.device, self.shards_in_use, self.obtain = codec.device, shards_in_use, obtain
        self.source = ClipSource(
            size, frames, shard_clips, tuple(motions), first_seed, balanced, tuple(rendered), rendered_share
        )
        self.shard_clips = shard_clips
        self.shards: dict[int, dict[str, torch.Tensor]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def shard(self, index: int) -> dict[str, torch.Tensor]:
        if index not in self.shards:
            if not self.path(index).exists():
                self.make(index) if self.obtain is None else self.obtain(index)
            self.shards[index] = load_file(self.path(index), device=str(self.device))
        return self.shards[index]

    def make(self, index: int) -> None:
        self.write(index, self.encode(self.source.pictures(index)))

    def path(self, index: int) -> Path:
        return self.folder / f"{index:05d}.safetensors"

    def write(self, index: int, tensors: dict[str, torch.Tensor]) -> None:
        """A shard, whole or not at all."""
        path = self.path(index)
        # Another process, or another thread of this one, may make the same.
        part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
        save_file(tensors, part)
        os.replace(part, path)

    def reached(self, clips: int, repeats: int) -> int:
        """How many shards are in use once so many clips were drawn."""
        return clips // (self.shard_clips * repeats) + 4

    def draw(
        self, rng: np.random.Generator, count: int, reached: int, part: slice = slice(None)
    ) -> dict[str, torch.Tensor]:
        """A random batch of `count` clips from the newest of `reached` shards, on the codec's device.

        Of the `count` clips only `part` is read: that of one process among several.
        """
        oldest = max(0, reached - self.shards_in_use)
        self.shards = {index: shard for index, shard in self.shards.items() if index >= oldest}
        # The newest shard always takes part, so that new clips are seen as often as old ones.
        shards = rng.integers(oldest, reached, count)
        places = [(int(shard), int(rng.integers(self.shard_clips))) for shard in shards]
        return self._collate([(self.shard(shard), clip) for shard, clip in places[part]])

    def all(self, batches: int, count: int = 4) -> list[dict[str, torch.Tensor]]:
        """The first `batches` batches, always the same: for measuring."""
        places = [(self.shard(i // self.shard_clips), i % self.shard_clips) for i in range(batches * count)]
        return [self._collate(places[i : i + count]) for i in range(0, len(places), count)]

    def _collate(self, places: list[tuple[dict[str, torch.Tensor], int]]) -> dict[str, torch.Tensor]:
        """latents [b, n, c, f, h, w] scaled; images [b, n, 3, H, W] in -1..1; tokens, other_tokens, empty [b, T];
        motions [b], their places in `MOTIONS` or -1."""
        batch = {key: torch.stack([shard[key][i] for shard, i in places]) for key in ("latents", "images", "tokens")}
        batch["latents"] = batch["latents"].float()
        batch["images"] = on_grey(to_model_range(batch["images"]))
        for key in ("other_tokens", "motions"):
            batch[key] = torch.stack([shard[key][i] for shard, i in places])
        batch["empty"] = self._tokens([""]).to(self.device).expand(len(places), -1)
        return batch

    @torch.no_grad()
    def encode(self, clips: list[tuple[np.ndarray, str, str]]) -> dict[str, torch.Tensor]:
        """The tensors of a shard, from what `ClipSource.pictures` gives."""
        pictures = [torch.from_numpy(clip) for clip, _, _ in clips]
        together = (pictures[i : i + ENCODED_AT_ONCE] for i in range(0, len(pictures), ENCODED_AT_ONCE))
        motions = [motion for _, _, motion in clips]
        names = {name: index for index, name in enumerate(MOTIONS)}
        tokens = self._tokens([caption for _, caption, _ in clips])
        others = [_another(motions, i) for i in range(len(motions))]
        return {
            "latents": torch.cat([self._latents(torch.stack(some)) for some in together]).contiguous(),
            "images": torch.stack([clip[:, 0] for clip in pictures]).contiguous(),
            "tokens": tokens,
            "other_tokens": tokens[others].clone(),
            "motions": torch.tensor([names.get(motion, -1) for motion in motions]),
        }

    def _latents(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures uint8 [k, 4, F, H, W, 4] -> scaled latents, half precision [k, 4, c, F, h, w]."""
        pixels = to_model_range(pictures.flatten(0, 2).to(self.device))
        with torch.autocast(pixels.device.type, torch.bfloat16, multiplies_bfloat16(pixels.device)):
            encoded = self.codec.encode(pixels).latent_dist.mode().float()
        encoded = encoded.unflatten(0, pictures.shape[:3]).movedim(2, 3)
        return (encoded * self.codec.config.scaling_factor).half().cpu()

    def _tokens(self, texts: list[str]) -> torch.Tensor:
        return self.tokenizer(
            texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
        ).input_ids


def _another(motions: list[str], index: int) -> int:
    """The next clip of a shard, cyclically, that shows another motion."""
    count = len(motions)
    following = ((index + step) % count for step in range(1, count))
    return next((i for i in following if motions[i] != motions[index]), index)


def on_grey(premultiplied: torch.Tensor) -> torch.Tensor:
    """RGB [..., 3, H, W] in -1..1 over grey 0.5, from premultiplied RGBA [..., 4, H, W] in -1..1."""
    rgb, alpha = premultiplied[..., :3, :, :], premultiplied[..., 3:, :, :]
    return rgb + 0.5 * (1.0 - alpha)
