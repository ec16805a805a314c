"""What the guide tells scripts to write is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

bpy = pytest.importorskip("bpy")

import animate3d_addon  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def registered():
    animate3d_addon.register()
    yield
    animate3d_addon.unregister()


@pytest.mark.parametrize("page", ["docs/guide.md", "README.md"])
def test_operators_have_the_options_that_the_examples_give(registered, page):
    calls = re.findall(r"bpy\.ops\.animate3d\.\w+\([^)]*\)", (ROOT / page).read_text(encoding="utf-8"))
    assert calls
    for text in calls:
        call = ast.parse(text, mode="eval").body
        options = getattr(bpy.ops.animate3d, call.func.attr).get_rna_type().properties
        for keyword in call.keywords:
            value = ast.literal_eval(keyword.value)
            option = options[keyword.arg]  # KeyError: there is no such option
            if option.type == "ENUM":
                assert value in {item.identifier for item in option.enum_items}, text


def test_links_and_pictures_are_there():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
    assert sum(path.stat().st_size for path in (ROOT / "docs").glob("window_*.png")) < 300_000
