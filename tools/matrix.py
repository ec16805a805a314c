"""Runs Blender's tests in every Blender version that we support, each as a Python package in an environment of its own.

    python tools/matrix.py                        all versions, all of Blender's tests
    python tools/matrix.py 4.2.23 --short         one version, the tests that tell most in a minute

These environments have no torch: the add-on's Python and the backend's (.venv) are two, as with users. They are kept in
the user's cache folder for all clones. Blender 5.1 and later need Python 3.13; where this machine has none, Debian 13's
is used (tests/window/chroot.py).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "window"))

import chroot  # noqa: E402

BACKEND = (ROOT / ".venv" / "bin").resolve() / "python"
PACKAGES = ("scipy==1.17.1", "pytest==9.2.0", "pillow==13.0.0", "psutil==7.2.2", "imageio==2.38.1")
BLENDERS = {  # version of bpy: its Python, the newest numpy that it can take
    "4.2.23": ("3.11", "numpy==1.26.4"),
    "4.5.15": ("3.11", "numpy==1.26.4"),
    "5.0.1": ("3.11", "numpy==1.26.4"),
    "5.2.3": ("3.13", "numpy==2.5.5"),
}
TESTS = "tests/test_blender_*.py"
SHORT = (
    *("tests/test_blender_bake.py", "tests/test_blender_takes.py", "tests/test_blender_files.py"),
    *("tests/test_blender_extension.py", "tests/test_blender_undo.py"),
    "tests/test_blender_round_trips.py::test_every_frame_and_half_frame_comes_back",
)


class Place:
    """An environment with one Blender, and how to start something in it."""

    def __init__(self, blender: str) -> None:
        self.blender = blender
        version, numpy = BLENDERS[blender]
        self.folder = chroot.cache() / f"bpy-{blender}"
        self.packages = (f"bpy=={blender}", numpy, *PACKAGES)
        self.python = find_python(version)
        self.prefix: list[str] = []
        if self.python is None:
            debian = chroot.make()
            self.folder = self.folder.with_name(f"{self.folder.name}-{chroot.SUITE}")
            self.folder.mkdir(parents=True, exist_ok=True)
            shared = {self.folder, ROOT, ROOT.parent / "shared", *chroot.backend_files(BACKEND)}
            self.python, self.prefix = f"python{version}", chroot.entering(debian, filter(Path.exists, shared))

    def prepare(self) -> None:
        """Makes the environment where it is not there yet. Raises `subprocess.CalledProcessError`."""
        wanted = hashlib.sha256(" ".join(self.packages).encode()).hexdigest()
        stamp = self.folder / "complete"
        if stamp.is_file() and stamp.read_text() == wanted:
            return
        print(f"Installing Blender {self.blender} into {self.folder}", flush=True)
        for old in self.folder.iterdir() if self.folder.is_dir() else ():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        self.run(self.python, "-m", "venv", str(self.folder))
        pip = ["-m", "pip", "-qq", "--disable-pip-version-check"]
        if self.prefix:  # fetched from outside, where pip is set up for this machine's network
            wheels, version = self.folder / "wheels", BLENDERS[self.blender][0]
            fetch = ["download", "--only-binary=:all:", "--python-version", version, "--dest", str(wheels)]
            subprocess.run([str(BACKEND), *pip, *fetch, *self.packages], check=True)
            self.run(self.bin, *pip, "install", "--no-index", "--find-links", str(wheels), *self.packages)
            shutil.rmtree(wheels)
        else:
            self.run(self.bin, *pip, "install", "--only-binary=:all:", *self.packages)
        stamp.write_text(wanted)

    @property
    def bin(self) -> str:
        return str(self.folder / "bin" / "python")

    def run(self, *command: str) -> None:
        subprocess.run([*self.prefix, *command], check=True, cwd=ROOT)

    def test(self, tests: Iterable[str], results: Path) -> int:
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ANIMATE3D_"))}
        variables |= {"ANIMATE3D_PYTHON": str(BACKEND), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [self.bin, "-m", "pytest", "-p", "no:cacheprovider", "-W", "ignore", f"--junitxml={results}", *tests]
        return subprocess.run([*self.prefix, *command], cwd=ROOT, env=variables, check=False).returncode


def find_python(version: str) -> str | None:
    """A Python of that version which works and can make environments."""
    candidates = [sys.executable, f"python{version}"]
    candidates += map(str, sorted(Path.home().glob(f".pyenv/versions/{version}*/bin/python"), reverse=True))
    for candidate in candidates:
        if not shutil.which(candidate):
            continue
        question = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
        said = subprocess.run([candidate, "-c", question], capture_output=True, text=True, check=False)
        if said.returncode == 0 and said.stdout.strip() == version:
            return candidate
    return None


def run_one(blender: str, tests: Iterable[str], out: Path) -> dict:
    """What became of the tests in one Blender."""
    began = time.monotonic()
    try:
        place = Place(blender)
        place.prepare()
    except chroot.CanNot as reason:
        return {"blender": blender, "impossible": f"There is no Python {BLENDERS[blender][0]} here. {reason}"}
    except (subprocess.CalledProcessError, OSError) as error:
        return {"blender": blender, "failed": f"Its environment can't be made ({error})."}
    made = time.monotonic()
    print(f"Blender {blender}, {'in Debian 13' if place.prefix else place.python}", flush=True)
    file = out / f"{blender}.xml"
    file.unlink(missing_ok=True)
    code = place.test(tests, file)
    result = {"blender": blender, "setup_seconds": round(made - began, 1), "seconds": round(time.monotonic() - made, 1)}
    result |= counts(file)
    if code == 0 or (code < 0 and result.get("passed") and not result["bad"]):
        return result  # 4.2 crashes while Python ends, when all tests are done and their results are written
    return result | {"failed": f"pytest ended with {code}."}


def counts(file: Path) -> dict[str, int]:
    """How many tests passed, went wrong, failed as they must, were skipped; nothing where pytest did not end."""
    if not file.is_file():
        return {}
    suites = list(ElementTree.parse(file).getroot().iter("testsuite"))
    found = {name: sum(int(suite.get(name)) for suite in suites) for name in ("tests", "failures", "errors", "skipped")}
    expected = sum(each.get("type") == "pytest.xfail" for suite in suites for each in suite.iter("skipped"))
    bad = found["failures"] + found["errors"]
    passed = found["tests"] - bad - found["skipped"]
    return {"passed": passed, "bad": bad, "expected": expected, "skipped": found["skipped"] - expected}


def said(result: dict) -> str:
    """The counts of one Blender in words."""
    others = {"xfailed": result["expected"], "skipped": result["skipped"]}
    more = "".join(f", {number} {word}" for word, number in others.items() if number)
    return f"{result['passed']} passed{more} in {result['seconds']:.0f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", default=list(BLENDERS), help=f"of {', '.join(BLENDERS)}")
    parser.add_argument("--short", action="store_true", help="only the tests that tell most")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "matrix", help="results, one .xml a version")
    options = parser.parse_args()
    if unknown := set(options.versions) - set(BLENDERS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(BLENDERS)}")
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    tests = SHORT if options.short else [str(path) for path in sorted(ROOT.glob(TESTS))]
    results = [run_one(blender, tests, out) for blender in options.versions]
    (out / "report.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    for result in results:
        what = result.get("failed") or result.get("impossible") or said(result)
        print(f"Blender {result['blender']}: {what}")
    return 1 if any("failed" in result for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
