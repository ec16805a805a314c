"""A job of a heavy object with nothing but the clock beside it: whether Blender stands still meanwhile, and by whom.

Judged is the whole of Blender's main thread, its drawing included, and every call of the add-on's own code that Blender
makes while a job runs. The thread counts for as long as it ran on a core; it also sleeps for the X server and for
others' disks. A call counts while it sleeps, too. The time in which it was ready to run while others had the core is
nobody's doing, so that a busy machine fails nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import bpy
import hand
from clock import Gap, longest
from stage import EGG, TASK, clock, expect, package, queue, report, select, until, until_applied

MOST_BLOCK = 0.2  # seconds that Blender may stand still while a job runs
WINDOW = 0.15  # seconds in which a machine that is fit for it draws the whole window in software: longest of ten times
SENTENCE = "an egg bounces"


def the_clock_sees() -> None:
    """What sleeps, and what works, too long would be noticed: both are done once."""

    def work() -> None:
        end = time.thread_time() + 1.5 * MOST_BLOCK
        while time.thread_time() < end:
            pass

    clock.what = "job that is none"
    clock.time("sleep", lambda: time.sleep(1.5 * MOST_BLOCK))()
    clock.time("work", work)()
    clock.what = "selection"
    slept, worked = clock.parts
    expect(slept.slept > MOST_BLOCK > slept.ran, f"a call that sleeps is not noticed: {slept}")
    expect(worked.ran > MOST_BLOCK > worked.slept, f"a call that works is not noticed: {worked}")
    clock.parts.clear()


def time_all() -> None:
    """Lets the clock time everything of the add-on that Blender calls while a job runs."""
    watch, operators, results = package("watch"), package("operators"), package("results")
    watch._look_after = clock.time("timer", watch._look_after)
    operators.enqueue = clock.time("click", operators.enqueue)
    results.apply = then_bake(results.apply)
    for module in (package("ui"), package("ui_takes")):
        for drawn in module.CLASSES:
            for name in ("draw", "draw_header"):
                if name in drawn.__dict__:
                    setattr(drawn, name, timed_draw(drawn, name))


def then_bake(apply: Callable) -> Callable:
    """The motion is put onto the object when the job is over; that time is counted apart."""

    def applied(*arguments: object) -> None:
        clock.what = "bake"
        apply(*arguments)

    return applied


def timed_draw(drawn: type, name: str) -> Callable:
    timed = clock.time(f"{drawn.__name__}.{name}", getattr(drawn, name))

    def draw(self: object, context: bpy.types.Context) -> None:  # Blender counts the arguments
        timed(self, context)

    return draw


def measured() -> Iterator[float]:
    the_clock_sees()
    obj = select(EGG)
    bpy.context.scene.animate3d.prompt = SENTENCE
    time_all()
    yield from hand.find("animate3d.animate(")
    yield 1.5
    clock.what = "idle"
    for count in range(20):  # how long this machine takes to draw the panel, and the window, when nothing runs
        package("watch").redraw() if count % 2 else redraw_all()
        yield 0.1
    clock.what = "job click"
    began = time.monotonic()
    hand.click()
    yield from until(lambda: queue().is_busy, "a click on Animate starts a job")
    while queue().is_busy and time.monotonic() - began < 120.0 * TASK["patience"]:
        job = queue().current or queue().jobs[-1]
        clock.what = f"job {job.stage}" if queue().is_busy else "bake"
        yield 0.05
    report["seconds_of_the_job"] = round(time.monotonic() - began, 1)
    clock.what = "bake"
    yield from until_applied(EGG)
    yield 0.5
    judge()
    expect(obj.animate3d.takes[0].name == SENTENCE, "the take has another name")


def redraw_all() -> None:
    """As after a click."""
    for area in hand.window().screen.areas:
        area.tag_redraw()


def judge() -> None:
    """Whether Blender stood still while the job ran."""
    idle, job = longest(gaps_of("idle")), longest(gaps_of("job"))
    parts = {name: longest(gap for gap in clock.parts if gap.what == name) for name in {g.what for g in clock.parts}}
    report["blocks"] = {"idle": idle, "job": job, "bake": longest(gaps_of("bake")), "our_code": parts}
    expect(job["gaps"] > 20 and {"timer", "click", "ANIMATE3D_PT_main.draw"} <= set(parts), "the clock has not run")
    most = MOST_BLOCK * max(1.0, idle["ran"] / WINDOW)  # without a graphics card, a slow machine is slow at drawing
    expect(job["ran"] <= most, f"Blender was at work for {job['ran']} s without a break: {job['worst']}")
    for name, part in parts.items():
        expect(part["block"] <= MOST_BLOCK, f"{name} has held Blender up: {part['worst']}")


def gaps_of(what: str) -> list[Gap]:
    return [gap for gap in clock.gaps if gap.what.startswith(what)]


STORY = (("measured", measured),)
