"""What is stored in the .blend file: the settings of the next job with the scene, the takes with their objects."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import bpy
from bpy.props import (
    BoolProperty,
    CollectionProperty,
    EnumProperty,
    FloatProperty,
    FloatVectorProperty,
    IntProperty,
    PointerProperty,
    StringProperty,
)

from . import models, places, prompts
from .preferences import choices
from .shared import protocol, understand
from .timing import Timing

FRONTS = {"NEG_Y": 0.0, "POS_X": 90.0, "POS_Y": 180.0, "NEG_X": 270.0}  # degrees from -Y, counterclockwise

LOOP_ITEMS = [
    ("OFF", "Off", "The motion plays once and holds its last pose"),
    ("CYCLE", "Cycle", "From the end to the beginning within one step, again and again"),
    ("PINGPONG", "Ping-Pong", "Forwards, backwards, forwards, …"),
]


OUTPUT_ITEMS = [
    ("KEYS", "Shape Keys", "Exact, for every kind of motion; exports as morph targets"),
    ("RIG", "Rig", "An armature with a skin: smaller, to be edited by hand, as game engines like it"),
    ("POINTS", "Points", "Coloured points on the surface, Gaussians with all their numbers: for effects and splats"),
]
POINTS = {"default": 20_000, "min": 100, "max": 2_000_000, "soft_max": 200_000}


def suggestions(self: Settings, context: bpy.types.Context, text: str) -> Iterator[str]:
    """What the prompt offers while it is typed: earlier sentences, then what the model knows."""
    known = [*prompts.history(places.home()), *examples(self, context)]
    words = text.lower().split()
    yield from (each for each in dict.fromkeys(known) if all(word in each.lower() for word in words))


def examples(settings: Settings, context: bpy.types.Context) -> list[str]:
    """A sentence for each motion that the chosen model knows; none where it takes any sentence."""
    try:
        card = models.card(settings.weights_name(), places.weights())
    except protocol.UserError:
        return []
    return models.example_prompts(card)


def notice(settings: Settings) -> str:
    """What the chosen model makes of the prompt where it does not know what is asked for; empty where it does."""
    try:
        card, prompt = models.card(settings.weights_name(), places.weights()), protocol.clean_prompt(settings.prompt)
    except protocol.UserError:
        return ""
    return understand(prompt, card.motions).notice


class Settings(bpy.types.PropertyGroup):
    """Of the next job; `scene.animate3d`."""

    prompt: StringProperty(
        name="Prompt",
        description="One sentence: what moves, and how. Type to search what you asked for before",
        maxlen=protocol.MAX_PROMPT,
        search=suggestions,
        search_options={"SUGGESTION"},
    )
    preset: EnumProperty(
        name="Preset",
        description="Speed or quality",
        items=[
            ("draft", "Draft", "A look in seconds, without a graphics card too"),
            ("standard", "Standard", "The model's full number of steps"),
            ("paper", "Paper", "As in the paper: 25 steps three times over, and its own fit. Slow"),
        ],
        default="draft",
    )
    weights: EnumProperty(
        name="Model",
        description="The video model that imagines the motion",
        items=[
            (
                "auto",
                "Automatic",
                "Animate3D where it is installed and a graphics card has room for it, else the starter",
            ),
            ("starter", "Starter", "Comes along: small and quick, knows a few motions"),
            ("animate3d", "Animate3D", "The released model, for any sentence; needs a graphics card and a download"),
            ("own", "Own Model", "The model folder in the preferences"),
        ],
        default="auto",
    )
    frames: IntProperty(
        name="Frames",
        description="Frames of the motion; the models were trained on 16",
        default=16,
        min=protocol.MIN_FRAMES,
        max=protocol.MAX_FRAMES,
    )
    start: IntProperty(name="Start", description="Timeline frame at which the motion begins", default=1)
    step: FloatProperty(
        name="Step",
        description="Timeline frames from one frame of the motion to the next; 3 at 24 fps is as fast as imagined",
        default=3.0,
        min=0.1,
        max=1000.0,
        soft_min=1.0,
        soft_max=12.0,
        precision=1,
        step=50,
    )
    loop: EnumProperty(name="Loop", description="Whether the motion repeats", items=LOOP_ITEMS, default="OFF")
    seed: IntProperty(
        name="Seed",
        description="Another seed, another variant of the motion; the starter model knows one for each sentence",
        default=0,
        min=0,
        max=2**31 - 1,
    )
    strength: FloatProperty(
        name="Strength",
        description="How far the object moves: 1 is as imagined. Can be changed later",
        default=1.0,
        min=0.0,
        max=2.0,
        subtype="FACTOR",
    )
    front: EnumProperty(
        name="Front",
        description="Which way the object looks: what the model sees as its front",
        items=[
            ("NEG_Y", "−Y", "It looks towards −Y, into Blender's front view, as most objects do"),
            ("POS_X", "+X", "It looks towards +X"),
            ("POS_Y", "+Y", "It looks towards +Y, away from Blender's front view"),
            ("NEG_X", "−X", "It looks towards −X"),
        ],
        default="NEG_Y",
    )

    output: EnumProperty(
        name="Output",
        description="What the motion becomes. A take can be turned into another later",
        items=OUTPUT_ITEMS,
        default="KEYS",
    )
    points: IntProperty(name="Points", description="How many points a cloud of points gets", **POINTS)

    below: BoolProperty(
        name="Below Modifiers",
        description="Where modifiers change the number of vertices: animate the mesh below them, and let them act on "
        "what moves. What the model sees, too, is the mesh without its modifiers then",
        default=False,
    )

    def weights_name(self) -> str:
        """The chosen weights, in the words of a job: a model's name, or a folder."""
        if self.weights == "auto":
            return models.default(choices().device, places.weights())
        return (bpy.path.abspath(choices().weights_folder) or "own") if self.weights == "own" else self.weights

    def job_settings(self) -> protocol.JobSettings:
        """Raises `UserError` where a value makes no sense."""
        chosen = choices()
        return protocol.JobSettings(
            prompt=self.prompt,
            preset=self.preset,
            seed=self.seed,
            frames=self.frames,
            device=chosen.device,
            weights=self.weights_name(),
            memory=chosen.memory,
            compile=chosen.compile,
            rig=self.output == "RIG",
        )


