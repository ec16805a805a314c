"""The motion stage: which road a video takes, and the offsets of all vertices that come out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from backend import protocol
from backend.motion.bones import CHUNK, RigField, build_rig
from backend.motion.correspondence import find_correspondences, straight_colours
from backend.motion.evidence import Pose
from backend.motion.fields import frame_times
from backend.motion.graph import SurfaceGraph, build_graph, nearest_owner, sample_surface
from backend.motion.growth import GrowingField
from backend.motion.hexplane import HexPlane
from backend.motion.hidden import followed_nodes
from backend.motion.observations import observe
from backend.motion.render_fit import fit_by_rendering
from backend.motion.rig_fit import fit_rig
from backend.motion.settings import FitSettings, preset
from backend.motion.start import start_poses
from backend.motion.swings import PartTracker, parts_of_bones
from backend.motion.tracking import Tracker
from backend.splats.gaussians import Gaussians

Progress = Callable[[int, int], None]  # step, steps; raises to end the fit


def fit_video(
    subject: protocol.Subject,
    gaussians: Gaussians | None,
    video: protocol.Video,
    matte: np.ndarray,
    preset_name: str,
    device: torch.device,
    callback: Progress,
) -> np.ndarray:
    """The motion stage by preset; matte [4, F, H, W] -> offsets [F, V, 3] in subject space, frame 0 exactly zero.

    Draft and standard solve position-coded videos by correspondences, track the surface in others, and render only
    for Gaussians without a surface; `paper` is the paper, whatever the video shows. The Gaussians must have the
    video's colours; only rendering needs any.
    """
    return fit_motion(subject, gaussians, video, matte, preset(preset_name), device, callback)


def needs_gaussians(preset_name: str, appearance: str, surface: bool = True) -> bool:
    """Whether `fit_video` will render; `surface`: the subject has faces."""
    return road_of(preset(preset_name), appearance, surface) == "rendering"


def road_of(settings: FitSettings, appearance: str, surface: bool) -> str:
    """Which way a video takes: correspondence | tracking | rendering."""
    if settings.road != "auto":
        return settings.road
    if appearance == "position":
        return "correspondence"
    return "tracking" if surface else "rendering"


def fit_motion(
    subject: protocol.Subject,
    gaussians: Gaussians | None,
    video: protocol.Video,
    matte: np.ndarray,
    settings: FitSettings,
    device: torch.device,
    callback: Progress,
    keep: Callable[[HexPlane], None] = lambda field: None,
) -> np.ndarray:
    """The same with any settings -> offsets [F, V, 3] float32. `keep` gets the fitted HexPlane where there is one."""
    frames = video.frames.shape[1]
    if frames < 2:
        return np.zeros((frames, len(subject.vertices), 3), np.float32)
    road = road_of(settings, video.appearance, len(subject.faces) > 0)
    if road != "rendering":
        if road == "tracking":
            field = fit_by_tracking(subject, video.frames, matte, settings, callback)
        else:
            field = fit_by_correspondence(subject, video.frames, matte, settings, device, callback)
        owner = field.rig.graph.owner
        return read_offsets(lambda points, part, times: field.positions(points, owner[part], times), subject, frames)
    field, _ = fit_by_rendering(subject, gaussians, video.frames, matte, settings, device, callback)
    keep(field)
    anchor = field.anchors.device
    return read_offsets(lambda points, _, times: field.positions(points.to(anchor), times.to(anchor)), subject, frames)


def fit_by_correspondence(
    subject: protocol.Subject,
    frames: np.ndarray,
    matte: np.ndarray,
    settings: FitSettings,
    device: torch.device,
    callback: Progress,
) -> RigField:
    """A rig posed by the pixels of a position-coded video: frames [4, F, H, W, C] uint8, matte [4, F, H, W]."""
    options = settings.rig
    steps = 2 + options.steps * len(options.stiffness)
    graph = build_graph(subject.vertices, subject.faces, subject.weld)
    samples, node = _rest_samples(subject, graph, options.samples)
    follows = followed_nodes(subject, graph, samples, node)
    rig = build_rig(graph, options.bones, options.large_part, device, options.joints, follows)
    callback(1, steps)
    found = find_correspondences(
        straight_colours(frames, matte),
        matte,
        samples,
        subject.box,
        subject.condition_c2w,
        subject.fovy,
        options.code_threshold,
    )
    skin = rig.weights(samples, nearest_owner(graph, samples))  # a pixel's code can't tell pieces apart either
    seen = observe(found, samples, skin, subject.condition_c2w, subject.fovy, options.max_per_frame)
    done = 2
    callback(done, steps)

    def step_done() -> None:
        nonlocal done
        done += 1
        callback(done, steps)

    return RigField(rig, *fit_rig(rig, seen, start_poses(rig, seen, frames.shape[1]), options, step_done))


def fit_by_tracking(
    subject: protocol.Subject, frames: np.ndarray, matte: np.ndarray, settings: FitSettings, callback: Progress
) -> RigField:
    """A rig posed by a true-colour video, on the CPU: frames [4, F, H, W, C] uint8, matte [4, F, H, W]."""
    options = settings.track
    at_last = max(len(options.joint), sum(part.steps for part in options.whole_video))
    steps = 2 * frames.shape[1] - 2 + at_last
    graph = build_graph(subject.vertices, subject.faces, subject.weld)
    samples = _rest_samples(subject, graph, options.samples)
    follows = followed_nodes(subject, graph, *samples)
    rig = build_rig(graph, options.bones, options.large_part, torch.device("cpu"), options.joints, follows)
    samples = tuple(field[follows[samples[1]] == samples[1]] for field in samples)  # nobody knows the others' colours
    given = (subject, graph, rig, samples, frames, matte, options)
    done = 1
    callback(done, steps)

    def step_done() -> None:
        nonlocal done
        done += 1
        callback(done, steps)

    parts: list[PartTracker] = []

    def whole_parts() -> Pose | None:
        nonlocal steps
        part_of_bone = parts_of_bones(rig, samples)
        if part_of_bone is None:
            return None
        parts.append(PartTracker(*given, part_of_bone))
        steps += 2 * frames.shape[1] - 3 + len(options.joint)
        return parts[0].run(step_done)

    poses = Tracker(*given).run(step_done, whole_parts)
    if parts and parts[0].stretching:
        return GrowingField(rig, poses, parts[0].part_of_bone, parts[0].axes)
    return RigField(rig, *poses)


def _rest_samples(subject: protocol.Subject, graph: SurfaceGraph, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points [M, 3] float64 all over the rest surface (the vertices where there are no faces), and their nodes [M]."""
    if not len(subject.faces):
        chosen = np.random.default_rng(0).permutation(len(subject.vertices))[:count]
        return subject.vertices[chosen].astype(np.float64), graph.owner[chosen]
    face, barycentric = sample_surface(subject.vertices, subject.faces, count)
    samples = (barycentric[..., None] * subject.vertices[subject.faces[face]].astype(np.float64)).sum(axis=1)
    component = graph.component[graph.owner[subject.faces[face, 0]]]
    return samples, nearest_owner(graph, samples, component)


def read_offsets(
    positions: Callable[[torch.Tensor, slice, torch.Tensor], torch.Tensor], subject: protocol.Subject, frames: int
) -> np.ndarray:
    """Offsets [F, V, 3] float32 of all vertices from (points [N, 3], which, times [T]) -> [T, N, 3], in chunks."""
    offsets = np.zeros((frames, len(subject.vertices), 3), np.float32)
    times = frame_times(frames)[1:]
    for start in range(0, len(subject.vertices), CHUNK):
        part = slice(start, start + CHUNK)
        rest = torch.from_numpy(subject.vertices[part])
        with torch.no_grad():
            offsets[1:, part] = (positions(rest, part, times).cpu() - rest).numpy()
    return offsets
