"""The motions that the starter model learns: exact formulas in subject space, and the words people use for them.

A motion maps rest points and a phase to moved points. Phase 0 is the rest pose and phase 1 the rest pose again, so
every motion loops. Subject space: z up, the front looks along +x, left and right is y (see `backend.protocol`).
To add a motion: a function here, its words in `MOTIONS`, and a training run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

TAU = 2 * np.pi


@dataclass(frozen=True)
class Motion:
    """`move(points [V, 3], phase 0..1, strength) -> points [V, 3]`, and how it is said."""

    move: Callable[[np.ndarray, float, float], np.ndarray]
    verbs: tuple[str, ...]  # third person: "a robot <bounces>"
    gerunds: tuple[str, ...]  # "a robot is <bouncing>"


def _height(points: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Height above the lowest point in 0..1 [V, 1], the lowest z and the total height."""
    low, high = float(points[:, 2].min()), float(points[:, 2].max())
    total = max(high - low, 1e-6)
    return (points[:, 2:] - low) / total, low, total


def _rotate(points: np.ndarray, angle: np.ndarray, axis: int, centre: np.ndarray) -> np.ndarray:
    """Points [V, 3] turned by `angle` [V, 1] radians about a coordinate axis through `centre` [3]."""
    i, j = (axis + 1) % 3, (axis + 2) % 3
    p = points - centre
    cos, sin = np.cos(angle)[:, 0], np.sin(angle)[:, 0]
    out = p.copy()
    out[:, i], out[:, j] = cos * p[:, i] - sin * p[:, j], sin * p[:, i] + cos * p[:, j]
    return out + centre


def bounce(points: np.ndarray, phase: float, strength: float) -> np.ndarray:
    """Two hops."""
    return points + np.array([0.0, 0.0, 0.25 * strength * abs(np.sin(TAU * phase))])


def sway(points: np.ndarray, phase: float, strength: float) -> np.ndarray:
    """Bends to one side and the other, the foot stays."""
    height, low, _ = _height(points)
    return _rotate(points, 0.6 * strength * np.sin(TAU * phase) * height, 0, np.array([0.0, 0.0, low]))


def twist(points: np.ndarray, phase: float, strength: float) -> np.ndarray:
    """Turns about the vertical axis, the more the higher."""
    height, _, _ = _height(points)
    return _rotate(points, 1.2 * strength * np.sin(TAU * phase) * height, 2, np.zeros(3))


def stretch(points: np.ndarray, phase: float, strength: float) -> np.ndarray:
    """Grows taller and thinner, then shorter and wider, about the foot; the volume stays."""
    _, low, _ = _height(points)
    tall = 1.0 + 0.3 * strength * np.sin(TAU * phase)
    return np.array([0.0, 0.0, low]) + (points - [0.0, 0.0, low]) * [tall**-0.5, tall**-0.5, tall]


def nod(points: np.ndarray, phase: float, strength: float) -> np.ndarray:
    """Bows towards the front and comes back up."""
    height, low, _ = _height(points)
    angle = 0.8 * strength * 0.5 * (1 - np.cos(TAU * phase)) * height
    return _rotate(points, angle, 1, np.array([0.0, 0.0, low]))


MOTIONS: dict[str, Motion] = {
    "bounce": Motion(
        bounce,
        ("bounces", "bounces up and down", "hops", "hops up and down", "jumps", "jumps up and down",
         "bobs up and down"),
        ("bouncing", "bouncing up and down", "hopping", "jumping", "jumping up and down", "bobbing up and down"),
    ),
    "sway": Motion(
        sway,
        ("sways", "sways from side to side", "swings from side to side", "leans left and right", "sways in the wind",
         "bends from side to side"),
        ("swaying", "swaying from side to side", "swinging from side to side", "leaning left and right",
         "swaying in the wind"),
    ),
    "twist": Motion(
        twist,
        ("twists", "twists left and right", "twists around", "turns its top", "wrings itself", "twirls"),
        ("twisting", "twisting left and right", "twisting around", "turning its top", "twirling"),
    ),
    "stretch": Motion(
        stretch,
        ("stretches", "stretches and squashes", "squashes and stretches", "grows taller and shorter",
         "stretches up and squashes down"),
        ("stretching", "stretching and squashing", "squashing and stretching", "growing taller and shorter"),
    ),
    "nod": Motion(
        nod,
        ("nods", "bows", "bows forward", "bends forward", "takes a bow", "leans forward"),
        ("nodding", "bowing", "bowing forward", "bending forward", "taking a bow", "leaning forward"),
    ),
}  # fmt: skip


def animate(motion: str, points: np.ndarray, frames: int, strength: float) -> np.ndarray:
    """Trajectories [F, V, 3] of rest points [V, 3]; frame 0 is the rest pose, frame F would be it again."""
    move = MOTIONS[motion].move
    return np.stack([move(points, frame / frames, strength) for frame in range(frames)])
