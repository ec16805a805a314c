"""From the objects of the file to a job, and from a finished job back to the objects."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import bpy
import numpy as np

from . import (
    bake,
    bake_rig,
    capture,
    compat,
    look,
    meshes,
    models,
    places,
    splats,
    take_data,
    take_points,
    take_rigs,
    takes,
)
from .jobs import CAPTURE, COPY, CaptureTask, Job, Plan, load_all
from .properties import FRONTS, Settings
from .shared import protocol
from .timing import Timing

_session = uuid.uuid4().hex  # of the open file: session numbers mean nothing in another


def file_opened() -> None:
    """Another file, or the same one again: nothing in it is an object of a job that runs."""
    global _session
    _session = uuid.uuid4().hex


def chosen_objects(context: bpy.types.Context) -> list[bpy.types.Object]:
    """What would be animated: the selected objects that have a surface, sorted by name.

    Raises:
        UserError: none is selected, or one can't be changed.
    """
    selected = list(context.selected_objects)
    if not selected and context.active_object is not None and context.active_object.mode != "OBJECT":
        selected = [context.active_object]
    objects = meshes.mesh_like(list(dict.fromkeys(map(take_data.of, selected))))
    if any(map(splats.is_splats, objects)):
        return _only_splats(objects, context.scene.animate3d.output)
    for obj in objects:
        bake.check_object(obj, bake.BakeSettings())
        if not context.scene.animate3d.below:
            _check_modifiers(obj, context)
    check = {"RIG": bake_rig.check_free, "POINTS": take_points.check_free}.get(context.scene.animate3d.output)
    for obj in objects if check is not None else ():
        check(obj, takes.our_modifiers(obj))
    return objects


def _only_splats(objects: Sequence[bpy.types.Object], output: str) -> list[bpy.types.Object]:
    """Raises `UserError` where something else is selected too, or Gaussians shall hang on bones."""
    if len(objects) > 1:
        raise protocol.UserError("Gaussian splats are animated one by one.", "Select one of them alone.")
    if output == "POINTS":
        take_points.check_free(objects[0])
    if output == "RIG":
        raise protocol.UserError("Gaussian splats can't hang on an armature.", "Choose “Shape Keys” as the output.")
    bake.check_object(objects[0], bake.BakeSettings())
    return list(objects)


class OtherVertices(protocol.UserError):
    """Modifiers change the number of vertices: the user has to choose what shall move."""


def _check_modifiers(obj: bpy.types.Object, context: bpy.types.Context) -> None:
    """Shape keys move the mesh's own vertices: better said before the long work than after it."""
    if meshes.changes_vertices(obj, context.evaluated_depsgraph_get()):
        raise OtherVertices(
            f"“{obj.name}” has modifiers that change its number of vertices.",
            "Animate a copy that has them applied, or the mesh below them.",
        )


def _below(objects: Sequence[bpy.types.Object], context: bpy.types.Context) -> bool:
    """Whether it is the meshes below their modifiers that shall move: asked for, and not all the same."""
    depsgraph = context.evaluated_depsgraph_get()
    return context.scene.animate3d.below and any(meshes.changes_vertices(obj, depsgraph) for obj in objects)


@contextlib.contextmanager
def _looked_at(objects: Sequence[bpy.types.Object], below: bool) -> Iterator[None]:
    """Meanwhile, the objects look as a job of theirs sees them."""
    with takes.at_rest(objects), meshes.without_modifiers(objects if below else ()):
        yield


def copy_with_modifiers_applied(objects: Sequence[bpy.types.Object], context: bpy.types.Context) -> None:
    """Plain meshes in the place of objects, which are hidden; they are selected instead. Raises `UserError`."""
    copies = []
    for obj in objects:
        copy = obj.copy()
        copy.animate3d.takes.clear()
        copy.name = f"{obj.name} animated"
        for collection in obj.users_collection:
            collection.objects.link(copy)
        copies.append(copy)
    context.view_layer.update()
    copies = meshes.freeze(copies, context.scene.frame_current_final)
    for obj in objects:
        obj.select_set(False)
        obj.hide_set(True)
        obj.hide_render = True
    for copy in copies:
        copy.select_set(True)
    context.view_layer.objects.active = copies[0]


def new_job(context: bpy.types.Context, objects: Sequence[bpy.types.Object], root: Path) -> Job:
    """A job for the objects with the scene's settings, not captured yet. Raises `UserError`."""
    settings = context.scene.animate3d.job_settings()
    models.card(settings.weights, places.weights())
    return Job.create(root, settings, _plan(context, objects))


