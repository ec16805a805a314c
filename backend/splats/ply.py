"""Gaussians from and to the usual 3DGS .ply file (the layout of the first 3DGS code and of most viewers).

`SplatFile` looks at a file of any size without reading it whole; `Gaussians` keep degree 0 of the colours' spherical
harmonics alone, files that are written as frames of a motion keep all that their source has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .gaussians import Gaussians

SH_C0 = 0.28209479177387814
SH_COEFFICIENTS = (0, 9, 24, 45)  # possible numbers of `f_rest_*` properties: degrees 0 to 3
LARGEST_HEADER = 1 << 16  # bytes
_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip
POSITION = ("x", "y", "z")
COLOR = ("f_dc_0", "f_dc_1", "f_dc_2")
SCALE = ("scale_0", "scale_1", "scale_2")
ROTATION = ("rot_0", "rot_1", "rot_2", "rot_3")  # w, x, y, z
_WANTED = (*POSITION, *COLOR, "opacity", *SCALE, *ROTATION)
_WRITTEN = (*POSITION, "nx", "ny", "nz", *COLOR, "opacity", *SCALE, *ROTATION)


@dataclass(frozen=True)
class SplatFile:
    """A .ply of N Gaussians, looked at in place."""

    table: np.ndarray  # [N] structured, memory-mapped where the file is binary
    name: str

    @classmethod
    def open(cls, path: str | Path) -> SplatFile:
        """Raises ValueError: not a .ply of Gaussians (the sentence names what is missing), or cut short."""
        path = Path(path)
        with path.open("rb") as file:
            head = file.read(LARGEST_HEADER)
        encoding, count, fields, body = _read_header(head, path.name)
        missing = [name for name in _WANTED if name not in dict(fields)]
        if missing:
            raise ValueError(f"{path.name} is not a 3D Gaussian file: it lacks {', '.join(missing)}.")
        return cls(_rows(path, body, encoding, count, fields), path.name)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def rest_names(self) -> tuple[str, ...]:
        """The higher colour coefficients, in order: all of red, then green, then blue.

        Raises ValueError where they make no whole degrees.
        """
        names = {name for name in self.table.dtype.names if name.startswith("f_rest_")}
        ordered = tuple(f"f_rest_{k}" for k in range(len(names)))
        if len(names) not in SH_COEFFICIENTS or set(ordered) != names:
            raise ValueError(f"{self.name} has {len(names)} higher colour coefficients, where 0, 9, 24 or 45 fit.")
        return ordered

    def columns(self, names: Sequence[str], rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """[n, K] float32 of some rows; infinities and the like are left as they are."""
        part = self.table[rows]
        return np.stack([np.asarray(part[name], np.float32) for name in names], axis=-1)


def write_ply(path: str | Path, gaussians: Gaussians) -> None:
    """Writes N Gaussians as binary little-endian floats. Opacities are kept off 0 and 1, where their logit ends."""
    g = gaussians
    opacity = g.opacities.detach().double().clamp(1e-6, 1 - 1e-6)
    columns = [
        g.means,
        torch.zeros_like(g.means),
        (g.colors - 0.5) / SH_C0,
        torch.logit(opacity)[:, None],
        torch.log(g.scales.clamp_min(1e-12)),
        torch.nn.functional.normalize(g.quats, dim=-1),
    ]
    table = torch.cat([c.detach().cpu().double() for c in columns], 1).numpy().astype("<f4")
    layout = np.dtype([(name, "<f4") for name in _WRITTEN])
    Path(path).write_bytes(header(layout, len(table)) + table.tobytes())


def header(layout: np.dtype, count: int) -> bytes:
    """The header of a binary file whose rows have this little-endian layout."""
    words = {"i1": "char", "u1": "uchar", "i2": "short", "u2": "ushort", "i4": "int", "u4": "uint",
             "f4": "float", "f8": "double"}  # fmt: skip
    lines = [f"property {words[layout[name].str[1:]]} {name}\n" for name in layout.names]
    return f"ply\nformat binary_little_endian 1.0\nelement vertex {count}\n{''.join(lines)}end_header\n".encode("ascii")


def read_ply(path: str | Path) -> Gaussians:
    """Reads free Gaussians; rows with values that are not finite are left out.

    Raises:
        ValueError: not a .ply of Gaussians (the sentence names what is missing), cut short, or empty.
    """
    source = SplatFile.open(path)
    columns = source.columns(_WANTED)
    columns = columns[np.isfinite(columns).all(1)]
    if len(columns) == 0:
        raise ValueError(f"{source.name} holds no Gaussians.")
    return from_columns(columns)


def read_rows(source: SplatFile, rows: np.ndarray) -> Gaussians:
    """Free Gaussians of some rows, which must be finite."""
    return from_columns(source.columns(_WANTED, rows))


def from_columns(columns: np.ndarray) -> Gaussians:
    """Rows as they are in a file, [N, 14] in the order x y z, f_dc, opacity, scale, rot."""
    position, color, opacity, scale, rotation = torch.from_numpy(columns).double().split([3, 3, 1, 3, 4], 1)
    return Gaussians(
        position.float(),
        torch.nn.functional.normalize(rotation, dim=-1).float(),
        scale.exp().float(),
        torch.sigmoid(opacity[:, 0]).float(),
        (0.5 + SH_C0 * color).clamp(0, 1).float(),
    )


def _read_header(data: bytes, name: str) -> tuple[str, int, list[tuple[str, str]], int]:
    """Encoding, number of vertices, their (property, numpy type) pairs, and where the rows begin."""
    end = data.find(b"end_header")
    if not data.startswith(b"ply") or end < 0:
        raise ValueError(f"{name} is not a .ply file: it has no complete header.")
    lines = [line.split() for line in data[:end].decode("ascii", "replace").splitlines()[1:]]
    encoding, elements, fields, count = "", 0, [], 0
    for words in lines:
        if words[:1] == ["format"] and len(words) > 1:
            encoding = words[1]
        elif words[:1] == ["element"]:
            elements += 1
            if elements == 1:
                if len(words) != 3 or words[1] != "vertex" or not words[2].isdigit():
                    raise ValueError(f"{name} does not begin with vertices.")
                count = int(words[2])
        elif words[:1] == ["property"] and elements == 1:
            if len(words) != 3 or words[1] not in _TYPES:
                raise ValueError(f"{name} has a vertex property that is not a number: {' '.join(words[1:])}.")
            fields.append((words[2], _TYPES[words[1]]))
    if len({field for field, _ in fields}) < len(fields):
        raise ValueError(f"{name} names a vertex property twice.")
    return encoding, count, fields, data.index(b"\n", end) + 1 if b"\n" in data[end:] else len(data)


def _rows(path: Path, body: int, encoding: str, count: int, fields: list[tuple[str, str]]) -> np.ndarray:
    """The vertex table as a structured array."""
    short = f"{path.name} is cut short: its header promises {count} Gaussians."
    if encoding in ("binary_little_endian", "binary_big_endian"):
        order = "<" if encoding == "binary_little_endian" else ">"
        layout = np.dtype([(field, order + kind) for field, kind in fields])
        if path.stat().st_size - body < count * layout.itemsize:
            raise ValueError(short)
        return np.memmap(path, layout, "r", body, (count,)) if count else np.zeros(0, layout)
    if encoding != "ascii":
        raise ValueError(f"{path.name} has an unknown encoding: {encoding or 'none named'}.")
    numbers = path.read_bytes()[body:].split(None, count * len(fields))[: count * len(fields)]
    if len(numbers) < count * len(fields):
        raise ValueError(short)
    try:
        values = np.array(numbers, np.float64).reshape(count, len(fields))
    except ValueError:
        raise ValueError(f"{path.name} has rows that are no numbers.") from None
    table = np.zeros(count, np.dtype([(field, "<" + kind) for field, kind in fields]))
    for k, (field, _) in enumerate(fields):
        table[field] = values[:, k]
    return table
