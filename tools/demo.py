"""`make demo`: a cactus and a sentence become a .blend and a .glb that move, and pictures of both.

    python tools/demo.py --out out/demo [--prompt "a cactus bounces"]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from backend.protocol import Subject, Video  # noqa: E402
from tools.demo_scene import make_cactus  # noqa: E402
from tools.pictures import contact_sheet, preview, render_animation  # noqa: E402

PROMPT = "a little cactus sways from side to side"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "demo")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--preset", default="draft")
    parser.add_argument("--seed", default="0")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    source, job = out / "cactus_still.glb", out / "job"
    make_cactus(source)
    print(f'"{options.prompt}"')
    words = ["--prompt", options.prompt, "--preset", options.preset, "--seed", options.seed, "--keep-job", str(job)]
    words += ["--weights", "starter"]
    # The second run finds the job finished and only bakes and writes the other format.
    for name, report in (("cactus.blend", out / "report.json"), ("cactus.glb", out / "report_glb.json")):
        command = [sys.executable, str(ROOT / "animate_batch.py"), "--", "--input", str(source), *words]
        command += ["--output", str(out / name), "--report", str(report)]
        code = subprocess.run(command, check=False).returncode
        if code < 0:  # the bpy package crashes once in many runs; the job folder makes a second one short
            print("Blender ended unexpectedly; once more.")
            code = subprocess.run(command, check=False).returncode
        if code:
            return code
    (out / "report_glb.json").unlink()
    draw(out, job)
    print("Look at:")
    for name in ("contact_sheet.png", "preview.gif", "cactus.blend", "cactus.glb", "report.json"):
        print(f"  {os.path.relpath(out / name)}")
    return 0


def draw(out: Path, job: Path) -> None:
    """The pictures of the result in `out`, whose job folder is `job`."""
    video = Video.load(job).frames
    mesh = render_animation(out / "cactus.blend", Subject.load(job), start=1, step=3, frames=video.shape[1])
    contact_sheet(video, mesh, out / "contact_sheet.png")
    preview(mesh, out / "preview.gif")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # Blender's Python package reports leaks at a normal exit
