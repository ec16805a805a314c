"""What the renders are made with: position colours, our own light, our own cameras, the engine's settings."""

from __future__ import annotations

import math

import bpy
import numpy as np
from mathutils import Matrix

from . import compat
from .quiet import quiet
from .shared import protocol

CODE_ATTRIBUTE = "animate3d_position"


def write_position_code(mesh: bpy.types.Mesh, code: np.ndarray) -> None:
    """Stores a colour [V, 3] in 0..1 with each vertex, without any colour space."""
    attribute = mesh.attributes.new(CODE_ATTRIBUTE, "FLOAT_VECTOR", "POINT")
    attribute.data.foreach_set("vector", np.ascontiguousarray(code, np.float32).ravel())


def position_material() -> bpy.types.Material:
    """Flat, unlit, both sides alike: the colour is the position code of the surface."""
    material = bpy.data.materials.new("Animate3D position")
    tree = compat.node_tree(material)
    attribute = tree.nodes.new("ShaderNodeAttribute")
    attribute.attribute_name = CODE_ATTRIBUTE
    emission = tree.nodes.new("ShaderNodeEmission")
    output = tree.nodes.new("ShaderNodeOutputMaterial")
    tree.links.new(attribute.outputs["Vector"], emission.inputs["Color"])
    tree.links.new(emission.outputs["Emission"], output.inputs["Surface"])
    return material


def add_light(scene: bpy.types.Scene) -> None:
    """A bright, even sky, and a soft sun from the front, left and above that gives shape to what has one colour."""
    scene.world = bpy.data.worlds.new("Animate3D light")
    tree = compat.node_tree(scene.world)
    background = tree.nodes.new("ShaderNodeBackground")
    background.inputs["Color"].default_value = (1.0, 1.0, 1.0, 1.0)
    background.inputs["Strength"].default_value = 0.7
    output = tree.nodes.new("ShaderNodeOutputWorld")
    tree.links.new(background.outputs["Background"], output.inputs["Surface"])
    sun = bpy.data.lights.new("Animate3D sun", "SUN")
    sun.energy, sun.angle = 1.2, 1.0
    place = bpy.data.objects.new("Animate3D sun", sun)
    place.matrix_world = Matrix(protocol.orbit_c2w(-35.0, 50.0).tolist())
    scene.collection.objects.link(place)


def add_camera(scene: bpy.types.Scene, fovy: float) -> bpy.types.Object:
    """A camera with a vertical field of view in degrees, for objects inside of the subject radius."""
    data = bpy.data.cameras.new("Animate3D camera")
    data.sensor_fit = "VERTICAL"
    data.angle = math.radians(fovy)
    data.clip_start, data.clip_end = 0.1, 2.0 * protocol.CAMERA_DISTANCE
    camera = bpy.data.objects.new("Animate3D camera", data)
    scene.collection.objects.link(camera)
    scene.camera = camera
    return camera


def use_cycles(scene: bpy.types.Scene) -> None:
    """What both kinds of picture have in common: square, transparent, one object cache for all views."""
    if not hasattr(scene, "cycles"):
        raise protocol.UserError(
            "The Cycles renderer is switched off.", "Enable “Cycles Render Engine” in Preferences > Add-ons."
        )
    scene.render.engine = "CYCLES"
    scene.render.resolution_percentage = 100
    scene.render.film_transparent = True
    scene.render.use_persistent_data = True
    scene.render.dither_intensity = 0.0
    scene.render.use_compositing = scene.render.use_sequencer = False
    compat.use_png(scene.render.image_settings)
    scene.cycles.device = "CPU"  # the pictures are small: a GPU would take longer to wake up
    scene.cycles.use_adaptive_sampling = False
    scene.view_settings.look = "None"


def use_true_colors(scene: bpy.types.Scene, samples: int) -> None:
    scene.view_layers[0].material_override = None
    _set_view(scene, "Standard")
    scene.cycles.max_bounces, scene.cycles.transparent_max_bounces = 3, 16
    with quiet():  # looks for graphics cards, and says so where there is none
        denoised = compat.use_denoiser(scene)
    # Without the denoiser four times as many samples look about the same.
    scene.cycles.samples = samples if denoised else 4 * samples


def _set_view(scene: bpy.types.Scene, name: str) -> None:
    try:
        scene.view_settings.view_transform = name
    except TypeError:
        raise protocol.UserError(
            f"The colour management in use has no view transform “{name}”.",
            "Start Blender without the environment variable OCIO.",
        ) from None


def use_position_colors(scene: bpy.types.Scene, samples: int) -> None:
    """Values as they are: no view transform, no denoiser, a pixel is the mean over its own square."""
    scene.view_layers[0].material_override = position_material()
    _set_view(scene, "Raw")
    scene.cycles.max_bounces = 0
    scene.cycles.pixel_filter_type = "BOX"
    scene.cycles.use_denoising = False
    scene.cycles.samples = samples
