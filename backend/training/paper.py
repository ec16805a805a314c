"""The paper's recipe: the released base stays as it is, and only MV-VDM's own layers learn, on rendered clips.

    python tools/render_dataset.py -- --input models --out data/shards
    python -m backend train paper --weights weights/animate3d --shards data/shards --out runs/paper --steps 20000
    python -m backend weights convert --motion runs/paper/motion_modules.safetensors --to weights/mine …

Paper section 4.1, and what the official training code adds to it. The MV2V layers and the motion modules (their names
hold "i2v." or "motion_modules.") learn in float32 under bfloat16 autocast; the rest is frozen. What a step draws
follows from its number, so a killed run goes on with the losses that it would have had; all processes together take
`batch` clips a step, each in parts of `clips_at_once`.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from safetensors.torch import save_file

from backend.mv_vdm.cameras import camera_vectors
from backend.mv_vdm.images import composite_on_grey, vae_pixels
from backend.mv_vdm.pipeline import MVVDM
from backend.mv_vdm.unet import MVVDMUNet
from backend.protocol import UserError
from backend.training.charts import grid
from backend.training.loop import Average, RunLog, SaveClock, load_state, save_state
from backend.training.shards import RenderedClip, ShardIndex
from backend.training.video import share_of_batch

STATE, TRAINED = "paper.state.safetensors", "motion_modules.safetensors"
FIGURES = ("loss", "held_out_loss")


@dataclass(frozen=True)
class PaperSettings:
    """The paper's values, or the official code's where the text has none."""

    frames: int = 16
    batch: int = 8  # clips a step, of all processes together; the paper: 1024 on 32 GPUs
    clips_at_once: int = 1  # in one process; the others follow, and their gradients add up
    learning_rate: float = 1e-4  # as the code; 2e-4 in the text
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    text_dropout: float = 0.1  # the pictures are never dropped
    average_decay: float = 0.9999
    checkpointing: bool = True  # activations are computed twice, and only those of one layer are kept
    precision: str = "bf16"  # bf16 | no
    held_out: int = 8  # clips that are measured on, as far as there are enough objects
    sample_steps: int = 25  # of the samples that are shown
    save_seconds: float = 300.0
    log_steps: int = 20
    measure_steps: int = 500
    seed: int = 0


class TrainedPart:
    """The layers of a network that learn, as optimisers and files see them."""

    def __init__(self, unet: MVVDMUNet) -> None:
        self.unet = unet
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(is_trained(name))

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((name, parameter) for name, parameter in self.unet.named_parameters() if is_trained(name))

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        return (parameter for _, parameter in self.named_parameters())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """With the tables over time, which the released checkpoint holds as well."""
        return {name: tensor for name, tensor in self.unet.state_dict().items() if is_trained(name)}

    def load_state_dict(self, tensors: dict[str, torch.Tensor]) -> None:
        if tensors.keys() != self.state_dict().keys():
            raise UserError("The run's saved state is of another network.", "Choose another --out.")
        self.unet.load_state_dict(tensors, strict=False)


def is_trained(name: str) -> bool:
    """Whether a tensor is MV-VDM's own: of the MV2V layers, or of the spatiotemporal ones."""
    return "i2v." in name or "motion_modules." in name


@dataclass(frozen=True)
class Sample:
    """A clip as the network sees it, with all that chance decides about it."""

    clean: torch.Tensor  # [n, c, f, h, w], scaled latents
    noise: torch.Tensor  # the same shape
    timestep: torch.Tensor  # scalar, shared by the views
    text: torch.Tensor  # [n, tokens, d]
    image: torch.Tensor  # [n, D]
    camera: torch.Tensor  # [n, 16]


