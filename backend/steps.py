"""The road's stages, each from the job's files and the stage before to its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from backend import device as devices
from backend.motion.fit import fit_motion
from backend.motion.guidance import VideoGuidance, pictures_at_once
from backend.motion.hexplane import HexPlane
from backend.motion.matte import key_matte
from backend.motion.refinable import BoneMotion, PlaneMotion, Refinable
from backend.motion.render_fit import thin_out
from backend.motion.sds_fit import SdsSettings, refine
from backend.motion.settings import FitSettings
from backend.mv_vdm.pipeline import MVVDM
from backend.mv_vdm.resume import StepLog
from backend.mv_vdm.sampling import SamplerSettings
from backend.preview import FormingVideo
from backend.protocol import (
    JobSettings,
    Motion,
    Rig,
    SplatSource,
    Subject,
    UserError,
    Video,
    position_code,
    read_npz,
    write_npz,
)
from backend.splats.appearance import refine_shape, solve_colors
from backend.splats.frames import frame_path, write_frames
from backend.splats.gaussians import Gaussians, from_mesh
from backend.splats.ply import write_ply
from backend.splats.views import load_rows, open_source, thinned

Step = Callable[[int, int], None]  # step, steps

SPLATS = 20_000
DENOISED = "denoised"  # the steps of a video in the making
RECONSTRUCTION, FIELD = "reconstruction", "field.npz"  # what 4D-SDS starts from: a folder, and the field in it
# The share of free memory for the activations that the VAE's encoder keeps; the UNet runs after it.
ENCODER_SHARE = {"fast": 0.5, "balanced": 0.25, "low": 0.0}


def read_views(job: Path, subject: Subject, kind: str) -> np.ndarray:
    """Captured pictures of a kind (condition, position, appearance), [K, S, S, 4] uint8, straight alpha.

    Raises:
        UserError: a picture is missing, damaged, or of another size.
    """
    count = len(subject.appearance_c2w) if kind == "appearance" else len(subject.condition_c2w)
    size = subject.appearance_size if kind == "appearance" else subject.condition_size
    pictures = []
    for index in range(count):
        path = Subject.image_path(job, kind, index)
        try:
            with Image.open(path) as picture:
                pictures.append(np.asarray(picture.convert("RGBA")))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            raise UserError(f"The captured picture {path.name} can't be read.", "Start the job again.") from None
        if pictures[-1].shape != (size, size, 4):
            raise UserError(f"The captured picture {path.name} has the wrong size.", "Start the job again.")
    return np.stack(pictures)


def make_video(
    job: Path,
    subject: Subject,
    model: MVVDM,
    prompt: str,
    sampler: SamplerSettings,
    settings: JobSettings,
    step: Step,
    identity: str = "",
    tell: Callable[[Path], None] = lambda path: None,
) -> Video:
    """The multi-view video of the captured views; slow steps of a run that was broken off are taken over.

    identity: of the weights; `tell` gets the path of each look at the video while it forms. Raises `UserError` where
    the model can't make so many frames.
    """
    longest = model.unet.config.motion_max_seq_length
    if settings.frames > longest:
        raise UserError(f"These weights make at most {longest} frames.", "Ask for fewer frames.")
    appearance = model.info.appearance
    views = read_views(job, subject, "condition" if appearance == "color" else "position")
    forming = FormingVideo(job, appearance, model.decode, tell)
    looks = not model.mode.park_unused  # where memory is short, the decoder is not there meanwhile

    def after(done: int, total: int, clean: torch.Tensor) -> None:
        step(done, total)
        if looks:
            forming.step(done, total, clean)

    decides = (prompt, sampler, settings.seed, settings.frames, identity, model.device, model.dtype, model.mode)
    steps_before = StepLog.of(job / DENOISED, decides, views.tobytes())
    cameras, frames = subject.condition_c2w, settings.frames
    pictures = model.generate(prompt, views, cameras, sampler, settings.seed, after, frames, steps_before)
    forming.finish()
    return Video(pictures, appearance)


def make_matte(job: Path, subject: Subject, video: Video) -> np.ndarray:
    """The foreground of every frame, [4, F, H, W] float32 in 0..1, from frame 0's captured alpha."""
    height, width = video.frames.shape[2:4]
    views = read_views(job, subject, "condition" if video.appearance == "color" else "position")
    alpha = [
        np.asarray(Image.fromarray(view[..., 3]).resize((width, height), Image.Resampling.BOX), np.float32) / 255.0
        for view in views
    ]
    return key_matte(video.frames, np.stack(alpha))


def save_matte(matte: np.ndarray, job: Path) -> None:
    """`matte.npz`, in 8 bits."""
    write_npz(job / "matte.npz", alpha=np.round(255.0 * matte).astype(np.uint8))


def load_matte(job: Path) -> np.ndarray:
    """Raises `UserError` where the file is missing or damaged."""
    return read_npz(job / "matte.npz", ("alpha",))["alpha"].astype(np.float32) / 255.0


def make_motion(
    subject: Subject,
    video: Video,
    matte: np.ndarray,
    splats: Gaussians | None,
    fit: FitSettings,
    device: torch.device,
    step: Step,
    field_path: Path | None = None,
) -> Motion:
    """The offsets of all vertices in world units. Raises `UserError` where the fit finds no motion in the video.

    field_path: where to keep the field of a fit by rendering, for `load_field`.
    """

    def keep(field: HexPlane) -> None:
        if field_path is not None:
            field.save(field_path)

    return _in_world(fit_motion(subject, splats, video, matte, fit, device, step, keep), subject)


