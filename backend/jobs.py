"""The road of a job, from what Blender captured to the motion that Blender bakes; each stage can be resumed."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from backend import device as devices
from backend import steps, weights
from backend.memory import PeakMemory
from backend.motion.fit import needs_gaussians
from backend.motion.settings import for_generated
from backend.motion.settings import preset as fit_preset
from backend.motion.skeleton import make_rig
from backend.motion.skinning import SkinSettings
from backend.mv_vdm import resume
from backend.mv_vdm.execution import FAST, MODES, Execution, for_large_model, next_smaller, pick_mode
from backend.mv_vdm.pipeline import MVVDM, ModelInfo
from backend.presets import sampler_settings, sds_settings, with_choices
from backend.preview import write_preview
from backend.prompts import Understood, known, understand
from backend.protocol import JobSettings, Motion, Report, Rig, SplatSource, Subject, UserError, Video
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
    return _prepare(settings)[1].appearance


def run_job(job: Path, progress: Progress, models: Models, peak: PeakMemory, tell: Tell) -> Report:
    """Runs a captured job to its `motion.npz`; where memory runs out, a second time with less.

    Raises:
        UserError: the job can't be done; anything else is a fault of ours.
    """
    settings = JobSettings.load(job)
    try:
        return _road(job, settings, progress, models, peak, tell)
    except Exception as error:
        smaller = next_smaller(MODES.get(settings.memory, models.mode))
        if smaller is None or not devices.is_out_of_memory(error):
            raise
        log.exception("out of memory")
    # Not in the handler: there the failed attempt's tensors are still alive.
    models.forget()
    sentence = f"There was not enough memory; trying once more in the mode {smaller.name}, which needs less."
    tell("notice", message=sentence)
    return _road(job, replace(settings, memory=smaller.name), progress, models, peak, tell)


def _prepare(settings: JobSettings) -> tuple[Path, ModelInfo, torch.device, Understood]:
    """The model's folder, its description, the device, and the prompt in the model's words."""
    folder = weights.find(settings.weights)
    content = weights.config(folder)
    try:
        info = ModelInfo.from_json(content)
    except (TypeError, ValueError):
        sentence = f"The model's {weights.CONFIG} in {folder} makes no sense to this version."
        raise UserError(sentence, "Install the weights again.", kind="missing_weights") from None
    return folder, info, devices.pick(settings.device), understand(settings.prompt, info.motions)


def _road(job: Path, settings: JobSettings, progress: Progress, models: Models, peak: PeakMemory, tell: Tell) -> Report:
    source = SplatSource.load(job)
    subject = Subject.load(job) if source is None else None
    folder, info, device, understood = _prepare(settings)
    prompt = understood.prompt
    if understood.notice:
        tell("notice", message=f"{understood.notice} {known(info.motions)}")
    sampler = with_choices(sampler_settings(settings.preset, info.sampler), settings)
    fit = for_generated(fit_preset(settings.preset))
    sds = sds_settings(settings.preset)
    report = Report(
        device=device.type,
        seed=settings.seed,
        settings={
            **asdict(settings),
            "understood": prompt,
            "sampler": asdict(sampler),
            "fit": asdict(fit),
            "sds": sds and asdict(sds),
        },
        versions=devices.versions(),
    )
    captured = (".json", ".npz", ".png") if source is None else (".ply",)
    stages = Stages(job, folder_digest(job / "subject", captured), progress, peak, report)
    if source is not None:
        seen_as = (source, info.appearance, ViewSettings())
        subject = stages.run(
            "capture", seen_as, Subject.load, lambda step: make_subject(job, source, info.appearance), Subject.save
        )

    def make_video(step: steps.Step) -> Video:
        model = models.get(folder, device, settings.memory, settings.compile)
        return steps.make_video(
            job,
            subject,
            model,
            prompt,
            sampler,
            settings,
            step,
            weights.identity(folder),
            lambda path: tell("forming", path=str(path)),
        )

    settings_of_video = (prompt, sampler, settings.seed, settings.frames, weights.identity(folder))
    video = stages.run("video", settings_of_video, Video.load, make_video, Video.save)
    resume.forget(job / steps.DENOISED)
    tell("preview", path=str(write_preview(video, job)))
    matte = stages.run(
        "matte", (), steps.load_matte, lambda step: steps.make_matte(job, subject, video), steps.save_matte
    )
    splats = None  # a fit by correspondences needs none
    by_rendering = needs_gaussians(settings.preset, video.appearance, len(subject.faces) > 0)
    if by_rendering or sds is not None:
        splats = stages.run(
            "splats",
            (steps.SPLATS, settings.seed),
            steps.load_splats,
            lambda step: steps.make_splats(job, subject, video.appearance, settings.seed, device),
            steps.save_splats,
        )
    fitted = job if sds is None else job / steps.RECONSTRUCTION
    motion = stages.run(
        "motion",
        (fit, sds is not None),
        lambda job: Motion.load(fitted),
        lambda step: steps.make_motion(
            subject, video, matte, splats, fit, device, step, None if sds is None else fitted / steps.FIELD
        ),
        lambda motion, job: motion.save(fitted),
    )

    def refine_motion(step: steps.Step) -> Motion:
        start = steps.load_field(fitted / steps.FIELD, fit, device) if by_rendering else motion
        model = models.get(folder, device, settings.memory, settings.compile)
        return steps.refine_motion(subject, model, prompt, start, settings.frames, splats, sds, settings.seed, step)

    if sds is not None:
        motion = stages.run("refine", sds, Motion.load, refine_motion, Motion.save)
    if settings.rig or source is not None:
        skin = SkinSettings()
        rig = stages.run("rig", skin, Rig.load, lambda step: make_rig(subject, motion, skin), Rig.save)
    if source is not None:
        stages.run(
            "frames",
            (),
            lambda job: steps.check_frames(job, settings.frames),
            lambda step: steps.make_frames(job, motion, rig, step),
            lambda nothing, job: None,
        )
    report.save(job / "report.json")
    return report
