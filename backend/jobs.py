"""The road of a job, from what Blender captured to the motion that Blender bakes; each stage can be resumed."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from backend import device as devices
from backend import steps, weights
from backend.memory import PeakMemory
from backend.motion.fit import needs_gaussians
from backend.motion.sds_fit import SdsSettings
from backend.motion.settings import FitSettings, for_generated
from backend.motion.settings import preset as fit_preset
from backend.motion.skeleton import make_rig
from backend.motion.skinning import SkinSettings
from backend.mv_vdm import resume
from backend.mv_vdm.execution import FAST, MODES, Execution, for_large_model, next_smaller, pick_mode
from backend.mv_vdm.pipeline import MVVDM, ModelInfo
from backend.mv_vdm.sampling import SamplerSettings
from backend.presets import sampler_settings, sds_settings, with_choices
from backend.preview import write_preview
from backend.prompts import Understood, known, understand
from backend.protocol import JobSettings, Motion, Report, Rig, SplatSource, Subject, UserError, Video
from backend.splats.gaussians import Gaussians
from backend.splats.views import ViewSettings, make_subject
from backend.stages import Progress, Stages, folder_digest

log = logging.getLogger(__name__)

LARGE_MODEL = 1e9  # bytes; smaller ones gain nothing from half precision, and their colours are measured
Tell = Callable[..., None]  # tell(kind, **content): a notice or a preview


class Models:
    """The video model of the last job, kept for the next one."""

    def __init__(self) -> None:
        self._key: tuple = ()
        self._model: MVVDM | None = None
        self.mode = FAST  # of the last model that was asked for

    def get(self, folder: Path, device: torch.device, memory: str, compiled: bool = False) -> MVVDM:
        """Loads a model unless it is loaded; "auto" picks the mode at loading, from what is free then.

        Raises:
            UserError: the model's files are damaged.
        """
        key = (weights.identity(folder), device, memory, compiled)
        if key != self._key:
            self.forget()
            execution = replace(_execution(folder, device, memory), compile=compiled)
            self.mode = execution.mode
            self._model = MVVDM.from_pretrained(folder, device, execution)
            self._key = key
        return self._model

    def forget(self) -> None:
        """Frees the memory of the loaded model."""
        self._key, self._model = (), None
        gc.collect()
        devices.release_memory()


def _execution(folder: Path, device: torch.device, memory: str) -> Execution:
    """How to run a model: a small one whole and, unless told otherwise, fast."""
    large = sum(path.stat().st_size for path in weights.files(folder)) > LARGE_MODEL
    if memory != "auto":
        mode = MODES[memory]
    else:
        mode = pick_mode(devices.free_memory_gb(device), device) if large else FAST
    return for_large_model(device, mode) if large else Execution(mode=mode)


def check(settings: JobSettings) -> str:
    """Whether a job can run at all, before anything is captured. Returns what the model animates: color | position.

    Raises:
        UserError: no such weights or device.
    """
    return Plan.of(settings).info.appearance


def run_job(job: Path, progress: Progress, models: Models, peak: PeakMemory, tell: Tell) -> Report:
    """Runs a captured job to its `motion.npz`; where memory runs out, a second time with less.

    Raises:
        UserError: the job can't be done; anything else is a fault of ours.
    """
    settings = JobSettings.load(job)
    try:
        return Road(job, settings, progress, models, peak, tell).run()
    except Exception as error:
        smaller = next_smaller(MODES.get(settings.memory, models.mode))
        if smaller is None or not devices.is_out_of_memory(error):
            raise
        log.exception("out of memory")
    # Not in the handler: there the failed attempt's tensors are still alive.
    models.forget()
    sentence = f"There was not enough memory; trying once more in the mode {smaller.name}, which needs less."
    tell("notice", message=sentence)
    return Road(job, replace(settings, memory=smaller.name), progress, models, peak, tell).run()


@dataclass(frozen=True)
class Plan:
    """What a job's settings come to, with a model and a device."""

    folder: Path  # of the model
    info: ModelInfo
    device: torch.device
    understood: Understood  # the prompt in the model's words
    sampler: SamplerSettings
    fit: FitSettings
    sds: SdsSettings | None

    @classmethod
    def of(cls, settings: JobSettings) -> Plan:
        """Raises `UserError` where there are no such weights or no such device."""
        folder = weights.find(settings.weights)
        content = weights.config(folder)
        try:
            info = ModelInfo.from_json(content)
        except (TypeError, ValueError):
            sentence = f"The model's {weights.CONFIG} in {folder} makes no sense to this version."
            raise UserError(sentence, "Install the weights again.", kind="missing_weights") from None
        return cls(
            folder,
            info,
            devices.pick(settings.device),
            understand(settings.prompt, info.motions),
            with_choices(sampler_settings(settings.preset, info.sampler), settings),
            for_generated(fit_preset(settings.preset)),
            sds_settings(settings.preset),
        )

    def report(self, settings: JobSettings) -> Report:
        """A report with nothing measured yet."""
        chosen = {
            "understood": self.understood.prompt,
            "sampler": asdict(self.sampler),
            "fit": asdict(self.fit),
            "sds": self.sds and asdict(self.sds),
        }
        return Report(
            device=self.device.type,
            seed=settings.seed,
            settings=asdict(settings) | chosen,
            versions=devices.versions(),
        )