def _in_world(offsets: np.ndarray, subject: Subject) -> Motion:
    """The motion of offsets [F, V, 3] in subject space, which are overwritten."""
    for frame, moved in enumerate(offsets):  # one by one: there may be millions of Gaussians
        offsets[frame] = moved @ subject.to_world[:3, :3].T
    if not np.isfinite(offsets).all():
        raise UserError("No motion could be read off the generated video.", "Try another seed or another prompt.")
    return Motion(offsets.astype(np.float32, copy=False))


def refine_motion(
    subject: Subject,
    model: MVVDM,
    prompt: str,
    fitted: Motion | HexPlane,
    frames: int,
    splats: Gaussians,
    settings: SdsSettings,
    seed: int,
    step: Step,
) -> Motion:
    """A fitted motion after 4D-SDS: that of a HexPlane goes on, any other gets corrections on top.

    Raises:
        UserError: the model's answer is no number.
    """
    splats = thin_out(splats.to(model.device), settings.max_gaussians, seed)
    motion: Refinable
    if isinstance(fitted, HexPlane):
        motion = PlaneMotion(fitted, subject, splats, frames)
    else:
        to_subject = np.linalg.inv(subject.to_world[:3, :3]).T.astype(np.float32)
        motion = BoneMotion(subject, fitted.offsets @ to_subject, splats, settings.bones, settings.bone_part)
    devices.release_memory()
    free = ENCODER_SHARE[model.mode.name] * devices.free_memory_gb(model.device)
    batch = min(settings.guidance.encode_batch, pictures_at_once(model, free))
    guidance = VideoGuidance(model, prompt, replace(settings.guidance, encode_batch=batch))
    refine(motion, splats, subject, guidance, settings, seed, step)
    return _in_world(motion.offsets(), subject)


def load_field(path: Path, fit: FitSettings, device: torch.device) -> HexPlane:
    """A HexPlane that was kept. Raises `UserError` where the file is missing or damaged."""
    field = HexPlane(torch.zeros(0, 3, device=device), fit.resolutions, fit.channels, fit.hidden)
    field.restore(path)
    return field


def make_splats(job: Path, subject: Subject, appearance: str, seed: int, device: torch.device) -> Gaussians:
    """Gaussians on the mesh, in its colours or in its position code, with sizes that reproduce the silhouette."""
    if not len(subject.faces):
        return _own_splats(job, subject, appearance).to(device)
    vertices = torch.from_numpy(subject.vertices)
    gaussians = from_mesh(vertices, torch.from_numpy(subject.faces).long(), SPLATS, seed)
    kind = "appearance" if appearance == "color" else "position"
    cameras = subject.appearance_c2w if appearance == "color" else subject.condition_c2w
    images = torch.from_numpy(read_views(job, subject, kind)).float() / 255.0
    images = torch.cat([images[..., :3] * images[..., 3:], images[..., 3:]], dim=-1).to(device)
    c2w, gaussians = torch.from_numpy(cameras).float().to(device), gaussians.to(device)
    if appearance == "color":
        return solve_colors(gaussians, images, c2w, subject.fovy)
    code = position_code(gaussians.means.cpu().numpy(), *subject.box)
    return refine_shape(gaussians.with_colors(torch.from_numpy(code)), images, c2w, subject.fovy)


def _own_splats(job: Path, subject: Subject, appearance: str) -> Gaussians:
    """Some of the Gaussians that the job is about."""
    gaussians, _ = thinned(open_source(job), load_rows(job), subject.to_world, SPLATS)
    if appearance == "color":
        return gaussians
    return gaussians.with_colors(torch.from_numpy(position_code(gaussians.means.numpy(), *subject.box)))


def make_frames(job: Path, motion: Motion, rig: Rig, step: Step) -> int:
    """Writes the moving Gaussians, a file per frame; returns how many."""
    write_frames(job, open_source(job), load_rows(job), motion, rig, step)
    return len(motion.offsets)


def check_frames(job: Path, frames: int) -> int:
    """How many frames there are. Raises `UserError` where one is missing."""
    if not all(frame_path(job, frame).is_file() for frame in range(frames)):
        raise UserError("Frames of the moving Gaussians are missing.", "Start the job again.")
    return frames


def save_splats(gaussians: Gaussians, job: Path) -> None:
    """`splats.npz`, which remembers the triangles, and `splats.ply` for other programs."""
    values = {name: value for name, value in vars(gaussians).items() if value is not None}
    write_ply(job / "splats.ply", gaussians)
    write_npz(job / "splats.npz", **{name: value.detach().cpu().numpy() for name, value in values.items()})


def load_splats(job: Path) -> Gaussians:
    """Raises `UserError` where the file is missing or damaged."""
    names = tuple(field.name for field in fields(Gaussians))
    if SplatSource.path(job).exists():
        names = tuple(field.name for field in fields(Gaussians) if field.default is MISSING)  # bound to no mesh
    return Gaussians(**{name: torch.from_numpy(value) for name, value in read_npz(job / "splats.npz", names).items()})
