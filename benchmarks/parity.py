"""Does this code give the reference implementation's numbers? Exit code 0 only when every row holds.

    python benchmarks/parity.py --report parity.json              everything in ../shared/reference/golden
    python benchmarks/parity.py --only hexplane arap cameras      some parts of it
    python benchmarks/parity.py --unet-set DIR                    the UNet part on a folder in the format of golden/A

float32 on the CPU. A row is a relative L2 error, what is allowed, and beside it the reference's own noise floor: the
error of its float32 result against float64, as `Row` explains. `--no-floors` leaves out those that take long.
A missing or damaged file ends its part with one sentence, and the exit code is not 0.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backend.device import versions
from backend.motion.guidance import GuidanceSettings, sds_loss, sds_target
from backend.mv_vdm.cameras import camera_vectors
from backend.mv_vdm.sampling import (
    Conditions,
    Denoiser,
    SamplerSettings,
    low_pass_filter,
    make_solver,
    reinitialise_noise,
    sample_latents,
)
from backend.mv_vdm.unet import MVVDMUNet
from backend.protocol import write_json
from benchmarks.parity_geometry import EXACT_LIMIT, arap_rows, camera_rows, hexplane_rows
from benchmarks.parity_unet import (
    ROUNDING,
    Row,
    SetError,
    UNetSet,
    compare,
    in_type,
    read_json,
    read_tensors,
    relative,
    unet_rows,
)

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "reference" / "golden"
LOOP_LIMIT = 1e-4  # sampling runs and SDS


def key_rows(golden: Path) -> Iterator[Row]:
    """The full-size network on the meta device has the reference's keys and shapes, no other and no fewer."""
    wanted = read_json(golden / "unet_keys.json")["keys"]
    with torch.device("meta"):
        state = MVVDMUNet().state_dict()
    ours = {(key, tuple(tensor.shape)) for key, tensor in state.items()}
    theirs = {(key, tuple(entry["shape"])) for key, entry in wanted.items()}
    yield Row(f"full size: keys and shapes that differ, of {len(theirs)}", len(ours ^ theirs), 0)


@dataclass(frozen=True)
class Recorder(Denoiser):
    """Keeps the latents that each step starts from."""

    seen: list[Tensor] = field(default_factory=list)

    def clean(self, latents: Tensor, *rest) -> Tensor:
        self.seen.append(latents)
        return super().clean(latents, *rest)


def read_scheduler(golden: Path) -> DDIMScheduler:
    """The reference's schedule."""
    settings = read_json(golden / "sampling" / "sampling.json")["scheduler"]
    names = (
        "num_train_timesteps beta_start beta_end beta_schedule steps_offset clip_sample prediction_type "
        "timestep_spacing set_alpha_to_one rescale_betas_zero_snr thresholding"
    )
    return DDIMScheduler(**{name: settings[name] for name in names.split()})


@torch.no_grad()
def sampling_rows(golden: Path, floors: bool = True) -> Iterator[Row]:
    """The schedule, FreeInit's parts, and the three runs: our sampler and UNet on the reference's weights and noise."""
    info = read_json(golden / "sampling" / "sampling.json")
    data, scheduler = read_tensors(golden / "sampling" / "sampling.safetensors"), read_scheduler(golden)
    yield Row("alphas_cumprod", relative(scheduler.alphas_cumprod, data["alphas_cumprod"]), EXACT_LIMIT, ROUNDING)
    yield Row("betas", relative(scheduler.betas, data["betas"]), EXACT_LIMIT, ROUNDING)
    for steps in (4, 25):
        solver = make_solver(scheduler, "ddim")
        solver.set_timesteps(steps)
        yield Row(f"timesteps of {steps}", relative(solver.timesteps, data[f"ddim_timesteps_{steps}"]), 0)
    mask = low_pass_filter(*data["freeinit_filter"].shape)
    yield Row("FreeInit filter", relative(mask, data["freeinit_filter"]), EXACT_LIMIT, ROUNDING)

    def renoise(dtype: torch.dtype) -> Tensor:
        typed = in_type(data, dtype)
        passed, noise, fresh = typed["plain_final_latents"][:, :, 1:], typed["initial_noise"], typed["freeinit_z_rand"]
        return reinitialise_noise(passed, noise, fresh, scheduler.alphas_cumprod[-1])

    yield compare("FreeInit noise of the second pass", renoise, data["freeinit_reinit_latents"], LOOP_LIMIT)
    runs = {dtype: GoldenRuns(golden, info, data, scheduler, dtype) for dtype in (torch.float32, torch.float64)}

    def predict(dtype: torch.dtype) -> Tensor:
        return torch.cat(runs[dtype].first_prediction())

    wanted = data["plain_noise_pred_step0"]
    yield compare("first prediction, both halves", predict, wanted, LOOP_LIMIT, floors=floors)
    for name in ("plain", "freeinit", "guidance1"):
        yield from run_rows(name, runs, data, info, floors)


