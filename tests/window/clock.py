"""How long Blender's main thread stands still, and whose doing that is. Linux alone.

A timer asks for a beat every 20 ms. What is late is either the machine's doing (the thread was ready to run, and others
had the core: the kernel counts that), the test's own (its steps run in the same thread, and are timed), or Blender's
and the add-on's: that is a block.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
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

    @property
    def block(self) -> float:
        return max(self.late - self.waited - self.own, 0.0)


class Clock:
    def __init__(self) -> None:
        self.what = "start"
        self.gaps: list[Gap] = []
        self._last, self._waited, self._own = 0.0, 0.0, 0.0

    def start(self) -> None:
        bpy.app.timers.register(self._beat, first_interval=BEAT, persistent=True)

    def _beat(self) -> float:
        now, waited = time.perf_counter(), _waited()
        if self._last:
            late = now - self._last - BEAT
            self.gaps.append(Gap(self.what, late, waited - self._waited, self._own))
        self._last, self._waited, self._own = time.perf_counter(), _waited(), 0.0
        return BEAT

    @contextmanager
    def own_time(self) -> Iterator[None]:
        """Around the test's steps: neither their time nor their waiting counts."""
        began, waited = time.perf_counter(), _waited()
        yield
        here = _waited() - waited
        self._waited += here
        self._own += time.perf_counter() - began

    def longest(self, what: str) -> dict[str, float]:
        """The longest block among those whose `what` begins so, beside what the wall clock says; seconds."""
        gaps = [gap for gap in self.gaps if gap.what.startswith(what)]
        if not gaps:
            return {"beats": 0, "block": 0.0, "late": 0.0}
        block, late = max(gaps, key=lambda gap: gap.block), max(gaps, key=lambda gap: gap.late - gap.own)
        return {
            "beats": len(gaps),
            "block": round(block.block, 3),
            "block_at": block.what,
            "late": round(late.late - late.own, 3),
        }


def _waited() -> float:
    """Seconds that this thread was ready to run and did not run, since it began."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) * 1e-9
