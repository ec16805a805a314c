"""`python -m backend weights list | verify | where | remove`, and what `doctor` says of weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from backend import doctor
from backend.weights.command import main
from backend.weights.sources import SOURCES, at_revisions

KEYS = Path(__file__).resolve().parents[2] / "shared" / "reference" / "golden" / "unet_keys.json"
needs_keys = pytest.mark.skipif(not KEYS.is_file(), reason="../shared/reference/golden is not there")


@pytest.fixture
def home(tiny_weights, tmp_path, monkeypatch) -> Path:
    """An installation with both models in it; the released one is a small one here."""
    monkeypatch.setenv("ANIMATE3D_WEIGHTS", str(tmp_path))
    for name in ("starter", "animate3d"):
        shutil.copytree(tiny_weights, tmp_path / name)
    return tmp_path


def said(capsys, *arguments: str, code: int = 0) -> str:
    """The output of a command: stdout where it succeeds, its one line on stderr where it fails."""
    capsys.readouterr()
    assert main(list(arguments)) == code
    captured = capsys.readouterr()
    assert code == 0 or captured.err.count("\n") == 1
    return captured.err if code else captured.out


def test_list_tells_size_type_and_place(home, capsys):
    shutil.rmtree(home / "animate3d")
    starter, released = said(capsys, "list").splitlines()
    assert starter.split()[0] == "starter" and "F32" in starter and str(home / "starter") in starter
    assert "not installed" in released and str(home / "animate3d") in released


def test_where_prints_a_folder(home, capsys):
    assert said(capsys, "where").strip() == str(home / "animate3d")
    assert said(capsys, "where", "starter").strip() == str(home / "starter")
    assert "There are no weights" in said(capsys, "where", str(home / "nowhere"), code=1)


def test_the_starter_is_found_where_the_program_is(home, capsys):
    shutil.rmtree(home / "starter")
    assert "every file is whole" in said(capsys, "verify", "starter")


def test_remove_deletes_the_released_model_and_nothing_else(home, capsys):
    assert "--yes" in said(capsys, "remove", "animate3d", code=1)  # nobody can be asked here
    assert (home / "animate3d").is_dir()
    said(capsys, "remove", "animate3d", "--yes")
    assert not (home / "animate3d").exists()
    assert "not installed" in said(capsys, "remove", "animate3d", "--yes", code=1)
    assert "stays" in said(capsys, "remove", "starter", "--yes", code=1)
    assert (home / "starter").is_dir()


def test_verify_finds_one_changed_byte(home, capsys):
    assert "every file is whole" in said(capsys, "verify", "animate3d")
    path = next((home / "animate3d" / "unet").glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert path.name in said(capsys, "verify", "animate3d", code=1)


@needs_keys
def test_the_full_size_network_has_the_released_keys(capsys):
    assert said(capsys, "verify", "--keys", str(KEYS)) == "1614 of 1614 keys, with their shapes.\n"


@needs_keys
@pytest.mark.parametrize(
    ("edit", "difference"),
    [
        (lambda keys: keys["conv_in.bias"].update(shape=[321]), "conv_in.bias: listed [321], ours [320]"),
        (lambda keys: keys.update(extra={"shape": [1]}), "extra: listed [1], ours not there"),
        (lambda keys: keys.pop("conv_in.bias"), "conv_in.bias: listed not, ours [320]"),
    ],
)
def test_any_differing_key_is_named_and_fails(edit, difference, tmp_path, capsys):
    content = json.loads(KEYS.read_text())
    edit(content["keys"])
    (tmp_path / "keys.json").write_text(json.dumps(content))
    assert main(["verify", "--keys", str(tmp_path / "keys.json")]) == 1
    assert difference in capsys.readouterr().out


def test_a_list_of_keys_that_makes_no_sense_is_refused(tmp_path, capsys):
    (tmp_path / "keys.json").write_text("[1, 2]")
    assert "can't be read" in said(capsys, "verify", "--keys", str(tmp_path / "keys.json"), code=1)


def test_the_doctor_looks_at_both_models(home, capsys):
    assert "animate3d" in doctor._released()
    next((home / "animate3d" / "unet").glob("*.safetensors")).unlink()
    with pytest.raises(Exception, match="weights pull animate3d"):
        doctor._released()
    shutil.rmtree(home / "animate3d")
    assert "weights pull animate3d" in doctor._released()


def test_every_pinned_revision_can_be_changed():
    changed = at_revisions({"motion": "v2"})
    assert {source.name: source.revision for source in changed if source.name == "motion"} == {"motion": "v2"}
    assert [a for a, b in zip(SOURCES, changed, strict=True) if a != b] == [SOURCES[2]]


def test_the_doctor_has_a_line_for_each_check_and_a_mend_for_each_that_fails(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_rasterizer", lambda: "numba on cpu")  # compiles for long
    doctor.check_all()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == [
        "Python", "PyTorch", "Libraries", "GPU", "Memory", "Rasterizer", "Weights", "Weights", "Disk",
    ]  # fmt: skip
    monkeypatch.setattr(doctor, "FREE_DISK_GB", 1e9)
    monkeypatch.setattr(doctor, "FREE_MEMORY_GB", 1e9)
    monkeypatch.setattr(doctor, "LIBRARIES", ("no_such_library",))
    assert doctor.check_all() == 1
    bad = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if line.startswith("BAD")}
    assert set(bad) == {"Libraries", "Memory", "Disk"}
    assert doctor.AGAIN in bad["Libraries"] and "Close other programs" in bad["Memory"] and "TMPDIR" in bad["Disk"]
