"""What `benchmarks/starter.py` animates: procedural objects that were never trained on, known ones, and files."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backend.protocol import CAMERA_FOVY, Subject, condition_cameras, subject_to_world, transform_points
from backend.training.clips import HELD_OUT_SEED, make_clip
from backend.training.shapes import random_object

FIRST_SEED = HELD_OUT_SEED + 10_000  # apart from what training measures itself on
READABLE = (".npz", ".glb", ".gltf", ".obj", ".fbx", ".blend")


@dataclass(frozen=True)
class Thing:
    """An object to be animated."""

    name: str
    rest: np.ndarray  # [V, 3] float64, subject space
    faces: np.ndarray  # [T, 3] int64
    to_world: np.ndarray  # [4, 4]
    trained: str = ""  # the motion that training has shown with this very object

    def subject(self, size: int) -> Subject:
        """The object as capture would hand it over, without pictures; `size` in pixels."""
        weld = np.unique(self.rest.round(9), axis=0, return_inverse=True)[1].reshape(-1)
        cameras = condition_cameras()
        return Subject(
            vertices=self.rest.astype(np.float32),
            faces=self.faces.astype(np.int32),
            weld=weld.astype(np.int32),
            to_world=self.to_world,
            object_names=("object",),
            object_counts=(len(self.rest),),
            condition_c2w=cameras,
            appearance_c2w=cameras[:0],
            condition_size=size,
            appearance_size=0,
            fovy=CAMERA_FOVY,
        )


def unseen_shapes() -> Iterator[Thing]:
    """Ever new procedural objects."""
    for seed in itertools.count(FIRST_SEED):
        yield Thing(f"shape{seed - FIRST_SEED}", *random_object(np.random.default_rng(seed)), np.eye(4))


def seen_shapes() -> Iterator[Thing]:
    """The objects of the training set; each was shown with one motion, so all other pairs are new."""
    for seed in itertools.count():
        clip = make_clip(seed, 2)
        yield Thing(f"pair{seed}", clip.rest, clip.faces, np.eye(4), clip.motion)


def meshes(folders: list[Path], names: list[str] | None = None) -> Iterator[Thing]:
    """The files of folders, one for each stem: arrays `vertices` [F, V, 3] or [V, 3] and `faces` in Blender's axes, or
    models at the first frame of what they do. Models need the bpy package."""
    found: dict[str, Path] = {}
    for path in sorted(path for folder in folders for path in folder.iterdir()):
        if path.suffix.lower() in READABLE and (not names or path.stem in names):
            found[path.stem] = min(found.get(path.stem, path), path, key=lambda p: READABLE.index(p.suffix.lower()))
    for name, path in sorted(found.items()):
        world, faces = _arrays(path) if path.suffix == ".npz" else _model(path)
        to_world = subject_to_world(world)
        yield Thing(name, transform_points(np.linalg.inv(to_world), world), faces, to_world)


def _arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        vertices, faces = arrays["vertices"].astype(np.float64), arrays["faces"].astype(np.int64)
    return (vertices[0] if vertices.ndim == 3 else vertices), faces


def _model(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """World vertices [V, 3] and triangles [T, 3] of a file, as capture reads them."""
    import bpy

    from animate3d_addon import files
    from animate3d_addon import meshes as blender_meshes
    from animate3d_addon.temporary import temporary_scene

    objects = blender_meshes.mesh_like(files.load(path))
    with temporary_scene() as scene:
        pieces = blender_meshes.evaluate(objects, scene, bpy.context.scene.frame_current_final)
        vertices, faces = blender_meshes.join(pieces)
    return vertices, faces.astype(np.int64)