def _retime(self: Take, context: bpy.types.Context) -> None:
    from . import takes

    takes.retime(self)


def _recount(self: Take, context: bpy.types.Context) -> None:
    from . import takes

    takes.recount(self)


class Take(bpy.types.PropertyGroup):
    """One result on one object. The offsets of its vertices lie in a mesh that only it and its duplicates use."""

    offsets: PointerProperty(
        name="Offsets",
        description="Where the vertices go, frame after frame",
        type=bpy.types.Mesh,
    )
    output: EnumProperty(name="Output", description="What moves the object", items=OUTPUT_ITEMS, default="KEYS")
    rig: PointerProperty(name="Rig", description="The armature of a take that is one", type=bpy.types.Object)
    rig_place: FloatVectorProperty(
        name="Place of the Rig",
        description="Where the armature is, seen from the object, while it is put aside",
        size=16,
    )
    cloud: PointerProperty(name="Cloud", description="The points of a take that is a cloud", type=bpy.types.Object)
    count: IntProperty(name="Points", description="How many points the cloud has", update=_recount, **POINTS)
    frames: IntProperty(name="Frames", description="Frames of the motion, the rest pose included", default=16, min=2)
    group: StringProperty(name="Group", description="The same for all objects that were animated together")
    member: IntProperty(name="Member", description="Which of the objects that were animated together")
    job: StringProperty(name="Job", description="The job's folder", subtype="DIR_PATH")
    prompt: StringProperty(name="Prompt", description="The sentence that was asked for")
    seed: StringProperty(name="Seed", description="The seed of the motion")
    start: FloatProperty(
        name="Start", description="Timeline frame at which the motion begins", default=1.0, update=_retime, precision=1
    )
    step: FloatProperty(
        name="Step",
        description="Timeline frames from one frame of the motion to the next: smaller is faster",
        default=3.0,
        min=0.1,
        max=1000.0,
        soft_min=0.5,
        soft_max=12.0,
        precision=2,
        step=25,
        update=_retime,
    )
    strength: FloatProperty(
        name="Strength",
        description="How far the object moves: 1 is as imagined, 0 stands still",
        default=1.0,
        min=0.0,
        max=2.0,
        subtype="FACTOR",
        update=_retime,
    )
    loop: EnumProperty(
        name="Loop", description="Whether the motion repeats", items=LOOP_ITEMS, default="OFF", update=_retime
    )
    first: IntProperty(
        name="From", description="First frame of the motion that is shown; 0 is the rest pose", min=0, update=_retime
    )
    last: IntProperty(
        name="To", description="Last frame of the motion that is shown", default=1000, min=1, update=_retime
    )

    @property
    def timing(self) -> Timing:
        """When its keys are on; the shown part is made to have a length."""
        last = max(min(self.last, self.frames - 1), 1)
        return Timing(
            self.frames,
            start=self.start,
            step=self.step,
            strength=self.strength,
            loop=self.loop,
            first=min(self.first, last - 1),
            last=last,
        )