def new_look(context: bpy.types.Context, objects: Sequence[bpy.types.Object], root: Path) -> Job:
    """What a background Blender needs to look at the objects once; no job of the list. Raises `UserError`."""
    if splats.is_splats(objects[0]):
        raise protocol.UserError("Gaussian splats are looked at by the backend.", "Start the job to see them.")
    for old in load_all(root):  # of a Blender that was killed
        old.remove()
    job = Job.create(root, protocol.JobSettings("look"), _plan(context, objects))
    write_copy(job, objects, context.scene, size=look.SIZE)
    return job


def _plan(context: bpy.types.Context, objects: Sequence[bpy.types.Object]) -> Plan:
    scene = context.scene
    own: Settings = scene.animate3d
    return Plan(
        objects=tuple(obj.name for obj in objects),
        uids=tuple(compat.session_uid(obj) for obj in objects),
        session=_session,
        blend=bpy.data.filepath,
        frame=scene.frame_current_final,
        front=FRONTS[own.front],
        start=own.start,
        step=own.step,
        loop=own.loop,
        strength=own.strength,
        output=own.output,
        points=own.points if own.output == "POINTS" else 0,
        below=_below(objects, context),
        places=tuple(tuple(np.array(obj.matrix_world).ravel().tolist()) for obj in objects),
    )


def write_copy(job: Job, objects: Sequence[bpy.types.Object], scene: bpy.types.Scene, size: int = 0) -> None:
    """Puts the objects, and what they need, into a file of the job's: all that a background Blender sees.

    With a `size` nothing but the four views is wanted. Raises `UserError` where the file can't be written.
    """
    if splats.is_splats(objects[0]):
        _write_splats(job, objects[0])
        return
    try:
        # The copies have the same shape keys.
        with _to_write(objects, job.plan.below) as written, takes.at_rest(objects):
            # Absolute paths: the file lies somewhere else than the user's.
            bpy.data.libraries.write(str(job.folder / COPY), set(written), path_remap="ABSOLUTE", compress=False)
            task = CaptureTask(
                objects=tuple(obj.name for obj in written),
                names=job.plan.objects,
                frame=job.plan.frame,
                fps=scene.render.fps / scene.render.fps_base,
                appearance=_appearance(job),
                front=job.plan.front,
                size=size,
            )
        protocol.write_json(job.folder / CAPTURE, asdict(task))
    except (OSError, RuntimeError) as error:
        raise protocol.UserError(
            "A copy of the object can't be written.", f"Check the free space of {job.folder.parent}."
        ) from error


@contextlib.contextmanager
def _to_write(objects: Sequence[bpy.types.Object], below: bool) -> Iterator[list[bpy.types.Object]]:
    """The objects as they are where nothing of them has to stay behind; otherwise copies, for as long as it takes.

    A datablock that comes and goes lets Blender draw the whole view anew, eight times where it smooths edges.
    """
    if not any(map(_is_more, objects)) and not below:
        yield list(objects)
        return
    copies = [_lean_copy(obj, below) for obj in objects]
    try:
        yield copies
    finally:
        for copy in copies:
            bpy.data.objects.remove(copy)


def _is_more(obj: bpy.types.Object) -> bool:
    """Whether an object has more than a capture needs: takes, which may be large, a mode, a library."""
    return len(obj.animate3d.takes) > 0 or obj.mode != "OBJECT" or obj.override_library is not None


def _lean_copy(obj: bpy.types.Object, below: bool) -> bpy.types.Object:
    """A copy without takes and what they move it by; without all modifiers where what is `below` them is wanted."""
    if obj.mode == "EDIT":
        obj.update_from_editmode()
    copy = obj.copy()
    ours = [m for take in obj.animate3d.takes if (m := take_rigs.modifier_of(obj, take)) is not None]
    for modifier in obj.modifiers if below else ours:
        copy.modifiers.remove(copy.modifiers[modifier.name])
    copy.animate3d.takes.clear()
    return copy


def _write_splats(job: Job, obj: bpy.types.Object) -> None:
    """Puts the Gaussians themselves into the job. Raises `UserError` where they can't be written."""
    source = protocol.SplatSource.path(job.folder)
    try:
        splats.write(obj, source.with_name("object.part"))
        protocol.SplatSource(splats.up_of(obj)).save(job.folder, source.with_name("object.part"))
        source.with_name("object.part").unlink()
    except OSError as error:
        raise protocol.UserError(
            f"A copy of the splats can't be written ({error.strerror}).",
            f"Check the free space of {job.folder.parent}.",
        ) from error


