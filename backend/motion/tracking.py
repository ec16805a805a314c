"""A rig posed by a true-colour video: the surface is drawn in the colours of frame 0 and looked for in each frame.

Where patches of the drawn picture lie in the frame, and where its outline leaves the frame's, says where surface points
are seen; the solver of position-coded videos then poses the bones. Each frame starts a bit ahead of the one before.
Where the video is crisp, its pixels improve each pose, and at last all of them together (`pixels`); where not, all
frames are matched and solved together once more. All of it runs on the CPU, whatever the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backend import protocol
from backend.motion.bones import Rig, bone_affine
from backend.motion.correspondence import project
from backend.motion.evidence import Pose, between, bridged, mismatch, rest_pose
from backend.motion.graph import SurfaceGraph
from backend.motion.observations import Observations
from backend.motion.outline import outline_pulls
from backend.motion.patch_match import match_patches
from backend.motion.pictures import on_grey, resized
from backend.motion.pixels import PixelFit
from backend.motion.posing import heaviest, posed
from backend.motion.rig_fit import NormalEquations, noise_of
from backend.motion.stillness import drifted, only_drifts
from backend.motion.surface_views import EPSILON, FINE, Painter, drawn_mesh
from backend.motion.track_settings import Level, TrackSettings
from backend.motion.view_drift import estimate_drift, take_off_drift

STILL = 5e-4  # mismatch (see `evidence`) of a frame in which next to nothing has moved
GROWN = 0.03  # change of a part's volume from which it is not rigid
EVIDENCE = 128  # pixels at which poses are compared with frames


@dataclass(frozen=True)
class Matches:
    """Where surface points are seen in one frame; N of them."""

    view: np.ndarray  # [N] int
    sample: np.ndarray  # [N] int
    pixel: np.ndarray  # [N, 2] (x, y down)
    weight: np.ndarray  # [N], as many as pixels of a 64 pixel picture
    information: np.ndarray  # [N, 2, 2]: square root of how well each direction is known


class Tracker:
    """Poses of a rig through a video."""

    def __init__(
        self,
        subject: protocol.Subject,
        graph: SurfaceGraph,
        rig: Rig,
        samples: tuple[np.ndarray, np.ndarray],
        frames: np.ndarray,
        matte: np.ndarray,
        settings: TrackSettings,
    ) -> None:
        """samples [M, 3] on the rest surface, and their nodes [M]; frames [4, F, S, S, C] uint8; matte [4, F, S, S]."""
        self.subject, self.rig, self.settings, self.samples = subject, rig, settings, samples[0]
        self.pictures = {frames.shape[2]: on_grey(frames, matte)}
        self.largest, self.frames = frames.shape[2], frames.shape[1]
        points, faces, vertex = drawn_mesh(subject.vertices, subject.faces, subject.weld)
        self.points = points
        self.point_skin = heaviest(rig.weights(points, graph.owner[vertex]))
        self.sample_skin = heaviest(rig.weights(*samples))
        first = self.pictures[self.largest][0]
        self.painter = Painter(points, faces, subject.condition_c2w, subject.fovy, first)
        self.known = np.zeros(len(self.samples), bool)
        self.known[self._visible(self.samples, self.painter.depths, len(self.samples))[1]] = True
        self.pixel_fit = PixelFit(self.painter, rig, points, self.point_skin, settings.pixels)
        self.crisp = False  # until a frame shows it
        self.error_of_crisp = settings.rendered if frames.shape[-1] == 4 else settings.crisp
        self.bias: dict[tuple[int, float], np.ndarray] = {}
        at_rest = self.painter.draw(self.points, EVIDENCE)[0]
        away = np.array([mismatch(at_rest, wanted) for wanted in self._picture(EVIDENCE)])
        self.floor, self.still = away[0], away - away[0]  # [F]: `_excess` of standing still

    def run(self, step_done: Callable[[], None], whole_parts: Callable[[], Pose | None] = lambda: None) -> Pose:
        """Rotations [F, B, 3, 3] and translations [F, B, 3] of the bones; frame 0 is the rest.

        `step_done` is called for each frame, there and back, and each joint round; it raises to end the fit.
        whole_parts: called once, where a frame is not explained, for poses of all frames to start from (or None);
        they are the result where bones of their own explain the video hardly better.
        """
        poses, other = [rest_pose(len(self.rig.centres))], None
        for frame in range(1, self.frames):
            ahead = between(*poses[-2:], 1.0 + self.settings.ahead) if frame > 1 else poses[0]
            pose = self._follow(frame, ahead, self.settings.levels)
            if frame == 1:
                self.crisp = self._is_crisp(pose)
            if other is None and not self._explained(frame, pose):
                other = whole_parts() or ()
                if other and self._enough(other):
                    return self._upheld(other)
            # Not before: pixel by pixel, bones of their own can make a wrong part look explained.
            if other is not None or self.rig.part.max() == 0:
                pose = self._improved(frame, pose)
            if other:
                pose = self._better(frame, pose, (other[0][frame], other[1][frame]), self.settings.levels)
            poses.append(self._better(frame, pose, poses[0]))
            step_done()
        poses = self._backwards(poses, step_done)
        return self._upheld(self._jointly(*(torch.stack(part) for part in zip(*poses, strict=True)), step_done))

    def _backwards(self, poses: list[Pose], step_done: Callable[[], None]) -> list[Pose]:
        """The poses, or from some frame on those followed from the last frame, where these explain clearly more.

        From one limb in another's place follows the next; what comes from the other side does not share the mistake.
        """
        found = np.array([self._excess(frame, pose) for frame, pose in enumerate(poses)])
        wrong = found > np.maximum(STILL, self.settings.explained * self.still)
        wrong[-1] = False  # it is what the others are followed from
        others, there, hopeful = list(poses), found.copy(), True
        for frame in range(self.frames - 2, 0, -1):
            if hopeful and wrong[: frame + 1].any():
                far = others[min(frame + 2, self.frames - 1)]
                ahead = between(far, others[frame + 1], 1.0 + self.settings.ahead)
                others[frame] = self._improved(frame, self._follow(frame, ahead, self.settings.levels))
                there[frame] = self._excess(frame, others[frame])
                # Right where it comes to the first wrong frames, it has to be the better one.
                passed = wrong & (np.arange(self.frames) >= frame)
                hopeful = there[passed].sum() <= self.settings.clearly * found[passed].sum()
            step_done()
        first = int((found - there)[::-1].cumsum()[::-1].argmax())  # from where on the others gain most
        if there[first:].sum() < self.settings.clearly * found[first:].sum():
            return poses[:first] + others[first:]
        return poses

    def _is_crisp(self, pose: Pose) -> bool:
        """Whether the video's frame 1, in its pose, has the surface's colours where patches of them are found.

        Blur, noise and drifting views, as of generated videos, would be followed pixel by pixel.
        """
        turns, shifts = (torch.stack(pair) for pair in zip(rest_pose(len(pose[0])), pose, strict=True))
        seen = self._observe(turns, shifts, [1], self.settings.joint[0])
        return noise_of(self.rig, seen, turns, shifts, self.error_of_crisp) == 1.0

    def _improved(self, frame: int, pose: Pose) -> Pose:
        """The pose [B, 3, 3], [B, 3] of a frame, by its pixels where the video is crisp."""
        if not self.crisp:
            return pose
        turns, shifts = (torch.stack(pair) for pair in zip(rest_pose(len(pose[0])), pose, strict=True))
        rounds = self.settings.each
        turns, shifts = self.pixel_fit.improve(
            turns, shifts, lambda size: self._picture(size)[frame : frame + 1], rounds
        )
        return turns[1], shifts[1]

    def _jointly(self, turns: Tensor, shifts: Tensor, step_done: Callable[[], None]) -> Pose:
        """All frames together: by their pixels, or matched and solved."""
        if self.crisp:
            rounds = self.settings.whole_video
            return self.pixel_fit.improve(turns, shifts, lambda size: self._picture(size)[1:], rounds, step_done)
        drift = torch.zeros(self.frames - 1, len(self.painter.w2c), 3)
        for level in self.settings.joint:
            seen = self._observe(turns, shifts, range(1, self.frames), level)
            # Only now: while a limb is in the wrong place, what it misses would count as drift.
            drift = estimate_drift(self.rig, seen, turns, shifts, drift, level.robust)
            turns, shifts = self._solve(take_off_drift(seen, drift), turns, shifts, level)
            step_done()
        return turns, shifts

    def _enough(self, poses: Pose) -> bool:
        """Whether poses of whole parts explain the video, and about as well as what the bones find from there."""
        still, whole, free = 0.0, 0.0, 0.0
        # Pixel by pixel, bones can imitate what grows.
        rigid = bool((torch.linalg.det(poses[0]) - 1.0).abs().max() < GROWN)
        for frame in sorted({max(share * self.frames // 4, 1) for share in (1, 2, 3)}):
            pose = poses[0][frame], poses[1][frame]
            still += self.still[frame]
            whole += self._excess(frame, pose)
            bones = self._follow(frame, pose, self.settings.levels)
            free += self._excess(frame, self._improved(frame, bones) if rigid else bones)
        return whole < self.settings.whole * still and self.settings.clearly * whole < free

    def _explained(self, frame: int, pose: Pose) -> bool:
        """Whether no other start need be tried."""
        still = self.still[frame]
        return bool(still < STILL or self._excess(frame, pose) < self.settings.explained * still)

    def _better(self, frame: int, pose: Pose, start: Pose, levels: tuple[Level, ...] = ()) -> Pose:
        """The pose, or what the frame leads to from another start where that explains it clearly better.

        Only clearly: where all is of one colour, a leg in the other's place looks about as good.
        """
        if self._explained(frame, pose):
            return pose
        other = self._improved(frame, self._follow(frame, start, levels or self.settings.wide + self.settings.levels))
        here = self._excess(frame, pose)
        return other if self._excess(frame, other) < self.settings.clearly * here else pose

    def _upheld(self, poses: Pose) -> Pose:
        """The poses; frames that these explain no better than standing still does are bridged, or stand still."""
        rest, still = rest_pose(len(self.rig.centres)), self.still
        found = np.array([self._excess(frame, (poses[0][frame], poses[1][frame])) for frame in range(self.frames)])
        if found.sum() > self.settings.doubtful * still.sum() and only_drifts(still, found, self._drifting()):
            return tuple(part.expand(self.frames, *part.shape).clone() for part in rest)
        good = found < self.settings.upheld * still
        good[0] = True
        turns, shifts = bridged(poses, good)
        for frame in np.flatnonzero(~good):
            if self._excess(frame, (turns[frame], shifts[frame])) > still[frame]:
                turns[frame], shifts[frame] = rest
        return turns, shifts

    def _drifting(self) -> np.ndarray:
        """`_excess` [F] of standing still in views that drift as each frame suggests."""
        turns, shifts = (part.expand(self.frames, *part.shape) for part in rest_pose(len(self.rig.centres)))
        level = Level(EVIDENCE, 4, 0.1, 0.1)
        seen = self._observe(turns, shifts, range(1, self.frames), level)
        drift = torch.zeros(self.frames - 1, len(self.painter.w2c), 3)
        drift = estimate_drift(self.rig, seen, turns, shifts, drift, level.robust)
        drawn, focal = self.painter.draw(self.points, EVIDENCE)[0], self.painter.focal(EVIDENCE)
        wanted = self._picture(EVIDENCE)
        away = [mismatch(drifted(drawn, drift[k - 1], focal), wanted[k]) for k in range(1, self.frames)]
        return np.array([0.0, *(one - self.floor for one in away)])

    def _excess(self, frame: int, pose: Pose) -> float:
        """By how much a pose fails to explain a frame, beyond what the rest fails to explain of frame 0."""
        drawn, _ = self.painter.draw(self._posed(pose[0][None], pose[1][None])[0], EVIDENCE)
        return mismatch(drawn, self._picture(EVIDENCE)[frame]) - self.floor

    def _posed(self, turns: Tensor, shifts: Tensor) -> np.ndarray:
        """The drawn points [T, P, 3] in poses [T, ...]."""
        affine = bone_affine(self.rig.centres, turns, shifts).numpy().astype(np.float64)
        return posed(self.points, self.point_skin, affine)

    def _follow(self, frame: int, pose: Pose, levels: tuple[Level, ...]) -> Pose:
        """The pose [B, 3, 3], [B, 3] of a frame from one near it."""
        rest = rest_pose(len(pose[0]))
        turns, shifts = (torch.stack(pair) for pair in zip(rest, pose, strict=True))
        since = turns[1:], shifts[1:]
        for level in levels:
            seen = self._observe(turns, shifts, [frame], level)
            turns, shifts = self._solve(seen, turns, shifts, level, since)
        return turns[1], shifts[1]

    def _solve(
        self,
        seen: Observations,
        turns: Tensor,
        shifts: Tensor,
        level: Level,
        since: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Poses [1 + T, ...], the rest first, after a few Gauss-Newton steps; `since`: joints rather stay as there."""
        options = self.settings
        noise = noise_of(self.rig, seen, turns, shifts, options.clean) if since is None else 1.0
        for _ in range(level.steps):
            system = NormalEquations(self.rig, turns, shifts)
            system.add_pixels(seen, level.robust)
            loose = min(level.stiffness, options.loose)
            if since is None:
                system.add_links(level.stiffness * noise, loose * noise, yields=options.yields)
                system.add_time(options.temporal * noise**0.5)
            else:
                system.add_links(options.rest, options.rest, yields=options.tears)
                system.add_links(level.stiffness, loose, since, options.tears)
            system.add_prior(options.prior)
            turns, shifts = system.moved()
        return turns, shifts

    def _observe(self, turns: Tensor, shifts: Tensor, frames: range | list[int], level: Level) -> Observations:
        """Matches of the frames whose poses are turns[1:], shifts[1:]."""
        affine = bone_affine(self.rig.centres, turns[1:], shifts[1:]).numpy().astype(np.float64)
        found = [self._match(affine[k], frame, level) for k, frame in enumerate(frames)]
        frame = torch.from_numpy(np.repeat(np.arange(len(found)), [len(matches.view) for matches in found]))
        view, sample, pixel, weight, information = (
            np.concatenate([getattr(matches, name) for matches in found])
            for name in ("view", "sample", "pixel", "weight", "information")
        )
        information = information * np.array([[1.0, -1.0], [-1.0, 1.0]])  # y runs up in the camera
        make = {"dtype": self.rig.centres.dtype}
        weights, bones = self.sample_skin
        return Observations(
            frame,
            torch.tensor(self.samples[sample], **make),
            torch.from_numpy(bones[sample]),
            torch.tensor(weights[sample], **make),
            torch.from_numpy(view),
            torch.tensor(self.painter.w2c[view, :3], **make),
            torch.tensor((pixel - 0.5 * level.size) * [1.0, -1.0] / self.painter.focal(level.size), **make),
            torch.tensor(weight, **make),
            torch.tensor(information, **make),
        )

    def _match(self, affine: np.ndarray, frame: int, level: Level) -> Matches:
        """affine [B, 3, 4]: the pose that is drawn."""
        size, options = level.size, self.settings
        image, depth = self.painter.draw(posed(self.points, self.point_skin, affine[None])[0], size)
        target = self._picture(size)[frame]
        view, sample, where = self._visible(
            posed(self.samples, self.sample_skin, affine[None])[0], depth, options.queries
        )
        moved, cost, information = match_patches(
            image, target, view, where, options.radius, level.reach, options.keep, level.edge
        )
        moved -= self._still(size, level.edge)[view, sample]
        area = (image[..., 3] > 0.5).sum(axis=(1, 2)) * (64 / size) ** 2
        weight = (area / np.maximum(np.bincount(view, minlength=len(area)), 1))[view] / (1 + cost / options.tolerance)
        weight *= np.where(self.known[sample], 1.0, options.guessed)
        near, move = outline_pulls(image[..., 3], target[..., 3], view, where, options.outline_reach * size)
        unit = move / np.linalg.norm(move, axis=1, keepdims=True)
        return Matches(
            np.concatenate([view, view[near]]),
            np.concatenate([sample, sample[near]]),
            np.concatenate([where + moved, where[near] + move]),
            np.concatenate([weight, np.full(len(near), options.outline * (64 / size) ** 2)]),
            np.concatenate([information, unit[:, :, None] * unit[:, None]]),
        )

    def _still(self, size: int, edge: float) -> np.ndarray:
        """What matching finds at rest in frame 0, where nothing has moved, [4, M, 2]: taken off everywhere."""
        if (size, edge) not in self.bias:
            self.bias[size, edge] = np.zeros((len(self.painter.w2c), len(self.samples), 2))
            image, depth = self.painter.draw(self.points, size)
            view, sample, where = self._visible(self.samples, depth, len(self.samples))
            options = self.settings
            moved, _, information = match_patches(
                image, self._picture(size)[0], view, where, options.radius, 1, options.keep, edge
            )
            self.bias[size, edge][view, sample] = (information @ moved[..., None])[..., 0]
        return self.bias[size, edge]

    def _visible(self, points: np.ndarray, depth: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """View [N], sample [N] and pixel [N, 2] of the points [M, 3] that depths [4, S, S] show; `limit` per view."""
        fine = depth.shape[1]
        found = []
        for view, c2w in enumerate(self.subject.condition_c2w):
            where, away = project(points, c2w, self.subject.fovy, fine)
            x, y = np.floor(where).astype(np.int64).T
            inside = (x >= FINE) & (y >= FINE) & (x < fine - FINE) & (y < fine - FINE)
            inside[inside] &= away[inside] < depth[view, y[inside], x[inside]] + EPSILON
            seen = np.flatnonzero(inside)
            if len(seen) > limit:
                seen = seen[np.linspace(0, len(seen) - 1, limit).astype(np.int64)]
            found.append((np.full(len(seen), view), seen, where[seen] / FINE))
        view, sample, where = (np.concatenate(part) for part in zip(*found, strict=True))
        return view, sample, where

    def _picture(self, size: int) -> np.ndarray:
        """The video [F, 4, s, s, 4] at a size."""
        if size not in self.pictures:
            self.pictures[size] = resized(self.pictures[self.largest], size)
        return self.pictures[size]
