"""Clips made ahead of a training run: worker processes draw them, one thread encodes them, files pass them on.

A run makes each shard of clips itself where it is not there yet, so nothing depends on this but its speed.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from types import TracebackType

from backend.training.latents import LatentStore

_store: LatentStore | None = None  # of a worker process


class Prefetcher:
    """Makes the missing shards of a store in their order, while the `with` block lasts.

    `wanted` says up to which shard; it may be raised at any time.
    """

    def __init__(self, store: LatentStore, workers: int, wanted: int) -> None:
        self.store, self.workers, self.wanted = store, workers, wanted
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self.failure: BaseException | None = None

    def __enter__(self) -> Prefetcher:
        self.thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stopping.set()
        self.thread.join()
        if kind is None and self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        # Spawned, for a forked process must not use the GPU's libraries that are loaded here.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(self.workers, context, _begin, (self.store.without_networks(),))
        drawn: deque[tuple[int, Future]] = deque()
        following = 0
        try:
            while not self.stopping.is_set():
                while following < self.wanted and len(drawn) < 2 * self.workers:
                    if not self.store.path(following).exists():
                        drawn.append((following, pool.submit(_draw, following)))
                    following += 1
                if not drawn:
                    self.stopping.wait(0.1)
                    continue
                index, future = drawn.popleft()
                if not self.store.path(index).exists():
                    self.store.write(index, self.store.encode(future.result()))
        except BaseException as error:  # told where the block ends
            self.failure = error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _begin(store: LatentStore) -> None:
    global _store
    _store = store


def _draw(index: int) -> list:
    return _store.pictures(index)
