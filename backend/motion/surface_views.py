"""Pictures of the posed surface in the colours of frame 0: what a frame should look like if the pose were right.

Rasterized on the CPU: the pictures are small, and every pixel only looks up where the video showed it at rest.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange
from scipy.ndimage import gaussian_filter, uniform_filter
from scipy.spatial import cKDTree

from backend.motion.graph import cluster

FINE = 2  # samples per pixel and axis: silhouettes as soft as those of the video
FAR = 1e9
GREY = 0.5
EPSILON = 0.02  # subject units: nearer than this to what the rest picture showed is the same surface
MAX_DRAWN = 40_000  # points; larger meshes are drawn coarser, at what 128 pixels can't show
PIXEL_FILTER = 0.4  # pixels: about what renderers soften a picture by, beyond the mean over each pixel
FACING = 0.15  # cosine below which a surface is too oblique at rest for its colours to be read


class Painter:
    """A surface and how the video's frame 0 shows it in each view."""

    def __init__(
        self, points: np.ndarray, faces: np.ndarray, c2w: np.ndarray, fovy: float, pictures: np.ndarray
    ) -> None:
        """points [P, 3] at rest, faces [T, 3], c2w [K, 4, 4], pictures [K, S, S, 4]: frame 0 on grey, and alpha."""
        self.points, self.faces = points, np.ascontiguousarray(faces, np.int32)
        self.w2c, self.eyes = np.linalg.inv(c2w), np.ascontiguousarray(c2w[:, :3, 3])
        self.fovy = fovy
        corner = points[self.faces]
        normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        self.normals = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
        fine = pictures.shape[1] * FINE
        self.depths = draw_views(points[None], self.faces, self.w2c, self.focal(fine), fine)[0][0]
        self.textures = surface_colours(pictures, self.depths < FAR)
        self.colours = self._point_colours()

    def focal(self, size: int) -> float:
        """In pixels."""
        return focal_length(self.fovy, size)

    def _point_colours(self) -> np.ndarray:
        """Colours [P, 3] where no view looks: of the point, or of the nearest point that a view sees."""
        normals = np.zeros_like(self.points)
        for k in range(3):
            np.add.at(normals, self.faces[:, k], self.normals)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        colours = np.full((len(self.points), 4), GREY)
        seen = rest_colours(
            self.points, normals, self.w2c, self.eyes, self.focal(self.textures.shape[1]), self.textures, self.depths,
            colours,
        )  # fmt: skip
        if seen.any():
            colours[~seen] = colours[seen][cKDTree(self.points[seen]).query(self.points[~seen])[1]]
        return np.ascontiguousarray(colours[:, :3])

    def draw(self, points: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The points moved to [P, 3]: pictures [K, size, size, 4] on grey with alpha, depths [K, FINE size, ...]."""
        image, depths = self.draw_frames(points[None], size, FINE)[:2]
        return image[0], depths[0]

    def draw_frames(
        self, points: np.ndarray, size: int, samples: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of points [T, P, 3], with `samples` per pixel and axis: pictures [T, K, ...], and what `draw_views` gives."""
        fine = size * samples
        depths, face_of, place = draw_views(points, self.faces, self.w2c, self.focal(fine), fine)
        image = shade_views(
            face_of, place, self.points, self.normals, self.faces, self.colours, self.w2c, self.eyes,
            self.focal(self.textures.shape[1]), self.textures, self.depths, samples,
        )  # fmt: skip
        return image, depths, face_of, place


def focal_length(fovy: float, size: int) -> float:
    """In pixels, of a picture `size` high; fovy in degrees."""
    return 0.5 * size / math.tan(math.radians(fovy) / 2)


def surface_colours(pictures: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """What the surface itself looks like, [K, S, S, 4] with straight alpha, up to its outline and a pixel beyond.

    pictures [K, S, S, 4] on grey, and alpha; covered [K, FINE S, FINE S] bool: where the mesh is. A pixel that the
    outline cuts is not a transparent one: drawn as such, it would be a hole as soon as the surface turns.
    """
    views, size = pictures.shape[:2]
    cover = covered.reshape(views, size, FINE, size, FINE).mean(axis=(2, 4), dtype=np.float32)[..., None]
    cover = gaussian_filter(cover, (0, PIXEL_FILTER, PIXEL_FILTER, 0))
    alpha = pictures[..., 3:]
    layers = np.concatenate([pictures[..., :3] - GREY * (1 - alpha), alpha, cover], axis=-1)
    # Where little is seen of the surface, what is beside it tells more.
    layers = np.where(cover > 0.5, layers, uniform_filter(layers, (0, 3, 3, 0)))
    whole = np.clip(layers[..., 3:4] / np.maximum(layers[..., 4:], 1e-2), 0.0, 1.0)
    straight = np.clip(layers[..., :3] / np.maximum(layers[..., 3:4], 1e-2), 0.0, 1.0)
    return np.ascontiguousarray(np.concatenate([straight, whole], axis=-1))


def drawn_mesh(vertices: np.ndarray, faces: np.ndarray, weld: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The welded mesh, coarser where it is large: points [P, 3] float64, faces [T, 3], vertex [P] of each point."""
    first = np.unique(weld, return_index=True)[1]
    points = vertices[first].astype(np.float64)
    cell = cluster(points, np.zeros(len(points), np.int64), MAX_DRAWN)
    picked = np.unique(cell, return_index=True)[1]
    corners = cell[weld[faces]]
    whole = (corners != np.roll(corners, 1, axis=1)).all(axis=1)
    return points[picked], np.unique(corners[whole], axis=0), first[picked]


@njit(cache=True)
def _project(points, w2c, focal, size, screen, depth):
    """Points [V, 3] by w2c [4, 4] (OpenGL) to screen [V, 2] (x, y down, in samples) and depth [V]."""
    for i in range(points.shape[0]):
        x = w2c[0, 0] * points[i, 0] + w2c[0, 1] * points[i, 1] + w2c[0, 2] * points[i, 2] + w2c[0, 3]
        y = w2c[1, 0] * points[i, 0] + w2c[1, 1] * points[i, 1] + w2c[1, 2] * points[i, 2] + w2c[1, 3]
        z = -(w2c[2, 0] * points[i, 0] + w2c[2, 1] * points[i, 1] + w2c[2, 2] * points[i, 2] + w2c[2, 3])
        depth[i] = z
        screen[i, 0] = 0.5 * size + focal * x / z
        screen[i, 1] = 0.5 * size - focal * y / z


@njit(cache=True)
def _draw(screen, depth, faces, zbuffer, face_of, place):
    """Z-buffer [S, S] of triangles, with the face [S, S] and the second and third barycentric weight [S, S, 2]."""
    size = zbuffer.shape[0]
    for face in range(faces.shape[0]):
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        if depth[a] < 0.1 or depth[b] < 0.1 or depth[c] < 0.1:
            continue
        ax, ay, bx, by = screen[a, 0], screen[a, 1], screen[b, 0], screen[b, 1]
        cx, cy = screen[c, 0], screen[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if abs(area) < 1e-9:
            continue
        x0 = max(int(math.ceil(min(ax, bx, cx) - 0.5)), 0)
        x1 = min(int(math.floor(max(ax, bx, cx) - 0.5)), size - 1)
        y0 = max(int(math.ceil(min(ay, by, cy) - 0.5)), 0)
        y1 = min(int(math.floor(max(ay, by, cy) - 0.5)), size - 1)
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                px, py = x + 0.5, y + 0.5
                wb = ((px - ax) * (cy - ay) - (py - ay) * (cx - ax)) / area
                wc = ((bx - ax) * (py - ay) - (by - ay) * (px - ax)) / area
                wa = 1.0 - wb - wc
                if wa < 0.0 or wb < 0.0 or wc < 0.0:
                    continue
                z = 1.0 / (wa / depth[a] + wb / depth[b] + wc / depth[c])
                if z < zbuffer[y, x]:
                    zbuffer[y, x] = z
                    face_of[y, x] = face
                    place[y, x, 0] = wb * z / depth[b]
                    place[y, x, 1] = wc * z / depth[c]


@njit(cache=True, parallel=True)
def draw_views(vertices, faces, w2c, focal, size):
    """Vertices [T, V, 3] in all cameras w2c [K, 4, 4].

    -> zbuffer [T, K, S, S] (FAR where empty), faces [T, K, S, S] (-1), places [T, K, S, S, 2].
    """
    frames, views = vertices.shape[0], w2c.shape[0]
    zbuffer = np.full((frames, views, size, size), FAR, np.float32)
    face_of = np.full((frames, views, size, size), -1, np.int32)
    place = np.zeros((frames, views, size, size, 2), np.float32)
    for job in prange(frames * views):
        t, k = job // views, job % views
        screen = np.empty((vertices.shape[1], 2))
        depth = np.empty(vertices.shape[1])
        _project(vertices[t], w2c[k], focal, size, screen, depth)
        _draw(screen, depth, faces, zbuffer[t, k], face_of[t, k], place[t, k])
    return zbuffer, face_of, place


@njit(cache=True)
def _look_up(image, x, y, out):
    """Bilinear colour of image [S, S, C] at (x, y) in pixels, pixel centres at .5."""
    size = image.shape[0]
    fx, fy = min(max(x - 0.5, 0.0), size - 1.001), min(max(y - 0.5, 0.0), size - 1.001)
    x0, y0 = int(fx), int(fy)
    u, v = fx - x0, fy - y0
    for k in range(out.shape[0]):
        top = image[y0, x0, k] * (1 - u) + image[y0, x0 + 1, k] * u
        low = image[y0 + 1, x0, k] * (1 - u) + image[y0 + 1, x0 + 1, k] * u
        out[k] = top * (1 - v) + low * v


@njit(cache=True)
def _rest_colour(point, normal, own, w2c, eyes, focal, textures, zrest, out):
    """Colour [3] of a rest point by the textures [K, S, S, 3] that see it: the own view's, else a mean. True if any."""
    size = textures.shape[1]
    scale = zrest.shape[1] / size
    total = 0.0
    mixed = np.zeros(4)
    for turn in range(w2c.shape[0] + 1):
        k = own if turn == 0 else turn - 1
        if k < 0 or (turn > 0 and k == own):
            continue
        x = w2c[k, 0, 0] * point[0] + w2c[k, 0, 1] * point[1] + w2c[k, 0, 2] * point[2] + w2c[k, 0, 3]
        y = w2c[k, 1, 0] * point[0] + w2c[k, 1, 1] * point[1] + w2c[k, 1, 2] * point[2] + w2c[k, 1, 3]
        z = -(w2c[k, 2, 0] * point[0] + w2c[k, 2, 1] * point[1] + w2c[k, 2, 2] * point[2] + w2c[k, 2, 3])
        px, py = 0.5 * size + focal * x / z, 0.5 * size - focal * y / z
        if px < 1.0 or py < 1.0 or px > size - 1.0 or py > size - 1.0:
            continue
        if z > zrest[k, int(py * scale), int(px * scale)] + EPSILON:
            continue
        away = 0.0
        facing = 0.0
        for i in range(3):
            ray = eyes[k, i] - point[i]
            away += ray * ray
            facing += ray * normal[i]
        facing = abs(facing) / math.sqrt(away)
        if facing < FACING:
            continue
        _look_up(textures[k], px, py, out)
        if turn == 0:
            return True
        weight = facing**4
        total += weight
        for i in range(4):
            mixed[i] += weight * out[i]
    if total == 0.0:
        return False
    for i in range(4):
        out[i] = mixed[i] / total
    return True


@njit(cache=True)
def rest_colours(points, normals, w2c, eyes, focal, textures, zrest, out):
    """Colours of rest points [P, 3] into out [P, 4], as a mean of the views that see them -> which are seen [P]."""
    seen = np.zeros(len(points), np.bool_)
    for i in range(len(points)):
        seen[i] = _rest_colour(points[i], normals[i], -1, w2c, eyes, focal, textures, zrest, out[i])
    return seen


@njit(cache=True, parallel=True)
def shade_views(face_of, place, rest, normals, faces, vertex_colours, w2c, eyes, focal, textures, zrest, samples):
    """Pictures [T, K, S, S, 4] on grey with alpha, of surfaces found by `draw_views` at `samples` per pixel and axis.

    rest [V, 3] and normals [T, 3] at rest; vertex_colours [V, 3] for what no texture sees;
    textures [K, S', S', 3] are the video's frame 0 in the same views, and their depths zrest; focal in their pixels.
    """
    frames, views, fine = face_of.shape[:3]
    size = fine // samples
    image = np.zeros((frames, views, size, size, 4), np.float32)
    for job in prange(frames * views * size):
        t, view, row = job // (views * size), job // size % views, job % size
        colour, point = np.zeros(4), np.zeros(3)
        for column in range(size):
            solid, known = 0.0, 0.0
            total = np.zeros(3)
            for s in range(samples * samples):
                y, x = row * samples + s // samples, column * samples + s % samples
                face = face_of[t, view, y, x]
                if face < 0:
                    continue
                wb, wc = place[t, view, y, x, 0], place[t, view, y, x, 1]
                a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
                for i in range(3):
                    point[i] = (1 - wb - wc) * rest[a, i] + wb * rest[b, i] + wc * rest[c, i]
                seen = _rest_colour(point, normals[face], view, w2c, eyes, focal, textures, zrest, colour)
                if not seen:
                    for i in range(3):
                        colour[i] = (
                            (1 - wb - wc) * vertex_colours[a, i] + wb * vertex_colours[b, i] + wc * vertex_colours[c, i]
                        )
                    colour[3] = 1.0
                known += colour[3]
                solid += colour[3]
                for i in range(3):
                    total[i] += colour[3] * colour[i]
            share = solid / (samples * samples)
            for i in range(3):
                inside = total[i] / known if known > 0 else GREY
                image[t, view, row, column, i] = share * inside + (1 - share) * GREY
            image[t, view, row, column, 3] = share
    return image
