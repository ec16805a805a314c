"""How long Blender's main thread stands still, and whose doing that is. Linux alone.

A timer asks for a beat every 20 ms. What is late is either the machine's doing (the thread was ready to run, and others
had the core: the kernel counts that), the test's own (its steps run in the same thread, and are timed), or Blender's
and the add-on's: that is a block.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import bpy

BEAT = 0.02  # seconds


@dataclass(frozen=True)
class Gap:
    """Between two beats; seconds."""

    what: str  # what went on
    late: float  # how much later the second one came than it was asked for
    waited: float  # of that, ready to run while others ran
    own: float  # of that, in the test's steps
    ran: float  # in the whole gap, on a core

    @property
    def block(self) -> float:
        return max(self.late - self.waited - self.own, 0.0)


class Clock:
    def __init__(self) -> None:
        self.what = "start"
        self.gaps: list[Gap] = []
        self.parts: dict[str, float] = {}  # the longest block in each function that is timed
        self._last, self._waited, self._ran, self._own = 0.0, 0.0, 0.0, 0.0

    def start(self) -> None:
        bpy.app.timers.register(self._beat, first_interval=BEAT, persistent=True)

    def _beat(self) -> float:
        now, (ran, waited) = time.perf_counter(), _ran_and_waited()
        if self._last:
            late = now - self._last - BEAT
            self.gaps.append(Gap(self.what, late, waited - self._waited, self._own, ran - self._ran))
        self._last, self._own = now, 0.0
        self._ran, self._waited = ran, waited
        return BEAT

    @contextmanager
    def own_time(self) -> Iterator[None]:
        """Around the test's steps: neither their time nor their waiting counts."""
        began, before = time.perf_counter(), _ran_and_waited()
        yield
        after = _ran_and_waited()
        self._ran += after[0] - before[0]
        self._waited += after[1] - before[1]
        self._own += time.perf_counter() - began

    def time(self, part: str, function: Callable) -> Callable:
        """The function, whose longest block while a job runs is kept in `parts`."""

        def timed(*arguments: object) -> object:
            began, waited = time.perf_counter(), _ran_and_waited()[1]
            try:
                return function(*arguments)
            finally:
                took = time.perf_counter() - began - (_ran_and_waited()[1] - waited)
                if self.what.startswith("job"):
                    self.parts[part] = round(max(took, self.parts.get(part, 0.0)), 3)

        return timed

    def longest(self, what: str) -> dict[str, float]:
        """The longest block among those whose `what` begins so, beside what the wall clock says; seconds.

        `busy` is the share of the time in which the thread was on a core.
        """
        gaps = [gap for gap in self.gaps if gap.what.startswith(what)]
        if not gaps:
            return {"beats": 0, "block": 0.0, "late": 0.0, "busy": 0.0}
        block, late = max(gaps, key=lambda gap: gap.block), max(gaps, key=lambda gap: gap.late - gap.own)
        return {
            "beats": len(gaps),
            "block": round(block.block, 3),
            "block_at": block.what,
            "late": round(late.late - late.own, 3),
            "busy": round(sum(gap.ran for gap in gaps) / sum(gap.late + BEAT - gap.own for gap in gaps), 2),
        }


def _ran_and_waited() -> tuple[float, float]:
    """Seconds that this thread was on a core, and that it was ready to be and was not, since it began."""
    ran, waited, _ = Path("/proc/thread-self/schedstat").read_text().split()
    return int(ran) * 1e-9, int(waited) * 1e-9
