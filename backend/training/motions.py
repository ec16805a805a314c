"""The motions that the starter model learns: exact formulas in subject space, and the words people use for them.

A motion maps rest points and a phase to moved points. Phase 0 is the rest pose and phase 1 the rest pose again, so
every motion loops. Subject space: z up, the front looks along +x, left and right is y (see `backend.protocol`).
Each is a formula of the place alone, so any object can perform it: what lies low and to the left walks as a left leg.
To add a motion: a function here, its words in `MOTIONS`, and a training run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

TAU = 2 * np.pi

# How the phase runs over a clip 0..1. All start at rest.
TIMINGS: dict[str, Callable[[float], float]] = {
    "loop": lambda time: time,
    "quick": lambda time: 2 * time % 1.0,
    "once": lambda time: min(2 * time, 1.0),  # and stands still afterwards
}


@dataclass(frozen=True)
class Motion:
    """`move(points [V, 3], phase 0..1, strength) -> points [V, 3]`, and how it is said."""

    move: Callable[[np.ndarray, float, float], np.ndarray]
    verbs: tuple[str, ...]  # third person: "a robot <bounces>"
    gerunds: tuple[str, ...]  # "a robot is <bouncing>"
    unseen: tuple[str, ...]  # said in third person, in known words, and kept out of training: for measuring


def _height(points: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Height above the lowest point in 0..1 [V, 1], the lowest z and the total height."""
    low, high = float(points[:, 2].min()), float(points[:, 2].max())
    total = max(high - low, 1e-6)
    return (points[:, 2:] - low) / total, low, total


def _along(points: np.ndarray) -> np.ndarray:
    """Place between the rear end 0 and the front end 1 [V]."""
    x = points[:, 0]
    return (x - x.min()) / max(float(np.ptp(x)), 1e-6)


def _smoothstep(value: np.ndarray, start: float, end: float) -> np.ndarray:
    """0 up to `start`, 1 from `end` on, smooth between; `end` may be the smaller one."""
    t = np.clip((value - start) / (end - start), 0.0, 1.0)
    return t * t * (3 - 2 * t)


def _rotate(points: np.ndarray, angle: np.ndarray, axis: int, centre: np.ndarray) -> np.ndarray:
    """Points [V, 3] turned by `angle` [V, 1] radians about a coordinate axis through `centre` [3] or [V, 3]."""
    i, j = (axis + 1) % 3, (axis + 2) % 3
    p = points - centre
    cos, sin = np.cos(angle)[:, 0], np.sin(angle)[:, 0]
    out = p.copy()
    out[:, i], out[:, j] = cos * p[:, i] - sin * p[:, j], sin * p[:, i] + cos * p[:, j]
    return out + centre


def _scale_about_foot(points: np.ndarray, wide: float, tall: float) -> np.ndarray:
    foot = np.array([0.0, 0.0, points[:, 2].min()])
    return foot + (points - foot) * [wide, wide, tall]


def _travelling(place: np.ndarray, phase: float) -> np.ndarray:
    """A wave that travels towards smaller `place` [V], less its own start, so that phase 0 is rest: -2..2."""
    return np.sin(TAU * (place + phase)) - np.sin(TAU * place)


def bounce(points: np.ndarray, phase: float, strength: float) -> np.ndarray:
    """Two hops."""
    return points + np.array([0.0, 0.0, 0.25 * strength * abs(np.sin(TAU * phase))])


def jump(points: np.ndarray, phase: float, strength: float) -> np.ndarray:
    """Crouches, leaps once, lands in a crouch and stands up."""
    crouched = np.sin(np.pi * phase / 0.3) if phase < 0.3 else np.sin(np.pi * (phase - 0.7) / 0.3)
    in_air = 0.3 <= phase <= 0.7
    flight = np.sin(np.pi * (phase - 0.3) / 0.4) if in_air else 0.0
    tall = 1.0 - 0.3 * strength * (0.0 if in_air else crouched)
    lift = np.array([0.0, 0.0, 0.4 * strength * flight])
    return _scale_about_foot(points, tall**-0.5, tall) + lift


def sway(points: np.ndarray, phase: float, strength: float) -> np.ndarray:
    """Bends to one side and the other, the foot stays."""
    height, low, _ = _height(points)
    return _rotate(points, 0.6 * strength * np.sin(TAU * phase) * height, 0, np.array([0.0, 0.0, low]))


def rock(points: np.ndarray, phase: float, strength: float) -> np.ndarray:
    """Tips backward and forward as one rigid piece, like a rocking chair."""
    angle = np.full((len(points), 1), -0.4 * strength * np.sin(TAU * phase))
    return _rotate(points, angle, 1, np.array([0.0, 0.0, points[:, 2].min()]))


