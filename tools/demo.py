"""`make demo`: a cactus and three sentences become .blend files and a .glb that move, and pictures of all of them.

python tools/demo.py --out out/demo [--prompt "a cactus bounces" ...]
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
from tools.pictures import Shown, contact_sheet, preview, render_animation  # noqa: E402

PROMPTS = ("a little cactus sways from side to side", "a little cactus bounces", "a little cactus takes a bow")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "demo")
    parser.add_argument("--prompt", nargs="+", default=PROMPTS, help="what it does; a file for each")
    parser.add_argument("--preset", default="draft")
    parser.add_argument("--seed", default="0")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    source = out / "cactus_still.glb"
    make_cactus(source)
    shown = []
    for number, prompt in enumerate(options.prompt, start=1):
        print(f'"{prompt}"')
        job, stem = out / f"job_{number}", "cactus" if number == 1 else f"cactus_{number}"
        words = ["--prompt", prompt, "--preset", options.preset, "--seed", options.seed, "--keep-job", str(job)]
        # The second run finds the job finished and only bakes and writes the other format.
        for suffix, report in ((".blend", "report.json"), (".glb", "report_glb.json"))[: 2 if number == 1 else 1]:
            report = report if number == 1 else f"report_{number}.json"
            code = animate(source, [*words, "--output", str(out / (stem + suffix)), "--report", str(out / report)])
            if code:
                return code
        shown.append(look(prompt, out / f"{stem}.blend", job))
    (out / "report_glb.json").unlink()
    contact_sheet(shown, out / "contact_sheet.png")
    preview(shown, out / "preview.gif")
    print("Look at:")
    for name in ("contact_sheet.png", "preview.gif", "cactus.blend", "cactus.glb", "report.json"):
        print(f"  {os.path.relpath(out / name)}")
    return 0


def animate(source: Path, words: list[str]) -> int:
    """One run of batch mode; its exit code."""
    command = [sys.executable, str(ROOT / "animate_batch.py"), "--", "--input", str(source), "--weights", "starter"]
    code = subprocess.run([*command, *words], check=False).returncode
    if code < 0:  # the bpy package crashes once in many runs; the job folder makes a second one short
        print("Blender ended unexpectedly; once more.")
        code = subprocess.run([*command, *words], check=False).returncode
    return code


def look(prompt: str, blend: Path, job: Path) -> Shown:
    """Pictures of a result and of the video that it came from."""
    video = Video.load(job).frames
    return Shown(prompt, video, render_animation(blend, Subject.load(job), start=1, step=3, frames=video.shape[1]))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # Blender's Python package reports leaks at a normal exit
