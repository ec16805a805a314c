"""What a run has denoised so far, on disk: one that was killed goes on at its next step, and ends the same.

A solver's state follows from the clean latents of the steps before. So these are all that is kept, and a resumed run
takes its steps once more without asking the network.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from backend.protocol import UserError, read_npz, write_npz

WORTH_KEEPING = 1.0  # seconds: steps that are faster are done again


@dataclass(frozen=True)
class StepLog:
    """A folder with a file for each slow step of one run.

    worth_keeping: how many seconds a step must have taken.
    """

    folder: Path
    worth_keeping: float = WORTH_KEEPING

    @classmethod
    def of(cls, place: Path, identity: object, pictures: bytes) -> StepLog:
        """The log of a run in ``place``; all that decides its numbers is in ``identity``, by ``repr``, and pictures."""
        digest = hashlib.sha256(repr(identity).encode() + pictures).hexdigest()
        return cls(place / digest[:16])

    def read(self, step: int, like: torch.Tensor) -> torch.Tensor | None:
        """The clean latents of a step, None where they were not kept or the file is damaged."""
        path = self._path(step)
        if not path.is_file():
            return None
        try:
            kept = torch.from_numpy(read_npz(path, ("clean",))["clean"])
        except UserError:
            return None
        return kept.to(like) if kept.shape == like.shape else None

    def write(self, step: int, clean: torch.Tensor, seconds: float) -> None:
        """Keeps a step; a disk that is full costs no more than that."""
        if seconds >= self.worth_keeping:
            with contextlib.suppress(OSError):
                write_npz(self._path(step), clean=clean.cpu().numpy())

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:04d}.npz"


def forget(place: Path) -> None:
    """Deletes the logs of a place."""
    shutil.rmtree(place, ignore_errors=True)
