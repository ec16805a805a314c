"""What following a true-colour video depends on: rounds of matching, of pixels, and the weights of what holds bones."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from backend.motion.bones import Joints
from backend.motion.pixels import PixelSettings, Round


@dataclass(frozen=True)
class Level:
    """One round: draw at `size` pixels, search so far, solve."""

    size: int
    reach: int  # of the search, pixels
    stiffness: float  # of the links
    robust: float  # width of the robust error, subject units
    steps: int = 2  # Gauss-Newton steps on the same matches
    edge: float = 4e-3  # squared gradient per pixel at which half of a direction's confidence is there


@dataclass(frozen=True)
class TrackSettings:
    """Weights as in `RigFitSettings`; found on ten known motions, where few of them matter much."""

    levels: tuple[Level, ...] = (  # of each frame in turn, coarse to fine
        Level(64, 5, 10.0, 0.2),
        Level(64, 4, 3.0, 0.2),
        Level(64, 4, 1.0, 0.15),
        Level(128, 4, 0.5, 0.1),
        Level(128, 3, 0.3, 0.08),
        Level(128, 3, 0.2, 0.06),
        Level(128, 3, 0.1, 0.06),
        Level(128, 2, 0.1, 0.06),
    )
    pixels: PixelSettings = field(default_factory=PixelSettings)
    each: tuple[Round, ...] = (Round(128, 2, False, 3),)  # of each frame's pixels; the next one then starts better
    # Of the pixels of all frames. Steps that are not lengthened come as far in eight as these in five.
    whole_video: tuple[Round, ...] = (Round(128, 2, False, 3), Round(256, 1, True, 5, 1.6))
    crisp: float = 0.0016  # subject units: median error of the matches in frame 1 of a video whose pixels count
    rendered: float = 0.0045  # the same of a video with alpha of its own: no model makes one, fast motion is likelier
    # Of all frames together, where the video is not crisp. Where nothing is lost any more, faint gradients only
    # mislead: light that changes with the pose and a video's noise say as much as the surface.
    joint: tuple[Level, ...] = (
        Level(128, 3, 0.03, 0.06, 3, edge=0.016),
        Level(128, 3, 0.03, 0.05, 3, edge=0.016),
        Level(128, 2, 0.03, 0.04, 3, edge=0.016),
    )
    wide: tuple[Level, ...] = (Level(32, 5, 10.0, 0.3), Level(32, 4, 3.0, 0.3))  # before the levels, from afar
    explained: float = 0.25  # share of standing still's error below which no other start is tried
    clearly: float = 0.85  # share of the error below which another start's pose is taken
    whole: float = 0.7  # share of standing still's error below which poses of whole parts may be all there is to find
    doubtful: float = 0.5  # share of standing still's error above which drifting views may be all there is
    upheld: float = 0.9  # share of standing still's error above which a frame's pose is not believed
    bones: int = 64
    large_part: float = 0.04  # bounding box diagonal (subject units) from which a part has its own bones
    # What no camera can tell apart must hold together: without hinges tails and limbs tear, with few and weak contacts
    # a chest goes to pieces. Stronger hinges (25) double a fox's error, whose true skin stretches.
    joints: Joints = field(default_factory=lambda: Joints(hinge=8.0, contacts=4, contact=5.0))
    samples: int = 8000  # surface points
    queries: int = 750  # of them at most in each view; 1500 take a fifth longer and are as far off
    radius: int = 3  # of patches, pixels; 5 leads limbs astray where they are found, and gains nothing at the end
    keep: float = 2e-5  # squared colour difference per squared pixel that a patch moves: near matches first
    tolerance: float = 0.01  # mean squared colour difference at which a match counts half
    guessed: float = 1.0  # weight of patches whose colour no view shows at rest, beside those that one does
    outline: float = 1.0  # weight of a pixel where the outlines differ
    outline_reach: float = 0.12  # of the picture: outlines farther apart are something else's
    ahead: float = 0.5  # share of the last frame's motion by which a frame's start is ahead (1.0 overshoots at turns)
    loose: float = 1.0  # stiffness between separate parts of the mesh, at most
    rest: float = 0.03  # stiffness of the joints as at rest, while a frame keeps to the last one's
    tears: float = math.inf  # subject units by which a joint may open in a frame before it holds half as much
    clean: float = 0.006  # median error of a clean video's matches; farther off ones count less beside the joints
    yields: float = 0.02  # subject units: joints that all frames pull farther apart hold less: some skins stretch
    temporal: float = 0.1  # of the joint rounds: .03 left 1.3 times the true jitter, .3 takes motion away
    prior: float = 1e-4
