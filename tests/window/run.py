"""Drives a Blender with a window: installs the built zip, animates by clicks, takes screenshots, measures standstills.

    python tests/window/run.py            the zip in dist/, pictures and report.json in out/window/
    python tests/window/run.py --as-new   with no backend there: it is installed by its button, which downloads PyTorch
    python tests/window/run.py --tries 2 --limit 7    once more where something went wrong; in 7 minutes it is over

The Blender is Debian 13's, in a folder that is made for it (chroot.py), or one of this machine (--blender; needs
xdotool, ImageMagick's `import`, and Xvfb where there is no display). Where neither can be had, or the time is over
before anything went wrong, it says so and passes.
Writes report.json and the pictures; the exit code is 0 if all is well.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import chroot

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MINUTES = 6.0  # that all of it may take
SCREEN = ["xvfb-run", "-a", "-s", "-screen 0 1400x1000x24 +extension GLX"]
CACTUS = "import os, sys; from pathlib import Path; from tools.demo_scene import make_cactus; "
CACTUS += "make_cactus(Path(sys.argv[1])); sys.stdout.flush(); os._exit(0)"


class OutOfTime(Exception):
    """The limit that was asked for is reached."""


def main() -> int:
    options = parse()
    signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(round(60 * options.limit))  # 0: never
    faults: list[str] = []
    try:
        for number in range(options.tries):
            if number:
                print(f"Once more, after: {' '.join(faults)}", flush=True)
                shutil.rmtree(first := options.out.with_name(f"{options.out.name}_first"), ignore_errors=True)
                options.out.rename(first)
            faults = once(options)
            if not faults:
                break
    except chroot.CanNot as reason:
        print(f"Skipped: {reason}")
    except OutOfTime:
        print(f"The window test is not done: its {options.limit:g} minutes are over.")
    if faults:
        print("\n".join(faults), file=sys.stderr)
    return 1 if faults else 0


def out_of_time(*_: object) -> None:
    raise OutOfTime


def once(options: argparse.Namespace) -> list[str]:
    """The whole story; what went wrong. Raises `chroot.CanNot`."""
    out = options.out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    prefix = [] if options.blender else place(options.python, out, options.zip)
    subprocess.run([str(options.python), "-c", CACTUS, str(out / "cactus.glb")], cwd=ROOT, check=True)
    environment = variables(options, out)
    fault = drive(prefix, options, environment)
    if fault:
        return [f"{fault} (log: {out / 'blender.log'})."]
    result = json.loads((out / "report.json").read_text(encoding="utf-8"))
    fault = "" if options.as_new else batch(prefix, options.blender or "blender", environment, out)
    print(json.dumps(result, indent=1, ensure_ascii=False))
    return [*result["faults"], *([fault] if fault else [])]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--blender", default="", help="a Blender of this machine, instead of Debian's")
    add("--zip", type=Path, help="of the extension; the newest one in dist/ otherwise")
    add("--python", type=Path, default=ROOT / ".venv" / "bin" / "python", help="the backend's")
    add("--out", type=Path, default=ROOT / "out" / "window")
    add("--vertices", type=int, default=100_000, help="of the object whose job is measured")
    add("--minutes", type=float, help=f"for all of it; otherwise {MINUTES:.0f}, longer on a busy machine")
    add("--tries", type=int, default=1, help="where something goes wrong: a busy machine may swallow a click")
    add("--limit", type=float, default=0, help="minutes after which it ends, done or not, tries and all")
    add("--niceness", type=int, help="of the backend; otherwise the add-on's own, 0 on a busy machine")
    add("--parts", nargs="+", default=[], help="of the story in steps.py; all of them otherwise")
    add("--as-new", action="store_true", help="install the backend by its button, then animate")
    options = parser.parse_args()
    busy = os.getloadavg()[0] / os.cpu_count()  # by others
    if options.minutes is None:
        options.minutes = MINUTES * max(1.0, 1.5 * busy)
    if options.niceness is None and busy > 2.0:
        options.niceness = 0  # a polite backend would never get its turn
    options.zip = (options.zip or max((ROOT / "dist").glob("*.zip"), key=lambda path: path.stat().st_mtime)).resolve()
    options.python = options.python.parent.resolve() / options.python.name  # the file itself is a link, and has to be
    options.out = options.out.resolve()
    return options


def drive(prefix: list[str], options: argparse.Namespace, environment: dict[str, str]) -> str:
    """Blender with its window, from beginning to end; what went wrong where there is no report of it."""
    screen = [] if options.blender and os.environ.get("DISPLAY") else SCREEN
    blender = [options.blender or "blender", "--factory-startup", "--window-geometry", "0", "0", "1400", "1000"]
    command = [*prefix, *screen, *blender, "--python", str(HERE / "steps.py")]
    with (options.out / "blender.log").open("w") as log:
        try:
            subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=60 * options.minutes, check=False)
        except subprocess.TimeoutExpired:
            return f"It was not done after {options.minutes:.2g} minutes"
    return "" if (options.out / "report.json").is_file() else "Blender ended without a report"


def place(python: Path, out: Path, archive: Path) -> list[str]:
    """What to write before a command so that it runs in Debian 13. Raises `chroot.CanNot`."""
    shared = {ROOT, out, archive.parent, *chroot.backend_files(python), *chroot.pip_files()}
    return chroot.entering(chroot.make(), sorted(shared))


def variables(options: argparse.Namespace, out: Path) -> dict[str, str]:
    task = {
        "zip": str(options.zip),
        "out": str(out),
        "cactus": str(out / "cactus.glb"),
        "vertices": options.vertices,
        "patience": max(options.minutes / MINUTES, 1.0),
        "niceness": options.niceness,
        "parts": options.parts,
        "as_new": options.as_new,
    }
    inherited = {name: value for name, value in os.environ.items() if name != "ANIMATE3D_PYTHON"}
    backend = {} if options.as_new else {"ANIMATE3D_PYTHON": str(options.python)}
    own = {
        "BLENDER_USER_RESOURCES": str(out / "user"),
        "ANIMATE3D_WINDOW_TEST": json.dumps(task),
        "LIBGL_ALWAYS_SOFTWARE": "1",
        "LP_NUM_THREADS": "0",  # OpenGL draws in Blender's own thread, whose time is measured
    }
    return inherited | backend | own


def batch(prefix: list[str], blender: str, environment: dict[str, str], out: Path) -> str:
    """The installed extension's own batch mode on the scene that was animated; a sentence where it fails."""
    (script,) = (out / "user").glob("extensions/*/animate3d/animate_batch.py")
    result = out / "batch.glb"
    words = ["--object", "Cactus", "--prompt", "the cactus bounces", "--output", str(result)]
    command = [*prefix, blender, "-b", str(out / "scene.blend"), "-P", str(script), "--", *words]
    with (out / "batch.log").open("w") as log:
        run = subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=600, check=False)
    if run.returncode or not result.is_file():
        return f"Batch mode inside the extension fails (exit code {run.returncode}, log: {out / 'batch.log'})."
    return ""


if __name__ == "__main__":
    sys.exit(main())
