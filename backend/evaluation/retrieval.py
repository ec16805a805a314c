"""Which of the known motions a displacement field is, on one mesh: compared with all of them, whatever their phase.

A clip of `frames` pictures runs through the phases 0, 1/F, 2/F, ...; quick, one-shot and shifted forms take the same
phases in another order. So each motion is computed once at each phase, and all forms of it are looked up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backend.training.motions import MOTIONS, TIMINGS, animate

STRENGTHS = (0.4, 0.6, 0.8, 1.0, 1.2, 1.4)
MOST_VERTICES = 4000  # that are compared; the motions themselves see all


@dataclass(frozen=True)
class Match:
    """One form of one motion."""

    motion: str
    timing: str
    start: int  # the frame of the plain loop that it begins with
    strength: float
    score: float  # cosine, or distance: what was asked for


class KnownMotions:
    """The displacement fields of all motions on the rest vertices [V, 3] of one mesh."""

    def __init__(self, rest: np.ndarray, frames: int) -> None:
        self.frames = frames
        rng = np.random.default_rng(0)
        self.chosen = np.sort(rng.permutation(len(rest))[:MOST_VERTICES])
        self.forms = [(motion, strength) for motion in MOTIONS for strength in STRENGTHS]
        fields = [animate(motion, rest, frames, strength) - rest for motion, strength in self.forms]
        self.fields = np.stack([field[:, self.chosen].reshape(frames, -1) for field in fields]).astype(np.float32)
        self.squares = np.square(self.fields).sum(axis=2)  # [forms, F]

    def most_alike(self, offsets: np.ndarray, any_phase: bool = True) -> Match:
        """By the angle between the fields: amplitude does not count. offsets [F, V, 3]."""
        products, own = self._products(offsets)
        best = Match("", "", 0, 0.0, -2.0)
        for timing in TIMINGS:
            for start in range(self.frames if any_phase else 1):
                phases = self._phases(timing, start)
                dot = products[:, np.arange(self.frames), phases].sum(axis=1)
                cosine = dot / np.maximum(np.sqrt(own.sum() * self.squares[:, phases].sum(axis=1)), 1e-12)
                form = int(cosine.argmax())
                if cosine[form] > best.score:
                    best = Match(self.forms[form][0], timing, start, self.forms[form][1], float(cosine[form]))
        return best

    def nearest(self, offsets: np.ndarray) -> Match:
        """By mean square distance, among forms that start at rest: what a clip of this motion would look like."""
        products, own = self._products(offsets)
        best = Match("", "", 0, 0.0, np.inf)
        for timing in TIMINGS:
            phases = self._phases(timing, 0)
            dot = products[:, np.arange(self.frames), phases].sum(axis=1)
            distance = own.sum() - 2 * dot + self.squares[:, phases].sum(axis=1)
            form = int(distance.argmin())
            if distance[form] < best.score:
                best = Match(self.forms[form][0], timing, 0, self.forms[form][1], float(distance[form]))
        return best

    def _products(self, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inner products [forms, F, F] of each frame with each phase, and the frames' own squares [F]."""
        flat = offsets[:, self.chosen].reshape(self.frames, -1).astype(np.float32)
        return np.matmul(flat, self.fields.transpose(0, 2, 1)), np.square(flat).sum(axis=1)

    def _phases(self, timing: str, start: int) -> np.ndarray:
        """For each frame the place of its phase in the plain loop [F]."""
        run = [TIMINGS[timing](frame / self.frames) for frame in range(self.frames)]
        return (start + np.round(np.array(run) * self.frames).astype(int)) % self.frames
