"""Files in and out: every format the add-on reads, and every format that keeps the motion.

A file that is animated or rigged is read as it is posed at `frame` (0 is the start of a glTF animation): its meshes
become plain meshes at the same place in the world, and its armatures, actions and shape keys go. A file without any of
that keeps its objects and parents as they are. A .blend file is opened as it is, and nothing of it is changed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import bpy
import numpy as np
from mathutils import Matrix

from . import compat, complete, meshes, precheck, splats
from .quiet import quiet
from .shared import protocol

FRAME_RATE = 24
READABLE = (".blend", ".glb", ".gltf", ".obj", ".fbx", ".ply", ".stl")
WRITABLE = (".blend", ".glb", ".fbx", ".usdc", ".abc")
NOT_EXPORTED = "glTF_not_exported"  # where the glTF importer puts the shapes of bones


def load(path: Path, object_name: str | None = None, frame: float = 0.0) -> list[bpy.types.Object]:
    """Replaces everything in Blender by the file, and returns its objects that have a surface, sorted by name.

    Objects that are hidden from renders are left out. With `object_name` only that object, hidden or not, or where it
    has no surface (an armature, an empty), those below it. `frame` is the timeline frame of the pose that is kept of an
    animated file; .blend files stay at their own current frame.
    Raises `UserError`.
    """
    path = Path(path).absolute()
    precheck.check(path, READABLE)
    if path.suffix.lower() == ".blend":
        _open_blend(path)
    else:
        _import(path)
        if _is_animated():
            _freeze_all(frame)
    return _pick(path, object_name)


def load_moving(path: Path) -> list[bpy.types.Object]:
    """Like `load` for all that a file shows, but what is animated stays so. Raises `UserError`."""
    path = Path(path).absolute()
    precheck.check(path, READABLE)
    if path.suffix.lower() == ".blend":
        _open_blend(path)
    else:
        _import(path)
    return _pick(path, None)


def _open_blend(path: Path) -> None:
    try:
        with quiet():
            bpy.ops.wm.open_mainfile(filepath=str(path), load_ui=False, use_scripts=False)
    except RuntimeError as error:
        raise _unreadable(path) from error


def _import(path: Path) -> None:
    """The file into an empty scene at 24 frames per second."""
    with quiet():
        bpy.ops.wm.read_factory_settings(use_empty=True)
        scene = bpy.context.scene
        scene.render.fps, scene.render.fps_base = FRAME_RATE, 1.0
        try:
            _IMPORTERS[path.suffix.lower()](str(path))
        except RuntimeError as error:
            raise _unreadable(path) from error
    # The timeline is the motion's alone; importers make it as long as what they find.
    scene.frame_start = scene.frame_end = 1


_IMPORTERS = {
    ".glb": lambda path: bpy.ops.import_scene.gltf(filepath=path),
    ".gltf": lambda path: bpy.ops.import_scene.gltf(filepath=path),
    ".fbx": lambda path: bpy.ops.import_scene.fbx(filepath=path),
    ".obj": lambda path: bpy.ops.wm.obj_import(filepath=path),
    ".ply": lambda path: bpy.ops.wm.ply_import(filepath=path),
    ".stl": lambda path: bpy.ops.wm.stl_import(filepath=path),
}


def _unreadable(path: Path) -> protocol.UserError:
    return protocol.UserError(f"“{path.name}” can't be read: it is damaged.", "Export or download it again.")


def _is_animated() -> bool:
    return bool(bpy.data.armatures or bpy.data.actions or bpy.data.shape_keys)


def _surfaces() -> list[bpy.types.Object]:
    """The objects of the scene that have a surface, sorted by name; not the shapes that bones are drawn with."""
    return sorted(
        (
            obj
            for obj in bpy.context.scene.objects
            if obj.type in meshes.MESH_LIKE and NOT_EXPORTED not in (c.name for c in obj.users_collection)
        ),
        key=lambda obj: obj.name,
    )


def _is_rendered(obj: bpy.types.Object) -> bool:
    """Whether it would be in a picture: helpers, cutters and the widgets of rigs aren't."""
    shown = any(not collection.hide_render for collection in obj.users_collection)
    return shown and not obj.hide_render and obj.name in bpy.context.view_layer.objects


