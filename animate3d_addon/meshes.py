"""Objects as arrays: evaluated meshes in world space, joined, welded; and objects turned into plain meshes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import bpy
import numpy as np

from .shared import protocol
from .temporary import temporary_scene

MESH_LIKE = ("MESH", "CURVE", "SURFACE", "FONT", "META")
DEFORMING_PARENTS = ("ARMATURE", "LATTICE")
TRANSFORM = (
    *("rotation_mode", "location", "rotation_euler", "rotation_quaternion", "rotation_axis_angle", "scale"),
    *("delta_location", "delta_rotation_euler", "delta_rotation_quaternion", "delta_scale"),
)
WELD_TOLERANCE = 1e-6  # of the size: float32 coordinates hold no more


class Mendable(protocol.UserError):
    """What a button can mend (`mends.MENDS`)."""

    def __init__(self, message: str, hint: str, mend: str) -> None:
        super().__init__(message, hint)
        self.mend = mend


@dataclass(frozen=True)
class Piece:
    """One object as it looks at a frame, with modifiers, shape keys and pose."""

    name: str
    mesh: bpy.types.Mesh  # a copy that lives in the temporary scene; local space
    vertices: np.ndarray  # [V, 3] float64, local space
    triangles: np.ndarray  # [T, 3] int32
    matrix_world: np.ndarray  # [4, 4] float64
    color: tuple[float, ...]  # the object's own, which a material may ask for

    @property
    def world_vertices(self) -> np.ndarray:
        """[V, 3] float64, world space."""
        return protocol.transform_points(self.matrix_world, self.vertices)


def mesh_like(objects: Sequence[bpy.types.Object]) -> list[bpy.types.Object]:
    """The objects that have a surface, sorted by name; raises `UserError` where there are none."""
    found = sorted((obj for obj in objects if obj.type in MESH_LIKE), key=lambda obj: obj.name)
    if found:
        return found
    if not objects:
        raise Mendable("Nothing is selected.", "Select the object that shall move.", "SELECT")
    obj = objects[0]
    if obj.type == "EMPTY" and obj.instance_collection is not None:
        raise Mendable(
            f"“{obj.name}” is a collection instance, which has no mesh of its own.",
            "Use Object > Apply > Make Instances Real and select the meshes.",
            "REAL",
        )
    message = f"“{obj.name}” has no mesh: it is {_a_type(obj)}."
    raise Mendable(message, "Select a mesh, curve or text object.", "SELECT")


def _a_type(obj: bpy.types.Object) -> str:
    word = obj.bl_rna.properties["type"].enum_items[obj.type].name.lower()
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def evaluate(objects: Sequence[bpy.types.Object], scene: bpy.types.Scene, frame: float) -> list[Piece]:
    """The objects, in the given order, as they look at `frame`; `scene` is a temporary one.

    Copies that share the objects' data are evaluated, so that hidden objects and objects outside of the view layer look
    like the others. A pinned shape key (`show_only_shape_key`) is a viewing aid and is ignored: what is captured is the
    look that the bake, which has to unpin it, starts from.
    """
    copies = []
    for obj in objects:
        if obj.mode == "EDIT":
            obj.update_from_editmode()
        copy = obj.copy()
        copy.hide_viewport = copy.hide_render = False
        if obj.type == "MESH":
            copy.show_only_shape_key = False
        scene.collection.objects.link(copy)
        copies.append(copy)
    scene.frame_set(int(np.floor(frame)), subframe=frame - float(np.floor(frame)))
    layer = scene.view_layers[0]
    layer.update()
    return [
        _piece(obj.name, copy.evaluated_get(layer.depsgraph), layer.depsgraph)
        for obj, copy in zip(objects, copies, strict=True)
    ]


def _piece(name: str, evaluated: bpy.types.Object, depsgraph: bpy.types.Depsgraph) -> Piece:
    mesh = bpy.data.meshes.new_from_object(evaluated, preserve_all_data_layers=True, depsgraph=depsgraph)
    for index, slot in enumerate(evaluated.original.material_slots):
        if slot.link == "OBJECT" and index < len(mesh.materials):
            mesh.materials[index] = slot.material  # which a mesh alone doesn't know
    matrix = np.array(evaluated.matrix_world, np.float64)
    return Piece(name, mesh, coordinates(mesh), _triangles(mesh), matrix, tuple(evaluated.color))


def is_deformed(obj: bpy.types.Object) -> bool:
    """Whether something other than shape keys stands between the object's mesh and its look."""
    return len(obj.modifiers) > 0 or (obj.parent is not None and obj.parent_type in DEFORMING_PARENTS)


def changes_vertices(obj: bpy.types.Object, depsgraph: bpy.types.Depsgraph) -> bool:
    """Whether the object's modifiers add vertices, remove them, or make something else of its mesh."""
    if obj.type != "MESH" or not is_deformed(obj) or obj.mode != "OBJECT":
        return False
    shown = obj.evaluated_get(depsgraph).data
    return isinstance(shown, bpy.types.Mesh) and len(shown.vertices) != len(obj.data.vertices)


@contextlib.contextmanager
def without_modifiers(objects: Iterable[bpy.types.Object]) -> Iterator[None]:
    """Meanwhile, the objects look as their own meshes do."""
    shown = [(obj, modifier.name) for obj in objects for modifier in obj.modifiers if modifier.show_viewport]
    for obj, name in shown:
        obj.modifiers[name].show_viewport = False
    try:
        yield
    finally:
        for obj, name in shown:
            if name in obj.modifiers:
                obj.modifiers[name].show_viewport = True


