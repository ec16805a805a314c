"""Does this code give the reference implementation's numbers? Exit code 0 only when every row holds.

    python benchmarks/parity.py --report parity.json              everything in ../shared/reference/golden
    python benchmarks/parity.py --only hexplane arap cameras      some parts of it
    python benchmarks/parity.py --unet-set DIR                    the UNet part on a folder in the format of golden/A

float32 on the CPU. A row is a relative L2 error, what is allowed, and beside it the reference's own noise floor (its
float32 against its float64 result) where the golden data tell it. A missing or damaged file is a row that fails.
Not compared: `mvp_mtx` of camera.safetensors (nothing here uses that projection) and `mesh_sampled_P3` of
arap.safetensors (the reference draws three neighbours at random; here a vertex has all of its own).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backend.motion.arap import Neighbourhood, arap_loss, edge_rotations
from backend.motion.fields import frame_times
from backend.motion.guidance import GuidanceSettings, sds_loss, sds_target
from backend.motion.hexplane import HexPlane
from backend.motion.settings import preset
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
from backend.protocol import PRESETS, condition_cameras, orbit_c2w, write_json
from backend.splats.definitions import focal_length, world_to_camera
from benchmarks.parity_unet import Row, UNetSet, relative, unet_rows

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "reference" / "golden"
LOOP_LIMIT = 1e-4  # sampling runs and SDS
EXACT_LIMIT = 1e-6  # tables, cameras, HexPlane
ARAP_LIMIT = 1e-5  # float32 rotations from an SVD on one side and a closed form on the other
NO_PULL = 1e-6  # what a rigid motion may cost, where the right answer is 0


def key_rows(golden: Path) -> Iterator[Row]:
    """The full-size network on the meta device has the reference's keys and shapes, no other and no fewer."""
    wanted = json.loads((golden / "unet_keys.json").read_text(encoding="utf-8"))["keys"]
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
    settings = json.loads((golden / "sampling" / "sampling.json").read_text(encoding="utf-8"))["scheduler"]
    names = (
        "num_train_timesteps beta_start beta_end beta_schedule steps_offset clip_sample prediction_type "
        "timestep_spacing set_alpha_to_one rescale_betas_zero_snr thresholding"
    )
    return DDIMScheduler(**{name: settings[name] for name in names.split()})


@torch.no_grad()
def sampling_rows(golden: Path) -> Iterator[Row]:
    """The schedule, FreeInit's parts, and the three runs: our sampler and UNet on the reference's weights and noise."""
    info = json.loads((golden / "sampling" / "sampling.json").read_text(encoding="utf-8"))
    data, scheduler = load_file(golden / "sampling" / "sampling.safetensors"), read_scheduler(golden)
    yield Row("alphas_cumprod", relative(scheduler.alphas_cumprod, data["alphas_cumprod"]), EXACT_LIMIT)
    yield Row("betas", relative(scheduler.betas, data["betas"]), EXACT_LIMIT)
    for steps in (4, 25):
        solver = make_solver(scheduler, "ddim")
        solver.set_timesteps(steps)
        yield Row(f"timesteps of {steps}", relative(solver.timesteps, data[f"ddim_timesteps_{steps}"]), 0)
    mask = low_pass_filter(*data["freeinit_filter"].shape)
    yield Row("FreeInit filter", relative(mask, data["freeinit_filter"]), EXACT_LIMIT)
    passed, noise, fresh = data["plain_final_latents"][:, :, 1:], data["initial_noise"], data["freeinit_z_rand"]
    again = reinitialise_noise(passed, noise, fresh, scheduler.alphas_cumprod[-1])
    yield Row("FreeInit noise of the second pass", relative(again, data["freeinit_reinit_latents"]), LOOP_LIMIT)

    unet, floor = UNetSet.open(golden / "A").network(), info["noise_floor_f32_vs_f64_rel_l2_plain_final"]
    views, settings = info["settings"]["views"], info["settings"]
    conditions = golden_conditions(data["prompt_embeds"], data["negative_prompt_embeds"], data, views)
    first = data["first_frame_latents"]
    start = torch.cat([first[:, :, None], noise], dim=2)
    both = torch.cat(Denoiser(unet, scheduler).paired(start, data["ddim_timesteps_4"][0], *conditions))
    yield Row("first prediction, both halves", relative(both, data["plain_noise_pred_step0"]), LOOP_LIMIT)
    runs = (
        ("plain", settings["guidance_scale"], 1),
        ("freeinit", settings["guidance_scale"], info["freeinit"]["num_iters"]),
        ("guidance1", 1.0, 1),
    )
    for name, scale, passes in runs:
        recorder, draws = Recorder(unet, scheduler), iter([noise, fresh])
        sampler = SamplerSettings(steps=settings["steps"], guidance_scale=scale, freeinit_iterations=passes)
        got = sample_latents(recorder, first, lambda draws=draws: next(draws), *conditions, sampler)
        known = floor if name == "plain" else None
        yield Row(f"{name} run, final latents", relative(got, data[f"{name}_final_latents"]), LOOP_LIMIT, known)
        per_step = data.get(f"{name}_latents_per_step")
        if per_step is not None:
            starts = zip(recorder.seen[1:], per_step[:-1], strict=True)
            kept = [pair for step, pair in enumerate(starts, start=1) if step % settings["steps"]]
            worst = max(relative(*pair) for pair in kept)
            yield Row(f"{name} run, worst of {len(kept)} steps on the way", worst, LOOP_LIMIT)


