"""Gaussians on meshes, their files, and their colours from views."""

import math

import numpy as np
import pytest
import torch
from test_splats_rasterizer import camera

from backend.splats import Gaussians, from_mesh, rasterize, read_ply, refine_shape, solve_colors, write_ply
from backend.splats.reference import quaternions_to_matrices

TRIANGLE = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
FACE = torch.tensor([[0, 1, 2]])


def sphere(rings: int = 24, segments: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit sphere as vertices [V, 3] and faces [F, 3]; the faces at the poles have no area."""
    theta, phi = np.meshgrid(
        np.linspace(0, np.pi, rings + 1), np.arange(segments) * 2 * np.pi / segments, indexing="ij"
    )
    points = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], -1).reshape(-1, 3)
    i, j = np.meshgrid(np.arange(rings), np.arange(segments), indexing="ij")
    a, b = i * segments + j, i * segments + (j + 1) % segments
    faces = np.concatenate(
        [np.stack(f, -1).reshape(-1, 3) for f in ((a, a + segments, b), (b, a + segments, b + segments))]
    )
    return torch.from_numpy(points).float(), torch.from_numpy(faces)


def covariances(means: torch.Tensor, quats: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    axes = quaternions_to_matrices(quats) * scales[..., None, :]
    return axes @ axes.mT


def test_covers_the_surface_evenly():
    vertices, faces = sphere()
    g = from_mesh(vertices, faces, 1000, seed=3)
    assert len(g) == 1000
    assert (g.means.norm(dim=1) - 1).abs().max() < 0.02
    normal = quaternions_to_matrices(g.quats)[..., 2]
    assert (normal * g.means).sum(-1).min() > 0.98  # outwards, like the faces
    distance = torch.cdist(g.means, g.means).fill_diagonal_(9).amin(1)
    even = math.sqrt(4 * math.pi / 1000)
    assert distance.min() > 0.5 * even  # random samples would come as near as 0.03
    covered = torch.cdist(vertices, g.means).amin(1)
    assert covered.max() < 1.2 * even
    assert 0.3 * even < g.scales[:, 0].min() and g.scales[:, 0].max() < 1.2 * even


def test_same_seed_same_gaussians():
    mesh = sphere()
    a, b, c = from_mesh(*mesh, 100, 1), from_mesh(*mesh, 100, 1), from_mesh(*mesh, 100, 2)
    assert torch.equal(a.means, b.means) and not torch.equal(a.means, c.means)


def test_rigid_motion_of_the_vertices_moves_the_gaussians_rigidly():
    vertices, faces = sphere()
    g = from_mesh(vertices, faces, 200)
    g = Gaussians(**{**vars(g), "offset": torch.full((200,), -0.02)})
    rotation = quaternions_to_matrices(torch.tensor([0.3, -0.8, 0.5, 0.2]))
    shift = torch.tensor([1.0, -2, 0.5])
    rest, moved = g.follow(vertices, faces), g.follow(torch.stack([vertices, vertices @ rotation.T + shift]), faces)
    assert moved[0].shape == (2, 200, 3) and moved[1].shape == (2, 200, 4)
    assert torch.allclose(moved[0][1], rest[0] @ rotation.T + shift, atol=1e-5)
    want = rotation @ covariances(*rest, g.scales) @ rotation.T
    assert torch.allclose(covariances(moved[0][1], moved[1][1], g.scales), want, atol=1e-6)


def test_following_the_rest_vertices_changes_nothing_and_has_gradients():
    vertices, faces = sphere()
    g = from_mesh(vertices, faces, 200)
    vertices = vertices.clone().requires_grad_()
    means, quats = g.follow(vertices, faces)
    assert torch.allclose(means, g.means, atol=1e-5)
    assert torch.allclose(covariances(means, quats, g.scales), covariances(g.means, g.quats, g.scales), atol=1e-6)
    (means.sum() + quats.sum()).backward()
    assert vertices.grad.isfinite().all()


def test_a_triangle_that_collapses_while_moving_gives_numbers():
    g = from_mesh(TRIANGLE, FACE, 5)
    vertices = torch.zeros(3, 3, requires_grad=True)
    means, quats = g.follow(vertices, FACE)
    (means.sum() + quats.sum()).backward()
    assert means.isfinite().all() and quats.isfinite().all() and vertices.grad.isfinite().all()


def test_one_triangle_one_gaussian():
    for count in (1, 50):
        g = from_mesh(TRIANGLE, FACE, count)
        assert len(g) == count and (g.means >= 0).all() and (g.means[:, :2].sum(1) <= 1).all()
        assert g.scales.isfinite().all() and g.scales.min() > 0


def test_faces_without_area_and_loose_vertices_are_not_covered():
    vertices = torch.cat([TRIANGLE, torch.tensor([[5.0, 5, 5], [math.nan, 0, 0]])])
    g = from_mesh(vertices, torch.tensor([[3, 3, 3], [0, 1, 2], [0, 1, 4], [0, 1, 1]]), 40)
    assert set(g.face.tolist()) == {1}


@pytest.mark.parametrize(
    ("vertices", "faces", "sentence"),
    [
        (TRIANGLE, torch.zeros(0, 3, dtype=torch.int64), "no faces"),
        (TRIANGLE, torch.tensor([[0, 1, 1], [2, 2, 2]]), "zero area"),
        (TRIANGLE * math.nan, FACE, "zero area"),
        (TRIANGLE, torch.tensor([[0, 1, 3]]), "vertices it does not have"),
    ],
)
def test_meshes_with_nothing_to_cover(vertices, faces, sentence):
    with pytest.raises(ValueError, match=sentence):
        from_mesh(vertices, faces, 10)


def test_free_gaussians_do_not_follow(tmp_path):
    write_ply(tmp_path / "a.ply", from_mesh(TRIANGLE, FACE, 3))
    with pytest.raises(ValueError, match="not bound"):
        read_ply(tmp_path / "a.ply").follow(TRIANGLE, FACE)


def test_ply_round_trip(tmp_path):
    g = from_mesh(*sphere(), 50).with_colors(torch.rand(50, 3))
    write_ply(tmp_path / "a.ply", g)
    back = read_ply(tmp_path / "a.ply")
    for name in ("means", "quats", "scales", "opacities", "colors"):
        assert torch.allclose(getattr(back, name), getattr(g, name), atol=1e-6), name
    assert back.face is None


def test_ply_in_text_and_with_higher_harmonics(tmp_path):
    names = "x y z f_dc_0 f_dc_1 f_dc_2 f_rest_0 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3".split()
    header = "".join(f"property float {n}\n" for n in names)
    rows = "1 2 3 0 0 0 9 0 0 0 0 2 0 0 0\nnan 2 3 0 0 0 9 0 0 0 0 2 0 0 0\n"
    path = tmp_path / "text.ply"
    path.write_text(f"ply\nformat ascii 1.0\ncomment by hand\nelement vertex 2\n{header}end_header\n{rows}")
    g = read_ply(path)
    assert g.means.tolist() == [[1, 2, 3]] and g.quats.tolist() == [[1, 0, 0, 0]]
    assert g.opacities.tolist() == [0.5] and g.colors.tolist() == [[0.5, 0.5, 0.5]] and g.scales.tolist() == [[1, 1, 1]]


def test_bad_ply_files_are_named(tmp_path):
    path = tmp_path / "bad.ply"
    write_ply(path, from_mesh(TRIANGLE, FACE, 3))
    good = path.read_bytes()
    cases = {
        good[:-1]: "cut short",
        good[:60]: "complete header",
        b"": "not a .ply",
        good.replace(b"float opacity", b"float opaqueee"): "lacks opacity",
        good.replace(b"vertex 3", b"vertex 0"): "no Gaussians",
        good.replace(b"element vertex 3", b"element face 3"): "begin with vertices",
        good.replace(b"property float nx", b"property list uchar int nx"): "not a number",
        good.replace(b"binary_little_endian", b"morse"): "unknown encoding",
    }
    for data, sentence in cases.items():
        path.write_bytes(data)
        with pytest.raises(ValueError, match=sentence):
            read_ply(path)


def two_coloured(points: torch.Tensor) -> torch.Tensor:
    return torch.where(points[..., :1] > 0, torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.3, 0.8])).float()


def sphere_picture(c2w: torch.Tensor, fovy: float, size: int) -> torch.Tensor:
    """The two-coloured unit sphere, ray by ray, anti-aliased: premultiplied RGBA [size, size, 4]."""
    fine = 3 * size
    at = (torch.arange(fine, dtype=torch.float64) + 0.5) / fine * 2 - 1
    y, x = torch.meshgrid(-at, at, indexing="ij")
    slope = math.tan(math.radians(fovy / 2))
    ray = torch.nn.functional.normalize(torch.stack([x * slope, y * slope, -torch.ones_like(x)], -1), dim=-1)
    ray, eye = ray @ c2w[:3, :3].T, c2w[:3, 3]
    along = ray @ eye
    root = along.square() - eye @ eye + 1
    hit = eye + (-along - root.clamp_min(0).sqrt())[..., None] * ray
    color = torch.cat([two_coloured(hit), torch.ones(fine, fine, 1)], -1) * (root > 0)[..., None]
    return torch.nn.functional.avg_pool2d(color.permute(2, 0, 1)[None], 3)[0].permute(1, 2, 0)


def test_colours_and_silhouette_of_a_two_coloured_sphere():
    c2w = torch.stack([camera(60.0 * i, 15.0 if i % 2 else -35.0) for i in range(6)])
    images = torch.stack([sphere_picture(c, 45.0, 64) for c in c2w])
    start = from_mesh(*sphere(), 1000)
    solved = solve_colors(start, images, c2w, 45.0)
    away = start.means[:, 0].abs() > 0.1
    assert (solved.colors - two_coloured(start.means))[away].abs().mean() < 0.03

    def picture(g: Gaussians) -> torch.Tensor:
        rgb, alpha = rasterize(g.means, g.quats, g.scales, g.opacities, g.colors, c2w, 45.0, 64, 64)
        return torch.cat([rgb, alpha[..., None]], -1)

    before, after = picture(start) - images, picture(solved) - images
    assert after[..., 3].square().mean() < 0.1 * before[..., 3].square().mean()
    assert after[..., 3].mean().abs() < 0.002  # neither too fat nor too thin
    assert after[..., :3].abs().mean() < 0.01
    means, _ = solved.follow(*sphere())
    assert torch.allclose(means, solved.means, atol=1e-5)  # still bound


def test_hidden_splats_take_their_neighbours_colour():
    c2w = camera(0.0, 0.0)[None]
    images = torch.ones(1, 32, 32, 4) * torch.tensor([0.2, 0.6, 0.4, 1.0])
    solved = solve_colors(from_mesh(*sphere(), 300), images, c2w, 30.0)
    back = solved.colors[solved.means[:, 0] < -0.5]
    assert torch.allclose(back, torch.tensor([0.2, 0.6, 0.4]).expand_as(back), atol=0.1)


def test_known_colours_stay():
    start = from_mesh(*sphere(), 200)
    start = start.with_colors(two_coloured(start.means))
    c2w = torch.stack([camera(0.0), camera(180.0)])
    images = torch.stack([sphere_picture(c, 45.0, 32) for c in c2w])
    refined = refine_shape(start, images, c2w, 45.0)
    assert torch.equal(refined.colors, start.colors) and not torch.equal(refined.scales, start.scales)


def test_views_that_do_not_show_the_object():
    start = from_mesh(*sphere(), 50)
    with pytest.raises(ValueError, match="shows the object"):
        solve_colors(start, torch.zeros(1, 16, 16, 4), camera(0.0)[None], 40.0)
    with pytest.raises(ValueError, match="cameras want images"):
        solve_colors(start, torch.zeros(2, 16, 16, 4), camera(0.0)[None], 40.0)
