"""What is chosen once for all files: where the backend is, which device, how much memory, where jobs are kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import bpy
from bpy.props import BoolProperty, EnumProperty, IntProperty, StringProperty

from . import environment, places


@dataclass(frozen=True)
class Choices:
    """The preferences as plain values; the defaults where the add-on runs from a script."""

    device: str = "auto"
    memory: str = "auto"
    compile: bool = False
    python: str = ""
    weights_folder: str = ""
    cache: str = ""
    warm_minutes: int = 10
    apply_when_done: bool = True

    @property
    def jobs(self) -> Path:
        """The cache folder: a folder for each job."""
        return Path(bpy.path.abspath(self.cache)) if self.cache else places.home() / "jobs"

    @property
    def own_python(self) -> Path | None:
        return environment.python_of(places.environment())


class ANIMATE3D_AddonPreferences(bpy.types.AddonPreferences):
    bl_idname = places.ADDON

    device: EnumProperty(
        name="Device",
        description="What the models run on",
        items=[
            ("auto", "Automatic", "A graphics card where there is one that can do it, else the processor"),
            ("cpu", "Processor", "Works everywhere; good for the starter model"),
            ("cuda", "NVIDIA or AMD GPU", "A graphics card with CUDA or ROCm"),
            ("mps", "Apple GPU", "The graphics of an Apple Silicon Mac"),
        ],
        default="auto",
    )
    memory: EnumProperty(
        name="Memory",
        description="How much memory the video model may use. Where it runs out, the job is tried once more with less",
        items=[
            ("auto", "Automatic", "Whatever fits into the memory that is free when the model is loaded"),
            ("fast", "Fast", "Everything stays loaded; the released model needs 8.5 GB of a graphics card"),
            ("balanced", "Balanced", "What has nothing to do waits outside of the graphics card: 6 GB"),
            ("low", "Low", "With and without the prompt one after the other: 5 GB, and somewhat slower"),
        ],
        default="auto",
    )
    compile: BoolProperty(
        name="Compile",
        description="Let PyTorch compile the video model: the first job takes minutes longer, the next ones less time. "
        "Needs a C++ compiler",
        default=False,
    )
    python: StringProperty(
        name="Existing Python",
        description="A Python that already has the backend's packages; empty: the one that “Install” makes",
        subtype="FILE_PATH",
    )
    weights_folder: StringProperty(
        name="Model Folder",
        description="Folder of a model of your own, used where “Own Model” is chosen",
        subtype="DIR_PATH",
    )
    cache: StringProperty(
        name="Cache Folder",
        description="Where jobs and their results are kept; empty: in the add-on's folder among your user files",
        subtype="DIR_PATH",
    )
    warm_minutes: IntProperty(
        name="Keep Warm (min)",
        description="Minutes for which the backend keeps its models in memory after a job, so that the next one "
        "starts at once",
        default=10,
        min=0,
        max=240,
    )
    apply_when_done: BoolProperty(
        name="Apply When Done",
        description="Put a finished motion onto its object at once; otherwise it waits for the button",
        default=True,
    )

    def draw(self, context: bpy.types.Context) -> None:
        from . import ui_preferences

        ui_preferences.draw(self.layout, self)


def choices() -> Choices:
    """The preferences, or the defaults where the add-on isn't enabled as one."""
    addon = bpy.context.preferences.addons.get(places.ADDON)
    own = addon.preferences if addon is not None else None
    if own is None:
        return Choices()
    return Choices(**{name: getattr(own, name) for name in Choices.__dataclass_fields__})