class KeyName(bpy.types.PropertyGroup):
    """The name of a shape key that belongs to the takes (`name`)."""


def _switch(self: ObjectTakes, context: bpy.types.Context) -> None:
    from . import takes

    takes.switch(self.id_data)


def _show(self: ObjectTakes, context: bpy.types.Context) -> None:
    from . import takes

    takes.mute(self.id_data)


class ObjectTakes(bpy.types.PropertyGroup):
    """The takes of an object; `object.animate3d`."""

    takes: CollectionProperty(name="Takes", description="The motions of this object", type=Take)
    active_index: IntProperty(name="Take", description="The take that is shown", default=-1, update=_switch)
    is_shown: BoolProperty(
        name="Show Motion",
        description="Whether the object moves; off, it keeps its rest pose",
        default=True,
        update=_show,
    )
    keys: CollectionProperty(name="Keys", description="The shape keys that hold the shown take", type=KeyName)
    owner: PointerProperty(
        name="Owner", description="The object of the take that this cloud of points belongs to", type=bpy.types.Object
    )
    surface: StringProperty(
        name="Surface", description="How the object was drawn before its points were; empty: it is drawn so"
    )
    surface_hidden: BoolProperty(
        name="Surface Hidden", description="Whether the object was hidden from renders before its points were shown"
    )
    made_basis: BoolProperty(
        name="Made Basis", description="Whether the object had no shape keys before", default=False
    )

    @property
    def active(self) -> Take | None:
        return self.takes[self.active_index] if 0 <= self.active_index < len(self.takes) else None


def front_degrees(settings: Settings) -> float:
    return FRONTS[settings.front]


def cache_folder() -> Path:
    return choices().jobs


CLASSES = (Settings, KeyName, Take, ObjectTakes)


def register() -> None:
    for cls in CLASSES:
        bpy.utils.register_class(cls)
    bpy.types.Scene.animate3d = PointerProperty(
        name="Animate3D", description="The settings of the next motion", type=Settings
    )
    bpy.types.Object.animate3d = PointerProperty(name="Animate3D", description="The object's motions", type=ObjectTakes)


def unregister() -> None:
    del bpy.types.Object.animate3d
    del bpy.types.Scene.animate3d
    for cls in reversed(CLASSES):
        bpy.utils.unregister_class(cls)
