"""Peak memory, sampled: what a stage needs is what this process and its starter hold at the same time."""

from __future__ import annotations

import contextlib
import os
import threading
import time

import psutil
import torch

GB = 1024.0**3
INTERVAL = 0.05  # seconds; the resident size of two processes costs 20 microseconds


class PeakMemory:
    """The largest resident size since it was last taken; a daemon thread looks every `INTERVAL`.

    Args:
        with_parent: count the process that started this one too (Blender, when it serves).
    """

    def __init__(self, with_parent: bool) -> None:
        self._processes = [psutil.Process(pid) for pid in (os.getpid(), *([os.getppid()] if with_parent else []))]
        self._peak = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, name="memory", daemon=True).start()

    def take(self) -> float:
        """The peak in GB since the last call, which starts the next peak."""
        self._look()
        with self._lock:
            peak, self._peak = self._peak, 0
        return round(peak / GB, 3)

    def now(self) -> float:
        """What is held at the moment, in GB."""
        return round(self._look() / GB, 2)

    def _look(self) -> int:
        total = 0
        for process in self._processes:
            with contextlib.suppress(psutil.Error):  # the parent has gone, and so shall we
                total += process.memory_info().rss
        with self._lock:
            self._peak = max(self._peak, total)
        return total

    def _watch(self) -> None:
        while True:
            self._look()
            time.sleep(INTERVAL)


def take_gpu_peak() -> float | None:
    """The peak in GB of what torch held on the GPU since the last call; None without CUDA."""
    if not torch.cuda.is_available():
        return None
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return round(peak / GB, 3)