@dataclass(frozen=True)
class GoldenRuns:
    """The reference's sampling runs, done here in one type."""

    golden: Path
    info: dict
    data: dict[str, Tensor]
    scheduler: DDIMScheduler
    dtype: torch.dtype

    @cached_property
    def network(self) -> MVVDMUNet:
        return UNetSet.open(self.golden / "A").network(dtype=self.dtype)

    def _start(self) -> tuple[Tensor, list[Tensor], tuple[Conditions, Conditions]]:
        """Frame 0, all noise, and the conditions."""
        data = in_type(self.data, self.dtype)
        prompts = data["prompt_embeds"], data["negative_prompt_embeds"]
        conditions = golden_conditions(*prompts, data, self.info["settings"]["views"])
        return data["first_frame_latents"], [data["initial_noise"], data["freeinit_z_rand"]], conditions

    def first_prediction(self) -> tuple[Tensor, Tensor]:
        """What the network says at the first step, without and with the prompt."""
        first, (noise, _), conditions = self._start()
        start = torch.cat([first[:, :, None], noise], dim=2)
        return Denoiser(self.network, self.scheduler).paired(start, self.data["ddim_timesteps_4"][0], *conditions)

    def run(self, name: str) -> tuple[Tensor, list[Tensor]]:
        """Final latents, and those that each step started from."""
        settings, (first, noise, conditions) = self.info["settings"], self._start()
        recorder, draws = Recorder(self.network, self.scheduler), iter(noise)
        sampler = SamplerSettings(
            steps=settings["steps"],
            guidance_scale=1.0 if name == "guidance1" else settings["guidance_scale"],
            freeinit_iterations=self.info["freeinit"]["num_iters"] if name == "freeinit" else 1,
        )
        return sample_latents(recorder, first, lambda: next(draws), *conditions, sampler), recorder.seen


def run_rows(
    name: str, runs: dict[torch.dtype, GoldenRuns], data: dict[str, Tensor], info: dict, floors: bool
) -> Iterator[Row]:
    """One run: its end, and the worst of the steps on the way."""
    wanted = data[f"{name}_final_latents"]
    got, seen = runs[torch.float32].run(name)
    exact, exactly_seen = runs[torch.float64].run(name) if floors else (None, None)
    floor = info["noise_floor_f32_vs_f64_rel_l2_plain_final"] if name == "plain" else None
    if floors and floor is None:
        floor = relative(exact, wanted)
    yield Row(f"{name} run, final latents", relative(got, wanted), LOOP_LIMIT, floor)
    per_step, steps = data.get(f"{name}_latents_per_step"), info["settings"]["steps"]
    if per_step is None:
        return

    def worst(starts: list[Tensor]) -> float:
        pairs = zip(starts[1:], per_step[:-1], strict=True)
        return max(relative(*pair) for step, pair in enumerate(pairs, start=1) if step % steps)

    floor = worst(exactly_seen) if floors else None
    yield Row(f"{name} run, worst of the steps on the way", worst(seen), LOOP_LIMIT, floor)


def golden_conditions(
    prompt: Tensor, no_prompt: Tensor, data: dict[str, Tensor], views: int
) -> tuple[Conditions, Conditions]:
    """(conditional, unconditional) from stored embeddings [1, tokens, d]; cameras as vectors or c2w of all frames."""
    camera = data.get("camera")
    if camera is None:
        camera = camera_vectors(data["camera_c2w"].unflatten(0, (views, -1))[:, 0])
    image = data["image_embeds"]
    camera = camera.to(image)
    return (
        Conditions(prompt.expand(views, -1, -1), image, camera),
        Conditions(no_prompt.expand(views, -1, -1), torch.zeros_like(image), camera),
    )


