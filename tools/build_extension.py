"""Builds the extension's zip with Blender's own tool, and the index of a self-hosted repository beside it.

python tools/build_extension.py --out dist
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    tool = extension_tool()
    for arguments in (
        ["validate", str(ROOT), "--valid-tags="],
        ["build", "--source-dir", str(ROOT), "--output-dir", str(out), "--valid-tags="],
        ["server-generate", "--repo-dir", str(out), "--html"],
    ):
        if code := subprocess.run([sys.executable, str(tool), *arguments], check=False).returncode:
            return code
    return 0


def extension_tool() -> Path:
    """Blender's `blender_ext.py`, which needs no Blender to run."""
    package = Path(importlib.util.find_spec("bpy").origin).parent
    return next(package.glob("*/scripts/addons_core/bl_pkg/cli/blender_ext.py"))


if __name__ == "__main__":
    sys.exit(main())