def golden_conditions(
    prompt: Tensor, no_prompt: Tensor, data: dict[str, Tensor], views: int
) -> tuple[Conditions, Conditions]:
    """(conditional, unconditional) from stored embeddings [1, tokens, d]; cameras as vectors or c2w of all frames."""
    camera = data.get("camera")
    if camera is None:
        camera = camera_vectors(data["camera_c2w"].unflatten(0, (views, -1))[:, 0])
    image = data["image_embeds"]
    return (
        Conditions(prompt.expand(views, -1, -1), image, camera),
        Conditions(no_prompt.expand(views, -1, -1), torch.zeros_like(image), camera),
    )


def sds_rows(golden: Path) -> Iterator[Row]:
    """Loss, gradient and target of the guidance at each stored noise level."""
    info = json.loads((golden / "geometry" / "geometry.json").read_text(encoding="utf-8"))["sds.safetensors"]
    data, chosen = load_file(golden / "geometry" / "sds.safetensors"), info["settings"]
    settings = GuidanceSettings(guidance_scale=chosen["guidance_scale"], std_rescale=chosen["recon_std_rescale"])
    released = GuidanceSettings()
    differ = (settings != released) + (released.timestep_range(1000, 0.0) != (20, 200))
    yield Row("SDS settings that differ from the defaults", differ, 0)
    reference = UNetSet.open(golden / "A")
    denoiser = Denoiser(reference.network().requires_grad_(False), read_scheduler(golden))
    noise = data["noise"][0]  # [view, c, f - 1, h, w]
    views = len(noise)
    conditions = golden_conditions(data["text"], data["uncond_text"], data, views)
    for timestep in sorted(int(name[1:-5]) for name in data if name.endswith("_loss")):
        flat = data["latents"].clone().requires_grad_()  # [(view frame), c, h, w]
        latents = flat.unflatten(0, (views, -1)).transpose(1, 2)
        target = sds_target(denoiser, latents, noise, timestep, *conditions, settings)
        loss = sds_loss(latents, target)
        loss.backward()
        wanted = {part: data[f"t{timestep}_{part}"] for part in ("loss", "grad", "latents_recon")}
        target = target.transpose(1, 2).flatten(0, 1)
        yield Row(f"SDS loss, t = {timestep}", relative(loss.detach()[None], wanted["loss"]), LOOP_LIMIT)
        yield Row(f"SDS gradient, t = {timestep}", relative(flat.grad, wanted["grad"]), LOOP_LIMIT)
        yield Row(f"SDS target, t = {timestep}", relative(target, wanted["latents_recon"]), LOOP_LIMIT)


