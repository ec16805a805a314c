"""Animates files from the command line, inside Blender or with the bpy package:

    blender -b [file.blend] -P animate_batch.py -- --input X.glb --prompt "a cactus is swaying" --output OUT.blend
    python animate_batch.py -- --input X.glb --prompt "a cactus is swaying" --output OUT.blend

`-- --help` lists the options. The exit code is 0 only when every job is done.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType


def _arguments() -> list[str]:
    """What follows `--`; inside Blender the rest is Blender's own."""
    if "--" in sys.argv:
        return sys.argv[sys.argv.index("--") + 1 :]
    return [] if bpy.app.binary_path else sys.argv[1:]


def _batch() -> ModuleType:
    """Batch mode: of the extension where this file belongs to an installed one, whose backend and models it shares."""
    here = Path(__file__).resolve().parent
    for repository in bpy.context.preferences.extensions.repos:
        if Path(repository.directory).resolve() == here.parent:
            return importlib.import_module(f"bl_ext.{repository.module}.{here.name}.animate3d_addon.batch")
    sys.path.insert(0, str(here))
    return importlib.import_module("animate3d_addon.batch")


def _main() -> int:
    try:
        batch = _batch()
        return batch.main(_arguments(), batch.command_line(_arguments()))
    except SystemExit as end:  # --help
        return int(end.code or 0)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    try:
        import bpy
    except ImportError:
        print("This needs Blender, or a Python that has the bpy package.", file=sys.stderr)
        sys.exit(2)
    code = _main()
    sys.stdout.flush()
    sys.stderr.flush()
    if bpy.app.binary_path:
        sys.exit(code)
    os._exit(code)  # the bpy package reports leaks at an ordinary end