class Clips:
    """The clips of a folder of shards, in an order that only the seed and the step decide."""

    def __init__(self, folder: Path, model: MVVDM, settings: PaperSettings) -> None:
        self.index, self.model, self.settings = ShardIndex(folder), model, settings
        objects = sorted({_object(key) for key, *_ in self.index.places}, key=lambda name: zlib.crc32(name.encode()))
        kept_out = set(objects[: min(settings.held_out, len(objects) // 4)])
        places = [_object(key) in kept_out for key, *_ in self.index.places]
        self.held_out = [i for i, out in enumerate(places) if out][: settings.held_out]
        self.trained_on = [i for i, out in enumerate(places) if not out]

    def at(self, position: int) -> int:
        """The clip at a position of the run: each epoch is a permutation of its own."""
        count = len(self.trained_on)
        order = np.random.default_rng((self.settings.seed, position // count)).permutation(count)
        return self.trained_on[order[position % count]]

    def sample(self, position: int) -> Sample:
        """What position `position` of the run trains on."""
        return self.prepare(self.index.read(self.at(position)), (self.settings.seed, 0, position))

    @torch.no_grad()
    def prepare(self, clip: RenderedClip, seed: tuple[int, ...]) -> Sample:
        """Latents, conditions and noise of a clip. Raises `UserError` where it is not of the model's kind."""
        model, frames = self.model, self.settings.frames
        if clip.appearance != model.info.appearance or clip.pictures.shape[1] < frames:
            raise UserError(f"The clip “{clip.key}” is too short, or not in true colours.",
                            "Render it with --appearance color.")  # fmt: skip
        drawn = torch.Generator().manual_seed(int(np.random.default_rng(seed).integers(2**62)))
        views, pictures = len(clip.c2w), clip.pictures[:, :frames]
        pixels = vae_pixels(composite_on_grey(pictures.reshape(-1, *pictures.shape[2:])), model.info.resolution)
        posterior = torch.randn(model.latent_shape(len(pixels)), generator=drawn)
        latents = [model.encode_pixels(*part) for part in zip(pixels.split(16), posterior.split(16), strict=True)]
        clean = torch.cat(latents).unflatten(0, (views, frames)).transpose(1, 2)
        timestep = torch.randint(0, model.scheduler.config.num_train_timesteps, (), generator=drawn)
        said = "" if torch.rand((), generator=drawn) < self.settings.text_dropout else clip.caption
        return Sample(
            clean=clean,
            noise=torch.randn(clean.shape, generator=drawn).to(clean),
            timestep=timestep.to(clean.device),
            text=model.encode_prompt([said])[0].expand(views, -1, -1),
            image=model.encode_images(pictures[:, 0]),
            camera=camera_vectors(clip.c2w).to(clean),
        )


def _object(key: str) -> str:
    """What a sample shows, whichever rig of cameras saw it."""
    return key.rpartition("-")[0]


def paper_loss(unet: torch.nn.Module, model: MVVDM, samples: list[Sample]) -> torch.Tensor:
    """Mean squared error of the noise over frames 1..; frame 0 is given clean, at the same timestep."""
    views = len(samples[0].clean)
    names = ("clean", "noise", "text", "image", "camera")
    clean, noise, text, image, camera = (torch.cat([getattr(each, name) for each in samples]) for name in names)
    timestep = torch.stack([sample.timestep for sample in samples]).repeat_interleave(views)
    noisy = model.scheduler.add_noise(clean, noise, timestep)
    noisy = torch.cat([clean[:, :, :1], noisy[:, :, 1:]], dim=2)
    predicted = unet(noisy, timestep, text, camera, image, num_views=views)
    return (predicted.float() - noise)[:, :, 1:].square().mean()


def train_paper(
    out: Path, weights: Path, shards: Path, steps: int, settings: PaperSettings, until: float = math.inf
) -> bool:
    """Trains up to step `steps`, resumes from `out`; leaves the averaged layers in `out/motion_modules.safetensors`.

    Args:
        weights: a converted model's folder.
        shards: of `tools/render_dataset.py`, in true colours.
        until: on the monotonic clock; the run saves and ends then, and can go on later.

    Returns whether it is finished.

    Raises:
        UserError: weights or shards that don't fit, or a batch that can't be shared out.
    """
    accelerator = Accelerator(mixed_precision=settings.precision)
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise UserError("This recipe shares clips out among processes, not the network.", "Launch it with DDP.")
    part = share_of_batch(settings.batch, accelerator.process_index, accelerator.num_processes)
    run = PaperRun(out, weights, shards, settings, accelerator)
    while run.state.step < steps:
        first = run.state.step * settings.batch
        run.train_on(range(first + part.start, first + part.stop))
        ending = run.out_of_time(until)
        run.report(run.state.step == steps, ending)
        if ending:
            break
    accelerator.end_training()
    return run.state.step >= steps


class PaperRun:
    """One process's networks, optimiser, average and log of a run; only the main process writes."""

    def __init__(
        self, out: Path, weights: Path, shards: Path, settings: PaperSettings, accelerator: Accelerator
    ) -> None:
        self.out, self.settings, self.accelerator = out, settings, accelerator
        torch.manual_seed(settings.seed)
        self.model = MVVDM.from_pretrained(weights, accelerator.device)
        if self.model.info.appearance != "color" or self.model.scheduler.config.prediction_type != "epsilon":
            raise UserError("This recipe goes on from the released model.", "Give weights that were converted from it.")
        self.clips = Clips(shards, self.model, settings)
        if settings.checkpointing:
            self.model.unet.enable_gradient_checkpointing()
        self.trained = TrainedPart(self.model.unet)
        self.optimizer = torch.optim.AdamW(
            self.trained.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.average = Average(self.trained, settings.average_decay)
        self.state = load_state(out / STATE, self.trained, [self.optimizer], self.average.shadow)
        self.unet, self.stepper = accelerator.prepare(self.model.unet, self.optimizer)
        self.log = RunLog(out / "paper.csv", after_step=self.state.step, active=accelerator.is_main_process)
        self.started, self.clock = time.monotonic() - self.state.seconds, SaveClock(settings.save_seconds)

    def train_on(self, positions: range) -> None:
        """One step of the optimiser, on this process's share of the batch."""
        settings, accelerator, state = self.settings, self.accelerator, self.state
        self.stepper.zero_grad()
        total = 0.0
        for first in range(positions.start, positions.stop, settings.clips_at_once):
            here = range(first, min(first + settings.clips_at_once, positions.stop))
            last = here.stop == positions.stop
            with nullcontext() if last else accelerator.no_sync(self.unet):
                samples = [self.clips.sample(position) for position in here]
                loss = paper_loss(self.unet, self.model, samples) * (len(here) / len(positions))
                accelerator.backward(loss)
            total += loss.detach()
        accelerator.clip_grad_norm_(self.trained.parameters(), settings.clip_norm)
        self.stepper.step()
        self.average.update(self.trained, state.step)
        state.losses.append(float(accelerator.reduce(total, "mean")))
        state.step += 1
        state.seconds = time.monotonic() - self.started

    def out_of_time(self, until: float) -> bool:
        """Whether the time is over for any of the processes: all must end at the same step."""
        if until == math.inf:
            return False
        over = torch.tensor(float(time.monotonic() > until), device=self.accelerator.device)
        return bool(self.accelerator.reduce(over, "sum") > 0)

    def report(self, last: bool, ending: bool) -> None:
        """Logs, measures and saves where it is time; the run may be `ending` before its `last` step."""
        step, settings = self.state.step, self.settings
        if last or step % settings.log_steps == 0:
            self.log.write(step=step, seconds=round(self.state.seconds), loss=float(np.mean(self.state.losses)))
            self.state.losses.clear()
        if not self.accelerator.is_main_process:
            return
        if last or step % settings.measure_steps == 0:
            with self.averaged():
                self._measure(step)
        if last or ending or self.clock.due():
            save_state(self.out / STATE, self.trained, [self.optimizer], self.state, self.average.shadow)
        if last or ending:
            with self.averaged():
                tensors = {name: tensor.contiguous() for name, tensor in self.trained.state_dict().items()}
                save_file(tensors, self.out / TRAINED)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged layers in the place of the newest."""
        newest = {name: parameter.detach().clone() for name, parameter in self.trained.named_parameters()}
        self.average.copy_to(self.trained)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.trained.named_parameters():
                    parameter.copy_(newest[name])

    @torch.no_grad()
    def _measure(self, step: int) -> None:
        """The error on clips that are never trained on, always with the same noise, and what the model makes of two."""
        settings, clips = self.settings, self.clips
        if not clips.held_out:
            return
        losses = []
        for number, index in enumerate(clips.held_out):
            sample = clips.prepare(clips.index.read(index), (settings.seed, 1, number))
            with self.accelerator.autocast():
                losses.append(float(paper_loss(self.model.unet, self.model, [sample])))
        self.log.write(step=step, held_out_loss=float(np.mean(losses)))
        sampler = replace(self.model.info.sampler, steps=settings.sample_steps, freeinit_iterations=1)
        shown = []
        for index in clips.held_out[:2]:
            clip = clips.index.read(index)
            with self.accelerator.autocast():
                made = self.model.generate(
                    clip.caption, clip.pictures[:, 0], clip.c2w, sampler, num_frames=settings.frames
                )
            shown.append((clip.caption, clip.pictures[:, : settings.frames], made))
        self.log.show(step, grid(shown), FIGURES)
