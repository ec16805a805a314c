"""Looks at a file before Blender does: importers crash on, or silently accept, what is damaged. No bpy in it."""

from __future__ import annotations

import base64
import binascii
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from .shared import protocol

COMPONENTS = {5120: np.int8, 5121: np.uint8, 5122: np.int16, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
ELEMENTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
SPLAT_PROPERTIES = (
    *("f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2"),
    *("rot_0", "rot_1", "rot_2", "rot_3"),
)
FBX_MAGIC = b"Kaydara FBX Binary  \0\x1a\0"
LARGEST_HEADER = 65536  # bytes of a .ply header; a splat file's has about 2000


def check(path: Path, readable: tuple[str, ...]) -> None:
    """Raises `UserError` where the file is missing, of a kind that isn't in `readable`, or damaged."""
    if not path.is_file():
        raise protocol.UserError(f"There is no file “{path}”.", "Check the path.")
    suffix = path.suffix.lower()
    if suffix not in readable:
        raise protocol.UserError(
            f"“{path.name}” is of a kind that can't be read ({suffix or 'no extension'}).",
            f"Use {', '.join(readable)}.",
        )
    try:
        if path.stat().st_size == 0:
            raise protocol.UserError(f"“{path.name}” is empty.", "Export or download it again.")
        if suffix in (".glb", ".gltf"):
            _Gltf(path).check()
        elif suffix == ".ply":
            _check_ply(path)
        elif suffix == ".stl":
            _check_stl(path)
        elif suffix == ".fbx":
            _check_fbx(path)
    except OSError as error:
        raise protocol.UserError(
            f"“{path.name}” can't be read ({error.strerror}).", "Check its permissions."
        ) from error


def damaged(path: Path, what: str) -> protocol.UserError:
    return protocol.UserError(f"“{path.name}” is damaged: {what}.", "Export or download it again.")


@dataclass(frozen=True)
class _View:
    """Where an accessor's elements lie: `count` elements of `size` bytes, `stride` apart from `start` of a buffer."""

    buffer: int
    start: int
    stride: int
    count: int
    size: int

    @property
    def end(self) -> int:
        return self.start + (self.count - 1) * self.stride + self.size if self.count else self.start


class _Gltf:
    """The structure of one glTF 2.0 file; every method raises `UserError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.binary: bytes | None = None
        text = self._read_glb() if path.suffix.lower() == ".glb" else path.read_bytes()
        try:
            self.json = json.loads(text)
        except (ValueError, RecursionError):
            raise damaged(path, "its description is no valid JSON") from None
        if not isinstance(self.json, dict) or not isinstance(self.json.get("asset"), dict):
            raise damaged(path, "it is not a glTF file")
        if not str(self.json["asset"].get("version", "")).startswith("2"):
            raise protocol.UserError(f"“{path.name}” is not of glTF version 2.", "Export it as glTF 2.0.")

    def check(self) -> None:
        try:
            self.buffers = [self._buffer(buffer) for buffer in self.json.get("buffers", [])]
            for index in range(len(self.json.get("accessors", []))):
                self._accessor(index)
            for mesh in self.json.get("meshes", []):
                for primitive in mesh["primitives"]:
                    self._primitive(primitive)
            self._nodes()
        except (KeyError, TypeError, IndexError, ValueError, AttributeError, OverflowError):
            # The structure is anything JSON can say; each of these means that it isn't what glTF asks for.
            raise damaged(self.path, "its parts don't fit together") from None

    def _read_glb(self) -> bytes:
        data = self.path.read_bytes()
        if data[:4] != b"glTF" or len(data) < 20:
            raise damaged(self.path, "it is not a .glb file")
        version, length = struct.unpack_from("<II", data, 4)
        if version != 2:
            raise protocol.UserError(f"“{self.path.name}” is not of glTF version 2.", "Export it as glTF 2.0.")
        if length > len(data):
            raise damaged(self.path, "its end is missing")
        chunks, position = [], 12
        while position + 8 <= length:
            size, kind = struct.unpack_from("<I4s", data, position)
            if position + 8 + size > length:
                raise damaged(self.path, "its end is missing")
            chunks.append((kind, data[position + 8 : position + 8 + size]))
            position += 8 + size
        if not chunks or chunks[0][0] != b"JSON":
            raise damaged(self.path, "its description is missing")
        if len(chunks) > 1 and chunks[1][0] == b"BIN\0":
            self.binary = chunks[1][1]
        return chunks[0][1]

    def _buffer(self, buffer: dict) -> bytes:
        uri = buffer.get("uri")
        if uri is None:
            data = self.binary
            if data is None and "EXT_meshopt_compression" not in buffer.get("extensions", {}):
                raise damaged(self.path, "its binary part is missing")
        elif uri.startswith("data:"):
            try:
                data = base64.b64decode(uri.partition(",")[2], validate=False)
            except binascii.Error:
                raise damaged(self.path, "its binary part can't be decoded") from None
        else:
            file = self.path.parent / unquote(uri)
            if not file.is_file():
                raise protocol.UserError(
                    f"“{self.path.name}” needs the file “{unquote(uri)}”, which is missing.",
                    "Put it beside the .gltf file, or export as .glb.",
                )
            data = file.read_bytes()
        if data is not None and len(data) < buffer["byteLength"]:
            raise damaged(self.path, "its binary part is too short")
        return data or b""

    def _view(self, index: int, offset: int, count: int, size: int) -> _View:
        if index < 0:
            raise IndexError
        view = self.json["bufferViews"][index]
        start, length = view.get("byteOffset", 0), view["byteLength"]
        found = _View(view["buffer"], start + offset, view.get("byteStride") or size, count, size)
        compressed = "EXT_meshopt_compression" in view.get("extensions", {})
        if min(start, offset, count, length) < 0 or found.end > start + length:
            raise damaged(self.path, "an array is longer than its place")
        if not compressed and start + length > len(self.buffers[view["buffer"]]):
            raise damaged(self.path, "an array reaches beyond the end of the data")
        return found

    def _accessor(self, index: int) -> _View | None:
        """Where an array lies; None where it is all zeros or compressed."""
        if index < 0:
            raise IndexError
        accessor = self.json["accessors"][index]
        count, width = accessor["count"], COMPONENTS[accessor["componentType"]]().itemsize
        if "sparse" in accessor:
            sparse = accessor["sparse"]
            indices, values = sparse["indices"], sparse["values"]
            index_size = COMPONENTS[indices["componentType"]]().itemsize
            self._view(indices["bufferView"], indices.get("byteOffset", 0), sparse["count"], index_size)
            size = width * ELEMENTS[accessor["type"]]
            self._view(values["bufferView"], values.get("byteOffset", 0), sparse["count"], size)
        if accessor.get("bufferView") is None:
            return None
        size = width * ELEMENTS[accessor["type"]]
        return self._view(accessor["bufferView"], accessor.get("byteOffset", 0), count, size)

    def _primitive(self, primitive: dict) -> None:
        """Every vertex index has a vertex, every attribute has as many elements as there are vertices."""
        accessors = self.json["accessors"]
        attributes = primitive["attributes"]
        counts = {accessors[index]["count"] for index in attributes.values()}
        counts |= {accessors[index]["count"] for target in primitive.get("targets", []) for index in target.values()}
        if len(counts) > 1:
            raise damaged(self.path, "its vertex arrays have different lengths")
        vertices = max(counts, default=0)
        if "indices" not in primitive or "KHR_draco_mesh_compression" in primitive.get("extensions", {}):
            return
        view = self._accessor(primitive["indices"])
        if view is None or "EXT_meshopt_compression" in self._extensions(primitive["indices"]):
            return
        dtype = np.dtype(COMPONENTS[accessors[primitive["indices"]]["componentType"]]).newbyteorder("<")
        raw = np.frombuffer(self.buffers[view.buffer], np.uint8)
        elements = np.ndarray((view.count,), dtype, raw, view.start, (view.stride,))
        if view.count and int(elements.max()) >= vertices:
            raise damaged(self.path, "a face has a vertex that doesn't exist")

    def _extensions(self, accessor: int) -> dict:
        return self.json["bufferViews"][self.json["accessors"][accessor]["bufferView"]].get("extensions", {})

    def _nodes(self) -> None:
        """References between nodes, meshes and skins exist, and no node is its own ancestor or has two parents."""
        nodes = self.json.get("nodes", [])
        meshes, skins = len(self.json.get("meshes", [])), len(self.json.get("skins", []))
        parent: dict[int, int] = {}
        for index, node in enumerate(nodes):
            if not 0 <= node.get("mesh", 0) < max(meshes, 1) or not 0 <= node.get("skin", 0) < max(skins, 1):
                raise IndexError
            for child in node.get("children", []):
                if not 0 <= child < len(nodes) or child in parent:
                    raise IndexError
                parent[child] = index
        for index in range(len(nodes)):
            self._climb(index, parent)

    @staticmethod
    def _climb(index: int, parent: dict[int, int]) -> None:
        seen = {index}
        while index in parent:
            index = parent.pop(index)  # so that every way up is walked once
            if index in seen:
                raise ValueError
            seen.add(index)


def is_splats(path: Path) -> bool:
    """Whether the file is a .ply that means to hold Gaussians, complete or not; never raises."""
    if path.suffix.lower() != ".ply" or not path.is_file():
        return False
    try:
        counts, properties = _ply_elements(path)
    except (OSError, protocol.UserError):
        return False
    # Point clouds may have an opacity too.
    return not counts.get("face") and bool(properties.get("vertex", set()) & set(SPLAT_PROPERTIES) - {"opacity"})


def check_splats(path: Path) -> None:
    """Raises `UserError` where properties of the Gaussians are missing."""
    _, properties = _ply_elements(path)
    missing = [name for name in ("x", "y", "z", *SPLAT_PROPERTIES) if name not in properties["vertex"]]
    if missing:
        raise protocol.UserError(
            f"“{path.name}” lacks properties that Gaussian splats have: {', '.join(missing)}.",
            "Export it as a complete 3DGS .ply file.",
        )


def _ply_elements(path: Path) -> tuple[dict[str, int], dict[str, set[str]]]:
    """How many of each element there are, and the names of its properties. Raises `UserError`."""
    with path.open("rb") as file:
        head = file.read(LARGEST_HEADER)
    end = head.find(b"end_header")
    if not head.startswith(b"ply") or end < 0:
        raise damaged(path, "it has no valid header")
    counts: dict[str, int] = {}
    properties: dict[str, set[str]] = {}
    element = ""
    for line in head[:end].decode("utf-8", "replace").splitlines():
        match line.split():
            case ["element", element, count] if count.isdigit():
                counts[element], properties[element] = int(count), set()
            case ["property", _, *_, name] if element in properties:
                properties[element].add(name)
            case ["ply"] | ["format", _, _] | ["comment", *_] | ["obj_info", *_] | []:
                pass
            case _:  # Blender's reader doesn't stop here, and crashes later
                raise damaged(path, "its header has a line that means nothing")
    return counts, properties


def _check_ply(path: Path) -> None:
    """A mesh: splats and bare points are other things in files of the same name."""
    counts, properties = _ply_elements(path)
    if not counts.get("vertex") or "vertex" not in properties:
        raise damaged(path, "it has no vertices")
    if "packed_position" in properties["vertex"]:
        raise protocol.UserError(f"“{path.name}” holds packed Gaussian splats.", "Export it as an unpacked 3DGS .ply.")
    if not properties["vertex"] >= {"x", "y", "z"}:
        raise damaged(path, "it has no vertices")
    if counts.get("face"):
        if not properties["face"] & {"vertex_indices", "vertex_index"}:
            raise damaged(path, "its faces have no vertices")
        return
    if is_splats(path):
        raise protocol.UserError(
            f"“{path.name}” holds Gaussian splats, which are no mesh.", "Use File > Import > Gaussian Splats."
        )
    raise protocol.UserError(f"“{path.name}” has points but no faces.", "Use a mesh.")


def _check_stl(path: Path) -> None:
    """Binary files say how long they are; text files say what they are."""
    with path.open("rb") as file:
        head = file.read(LARGEST_HEADER)
    text = head.lstrip()[:5].lower() == b"solid" and b"facet" in head.lower()
    binary = len(head) >= 84 and path.stat().st_size >= 84 + 50 * struct.unpack_from("<I", head, 80)[0] > 84
    if not text and not binary:
        raise damaged(path, "it is not an STL file")


def _check_fbx(path: Path) -> None:
    """The tree of records fits into the file: Blender's reader believes any count and may read for ever."""
    data = path.read_bytes()
    if data[:7] == b"; FBX 7":
        raise protocol.UserError(f"“{path.name}” is a text FBX file, which can't be read.", "Export it as binary FBX.")
    if not data.startswith(FBX_MAGIC) or len(data) < 27:
        raise damaged(path, "it is not an FBX file")
    (version,) = struct.unpack_from("<I", data, 23)
    # End of the record, number and bytes of its properties, length of its name; an empty one ends a list.
    record = struct.Struct("<QQQB" if version >= 7500 else "<IIIB")
    open_ends, position = [len(data)], 27
    while open_ends:
        if position + record.size > open_ends[-1]:
            raise damaged(path, "its end is missing")
        end, count, length, name = record.unpack_from(data, position)
        if end == 0:
            if len(open_ends) == 1:
                return  # what follows the tree is a footer
            position = open_ends.pop()
            continue
        inside = position + record.size + name + length
        if not inside <= end <= open_ends[-1] or 2 * count > length:
            raise damaged(path, "its parts don't fit together")
        position = end
        if inside < end:
            open_ends.append(end)
            position = inside
