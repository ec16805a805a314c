"""A scene of our own beside the user's, of which nothing is left afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import bpy

from . import compat


@contextlib.contextmanager
def temporary_scene(keep: Sequence[bpy.types.ID] = ()) -> Iterator[bpy.types.Scene]:
    """A new, empty scene; it and every datablock that came into being meanwhile are removed at the end.

    `keep` is looked at afterwards: what was put into the list meanwhile stays.

    Removing whatever is new, instead of what we remember having made, also removes what Blender makes by itself
    (the Render Result, meshes made by an interrupted conversion). The scene in the window stays the user's.
    """
    before = {compat.session_uid(datablock) for datablock in _all_datablocks()}
    scene = bpy.data.scenes.new("Animate3D temporary")
    try:
        yield scene
    finally:
        scene.render.use_persistent_data = False  # Blender lets go of what it keeps for this scene's renders
        before |= {compat.session_uid(datablock) for datablock in keep}
        # By number, because Blender 5.2 lists every datablock twice.
        new = {compat.session_uid(each): each for each in _all_datablocks()}
        bpy.data.batch_remove([new[uid] for uid in new.keys() - before])


def _all_datablocks() -> Iterator[bpy.types.ID]:
    for property_ in bpy.data.bl_rna.properties:
        if property_.type == "COLLECTION":
            yield from getattr(bpy.data, property_.identifier)
