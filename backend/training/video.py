"""Trains the video model: `python -m backend train video`, or the same through `accelerate launch`.

    python -m backend train codec --out runs/mine --steps 2200
    python -m backend train video --out runs/mine --steps 5000
    python -m backend train export --out runs/mine --to weights/mine

A killed run goes on from its last save with the same losses that it would have had: what a step draws follows from
its number, and the rest (weights, optimiser, average) is on disk. All processes together take `batch` clips a step.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from transformers import PreTrainedTokenizerFast

from backend.device import multiplies_bfloat16
from backend.mv_vdm.pipeline import MVVDM
from backend.protocol import UserError
from backend.training.captions import build_tokenizer
from backend.training.clips import HELD_OUT_SEED, Clip, rendered_clips
from backend.training.codec import run_codec
from backend.training.graphs import Gradients
from backend.training.latents import LatentStore
from backend.training.loop import Average, RunLog, SaveClock, build_optimizers, cosine_rate, load_state, save_state
from backend.training.objective import Batch, Draw, draw_frames, draw_noise, pure_noise_error, training_loss
from backend.training.starter import StarterModel, StarterSettings, build_scheduler, first_clip, write_settings

HELD_OUT_BATCH = 4
STATE = "video.state.safetensors"
Show = Callable[[int, StarterModel, RunLog], None]  # step, averaged model: draws into the log what it can do


def train_video(
    out: Path,
    steps: int,
    settings: StarterSettings,
    start: Path | None = None,
    rendered: Path | None = None,
    show: Show = lambda step, model, log: None,
    until: float = math.inf,
    seconds: float = math.inf,
    obtain: Callable[[int], None] | None = None,
) -> bool:
    """Trains up to step `steps`, resumes from `out`, keeps the averaged weights beside the state.

    Args:
        out: folder of the run; its `vae` folder is the codec.
        start: folder of weights that a fresh run starts from, instead of from nothing.
        rendered: folder of shards whose clips take part beside the procedural ones.
        show: called at each measurement.
        until: on the monotonic clock; the run saves and ends then, and can go on later.
        seconds: of training, of all runs together; where they come before `steps`, the schedule follows them.
        obtain: waits for a shard of clips that others make; None: the run makes them itself.

    Returns whether it is finished.

    Raises:
        UserError: the batch can't be shared out evenly among the processes, or the shards can't be read.
    """
    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    for batch in (settings.batch, whole_batch(settings)):
        share_of_batch(batch, accelerator.process_index, accelerator.num_processes)
    clips = rendered_clips(rendered) if rendered else []
    run = VideoRun(out, steps, settings, start, clips, accelerator, show, seconds)
    store = run.store(
        first_seed=first_clip(settings), rendered=clips, rendered_share=settings.rendered_share, obtain=obtain
    )
    while run.progress() < 1.0:
        run.train_on(*run.draw(store))
        ending = run.agreed(time.monotonic() > until, until)
        run.report(ending)
        if ending:
            break
    accelerator.end_training()
    return run.progress() >= 1.0


def whole_batch(settings: StarterSettings) -> int:
    """Clips a step in the last part of a run, which sees all of their frames."""
    return max(1, round(settings.whole_share * settings.batch))


def share_of_batch(batch: int, process: int, processes: int) -> slice:
    """The clips of each batch that one process of several takes."""
    if batch < 1:
        raise UserError("A batch needs at least one clip.", "Give a larger --batch.")
    if batch % processes:
        raise UserError(
            f"A batch of {batch} clips can't be shared out evenly among {processes} processes.",
            f"Give --batch as a multiple of {processes}.",
        )
    each = batch // processes
    return slice(process * each, (process + 1) * each)


class VideoRun:
    """One process's networks, optimiser, average and log of a run; only the main process writes."""

    def __init__(
        self,
        out: Path,
        steps: int,
        settings: StarterSettings,
        start: Path | None,
        clips: list[Clip],
        accelerator: Accelerator,
        show: Show,
        seconds: float = math.inf,
    ) -> None:
        self.out, self.settings, self.accelerator, self.show = out, settings, accelerator, show
        self.steps, self.seconds = steps, seconds
        torch.manual_seed(settings.seed)
        self.codec = run_codec(out).to(accelerator.device)
        self.tokenizer = run_tokenizer(out, [clip.caption for clip in clips], accelerator)
        self.scheduler = build_scheduler()
        self.levels = self.scheduler.config.num_train_timesteps
        self.model = StarterModel(settings, self.codec.config.latent_channels, self.tokenizer.get_vocab())
        if start is not None:
            start_from(self.model, self.tokenizer, start)
        self.model.to(accelerator.device)
        self.optimizers = build_optimizers(self.model, settings.learning_rate)
        self.average = Average(self.model, settings.average_decay)
        self.state = load_state(out / STATE, self.model, self.optimizers, self.average.shadow)
        self.wrapped, *self.steppers = accelerator.prepare(self.model, *self.optimizers)
        self.precision = partial(
            torch.autocast, accelerator.device.type, torch.bfloat16, multiplies_bfloat16(accelerator.device),
            cache_enabled=False,  # a recorded step must cast the weights anew
        )  # fmt: skip
        alone_on_gpu = accelerator.device.type == "cuda" and accelerator.num_processes == 1
        self.gradients = Gradients(self._loss, self.model.parameters(), record=alone_on_gpu)
        self.losses: list[torch.Tensor] = []  # of steps since the last look: reading each would wait for the GPU
        self.writes = accelerator.is_main_process
        if self.writes:
            write_settings(out, settings)
        self.log = RunLog(out / "video.csv", after_step=self.state.step, active=self.writes)
        self.held_out = self._held_out_batches() if self.writes else []
        self.started, self.clock = time.monotonic() - self.state.seconds, SaveClock(settings.save_seconds)

    def store(self, name: str = "clips", **where: object) -> LatentStore:
        """The prepared clips of this run, in its folder `name`."""
        settings = self.settings
        return LatentStore(
            self.out / name, self.codec, self.tokenizer, settings.size, settings.frames, settings.motions,
            shard_clips=settings.shard_clips, shards_in_use=settings.shards_in_use, **where,
        )  # fmt: skip

    def _held_out_batches(self) -> list[Batch]:
        """Two clips of each motion, of objects that are never trained on."""
        store = self.store("held_out", first_seed=HELD_OUT_SEED, balanced=True)
        batches = store.all(-(-2 * len(self.settings.motions) // HELD_OUT_BATCH), HELD_OUT_BATCH)
        return [{key: value.to(self.accelerator.device) for key, value in batch.items()} for batch in batches]

    def progress(self) -> float:
        """How far the run is, 0..1, by steps or by the clock."""
        by_clock = self.state.seconds / self.seconds
        if self.seconds < math.inf and self.accelerator.num_processes > 1:
            by_clock = self.accelerator.reduce(torch.tensor(by_clock, device=self.accelerator.device), "mean").item()
        return max(self.state.step / self.steps, by_clock)

    def draw(self, store: LatentStore) -> tuple[Batch, Draw]:
        """This process's part of the next step's clips, whatever was drawn before."""
        settings, step, device = self.settings, self.state.step, self.accelerator.device
        sparse = self.progress() < settings.sparse_share
        count = settings.batch if sparse else whole_batch(settings)
        part = share_of_batch(count, self.accelerator.process_index, self.accelerator.num_processes)
        rng = np.random.default_rng((settings.seed, step))
        batch = store.draw(rng, count, store.reached(step * settings.batch, settings.repeats), part)
        batch = {key: value.to(device) for key, value in batch.items()}
        if sparse:
            batch = draw_frames(batch, settings.sparse_frames, rng)
        clips = torch.Size((count, *batch["latents"].shape[1:]))
        return batch, draw_noise(clips, self.levels, settings, step, device)[part]

    def _loss(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        draw = Draw(*(inputs[field.name] for field in fields(Draw)))
        with self.precision():
            return training_loss(self.wrapped, self.scheduler, inputs, draw, self.settings)

    def train_on(self, batch: Batch, draw: Draw) -> None:
        """One step of the optimiser."""
        settings, state = self.settings, self.state
        rate = settings.learning_rate * cosine_rate(state.step, settings.warmup, self.progress())
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss = self.gradients(batch | vars(draw))
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        for stepper in self.steppers:
            stepper.step()
        self.average.update(self.model, state.step)
        self.losses.append(self.accelerator.reduce(loss, "mean"))
        state.step += 1
        state.seconds = time.monotonic() - self.started

    def agreed(self, over: bool, until: float) -> bool:
        """Whether the time is over for any of the processes: all must end at the same step."""
        if until == math.inf or self.accelerator.num_processes == 1:
            return over
        return bool(self.accelerator.reduce(torch.tensor(float(over), device=self.accelerator.device), "sum") > 0)

    def report(self, ending: bool) -> None:
        """Logs, saves and measures where it is time, or where the run is `ending`."""
        step, settings = self.state.step, self.settings
        last, saving = self.progress() >= 1.0, self.writes and self.clock.due()
        if last or ending or saving or step % settings.log_steps == 0:
            self.state.losses += [float(loss) for loss in self.losses]
            self.losses.clear()
        if last or step % settings.log_steps == 0:
            self.log.write(step=step, seconds=round(self.state.seconds), loss=float(np.mean(self.state.losses)))
            self.state.losses.clear()
        if self.writes and (last or ending or step % settings.measure_steps == 0):
            averaged = copy.deepcopy(self.model).eval()
            self.average.copy_to(averaged)
            with self.precision():
                self.log.write(step=step, **pure_noise_error(averaged, self.scheduler, self.held_out))
            self.show(step, averaged, self.log)
        if saving or (self.writes and (last or ending)):
            save_state(self.out / STATE, self.model, self.optimizers, self.state, self.average.shadow)


def run_tokenizer(
    out: Path, captions: Sequence[str] = (), accelerator: Accelerator | None = None
) -> PreTrainedTokenizerFast:
    """The tokenizer that a run began with, or a new one: later words in the code must not move its rows."""
    folder = out / "tokenizer"
    if not folder.exists() and (accelerator is None or accelerator.is_main_process):
        build_tokenizer(captions).save_pretrained(folder)
    if accelerator is not None:
        accelerator.wait_for_everyone()
    return PreTrainedTokenizerFast.from_pretrained(folder)


def start_from(model: StarterModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Puts the weights of a finished model in `folder` into a new one whose words may be others: words keep theirs."""
    finished = MVVDM.from_pretrained(folder)
    model.unet.load_state_dict(finished.unet.float().state_dict())
    model.image_encoder.load_state_dict(finished.image_encoder.float().state_dict())
    tensors = finished.text_encoder.float().state_dict()
    name = next(key for key in tensors if key.endswith("token_embedding.weight"))
    table = model.text_encoder.state_dict()[name].clone()
    known = finished.tokenizer.get_vocab()
    for word, row in tokenizer.get_vocab().items():
        if word in known:
            table[row] = tensors[name][known[word]]
    model.text_encoder.load_state_dict(tensors | {name: table})
