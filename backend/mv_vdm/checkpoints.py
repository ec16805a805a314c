"""Weights on disk: sharded safetensors, a manifest of checksums, and one plain sentence when something is wrong.

A model folder holds one folder per network (``config.json`` and ``weights-00001-of-0000N.safetensors``) and a
``manifest.json`` with the size and SHA-256 of every file. Nothing here can execute what it reads: no pickle.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from backend.protocol import UserError

MANIFEST = "manifest.json"
MAX_SHARD_BYTES = 15 * 1000 * 1000  # small enough for a git host and for any file service
SHARD_NAME = re.compile(r"weights-(\d{5})-of-(\d{5})\.safetensors")
DAMAGED_HINT = "Get the weights again; this copy is incomplete or damaged."


class WeightsError(UserError):
    """The weights can't be used; the message is one plain sentence."""

    def __init__(self, message: str, hint: str = DAMAGED_HINT):
        super().__init__(message, hint, kind="missing_weights")


def write_tensors(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    max_bytes: int = MAX_SHARD_BYTES,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes tensors in files of at most ``max_bytes`` each (a larger single tensor gets a file of its own).

    One file's tensors are in memory at a time, so tensors that are mapped from a disk may be larger than the memory.

    Args:
        dtype: what floating-point tensors are stored in, their own where None. Raises ``WeightsError`` where a value
            is not finite in it.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in sorted(tensors.items()):
        size = stored_bytes(tensor, dtype)
        if shards[-1] and filled + size > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("weights-*.safetensors"):
        old.unlink()
    for index, names in enumerate(shards, start=1):
        path = folder / f"weights-{index:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: _as_stored(name, tensors[name], dtype) for name in names}, path)


def stored_bytes(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> int:
    """The size of a tensor in a file."""
    kept = dtype is None or not tensor.is_floating_point()
    return tensor.numel() * (tensor.element_size() if kept else dtype.itemsize)


def _as_stored(name: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """A copy of its own, in the order of a file."""
    if dtype is None or not tensor.is_floating_point():
        return tensor.detach().cpu().contiguous().clone()
    stored = tensor.detach().to("cpu", dtype, copy=True).contiguous()
    if not stored.isfinite().all():
        raise WeightsError(
            f"The tensor {name} has values that {str(dtype).removeprefix('torch.')} can't hold.",
            "Convert with --dtype float32; where that fails as well, the file is broken.",
        )
    return stored


def shard_paths(folder: Path) -> list[Path]:
    """The weight files of a network, complete and in order."""
    found = {path.name: path for path in folder.glob("weights-*.safetensors") if SHARD_NAME.fullmatch(path.name)}
    if not found:
        raise WeightsError(f"There are no weights in {folder}.", "Get the weights, or choose another folder.")
    count = int(SHARD_NAME.fullmatch(min(found)).group(2))
    wanted = [f"weights-{index:05d}-of-{count:05d}.safetensors" for index in range(1, count + 1)]
    missing = [name for name in wanted if name not in found]
    if missing or len(found) != count:
        raise WeightsError(f"The weights in {folder} are incomplete: {len(missing)} of {count} files are missing.")
    return [found[name] for name in wanted]


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a network's folder."""
    tensors: dict[str, torch.Tensor] = {}
    for path in shard_paths(folder):
        try:
            # Checks the header against the file's length, so a header that lies is an error and not a crash.
            with safe_open(path, framework="pt") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError, ValueError):
            raise WeightsError(f"The weight file {path.name} in {path.parent} can't be read.") from None
    return tensors


def check_tensors(network: nn.Module, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Raises ``WeightsError`` unless the tensors are exactly those of the network (which may be on the meta device)."""
    wanted = network.state_dict()
    missing, foreign = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or foreign:
        raise WeightsError(
            f"The weights in {folder} are of another network: {len(missing)} tensors are missing and {len(foreign)} "
            f"are foreign, for example {(missing + foreign)[0]}."
        )
    for name, tensor in wanted.items():
        if tensors[name].shape != tensor.shape:
            raise WeightsError(
                f"The weights in {folder} are of another size: {name} is {list(tensors[name].shape)} and should be "
                f"{list(tensor.shape)}."
            )


def read_json_file(path: Path) -> dict:
    """A JSON object from a model folder."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"The model folder {path.parent} has no {path.name}.") from None
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise WeightsError(f"The file {path.name} in {path.parent} can't be read.")
    return content


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, about: Mapping[str, object] | None = None) -> None:
    """Lists every file below the folder with its size and SHA-256; ``about`` is written beside the list."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in paths
    }
    text = json.dumps({**(about or {}), "files": files}, indent=1, sort_keys=True)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def verify_manifest(folder: Path, contents: bool = True) -> None:
    """Raises ``WeightsError`` unless every listed file is there and unchanged, and every weight file is listed.

    Without ``contents`` only sizes are compared: a look that takes no time.
    """
    files = read_json_file(folder / MANIFEST).get("files")
    if not isinstance(files, dict) or not all(map(_is_entry, files.items())):
        raise WeightsError(f"The file {MANIFEST} in {folder} can't be read.")
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            raise WeightsError(f"The file {name} is missing from the model folder {folder}.")
        if path.stat().st_size != entry["bytes"] or (contents and file_digest(path) != entry["sha256"]):
            raise WeightsError(f"The file {name} in {folder} differs from the one that was published.")
    for path in folder.rglob("*.safetensors"):
        if path.relative_to(folder).as_posix() not in files:
            raise WeightsError(f"The file {path.name} in {folder} does not belong to this model.")


def _is_entry(item: tuple[str, object]) -> bool:
    """Whether a manifest entry names a file inside the folder and has a size and a checksum."""
    name, entry = item
    inside = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts and "\\" not in name
    return inside and isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys()
