"""The part of Animate3D that runs inside Blender: bpy, numpy and the standard library, never torch.

Enabled as an extension it adds a panel to the sidebar of the 3D view, and a command:
`blender --command animate3d --input X.glb --prompt "…" --output Y.blend`.
"""

from __future__ import annotations

_commands: list[object] = []


def register() -> None:
    import bpy

    from . import preferences, properties, ui, watch

    bpy.utils.register_class(preferences.ANIMATE3D_AddonPreferences)
    properties.register()
    for cls in _classes():
        bpy.utils.register_class(cls)
    ui.register()
    watch.register()
    _commands.append(bpy.utils.register_cli_command("animate3d", _run_command))


def _classes() -> list[type]:
    from . import mends, operators, setup_operators, splat_operators, take_operators, ui, ui_takes

    modules = (operators, splat_operators, mends, take_operators, setup_operators, ui, ui_takes)
    return [cls for module in modules for cls in module.CLASSES]


def unregister() -> None:
    import bpy

    from . import preferences, properties, ui, watch

    while _commands:
        bpy.utils.unregister_cli_command(_commands.pop())
    watch.unregister()
    ui.unregister()
    for cls in reversed(_classes()):
        bpy.utils.unregister_class(cls)
    properties.unregister()
    bpy.utils.unregister_class(preferences.ANIMATE3D_AddonPreferences)


def _run_command(arguments: list[str]) -> int:
    """The command line that follows `blender --command animate3d`; its exit code."""
    from . import batch

    try:
        return batch.main(arguments, batch.command_line(arguments))
    except SystemExit as end:  # --help
        return int(end.code or 0)
