"""Progress for people: a bar on a terminal, plain lines elsewhere.

Standard library only: Blender's Python has no more.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time

LABELS = {
    "load": "reading the file",
    "backend": "starting",
    "capture": "looking at the object",
    "video": "imagining the motion",
    "matte": "cutting it out",
    "splats": "building splats",
    "motion": "fitting the motion",
    "refine": "refining the motion",
    "rig": "making bones",
    "frames": "writing the frames",
    "bake": "baking",
    "export": "writing the file",
}
REDRAW = 0.1  # seconds between two drawings of the bar


class Progress:
    """Shows stages and steps. Keeps its own way to standard output, which Blender's parts are silenced on meanwhile."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
        self._bar = self._out.isatty()
        self._stage, self._started, self._drawn = "", 0.0, 0.0

    def line(self, text: str) -> None:
        """One line of plain text."""
        self._write(f"\r\x1b[K{text}\n" if self._bar else f"{text}\n")

    def step(self, stage: str, step: int, steps: int) -> None:
        """Step `step` of `steps` of a stage is done, 0 when it starts; one that starts at its end was taken over."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._started, self._drawn = stage, now, 0.0
            if not self._bar:
                taken = ": taken over" if step >= steps else " …"
                self._write(f"{LABELS.get(stage, stage)}{taken}\n")
        if self._bar and (now - self._drawn >= REDRAW or step >= steps):
            self._drawn = now
            self._write(f"\r\x1b[K{self._draw(step, steps, now - self._started)}")

    def finish(self) -> None:
        """Clears the bar."""
        if self._bar:
            self._write("\r\x1b[K")
        self._stage = ""

    def _draw(self, step: int, steps: int, seconds: float) -> str:
        share = min(1.0, step / steps) if steps > 0 else 0.0
        left = f"{seconds / share - seconds:.0f} s left" if 0.0 < share < 1.0 else ""
        label = f"{LABELS.get(self._stage, self._stage):22} {step:>5}/{steps:<5}"
        width = shutil.get_terminal_size((80, 24)).columns - len(label) - 18
        filled = round(share * max(width, 0))
        return f"{label} [{'#' * filled}{'-' * (max(width, 0) - filled)}] {left}" if width >= 5 else f"{label} {left}"

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody looks any more (a closed pipe); the work goes on
            self._out.write(text)
            self._out.flush()