def _freeze_all(frame: float) -> None:
    """Plain meshes, in place, and nothing else, of all that was imported."""
    for mesh in bpy.data.meshes:
        mesh.validate(clean_customdata=False)  # skin weights that are not numbers, out of real files
    bpy.context.scene.frame_set(int(np.floor(frame)), subframe=frame - float(np.floor(frame)))
    objects = _surfaces()
    if not objects:
        return
    placed = [np.array(obj.matrix_world, np.float64) for obj in objects]
    objects = meshes.freeze(objects, frame)
    for obj, matrix in zip(objects, placed, strict=True):
        place(obj, matrix)
    bpy.data.batch_remove([obj for obj in bpy.data.objects if obj not in set(objects)])
    bpy.data.batch_remove([*bpy.data.armatures, *bpy.data.actions])
    bpy.data.batch_remove([mesh for mesh in bpy.data.meshes if mesh.users == 0])
    for obj in objects:
        if bpy.context.scene not in obj.users_scene:
            bpy.context.scene.collection.objects.link(obj)


def place(obj: bpy.types.Object, matrix: np.ndarray) -> None:
    """Makes `matrix` [4, 4] the object's place in the world, without parent; what is sheared goes into the mesh."""
    obj.animation_data_clear()
    obj.constraints.clear()
    obj.parent = None
    obj.matrix_parent_inverse = Matrix.Identity(4)
    obj.matrix_basis = Matrix(matrix.tolist())
    if np.allclose(np.array(obj.matrix_basis), matrix, rtol=1e-5, atol=1e-6 * np.abs(matrix[:3, :3]).max()):
        return
    linear = matrix.copy()
    linear[:3, 3] = 0.0
    if obj.data.users > 1:
        obj.data = obj.data.copy()
    obj.data.transform(Matrix(linear.tolist()))
    if np.linalg.det(linear[:3, :3]) < 0.0:
        obj.data.flip_normals()
    obj.matrix_basis = Matrix.Translation(matrix[:3, 3].tolist())


def _pick(path: Path, object_name: str | None) -> list[bpy.types.Object]:
    found = _surfaces()
    if object_name is not None:
        named = bpy.context.scene.objects.get(object_name)
        if named is None:
            raise protocol.UserError(f"“{path.name}” has no object named “{object_name}”.", _names_hint(found))
        family = {named, *named.children_recursive}
        found = [named] if named in found else [obj for obj in found if obj in family]
    else:
        found = [obj for obj in found if _is_rendered(obj)]
    if not found:
        raise protocol.UserError(f"“{path.name}” has no mesh in it.", "Choose a file that holds a 3D model.")
    return found


def _names_hint(objects: Sequence[bpy.types.Object]) -> str:
    names = ", ".join(f"“{obj.name}”" for obj in objects[:8])
    return f"It has {names}{' and more' if len(objects) > 8 else ''}." if names else "It has no meshes."


