"""What every training run needs: state that resumes exactly, a learning-rate curve, a log, averaged weights."""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tensorboardX import SummaryWriter

from backend.training.charts import curves, save_png, stack
from backend.training.muon import StackedMuon


@dataclass
class RunState:
    """Where a run stands."""

    step: int = 0
    seconds: float = 0.0  # of training, over all runs
    losses: list[float] = field(default_factory=list)  # of the steps since the log's last row


def cosine_rate(step: int, warmup: int, progress: float) -> float:
    """Factor of the learning rate: linear warm-up over `warmup` steps, then a cosine over `progress` 0..1."""
    return min(1.0, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0)))


def build_optimizers(model: torch.nn.Module, rate: float) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices inside the UNet, AdamW for all else; both at AdamW's usual rates.

    Muon's steps turn all directions of a matrix alike, and a small model learns as much in fewer of them.
    """
    matrices = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and name.startswith("unet.") and "embedding" not in name
    }
    others = [parameter for name, parameter in model.named_parameters() if name not in matrices]
    return (
        StackedMuon(matrices.values(), lr=rate, weight_decay=1e-2, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.99), weight_decay=1e-2, fused=True),
    )


def save_state(path: Path, model: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer], state: RunState,
               extra: dict[str, torch.Tensor] | None = None) -> None:  # fmt: skip
    """Model, optimisers, counters, random generator and `extra` tensors in one file, written whole or not at all."""
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for index, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{index}.{key}": torch.as_tensor(value) for key, value in slots.items()}
    tensors |= {f"extra.{key}": value for key, value in (extra or {}).items()}
    tensors["random"] = torch.get_rng_state()
    tensors["counters"] = torch.tensor([state.step, state.seconds], dtype=torch.float64)
    tensors["losses"] = torch.tensor(state.losses, dtype=torch.float64)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_file({key: value.detach().contiguous().clone() for key, value in tensors.items()}, part)
    os.replace(part, path)


def load_state(path: Path, model: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer],
               extra: dict[str, torch.Tensor] | None = None) -> RunState:  # fmt: skip
    """Puts back what `save_state` wrote (in place, `extra` too); a fresh state where there is no file."""
    if not path.exists():
        return RunState()
    tensors = load_file(path)
    model.load_state_dict({key[6:]: value for key, value in tensors.items() if key.startswith("model.")})
    for number, optimizer in enumerate(optimizers):
        slots: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer.{number}."):
                index, name = key.split(".")[2:]
                slots.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    for key, value in (extra or {}).items():
        value.copy_(tensors[f"extra.{key}"])
    torch.set_rng_state(tensors["random"])
    step, seconds = tensors["counters"].tolist()
    return RunState(int(step), seconds, tensors["losses"].tolist() if "losses" in tensors else [])


class SaveClock:
    """Says when it is time to save again: by the clock, so that a kill never costs more than a few minutes."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.last = seconds, time.monotonic()

    def due(self) -> bool:
        if time.monotonic() - self.last < self.seconds:
            return False
        self.last = time.monotonic()
        return True


class Average:
    """Exponential moving average of a model's parameters."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {key: value.detach().clone() for key, value in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: torch.nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))  # short memory at the start
        torch._foreach_lerp_(list(self.shadow.values()), [p.detach() for p in model.parameters()], 1.0 - decay)

    @torch.no_grad()
    def copy_to(self, model: torch.nn.Module) -> None:
        for key, value in model.named_parameters():
            value.copy_(self.shadow[key])


class RunLog:
    """Rows of figures: in a CSV file, on the terminal, and for TensorBoard; and pictures beside them.

    `video.csv` lies in the run's folder, `tensorboard/video` and `video.png` (curves, and the last samples) beside it.
    A run that goes on after step `after_step` drops what a killed one wrote later: it will be written again.
    An inactive log writes nothing: only one of several processes keeps it.
    """

    def __init__(self, path: Path, after_step: int = 0, active: bool = True) -> None:
        self.path, self.active = path, active
        if not active:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [row for row in rows if int(row.split(",")[0].removeprefix("step=")) <= after_step]
            path.write_text("".join(kept), encoding="utf-8", newline="")
        self.board = SummaryWriter(str(path.parent / "tensorboard" / path.stem), purge_step=after_step + 1)

    def write(self, **figures: float) -> None:
        """A row; `step` comes first."""
        if not self.active:
            return
        line = [f"{key}={value:.6g}" for key, value in figures.items()]
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(line)
        for name in figures.keys() - {"step"}:
            self.board.add_scalar(name, figures[name], int(figures["step"]))
        self.board.flush()
        print("  ".join(line), flush=True)

    def rows(self) -> list[dict[str, float]]:
        """All that was written, by figure."""
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = [[entry.partition("=") for entry in row] for row in csv.reader(file)]
        return [{name: float(value) for name, _, value in row} for row in rows]

    def show(self, step: int, samples: np.ndarray, figures: tuple[str, ...]) -> None:
        """Draws the curves of some figures above sample pictures, uint8 [H, W, 3]."""
        if not self.active:
            return
        self.board.add_image("samples", samples, step, dataformats="HWC")
        self.board.flush()
        save_png(self.path.with_suffix(".png"), stack([curves(self.rows(), figures), samples]))
