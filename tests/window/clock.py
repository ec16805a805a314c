"""How long Blender's main thread stands still, and whose doing that is. Linux alone.

A timer asks for a beat every 20 ms. Between two beats the test's own steps ran (which is taken off), or the thread ran,
or it was ready to run while others had the core (the kernel counts both), or it slept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import bpy

BEAT = 0.02  # seconds


@dataclass(frozen=True)
class Gap:
    """A time in which nothing else could happen in the thread; seconds."""

    what: str  # what went on
    took: float  # by the clock on the wall
    ran: float  # of that, on a core
    waited: float  # of that, ready to run while others ran

    @property
    def slept(self) -> float:
        """Waiting for something else than a core: a disk, a process, a lock."""
        return max(self.took - self.ran - self.waited, 0.0)

    @property
    def block(self) -> float:
        return self.took - self.waited


class Clock:
    def __init__(self) -> None:
        self.what = "start"
        self.gaps: list[Gap] = []  # between two beats, without the test's own steps
        self.parts: list[Gap] = []  # in functions that are timed, while a job runs
        self._last, self._own = (0.0, 0.0, 0.0), [0.0, 0.0, 0.0]

    def start(self) -> None:
        bpy.app.timers.register(self._beat, first_interval=BEAT, persistent=True)

    def _beat(self) -> float:
        now = _now()
        if self._last[0]:
            took, ran, waited = (end - begin - own for end, begin, own in zip(now, self._last, self._own, strict=True))
            self.gaps.append(Gap(self.what, max(took - BEAT, 0.0), ran, waited))
        self._last, self._own = now, [0.0, 0.0, 0.0]
        return BEAT

    @contextmanager
    def own_time(self) -> Iterator[None]:
        """Around the test's steps: their time does not count."""
        began = _now()
        yield
        for index, (end, begin) in enumerate(zip(_now(), began, strict=True)):
            self._own[index] += end - begin

    def time(self, part: str, function: Callable) -> Callable:
        """The function, whose calls while a job runs are kept in `parts`."""

        def timed(*arguments: object) -> object:
            began = _now()
            try:
                return function(*arguments)
            finally:
                if self.what.startswith("job"):
                    self.parts.append(Gap(part, *(end - begin for end, begin in zip(_now(), began, strict=True))))

        return timed


def longest(gaps: Iterable[Gap]) -> dict[str, float | str]:
    """What to report of them; seconds."""
    gaps = list(gaps)
    if not gaps:
        return {"gaps": 0, "block": 0.0, "ran": 0.0, "slept": 0.0, "took": 0.0}
    worst = max(gaps, key=lambda gap: gap.block)
    return {
        "gaps": len(gaps),
        "block": round(worst.block, 3),
        "ran": round(max(gap.ran for gap in gaps), 3),
        "slept": round(max(gap.slept for gap in gaps), 3),
        "took": round(max(gap.took for gap in gaps), 3),
        "worst": f"{worst.what}: ran {worst.ran:.3f}, slept {worst.slept:.3f}, waited {worst.waited:.3f}",
    }


def _now() -> tuple[float, float, float]:
    """Seconds on the wall, on a core, and ready to be on one and not: this thread's."""
    ran, waited, _ = Path("/proc/thread-self/schedstat").read_text().split()
    return time.perf_counter(), int(ran) * 1e-9, int(waited) * 1e-9
