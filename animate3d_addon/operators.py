"""The operators of jobs: animate, cancel, apply, again, remove. They start and stop; the timer in `watch` watches."""

from __future__ import annotations

import random

import bpy
from bpy.props import BoolProperty, EnumProperty, FloatProperty, IntProperty, StringProperty

from . import meshes, places, prompts, properties, results, watch
from .jobs import Job
from .look import Look
from .operator_parts import OfJob, told
from .shared import protocol

# Settings that `bpy.ops.animate3d.animate(…)` takes too, so that a script needs no other line.
OPTIONS = (
    "prompt",
    "preset",
    "weights",
    "frames",
    "start",
    "step",
    "loop",
    "seed",
    "strength",
    "front",
    "output",
    "points",
    "below",
)


class ANIMATE3D_OT_animate(bpy.types.Operator):
    """Let the selected objects move as the prompt says. From a script: waits until the motion is on the timeline"""

    bl_idname = "animate3d.animate"
    bl_label = "Animate"
    bl_options = {"UNDO"}  # noqa: RUF012

    prompt: StringProperty(name="Prompt", description="One sentence: what moves, and how", options={"SKIP_SAVE"})
    preset: EnumProperty(
        name="Preset",
        description="Speed or quality",
        items=[(name, name.title(), "") for name in protocol.PRESETS],
        options={"SKIP_SAVE"},
    )
    weights: EnumProperty(
        name="Model",
        description="The video model that imagines the motion",
        items=[
            ("auto", "Automatic", ""),
            ("starter", "Starter", ""),
            ("animate3d", "Animate3D", ""),
            ("own", "Own Model", ""),
        ],
        options={"SKIP_SAVE"},
    )
    frames: IntProperty(name="Frames", description="Frames of the motion", default=16, options={"SKIP_SAVE"})
    start: IntProperty(
        name="Start", description="Timeline frame at which the motion begins", default=1, options={"SKIP_SAVE"}
    )
    step: FloatProperty(
        name="Step", description="Timeline frames from one to the next", default=3.0, options={"SKIP_SAVE"}
    )
    loop: EnumProperty(
        name="Loop", description="Whether the motion repeats", items=properties.LOOP_ITEMS, options={"SKIP_SAVE"}
    )
    seed: IntProperty(name="Seed", description="Another seed, another variant", default=0, min=0, options={"SKIP_SAVE"})
    strength: FloatProperty(name="Strength", description="How far the object moves", default=1.0, options={"SKIP_SAVE"})
    front: EnumProperty(
        name="Front",
        description="Which way the object looks",
        items=[(name, name, "") for name in properties.FRONTS],
        options={"SKIP_SAVE"},
    )
    output: EnumProperty(
        name="Output", description="What the motion becomes", items=properties.OUTPUT_ITEMS, options={"SKIP_SAVE"}
    )
    points: IntProperty(
        name="Points", description="How many points a cloud of points gets", options={"SKIP_SAVE"}, **properties.POINTS
    )
    below: BoolProperty(
        name="Below Modifiers", description="Animate the mesh below its modifiers", options={"SKIP_SAVE"}
    )

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        """From the interface: puts a job into the queue, and returns at once."""
        return told(type(self)._enqueue)(self, context)

    @told
    def execute(self, context: bpy.types.Context) -> None:
        """From a script: the whole road, here and now."""
        self._take_options(context)
        objects = results.chosen_objects(context)
        job = results.new_job(context, objects, watch.queue().root)
        try:
            results.capture_here(job, objects)
            watch.queue().add(job)
            watch.work_until_done(job)
        except protocol.UserError as error:
            job.become("failed", error)
            raise
        if job.notice:
            self.report({"WARNING"}, job.notice)
        apply(job)

    def _enqueue(self, context: bpy.types.Context) -> set[str]:
        self._take_options(context)
        watch.backend_python()  # or nothing has to be tried
        enqueue(context)
        return {"CANCELLED"}  # nothing in the file has changed: no undo step

    def _take_options(self, context: bpy.types.Context) -> None:
        if self.properties.is_property_set("prompt"):
            protocol.clean_prompt(self.prompt)  # the scene's would be cut short without a word
        for name in OPTIONS:
            if self.properties.is_property_set(name):
                setattr(context.scene.animate3d, name, getattr(self, name))


class ANIMATE3D_OT_animate_selected(bpy.types.Operator):
    """Ask for a sentence, and let the selected objects move as it says"""

    bl_idname = "animate3d.animate_selected"
    bl_label = "Animate Selected Object"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        if not context.selected_objects:
            cls.poll_message_set("Nothing is selected")
            return False
        return context.mode == "OBJECT"

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        return context.window_manager.invoke_props_dialog(self, width=420)

    def draw(self, context: bpy.types.Context) -> None:
        from . import ui

        ui.draw_dialog(self.layout, context)

    @told
    def execute(self, context: bpy.types.Context) -> None:
        watch.backend_python()
        enqueue(context)


def enqueue(context: bpy.types.Context) -> Job:
    """A new job of what is selected, in the queue. Raises `UserError`."""
    objects = results.chosen_objects(context)
    job = results.new_job(context, objects, watch.queue().root)
    try:
        if bpy.app.binary_path:
            results.write_copy(job, objects, context.scene)
        else:
            results.capture_here(job, objects)
    except protocol.UserError:
        job.remove()
        raise
    prompts.remember(places.home(), job.title)
    watch.queue().add(job)
    watch.start()
    watch.redraw()
    return job


