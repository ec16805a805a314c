"""When the shape keys of a take are on: hats, loops, speed, strength. No bpy in it.

Key k shows frame k of the motion; frame 0 is the rest pose and needs no key. At every time at most two neighbouring
keys are partly on, and Blender, glTF, FBX and USD all blend linearly between them.
"""

from __future__ import annotations

from dataclasses import dataclass

from .shared import protocol

LOOPS = ("OFF", "CYCLE", "PINGPONG")
Points = list[tuple[float, float]]  # (timeline frame, value), in order


@dataclass(frozen=True)
class Timing:
    """How a motion of `frames` frames, the rest pose at 0 included, lies on the timeline."""

    frames: int
    start: float = 1.0  # timeline frame of the first one
    step: float = 3.0  # timeline frames per frame of the motion
    strength: float = 1.0  # 1 is as generated, 0 stands still
    loop: str = "OFF"  # OFF | CYCLE: back to the beginning within one step | PINGPONG: backwards to it
    first: int = 0  # the part of the motion that is shown, both ends included
    last: int = -1  # -1 is the last one

    def __post_init__(self) -> None:
        last = self.frames - 1 if self.last < 0 else min(self.last, self.frames - 1)
        object.__setattr__(self, "last", last)
        if self.loop not in LOOPS or self.frames < 2 or self.step <= 0.0:
            raise ValueError(f"no timing: {self}")
        if not 0 <= self.first < self.last:
            raise protocol.UserError("The part of the motion has no length.", "Let its end be later than its begin.")

    @property
    def order(self) -> list[int]:
        """The frames of the motion as they follow each other in one round."""
        forward = list(range(self.first, self.last + 1))
        if self.loop == "PINGPONG":
            return [*forward, *reversed(forward[:-1])]
        return [*forward, self.first] if self.loop == "CYCLE" else forward

    @property
    def end(self) -> float:
        """The timeline frame of the end of the first round."""
        return self.start + (len(self.order) - 1) * self.step

    @property
    def repeats(self) -> bool:
        """Whether the keyframes shall be repeated for ever."""
        return self.loop != "OFF"


def hats(timing: Timing) -> list[Points]:
    """The keyframes of key 1 … frames-1: up and down again whenever its frame is shown, and flat where it isn't.

    Where the motion repeats, all have points at both ends of a round, so that all repeat with the same period.
    """
    order = timing.order
    return [_hat(timing, order, key) for key in range(1, timing.frames)]


def _hat(timing: Timing, order: list[int], key: int) -> Points:
    shown = {index for index, frame in enumerate(order) if frame == key}
    places = {near for index in shown for near in (index - 1, index, index + 1)}
    if timing.repeats:
        places |= {0, len(order) - 1}
    places = {place for place in places if 0 <= place < len(order)} or {0}
    return [(timing.start + at * timing.step, timing.strength if at in shown else 0.0) for at in sorted(places)]