def sds_rows(golden: Path, floors: bool = True) -> Iterator[Row]:
    """Loss, gradient and target of the guidance at each stored noise level."""
    info = read_json(golden / "geometry" / "geometry.json")["sds.safetensors"]
    data, chosen = read_tensors(golden / "geometry" / "sds.safetensors"), info["settings"]
    settings = GuidanceSettings(guidance_scale=chosen["guidance_scale"], std_rescale=chosen["recon_std_rescale"])
    released = GuidanceSettings()
    differ = (settings != released) + (released.timestep_range(1000, 0.0) != (20, 200))
    yield Row("SDS settings that differ from the defaults", differ, 0)
    reference, scheduler = UNetSet.open(golden / "A"), read_scheduler(golden)
    networks = {
        dtype: Denoiser(reference.network(dtype=dtype).requires_grad_(False), scheduler)
        for dtype in ((torch.float32, torch.float64) if floors else (torch.float32,))
    }
    for timestep in sorted(int(name[1:-5]) for name in data if name.endswith("_loss")):
        results = {
            dtype: sds_results(denoiser, in_type(data, dtype), timestep, settings)
            for dtype, denoiser in networks.items()
        }
        for part in ("loss", "grad", "latents_recon"):
            wanted, name = data[f"t{timestep}_{part}"], f"SDS {part}, t = {timestep}"
            yield compare(name, lambda dtype: results[dtype][part], wanted, LOOP_LIMIT, floors=floors)  # noqa: B023


def sds_results(
    denoiser: Denoiser, data: dict[str, Tensor], timestep: int, settings: GuidanceSettings
) -> dict[str, Tensor]:
    """All that the reference stored of one noise level, in the type of the data."""
    noise = data["noise"][0]  # [view, c, f - 1, h, w]
    views = len(noise)
    conditions = golden_conditions(data["text"], data["uncond_text"], data, views)
    flat = data["latents"].clone().requires_grad_()  # [(view frame), c, h, w]
    latents = flat.unflatten(0, (views, -1)).transpose(1, 2)
    target = sds_target(denoiser, latents, noise, timestep, *conditions, settings)
    loss = sds_loss(latents, target)
    loss.backward()
    return {"loss": loss.detach()[None], "grad": flat.grad, "latents_recon": target.transpose(1, 2).flatten(0, 1)}


PARTS: dict[str, Callable[[Path, bool], Iterator[Row]]] = {
    "keys": lambda golden, floors: key_rows(golden),
    "unet": lambda golden, floors: unet_rows(golden / "A"),
    "cameras": lambda golden, floors: camera_rows(golden),
    "sampling": sampling_rows,
    "sds": sds_rows,
    "hexplane": lambda golden, floors: hexplane_rows(golden),
    "arap": lambda golden, floors: arap_rows(golden),
}


def collect(part: str, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows; what breaks them off is told in one sentence, and is one more row, which fails."""
    try:
        yield from rows
    except (SetError, OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError) as error:
        if isinstance(error, SetError):
            sentence = str(error)
        elif isinstance(error, KeyError):
            sentence = f"The files of the part {part} do not hold {error}."
        else:
            sentence = f"The files of the part {part} do not fit together: {' '.join(str(error).split())[:150]}"
        print(sentence, file=sys.stderr)
        yield Row(f"broke off: {sentence}", float("nan"), 0)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, default=GOLDEN, help="folder of the reference's inputs and outputs")
    parser.add_argument("--unet-set", type=Path, help="only the UNet part, on this folder")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--no-floors", action="store_true", help="no noise floors of sampling runs and SDS: faster")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args(arguments)
    if options.unet_set:
        parts = {"unet": unet_rows(options.unet_set)}
    else:
        parts = {name: PARTS[name](options.golden, not options.no_floors) for name in options.only}
    rows = [(part, row) for part, found in parts.items() for row in collect(part, found)]
    failed = sum(not row.holds for _, row in rows)
    if len(rows) > failed or len(rows) > 1:
        show(rows)
    if options.report:
        # JSON knows no nan: what could not be compared has no error.
        plain = [{"part": part, **asdict(row), "holds": row.holds} for part, row in rows]
        plain = [row | {"error": None if math.isnan(row["error"]) else row["error"]} for row in plain]
        about = {"date": time.strftime("%Y-%m-%d"), "device": torch.cpu.get_capabilities().get("cpu_name", "CPU")}
        write_json(options.report, {**about, "versions": versions(), "failed": failed, "rows": plain})
    return 1 if failed or not rows else 0


def show(rows: list[tuple[str, Row]]) -> None:
    table = Table("part", "what", "error", "allowed", "reference's floor", "")
    for part, row in rows:
        numbers = ["" if value is None else f"{value:.2g}" for value in (row.error, row.limit, row.floor)]
        table.add_row(part, row.name, *numbers, "holds" if row.holds else "FAILS")
    Console(width=150).print(table)
    print(f"{sum(row.holds for _, row in rows)} of {len(rows)} rows hold")


if __name__ == "__main__":
    sys.exit(main())