class ANIMATE3D_OT_cancel(OfJob, bpy.types.Operator):
    """Stop this job. What it has done so far is kept, and it can go on later"""

    bl_idname = "animate3d.cancel"
    bl_label = "Cancel"

    @told
    def execute(self, context: bpy.types.Context) -> None:
        watch.queue().cancel(self.find())
        watch.start()
        watch.redraw()


class ANIMATE3D_OT_apply_job(OfJob, bpy.types.Operator):
    """Put this finished motion onto its object, as a new take"""

    bl_idname = "animate3d.apply_job"
    bl_label = "Apply"
    bl_options = {"UNDO"}  # noqa: RUF012

    to_selected: BoolProperty(
        name="To Selected",
        description="Onto the selected objects, which have to have the same vertices, instead of those of the job",
        default=False,
        options={"SKIP_SAVE"},
    )

    @told
    def execute(self, context: bpy.types.Context) -> None:
        job = self.find()
        if job.state not in ("ready", "applied"):
            raise protocol.UserError("This job has no motion yet.", "Wait for it, or start it again.")
        apply(job, results.chosen_objects(context) if self.to_selected else None)
        watch.redraw()


def apply(job: Job, objects: list[bpy.types.Object] | None = None) -> None:
    results.apply(job, objects)
    job.become("applied")


class ANIMATE3D_OT_run_again(OfJob, bpy.types.Operator):
    """Start this job again. It goes on where it stopped"""

    bl_idname = "animate3d.run_again"
    bl_label = "Run Again"

    @told
    def execute(self, context: bpy.types.Context) -> None:
        watch.queue().add(self.find())
        watch.start()
        watch.redraw()


class ANIMATE3D_OT_remove_job(OfJob, bpy.types.Operator):
    """Delete this job and its files. Motions that were applied stay"""

    bl_idname = "animate3d.remove_job"
    bl_label = "Remove"

    @told
    def execute(self, context: bpy.types.Context) -> None:
        watch.queue().remove(self.find())
        watch.redraw()


class ANIMATE3D_OT_dice(bpy.types.Operator):
    """Choose another seed"""

    bl_idname = "animate3d.dice"
    bl_label = "Roll Seed"
    bl_options = {"UNDO", "INTERNAL"}  # noqa: RUF012

    def execute(self, context: bpy.types.Context) -> set[str]:
        context.scene.animate3d.seed = random.randrange(2**31)
        return {"FINISHED"}


class ANIMATE3D_OT_use_prompt(bpy.types.Operator):
    """Use this sentence"""

    bl_idname = "animate3d.use_prompt"
    bl_label = "Use Prompt"
    bl_options = {"UNDO", "INTERNAL"}  # noqa: RUF012

    prompt: StringProperty(name="Prompt", description="The sentence")

    def execute(self, context: bpy.types.Context) -> set[str]:
        context.scene.animate3d.prompt = self.prompt
        return {"FINISHED"}


class ANIMATE3D_OT_copy_applied(bpy.types.Operator):
    """Put a copy that has the modifiers applied in the object's place, to be animated; the object itself is hidden"""

    bl_idname = "animate3d.copy_applied"
    bl_label = "Animate a Copy"
    bl_options = {"UNDO"}  # noqa: RUF012

    @told
    def execute(self, context: bpy.types.Context) -> None:
        results.copy_with_modifiers_applied(meshes.mesh_like(context.selected_objects), context)


class ANIMATE3D_OT_look(bpy.types.Operator):
    """Render the four views that the model would see, small: whether the front is the front, before the long work"""

    bl_idname = "animate3d.look"
    bl_label = "Look"

    @told
    def execute(self, context: bpy.types.Context) -> None:
        objects = results.chosen_objects(context)
        job = results.new_look(context, objects, places.home() / "look")
        try:
            if bpy.app.binary_path:
                watch.show_look(Look.start(job, watch.capture_command(job)))
            else:
                results.look_here(job, objects)
                watch.show_look(Look(job, None, is_done=True))
        except protocol.UserError:
            job.remove()
            raise


class ANIMATE3D_OT_close_look(bpy.types.Operator):
    """Put the four views away"""

    bl_idname = "animate3d.close_look"
    bl_label = "Close"
    bl_options = {"INTERNAL"}  # noqa: RUF012

    def execute(self, context: bpy.types.Context) -> set[str]:
        watch.show_look(None)
        return {"FINISHED"}


class ANIMATE3D_OT_open_preferences(bpy.types.Operator):
    """Open the preferences of Animate3D, where its backend and models are installed"""

    bl_idname = "animate3d.open_preferences"
    bl_label = "Open Preferences"

    def execute(self, context: bpy.types.Context) -> set[str]:
        if context.preferences.addons.get(places.ADDON) is None:
            self.report({"ERROR"}, "Animate3D is not enabled as an add-on: it has no preferences.")
            return {"CANCELLED"}
        bpy.ops.preferences.addon_show(module=places.ADDON)
        return {"FINISHED"}


CLASSES = (
    ANIMATE3D_OT_animate,
    ANIMATE3D_OT_animate_selected,
    ANIMATE3D_OT_cancel,
    ANIMATE3D_OT_apply_job,
    ANIMATE3D_OT_run_again,
    ANIMATE3D_OT_remove_job,
    ANIMATE3D_OT_dice,
    ANIMATE3D_OT_use_prompt,
    ANIMATE3D_OT_copy_applied,
    ANIMATE3D_OT_look,
    ANIMATE3D_OT_close_look,
    ANIMATE3D_OT_open_preferences,
)
