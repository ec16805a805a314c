"""Where things are and how they are looked at: subject space, cameras, position codes.

*World space* is Blender's: z up, right handed, the front of an object looks along -y.
*Subject space* is the reference model's: the object's bounding box is centred at the origin, its half diagonal is
`SUBJECT_RADIUS`, z is up, and the object's front looks along +x, where the camera of azimuth 0 stands.
Cameras are OpenGL ones (x right, y up, looking along -z), given as camera-to-world matrices `c2w`.
"""

from __future__ import annotations

import math

import numpy as np

from .errors import UserError

SUBJECT_RADIUS = 0.85  # half diagonal of the bounding box in subject space: leaves room in the picture for motion
CAMERA_DISTANCE = 3.0  # the reference's reconstruction cameras
CAMERA_FOVY = 40.0  # degrees; images are square
CAMERA_ELEVATION = 15.0  # degrees
VIEW_AZIMUTHS = (0.0, 90.0, 180.0, 270.0)  # degrees; 0 looks at the front
POSITION_CODE_RANGE = (0.1, 0.9)  # colours of the two ends of the rest bounding box in position-coded views

UP_AXES = {  # of a file of Gaussians: the matrix from z up to the file's axes; the front looks along -y, +z, -z
    "z": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "y": ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0)),
    "y-down": ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0)),
}


def orbit_c2w(azimuth: float, elevation: float, distance: float = CAMERA_DISTANCE) -> np.ndarray:
    """Camera-to-world matrix [4, 4] float64 of a camera that looks at the origin; angles in degrees.

    Azimuth runs from +x towards +y; the columns are (right, up, -look direction, position).
    """
    a, e = math.radians(azimuth), math.radians(elevation)
    back = np.array([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
    right = np.array([-math.sin(a), math.cos(a), 0.0])  # well defined at the poles too
    c2w = np.eye(4)
    c2w[:3, 0], c2w[:3, 1], c2w[:3, 2], c2w[:3, 3] = right, np.cross(back, right), back, distance * back
    return c2w


def condition_cameras() -> np.ndarray:
    """The four cameras of the multi-view video, [4, 4, 4] float64."""
    return np.stack([orbit_c2w(azimuth, CAMERA_ELEVATION) for azimuth in VIEW_AZIMUTHS])


def subject_to_world(vertices: np.ndarray, front: float = 0.0) -> np.ndarray:
    """The matrix [4, 4] float64 that takes subject space to the world space of `vertices` [V, 3].

    `front` is where the object looks: degrees from -y, counterclockwise seen from above (90 is +x).
    Raises `UserError` where the vertices have no extent.
    """
    low, high = vertices.min(axis=0).astype(np.float64), vertices.max(axis=0).astype(np.float64)
    radius = 0.5 * float(np.linalg.norm(high - low))
    if not math.isfinite(radius) or radius <= 0.0:
        raise UserError("The object has no size: all its vertices are at one point.", "Select an object with faces.")
    to_world = np.eye(4)
    # Without a turn, subject +x is the world's -y (the front), and subject +y the world's +x.
    s, c = round(math.sin(math.radians(front)), 15), round(math.cos(math.radians(front)), 15)
    to_world[:3, :3] = np.array([[s, c, 0.0], [-c, s, 0.0], [0.0, 0.0, 1.0]]) * (radius / SUBJECT_RADIUS)
    to_world[:3, 3] = 0.5 * (low + high)
    return to_world


def transform_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points [..., 3] through an affine matrix [4, 4], in float64."""
    return np.asarray(points, np.float64) @ matrix[:3, :3].T + matrix[:3, 3]


def position_code(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Flat colours [..., 3] in 0..1 that name each rest position [..., 3] inside the box `low`..`high` [3].

    Used with no colour management. An axis along which the box is flat gets the middle of the range.
    """
    a, b = POSITION_CODE_RANGE
    extent = np.asarray(high, np.float64) - low
    safe = np.where(extent > 0, extent, 1.0)
    unit = np.where(extent > 0, (np.asarray(points, np.float64) - low) / safe, 0.5)
    return a + (b - a) * np.clip(unit, 0.0, 1.0)
