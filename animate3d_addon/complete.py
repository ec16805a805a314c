"""Whether a file that Blender wrote is whole. Several of its writers don't notice a full disk. No bpy in it."""

from __future__ import annotations

import struct
from pathlib import Path

ZSTD_SEEK_TABLE_END = b"\xb1\xea\x92\x8f"  # the last bytes of a compressed .blend file
USD_HEADER = struct.Struct("<8s8sq")  # name, version, where the table of contents begins
USD_SECTION = 32  # bytes of an entry of that table


def is_complete(path: Path) -> bool:
    """Whether the file is there and has its end, as far as its format tells."""
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        head = file.read(32)
        file.seek(max(path.stat().st_size - 256, 0))
        end = file.read()
    suffix = path.suffix.lower()
    if suffix == ".blend":
        return b"ENDB" in end if head.startswith(b"BLENDER") else end.endswith(ZSTD_SEEK_TABLE_END)
    if suffix == ".glb":
        return len(head) >= 12 and struct.unpack_from("<I", head, 8)[0] == path.stat().st_size
    if suffix == ".usdc":
        return _is_complete_usd(path, head)
    return True


def _is_complete_usd(path: Path, head: bytes) -> bool:
    """The table of contents is the last thing in the file."""
    if len(head) < USD_HEADER.size:
        return False
    name, _, start = USD_HEADER.unpack_from(head)
    if name != b"PXR-USDC" or start + 8 > path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(start)
        (sections,) = struct.unpack("<q", file.read(8))
    return start + 8 + sections * USD_SECTION == path.stat().st_size
