"""The generated video in the panel: frames as icons, played by the queue's timer."""

from __future__ import annotations

import time
from pathlib import Path

import bpy
import bpy.utils.previews
import numpy as np

from .shared import protocol

FRAMES_PER_SECOND = 8.0  # the video models'
PATIENCE = 1.0  # seconds without a drawing after which a video stands still
MOST_VIEWS = 3  # sets of four views that are kept
GREY = 128
SIZE = 256  # pixels; small models' pictures are enlarged to about this

_icons: bpy.utils.previews.ImagePreviewCollection | None = None
_views: dict[tuple[str, int], bpy.utils.previews.ImagePreviewCollection] = {}  # by folder and number of pictures
_shown: tuple[str, float] = ("", 0.0)  # the job's folder and when its video was written
_video: np.ndarray | None = None  # [4, F, H, W, C] uint8
_frames: list[int] = []  # icon numbers; 0 where a frame has not been on yet
_current = 0
_playing_until = 0.0


def icon(job: Path) -> int:
    """The icon of the video's frame that is on now; 0 where the job has no video yet."""
    _load(job)
    if not _frames:
        return 0
    number = _current % len(_frames)
    if not _frames[number]:  # one after the other: all at once would hold up the window
        _frames[number] = _picture(contact_sheet(_video[:, number]))
    return _frames[number]


def views(job: Path) -> list[int]:
    """The icons of the four views that were captured of an object; none where they aren't there."""
    paths = [protocol.Subject.image_path(job, kind, index) for kind in ("condition", "position") for index in range(4)]
    paths = [path for path in paths if path.is_file()][:4]
    key = (str(job), len(paths))
    if key not in _views:
        while len(_views) >= MOST_VIEWS:
            bpy.utils.previews.remove(_views.pop(next(iter(_views))))
        _views[key] = bpy.utils.previews.new()
        for path in paths:
            _views[key].load(path.name, str(path), "IMAGE")  # reads the file when it is drawn
    return [each.icon_id for each in _views[key].values()]


def play() -> None:
    """Lets the frames follow each other for as long as this is called, by what draws them, again and again."""
    global _playing_until
    _playing_until = time.monotonic() + PATIENCE


def is_playing() -> bool:
    return time.monotonic() < _playing_until and len(_frames) > 1


def advance() -> bool:
    """Goes on to the frame that is due; True where it is another one."""
    global _current
    if not is_playing():
        return False
    due = int(time.monotonic() * FRAMES_PER_SECOND) % len(_frames)
    changed, _current = due != _current, due
    return changed


def clear() -> None:
    """Lets go of all pictures."""
    while _views:
        bpy.utils.previews.remove(_views.popitem()[1])
    _clear_video()


def _clear_video() -> None:
    global _icons, _shown, _video
    if _icons is not None:
        bpy.utils.previews.remove(_icons)
        _icons = None
    _video, _shown = None, ("", 0.0)
    _frames.clear()


def _load(job: Path) -> None:
    global _icons, _shown, _current, _video
    forming = protocol.Video.path(job, forming=True).exists()
    try:
        seen = (str(job), protocol.Video.path(job, forming).stat().st_mtime)
    except OSError:
        seen = (str(job), 0.0)
    if seen == _shown:
        return
    _clear_video()
    _shown, _current = seen, 0
    if not seen[1]:
        return
    try:
        video = protocol.Video.load(job, forming).frames
    except protocol.UserError:
        return  # half gone; the job itself will say so
    if video.ndim != 5 or video.shape[0] != 4 or video.shape[-1] not in (3, 4) or not video.size:
        return  # not ours
    _video = video
    _icons = bpy.utils.previews.new()
    _frames.extend([0] * _video.shape[1])


def _picture(sheet: np.ndarray) -> int:
    """The number of a new icon that shows [S, S, 3] uint8."""
    picture = _icons.new(str(len(_icons)))
    picture.image_size = (sheet.shape[1], sheet.shape[0])
    rgba = np.full((*sheet.shape[:2], 4), 255, np.uint8)
    rgba[..., :3] = sheet[::-1]  # Blender's first row is the lowest
    picture.image_pixels.foreach_set(rgba.view(np.int32).ravel())
    return picture.icon_id


def contact_sheet(views: np.ndarray) -> np.ndarray:
    """[4, H, W, C] uint8 to [S, S, 3] uint8: views 0 and 1 above 2 and 3, over grey where there is alpha."""
    step = max(1, 2 * views.shape[1] // SIZE)  # first of all: large videos would hold up the window
    views = views[:, ::step, ::step]
    rgb = views[..., :3].astype(np.float32)
    if views.shape[-1] == 4:
        alpha = views[..., 3:].astype(np.float32) / 255.0
        rgb = alpha * rgb + (1.0 - alpha) * GREY
    _, height, width, _ = rgb.shape
    grid = rgb.reshape(2, 2, height, width, 3).swapaxes(1, 2)
    sheet = np.round(grid.reshape(2 * height, 2 * width, 3)).astype(np.uint8)
    scale = max(1, SIZE // (2 * height))
    return sheet.repeat(scale, axis=0).repeat(scale, axis=1)
