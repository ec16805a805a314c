"""The welded surface as a graph of bounded size: what geodesic distances and skinning weights are computed on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

MAX_NODES = 6000  # 64 geodesic searches over this many take about a second
MAX_EDGE = 0.08  # longer edges are split, so that the large faces of a plain box can bend and carry weights
MAX_COMPONENTS = 1000  # beyond these, parts are grouped by place alone ("dust")
NEIGHBOURS = 8
MAX_GAP = 2.5  # of the usual distance between neighbours: points farther apart don't touch


@dataclass(frozen=True)
class SurfaceGraph:
    """Nodes on the rest surface, in subject space."""

    nodes: np.ndarray  # [M, 3] float64
    edges: csr_matrix  # [M, M] lengths of the connections along the surface, symmetric
    component: np.ndarray  # [M] int: which connected part a node belongs to
    owner: np.ndarray  # [V] int: the node that stands for each vertex of the subject
    neighbours: np.ndarray  # [M, 1 + NEIGHBOURS] int: itself, then the nearest along the surface


def build_graph(vertices: np.ndarray, faces: np.ndarray, weld: np.ndarray, max_nodes: int = MAX_NODES) -> SurfaceGraph:
    """Graph of vertices [V, 3], triangles [T, 3] and weld [V] (index of the distinct position of each vertex)."""
    if not len(faces):
        return _point_graph(vertices.astype(np.float64), max_nodes)
    first = np.unique(weld, return_index=True)[1]
    points, triangles = split_long_edges(vertices[first].astype(np.float64), weld[faces], max_nodes)
    start, end = edges_of(triangles)
    part = connected_components(_adjacency(points, start, end), directed=False)[1]
    cell = cluster(points, part, max_nodes)
    picked = np.unique(cell, return_index=True)[1]
    nodes = points[picked]
    crossing = cell[start] != cell[end]
    edges = _adjacency(nodes, cell[start][crossing], cell[end][crossing])
    return SurfaceGraph(nodes, edges, part[picked], cell[weld], _nearest_along(edges, nodes))


def _point_graph(points: np.ndarray, max_nodes: int) -> SurfaceGraph:
    """Graph of points without faces: cells of space, each connected to those around it; islands to the nearest."""
    cell = cluster(points, np.zeros(len(points), np.int64), max_nodes)
    count = np.bincount(cell)[:, None]
    nodes = np.stack([np.bincount(cell, points[:, axis]) for axis in range(3)], axis=1) / count
    reach, near = cKDTree(nodes).query(nodes, k=min(1 + NEIGHBOURS, len(nodes)))
    reach, near = reach.reshape(len(nodes), -1), near.reshape(len(nodes), -1)
    start = np.repeat(np.arange(len(nodes)), near.shape[1])
    close = (reach.ravel() > 0) & (reach.ravel() < MAX_GAP * np.median(reach[:, 1:2]) if len(nodes) > 1 else False)
    edges = _adjacency(nodes, start[close], near.ravel()[close])
    edges = _bridged(nodes, edges)
    return SurfaceGraph(nodes, edges, np.zeros(len(nodes), np.int64), cell, _nearest_along(edges, nodes))


def _bridged(nodes: np.ndarray, edges: csr_matrix) -> csr_matrix:
    """The graph as one: each part is joined to the largest one where they are nearest."""
    count, part = connected_components(edges, directed=False)
    if count == 1:
        return edges
    is_body = part == np.bincount(part).argmax()
    body, others = np.flatnonzero(is_body), np.flatnonzero(~is_body)
    away, nearest = cKDTree(nodes[body]).query(nodes[others])
    order = np.argsort(away)
    first = order[np.unique(part[others][order], return_index=True)[1]]  # of each part its nearest node
    old = edges.tocoo()
    start, end = np.concatenate([old.row, others[first]]), np.concatenate([old.col, body[nearest[first]]])
    return _adjacency(nodes, start, end)


def split_long_edges(points: np.ndarray, triangles: np.ndarray, max_points: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits triangles with an edge above `MAX_EDGE` into four, again and again, as long as `max_points` allows.

    points [U, 3], triangles [T, 3] -> more of both; the first U points stay. Midpoints are shared, so that
    connected surfaces stay connected although a neighbour may not be split.
    """
    while len(triangles):
        corner = points[triangles]
        longest = np.linalg.norm(corner - np.roll(corner, -1, axis=1), axis=-1).max(axis=1)
        long = longest > MAX_EDGE
        if not long.any() or len(points) + 2 * long.sum() > max_points:
            break
        split = triangles[long]
        pairs = np.sort(np.stack([split, np.roll(split, -1, axis=1)], axis=-1).reshape(-1, 2), axis=1)
        unique, inverse = np.unique(pairs, axis=0, return_inverse=True)
        middle = len(points) + inverse.reshape(-1, 3)  # of the edges 01, 12, 20
        points = np.concatenate([points, points[unique].mean(axis=1)])
        a, b, c = split.T
        ab, bc, ca = middle.T
        four = np.stack([a, ab, ca, ab, b, bc, ca, bc, c, ab, bc, ca], axis=1).reshape(-1, 3)
        triangles = np.concatenate([triangles[~long], four])
    return points, triangles


