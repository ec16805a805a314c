"""Does 4D-SDS bring a fitted motion nearer to the truth, and what does it cost?

    python benchmarks/sds.py --weights weights/starter --clips 2 --report sds.json

Held-out procedural objects with motions that the model knows. Their video is `generated` by the model from a sentence,
or `degraded`: the true one with blur, noise and drift. The fit of either is refined by 4D-SDS in several variants, and
both motions are compared with the formula's. *unexplained* is mean vertex error over that of standing still.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import motion_videos
import numpy as np
import torch
from starter_objects import FIRST_SEED, Thing

from backend import device as devices
from backend.evaluation.motion import MotionScore, score_motion
from backend.memory import PeakMemory
from backend.motion.fit import fit_motion
from backend.motion.guidance import CameraRange, GuidanceSettings, VideoGuidance
from backend.motion.refinable import BoneMotion, PlaneMotion, Rates, Refinable
from backend.motion.render_fit import fit_by_rendering
from backend.motion.sds_fit import SdsSettings, refine
from backend.motion.settings import DRAFT, for_generated, preset
from backend.mv_vdm.pipeline import MVVDM
from backend.protocol import Subject, Video, position_code, write_json
from backend.splats.gaussians import Gaussians, from_mesh
from backend.training.clips import Clip, make_clip, render_clip, straight

SPLATS = 6000
FIGURES = (
    "before",
    "after",
    "edges_before",
    "edges_after",
    "jitter_before",
    "jitter_after",
    "step_seconds",
    "memory_gb",
)


@dataclass(frozen=True)
class Variant:
    """One way to refine.

    field: "bones", corrections of the default fit, or "hexplane", the paper's field goes on.
    ask: whether the model is asked at all: without, ARAP and the views of the start do all the work.
    """

    settings: SdsSettings
    field: str = "bones"
    ask: bool = True


def variants(iterations: int) -> dict[str, Variant]:
    """By name. All but `released` look from the video's own cameras, the only ones that the starter model knows."""
    # The whole way is as long as that of 250 steps at the usual rate.
    rates = Rates(bone=0.5 / iterations)
    base = SdsSettings(iterations=iterations, supersampling=2, anchor_size=64, rates=rates)
    own = replace(base, cameras=None)
    low, middle, high = (GuidanceSettings(*span, guidance_scale=0.0) for span in ((0.02, 0.2), (0.2, 0.6), (0.6, 0.98)))
    return {
        "no model": Variant(own, ask=False),
        "released": Variant(replace(base, cameras=CameraRange())),
        "own views": Variant(own),
        "no guidance": Variant(replace(own, guidance=low)),
        "middle noise": Variant(replace(own, guidance=middle)),
        "high noise": Variant(replace(own, guidance=high)),
        "soft alone": Variant(replace(own, arap_weight=1.0), ask=False),
        "soft high noise": Variant(replace(own, arap_weight=1.0, guidance=high)),
        "hexplane alone": Variant(own, "hexplane", ask=False),
        "hexplane": Variant(replace(own, guidance=low), "hexplane"),
    }


def main() -> int:
    options = _options()
    model = MVVDM.from_pretrained(options.weights)
    chosen = variants(options.iterations)
    chosen = {name: chosen[name] for name in options.variants.split(",")} if options.variants else chosen
    peak, rows = PeakMemory(with_parent=False), []
    print(f"{'video':10} {'motion':8} {'variant':14}" + "".join(f"{figure:>14}" for figure in FIGURES), flush=True)
    known = sorted(model.info.motions)
    motions = [name for name in known if name in options.motions.split(",") or not options.motions]
    for k, source, motion in product(range(options.clips), options.videos.split(","), motions):
        seed = FIRST_SEED + k * len(known) + known.index(motion)
        clip = make_clip(seed, model.info.num_frames, (motion,))
        scene = Scene(model, clip, source)
        for name, variant in chosen.items():
            row = {"video": source, "motion": motion, "variant": name, **scene.judge(variant, peak)}
            rows.append(row)
            print(
                f"{source:10} {motion:8} {name:14}" + "".join(f"{row[figure]:14.3f}" for figure in FIGURES), flush=True
            )
        if options.report:  # after each clip: the whole takes an hour
            _write(options, chosen, rows)
    for name, means in _summary(rows).items():
        print(f"{name:34}" + "".join(f"{value:14.3f}" for value in means.values()))
    return 0


