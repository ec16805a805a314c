"""The window test's screenshots as the documentation shows them: cut out, in few colours.

python tests/window/pictures.py              from out/window/ into docs/
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
PICTURES = {  # name: screenshot, left, top, right, bottom
    "window_look": ("03_look", 872, 80, 1130, 560),
    "window_job": ("06_preview", 380, 30, 1156, 760),
    "window_take": ("07_moves", 380, 30, 1156, 760),
    "window_menu": ("08_context_menu", 200, 400, 680, 900),
    "window_dialog": ("09_dialog", 20, 400, 500, 560),
}
COLORS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shots", type=Path, default=ROOT / "out" / "window")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    for name, (shot, *box) in PICTURES.items():
        picture = Image.open(options.shots / f"{shot}.png").convert("RGB").crop(tuple(box))
        picture = picture.quantize(COLORS, dither=Image.Dither.NONE)
        picture.save(options.out / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
