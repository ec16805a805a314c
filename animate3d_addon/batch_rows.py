"""Many jobs, done by a child process one after the other: where it dies, another one goes on with the next row.

The child keeps its backend warm from row to row, and writes down how each row went. It is asked to stop by a line on
its stdin, and ends when its stdin ends, however whoever started it has ended. No bpy in it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .shared import protocol

FLAG = "--row-worker"  # followed by the folder of the results and the first row
Result = tuple[dict, int]  # a row's report, and 1 where it failed


@dataclass(frozen=True)
class Worker:
    """What a child was told: where results go, and with which row it begins."""

    folder: Path
    first: int

    @classmethod
    def split(cls, arguments: Sequence[str]) -> tuple[Worker | None, list[str]]:
        """The child's own arguments, None where we are none, and those of the batch."""
        if arguments[:1] != [FLAG]:
            return None, list(arguments)
        return cls(Path(arguments[1]), int(arguments[2])), list(arguments[3:])

    def listen(self, ask: Callable[[], None]) -> None:
        """Calls `ask` where a line comes in, and ends this process with its stdin."""

        def read() -> None:
            while os.read(0, 64):
                ask()
            os._exit(1)

        threading.Thread(target=read, daemon=True).start()

    def done(self, row: int, result: Result) -> None:
        protocol.write_json(_path(self.folder, row), {"report": result[0], "code": result[1]})


def run_rows(
    command: Sequence[str], arguments: Sequence[str], names: Sequence[str], is_asked: Callable[[], bool]
) -> list[Result]:
    """Runs all rows. A row in which Blender dies has failed, with one line on stderr.

    Args:
        command: what starts a process like this one; the worker's and the batch's arguments follow it.
        names: what the rows are called in messages.
        is_asked: whether the user wants it to stop; then the results so far are returned.
    """
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="animate3d-rows-") as folder:
        while len(results) < len(names):
            code = _work([*command, FLAG, folder, str(len(results)), *arguments], is_asked)
            while (row := _read(Path(folder), len(results))) is not None:
                results.append(row)
            if is_asked():
                break
            if len(results) < len(names):
                sentence = f"{names[len(results)]}Blender stopped unexpectedly ({_how(code)}). Run this job again."
                print(sentence, file=sys.stderr, flush=True)
                results.append(({"error": "internal"}, 1))
    return results


def _work(command: Sequence[str], is_asked: Callable[[], bool]) -> int:
    """One child from its beginning to its end. Returns its exit code."""
    # Not in our group: Ctrl-C on a terminal is ours to pass on, once.
    new_group = subprocess.CREATE_NEW_PROCESS_GROUP if sys.platform == "win32" else 0
    process = subprocess.Popen(
        list(command), stdin=subprocess.PIPE, start_new_session=sys.platform != "win32", creationflags=new_group
    )
    told = False
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(0.1)
            if is_asked() and not told:
                told = True
                with contextlib.suppress(OSError):  # it has just ended
                    process.stdin.write(b"stop\n")
                    process.stdin.flush()
    except BaseException:  # a second Ctrl-C above all
        process.kill()
        process.wait()
        raise
    finally:
        with contextlib.suppress(OSError):
            process.stdin.close()


def _how(code: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"exit code {code}"


def _path(folder: Path, row: int) -> Path:
    return folder / f"{row:06d}.json"


def _read(folder: Path, row: int) -> Result | None:
    try:
        found = protocol.read_json(_path(folder, row))
    except protocol.UserError:
        return None
    return found["report"], found["code"]
