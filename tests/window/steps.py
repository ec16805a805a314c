"""What happens in the window, as one generator: a timer goes on to the next step when the last one's time is over."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import bpy

sys.path.insert(0, str(Path(__file__).resolve().parent))

import hand
import story_animate
import story_measured
import story_setup
import story_takes
from stage import OUT, TASK, clock, report

STORY = (*story_animate.STORY, *story_measured.STORY, *story_takes.STORY, *story_setup.STORY)
AS_NEW = (*story_animate.STORY[:4], *story_setup.INSTALL, *story_animate.STORY[4:6])  # where no backend is there yet


def steps() -> Iterator[float]:
    for name, part in AS_NEW if TASK["as_new"] else STORY:
        if TASK["parts"] and name not in TASK["parts"]:
            continue
        began = time.monotonic()
        clock.what = name
        yield from part()
        report["seconds"][name] = round(time.monotonic() - began, 1)


_steps = steps()


def advance() -> float | None:
    with clock.own_time():
        try:
            return next(_steps)
        except StopIteration:
            pass
        except Exception:
            report["faults"].append(traceback.format_exc())
            hand.screenshot(OUT / "fault.png")
    bpy.ops.wm.save_as_mainfile(filepath=str(OUT / "scene.blend"), copy=True)
    (OUT / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    bpy.ops.wm.quit_blender()
    return None


bpy.context.preferences.view.show_splash = False
clock.start()
bpy.app.timers.register(advance, first_interval=1.0, persistent=True)
