"""Takes as .pc2 files that a Mesh Cache modifier plays: for meshes whose shape keys would fill the memory.

The file holds one round of the take as it is timed; the modifier's frame is animated, so that loops repeat. Where the
file goes is the user's choice, and Blender keeps the path to it as it does for images. While the modifier is on, what
takes do to the mesh is not seen.
"""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path

import bpy
import numpy as np

from . import bake, compat, take_data, takes
from .shared import protocol

HEADER = struct.Struct("<12siiffi")  # magic, version, points, first frame, frames per sample, samples


def push(obj: bpy.types.Object, folder: Path) -> list[Path]:
    """The shown take of an object, and of those that were animated with it, as cache files in a folder.

    The takes stay in the list, and none is on. Returns the files.

    Raises:
        UserError: a file can't be written; then nothing is changed.
    """
    found = list(take_data.members(obj.animate3d.active))
    for each, index in found:
        error = take_data.fault(each)
        if error is not None or each.animate3d.takes[index].output != "KEYS":
            raise error or protocol.UserError("Only shape keys go into a cache.", "Let the take be shape keys first.")
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for each, index in found:
            written.append(_free_path(folder, f"{each.name} {each.animate3d.takes[index].name}"))
            _write(each, each.animate3d.takes[index], written[-1])
    except OSError as error:
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        raise protocol.UserError(f"The cache can't be written ({error.strerror}).", "Choose another folder.") from None
    for (each, index), path in zip(found, written, strict=True):
        take = each.animate3d.takes[index]
        name, timing = take.name, take.timing
        with takes.quietly():
            each.animate3d.active_index = -1
        takes.show(each)
        _play(each, path, name, timing)
    return written


def _free_path(folder: Path, name: str) -> Path:
    """A path that no file has yet; object names may hold what no file name can."""
    stem = "".join(c if c.isalnum() or c in " -_" else "_" for c in name).strip()[:80] or "motion"
    number, path = 1, folder / f"{stem}.pc2"
    while path.exists():
        number += 1
        path = folder / f"{stem} {number}.pc2"
    return path


def _write(obj: bpy.types.Object, take: takes.Take, path: Path) -> None:
    """The positions [S, V, 3] of one round, whole or not at all."""
    moves, timing = take_data.offsets(take, obj), take.timing
    rest = np.empty((len(obj.data.vertices), 3), np.float32)
    keys = obj.data.shape_keys
    (keys.reference_key.points if keys is not None else obj.data.vertices).foreach_get("co", rest.ravel())
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(HEADER.pack(b"POINTCACHE2\0", 1, len(rest), 0.0, 1.0, len(timing.order)))
        for frame in timing.order:
            file.write((rest if frame == 0 else rest + timing.strength * moves[frame - 1]).astype("<f4").tobytes())
    os.replace(part, path)


def _play(obj: bpy.types.Object, path: Path, name: str, timing: takes.Timing) -> None:
    """The modifier, before all others, as shape keys would be; and the animation of its frame."""
    modifier = obj.modifiers.new(name, "MESH_CACHE")
    obj.modifiers.move(len(obj.modifiers) - 1, 0)
    modifier.cache_format, modifier.filepath = "PC2", str(path)
    modifier.interpolation, modifier.deform_mode = "LINEAR", "OVERWRITE"
    modifier.time_mode, modifier.play_mode = "FRAME", "CUSTOM"
    old = obj.animation_data.action if obj.animation_data else None
    fcurves = compat.object_fcurves(obj, old or bpy.data.actions.new(name))
    last = len(timing.order) - 1
    points = np.array([(timing.start, 0.0), (timing.start + last * timing.step, last)])
    bake.set_points(fcurves.new(modifier.path_from_id("eval_frame")), points, timing.repeats)
