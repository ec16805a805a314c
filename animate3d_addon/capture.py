"""Objects to `job/subject`: the joined mesh, and pictures of it from around.

The user's scene is never touched: everything happens in a temporary scene that holds copies in subject space. The one
trace in Blender is the image “Render Result”, which is overwritten where there was one.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import bpy
import numpy as np
from mathutils import Matrix

from . import materials, meshes
from .quiet import quiet
from .shared import protocol
from .temporary import temporary_scene

Progress = Callable[[float, str], None]

# Azimuths and elevations in degrees: a ring at the height of the condition views, then from above and below.
APPEARANCE_VIEWS = (
    *((azimuth, protocol.CAMERA_ELEVATION) for azimuth in range(0, 360, 45)),
    *((45, 55), (225, 55), (135, -50), (315, -50)),
)


@dataclass(frozen=True)
class CaptureSettings:
    """How the object is looked at."""

    appearance: str = "position"  # color | position | both: what the pictures show; position is several times faster
    condition_size: int = 256  # pixels, square
    appearance_size: int = 256
    appearance_views: tuple[tuple[float, float], ...] = APPEARANCE_VIEWS  # unused where appearance is position
    color_samples: int = 4  # with the denoiser 38 dB against 512 samples; more only costs time
    position_samples: int = 8  # steps of alpha along the outline
    front: float = 0.0  # where the object looks: degrees from -Y, counterclockwise seen from above


def four_views(size: int, front: float) -> CaptureSettings:
    """The condition views alone, in true colours, for people."""
    return CaptureSettings("color", condition_size=size, appearance_views=(), front=front)


def capture(
    objects: Sequence[bpy.types.Object],
    job: Path,
    settings: CaptureSettings = CaptureSettings(),
    progress: Progress | None = None,
) -> protocol.Subject:
    """Writes `job/subject` from the objects as they look at the current frame of the scene, and returns it.

    Objects that have no surface (lights, empties) are left out; the others are joined in the order of their names.
    `progress` gets a fraction and a few words. Raises `UserError`.
    """
    chosen = meshes.mesh_like(objects)
    frame = bpy.context.scene.frame_current_final
    with temporary_scene() as scene:
        pieces = meshes.evaluate(chosen, scene, frame)
        meshes.check(pieces)
        subject = describe(pieces, settings)
        for copy in list(scene.collection.objects):
            scene.collection.objects.unlink(copy)
        try:
            _render_all(scene, pieces, subject, Path(job), settings, progress or _no_progress)
            subject.save(Path(job))
        except OSError as error:
            raise protocol.UserError(
                f"The job folder can't be written ({error.strerror or error}).", "Check free space and permissions."
            ) from error
    return subject


def _no_progress(fraction: float, words: str) -> None:
    pass


def describe(pieces: Sequence[meshes.Piece], settings: CaptureSettings) -> protocol.Subject:
    """The subject that the pieces make up, without its pictures."""
    world, faces = meshes.join(pieces)
    to_world = protocol.subject_to_world(world, settings.front)
    vertices = protocol.transform_points(np.linalg.inv(to_world), world)
    views = settings.appearance_views if settings.appearance != "position" else ()
    return protocol.Subject(
        vertices=vertices.astype(np.float32),
        faces=faces,
        weld=meshes.weld(vertices, meshes.WELD_TOLERANCE * 2.0 * protocol.SUBJECT_RADIUS),
        to_world=to_world,
        object_names=tuple(piece.name for piece in pieces),
        object_counts=tuple(len(piece.vertices) for piece in pieces),
        condition_c2w=protocol.condition_cameras(),
        appearance_c2w=np.array([protocol.orbit_c2w(*view) for view in views]).reshape(-1, 4, 4),
        condition_size=settings.condition_size,
        appearance_size=settings.appearance_size,
    )


def _render_all(
    scene: bpy.types.Scene,
    pieces: Sequence[meshes.Piece],
    subject: protocol.Subject,
    job: Path,
    settings: CaptureSettings,
    progress: Progress,
) -> None:
    materials.use_cycles(scene)
    add_copies(scene, pieces, subject)
    camera = materials.add_camera(scene, subject.fovy)
    passes = []
    if settings.appearance != "position":
        passes.append(("condition", subject.condition_c2w, settings.condition_size))
        passes.append(("appearance", subject.appearance_c2w, settings.appearance_size))
    if settings.appearance != "color":
        passes.append(("position", subject.condition_c2w, settings.condition_size))
    done, total = 0, sum(len(cameras) for _, cameras, _ in passes)
    for kind, cameras, size in passes:
        if kind == "position":
            materials.use_position_colors(scene, settings.position_samples)
        elif kind == "condition":
            materials.add_light(scene)
            materials.use_true_colors(scene, settings.color_samples)
        scene.render.resolution_x = scene.render.resolution_y = size
        for index, c2w in enumerate(cameras):
            progress(done / total, f"Looking at the object, view {done + 1} of {total}")
            camera.matrix_world = Matrix(c2w.tolist())
            render(scene, protocol.Subject.image_path(job, kind, index))
            done += 1


def render(scene: bpy.types.Scene, path: Path) -> None:
    """One picture. Goes through a temporary folder, because Blender expands “{”, “#” and “//” in output paths."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "view.png"
        scene.render.filepath = str(picture)
        try:
            with quiet():
                bpy.ops.render.render(write_still=True, scene=scene.name)
        except RuntimeError as error:
            raise protocol.UserError("Blender could not render the object.", str(error).strip()) from error
        if not picture.exists():
            raise protocol.UserError("A rendered picture can't be written.", "Check that the disk isn't full.")
        shutil.move(picture, path)


def add_copies(
    scene: bpy.types.Scene,
    pieces: Sequence[meshes.Piece],
    subject: protocol.Subject,
    places: np.ndarray | None = None,
) -> None:
    """Objects in subject space, with their materials and the position code of the subject's rest on their vertices.

    `places` [V, 3] are the pieces' vertices in subject space where they are not those of the subject: a later pose.
    """
    places = subject.vertices if places is None else places
    to_subject = np.linalg.inv(subject.to_world)
    anchor = bpy.data.objects.new("Animate3D anchor", None)
    scene.collection.objects.link(anchor)
    low, high = subject.box
    starts = np.cumsum([0, *subject.object_counts])
    for piece, start, end in zip(pieces, starts[:-1], starts[1:], strict=True):
        rest, here = subject.vertices[start:end], places[start:end]
        materials.write_position_code(piece.mesh, protocol.position_code(rest, low, high))
        copy = bpy.data.objects.new(piece.name, piece.mesh)
        copy.color = piece.color
        matrix = to_subject @ piece.matrix_world
        if _is_tame(matrix, piece.vertices):
            # A parent's inverse takes any matrix, sheared ones too; the object's own transform would not.
            copy.parent = anchor
            copy.matrix_parent_inverse = Matrix(matrix.tolist())
        else:
            piece.mesh.vertices.foreach_set("co", np.ascontiguousarray(here, np.float32).ravel())
            if np.linalg.det(matrix[:3, :3]) < 0.0:
                piece.mesh.flip_normals()
            piece.mesh.update()
        scene.collection.objects.link(copy)


def _is_tame(matrix: np.ndarray, vertices: np.ndarray) -> bool:
    """Whether float32 can hold the transform [4, 4] of the vertices [V, 3] to subject space.

    If so the vertices stay in local space, where procedural textures look as they do for the user.
    """
    linear = matrix[:3, :3]
    stretch = np.linalg.svd(linear, compute_uv=False)
    far = np.abs(matrix[:3, 3]).max()  # subject space has a size of about 1
    return bool(len(vertices)) and far < 100.0 and stretch.min() > 1e-4 and stretch.max() < 1e4
