"""How far a job is and how long it will take, from how long earlier ones took on this machine. No bpy in it."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from .shared import protocol

STAGES = ("capture", "backend", "video", "matte", "splats", "motion", "refine", "rig", "frames")
LABELS = {
    "capture": "Looking at the object",
    "backend": "Starting",
    "video": "Imagining the motion",
    "matte": "Cutting it out",
    "splats": "Building splats",
    "motion": "Fitting the motion",
    "refine": "Refining the motion",
    "rig": "Making bones",
    "frames": "Writing frames",
}
# Seconds on two CPU cores with the draft preset; only the first job of a kind is judged by them.
FIRST_GUESS = {"capture": 6.0, "backend": 3.0, "video": 4.0, "matte": 0.3, "motion": 3.0}
FILE = "seconds.json"


class Estimate:
    """Watches one job go through its stages.

    Args:
        file: where the seconds of earlier jobs are kept.
        kind: jobs of one kind take about as long as each other.
    """

    def __init__(self, file: Path, kind: str) -> None:
        self._file, self._kind = file, kind
        self._expected = {**dict.fromkeys(STAGES, 0.0), **FIRST_GUESS, **_read(file).get(kind, {})}
        self._measured: dict[str, float] = {}
        self._stage, self._began, self._share = "", time.monotonic(), 0.0

    def step(self, stage: str, step: int, steps: int) -> None:
        """Step `step` of `steps` of a stage is done."""
        if stage != self._stage:
            self._note()
            self._stage, self._began = stage, time.monotonic()
        self._share = min(step / steps, 1.0) if steps > 0 else 0.0

    def finish(self) -> None:
        """The job is done: what was measured serves the next one."""
        self._note()
        known = _read(self._file)
        known[self._kind] = {**known.get(self._kind, {}), **self._measured}
        with contextlib.suppress(OSError):
            protocol.write_json(self._file, known)

    @property
    def seconds_left(self) -> float:
        return self._left_of_stage() + self._slowness() * sum(self._expected[stage] for stage in self._to_come())

    @property
    def share(self) -> float:
        """0 to 1, of the whole job."""
        done = sum(self._measured.values()) + (time.monotonic() - self._began if self._stage else 0.0)
        return done / (done + self.seconds_left) if done > 0.0 else 0.0

    def _left_of_stage(self) -> float:
        if not self._stage:
            return 0.0
        spent = time.monotonic() - self._began
        if self._share > 0.1:
            return spent / self._share - spent
        return max(self._slowness() * self._expected.get(self._stage, 0.0) - spent, 0.0)

    def _slowness(self) -> float:
        """How many times longer it took so far than was expected, on a busy machine; at least 1."""
        spent, expected = sum(self._measured.values()), sum(self._expected.get(stage, 0.0) for stage in self._measured)
        if self._stage:
            now, guess = time.monotonic() - self._began, self._expected.get(self._stage, 0.0)
            if now > guess:
                spent, expected = spent + now, expected + guess
        return max(1.0, spent / expected) if expected > 0.0 else 1.0

    def _to_come(self) -> tuple[str, ...]:
        return STAGES[STAGES.index(self._stage) + 1 :] if self._stage in STAGES else STAGES

    def _note(self) -> None:
        if self._stage:
            self._measured[self._stage] = round(time.monotonic() - self._began, 3)


def _read(file: Path) -> dict[str, dict[str, float]]:
    try:
        data = protocol.read_json(file)
    except protocol.UserError:
        return {}
    return {
        str(kind): {str(k): float(v) for k, v in stages.items() if isinstance(v, int | float)}
        for kind, stages in data.items()
        if isinstance(stages, dict)
    }


def words(seconds: float) -> str:
    """A time as people say it: 8 s, 3 min, 1 h 20 min."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