def save(path: Path, objects: Sequence[bpy.types.Object]) -> None:
    """Writes the objects with their animated shape keys; a .blend file gets everything that is open.

    glTF gets one morph target per shape key and one weights channel per mesh, FBX and USD blend shapes, Alembic the
    moving vertices of the scene's frame range. The file appears whole or not at all. Raises `UserError`.
    """
    path = Path(path).absolute()
    if path.suffix.lower() not in WRITABLE:
        raise protocol.UserError(f"“{path.suffix}” files can't be written.", f"Use {', '.join(WRITABLE)}.")
    part = path.with_name(f".{path.stem}.part{path.suffix.lower()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(21, "Is a directory")
        part.touch()
        part.unlink()
        with quiet(), _only_selected(objects), _undrawn(objects if path.suffix.lower() != ".blend" else ()):
            if path.suffix.lower() == ".abc" and shutil.disk_usage(path.parent).free < _alembic_size(objects):
                raise _DISK_FULL  # which would end the whole process: Alembic's writer doesn't catch its own exception
            _EXPORTERS[path.suffix.lower()](str(part))
        if not complete.is_complete(part):
            raise _DISK_FULL
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else "the exporter failed"
        raise protocol.UserError(f"“{path}” can't be written ({reason}).", "Choose another place.") from error


_DISK_FULL = OSError(errno.ENOSPC, "the disk is full")


def _alembic_size(objects: Sequence[bpy.types.Object]) -> int:
    """About how many bytes: a position per vertex and a normal per corner on every frame."""
    scene = bpy.context.scene
    surfaces = [obj.data for obj in objects if obj.type == "MESH"]
    per_frame = sum(12 * (len(mesh.vertices) + len(mesh.loops)) for mesh in surfaces)
    return 2**20 + (scene.frame_end - scene.frame_start + 1) * _alembic_samples() * per_frame


def _alembic_samples() -> int:
    """Per frame: Alembic goes straight from one to the next, which is what shape keys do, and bones turn."""
    return 2 if any(m.type == "ARMATURE" for obj in bpy.context.selected_objects for m in obj.modifiers) else 1


def _save_abc(path: str) -> None:
    samples = _alembic_samples()
    bpy.ops.wm.alembic_export(filepath=path, selected=True, as_background_job=False, gsamples=samples)


def _save_glb(path: str) -> None:
    bpy.ops.export_scene.gltf(
        filepath=path,
        export_format="GLB",
        use_selection=True,
        export_apply=False,
        use_mesh_vertices=True,
        export_animation_mode=compat.gltf_animation_mode(),
    )


def _save_fbx(path: str) -> None:
    bpy.ops.export_scene.fbx(
        filepath=path,
        use_selection=True,
        bake_anim_use_all_actions=False,
        bake_anim_use_nla_strips=False,
        bake_anim_simplify_factor=0.0,  # 1, Blender's own, moves a rig's bones by several per cent
        add_leaf_bones=False,
        path_mode="COPY",
        embed_textures=True,
    )


_EXPORTERS = {
    ".blend": lambda path: bpy.ops.wm.save_as_mainfile(filepath=path, copy=True),
    ".glb": _save_glb,
    ".fbx": _save_fbx,
    ".usdc": lambda path: bpy.ops.wm.usd_export(
        filepath=path, selected_objects_only=True, export_animation=True, export_shapekeys=True
    ),
    ".abc": _save_abc,
}


@contextlib.contextmanager
def _undrawn(objects: Sequence[bpy.types.Object]) -> Iterator[None]:
    """Points without the balls that Blender draws for them, which exporters would write instead of what moves."""
    drawn = [m for obj in objects for m in obj.modifiers if m.type == "NODES" and m.name == splats.NODES]
    shown = [(modifier, modifier.show_viewport, modifier.show_render) for modifier in drawn]
    for modifier, *_ in shown:
        modifier.show_viewport = modifier.show_render = False
    try:
        yield
    finally:
        for modifier, viewport, render in shown:
            modifier.show_viewport, modifier.show_render = viewport, render


@contextlib.contextmanager
def _only_selected(objects: Sequence[bpy.types.Object]) -> Iterator[None]:
    """Exporters go by the selection, which hidden objects can't be part of.

    Empties above the objects come along, because they may shear what is below them.
    """
    empties = {parent for obj in objects for parent in _above(obj) if parent.type == "EMPTY"}
    layer = bpy.context.view_layer
    before = [(obj, obj.select_get(), obj.hide_get(), obj.hide_viewport) for obj in layer.objects]
    try:
        for obj in layer.objects:
            obj.select_set(False)
        for obj in (*objects, *empties):
            obj.hide_viewport = False
            obj.hide_set(False)
            obj.select_set(True)
        yield
    finally:
        for obj, selected, hidden, hidden_everywhere in before:
            obj.select_set(selected)
            obj.hide_set(hidden)
            obj.hide_viewport = hidden_everywhere


def _above(obj: bpy.types.Object) -> Iterator[bpy.types.Object]:
    while obj.parent is not None:
        obj = obj.parent
        yield obj
