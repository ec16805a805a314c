"""The benchmarks that run on a GPU in one go keep to their time, whatever one of them does."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import pytest

from benchmarks import gpu

WRITES = """
import sys, pathlib
pathlib.Path(sys.argv[sys.argv.index("--report") + 1]).write_text('{"figure": 3}')
"""


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs scripts [(name, text, limit, needs gsplat)] as the parts, and gives back the code and gpu.json."""

    def run(scripts: list[tuple[str, str, float, bool]], seconds: float = 60.0, site: Path | None = None):
        for name, text, _, _ in scripts:
            (tmp_path / f"{name}.py").write_text(text)
        made = [gpu.Part(name, f"{name}.py", (), limit, gsplat) for name, _, limit, gsplat in scripts]
        monkeypatch.setattr(gpu, "HERE", tmp_path)
        monkeypatch.setattr(gpu, "parts", lambda *_: made)
        monkeypatch.setattr(gpu, "_compile_kernels", lambda *_: [])
        options = argparse.Namespace(
            data=tmp_path,
            out=tmp_path / "out",
            device="cpu",
            tiny=True,
            only="",
            seconds=seconds,
            patience=1.0,
            gsplat=site,
        )
        code = gpu.run(options)
        return code, json.loads((tmp_path / "out" / "gpu.json").read_text())["parts"]

    return run


def test_a_slow_part_and_a_broken_one_cost_the_others_nothing(go):
    slow = WRITES + "import time; time.sleep(600)"
    started = time.monotonic()
    code, found = go([("slow", slow, 8.0, False), ("broken", "1 / 0", 60.0, False), ("good", WRITES, 60.0, False)])
    assert time.monotonic() - started < 300 and code == 1
    assert [part["ended"] for part in found.values()] == ["out of time", "with an error", "well"]
    assert found["good"]["report"] == {"figure": 3}
    assert found["slow"]["report"] == {"figure": 3}  # what it had written before it was ended


def test_what_no_longer_fits_is_left_out(go):
    code, found = go([("late", WRITES, 60.0, False)], seconds=gpu.MARGIN + gpu.LEAST - 1)
    assert code == 1 and found["late"]["ended"] == "left out"


def test_kernels_that_are_finished_later_are_used_in_the_end(go, tmp_path: Path):
    site = tmp_path / "site"
    finish = WRITES + f"p = pathlib.Path({str(site)!r}); p.mkdir(); (p / {gpu.FINISHED!r}).write_text('')"
    code, found = go([("drawn", WRITES, 60.0, True), ("other", finish, 60.0, False)], site=site)
    assert code == 0 and found["drawn"]["ended"] == "well"


def test_only_kernels_with_more_channels_are_taken_away(tmp_path: Path):
    text = "#define __INS__(CDIM) \\\n    x<CDIM>()\n__INS__(3)\n__INS__(5)\n#undef __INS__\n"
    (tmp_path / "a.cu").write_text(text)
    gpu._leave_out_channels(tmp_path, 4)
    assert (tmp_path / "a.cu").read_text() == text.replace("__INS__(5)\n", "")