def twist(points: np.ndarray, phase: float, strength: float) -> np.ndarray:
    """Turns about the vertical axis to one side and the other, the more the higher."""
    height, _, _ = _height(points)
    return _rotate(points, 0.9 * strength * np.sin(TAU * phase) * height, 2, np.zeros(3))


def spin(points: np.ndarray, phase: float, strength: float) -> np.ndarray:
    """One whole turn about the vertical axis, whatever the strength."""
    return _rotate(points, np.full((len(points), 1), TAU * phase), 2, np.zeros(3))


def stretch(points: np.ndarray, phase: float, strength: float) -> np.ndarray:
    """Grows taller and thinner, then shorter and wider, about the foot; the volume stays."""
    tall = 1.0 + 0.3 * strength * np.sin(TAU * phase)
    return _scale_about_foot(points, tall**-0.5, tall)


def swell(points: np.ndarray, phase: float, strength: float) -> np.ndarray:
    """Grows in all directions and shrinks back, about the foot."""
    size = 1.0 + 0.3 * strength * 0.5 * (1 - np.cos(TAU * phase))
    return _scale_about_foot(points, size, size)


def nod(points: np.ndarray, phase: float, strength: float) -> np.ndarray:
    """Bows towards the front and comes back up."""
    height, low, _ = _height(points)
    angle = 0.8 * strength * 0.5 * (1 - np.cos(TAU * phase)) * height
    return _rotate(points, angle, 1, np.array([0.0, 0.0, low]))


def wave(points: np.ndarray, phase: float, strength: float) -> np.ndarray:
    """Up and down in a wave that travels from the front to the rear."""
    out = points.copy()
    out[:, 2] += 0.08 * strength * _travelling(_along(points), phase)
    return out


def swim(points: np.ndarray, phase: float, strength: float) -> np.ndarray:
    """Left and right in a wave that travels from the front to the rear and grows towards the tail."""
    out, place = points.copy(), _along(points)
    out[:, 1] += 0.12 * strength * (1.2 - place) * _travelling(place, phase)
    return out


def flap(points: np.ndarray, phase: float, strength: float) -> np.ndarray:
    """Both sides beat up and down twice, about a hinge beside the middle."""
    side = np.sign(points[:, 1])
    hinge = 0.2 * np.abs(points[:, 1]).max()
    weight = _smoothstep(np.abs(points[:, 1]), 0.5 * hinge, 1.5 * hinge)
    angle = 0.7 * strength * np.sin(2 * TAU * phase) * weight * side
    centre = np.zeros_like(points)
    centre[:, 1] = side * hinge
    centre[:, 2] = points[:, 2].mean()
    return _rotate(points, angle[:, None], 0, centre)


def shake(points: np.ndarray, phase: float, strength: float) -> np.ndarray:
    """Jerks left and right, twice as often as anything else moves."""
    return points + np.array([0.0, 0.12 * strength * np.sin(2 * TAU * phase), 0.0])


def hinge_open(points: np.ndarray, phase: float, strength: float) -> np.ndarray:
    """The upper part opens like a lid, or a mouth, about its rear edge, and closes."""
    height, low, total = _height(points)
    weight = _smoothstep(height, 0.55, 0.65)
    angle = -0.8 * strength * 0.5 * (1 - np.cos(TAU * phase)) * weight
    return _rotate(points, angle, 1, np.array([points[:, 0].min(), 0.0, low + 0.6 * total]))


def walk(points: np.ndarray, phase: float, strength: float) -> np.ndarray:
    """In place: below the hip the left side swings forward while the right one swings back, and so on."""
    height, low, total = _height(points)
    weight = _smoothstep(height[:, 0], 0.55, 0.25)
    side = np.tanh(points[:, 1] / (0.1 * max(float(np.abs(points[:, 1]).max()), 1e-6)))
    angle = -0.7 * strength * np.sin(TAU * phase) * weight * side
    return _rotate(points, angle[:, None], 1, np.array([0.0, 0.0, low + 0.5 * total]))


