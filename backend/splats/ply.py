"""Gaussians from and to the usual 3DGS .ply file (the layout of the first 3DGS code and of most viewers).

Colours are kept as degree 0 of the spherical harmonics; higher degrees in a file are dropped.
"""

from pathlib import Path

import numpy as np
import torch

from .gaussians import Gaussians

SH_C0 = 0.28209479177387814
_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip
_POSITION = ("x", "y", "z")
_COLOR = ("f_dc_0", "f_dc_1", "f_dc_2")
_SCALE = ("scale_0", "scale_1", "scale_2")
_ROTATION = ("rot_0", "rot_1", "rot_2", "rot_3")
_WANTED = (*_POSITION, *_COLOR, "opacity", *_SCALE, *_ROTATION)
_WRITTEN = (*_POSITION, "nx", "ny", "nz", *_COLOR, "opacity", *_SCALE, *_ROTATION)


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
    properties = "".join(f"property float {name}\n" for name in _WRITTEN)
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(table)}\n{properties}end_header\n"
    Path(path).write_bytes(header.encode("ascii") + table.tobytes())


def read_ply(path: str | Path) -> Gaussians:
    """Reads free Gaussians; rows with values that are not finite are left out.

    Raises:
        ValueError: not a .ply of Gaussians (the sentence names what is missing), cut short, or empty.
    """
    data = Path(path).read_bytes()
    encoding, count, fields, body = _read_header(data, Path(path).name)
    missing = [name for name in _WANTED if name not in dict(fields)]
    if missing:
        raise ValueError(f"{Path(path).name} is not a 3D Gaussian file: it lacks {', '.join(missing)}.")
    table = _read_rows(data[body:], encoding, count, fields, Path(path).name)
    columns = np.stack([np.asarray(table[name], np.float64) for name in _WANTED], 1)
    columns = columns[np.isfinite(columns).all(1)]
    if len(columns) == 0:
        raise ValueError(f"{Path(path).name} holds no Gaussians.")
    position, color, opacity, scale, rotation = torch.from_numpy(columns).split([3, 3, 1, 3, 4], 1)
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
    return encoding, count, fields, data.index(b"\n", end) + 1 if b"\n" in data[end:] else len(data)


def _read_rows(rows: bytes, encoding: str, count: int, fields: list[tuple[str, str]], name: str) -> np.ndarray:
    """The vertex table as a structured array, or as one indexed by name."""
    short = f"{name} is cut short: its header promises {count} Gaussians."
    if encoding in ("binary_little_endian", "binary_big_endian"):
        order = "<" if encoding == "binary_little_endian" else ">"
        layout = np.dtype([(field, order + kind) for field, kind in fields])
        if len(rows) < count * layout.itemsize:
            raise ValueError(short)
        return np.frombuffer(rows, layout, count)
    if encoding != "ascii":
        raise ValueError(f"{name} has an unknown encoding: {encoding or 'none named'}.")
    numbers = rows.split(None, count * len(fields))[: count * len(fields)]
    if len(numbers) < count * len(fields):
        raise ValueError(short)
    values = np.array(numbers, np.float64).reshape(count, len(fields))
    return np.rec.fromarrays(values.T, names=[field for field, _ in fields])
