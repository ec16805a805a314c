"""A user's hand in a Blender with a window: the mouse and the keyboard, as X events that come from outside.

A button is found as a user finds it, by moving over the region: Blender tells which property or operator the button
under the mouse has (the commands behind Ctrl-C over a button). All functions that take time are generators: they yield
the seconds until they want to go on.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import bpy

LOOK = 0.06  # seconds that Blender has to notice where the mouse is
ROW = 14  # pixels between two looks; a button is 20 high
COLUMNS = (0.5, 0.93, 0.8, 0.2)  # of a region's width: in this order


class NotFound(Exception):
    """A button that should be there."""


def window(area_type: str = "VIEW_3D") -> bpy.types.Window:
    return next(w for w in bpy.context.window_manager.windows if any(a.type == area_type for a in w.screen.areas))


def area(area_type: str = "VIEW_3D") -> bpy.types.Area:
    return next(area for area in window(area_type).screen.areas if area.type == area_type)


def region(region_type: str, area_type: str = "VIEW_3D") -> bpy.types.Region:
    return next(region for region in area(area_type).regions if region.type == region_type)


def override(region_type: str = "WINDOW", area_type: str = "VIEW_3D") -> dict:
    """For `bpy.context.temp_override`."""
    return {"window": window(area_type), "area": area(area_type), "region": region(region_type, area_type)}


def move(x: float, y: float, area_type: str = "VIEW_3D") -> None:
    """To a place in the window, in Blender's pixels: y goes up."""
    w, screen = window(area_type), bpy.context.window_manager.windows[0].height
    _tool("mousemove", round(w.x + x), screen - 1 - round(w.y + y))


def nudge(x: int, y: int) -> None:
    """By so many pixels."""
    _tool("mousemove_relative", "--", x, -y)


def click(button: int = 1) -> None:
    _tool("click", button)


def press(*keys: str) -> None:
    """Keys in xdotool's words: n, ctrl+z, Return."""
    _tool("key", *keys)


def write(text: str) -> Iterator[float]:
    for word in text.split(" "):
        _tool("type", "--delay", 10, f"{word} ")
        yield 0.1
    press("BackSpace")


def screenshot(path: Path) -> None:
    subprocess.run(["import", "-window", "root", str(path)], check=True, timeout=60)


def find(
    wanted: str, region_type: str = "UI", area_type: str = "VIEW_3D", column: float = COLUMNS[0]
) -> Iterator[float]:
    """Moves the mouse onto the button whose property or command has `wanted` in it. Raises `NotFound`.

    column: of the region's width, where it is looked for first.
    """
    place = region(region_type, area_type)
    rows = range(place.height - 8, 0, -ROW)
    for share in dict.fromkeys((column, *COLUMNS)):
        for row in rows:
            x, y = place.x + round(place.width * share), place.y + row
            move(x, y, area_type)
            yield LOOK
            if wanted not in _under_mouse(region_type, area_type):
                continue
            move(x + 2, y - 3, area_type)  # is it still there when Blender has had time?
            yield 0.3
            if wanted in _under_mouse(region_type, area_type):
                return
    raise NotFound(f"There is no button for {wanted}.")


def push(
    wanted: str, region_type: str = "UI", area_type: str = "VIEW_3D", column: float = COLUMNS[0]
) -> Iterator[float]:
    """Finds a button and clicks it."""
    yield from find(wanted, region_type, area_type, column)
    click()
    yield 0.2


def open_tab(name: str) -> Iterator[float]:
    """Clicks down the tabs of the 3D view's sidebar until this one is open. Raises `NotFound`."""
    side = region("UI")
    for y in range(side.height - 20, 0, -20):
        move(side.x + side.width - 8, side.y + y)
        click()
        yield 0.2
        if region("UI").active_panel_category == name:
            return
    raise NotFound(f"There is no tab {name}.")


def _under_mouse(region_type: str, area_type: str) -> str:
    """The data path or the Python command of the button under the mouse; empty where there is none."""
    manager = bpy.context.window_manager
    manager.clipboard = ""
    with bpy.context.temp_override(**override(region_type, area_type)):
        if bpy.ops.ui.copy_python_command_button.poll():
            bpy.ops.ui.copy_python_command_button()
        elif bpy.ops.ui.copy_data_path_button.poll():
            bpy.ops.ui.copy_data_path_button(full_path=True)
    return manager.clipboard


def _tool(*arguments: object) -> None:
    subprocess.run(["xdotool", *map(str, arguments)], check=True, timeout=60)