MOTIONS: dict[str, Motion] = {
    "bounce": Motion(
        bounce,
        ("bounces", "bounces up and down", "hops", "hops up and down", "bobs up and down", "bounces on the spot"),
        ("bouncing", "bouncing up and down", "hopping", "hopping up and down", "bobbing up and down"),
        ("hops on the spot", "bounces and hops"),
    ),
    "sway": Motion(
        sway,
        ("sways", "sways from side to side", "swings from side to side", "leans left and right", "sways in the wind",
         "bends from side to side"),
        ("swaying", "swaying from side to side", "swinging from side to side", "leaning left and right",
         "swaying in the wind"),
        ("sways left and right", "swings left and right in the wind"),
    ),
    "twist": Motion(
        twist,
        ("twists", "twists left and right", "twists around", "turns its top", "wrings itself", "twists its body"),
        ("twisting", "twisting left and right", "twisting around", "turning its top", "twisting its body"),
        ("twists its top left and right", "twists itself"),
    ),
    "spin": Motion(
        spin,
        ("spins", "spins around", "rotates", "turns around", "spins like a top", "turns in a circle", "rotates slowly"),
        ("spinning", "spinning around", "rotating", "turning around", "spinning like a top"),
        ("rotates in a circle", "spins on the spot"),
    ),
    "stretch": Motion(
        stretch,
        ("stretches", "stretches and squashes", "squashes and stretches", "grows taller and shorter",
         "stretches up and squashes down"),
        ("stretching", "stretching and squashing", "squashing and stretching", "growing taller and shorter"),
        ("stretches taller and squashes", "squashes down and stretches up"),
    ),
    "nod": Motion(
        nod,
        ("nods", "bows", "bows forward", "bends forward", "takes a bow", "leans forward"),
        ("nodding", "bowing", "bowing forward", "bending forward", "taking a bow", "leaning forward"),
        ("nods forward", "bows down"),
    ),
    "jump": Motion(
        jump,
        ("jumps", "jumps high", "leaps", "leaps into the air", "jumps into the air", "crouches and jumps"),
        ("jumping", "jumping high", "leaping", "leaping into the air", "jumping into the air"),
        ("leaps high", "crouches and leaps into the air"),
    ),
    "rock": Motion(
        rock,
        ("rocks", "rocks back and forth", "rocks like a chair", "tips back and forth", "tilts back and forth",
         "rocks on the spot"),
        ("rocking", "rocking back and forth", "tipping back and forth", "tilting back and forth"),
        ("tilts and tips back and forth", "rocks back and forth like a chair"),
    ),
    "swell": Motion(
        swell,
        ("swells", "breathes", "inflates", "swells up", "breathes in and out", "grows and shrinks", "pulses",
         "grows bigger and smaller"),
        ("swelling", "breathing", "inflating", "growing and shrinking", "pulsing", "breathing in and out"),
        ("swells and shrinks", "inflates and grows bigger"),
    ),
    "shake": Motion(
        shake,
        ("shakes", "trembles", "shivers", "shakes all over", "vibrates", "shakes left and right"),
        ("shaking", "trembling", "shivering", "shaking all over", "vibrating"),
        ("trembles all over", "vibrates and shakes"),
    ),
    "wave": Motion(
        wave,
        ("waves", "ripples", "undulates", "waves like water", "ripples like water", "moves in waves"),
        ("waving", "rippling", "undulating", "rippling like water", "moving in waves"),
        ("undulates like water", "ripples and waves"),
    ),
    "swim": Motion(
        swim,
        ("swims", "slithers", "wriggles", "swims like a fish", "slithers like a snake", "wags its tail", "wiggles"),
        ("swimming", "slithering", "wriggling", "swimming like a fish", "wagging its tail", "wiggling"),
        ("wriggles like a snake", "slithers and swims"),
    ),
    "flap": Motion(
        flap,
        ("flaps", "flaps its wings", "beats its wings", "flutters", "flies", "flies with its wings"),
        ("flapping", "flapping its wings", "beating its wings", "fluttering", "flying"),
        ("flutters with its wings", "flies like a bird"),
    ),
    "open": Motion(
        hinge_open,
        ("opens", "opens and closes", "opens its lid", "opens its mouth", "opens its lid and closes it"),
        ("opening", "opening and closing", "opening its lid", "opening its mouth"),
        ("opens and closes its mouth", "opens and closes its lid"),
    ),
    "walk": Motion(
        walk,
        ("walks", "walks in place", "marches", "walks on the spot", "runs", "runs in place", "trots"),
        ("walking", "walking in place", "marching", "running", "trotting"),
        ("marches in place", "trots on the spot"),
    ),
}  # fmt: skip


def animate(motion: str, points: np.ndarray, frames: int, strength: float, timing: str = "loop") -> np.ndarray:
    """Trajectories [F, V, 3] of rest points [V, 3]; frame 0 is the rest pose, frame F would be it again."""
    move, phase = MOTIONS[motion].move, TIMINGS[timing]
    return np.stack([move(points, phase(frame / frames), strength) for frame in range(frames)])
