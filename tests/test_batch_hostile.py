"""Odd geometry and damaged files through batch mode: a right result, or one plain sentence and a non-zero exit."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

import blender_scenes as scenes  # noqa: E402
from test_batch_road import batch  # noqa: E402
from test_blender_hostile import ODD_MESHES, TRIANGLE  # noqa: E402

REFUSED = {  # vertices, edges, faces, words of the sentence
    "no vertex": ([], [], [], "no vertex"),
    "one vertex": ([(1, 2, 3)], [], [], "no face"),
    "one point": ([(1, 2, 3)] * 3, [], [(0, 1, 2)], "no size"),
    "edges only": (TRIANGLE, [(0, 1), (1, 2)], [], "no face"),
    "nan": ([*TRIANGLE, (np.nan, 0, 0)], [], [(0, 1, 2)], "no valid position"),
    "infinite": ([*TRIANGLE, (np.inf, 0, -np.inf)], [], [(0, 1, 3)], "no valid position"),
}
CUBE = np.array(scenes.CUBE, float)
ANIMATED = ODD_MESHES | {
    "a million large": (CUBE * 1e6, scenes.CUBE_FACES, []),
    "a millionth small": (CUBE * 1e-6, scenes.CUBE_FACES, []),
    "far away": (CUBE + 1e6, scenes.CUBE_FACES, []),
}
PLY_HEAD = "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\n"
DAMAGED = {  # file name: content
    "empty.glb": b"",
    "cut.glb": b"glTF\x02\x00\x00\x00\x00\x10\x00\x00\x40\x00\x00\x00JSON{",
    "nonsense.obj": b"\x00\x01\x02nonsense",
    "broken.gltf": b'{"asset": {"version": "2.0"}, "meshes": [',
    "no_bin.gltf": b'{"asset": {"version": "2.0"}, "buffers": [{"uri": "gone.bin", "byteLength": 36}]}',
    "no_model.txt": b"hello",
    "points.ply": (PLY_HEAD + "end_header\n0 0 0\n").encode(),
    "splat.ply": (PLY_HEAD + "property float f_dc_0\nproperty float opacity\nend_header\n0 0 0 0 0\n").encode(),
    "short_splat.ply": (
        PLY_HEAD.replace("vertex 1", "vertex 5000000") + "property float f_dc_0\nend_header\n"
    ).encode(),
}


def write_blend(path: Path, vertices: object, faces: list, edges: list) -> Path:
    scenes.reset()
    scenes.mesh_object("Odd", vertices, faces, edges)
    bpy.ops.wm.save_as_mainfile(filepath=str(path), copy=True)
    return path


def run_table(folder: Path, inputs: list[Path], weights: Path) -> tuple[list[dict], list[str], int]:
    """The report of each row, the lines on stderr, the exit code."""
    table, report = folder / "jobs.csv", folder / "report.json"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["input", "prompt", "output", "frames"])
        writer.writerows([[path, "it sways", folder / "out" / f"{path.stem}.glb", 3] for path in inputs])
    result = batch("--jobs", table, "--weights", weights, "--report", report)
    assert "Traceback" not in result.stdout + result.stderr
    return json.loads(report.read_text())["jobs"], result.stderr.strip().splitlines(), result.returncode


def test_odd_geometry(tmp_path, tiny_weights):
    inputs = [
        write_blend(tmp_path / f"{name}.blend", *mesh) for name, mesh in ANIMATED.items()
    ]  # vertices, faces, edges
    jobs, said, code = run_table(tmp_path, inputs, tiny_weights)
    assert code == 0 and not said
    assert all("seconds" in job for job in jobs)
    assert {path.stem for path in (tmp_path / "out").iterdir()} == set(ANIMATED)


def test_geometry_that_cant_move_and_damaged_files(tmp_path, tiny_weights):
    inputs = [
        write_blend(tmp_path / f"{name}.blend", vertices, faces, edges)
        for name, (vertices, edges, faces, _) in REFUSED.items()
    ]
    for name, content in DAMAGED.items():
        (tmp_path / name).write_bytes(content)
        inputs.append(tmp_path / name)
    jobs, said, code = run_table(tmp_path, [*inputs, tmp_path / "not_there.glb"], tiny_weights)
    assert code == 1 and len(said) == len(jobs) == len(REFUSED) + len(DAMAGED) + 1
    assert all(job == {"error": "bad_input"} for job in jobs)
    for line, (*_, words) in zip(said, REFUSED.values(), strict=False):
        assert words in line
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
