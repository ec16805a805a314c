"""Rendered clips in shards of the WebDataset layout: plain tar files in which the entries of a sample share a key.

    fox-0.json          caption, licence, source, appearance, frames, fovy, c2w [n, 4, 4] camera-to-world, OpenGL
    fox-0.npz           vertices [F, V, 3] float32 and faces [T, 3] int32, subject space
    fox-0.v0f00.png     view 0, frame 0, RGBA with straight alpha; and so on

A shard gets its name only when it is whole: a writer that was killed leaves whole shards and one `.part`, which the
next one replaces. Standard library, numpy and pillow only: Blender's side writes what training reads.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from backend.protocol import UserError


class ShardWriter:
    """Writes samples to `folder`; as a context manager it finishes the last shard unless there was an error.

    `done` holds the keys that finished shards of the folder have, whoever wrote them: what can be left out. Writers
    that work at the same time need prefixes of their own.
    """

    def __init__(self, folder: Path, samples_per_shard: int = 16, prefix: str = "clips") -> None:
        self.folder, self.samples_per_shard, self.prefix = folder, samples_per_shard, prefix
        folder.mkdir(parents=True, exist_ok=True)
        self.done = {key for path in sorted(folder.glob("*.tar")) for key, _ in _samples(path)}
        own = [path.stem.removeprefix(f"{prefix}-") for path in folder.glob(f"{prefix}-*.tar")]
        self.index = 1 + max((int(number) for number in own if number.isdigit()), default=-1)
        self.tar: tarfile.TarFile | None = None
        self.samples = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self.finish()
        elif self.tar is not None:
            self.tar.close()  # stays a .part

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.prefix}-{self.index:06d}.tar"

    def write(self, key: str, entries: dict[str, bytes]) -> None:
        """Adds a sample: the bytes of each entry by its ending ("json", "v0f00.png")."""
        if self.tar is None:
            self.tar = tarfile.open(self._path.with_suffix(".tar.part"), "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        for ending, content in entries.items():
            info = tarfile.TarInfo(f"{key}.{ending}")
            info.size = len(content)
            self.tar.addfile(info, io.BytesIO(content))
        self.done.add(key)
        self.samples += 1
        if self.samples == self.samples_per_shard:
            self.finish()

    def finish(self) -> None:
        """Ends the shard that is being written."""
        if self.tar is None:
            return
        self.tar.close()
        os.replace(self._path.with_suffix(".tar.part"), self._path)
        self.tar, self.samples, self.index = None, 0, self.index + 1


@dataclass(frozen=True)
class RenderedClip:
    """A sample, decoded."""

    key: str
    pictures: np.ndarray  # [n, F, H, W, 4] uint8, straight alpha
    c2w: np.ndarray  # [n, 4, 4] float64
    fovy: float  # degrees
    vertices: np.ndarray  # [F, V, 3] float32, subject space
    faces: np.ndarray  # [T, 3] int32
    caption: str
    licence: str
    appearance: str  # color | position

    def entries(self) -> dict[str, bytes]:
        """What `ShardWriter.write` takes, but for the pictures, which are on disk already where Blender made them."""
        about = {
            "caption": self.caption,
            "licence": self.licence,
            "appearance": self.appearance,
            "frames": len(self.vertices),
            "fovy": self.fovy,
            "c2w": self.c2w.tolist(),
        }
        arrays = io.BytesIO()
        np.savez_compressed(arrays, vertices=self.vertices.astype(np.float32), faces=self.faces.astype(np.int32))
        return {"json": json.dumps(about).encode(), "npz": arrays.getvalue()}


def read_shards(folder: Path, pictures: bool = True) -> Iterator[RenderedClip]:
    """The clips of all whole shards in a folder, in the order of their names; raises `UserError`.

    Without `pictures` they are not decoded: [n, 0].
    """
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise UserError(f"There are no shards in “{folder}”.", "Make some with tools/render_dataset.py.")
    for path in paths:
        for key, entries in _samples(path):
            yield _checked(key, path, entries, pictures)


def _checked(key: str, path: Path, entries: dict[str, bytes], pictures: bool) -> RenderedClip:
    """The clip, or a sentence that names it."""
    try:
        return _decode(key, entries, pictures)
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise UserError(f"The clip “{key}” in “{path.name}” can't be read.", "Render it again.") from error


def check_shards(folder: Path) -> int:
    """Decodes every clip; returns how many there are.

    Raises:
        UserError: one that can't be read, shows nothing, whose frames don't belong to its vertices, or that is there
            twice.
    """
    seen: set[str] = set()
    for clip in read_shards(folder):
        views, frames = clip.pictures.shape[:2]
        shown = clip.pictures[..., 3].reshape(views * frames, -1).max(axis=1)
        if frames != len(clip.vertices) or not np.isfinite(clip.vertices).all() or not shown[::frames].all():
            raise UserError(
                f"The clip “{clip.key}” shows nothing, or is not whole.", "Delete its shard and render again."
            )
        if clip.key in seen:
            raise UserError(f"The clip “{clip.key}” is there twice.", "Delete one of its shards.")
        seen.add(clip.key)
    return len(seen)


class ShardIndex:
    """Where each clip of a folder's whole shards begins, so that they can be read in any order; raises `UserError`."""

    def __init__(self, folder: Path) -> None:
        self.places: list[tuple[str, Path, int]] = []  # key, shard, byte
        paths = sorted(folder.glob("*.tar"))
        if not paths:
            raise UserError(f"There are no shards in “{folder}”.", "Make some with tools/render_dataset.py.")
        for path in paths:
            last = ""
            try:
                with tarfile.open(path, "r:") as tar:
                    for member in tar:
                        key = member.name.partition(".")[0]
                        if key != last:
                            self.places.append((key, path, member.offset))
                        last = key
            except (tarfile.TarError, OSError) as error:
                raise _damaged(path) from error

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> RenderedClip:
        """One clip, decoded."""
        key, path, start = self.places[index]
        _, entries = next(_samples(path, start))
        return _checked(key, path, entries, True)


def _samples(path: Path, start: int = 0) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The entries of each sample of one shard by their endings, from a sample's first byte on."""
    key, entries = "", {}
    try:
        with path.open("rb") as file, tarfile.open(fileobj=_at(file, start), mode="r:") as tar:
            for member in tar:
                name, _, ending = member.name.partition(".")
                if name != key and entries:
                    yield key, entries
                    entries = {}
                key = name
                entries[ending] = tar.extractfile(member).read()
    except (tarfile.TarError, AttributeError, OSError) as error:
        raise _damaged(path) from error
    if entries:
        yield key, entries


def _at(file: BinaryIO, start: int) -> BinaryIO:
    file.seek(start)
    return file


def _damaged(path: Path) -> UserError:
    return UserError(f"The shard “{path.name}” is damaged.", "Delete it and render its clips again.")


def _decode(key: str, entries: dict[str, bytes], with_pictures: bool) -> RenderedClip:
    about = json.loads(entries["json"])
    frames = range(about["frames"]) if with_pictures else ()
    with np.load(io.BytesIO(entries["npz"]), allow_pickle=False) as arrays:
        vertices, faces = arrays["vertices"], arrays["faces"]
    c2w = np.array(about["c2w"], np.float64)
    pictures = [[_picture(entries[f"v{view}f{frame:02d}.png"]) for frame in frames] for view in range(len(c2w))]
    words = (str(about[name]) for name in ("caption", "licence", "appearance"))
    return RenderedClip(key, np.array(pictures), c2w, float(about["fovy"]), vertices, faces, *words)


def _picture(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))
