"""What is lost where something is killed, or the disk is full: counted, with real processes and the starter model.

    python benchmarks/kills.py --report out/bench/kills.json

Three kinds of rounds, each with a new job of an animated object:

- the backend, or the background Blender that captures, is killed in each stage; then the job is started again;
- the Blender that watches is killed in each stage, with whatever it has started left alone; then another one starts;
- the disk of the job folder has so many bytes left (a small tmpfs where we are root on Linux, else a limit on the size
  of files for all processes); then there is room again.

A round is good where the trouble was told in a sentence, the objects were unchanged, no process was left over, the job
could go on and its motion reached the object in the end. The exit code is 0 if all are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import bpy
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import blender_scenes as scenes  # noqa: E402

import animate3d_addon  # noqa: E402
from animate3d_addon import backend_process, job_queue, jobs, results  # noqa: E402
from backend import protocol  # noqa: E402

STAGES = ("start", "capture", "video", "matte", "motion", "rig")
ENDS = ("ready", "apply")  # of Blender alone: the motion is there and not applied, or not noted down as applied
FREE = (0, 4_096, 65_536, 524_288)  # bytes
CHILD = [sys.executable, str(ROOT / "animate3d_addon" / "capture_child.py")]  # the bpy package is Blender enough
PATIENCE = 600.0  # seconds for a job
LEFT_OVER = 20.0  # seconds after which a process without its starter should have gone


class Watched(job_queue.JobQueue):
    """A queue that calls `reached` with each stage that its job comes to."""

    def __init__(self, root: Path, reached: Callable[[str], None] = lambda stage: None) -> None:
        super().__init__(root, lambda: sys.executable, lambda job: CHILD)
        self.reached = reached

    def _start_backend(self, job: jobs.Job) -> None:
        super()._start_backend(job)
        self.reached("start")

    def _progress(self, stage: str, step: int, steps: int) -> None:
        super()._progress(stage, step, steps)
        if step > 0 or stage != "capture":  # at 0 that process is only about to start
            self.reached(stage)

    def pids(self) -> list[int]:
        return [process.pid for process in (self._backend, self._capture) if process is not None]

    def run(self, job: jobs.Job) -> None:
        """Ticks until the job has ended, good or bad."""
        deadline = time.monotonic() + PATIENCE
        while job.state in jobs.UNFINISHED:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{job.stage} {job.step}/{job.steps}")
            self.tick()
            time.sleep(0.005)


def new_job(root: Path) -> jobs.Job:
    """A job of an object that asks for bones too; what the interface's button does."""
    scenes.reset()
    obj = scenes.grid("Sheet", 12)
    bpy.context.view_layer.update()
    obj.select_set(True)
    bpy.context.view_layer.objects.active = obj
    settings = bpy.context.scene.animate3d
    settings.prompt, settings.output = "a sheet sways", "RIG"
    job = results.new_job(bpy.context, results.chosen_objects(bpy.context), root)
    try:
        results.write_copy(job, [obj], bpy.context.scene)
    except protocol.UserError:
        job.remove()
        raise
    return job


def goes_on(root: Path, name: str) -> str:
    """What a Blender that starts now makes of the job: "" where its motion reaches the object, else what is wrong."""
    queue = Watched(root)
    try:
        job = queue.find(name)
        if job is None:
            return "the job is gone"
        if job.state not in ("ready", "applied"):
            queue.add(job)
            queue.run(job)
        if job.state not in ("ready", "applied"):
            return f"{job.state}: {job.error and job.error.message}"
        results.file_opened()
        obj = bpy.data.objects["Sheet"]
        results.apply(job)
        return "" if len(obj.animate3d.takes) == 1 and obj.parent is not None else "no motion"
    finally:
        queue.close()


def leftovers(pids: list[int]) -> int:
    """How many of these processes outlive their starter."""
    alive = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    _, left = psutil.wait_procs(alive, LEFT_OVER)
    for process in left:
        process.kill()
    return len(left)


def kill_child(root: Path, stage: str) -> dict:
    """A child of Blender's dies in a stage."""
    job = new_job(root)
    before = scenes.snapshot()
    victims: list[int] = []

    def reached(name: str) -> None:
        if name == stage and not victims:
            process = queue._capture if stage == "capture" else queue._backend
            victims.append(process.pid)
            os.kill(process.pid, signal.SIGKILL)

    queue = Watched(root, reached)
    queue.jobs.append(job)
    queue.add(job)
    queue.run(job)
    pids = queue.pids()
    queue.close()
    told = job.error.message if job.error else ""
    return {
        "hit": bool(victims),
        "told": told,
        "unchanged": scenes.snapshot() == before,
        "left over": leftovers(pids + victims),
        "wrong": goes_on(root, job.name),
    }


