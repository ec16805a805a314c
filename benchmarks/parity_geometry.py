"""The parity check of cameras, the HexPlane and ARAP: ``golden/geometry``.

Not compared: `mvp_mtx` of camera.safetensors (nothing here uses that projection) and `mesh_sampled_P3` of
arap.safetensors (the reference draws three neighbours at random; here a vertex has all of its own).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backend.motion.arap import Neighbourhood, arap_loss, edge_rotations
from backend.motion.fields import frame_times
from backend.motion.hexplane import HexPlane
from backend.motion.settings import preset
from backend.mv_vdm.cameras import camera_vectors
from backend.protocol import PRESETS, condition_cameras, orbit_c2w
from backend.splats.definitions import focal_length, world_to_camera
from benchmarks.parity_unet import ROUNDING, Row, compare, in_type, read_tensors, relative

EXACT_LIMIT = 1e-6  # tables, cameras, HexPlane
ARAP_LIMIT = 1e-5  # float32 rotations from an SVD on one side and a closed form on the other
NO_PULL = 1e-6  # what a rigid motion may cost, where the right answer is 0


@torch.no_grad()
def camera_rows(golden: Path) -> Iterator[Row]:
    """Cameras, what the network is told about them, the rasterizer's view of them, and the frames' times."""
    data = read_tensors(golden / "geometry" / "camera.safetensors")

    def row(name: str, got: Tensor | np.ndarray, wanted: str) -> Row:
        return Row(name, relative(torch.as_tensor(got), data[wanted]), EXACT_LIMIT, ROUNDING)

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
    theirs = theirs[..., :2] / theirs[..., 3:]
    yield Row("rasterizer, projected points", relative(screen, theirs), EXACT_LIMIT, ROUNDING)
    for name in ("timestamps_64", "rand_timestamps_64"):
        yield row(f"times of the frames ({name})", frame_times(16).repeat(4)[:, None], name)


@torch.no_grad()
def hexplane_rows(golden: Path) -> Iterator[Row]:
    """Features, global motion and deformed Gaussians of the paper's field with the reference's weights."""
    data = read_tensors(golden / "geometry" / "hexplane.safetensors")
    times = {"tm06": -0.6, "t1": 1.0}
    results = {dtype: hexplane_results(in_type(data, dtype), times) for dtype in (torch.float32, torch.float64)}
    for name in results[torch.float32]:
        yield compare(f"HexPlane {name}", lambda dtype, name=name: results[dtype][name], data[name], EXACT_LIMIT)


def hexplane_results(data: dict[str, Tensor], moments: dict[str, float]) -> dict[str, Tensor]:
    """All that the reference stored, in the type of the data."""
    field = golden_hexplane(data)
    scales = data["scaling_raw"].exp()
    results = {"static_scaling": scales}
    for tag, moment in moments.items():
        times = torch.tensor([moment]).to(scales)
        turn, shift = field.global_motion(times)
        means, rotations, sizes = field.deform_gaussians(data["xyz"], data["rotation_raw"], scales, times)
        parts = {
            "features": field.features(data["xyz"], times)[0],
            "global_matrix": turn[0],
            "global_trans": shift,
            "xyz": means[0],
            "rotation": rotations[0],
            "scaling": sizes[0],
        }
        results |= {f"{tag}_{name}": got for name, got in parts.items()}
    return results


def golden_hexplane(data: dict[str, Tensor]) -> HexPlane:
    """A field with the stored planes and networks; all sizes, and the type, are theirs."""
    scales = sorted({name.split("_")[0] for name in data if name.startswith("grid")})
    xy, xz, xt = ([data[f"{scale}_plane{plane}"].shape for scale in scales] for plane in range(3))
    sizes = tuple((a[3], a[2], b[2], c[2]) for a, b, c in zip(xy, xz, xt, strict=True))
    hidden = len(data["delta_xyz_network.layers.0.weight"])
    result = HexPlane(data["xyz"], sizes, channels=xy[0][1], hidden=hidden).to(data["xyz"])
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
    data = read_tensors(golden / "geometry" / "arap.safetensors")
    wrong = [name for name in PRESETS if preset(name).arap_quirk != (name == "paper")]
    yield Row("ARAP quirk (on in the preset paper, else off): presets where it is not so", len(wrong), 0)
    for case in sorted(name[:-6] for name in data if name.endswith("_error")):
        results = {dtype: arap_results(in_type(data, dtype), case) for dtype in (torch.float32, torch.float64)}
        if case == "rigid":  # nothing but rounding on either side, in the loss and in its gradient
            yield Row("ARAP rigid: loss", float(results[torch.float32]["error"]), NO_PULL, float(data["rigid_error"]))
            compared = ["rotation"]
        else:
            compared = ["error", "grad", "rotation"]
        for part in compared:
            yield compare(
                f"ARAP {case}: {part}",
                lambda dtype, part=part, results=results: results[dtype][part],
                data[f"{case}_{part}"],
                ARAP_LIMIT,
            )
        if case.startswith("rigid"):
            without, quirk = results[torch.float32]["without"], float(data[f"{case}_error"])
            yield Row(f"ARAP {case}: loss without the quirk (reference {quirk:.2g})", float(without), NO_PULL)
    table = data["k3_jj"].view(-1, 3).sort().values
    nearest = Neighbourhood.nearest(data["nodes"][0].numpy()).index.sort().values
    yield Row("ARAP: nearest neighbours", relative(nearest, table), 0)
    wanted = [sorted({int(i) for i in row if i >= 0}) for row in data["mesh_neighbours"]]
    edges = np.array([(i, j, j) for i, row in enumerate(wanted) for j in row])
    index = Neighbourhood.of_mesh(edges, np.arange(len(wanted))).index
    got = [sorted(set(row.tolist()) - {i}) for i, row in enumerate(index)]
    yield Row("ARAP: neighbours on a mesh that differ", sum(a != b for a, b in zip(got, wanted, strict=True)), 0)


def arap_results(data: dict[str, Tensor], case: str) -> dict[str, Tensor]:
    """Loss, gradient and rotations with the quirk, and the loss without, in the type of the data."""
    nodes = data.get(f"{case}_nodes", data["nodes"]).clone().requires_grad_()
    neighbours, sample = golden_neighbours(data, case, nodes.shape[1]), data.get(f"{case}_sample_idx")
    loss = arap_loss(nodes[0], nodes[1:], neighbours, sample, reference_quirk=True)
    loss.backward()
    with torch.no_grad():
        edges = nodes[:, :, None] - nodes[:, neighbours.index]
        rotation = edge_rotations(edges[0], edges[1:], reference_quirk=True)
        without = arap_loss(nodes[0], nodes[1:], neighbours, sample)
    return {"error": loss.detach()[None], "grad": nodes.grad, "rotation": rotation, "without": without}


def golden_neighbours(data: dict[str, Tensor], case: str, points: int) -> Neighbourhood:
    start, other, slot = (data[f"{case}_{name}"] for name in ("ii", "jj", "nn"))
    index = torch.arange(points)[:, None].repeat(1, int(slot.max()) + 1)
    index[start, slot] = other
    return Neighbourhood(index)
