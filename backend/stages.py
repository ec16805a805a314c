"""Runs the stages of a job one after the other, and takes over what an earlier run has finished."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from backend.memory import PeakMemory, take_gpu_peak
from backend.protocol import Report, UserError, read_json, write_json

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Progress = Callable[[str, int, int], None]  # stage, step, steps; raises to end the job

STAMPS = "stages.json"


class Stages:
    """The stages of one run of one job, in their order.

    Each stage has a key made of its settings and of the key of the stage before it. A finished stage is noted down in
    `stages.json` with its key, after its result was written; a run that comes to the same key takes the result.

    Args:
        start: what the first stage works on, in words (a digest).
    """

    def __init__(self, job: Path, start: str, progress: Progress, peak: PeakMemory, report: Report) -> None:
        self._job, self._key, self._progress, self._peak, self._report = Path(job), start, progress, peak, report
        try:
            self._stamps = read_json(self._job / STAMPS)
        except UserError:
            self._stamps = {}  # a new job

    def run(
        self,
        name: str,
        settings: object,
        load: Callable[[Path], Result],
        make: Callable[[Callable[[int, int], None]], Result],
        save: Callable[[Result, Path], None],
    ) -> Result:
        """The stage's result, from the folder or made now.

        Args:
            settings: all that the result depends on, besides the stage before; anything with a plain `repr`.
            make: gets a callback (step, steps), to be called at each step.
        """
        self._key = hashlib.sha256(f"{self._key}|{name}|{settings!r}".encode()).hexdigest()
        result = self._take_over(name, load)
        if result is None:
            result = self._make(name, make, save)
        return result

    def _take_over(self, name: str, load: Callable[[Path], Result]) -> Result | None:
        stamp = self._stamps.get(name)
        if not isinstance(stamp, dict) or stamp.get("key") != self._key:
            return None
        try:
            result = load(self._job)
            numbers = {field: stamp[field] for field in ("seconds", "peak_memory_gb", "peak_gpu_memory_gb")}
        except (UserError, KeyError):
            log.warning("the result of %s is damaged and will be made again", name)
            return None
        log.info("%s: taken from the folder", name)
        self._note(name, numbers)
        self._progress(name, 1, 1)
        return result

    def _make(
        self,
        name: str,
        make: Callable[[Callable[[int, int], None]], Result],
        save: Callable[[Result, Path], None],
    ) -> Result:
        self._progress(name, 0, 1)
        self._peak.take()
        take_gpu_peak()
        started = time.monotonic()
        result = make(lambda step, steps: self._progress(name, step, steps))
        save(result, self._job)
        numbers = {
            "seconds": round(time.monotonic() - started, 3),
            "peak_memory_gb": self._peak.take(),
            "peak_gpu_memory_gb": take_gpu_peak(),
        }
        self._stamps[name] = {"key": self._key, **numbers}
        write_json(self._job / STAMPS, self._stamps)
        log.info("%s: %s", name, json.dumps(numbers))
        self._note(name, numbers)
        self._progress(name, 1, 1)
        return result

    def _note(self, name: str, numbers: dict) -> None:
        for field, value in numbers.items():
            if value is not None:
                getattr(self._report, field)[name] = value


def folder_digest(folder: Path, suffixes: tuple[str, ...]) -> str:
    """The content of a folder's files with these suffixes, in 64 characters."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in suffixes:
            total.update(f"{path.name}|{path.stat().st_size}|".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    total.update(block)
    return total.hexdigest()
