"""Files of Gaussians as subjects: found, looked at, moved, and written as frames that other programs read."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from animate3d_addon import batch_options, precheck
from backend import steps
from backend.motion.fit import fit_motion
from backend.motion.graph import build_graph
from backend.motion.settings import DRAFT
from backend.protocol import Motion, Rig, SplatSource, Subject, UserError, Video, orbit_c2w, transform_points
from backend.splats import harmonics, views
from backend.splats.frames import frame_path, write_frames
from backend.splats.ply import COLOR, POSITION, ROTATION, SplatFile, header, read_rows
from backend.splats.rasterize import rasterize
from backend.splats.reference import quaternions_to_matrices

ROOT = Path(__file__).resolve().parent.parent
NAMES = (*POSITION, *COLOR, *(f"f_rest_{k}" for k in range(45)), "opacity", "scale_0", "scale_1", "scale_2", *ROTATION)


def arm(count: int = 800, floaters: int = 0) -> np.ndarray:
    """Rows of a file: an L of Gaussians, higher in z than wide, whose colours depend on the direction of view."""
    rng = np.random.default_rng(0)
    place = rng.uniform(-0.2, 0.2, (count, 3)) + np.where(np.arange(count)[:, None] % 3 == 0, (0.8, 0, 2), (0, 0, 1))
    place[:, 2] += rng.uniform(-1, 1, count) * (np.arange(count) % 3 > 0)
    place[:, 0] += rng.uniform(-0.6, 0.6, count) * (np.arange(count) % 3 == 0)
    columns = dict(zip(POSITION, place.T, strict=True))
    columns |= {name: rng.normal(0, 0.5, count) for name in COLOR}
    columns |= {f"f_rest_{k}": rng.normal(0, 0.3, count) for k in range(45)}
    columns |= {f"scale_{k}": np.log(rng.uniform(0.02, 0.15, count)) for k in range(3)}
    columns |= {name: rng.normal(0, 1, count) for name in ROTATION} | {"opacity": np.full(count, 4.0)}
    table = np.zeros(count + floaters, [(name, "<f4") for name in NAMES])
    for name, values in columns.items():
        table[name][:count] = values
    far = rng.normal(0, 1, (floaters, 3))
    for axis, name in enumerate(POSITION):
        table[name][count:] = 30 * far[:, axis] / np.linalg.norm(far, axis=1).clip(1e-9)
    table["opacity"][count:], table["rot_0"][count:] = 6.0, 1.0
    return table


def save(path: Path, table: np.ndarray) -> Path:
    path.write_bytes(header(table.dtype, len(table)) + table.tobytes())
    return path


def job_of(folder: Path, table: np.ndarray, up: str = "z"):
    """A job folder, its subject."""
    folder.mkdir(exist_ok=True)
    source = SplatSource(up)
    source.save(folder, save(folder / "input.ply", table))
    subject = views.make_subject(folder, source, "position")
    subject.save(folder)
    return subject


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_turned_colours_look_the_same_from_the_turned_side(degree: int) -> None:
    generator = torch.Generator().manual_seed(0)
    rest = torch.randn(50, 3, (degree + 1) ** 2 - 1, generator=generator).double()
    flat = torch.randn(50, 3, generator=generator).double()
    directions = torch.nn.functional.normalize(torch.randn(50, 3, generator=generator).double(), dim=-1)
    turns = quaternions_to_matrices(torch.randn(50, 4, generator=generator).double())
    turned = harmonics.colors(flat, harmonics.rotate(rest, turns), (turns @ directions[..., None])[..., 0])
    torch.testing.assert_close(turned, harmonics.colors(flat, rest, directions), atol=1e-9, rtol=0)


def test_the_harmonics_are_orthonormal() -> None:
    """Over a spiral of many directions, as an integral over the sphere."""
    k = torch.arange(20000).double() + 0.5
    z, angle = 1 - 2 * k / len(k), np.pi * (1 + 5**0.5) * k
    around = (1 - z * z).sqrt()
    directions = torch.stack([around * angle.cos(), around * angle.sin(), z], -1)
    values = torch.cat([harmonics.basis(directions, degree) for degree in range(4)], -1)
    torch.testing.assert_close(values.T @ values * (4 * np.pi / len(k)), torch.eye(16).double(), atol=1e-3, rtol=0)


def test_floaters_are_no_part_of_the_object(tmp_path: Path) -> None:
    alone, among = job_of(tmp_path / "a", arm()), job_of(tmp_path / "b", arm(floaters=40))
    assert views.load_rows(tmp_path / "b").max() < 800
    assert len(among.vertices) == len(alone.vertices) == 800
    np.testing.assert_array_equal(among.to_world, alone.to_world)


@pytest.mark.parametrize("up", ["y", "y-down"])
def test_a_file_that_lies_down_is_stood_up(up: str, tmp_path: Path) -> None:
    """The same object written with another axis up gives the same views."""
    table = arm()
    lying = table.copy()
    place = np.stack([table[name] for name in POSITION], axis=1) @ SplatSource(up).upright[:3, :3].T
    turn = quaternions_to_matrices(torch.from_numpy(np.stack([table[name] for name in ROTATION], axis=1)).double())
    turn = torch.from_numpy(SplatSource(up).upright[:3, :3]) @ turn
    quats = views.matrices_to_quaternions(turn).numpy()
    for names, values in ((POSITION, place), (ROTATION, quats)):
        for axis, name in enumerate(names):
            lying[name] = values[:, axis]
    straight, stood = job_of(tmp_path / "a", table), job_of(tmp_path / "b", lying, up)
    np.testing.assert_allclose(stood.vertices, straight.vertices, atol=1e-5)
    for index in range(4):
        straight, stood = (Image.open(Subject.image_path(tmp_path / f, "position", index)) for f in "ab")
        assert np.abs(np.asarray(straight, float) - np.asarray(stood, float)).mean() < 0.1  # of 255


def turning(subject, angle: float) -> tuple[Motion, Rig]:
    """Two frames: at rest, then turned about the world's z axis."""
    rest = transform_points(subject.to_world, subject.vertices)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    offsets = np.stack([np.zeros_like(rest), rest @ turn.T - rest]).astype(np.float32)
    quats = np.array([[[1.0, 0, 0, 0]], [[np.cos(angle / 2), 0, 0, np.sin(angle / 2)]]])
    count = len(rest)
    rig = Rig(("Root",), np.zeros((1, 3)), np.ones((1, 3)), np.array([-1], np.int32), np.zeros((count, 1), np.int32),
              np.ones((count, 1), np.float32), quats, np.zeros((2, 1, 3)))  # fmt: skip
    return Motion(offsets), rig


