"""The starter benchmark's figures: they are right where the truth is known, and they can fail."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from backend.evaluation.retrieval import KnownMotions
from backend.evaluation.video import colour_drift, masked_psnr, view_residual
from backend.training.clips import Clip, render_clip, shuffled_code, straight
from backend.training.motions import MOTIONS, animate
from backend.training.shapes import random_object
from benchmarks import starter
from benchmarks.starter_objects import Thing, meshes

ROOT = Path(__file__).resolve().parent.parent
FRAMES, SIZE = 16, 64


@pytest.fixture(scope="module")
def thing() -> Thing:
    return Thing("thing", *random_object(np.random.default_rng(5)), np.eye(4))


@pytest.fixture(scope="module")
def known(thing: Thing) -> KnownMotions:
    return KnownMotions(thing.rest, FRAMES)


def video_of(thing: Thing, trajectories: np.ndarray, colors: np.ndarray | None = None) -> np.ndarray:
    clip = Clip(thing.rest, thing.faces, trajectories, "", 1.0, "loop", "")
    pairs = [(view, frame) for view in range(4) for frame in range(len(trajectories))]
    return straight(render_clip(clip, SIZE, pairs, colors)).reshape(4, len(trajectories), SIZE, SIZE, 4)


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_true_motion_is_found_whatever_its_strength_speed_and_phase(
    motion: str, thing: Thing, known: KnownMotions
) -> None:
    plain = animate(motion, thing.rest, FRAMES, 0.9) - thing.rest
    assert known.most_alike(0.5 * plain).motion == motion
    assert known.most_alike(animate(motion, thing.rest, FRAMES, 1.0, "quick") - thing.rest).motion == motion
    shifted = known.most_alike(np.roll(plain, -2, axis=0))
    assert shifted.motion == motion and shifted.score > 0.98


def test_a_clip_is_nearest_to_its_own_strength_and_timing(thing: Thing, known: KnownMotions) -> None:
    near = known.nearest(animate("sway", thing.rest, FRAMES, 0.6, "once") - thing.rest)
    assert (near.motion, near.timing, near.strength) == ("sway", "once", 0.6)


def test_a_backward_motion_is_not_taken_for_the_forward_one(thing: Thing, known: KnownMotions) -> None:
    assert known.most_alike(thing.rest - animate("bounce", thing.rest, FRAMES, 1.0)).motion != "bounce"


def test_pixels_agree_with_the_true_motion_and_not_with_standing_still(thing: Thing) -> None:
    moved = animate("sway", thing.rest, FRAMES, 1.0)
    video, subject = video_of(thing, moved), thing.subject(SIZE)
    right = view_residual(video, moved - thing.rest, subject)
    wrong = view_residual(video, np.zeros_like(moved), subject)
    assert right < 1.5 and wrong > 2.5 * right  # percent of 64 pixels


def test_foreign_colours_are_drift_and_motion_is_none(thing: Thing) -> None:
    moved, subject = animate("sway", thing.rest, FRAMES, 1.0), thing.subject(SIZE)
    video = video_of(thing, moved)
    assert abs(colour_drift(video, subject)) < 0.5
    video[:, 1:] = video_of(thing, moved, shuffled_code(thing.rest, np.random.default_rng(1)))[:, 1:]
    assert colour_drift(video, subject) > 2.0


def test_psnr_looks_at_the_object_alone(thing: Thing) -> None:
    here, there = (video_of(thing, animate("bounce", thing.rest, FRAMES, strength)) for strength in (1.0, 0.6))
    assert masked_psnr(here, here) == pytest.approx(100.0)
    wide = [np.pad(video, ((0, 0), (0, 0), (32, 32), (32, 32), (0, 0))) for video in (here, there)]
    assert masked_psnr(*wide) == pytest.approx(masked_psnr(here, there))
    assert masked_psnr(here, there) < 20.0


def test_arrays_come_before_models_and_the_first_frame_counts(thing: Thing, tmp_path: Path) -> None:
    moved = animate("bounce", thing.rest, 3, 1.0)
    np.savez(tmp_path / "fox.npz", vertices=moved, faces=thing.faces)
    (tmp_path / "fox.glb").write_bytes(b"not read")
    (found,) = meshes([tmp_path])
    turned = thing.rest @ np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]])  # Blender's front is -y, ours +x
    assert found.name == "fox" and np.abs(found.rest - turned).max() < 1e-9


def test_the_benchmark_runs_and_keeps_what_it_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--objects", "1", "--motions", "bounce", "sway", "--steps", "1", "--guidance", "1"]
    kept = ["--report", str(tmp_path / "report.json"), "--save", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["starter.py", "--weights", str(ROOT / "weights" / "starter"), *options, *kept])
    assert starter.main() == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["summary"]["all"]["clips"] == 2 and report["pairs"] == 1
    with np.load(tmp_path / "shape0_bounce.npz", allow_pickle=False) as kept:
        assert kept["vertices"].shape[0] == 16 and kept["vertices"].shape[2] == 3
    assert (tmp_path / "sheet_shape0.png").exists()
