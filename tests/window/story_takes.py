"""What becomes of a take, and of objects that can't be animated as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import bpy
import hand
from stage import CACTUS, EGG, expect, package, select, shot, to_view, until


def other_output() -> Iterator[float]:
    """The take as an armature, made by the backend from what the job has already, and as keys again."""
    obj = select(EGG)
    yield 0.5
    yield from hand.push("animate3d.take_output(output='RIG'")
    yield from until(lambda: obj.animate3d.takes[0].output == "RIG", "the take becomes a rig", 90)
    expect(obj.parent is not None and obj.parent.type == "ARMATURE", "the take is no rig")
    expect(obj.data.shape_keys is None, "the keys of a take that is a rig are still there")
    yield from hand.push("animate3d.take_output(output='KEYS'", column=0.2)
    yield 0.5
    expect(obj.parent is None and obj.data.shape_keys is not None, "the take is not keys again")


def cloud() -> Iterator[float]:
    """The take of the cactus as points, which move, and as keys again."""
    obj = select(CACTUS)
    bpy.context.scene.animate3d.points = 5000  # drawn in software
    bpy.context.scene.frame_set(1)
    yield 0.5
    yield from hand.push("animate3d.take_output(output='POINTS'", column=0.8)
    take = obj.animate3d.takes[0]
    yield from until(lambda: take.output == "POINTS", "the take becomes points", 30)
    expect(take.cloud is not None and len(take.cloud.data.vertices) == 5000, "the take is no cloud of 5000 points")
    expect(obj.display_type == "BOUNDS", "the surface is still drawn where its points are")
    to_view()
    at_rest = corners(take.cloud)
    bpy.context.scene.frame_set(10)
    yield 1.0
    expect(corners(take.cloud) != at_rest, "the points stand still")
    yield from shot("11_points")
    yield from hand.push("animate3d.take_output(output='KEYS'", column=0.2)
    yield 0.5
    expect(take.output == "KEYS" and obj.display_type != "BOUNDS", "the surface does not come back")


def corners(obj: bpy.types.Object) -> list[tuple[float, ...]]:
    """Of the box around it as it looks now."""
    return [tuple(corner) for corner in obj.evaluated_get(bpy.context.evaluated_depsgraph_get()).bound_box]


def modifiers() -> Iterator[float]:
    """An object with modifiers that make vertices: the panel offers what can be done."""
    with bpy.context.temp_override(**hand.override()):
        bpy.ops.mesh.primitive_cube_add()
        bpy.context.object.name = "Cube"
        bpy.context.object.modifiers.new("Subdivision", "SUBSURF")
    select("Cube")
    yield 0.7
    yield from shot("12_modifiers")
    yield from hand.push("animate3d.copy_applied(")
    yield 0.5
    expect(len(bpy.context.view_layer.objects.active.data.vertices) > 8, "the copy has no modifiers applied")


def text() -> None:
    bpy.ops.object.text_add()


def instance() -> None:
    collection = bpy.data.collections.new("Things")
    collection.objects.link(bpy.data.objects.new("Thing", bpy.data.meshes["Cube"]))
    bpy.ops.object.collection_instance_add(collection=collection.name)


def nothing() -> None:
    bpy.ops.object.select_all(action="DESELECT")


MENDS: dict[str, tuple[Callable[[], None], str]] = {
    "CONVERT": (text, "a text becomes a mesh"),
    "REAL": (instance, "a collection instance becomes objects"),
    "SELECT": (nothing, "a mesh is selected"),
}


def mends() -> Iterator[float]:
    """What keeps an object from being animated, and the button that mends it."""
    results, meshes = package("results"), package("meshes")
    for what, (make, words) in MENDS.items():
        with bpy.context.temp_override(**hand.override()):
            make()
        yield 0.7
        try:
            results.chosen_objects(bpy.context)
            expect(False, f"nothing is to be mended before {words}")
        except meshes.Mendable as mendable:
            expect(mendable.mend == what, f"the panel offers {mendable.mend} where {what} is needed")
        if what == "CONVERT":
            yield from shot("13_mend")
        yield from hand.push(f"animate3d.mend(what='{what}'")
        yield 0.5
        with bpy.context.temp_override(**hand.override()):
            try:
                expect(len(results.chosen_objects(bpy.context)) > 0, f"one click, and {words}")
            except meshes.Mendable as mendable:
                expect(False, f"one click does not do it: {mendable.message}")


STORY = (
    ("other output", other_output),
    ("points", cloud),
    ("modifiers", modifiers),
    ("mends", mends),
)
