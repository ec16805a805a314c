"""Between 8-bit pictures and what the networks read, without torchvision.

Two roads. Colour pictures go the released model's: composited on grey as the file that its pipeline loads, then resized
as its libraries do (PIL bicubic for the image encoder, plain bilinear on tensors for the VAE). Position-coded ones, in
which every pixel is a measurement, shrink by area with premultiplied alpha, as in training.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

GREY = 0.5  # background of the released model's training renders


def composite_on_grey(pictures: np.ndarray) -> np.ndarray:
    """Straight-alpha pictures, uint8 [n, H, W, 4], on grey -> uint8 [n, H, W, 3]."""
    alpha = pictures[..., 3:].astype(np.float32) / 255
    return np.round(pictures[..., :3] * alpha + 255 * GREY * (1 - alpha)).astype(np.uint8)


def clip_pixels(pictures: np.ndarray, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """What the image encoder reads: transformers' ``CLIPImageProcessor`` with PIL alone.

    The shorter side becomes ``size`` (bicubic, antialiased), the longer one is cut, colours are normalised.

    Args:
        pictures: uint8 [n, H, W, 3].

    Returns:
        float32 [n, 3, size, size].
    """
    height, width = pictures.shape[1:3]
    short = min(height, width)
    new_height, new_width = size * height // short, size * width // short
    top, left = (new_height - size) // 2, (new_width - size) // 2
    resized = [
        np.asarray(Image.fromarray(picture).resize((new_width, new_height), Image.Resampling.BICUBIC))
        for picture in pictures
    ]
    unit = np.stack(resized)[:, top : top + size, left : left + size].astype(np.float32) / 255
    return torch.from_numpy((unit - np.float32(mean)) / np.float32(std)).movedim(-1, 1)


def vae_pixels(pictures: np.ndarray, size: int) -> torch.Tensor:
    """What the VAE reads: uint8 [n, H, W, 3] -> float32 [n, 3, size, size] in -1..1; the middle square.

    Bilinear without antialiasing, as the released pipeline resizes tensors: pictures of ``size`` stay as they are, and
    those of twice the size become means of 2 x 2 pixels.
    """
    height, width = pictures.shape[1:3]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    square = torch.from_numpy(pictures[:, top : top + short, left : left + short]).movedim(-1, 1).float()
    return F.interpolate(square / 127.5 - 1, (size, size), mode="bilinear", align_corners=False)


def read_rgba(pictures: np.ndarray, size: int) -> torch.Tensor:
    """Straight-alpha pictures by area, shorter side resized to ``size`` and the rest of the longer one cut off.

    Args:
        pictures: uint8 [n, H, W, 4].

    Returns:
        Premultiplied RGBA, float32 [n, 4, size, size] in 0..1.
    """
    # "RGBa" is PIL's premultiplied mode: colours of transparent pixels must not bleed into the outline.
    resized = [
        np.asarray(ImageOps.fit(Image.fromarray(picture).convert("RGBa"), (size, size), Image.Resampling.BOX))
        for picture in pictures
    ]
    return torch.from_numpy(np.stack(resized)).movedim(-1, 1).float() / 255


def over_grey(premultiplied: torch.Tensor) -> torch.Tensor:
    """Premultiplied RGBA [n, 4, H, W] in 0..1 on a grey background -> RGB [n, 3, H, W]."""
    return premultiplied[:, :3] + GREY * (1 - premultiplied[:, 3:])


def write_pictures(pixels: torch.Tensor) -> np.ndarray:
    """Decoded pixels [..., C, H, W] in -1..1 -> uint8 [..., H, W, C].

    With C = 4 the colours come in premultiplied and go out with straight alpha.
    """
    unit = (pixels.float() / 2 + 0.5).clamp(0, 1).movedim(-3, -1)
    if unit.shape[-1] == 4:
        alpha = unit[..., 3:]
        # Below one 8-bit step there is no colour to speak of, and dividing would blow up noise.
        colour = torch.where(alpha > 1 / 255, unit[..., :3] / alpha.clamp(min=1 / 255), 0.0)
        unit = torch.cat([colour.clamp(0, 1), alpha], dim=-1)
    return (unit * 255).round().byte().cpu().numpy()
