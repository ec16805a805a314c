"""A Debian with a Blender that has a window, in a folder: made once, entered without leaving a trace.

    python tests/window/chroot.py            makes it and prints its folder

Needs Linux, root, `debootstrap` (installed where apt can) and Debian's mirror; about 90 seconds and 2.2 GB. Blender 4.3
and Python 3.13 are Debian 13's own. Mounts live in a namespace of their own: they end with the command that is run.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

SUITE = "trixie"
PACKAGES = (
    *("blender", "python3-numpy", "xvfb", "xauth", "xdotool", "imagemagick"),
    *("libgl1-mesa-dri", "libegl1", "libegl-mesa0", "libgl1", "libglx-mesa0", "fonts-dejavu-core"),
    "python3-venv",
)
# Mounts and processes of what is started like this end with it.
ALONE = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child")
FREE_GB = 4.0
STAMP = "complete"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class CanNot(Exception):
    """Why there is no such place on this machine, in a sentence."""


def cache() -> Path:
    """Where what takes long to make is kept, for all clones of the repository."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "animate3d"


def make() -> Path:
    """The folder, made where it is not there yet. Raises `CanNot`."""
    if not sys.platform.startswith("linux"):
        raise CanNot("A window can be tested like this on Linux alone.")
    if os.geteuid() != 0:
        raise CanNot("Only root can make and enter the Debian that the window is tested in.")
    if not shutil.which(ALONE[0]) or subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode:
        raise CanNot("This machine, or its container, allows no mounts of one's own (unshare).")
    folder = cache() / SUITE
    wanted = hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()
    if (folder / STAMP).is_file() and (folder / STAMP).read_text() == wanted:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free / 1e9
    if free < FREE_GB:
        raise CanNot(f"There are {free:.1f} GB free where {FREE_GB:.0f} GB are needed ({folder.parent}).")
    shutil.rmtree(folder, ignore_errors=True)
    log = folder.parent / f"{SUITE}.log"
    print(f"Making a Debian with Blender in {folder} (about two minutes, once; log: {log})", flush=True)
    with log.open("w") as file:
        _bootstrap(folder, file)
        _install(folder, file)
    (folder / STAMP).write_text(wanted)
    return folder


def _bootstrap(folder: Path, log) -> None:
    if not shutil.which("debootstrap"):
        if not shutil.which("apt-get"):
            raise CanNot("`debootstrap` is not there, and there is no apt-get to install it.")
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "debootstrap"]):
            subprocess.run(["apt-get", *command], stdout=log, stderr=log, check=False)
    if not shutil.which("debootstrap"):
        raise CanNot(f"`debootstrap` can't be installed (see {log.name}).")
    keyring = ["--keyring", str(KEYRING)] if KEYRING.is_file() else []
    command = [*ALONE, "debootstrap", "--variant=minbase", *keyring, SUITE, str(folder), mirror()]
    if subprocess.run(command, stdout=log, stderr=log, check=False).returncode:
        raise CanNot(f"Debian can't be fetched from {mirror()} (see {log.name}).")


def _install(folder: Path, log) -> None:
    shutil.copy("/etc/resolv.conf", folder / "etc" / "resolv.conf")
    (folder / "etc" / "dpkg" / "dpkg.cfg.d" / "lean").write_text("path-exclude=/usr/share/doc/*\nforce-unsafe-io\n")
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES], ["clean"]):
        run = subprocess.run(
            [*entering(folder), "apt-get", *command],
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False,
        )  # fmt: skip
        if run.returncode:
            raise CanNot(f"Debian's Blender can't be installed (see {log.name}).")


def mirror() -> str:
    """The mirror that this machine's apt uses for Debian."""
    for file in (Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))):
        text = file.read_text(errors="replace") if file.is_file() else ""
        for line in text.splitlines():
            found = re.match(r"(?:deb\s+(?:\[[^]]*\]\s+)?|URIs:\s*)(https?://\S+/debian)/?(?:\s|$)", line)
            if found:
                return found[1]
    return "http://deb.debian.org/debian"


def entering(folder: Path, shared: Iterable[Path] = ()) -> list[str]:
    """What to write before a command so that it runs in there, with these files and folders at their own paths.

    All processes that it starts end with it.
    """
    return [*ALONE, sys.executable, str(Path(__file__).resolve()), str(folder), *map(str, shared), "--"]


def backend_files(python: Path) -> list[Path]:
    """What a virtual environment's Python needs: itself, and the Python that it was made from."""
    said = subprocess.run(
        [str(python), "-c", "import sys; print(sys.prefix); print(sys.base_prefix); print(sys.version_info[1])"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    prefix, base, minor = Path(said[0]).resolve(), Path(said[1]), said[2]
    if base == Path("/usr"):  # its other files are the other Debian's own
        return [prefix, Path(f"/usr/bin/python3.{minor}"), Path(f"/usr/lib/python3.{minor}")]
    return [prefix, base]


def pip_files() -> list[Path]:
    """What pip on this machine is set up with: its configuration, certificates, and folders of packages."""
    files, values = (
        subprocess.run(
            [sys.executable, "-m", "pip", "config", word], capture_output=True, text=True, check=False
        ).stdout
        for word in ("debug", "list")
    )
    found = re.findall(r"^\s+(/.+), exists: True$", files, re.MULTILINE)
    found += re.findall(r"(?<=['\s])(?:file://)?(/[^\s']+)", values)
    # An index names its files by relative paths.
    paths = [path.parent if path.name == "simple" else path for path in map(Path, found)]
    return [path for path in paths if path.exists()]


def _enter(folder: Path, shared: Sequence[Path], command: Sequence[str]) -> int:
    """Runs as the first process of a new namespace: mounts, goes in, and waits for the command and its orphans."""
    if os.getpid() != 1:
        raise SystemExit("This belongs into a namespace of its own: see `entering`.")
    _mount("--types", "proc", "proc", str(folder / "proc"))
    _mount("--types", "tmpfs", "tmpfs", str(folder / "tmp"))
    for place in (Path("/sys"), Path("/dev"), *shared):
        inside = folder / place.absolute().relative_to("/")
        if place.is_dir():
            inside.mkdir(parents=True, exist_ok=True)
        elif not inside.exists():
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.touch()
        _mount("--rbind", str(place.resolve()), str(inside))
    here = Path.cwd()
    os.chroot(folder)
    os.chdir(here if here.is_dir() else "/")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYENV", "LD_"))}
    variables["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    child = subprocess.Popen(list(command), env=variables)
    while True:
        ended, status = os.wait()
        if ended == child.pid:
            return os.waitstatus_to_exitcode(status)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def main(arguments: Sequence[str]) -> int:
    if "--" in arguments:
        cut = arguments.index("--")
        folder, *shared = map(Path, arguments[:cut])
        return _enter(folder, shared, arguments[cut + 1 :])
    try:
        print(make())
    except CanNot as reason:
        print(reason, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
