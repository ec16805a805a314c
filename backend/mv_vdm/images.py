"""Between 8-bit pictures and what the networks read. PIL resizes; transparency is premultiplied throughout."""

import numpy as np
import torch
from PIL import Image, ImageOps

GREY = 0.5  # background of the released model's training renders


def read_rgba(pictures: np.ndarray, size: int, resample: Image.Resampling) -> torch.Tensor:
    """Straight-alpha pictures, shorter side resized to ``size`` and the rest of the longer one cut off.

    Args:
        pictures: uint8 [n, H, W, 4].

    Returns:
        Premultiplied RGBA, float32 [n, 4, size, size] in 0..1.
    """
    # "RGBa" is PIL's premultiplied mode: colours of transparent pixels must not bleed into the outline.
    resized = [
        np.asarray(ImageOps.fit(Image.fromarray(picture).convert("RGBa"), (size, size), resample))
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
