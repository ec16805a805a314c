"""The 4D-SDS stage: what it changes, what holds on to what, and its place on the road."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_backend_road import job  # noqa: F401  (a fixture)
from test_motion_fit import bend, coloured_splats, cylinder, make_subject
from test_mv_vdm_pipeline import tiny_model

from backend import jobs, memory, steps
from backend.motion.guidance import GuidanceSettings, VideoGuidance, pictures_at_once
from backend.motion.hexplane import HexPlane
from backend.motion.refinable import BoneMotion, PlaneMotion, Rates, Refinable
from backend.motion.rotations import quaternion_product
from backend.motion.sds_fit import SdsSettings, draw, refine, with_rest
from backend.motion.settings import PAPER
from backend.mv_vdm.pipeline import MVVDM
from backend.protocol import JobSettings, Motion, UserError

CPU = torch.device("cpu")
FRAMES = 4
FEW = SdsSettings(
    iterations=3,
    anchor_size=32,
    arap_sample=64,
    guidance=GuidanceSettings(guidance_scale=0.0),
    rates=Rates(grid=0.05, network=5e-3, global_network=5e-3, bone=0.02),
)


class Scene:
    """A cylinder that bends, its Gaussians, and a model that wants everything to stand still."""

    def __init__(self) -> None:
        self.rest, faces = cylinder(12, 8)
        self.subject = make_subject(self.rest, faces)
        self.poses = np.stack([bend(self.rest, 0.3 * k) for k in range(FRAMES)])
        self.offsets = (self.poses - self.rest).astype(np.float32)
        self.splats = coloured_splats(self.subject, 600)
        self.model = tiny_model("position")
        for network in (self.model.unet, self.model.vae):
            network.requires_grad_(False)
        torch.nn.init.zeros_(self.model.unet.conv_out.weight)  # its output is the difference to frame 0
        torch.nn.init.zeros_(self.model.unet.conv_out.bias)

    def bones(self) -> BoneMotion:
        return BoneMotion(self.subject, self.offsets, self.splats, bones=6)

    def planes(self) -> PlaneMotion:
        """A HexPlane that lets everything drift the same way."""
        sizes = ((8, 8, 8, 4), (12, 12, 12, 4))
        field = HexPlane(self.splats.means, sizes, 4, 8, torch.Generator().manual_seed(0))
        torch.nn.init.constant_(field.delta_xyz[2].weight, 0.05)
        return PlaneMotion(field, self.subject, self.splats, FRAMES)

    def refine(self, motion: Refinable, settings: SdsSettings, model: MVVDM | None = None) -> list[float]:
        guidance = VideoGuidance(model or self.model, "a cylinder sways", settings.guidance)
        return refine(motion, self.splats, self.subject, guidance, settings, 0, lambda step, total: None)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene()


def size(offsets: np.ndarray) -> float:
    return float(np.linalg.norm(offsets, axis=-1).mean())


def test_bones_start_from_the_motion_that_is_known(scene):
    motion = scene.bones()
    np.testing.assert_allclose(motion.offsets(), scene.offsets, atol=1e-6)
    vertices = torch.from_numpy(scene.poses[1:]).float()
    means, quats = scene.splats.follow(vertices, torch.from_numpy(scene.subject.faces).long())
    pose = motion.pose()
    torch.testing.assert_close(pose.means, means, atol=1e-5, rtol=0)
    assert torch.allclose((pose.quats * quats).sum(-1).abs(), torch.ones(()), atol=1e-5)


def test_bones_move_and_turn_what_hangs_on_them_rigidly(scene):
    motion = scene.bones()
    before = motion.pose()
    with torch.no_grad():
        motion.turns.copy_(torch.tensor([0.0, 0.0, 0.4]).expand_as(motion.turns))
        middle = motion.means.mean(dim=1, keepdim=True)
        turn = torch.tensor([[np.cos(0.4), -np.sin(0.4), 0], [np.sin(0.4), np.cos(0.4), 0], [0, 0, 1]]).float()
        motion.shifts.copy_((motion.centres - middle) @ turn.T - (motion.centres - middle))
    after = motion.pose()
    torch.testing.assert_close(after.means, (before.means - middle) @ turn.T + middle, atol=1e-5, rtol=0)
    half = torch.tensor([np.cos(0.2), 0, 0, np.sin(0.2)]).float()
    torch.testing.assert_close(after.quats, quaternion_product(half.expand_as(before.quats), before.quats))


def test_gaussians_without_a_mesh_turn_with_their_neighbours(scene):
    loose = replace(scene.splats, face=None, barycentric=None, offset=None)
    bound, free = scene.bones().pose(), BoneMotion(scene.subject, scene.offsets, loose, bones=6).pose()
    assert (bound.means - free.means).norm(dim=-1).mean() < 0.03
    assert (bound.quats * free.quats).sum(-1).abs().mean() > 0.98


@pytest.mark.parametrize("kind", ["bones", "planes"])
def test_a_model_that_wants_everything_to_stand_still_gets_it(scene, kind):
    motion = getattr(scene, kind)()
    before = motion.offsets()
    scene.refine(motion, replace(FEW, iterations=12, rgb_weight=0.0, mask_weight=0.0, sds_weight=1.0))
    after = motion.offsets()
    assert size(after) < 0.8 * size(before) and not after[0].any()


def test_the_views_of_the_start_hold_on_to_the_motion(scene):
    moved = []
    for weight in (0.0, 1e4):
        motion = scene.bones()
        scene.refine(motion, replace(FEW, iterations=8, rgb_weight=weight, mask_weight=weight))
        moved.append(size(motion.offsets() - scene.offsets))
    assert moved[1] < 0.5 * moved[0]


def test_the_first_frame_is_the_rest_pose_in_every_view(scene):
    pose = with_rest(scene.bones().pose(), scene.splats)
    views = draw(scene.splats, pose, scene.subject.condition_c2w, scene.subject.fovy, 24)
    still = draw(
        scene.splats,
        replace(pose, means=scene.splats.means[None], quats=scene.splats.quats[None]),
        scene.subject.condition_c2w,
        scene.subject.fovy,
        24,
    )
    assert torch.equal(views.rgb[:, :1], still.rgb) and not torch.equal(views.rgb[:, 1:2], still.rgb)
    assert views.for_model(3).shape == (4, FRAMES, 3, 24, 24) and views.for_model(4).shape == (4, FRAMES, 4, 24, 24)
    assert torch.allclose(views.for_model(3)[0, 0, :, 0, 0], torch.tensor(0.5))  # grey where nothing is


def test_smoothness_takes_the_shaking_out_of_the_corrections(scene):
    shaking = scene.bones()
    with torch.no_grad():
        shaking.shifts[1] += 0.1
    assert scene.bones().roughness() == 0.0 < shaking.roughness()


def test_numbers_that_are_none_are_said_in_a_sentence(scene):
    broken = tiny_model("position")
    torch.nn.init.constant_(broken.unet.conv_out.bias, float("nan"))
    broken.unet.requires_grad_(False)
    motion = scene.bones()
    with pytest.raises(UserError, match="no number"):
        scene.refine(motion, FEW, broken)
    np.testing.assert_allclose(motion.offsets(), scene.offsets, atol=1e-6)


def test_a_callback_that_raises_ends_the_stage(scene):
    class CancelledError(Exception):
        pass

    def cancel(step: int, total: int) -> None:
        assert (step, total) == (1, FEW.iterations)
        raise CancelledError

    guidance = VideoGuidance(scene.model, "a cylinder sways", FEW.guidance)
    with pytest.raises(CancelledError):
        refine(scene.bones(), scene.splats, scene.subject, guidance, FEW, 0, cancel)


def test_a_seed_means_the_same_motion(scene):
    found = []
    for _ in range(2):
        motion = scene.bones()
        scene.refine(motion, FEW)
        found.append(motion.offsets())
    assert np.array_equal(*found)


def test_as_many_pictures_at_once_as_fit_into_memory(scene):
    few, more = (pictures_at_once(scene.model, gb) for gb in (0.01, 0.1))
    assert pictures_at_once(scene.model, 0.0) == 1 and 1 < few < more


def test_a_field_comes_back_from_its_file(scene, tmp_path):
    field = scene.planes().field
    field.save(tmp_path / "field.npz")
    other = HexPlane(torch.zeros(0, 3), ((8, 8, 8, 4), (12, 12, 12, 4)), 4, 8)
    other.restore(tmp_path / "field.npz")
    times = torch.tensor([-0.5, 1.0])
    assert torch.equal(other.positions(field.anchors, times), field.positions(field.anchors, times))
    smaller = HexPlane(torch.zeros(0, 3), ((4, 4, 4, 4), (12, 12, 12, 4)), 4, 8)
    (tmp_path / "bad.npz").write_bytes(b"PK\3\4 nothing")
    for field, name in ((smaller, "field.npz"), (other, "bad.npz"), (other, "none.npz")):
        with pytest.raises(UserError):
            field.restore(tmp_path / name)


@pytest.mark.parametrize("road", ["rendering", "correspondence"])
def test_the_road_refines_what_was_fitted_and_goes_on_from_there(job: Path, monkeypatch, road):  # noqa: F811
    fit = replace(PAPER, road=road, iterations=2, image_size=32, max_gaussians=300,
                  resolutions=((8, 8, 8, 4),), channels=4)  # fmt: skip
    monkeypatch.setattr(steps, "SPLATS", 300)
    monkeypatch.setattr(jobs, "fit_preset", lambda name: fit)
    monkeypatch.setattr(jobs, "needs_gaussians", lambda name, appearance, surface: road == "rendering")
    sds = replace(FEW, iterations=2, max_gaussians=300)
    monkeypatch.setattr(jobs, "sds_settings", lambda preset: sds)
    replace(JobSettings.load(job), preset="paper").save(job)
    peak, models, seen = memory.PeakMemory(with_parent=False), jobs.Models(), []

    def run_here():
        seen.clear()
        return jobs.run_job(job, lambda *progress: seen.append(progress), models, peak, lambda kind, **what: None)

    report = run_here()
    assert list(report.seconds) == ["video", "matte", "splats", "motion", "refine"]
    assert ("refine", 0, 1) in seen and ("refine", 1, 2) in seen
    coarse, fine = Motion.load(job / "reconstruction"), Motion.load(job)
    assert coarse.offsets.shape == fine.offsets.shape and not np.array_equal(coarse.offsets, fine.offsets)
    assert (job / "reconstruction" / "field.npz").exists() == (road == "rendering")

    sds = replace(sds, iterations=3)  # the fit is taken over from the folder
    run_here()
    assert [name for name, step, _ in seen if step == 0] == ["refine"]
