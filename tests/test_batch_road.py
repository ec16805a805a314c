"""Batch mode for real, as a user runs it: a process, files in, files out, with a tiny model."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytest.importorskip("bpy")

ROOT = Path(__file__).resolve().parent.parent
BATCH = [sys.executable, str(ROOT / "animate_batch.py")]
MAKE_CONE = """
import bpy, os, sys
bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.ops.mesh.primitive_cone_add(radius1=0.5, depth=2.0, vertices=8, location=(5.0, 0.0, 1.0))
bpy.ops.export_scene.gltf(filepath=sys.argv[1], export_format="GLB")
os._exit(0)
"""


def batch(*arguments: object, **more) -> subprocess.CompletedProcess:
    command = [*BATCH, "--", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **more)


@pytest.fixture(scope="module")
def cone(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("input") / "ein Kegel “ü”.glb"  # such names must do
    subprocess.run([sys.executable, "-c", MAKE_CONE, str(path)], check=True, capture_output=True, timeout=300)
    return path


def gltf_content(path: Path) -> dict:
    data = path.read_bytes()
    (length,) = struct.unpack_from("<I", data, 12)
    return json.loads(data[20 : 20 + length])


def test_table_with_broken_rows(cone, tmp_path, tiny_weights):
    """One good row between bad ones: all are tried, each failure is one line, the code tells."""
    (tmp_path / "cut.glb").write_bytes(cone.read_bytes()[:200])
    table = tmp_path / "jobs.csv"
    rows = [
        "input,prompt,output,frames",
        f'"{cone}"," ",{tmp_path / "a.glb"},4',
        f"{tmp_path / 'cut.glb'},a cone sways,{tmp_path / 'b.glb'},4",
        f'"{cone}",a cone explodes,{tmp_path / "new" / "c.glb"},4',
        f'"{cone}",a cone sways,{tmp_path / "d.glb"},many',
    ]
    table.write_text("\n".join(rows), encoding="utf-8")
    report = tmp_path / "report.json"
    result = batch("--jobs", table, "--weights", tiny_weights, "--report", report, "--start-frame", 10)
    assert result.returncode == 1
    said = result.stderr.strip().splitlines()
    assert [line.split(":")[0] for line in said] == ["Line 2", "Line 3", "Line 5"], result.stderr
    assert "prompt is empty" in said[0] and "Traceback" not in result.stdout + result.stderr
    assert "does not know “explodes”: the nearest that it knows is “swells”. It knows: bounces, sways" in result.stdout
    jobs = json.loads(report.read_text())["jobs"]
    assert [job.get("error", "") for job in jobs] == ["bad_input", "bad_input", "", "bad_input"]
    assert list(jobs[2]["seconds"]) == ["load", "capture", "video", "matte", "motion", "bake", "export"]
    assert jobs[2]["peak_memory_gb"]["capture"] > 0.2 and jobs[2]["versions"]["blender"]
    content = gltf_content(tmp_path / "new" / "c.glb")
    assert len(content["meshes"][0]["primitives"][0]["targets"]) == 3  # frames 1..3; frame 0 is the rest pose
    assert content["animations"][0]["channels"][0]["target"]["path"] == "weights"
    assert [path.name for path in tmp_path.glob("*.glb")] == ["cut.glb"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["c.glb"]


def start_table(cone: Path, folder: Path, weights: Path, rows: int = 3) -> subprocess.Popen:
    """A table of rows that are called a, b, c … and take a while."""
    table = folder / "jobs.csv"
    lines = [f'"{cone}",a cone sways,{folder / chr(97 + row)}.glb,4' for row in range(rows)]
    table.write_text("\n".join(["input,prompt,output,frames", *lines]), encoding="utf-8")
    command = [*BATCH, "--", "--jobs", table, "--weights", weights, "--report", folder / "report.json"]
    return subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for(process: subprocess.Popen, words: str, times: int = 1) -> None:
    for line in process.stdout:
        times -= line.startswith(words)
        if times == 0:
            return
    raise AssertionError(words)


def children(process: subprocess.Popen) -> list[psutil.Process]:
    """Of all generations: the one that does the rows first, then its backend."""
    return psutil.Process(process.pid).children(recursive=True)


def test_where_blender_dies_in_a_row_the_others_are_done(cone, tmp_path, tiny_weights):
    process = start_table(cone, tmp_path, tiny_weights)
    wait_for(process, "fitting", times=2)
    before = children(process)
    before[0].kill()
    process.stdout.read()
    assert process.wait(300) == 1
    assert process.stderr.read().splitlines() == ["Line 3: Blender stopped unexpectedly (SIGKILL). Run this job again."]
    jobs = json.loads((tmp_path / "report.json").read_text())["jobs"]
    assert [job.get("error", "") for job in jobs] == ["", "internal", ""]
    assert sorted(path.name for path in tmp_path.glob("*.glb")) == ["a.glb", "c.glb"]
    assert psutil.wait_procs(before, 20)[1] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_table_ends_with_whoever_started_it(cone, tmp_path, tiny_weights, number):
    """Ctrl-C stops all rows where they can go on; a kill leaves no process."""
    process = start_table(cone, tmp_path, tiny_weights)
    wait_for(process, "fitting")
    before = children(process)
    os.killpg(process.pid, number)
    process.stdout.read()
    assert process.wait(60) == (130 if number == signal.SIGINT else -number)
    if number == signal.SIGINT:
        (said,) = process.stderr.read().splitlines()
        assert said.startswith("Line 2: The job was cancelled. Run it again with --keep-job")
    assert psutil.wait_procs(before, 30)[1] == [] and len(before) >= 2
    assert not list(tmp_path.glob("*.glb"))


def test_interrupted_job_goes_on(cone, tmp_path, tiny_weights):
    """Ctrl-C in the fit; the same command then takes over the capture and the video."""
    job, output = tmp_path / "job", tmp_path / "out.blend"
    arguments = ["--input", cone, "--prompt", "make it twist", "--output", output, "--frames", 4]
    arguments = [*map(str, arguments), "--weights", str(tiny_weights), "--keep-job", str(job)]
    process = subprocess.Popen(
        [*BATCH, "--", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    for line in process.stdout:
        if line.startswith("fitting"):
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    assert process.wait(60) == 130
    assert process.stderr.read().strip().splitlines() == [
        f"The job was cancelled. Run it again with --keep-job {job} to go on."
    ]
    assert not output.exists()
    made = [job / "subject" / "position_0.png", job / "video" / "video.npz"]
    before = [path.stat().st_mtime_ns for path in made]

    result = batch(*arguments)
    assert result.returncode == 0, result.stderr
    assert "imagining the motion: taken over" in result.stdout and result.stderr == ""
    assert [path.stat().st_mtime_ns for path in made] == before
    assert output.stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--bogus"], 2, "usage:"),
        (["--prompt", "x", "--output", "/proc/x/out.glb", "--input", "{cone}"], 1, "can't be written"),
    ],
)
def test_refused_at_once(cone, arguments, code, said):
    result = batch(*(str(cone) if a == "{cone}" else a for a in arguments))
    assert result.returncode == code and said in result.stderr and "Traceback" not in result.stderr


def test_help_and_no_dashes():
    result = subprocess.run([*BATCH, "--help"], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0 and "--jobs TABLE.csv" in result.stdout


def test_backend_that_can_not_start_is_one_sentence(cone, tmp_path):
    stand_in = tmp_path / "python"
    stand_in.write_text("#!/bin/sh\necho no torch here >&2\nexit 5\n")
    stand_in.chmod(0o755)
    result = batch(
        *("--input", cone, "--prompt", "it sways", "--output", tmp_path / "o.glb"),
        env=os.environ | {"ANIMATE3D_PYTHON": str(stand_in)},
    )
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1
    assert "stopped unexpectedly (exit code 5)" in result.stderr
    log = result.stderr.split("Its log is ")[1].strip().rstrip(".")
    assert "no torch here" in Path(log).read_text()