class Scene:
    """One clip, its video and what the fit makes of it."""

    def __init__(self, model: MVVDM, clip: Clip, source: str) -> None:
        self.model, self.clip, self.subject = model, clip, Thing("clip", clip.rest, clip.faces, np.eye(4)).subject(128)
        if source == "generated":
            pictures = straight(render_clip(clip, 2 * model.info.resolution, [(view, 0) for view in range(4)]))
            frames = model.generate(clip.caption, pictures, self.subject.condition_c2w, model.info.sampler, 0)
        else:
            true = straight(render_clip(clip, model.info.resolution))
            frames = motion_videos.degrade(true, motion_videos.Degradation())
        self.video, self.matte = Video(frames, "position"), frames[..., 3].astype(np.float32) / 255
        self.splats = coded_splats(self.subject)
        self.fitted = self._fit(for_generated(preset("draft")))

    def _fit(self, settings: object) -> np.ndarray:
        cpu = torch.device("cpu")
        return fit_motion(self.subject, self.splats, self.video, self.matte, settings, cpu, lambda step, steps: None)

    def judge(self, variant: Variant, peak: PeakMemory) -> dict[str, float]:
        """The figures of one variant."""
        motion = self._refinable(variant)
        before = self._score(motion.offsets())
        guidance = VideoGuidance(self.model, self.clip.caption, variant.settings.guidance)
        if not variant.ask:
            guidance = NoOpinion(self.model)
        peak.take()
        started = time.perf_counter()
        refine(motion, self.splats, self.subject, guidance, variant.settings, 0, lambda step, steps: None)
        seconds = (time.perf_counter() - started) / variant.settings.iterations
        after = self._score(motion.offsets())
        return {
            "before": before.unexplained, "after": after.unexplained,
            "edges_before": before.edges, "edges_after": after.edges,
            "jitter_before": before.jitter, "jitter_after": after.jitter,
            "step_seconds": seconds, "memory_gb": peak.take(),
        }  # fmt: skip

    def _refinable(self, variant: Variant) -> Refinable:
        if variant.field == "bones":
            return BoneMotion(self.subject, self.fitted, self.splats, variant.settings.bones)
        field, _ = fit_by_rendering(
            self.subject, self.splats, self.video.frames, self.matte, DRAFT, torch.device("cpu"), lambda *_: None
        )
        return PlaneMotion(field, self.subject, self.splats, self.video.frames.shape[1])

    def _score(self, offsets: np.ndarray) -> MotionScore:
        return score_motion(self.clip.rest + offsets, self.clip.trajectories, self.clip.faces, self.subject.weld)


class NoOpinion:
    """In the place of a `VideoGuidance`: everything is fine as it is."""

    def __init__(self, model: MVVDM) -> None:
        self.model = model

    def __call__(self, renders: torch.Tensor, *_: object) -> torch.Tensor:
        return 0.0 * renders.sum()


def coded_splats(subject: Subject) -> Gaussians:
    gaussians = from_mesh(torch.from_numpy(subject.vertices), torch.from_numpy(subject.faces).long(), SPLATS, 0)
    return gaussians.with_colors(torch.from_numpy(position_code(gaussians.means.numpy(), *subject.box)))


def _summary(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Means over the clips for each kind of video and variant; `better`: in how many of them SDS lowered the error."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(f"{row['video']}, {row['variant']}", []).append(row)
    return {
        name: {figure: float(np.mean([row[figure] for row in group])) for figure in FIGURES}
        | {"better": sum(bool(row["after"] < row["before"]) for row in group), "clips": len(group)}
        for name, group in groups.items()
    }


def _write(options: argparse.Namespace, chosen: dict[str, Variant], rows: list[dict]) -> None:
    settings = {name: repr(variant) for name, variant in chosen.items()}
    write_json(
        options.report,
        {"iterations": options.iterations, "threads": torch.get_num_threads(), "versions": devices.versions(),
         "summary": _summary(rows), "rows": rows, "settings": settings},
    )  # fmt: skip


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path("weights/starter"))
    parser.add_argument("--clips", type=int, default=1, help="objects per motion and kind of video")
    parser.add_argument("--iterations", type=int, default=40, help="of 4D-SDS; the paper has 250")
    parser.add_argument("--variants", default="", help="names with commas between; all by default")
    parser.add_argument("--motions", default="", help="names with commas between; all by default")
    parser.add_argument("--videos", default="generated,degraded")
    parser.add_argument("--report", type=Path, metavar="FILE.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
