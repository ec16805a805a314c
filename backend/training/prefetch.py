"""Clips made ahead of a training run by other processes: workers draw them, another encodes them and writes them down.

A run makes each shard of clips itself where there is no `Prefetcher`, so nothing depends on this but its speed.
"""

from __future__ import annotations

import copy
import multiprocessing
import time
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from types import TracebackType
from typing import TYPE_CHECKING

from backend.training.clips import ClipSource

if TYPE_CHECKING:  # the processes that draw need no networks, and loading torch in each would take longer than drawing
    from backend.training.latents import LatentStore

CONTEXT = multiprocessing.get_context("spawn")  # a forked process must not use the GPU's libraries that are loaded here
AT_LEAST = 4  # shards that a run wants at its first step
_source: ClipSource | None = None  # of a worker process


class Prefetcher:
    """Makes the missing shards of a store in their order, while the `with` block lasts.

    `wanted` says up to which shard; it may be raised at any time.
    """

    def __init__(self, store: LatentStore, workers: int, wanted: int) -> None:
        self.store = store
        self._wanted, self._stopping = CONTEXT.Value("q", max(wanted, AT_LEAST)), CONTEXT.Event()
        sent = copy.copy(store)
        sent.codec = copy.deepcopy(store.codec).cpu()  # memory of a GPU is not to be shared between processes
        # Not a thread: encoding would take the interpreter away from the training loop.
        arguments = (sent, workers, self._wanted, self._stopping)
        self.process = CONTEXT.Process(target=_make_shards, args=arguments, name="prefetch")

    @property
    def wanted(self) -> int:
        return self._wanted.value

    @wanted.setter
    def wanted(self, shards: int) -> None:
        self._wanted.value = shards

    def wait_for(self, index: int) -> None:
        """Returns once a shard is there; raises `RuntimeError` where it is not going to be."""
        self.wanted = max(self.wanted, index + 1)
        while not self.store.path(index).exists():
            if not self.process.is_alive():
                raise RuntimeError(f"the process that draws clips ended with {self.process.exitcode}")
            time.sleep(0.002)

    def __enter__(self) -> Prefetcher:
        self.process.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopping.set()
        self.process.join()
        if kind is None and self.process.exitcode:
            raise RuntimeError(f"the process that draws clips ended with {self.process.exitcode}")


def _make_shards(store: LatentStore, workers: int, wanted: Synchronized, stopping: Event) -> None:
    """What the process does until it is told to stop, or the run is gone."""
    run = multiprocessing.parent_process()
    store.codec.to(store.device)
    pool = ProcessPoolExecutor(workers, CONTEXT, _begin, (store.source,))
    drawn: deque[tuple[int, Future]] = deque()
    following = 0
    try:
        while not stopping.is_set() and run.is_alive():
            while following < wanted.value and len(drawn) < 2 * workers:
                if not store.path(following).exists():
                    drawn.append((following, pool.submit(_draw, following)))
                following += 1
            if drawn and drawn[0][1].done():
                index, future = drawn.popleft()
                store.write(index, store.encode(future.result()))
            else:
                time.sleep(0.005)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(source: ClipSource) -> None:
    global _source
    _source = source


def _draw(index: int) -> list:
    return _source.pictures(index)
