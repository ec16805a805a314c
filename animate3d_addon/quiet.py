"""Silence for code that prints where nobody asked: importers, exporters, the renderer. No bpy in it."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Sends everything written to standard output and standard error to nowhere, C++ prints included.

    On two levels: Blender's own messages never pass through `sys.stdout`, and where someone replaced that (a test, a
    console inside Blender), add-ons' messages never reach the file descriptors. A process without standard streams
    (Blender on Windows started from its icon) has no descriptors to silence.
    """
    saved: list[tuple[int, int]] = []
    _flush()
    try:
        with contextlib.suppress(OSError):
            for descriptor in (1, 2):
                saved.append((descriptor, os.dup(descriptor)))
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor, _ in saved:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)
        # Never closed by us: loggers that are set up meanwhile hold on to it.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        _flush()
        for descriptor, copy in saved:
            os.dup2(copy, descriptor)
            os.close(copy)


def _flush() -> None:
    """What is still in Python's and in C's own buffers goes where it was meant to go when it was printed."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            # A closed pipe at the other end is the reader's business.
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    c_library = ctypes.cdll.ucrtbase if os.name == "nt" else ctypes.CDLL(None)
    c_library.fflush(None)