class Road:
    """The stages of one job, each from what the ones before it have made."""

    def __init__(
        self, job: Path, settings: JobSettings, progress: Progress, models: Models, peak: PeakMemory, tell: Tell
    ) -> None:
        """Raises `UserError` where the job can't run."""
        self.job, self.settings, self.models, self.tell = job, settings, models, tell
        self.source = SplatSource.load(job)
        self.subject = Subject.load(job) if self.source is None else None  # first of all: is there anything at all?
        self.plan = Plan.of(settings)
        self.report = self.plan.report(settings)
        captured = (".json", ".npz", ".png") if self.source is None else (".ply",)
        self.stages = Stages(job, folder_digest(job / "subject", captured), progress, peak, self.report)
        refined = self.plan.sds is not None
        self.fitted = job / steps.RECONSTRUCTION if refined else job  # the folder of the motion that the fit makes

    def run(self) -> Report:
        """All of it. Raises `UserError`."""
        notice = self.plan.understood.notice
        if notice:
            self.tell("notice", message=f"{notice} {known(self.plan.info.motions)}")
        subject = self.capture()
        video = self.video(subject)
        matte = self.stages.run(
            "matte", (), steps.load_matte, lambda step: steps.make_matte(self.job, subject, video), steps.save_matte
        )
        by_rendering = needs_gaussians(self.settings.preset, video.appearance, len(subject.faces) > 0)
        # A fit by correspondences needs no Gaussians.
        splats = self.splats(subject, video) if by_rendering or self.plan.sds is not None else None
        motion = self.motion(subject, video, matte, splats)
        if self.plan.sds is not None:
            motion = self.refine(subject, splats, motion, by_rendering)
        if self.settings.rig or self.source is not None:
            rig = self.rig(subject, motion)
        if self.source is not None:
            self.frames(motion, rig)
        self.report.save(self.job / "report.json")
        return self.report

    def model(self) -> MVVDM:
        return self.models.get(self.plan.folder, self.plan.device, self.settings.memory, self.settings.compile)

    def capture(self) -> Subject:
        """What Blender has captured, or of a file of Gaussians, what is captured here."""
        source, appearance = self.source, self.plan.info.appearance
        if self.subject is not None:
            return self.subject
        seen_as = (source, appearance, ViewSettings())
        return self.stages.run(
            "capture", seen_as, Subject.load, lambda step: make_subject(self.job, source, appearance), Subject.save
        )

    def video(self, subject: Subject) -> Video:
        plan, settings, identity = self.plan, self.settings, weights.identity(self.plan.folder)
        prompt = plan.understood.prompt

        def make(step: steps.Step) -> Video:
            def tell(path: Path) -> None:
                self.tell("forming", path=str(path))

            return steps.make_video(
                self.job, subject, self.model(), prompt, plan.sampler, settings, step, identity, tell
            )

        depends_on = (prompt, plan.sampler, settings.seed, settings.frames, identity)
        video = self.stages.run("video", depends_on, Video.load, make, Video.save)
        resume.forget(self.job / steps.DENOISED)
        self.tell("preview", path=str(write_preview(video, self.job)))
        return video

    def splats(self, subject: Subject, video: Video) -> Gaussians:
        seed = self.settings.seed
        return self.stages.run(
            "splats",
            (steps.SPLATS, seed),
            steps.load_splats,
            lambda step: steps.make_splats(self.job, subject, video.appearance, seed, self.plan.device),
            steps.save_splats,
        )

    def motion(self, subject: Subject, video: Video, matte: np.ndarray, splats: Gaussians | None) -> Motion:
        fit, device, refined = self.plan.fit, self.plan.device, self.plan.sds is not None
        field = self.fitted / steps.FIELD if refined else None
        return self.stages.run(
            "motion",
            (fit, refined),
            lambda job: Motion.load(self.fitted),
            lambda step: steps.make_motion(subject, video, matte, splats, fit, device, step, field),
            lambda motion, job: motion.save(self.fitted),
        )

    def refine(self, subject: Subject, splats: Gaussians, motion: Motion, by_rendering: bool) -> Motion:
        """What 4D-SDS makes of the fitted motion, or of the field that rendering has fitted."""
        plan, settings = self.plan, self.settings

        def make(step: steps.Step) -> Motion:
            start = steps.load_field(self.fitted / steps.FIELD, plan.fit, plan.device) if by_rendering else motion
            prompt, seed = plan.understood.prompt, settings.seed
            return steps.refine_motion(
                subject, self.model(), prompt, start, settings.frames, splats, plan.sds, seed, step
            )

        return self.stages.run("refine", plan.sds, Motion.load, make, Motion.save)

    def rig(self, subject: Subject, motion: Motion) -> Rig:
        skin = SkinSettings()
        return self.stages.run("rig", skin, Rig.load, lambda step: make_rig(subject, motion, skin), Rig.save)

    def frames(self, motion: Motion, rig: Rig) -> None:
        """The moving Gaussians as files, one for each frame."""
        self.stages.run(
            "frames",
            (),
            lambda job: steps.check_frames(job, self.settings.frames),
            lambda step: steps.make_frames(self.job, motion, rig, step),
            lambda nothing, job: None,
        )