def coordinates(mesh: bpy.types.Mesh) -> np.ndarray:
    """[V, 3] float64, local space."""
    flat = np.empty(len(mesh.vertices) * 3, np.float32)
    mesh.vertices.foreach_get("co", flat)
    return flat.reshape(-1, 3).astype(np.float64)


def _triangles(mesh: bpy.types.Mesh) -> np.ndarray:
    mesh.calc_loop_triangles()
    flat = np.empty(len(mesh.loop_triangles) * 3, np.int32)
    mesh.loop_triangles.foreach_get("vertices", flat)
    return flat.reshape(-1, 3)


def check(pieces: Sequence[Piece]) -> None:
    """Raises `UserError` where the pieces are nothing that could be looked at."""
    for piece in pieces:
        bad = int((~np.isfinite(piece.vertices).all(axis=1)).sum())
        if bad:
            raise protocol.UserError(
                f"{bad} of the {len(piece.vertices)} vertices of “{piece.name}” have no valid position "
                "(infinite or not a number).",
                "Delete those vertices, or run Mesh > Clean Up, or export the file again.",
            )
        if not np.isfinite(piece.world_vertices).all():
            raise protocol.UserError(f"“{piece.name}” has an invalid transform.", "Clear or apply its transform.")
    names = ", ".join(f"“{piece.name}”" for piece in pieces[:3])
    if not sum(len(piece.vertices) for piece in pieces):
        raise protocol.UserError(f"There is no vertex in {names}.", "Select an object with faces.")
    if not sum(len(piece.triangles) for piece in pieces):
        raise protocol.UserError(f"There is no face in {names}: nothing can be seen.", "Select an object with faces.")


def join(pieces: Sequence[Piece]) -> tuple[np.ndarray, np.ndarray]:
    """All pieces as one mesh: vertices [V, 3] float64 in world space, triangles [T, 3] int32."""
    starts = np.cumsum([0, *(len(piece.vertices) for piece in pieces)])
    vertices = np.concatenate([piece.world_vertices for piece in pieces])
    triangles = [piece.triangles + start for piece, start in zip(pieces, starts[:-1], strict=True)]
    return vertices, np.concatenate(triangles).astype(np.int32)


def weld(vertices: np.ndarray, tolerance: float) -> np.ndarray:
    """Index [V] int32 into the distinct positions of `vertices` [V, 3].

    Positions nearer than `tolerance` along every axis are the same. Two such positions share a cell of twice that size
    in at least one of eight grids shifted by half a cell; the smallest index spreads through the shared cells.
    """
    scaled = (vertices - vertices.min(axis=0)) / (2.0 * tolerance)
    cells = [_cells(np.floor(scaled + shift).astype(np.int64)) for shift in product((0.0, 0.5), repeat=3)]
    labels = np.arange(len(vertices))
    while True:
        before = labels
        for cell in cells:
            smallest = np.full(int(cell.max()) + 1, len(vertices))
            np.minimum.at(smallest, cell, labels)
            labels = smallest[cell]
        labels = labels[labels]  # jumps, so that long chains of neighbours end soon
        if np.array_equal(labels, before):
            return np.unique(labels, return_inverse=True)[1].reshape(-1).astype(np.int32)


def _cells(grid: np.ndarray) -> np.ndarray:
    """The number [V] of the cell with integer coordinates [V, 3]; at most 2^20 cells along an axis."""
    key = (grid[:, 0] << 42) | (grid[:, 1] << 21) | grid[:, 2]
    return np.unique(key, return_inverse=True)[1].reshape(-1)


def freeze(objects: Sequence[bpy.types.Object], frame: float) -> list[bpy.types.Object]:
    """Makes plain meshes of the objects as they look at `frame`: no modifiers, no shape keys; transforms are kept.

    Curves, texts and metaballs can't change their type, so new objects take their place and name: use those returned.
    """
    kept: list[bpy.types.Mesh] = []
    with temporary_scene(keep=kept) as scene:
        kept.extend(piece.mesh for piece in evaluate(objects, scene, frame))
    return [_replace_data(obj, mesh) for obj, mesh in zip(objects, kept, strict=True)]


def _replace_data(obj: bpy.types.Object, mesh: bpy.types.Mesh) -> bpy.types.Object:
    old, name = obj.data, obj.data.name
    if obj.type == "MESH":
        obj.modifiers.clear()
        if obj.parent_type in DEFORMING_PARENTS:
            obj.parent_type = "OBJECT"  # or the pose would be applied a second time
        obj.data = mesh
    else:
        obj = _mesh_object_instead_of(obj, mesh)
    if old.users == 0:
        bpy.data.batch_remove([old])
    mesh.name = name
    return obj


def _mesh_object_instead_of(old: bpy.types.Object, mesh: bpy.types.Mesh) -> bpy.types.Object:
    """A mesh object with the name, place, parent and collections of `old`, which is removed."""
    name, collections = old.name, list(old.users_collection)
    new = bpy.data.objects.new(name, mesh)
    for collection in collections:
        collection.objects.link(new)
    new.parent, new.parent_type, new.parent_bone = old.parent, old.parent_type, old.parent_bone
    new.matrix_parent_inverse = old.matrix_parent_inverse
    for channel in TRANSFORM:
        setattr(new, channel, getattr(old, channel))
    new.hide_render, new.color = old.hide_render, old.color
    old.user_remap(new)
    bpy.data.objects.remove(old)
    new.name = name
    return new