def edges_of(triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct undirected edges of triangles [T, 3]: two arrays [E], without edges from a point to itself."""
    pairs = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]).astype(np.int64)
    pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
    if not len(pairs):
        return pairs[:, 0], pairs[:, 1]
    count = int(pairs.max()) + 1
    key = np.unique(pairs[:, 0] * count + pairs[:, 1])
    return key // count, key % count


def _adjacency(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> csr_matrix:
    """Symmetric matrix of edge lengths; several edges between the same two points count once."""
    low, high = np.minimum(start, end).astype(np.int64), np.maximum(start, end).astype(np.int64)
    key = np.unique(low * len(points) + high)
    low, high = key // len(points), key % len(points)
    length = np.maximum(np.linalg.norm(points[low] - points[high], axis=1), 1e-9)  # 0 would mean no edge
    both = (np.concatenate([low, high]), np.concatenate([high, low]))
    return csr_matrix((np.concatenate([length, length]), both), shape=(len(points), len(points)))


def cluster(points: np.ndarray, part: np.ndarray, max_nodes: int) -> np.ndarray:
    """Index of each point's cell [U]: at most about `max_nodes` cells, none across two of the larger parts."""
    if len(points) <= max_nodes:
        return np.arange(len(points))
    size = np.bincount(part)
    rank = np.empty(len(size), np.int64)
    rank[np.argsort(-size)] = np.arange(len(size))
    group = np.minimum(rank[part], MAX_COMPONENTS)
    grid = 256
    low, extent = points.min(axis=0), np.ptp(points, axis=0).max()
    while True:
        voxel = np.minimum((points - low) / max(extent, 1e-9) * grid, grid - 1).astype(np.int64)
        key = ((group * grid + voxel[:, 0]) * grid + voxel[:, 1]) * grid + voxel[:, 2]
        unique, cell = np.unique(key, return_inverse=True)
        if len(unique) <= max_nodes:
            return cell.reshape(-1)
        grid = int(grid * 0.8)


def _nearest_along(edges: csr_matrix, nodes: np.ndarray) -> np.ndarray:
    """[M, 1 + NEIGHBOURS] int: each node and its nearest connected nodes; itself where it has fewer."""
    result = np.repeat(np.arange(len(nodes))[:, None], 1 + NEIGHBOURS, axis=1)
    row = np.repeat(np.arange(len(nodes)), np.diff(edges.indptr))
    order = np.lexsort((edges.data, row))
    place = np.arange(len(row)) - edges.indptr[row]
    keep = place < NEIGHBOURS
    result[row[keep], 1 + place[keep]] = edges.indices[order][keep]
    return result


def nearest_owner(graph: SurfaceGraph, points: np.ndarray, component: np.ndarray | None = None) -> np.ndarray:
    """The node nearest to each point [N, 3], for points that are no vertices of the subject -> [N] int.

    component [N]: to which connected part a point belongs, where that is known; a plank is not the iron it lies under.
    """
    if component is None:
        return cKDTree(graph.nodes).query(points)[1]
    owner = np.zeros(len(points), np.int64)
    for part in np.unique(component):
        nodes, mine = np.flatnonzero(graph.component == part), component == part
        owner[mine] = nodes[cKDTree(graph.nodes[nodes]).query(points[mine])[1]]
    return owner


def sample_surface(vertices: np.ndarray, faces: np.ndarray, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """About `count` points on triangles [T, 3] of vertices [V, 3], by area -> (face [N], barycentric [N, 3])."""
    corner = vertices[faces].astype(np.float64)
    area = 0.5 * np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1)
    if not area.sum() > 0:
        area = np.ones(len(faces))
    edges = np.cumsum(area / area.sum())
    rng = np.random.default_rng(seed)
    # Stratified, so that every part of some area is certain to be met.
    face = np.searchsorted(edges, (np.arange(count) + rng.random(count)) / count).clip(max=len(faces) - 1)
    root, other = np.sqrt(rng.random(count)), rng.random(count)
    return face, np.stack([1 - root, root * (1 - other), root * other], axis=1)
