"""The released files as they lie on a disk: finding them in folders, and reading them without trusting them."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from backend.mv_vdm.checkpoints import WeightsError, file_digest
from backend.weights.sources import MOTION, Source

FOREIGN_HINT = "Get the file again from where it was published."


@dataclass(frozen=True)
class Original:
    """One released file on this disk. `commit` is empty where nobody knows which one it came from."""

    source: Source
    name: str  # its path in the repository
    path: Path
    sha256: str
    commit: str = ""


Originals = dict[str, Original]  # by the name of the part


def find_originals(sources: tuple[Source, ...], folders: list[Path]) -> Originals:
    """The files of the sources in folders; raises `WeightsError` naming what is missing.

    A folder may be a repository's copy, hold several (`NAME` or `OWNER/NAME`), or be Hugging Face's cache.
    """
    for folder in folders:
        if not folder.is_dir():
            raise WeightsError(f"There is no folder {folder}.", "Choose the folder that holds the released files.")
    found: Originals = {}
    missing: list[str] = []
    for source in sources:
        roots = [root for folder in folders for root in _roots(source, folder)]
        for part in source.parts:
            hit = next(((root, name) for root in roots for name in part.paths if (root / name).is_file()), None)
            if hit is None:
                missing.append(f"{source.repository}/{part.paths[-1]}")
                continue
            path = hit[0] / hit[1]
            found[part.name] = Original(source, hit[1], path, file_digest(path), _commit(hit[0]))
    if missing:
        raise WeightsError(
            f"{len(missing)} of the released files are not there, for example {missing[0]}.",
            "Put each repository's files into a folder of its name.",
        )
    return found


def _roots(source: Source, folder: Path) -> list[Path]:
    """Where a repository's files may lie below a folder, the surest place first."""
    owner, name = source.repository.split("/")
    cache = folder / f"models--{owner}--{name}" / "snapshots"
    snapshots = [cache / source.revision, *sorted(cache.glob("*"))]
    return [root for root in (folder / owner / name, folder / name, *snapshots, folder) if root.is_dir()]


def _commit(root: Path) -> str:
    return root.name if root.parent.name == "snapshots" else ""


def own_motion(path: Path) -> Originals:
    """A fine-tuned checkpoint in the place of the released motion modules."""
    if not path.is_file():
        raise WeightsError(f"There is no file {path}.", "Choose a checkpoint of motion modules.")
    return {"motion": Original(MOTION, path.name, path, file_digest(path), "a file of your own")}


def read_original(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a .safetensors or a torch file, mapped from the disk, by their dotted names.

    No code in a pickle is ever run: torch's own unpickler for weights refuses whatever is not plain data. Levels of
    dictionaries become dots. Raises `WeightsError` for a broken or foreign file.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if not zipfile.is_zipfile(path):
            raise WeightsError(f"The file {path.name} is broken, or torch did not write it.", FOREIGN_HINT)
        tensors = _flat(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except pickle.UnpicklingError:
        raise WeightsError(
            f"The file {path.name} holds more than tensors and was not opened, because it could run code.",
            FOREIGN_HINT,
        ) from None
    except (SafetensorError, RuntimeError, ValueError, LookupError, AttributeError, TypeError, OSError, EOFError):
        raise WeightsError(f"The file {path.name} can't be read.", FOREIGN_HINT) from None
    if not tensors:
        raise WeightsError(f"The file {path.name} holds no tensors.", FOREIGN_HINT)
    return tensors


def _flat(content: object, prefix: str = "") -> dict[str, torch.Tensor]:
    """Nested dictionaries -> dotted names; numbers, optimizer lists and the like are left out."""
    if isinstance(content, torch.Tensor):
        return {prefix: content} if content.layout == torch.strided else {}
    if not isinstance(content, dict):
        return {}
    tensors: dict[str, torch.Tensor] = {}
    for name, value in content.items():
        tensors |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
    return tensors


def unwrap(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Takes off the levels that training scripts put around a network: `state_dict.`, then DDP's `module.`."""
    for level in ("state_dict.", "module."):
        inside = {name.removeprefix(level): tensor for name, tensor in tensors.items() if name.startswith(level)}
        tensors = inside or tensors
    return tensors
