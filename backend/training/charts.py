"""Pictures of a run: its curves, and what the model makes of clips that it never saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from backend.preview import GREY

WIDTH, HEIGHT, MARGIN = 640, 260, 44  # of the curves, pixels
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f")
FRAMES = 8  # columns of a grid for each view
CELL = 64  # pixels of a picture, at least


def curves(rows: list[dict[str, float]], figures: tuple[str, ...]) -> np.ndarray:
    """Figures over the steps, on a logarithmic scale: uint8 [HEIGHT, WIDTH, 3].

    rows: as `RunLog.rows` gives them; what a row lacks, or what is not above zero, is left out.
    """
    chart = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(chart)
    lines = {name: [(row["step"], row[name]) for row in rows if row.get(name, 0.0) > 0.0] for name in figures}
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return np.asarray(chart)
    everything = np.array([point for points in lines.values() for point in points])
    last, low, high = everything[:, 0].max(), everything[:, 1].min(), everything[:, 1].max()
    low, high = np.log10(low) - 0.02, np.log10(high) + 0.02

    def place(step: float, value: float) -> tuple[float, float]:
        up = (np.log10(value) - low) / (high - low)
        return MARGIN + step / last * (WIDTH - MARGIN - 8), HEIGHT - 20 - up * (HEIGHT - 28)

    for value in 10 ** np.linspace(low, high, 5):
        y = place(0, value)[1]
        draw.line((MARGIN, y, WIDTH - 8, y), fill="#dddddd")
        draw.text((2, y - 6), f"{value:.3g}", fill="black", font_size=10)
    draw.text((WIDTH - 90, HEIGHT - 16), f"step {int(last)}", fill="black", font_size=10)
    for index, (name, points) in enumerate(lines.items()):
        color = COLORS[index % len(COLORS)]
        places = [place(*point) for point in points]
        draw.line(places, fill=color, width=2)
        for x, y in places if len(places) < 40 else places[-1:]:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=color)
        draw.text((MARGIN + 6 + 110 * index, HEIGHT - 16), f"{name} {points[-1][1]:.3g}", fill=color, font_size=10)
    return np.asarray(chart)


def grid(clips: list[tuple[str, np.ndarray, np.ndarray]], views: tuple[int, ...] = (0, 1)) -> np.ndarray:
    """Clips below each other, of each the truth above and the generated frames below: uint8 [H, W, 3].

    clips: caption, truth and generated, both [4, F, S, S, 3 or 4] uint8, straight alpha.
    """
    blocks = []
    for caption, truth, generated in clips:
        rows = np.concatenate([_strip(truth, views), _strip(generated, views)])
        words = Image.new("RGB", (rows.shape[1], 16), "white")
        ImageDraw.Draw(words).text((2, 2), caption, fill="black", font_size=11)
        blocks += [np.asarray(words), rows]
    return np.concatenate(blocks)


def _strip(video: np.ndarray, views: tuple[int, ...]) -> np.ndarray:
    """Some frames of each view side by side: [4, F, S, S, C] uint8 -> [S, W, 3] uint8, over grey."""
    columns = np.linspace(0, video.shape[1] - 1, min(FRAMES, video.shape[1])).round().astype(int)
    pictures = [video[view, frame] for view in views for frame in columns]
    scale = max(1, -(-CELL // video.shape[2]))
    return np.concatenate([_over_grey(picture).repeat(scale, 0).repeat(scale, 1) for picture in pictures], axis=1)


def _over_grey(picture: np.ndarray) -> np.ndarray:
    if picture.shape[-1] == 3:
        return picture
    alpha = picture[..., 3:].astype(np.float32) / 255
    return np.round(picture[..., :3] * alpha + GREY * (1 - alpha)).astype(np.uint8)


def stack(pictures: list[np.ndarray]) -> np.ndarray:
    """Pictures [H, W, 3] below each other, the narrower ones filled up with white."""
    width = max(picture.shape[1] for picture in pictures)
    wide = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures]
    return np.concatenate(wide)


def save_png(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    Image.fromarray(picture).save(part, format="PNG")
    part.replace(path)