def picture(path: Path, azimuth: float) -> torch.Tensor:
    """The file as a camera at this azimuth sees it, in the colours of that side."""
    file = SplatFile.open(path)
    gaussians = read_rows(file, np.arange(len(file)))
    camera = orbit_c2w(azimuth, 15.0, 6.0)
    camera[2, 3] += 1.0
    away = torch.nn.functional.normalize(gaussians.means - torch.from_numpy(camera[:3, 3]).float(), dim=-1)
    rest = torch.from_numpy(file.columns(file.rest_names)).unflatten(1, (3, -1))
    colors = harmonics.colors(torch.from_numpy(file.columns(COLOR)), rest, away)
    g = gaussians.with_colors(colors)
    view = torch.from_numpy(camera)[None].float()
    return rasterize(g.means, g.quats, g.scales, g.opacities, g.colors, view, 40.0, 64, 64)[0][0]


def test_a_turned_frame_looks_like_the_source_from_the_other_side(tmp_path: Path) -> None:
    """Positions, shapes and the colours' dependence on the view turn together."""
    subject = job_of(tmp_path, arm())
    motion, rig = turning(subject, np.radians(70))
    source = views.open_source(tmp_path)
    write_frames(tmp_path, source, views.load_rows(tmp_path), motion, rig, lambda step, steps: None)
    still, turned = (frame_path(tmp_path, frame) for frame in range(2))
    assert still.read_bytes() == SplatSource.path(tmp_path).read_bytes()  # frame 0 is the file as it came
    before, after = picture(still, 20.0), picture(turned, 90.0)
    assert (before - after).abs().max() < 2e-3
    assert (picture(turned, 20.0) - before).abs().mean() > 0.05