@torch.no_grad()
def camera_rows(golden: Path) -> Iterator[Row]:
    """Cameras, what the network is told about them, the rasterizer's view of them, and the frames' times."""
    data = load_file(golden / "geometry" / "camera.safetensors")

    def row(name: str, got: Tensor | np.ndarray, wanted: str) -> Row:
        return Row(name, relative(torch.as_tensor(got), data[wanted]), EXACT_LIMIT)

    ours = torch.from_numpy(condition_cameras())
    yield row("condition cameras", ours, "c2w")
    yield row("condition cameras, position", ours[:, :3, 3], "camera_position")
    yield row("camera vectors (guidance)", camera_vectors(data["c2w"]), "mvdream_camera_cond")
    yield row("camera vectors (sampling)", camera_vectors(ours), "pipeline_get_camera4")
    turned = np.stack([orbit_c2w(azimuth, 5.0) for azimuth in (30.0, 120.0, 210.0, 300.0)])
    yield row("camera vectors, elevation 5, azimuth 30", camera_vectors(turned), "pipeline_get_camera4_elev5_azi30")
    drawn = zip(*(data[f"rand_{name}"] for name in ("azimuth_deg", "elevation_deg", "camera_distance")), strict=True)
    drawn = np.stack([orbit_c2w(*map(float, camera)) for camera in drawn])
    yield row("random cameras", drawn, "rand_c2w")
    yield row("random cameras, vectors", camera_vectors(drawn), "rand_mvdream_camera_cond")
    view, focal = world_to_camera(ours), focal_length(math.degrees(float(data["fovy_rad"])), 256, 1)
    yield row("rasterizer, world to camera", view.mT, "gauss_world_view_transform_T")
    yield row("rasterizer, focal length in pixels", focal, "focal_px_256")
    centre = torch.linalg.inv(view)[:, :3, 3]
    yield row("rasterizer, camera centre", centre, "gauss_camera_center")
    # The full projection takes points to -1..1; here a point lies at focal x / z of the picture's half size.
    points = torch.cat([torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) - 0.5, torch.ones(20, 1)], dim=1)
    theirs = points.double() @ data["gauss_full_proj_transform_T"].double()
    camera = points.double() @ view.mT
    screen = focal * camera[..., :2] / camera[..., 2:3] / 128
    yield Row("rasterizer, projected points", relative(screen, theirs[..., :2] / theirs[..., 3:]), EXACT_LIMIT)
    for name in ("timestamps_64", "rand_timestamps_64"):
        yield row(f"times of the frames ({name})", frame_times(16).repeat(4)[:, None], name)


@torch.no_grad()
def hexplane_rows(golden: Path) -> Iterator[Row]:
    """Features, global motion and deformed Gaussians of the paper's field with the reference's weights."""
    data = load_file(golden / "geometry" / "hexplane.safetensors")
    field_ = golden_hexplane(data)
    raw, scales = data["rotation_raw"], data["scaling_raw"].exp()
    yield Row("static scales", relative(scales, data["static_scaling"]), EXACT_LIMIT)
    for tag, time in (("tm06", -0.6), ("t1", 1.0)):
        times = torch.tensor([time])
        turn, shift = field_.global_motion(times)
        means, rotations, sizes = field_.deform_gaussians(data["xyz"], raw, scales, times)
        parts = {
            "features": field_.features(data["xyz"], times)[0],
            "global_matrix": turn[0],
            "global_trans": shift,
            "xyz": means[0],
            "rotation": rotations[0],
            "scaling": sizes[0],
        }
        for name, got in parts.items():
            yield Row(f"HexPlane {name}, time {time}", relative(got, data[f"{tag}_{name}"]), EXACT_LIMIT)


def golden_hexplane(data: dict[str, Tensor]) -> HexPlane:
    """A field with the stored planes and networks; all sizes are theirs."""
    scales = sorted({name.split("_")[0] for name in data if name.startswith("grid")})
    xy, xz, xt = ([data[f"{scale}_plane{plane}"].shape for scale in scales] for plane in range(3))
    sizes = tuple((a[3], a[2], b[2], c[2]) for a, b, c in zip(xy, xz, xt, strict=True))
    hidden = len(data["delta_xyz_network.layers.0.weight"])
    result = HexPlane(data["xyz"], sizes, channels=xy[0][1], hidden=hidden)
    for scale, planes in zip(scales, result.grids, strict=True):
        for index, plane in enumerate(planes):
            plane.copy_(data[f"{scale}_plane{index}"])
    networks = {
        "delta_xyz": result.delta_xyz,
        "delta_rot": result.delta_rotation,
        "delta_scaling": result.delta_scale,
        "global_rot": result.global_rotation,
        "global_trans": result.global_translation,
    }
    for name, network in networks.items():
        for layer in (0, 2):
            network[layer].weight.copy_(data[f"{name}_network.layers.{layer}.weight"])
    return result