def capture_here(job: Job, objects: Sequence[bpy.types.Object]) -> None:
    """Captures in this process, which waits for it: for scripts. Raises `UserError`."""
    if splats.is_splats(objects[0]):
        _write_splats(job, objects[0])
        return
    settings = capture.CaptureSettings(appearance=_appearance(job), front=job.plan.front)
    with _looked_at(objects, job.plan.below):
        capture.capture(objects, job.folder, settings)


def look_here(job: Job, objects: Sequence[bpy.types.Object]) -> None:
    """Renders the four views in this process, which waits for it: where there is no Blender to start."""
    with _looked_at(objects, job.plan.below):
        capture.capture(objects, job.folder, capture.four_views(look.SIZE, job.plan.front))


def _appearance(job: Job) -> str:
    return models.card(job.settings.weights, places.weights()).appearance


def find_objects(plan: Plan) -> list[bpy.types.Object]:
    """The objects of a plan in the open file, in its order: those of this session by number, others by name.

    Raises:
        UserError: one is no longer there.
    """
    if plan.session == _session:
        by_number = {compat.session_uid(obj): obj for obj in bpy.data.objects}
        found = [by_number.get(uid) for uid in plan.uids]
    else:
        found = [bpy.data.objects.get(name) for name in plan.objects]
    for obj, name in zip(found, plan.objects, strict=True):
        if obj is None:
            raise protocol.UserError(
                f"“{name}” is no longer there.", "Undo the deletion, or apply the motion to another object."
            )
    return found


def is_of_this_session(plan: Plan) -> bool:
    """Whether the objects of the plan are those of the file that is open now."""
    return plan.session == _session


def apply(job: Job, objects: Sequence[bpy.types.Object] | None = None) -> list[bpy.types.Object]:
    """Puts the motion of a finished job onto its objects, or onto others that look the same. Returns the objects.

    Raises:
        UserError: before anything is changed.
    """
    if protocol.SplatSource.load(job.folder) is not None:
        return _apply_splats(job, objects)
    plan, subject = job.plan, protocol.Subject.load(job.folder)
    rig = protocol.Rig.load(job.folder) if plan.output == "RIG" else None
    objects = find_objects(plan) if objects is None else list(objects)
    if len(objects) == len(subject.object_names):
        subject = replace(subject, object_names=tuple(obj.name for obj in objects))  # they may be called otherwise now
    frame = plan.frame if is_of_this_session(plan) else None
    where = [np.reshape(place, (4, 4)) for place in plan.places]
    first = objects[0].animate3d
    if rig is not None and plan.take and first.active is not None and first.active.group == plan.take:
        with _looked_at(objects, plan.below):
            return takes.become_rig(objects[0], subject, rig, frame, where)
    motion = protocol.Motion.load(job.folder)
    timing = Timing(len(motion.offsets), start=plan.start, step=plan.step, strength=plan.strength, loop=plan.loop)
    seed, folder = job.settings.seed, str(job.folder)
    with _looked_at(objects, plan.below):
        return takes.add(objects, subject, motion, timing, job.title, frame, folder, seed, rig, where, plan.points)


def _apply_splats(job: Job, objects: Sequence[bpy.types.Object] | None) -> list[bpy.types.Object]:
    obj = (find_objects(job.plan) if objects is None else objects)[0]
    if not splats.is_splats(obj):
        raise protocol.UserError(f"“{obj.name}” holds no Gaussian splats.", "Select the object of this job.")
    moves, plan = splats.offsets_of_all(job.folder, obj), job.plan
    timing = Timing(len(moves) + 1, start=plan.start, step=plan.step, strength=plan.strength, loop=plan.loop)
    takes.add_points(obj, moves, timing, job.title, str(job.folder), job.settings.seed)
    return [obj]


def plan_rig(job: Job, obj: bpy.types.Object) -> None:
    """Changes a job that is done so that its next run makes an armature of an object's active take."""
    objects = take_data.together(obj)
    job.settings = replace(job.settings, rig=True)
    job.settings.save(job.folder)
    job.plan = replace(
        job.plan,
        objects=tuple(each.name for each in objects),
        uids=tuple(compat.session_uid(each) for each in objects),
        session=_session,
        output="RIG",
        take=obj.animate3d.active.group,
    )
    job.save()