def test_models_of_true_colours_see_each_side_in_its_own(tmp_path: Path) -> None:
    """A file whose red comes from its front alone; its Gaussians then serve a fit by rendering."""
    table = arm()
    for name in (*COLOR, *(f"f_rest_{k}" for k in range(45))):
        table[name] = 0.0
    table["f_rest_0"] = 1.0  # red's first order along y
    source = SplatSource()
    source.save(tmp_path, save(tmp_path / "input.ply", table))
    subject = views.make_subject(tmp_path, source, "color")
    red = []
    for view in range(4):  # the front, then from +x, the back, from -x
        image = np.asarray(Image.open(Subject.image_path(tmp_path, "condition", view)), float) / 255
        seen = image[image[..., 3] > 0.9]
        red.append(seen[:, 0].mean() - seen[:, 1].mean())
    assert red[0] < -0.3 and red[2] > 0.3  # 3DGS: looking along +y shows less of it
    assert max(abs(red[1]), abs(red[3])) < 0.2
    splats = steps.make_splats(tmp_path, subject, "color", 0, torch.device("cpu"))
    steps.save_splats(splats, tmp_path)
    assert torch.equal(steps.load_splats(tmp_path).means, splats.means)
    frames = np.full((4, 3, 32, 32, 3), 128, np.uint8)
    few = replace(DRAFT, road="rendering", iterations=2, image_size=32, max_gaussians=200)
    offsets = fit_motion(subject, splats, Video(frames, "color"), np.zeros((4, 3, 32, 32), np.float32), few,
                         torch.device("cpu"), lambda step, steps: None)  # fmt: skip
    assert offsets.shape == (3, 800, 3) and np.isfinite(offsets).all()


def test_points_without_faces_hang_together_in_one_graph() -> None:
    """Also where an island lies apart; the arm's tip is far from its foot along the graph."""
    table = arm(3000)
    place = np.stack([table[name] for name in POSITION], axis=1).astype(np.float32)
    place = np.concatenate([place, place[:50] + np.array([4, 0, 0])]).astype(np.float32)
    graph = build_graph(place, np.zeros((0, 3), np.int32), np.arange(len(place), dtype=np.int32), max_nodes=400)
    assert len(graph.nodes) <= 400 and graph.component.max() == 0 and len(graph.owner) == len(place)
    assert (np.diff(graph.edges.indptr) > 0).all()
    away = np.linalg.norm(graph.nodes[graph.owner] - place, axis=1)
    assert away.max() < 0.5


def test_what_is_missing_is_said_in_a_sentence(tmp_path: Path) -> None:
    table = arm(20)
    names = [name for name in NAMES if name not in ("scale_2", "rot_3")]
    short = save(tmp_path / "short.ply", table[names].astype([(name, "<f4") for name in names]))
    assert precheck.is_splats(short)
    with pytest.raises(UserError, match="lacks properties that Gaussian splats have: scale_2, rot_3"):
        precheck.check_splats(short)
    whole = save(tmp_path / "whole.ply", table)
    cut = tmp_path / "cut.ply"
    cut.write_bytes(whole.read_bytes()[:-100])
    (tmp_path / "job").mkdir()
    SplatSource().save(tmp_path / "job", cut)
    with pytest.raises(UserError, match="cut short"):
        views.open_source(tmp_path / "job")
    for more, said in (({"as_": "rig"}, "become frames"), ({"output": "a.glb"}, "can't hold splats")):
        options = {"input": str(whole), "prompt": "it sways", "output": str(tmp_path / "out"), **more}
        with pytest.raises(UserError, match=said):
            batch_options.check_options(batch_options.Options(**options), "")


def test_batch_mode_writes_frames_as_complete_as_their_source(tmp_path: Path, tiny_weights: Path) -> None:
    pytest.importorskip("bpy")
    table = arm(floaters=10)
    save(tmp_path / "arm.ply", table)
    output, report = tmp_path / "out" / "moving.ply", tmp_path / "report.json"
    command = [sys.executable, ROOT / "animate_batch.py", "--", "--input", tmp_path / "arm.ply", "--prompt", "it sways"]
    command += ["--frames", 4, "--weights", tiny_weights, "--output", output, "--report", report]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    made = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert made == [*(f"moving_{frame:04d}.ply" for frame in range(1, 5)), "moving_motion.npz"]
    first, last = (SplatFile.open(tmp_path / "out" / f"moving_{frame:04d}.ply").table for frame in (1, 4))
    assert first.dtype.names == NAMES and (np.asarray(first) == table).all()
    motion = np.load(tmp_path / "out" / "moving_motion.npz")
    moved = np.stack([last[name] - first[name] for name in POSITION], axis=1)
    np.testing.assert_allclose(moved[motion["rows"]], motion["offsets"][3], atol=1e-5)
    assert (np.asarray(last[800:]) == table[800:]).all()  # floaters stay
    seconds = json.loads(report.read_text())["seconds"]
    assert list(seconds) == ["load", "capture", "video", "matte", "motion", "rig", "frames", "export"]
