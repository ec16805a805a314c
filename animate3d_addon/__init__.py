"""The part of Animate3D that runs inside Blender: bpy, numpy and the standard library, never torch.

Enabled as an extension it adds a command: `blender --command animate3d --input X.glb --prompt "…" --output Y.blend`.
"""

from __future__ import annotations

_commands: list[object] = []


def register() -> None:
    import bpy

    _commands.append(bpy.utils.register_cli_command("animate3d", _run_command))


def unregister() -> None:
    import bpy

    while _commands:
        bpy.utils.unregister_cli_command(_commands.pop())


def _run_command(arguments: list[str]) -> int:
    """The command line that follows `blender --command animate3d`; its exit code."""
    from . import batch

    try:
        return batch.main(arguments)
    except SystemExit as end:  # --help
        return int(end.code or 0)