def kill_blender(root: Path, stage: str) -> dict:
    """The Blender that watches dies in a stage; a worker of ours plays it."""
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", str(root), stage]
    worker = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    last = next((line for line in reversed(worker.stdout.splitlines()) if line.startswith("{")), "{}")
    seen = json.loads(last)
    if not seen:
        return {"hit": False, "told": worker.stderr[-300:], "left over": 0, "unchanged": True, "wrong": "no worker"}
    scenes.reset()
    scenes.grid("Sheet", 12)  # the file opened again
    left = leftovers(seen["pids"])
    (found,) = [job for job in jobs.load_all(root) if job.name == seen["job"]]
    return {
        "hit": worker.returncode == -signal.SIGKILL,
        "told": found.error.message if found.error else found.state,
        "unchanged": True,  # it was not saved
        "left over": left,
        "wrong": goes_on(root, seen["job"]),
    }


def work_and_die(root: Path, stage: str) -> None:
    """The worker of `kill_blender`: ends itself as a crash would."""
    job = new_job(root)

    def die() -> None:
        print(json.dumps({"job": job.name, "pids": queue.pids()}), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    queue = Watched(root, lambda name: die() if name == stage else None)
    queue.jobs.append(job)
    queue.add(job)
    queue.run(job)
    if stage == "apply":
        results.apply(job)
    die()


@contextlib.contextmanager
def small_disk(parent: Path) -> Iterator[tuple[Path, Callable[[int | None], None]]]:
    """A folder, and what sets how many bytes are left there (None: enough)."""
    folder = parent / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(folder)]
    if sys.platform == "linux" and os.geteuid() == 0 and subprocess.run(mount, check=False).returncode == 0:
        try:
            yield folder, lambda free: _fill(folder / "ballast", free)
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=False)
    else:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        yield (
            folder,
            lambda free: resource.setrlimit(
                resource.RLIMIT_FSIZE, before if free is None else (max(free, 1), before[1])
            ),
        )


def _fill(ballast: Path, free: int | None) -> None:
    ballast.unlink(missing_ok=True)
    if free is not None:
        room = os.statvfs(ballast.parent)
        with ballast.open("wb") as file:
            file.write(b"\0" * max(room.f_bavail * room.f_frsize - free, 0))


def full_disk(root: Path, leave: Callable[[int | None], None], free: int) -> dict:
    """There is room for the job's beginning; then for so many bytes; then for all again."""
    leave(None)
    job = new_job(root)
    before = scenes.snapshot()
    queue = Watched(root)
    queue.jobs.append(job)
    leave(free)
    try:
        queue.add(job)
        queue.run(job)
        pids, told = queue.pids(), job.error.message if job.error else job.state
    finally:
        queue.close()
        leave(None)
    found = {
        "hit": job.state != "ready",
        "told": told,
        "unchanged": scenes.snapshot() == before,
        "left over": leftovers(pids),
        "wrong": goes_on(root, job.name),
    }
    job.remove()
    return found


def no_room_at_all(root: Path, leave: Callable[[int | None], None]) -> dict:
    """Not even the job's beginning can be written: the button says so, and nothing is left in the folder."""
    leave(None)
    scenes.reset()
    leave(0)
    told = ""
    try:
        new_job(root)
    except protocol.UserError as error:
        told = error.message
    leave(None)
    left = [job.name for job in jobs.load_all(root)]
    return {"hit": bool(told), "told": told, "unchanged": True, "left over": 0, "wrong": str(left) if left else ""}


def is_good(round_: dict) -> bool:
    return round_["hit"] and round_["told"] and round_["unchanged"] and not round_["left over"] and not round_["wrong"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--worker", nargs=2, metavar=("FOLDER", "STAGE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="animate3d-kills-") as folder:
        os.environ["ANIMATE3D_HOME"] = folder
        backend_process.POLITE = 0  # there is no window to leave the processor to
        animate3d_addon.register()
        if options.worker:
            work_and_die(Path(options.worker[0]), options.worker[1])
        rounds = {}
        for name, result in all_rounds(Path(folder)):
            rounds[name] = result
            print(f"{'good' if is_good(result) else 'BAD '}  {name:28} {result['told']} {result['wrong']}", flush=True)
    good = sum(map(is_good, rounds.values()))
    print(f"{good} of {len(rounds)} rounds lost nothing.")
    if options.report:
        protocol.write_json(options.report, {"good": good, "rounds": rounds})
    return 0 if good == len(rounds) else 1


def all_rounds(folder: Path) -> Iterator[tuple[str, dict]]:
    for stage in STAGES:
        yield f"child killed: {stage}", kill_child(folder / "child", stage)
    for stage in (*STAGES, *ENDS):
        yield f"Blender killed: {stage}", kill_blender(folder / "blender", stage)
    with small_disk(folder) as (disk, leave):
        yield "disk full: the button", no_room_at_all(disk / "jobs", leave)
        for free in FREE:
            yield f"disk full: {free} bytes left", full_disk(disk / "jobs", leave, free)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # Blender's Python package reports leaks at a normal exit
