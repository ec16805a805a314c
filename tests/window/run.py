"""Drives a Blender with a window: installs the built zip, animates, takes screenshots, measures standstills.

    python tests/window/run.py --zip dist/animate3d-0.1.0.zip --python .venv/bin/python --out out/window

Needs ImageMagick's `import`, and Xvfb where there is no display. Writes report.json; the exit code is 0 if all is well.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blender", default="blender")
    parser.add_argument("--zip", type=Path, required=True)
    parser.add_argument("--python", type=Path, required=True, help="a Python that has the backend's packages")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vertices", type=int, default=100_000, help="of the object that is animated")
    parser.add_argument("--minutes", type=float, default=6.0, help="for all of it; more on a machine that is busy")
    parser.add_argument("--niceness", type=int, default=10, help="of the backend; 0 on a machine that is busy")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    report = out / "report.json"
    report.unlink(missing_ok=True)
    environment = os.environ | {
        "BLENDER_USER_RESOURCES": str(out / "user"),
        "ANIMATE3D_PYTHON": str(options.python.absolute()),
        "ANIMATE3D_WINDOW_TEST": json.dumps(
            {
                "zip": str(options.zip.resolve()),
                "out": str(out),
                "vertices": options.vertices,
                "patience": 30.0 * options.minutes,
                "niceness": options.niceness,
            }
        ),
        "LIBGL_ALWAYS_SOFTWARE": "1",
    }
    screen = [] if os.environ.get("DISPLAY") else ["xvfb-run", "-a", "-s", "-screen 0 1400x1000x24 +extension GLX"]
    blender = [options.blender, "--factory-startup", "--window-geometry", "0", "0", "1400", "1000"]
    command = [*screen, *blender, "--python", str(HERE / "steps.py")]
    subprocess.run(command, env=environment, timeout=60.0 * options.minutes, check=False)
    if not report.is_file():
        print("Blender ended without a report.", file=sys.stderr)
        return 1
    result = json.loads(report.read_text(encoding="utf-8"))
    print(json.dumps(result, indent=1))
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
