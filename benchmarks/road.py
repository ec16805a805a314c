"""The whole road over a folder of files: does every one come back moving, in how long, in how much memory?

    python benchmarks/road.py --assets DIR --prompt "it is swaying" --report road.json --save out/road

Each file goes through `animate_batch.py` in a process of its own, as a user would run it. Then the output is opened
again: its first frame must be the input, to 1e-5 of its size. Needs the bpy package.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import bpy  # noqa: E402
from mathutils.kdtree import KDTree  # noqa: E402

from animate3d_addon import files  # noqa: E402
from animate3d_addon.quiet import quiet  # noqa: E402
from backend.protocol import UserError, write_json  # noqa: E402

TOLERANCE = 1e-5  # of the size; float32 coordinates after a round trip through a file
START, STEP, FRAMES = 1, 3, 16
STAGES = ("load", "capture", "video", "matte", "splats", "motion", "bake", "export")


def main() -> int:
    """Returns 0 where every file came back right."""
    options = _options()
    found = sorted(p for p in options.assets.iterdir() if p.suffix.lower() in files.READABLE)
    paths = [path for path in found if not options.names or path.stem in options.names.split(",")]
    if not paths:
        print(f"No files to run in {options.assets}.", file=sys.stderr)
        return 2
    print(f"{'file':20}{''.join(f'{stage:>9}' for stage in STAGES)}{'total s':>9}{'GB':>6}{'moved':>8}  ", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.save or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [_run(path, folder, options) for path in paths]
    good = sum(row["ok"] for row in rows)
    print(f"{good} of {len(rows)} came back right")
    if options.report:
        write_json(options.report, {"prompt": options.prompt, "preset": options.preset, "good": good, "rows": rows})
    return 0 if good == len(rows) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--assets", type=Path, required=True, metavar="DIR", help="folder of 3D files")
    parser.add_argument("--prompt", required=True, help="the sentence for all of them")
    parser.add_argument("--names", default="", metavar="A,B", help="only the files with these stems")
    parser.add_argument("--preset", default="draft")
    parser.add_argument("--weights", default="starter")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--format", default="blend", choices=("blend", "glb"), help="of the outputs")
    parser.add_argument("--timeout", type=float, default=900.0, metavar="SECONDS", help="of one file")
    parser.add_argument("--report", type=Path, metavar="FILE.json")
    parser.add_argument("--save", type=Path, metavar="DIR", help="keep the outputs there")
    return parser.parse_args()


def _run(path: Path, folder: Path, options: argparse.Namespace) -> dict:
    output, report = folder / f"{path.stem}.{options.format}", folder / f"{path.stem}.json"
    for old in (output, report):
        old.unlink(missing_ok=True)
    command = [sys.executable, ROOT / "animate_batch.py", "--", "--input", path, "--prompt", options.prompt]
    command += ["--output", output, "--report", report, "--preset", options.preset, "--frames", str(FRAMES)]
    command += ["--weights", options.weights, "--device", options.device]
    row: dict = {"name": path.stem, "ok": False, "error": ""}
    started = time.monotonic()
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=options.timeout)
        row["error"] = _first_fault(result.returncode, result.stdout + result.stderr, result.stderr)
    except subprocess.TimeoutExpired:
        row["error"] = f"not done after {options.timeout:.0f} s"
    row["wall_seconds"] = round(time.monotonic() - started, 2)
    if not row["error"]:
        row |= {name: json.loads(report.read_text())[name] for name in ("seconds", "peak_memory_gb")}
        try:
            row |= _compare(path, output)
        except UserError as error:
            row["error"] = f"the output does not open: {error.message}"
        else:
            row["error"] = "" if row["rest_error"] <= TOLERANCE else f"frame 0 is off by {row['rest_error']:.1e}"
    row["ok"] = not row["error"]
    _print(row)
    return row


def _first_fault(code: int, everything: str, errors: str) -> str:
    if "Traceback" in everything:
        return "a traceback reached the user"
    return "" if code == 0 else (errors.strip().splitlines() or [f"exit code {code}"])[-1]


def _compare(path: Path, output: Path) -> dict[str, float]:
    """How far frame 0 is from the input, and how far the motion goes on average; both over the size."""
    rest = _vertices(files.load(path))
    size = float(np.linalg.norm(np.ptp(rest, axis=0)))
    objects = files.load(output) if output.suffix == ".blend" else _import_moving(output)
    frames = []
    for frame in range(FRAMES):
        bpy.context.scene.frame_set(START + STEP * frame)
        frames.append(_vertices(objects))
    error = max(_farthest(rest, frames[0]), _farthest(frames[0], rest))
    moved = float(np.mean([np.linalg.norm(frame - frames[0], axis=-1).mean() for frame in frames[1:]]))
    return {"rest_error": error / size, "moved": round(moved / size, 4)}


def _import_moving(path: Path) -> list[bpy.types.Object]:
    """A glTF file with its animation, which `files.load` would freeze."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    with quiet():
        bpy.ops.import_scene.gltf(filepath=str(path))
    return [obj for obj in bpy.context.scene.objects if obj.type == "MESH"]


def _vertices(objects: list[bpy.types.Object]) -> np.ndarray:
    """World positions [V, 3] float64 of the evaluated objects at the current frame."""
    graph = bpy.context.evaluated_depsgraph_get()
    parts = []
    for obj in sorted(objects, key=lambda obj: obj.name):
        evaluated = obj.evaluated_get(graph)
        mesh = evaluated.to_mesh()
        points = np.empty(3 * len(mesh.vertices), np.float32)
        mesh.vertices.foreach_get("co", points)
        evaluated.to_mesh_clear()
        matrix = np.array(evaluated.matrix_world, np.float64)
        parts.append(points.reshape(-1, 3).astype(np.float64) @ matrix[:3, :3].T + matrix[:3, 3])
    return np.concatenate(parts)


def _farthest(points: np.ndarray, others: np.ndarray) -> float:
    """The largest distance from a point to its nearest other one: exporters may reorder and split vertices."""
    tree = KDTree(len(others))
    for index, other in enumerate(others):
        tree.insert(other, index)
    tree.balance()
    return max(tree.find(point)[2] for point in points)


def _print(row: dict) -> None:
    seconds = row.get("seconds", {})
    cells = "".join(f"{seconds[stage]:9.1f}" if stage in seconds else f"{'-':>9}" for stage in STAGES)
    memory = max(row.get("peak_memory_gb", {}).values(), default=0.0)
    verdict = "ok" if row["ok"] else row["error"]
    print(
        f"{row['name']:20}{cells}{row['wall_seconds']:9.1f}{memory:6.1f}{row.get('moved', 0.0):8.3f}  {verdict}",
        flush=True,
    )


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # the bpy package reports leaks at an ordinary end
