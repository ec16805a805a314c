"""The generated video as people look at it: the four views in a looping picture."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from backend.protocol import Video

GREY = 128
FRAME_MILLISECONDS = 125  # the video model's 8 frames per second
EVERY = 2  # of the frames are shown while the video forms
SHARE = 0.1  # of the time may go into showing them
MIN_WIDTH = 256  # pixels; small models' pictures are enlarged to it


def write_preview(video: Video, job: Path) -> Path:
    """Writes `video/preview.gif`, views 0 and 1 above 2 and 3, and returns its path."""
    path = Path(job) / "video" / "preview.gif"
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [Image.fromarray(frame) for frame in contact_sheets(video.frames)]
    scale = max(1, -(-MIN_WIDTH // frames[0].width))
    frames = [frame.resize((frame.width * scale, frame.height * scale), Image.Resampling.BICUBIC) for frame in frames]
    part = path.with_name(path.name + ".part")
    frames[0].save(
        part, format="GIF", save_all=True, append_images=frames[1:], duration=FRAME_MILLISECONDS, loop=0, disposal=2
    )
    os.replace(part, path)
    return path


class FormingVideo:
    """Writes down what a video looks like while it is sampled, seldom enough that it takes a tenth of the time.

    Args:
        decode: latents [4, c, f, h, w] to pictures [4, f, H, W, C] uint8.
        tell: gets the path of each file that was written.
    """

    def __init__(
        self,
        job: Path,
        appearance: str,
        decode: Callable[[torch.Tensor], np.ndarray],
        tell: Callable[[Path], None],
    ) -> None:
        self._job, self._appearance, self._decode, self._tell = job, appearance, decode, tell
        self._due = 0.0  # when the next one may be made

    def step(self, done: int, total: int, clean: torch.Tensor) -> None:
        """After a step of the sampler, with its guess at the clean latents [4, c, F, h, w]."""
        started = time.monotonic()
        if done >= total or started < self._due:
            return
        Video(self._decode(clean[:, :, ::EVERY]), self._appearance).save(self._job, forming=True)
        self._tell(Video.path(self._job, forming=True))
        now = time.monotonic()
        self._due = now + (now - started) / SHARE

    def finish(self) -> None:
        Video.path(self._job, forming=True).unlink(missing_ok=True)


def contact_sheets(frames: np.ndarray) -> np.ndarray:
    """[4, F, H, W, C] uint8 to [F, 2 H, 2 W, 3] uint8, over grey where there is alpha."""
    rgb = frames[..., :3].astype(np.float32)
    if frames.shape[-1] == 4:
        alpha = frames[..., 3:].astype(np.float32) / 255.0
        rgb = alpha * rgb + (1.0 - alpha) * GREY
    _, count, height, width, _ = rgb.shape
    grid = rgb.reshape(2, 2, count, height, width, 3).transpose(2, 0, 3, 1, 4, 5)
    return np.round(grid.reshape(count, 2 * height, 2 * width, 3)).astype(np.uint8)
