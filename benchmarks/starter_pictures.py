"""Contact sheets of generated videos: for each motion of one object the generated frames above the true ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from backend.evaluation.video import over_grey

CELL = 64  # pixels of a picture
FRAMES = 8  # columns for each view
VIEWS = (0, 1)  # the front, and the left side
MARGIN = 72  # for the words
GAP = 4


class Sheet:
    """Rows are added as clips are made; `save` writes what there is."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, np.ndarray]] = []

    def add(self, words: str, generated: np.ndarray, truth: np.ndarray) -> None:
        """Both [4, F, H, W, 4] uint8 with straight alpha; `words` go to the left, with line breaks."""
        self.rows.append((words, np.concatenate([strip(generated), strip(truth)], axis=0)))

    def save(self, path: Path) -> None:
        height, width = self.rows[0][1].shape[:2]
        sheet = Image.new("RGB", (MARGIN + width, len(self.rows) * (height + GAP)), "white")
        draw = ImageDraw.Draw(sheet)
        for row, (words, pictures) in enumerate(self.rows):
            top = row * (height + GAP)
            draw.multiline_text((2, top + 2), words, fill="black", font_size=11)
            sheet.paste(Image.fromarray(pictures), (MARGIN, top))
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)


def strip(video: np.ndarray) -> np.ndarray:
    """Some frames of two views side by side: [4, F, H, W, 4] uint8 -> [CELL, 2 FRAMES CELL, 3] uint8."""
    columns = np.linspace(0, video.shape[1] - 1, min(FRAMES, video.shape[1])).round().astype(int)
    cells = []
    for view in VIEWS:
        for picture in over_grey(video[view, columns]):
            image = Image.fromarray(np.round(255 * picture).astype(np.uint8))
            cells.append(np.asarray(image.resize((CELL, CELL), Image.Resampling.BOX)))
    return np.concatenate(cells, axis=1)