def arap_rows(golden: Path) -> Iterator[Row]:
    """ARAP with the reference's quirk, as the paper preset has it, and what a rigid motion costs with and without."""
    data = load_file(golden / "geometry" / "arap.safetensors")
    wrong = [name for name in PRESETS if preset(name).arap_quirk != (name == "paper")]
    yield Row("ARAP quirk: presets where it is wrongly on or off", len(wrong), 0)
    for case in sorted(name[:-6] for name in data if name.endswith("_error")):
        nodes = data.get(f"{case}_nodes", data["nodes"]).clone().requires_grad_()
        neighbours = golden_neighbours(data, case, nodes.shape[1])
        sample = data.get(f"{case}_sample_idx")
        loss = arap_loss(nodes[0], nodes[1:], neighbours, sample, reference_quirk=True)
        loss.backward()
        error, rigid = loss.detach()[None], case.startswith("rigid")
        if case == "rigid":  # nothing but rounding on either side, in the loss and in its gradient
            yield Row("ARAP rigid: loss", float(error), NO_PULL)
        else:
            yield Row(f"ARAP {case}: loss", relative(error, data[f"{case}_error"]), ARAP_LIMIT)
            yield Row(f"ARAP {case}: gradient", relative(nodes.grad, data[f"{case}_grad"]), ARAP_LIMIT)
        with torch.no_grad():
            edges = nodes[:, :, None] - nodes[:, neighbours.index]
            turned = edge_rotations(edges[0], edges[1:], reference_quirk=True)
            yield Row(f"ARAP {case}: rotations", relative(turned, data[f"{case}_rotation"]), ARAP_LIMIT)
            if rigid:
                without = arap_loss(nodes[0], nodes[1:], neighbours, sample)
                quirk = float(data[f"{case}_error"])
                yield Row(f"ARAP {case}: loss without the quirk (reference {quirk:.2g})", float(without), NO_PULL)
    table = data["k3_jj"].view(-1, 3).sort().values
    nearest = Neighbourhood.nearest(data["nodes"][0].numpy()).index.sort().values
    yield Row("ARAP: nearest neighbours", relative(nearest, table), 0)
    wanted = [sorted({int(i) for i in row if i >= 0}) for row in data["mesh_neighbours"]]
    edges = np.array([(i, j, j) for i, row in enumerate(wanted) for j in row])
    index = Neighbourhood.of_mesh(edges, np.arange(len(wanted))).index
    got = [sorted(set(row.tolist()) - {i}) for i, row in enumerate(index)]
    yield Row("ARAP: neighbours on a mesh that differ", sum(a != b for a, b in zip(got, wanted, strict=True)), 0)


def golden_neighbours(data: dict[str, Tensor], case: str, points: int) -> Neighbourhood:
    start, other, slot = (data[f"{case}_{name}"] for name in ("ii", "jj", "nn"))
    index = torch.arange(points)[:, None].repeat(1, int(slot.max()) + 1)
    index[start, slot] = other
    return Neighbourhood(index)


PARTS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "keys": key_rows,
    "unet": lambda golden: unet_rows(golden / "A"),
    "cameras": camera_rows,
    "sampling": sampling_rows,
    "sds": sds_rows,
    "hexplane": hexplane_rows,
    "arap": arap_rows,
}


def collect(part: str, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows; what breaks them off is one more row, which fails."""
    try:
        yield from rows
    except (OSError, SafetensorError, ValueError, LookupError, RuntimeError, TypeError, AttributeError) as error:
        text = " ".join(str(error).split())[:150]
        yield Row(f"{part} broke off: {type(error).__name__}: {text}", float("nan"), 0)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, default=GOLDEN, help="folder of the reference's inputs and outputs")
    parser.add_argument("--unet-set", type=Path, help="only the UNet part, on this folder")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--report", type=Path)
    options = parser.parse_args(arguments)
    if options.unet_set:
        parts = {"unet": unet_rows(options.unet_set)}
    else:
        parts = {name: PARTS[name](options.golden) for name in options.only}
    table = Table("part", "what", "error", "allowed", "reference's floor", "")
    rows = []
    for part, found in parts.items():
        for row in collect(part, found):
            rows.append({"part": part, **asdict(row), "holds": row.holds})
            numbers = ["" if value is None else f"{value:.2g}" for value in (row.error, row.limit, row.floor)]
            table.add_row(part, row.name, *numbers, "holds" if row.holds else "FAILS")
    Console(width=150).print(table)
    failed = sum(not row["holds"] for row in rows)
    print(f"{len(rows) - failed} of {len(rows)} rows hold")
    if options.report:
        # JSON knows no nan: what could not be compared has no error.
        plain = [row | {"error": None if math.isnan(row["error"]) else row["error"]} for row in rows]
        write_json(options.report, {"rows": plain, "failed": failed, "torch": torch.__version__})
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
