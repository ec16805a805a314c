"""What batch mode understands, and what it refuses before any work."""

from __future__ import annotations

import pytest

from animate3d_addon import models
from animate3d_addon.batch_options import Options, UsageError, check_options, read_options
from backend.protocol import UserError


def table(tmp_path, text: str | bytes, *more: str):
    path = tmp_path / "jobs.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_options(["--jobs", str(path), *more])


def test_defaults_and_all_options():
    jobs, names, report = read_options(["--prompt", "it sways", "--output", "a.blend", "--input", "a.glb"])
    assert jobs == [Options(input="a.glb", prompt="it sways", output="a.blend")] and names == [""] and report == ""
    arguments = ["--input", "x.obj", "--object", "Cube", "--prompt", "p", "--output", "o.fbx", "--preset", "paper"]
    arguments += ["--seed", "7", "--frames", "8", "--device", "cpu", "--weights", "starter", "--keep-job", "d"]
    arguments += ["--report", "r.json", "--start-frame", "5", "--frame-step", "2", "--memory", "low"]
    (job,), _, report = read_options(arguments)
    assert (job.object, job.preset, job.seed, job.frames) == ("Cube", "paper", 7, 8)
    assert (job.start_frame, job.frame_step) == (5, 2)
    assert report == job.report == "r.json" and job.job_settings().memory == "low"


def test_the_sampler_can_be_told():
    said = ["--prompt", "p", "--output", "o.glb"]
    settings = read_options(said)[0][0].job_settings()
    assert (settings.steps, settings.passes, settings.solver, settings.guidance, settings.compile) == (
        *[None] * 4,
        False,
    )
    said += ["--steps", "12", "--passes", "2", "--solver", "dpm", "--guidance", "3.5", "--coarse-to-fine", "on"]
    settings = read_options([*said, "--negative-prompt", "blurry", "--compile", "on"])[0][0].job_settings()
    assert (settings.steps, settings.passes, settings.solver, settings.guidance) == (12, 2, "dpm", 3.5)
    assert settings.coarse_to_fine and settings.compile and settings.negative_prompt == "blurry"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("steps", -1, "number of steps"),
        ("passes", 99, "number of passes"),
        ("solver", "euler", "solver is none of"),
        ("guidance", "much", "guidance “much” is no number"),
        ("guidance", "nan", "guidance scale"),
        ("coarse_to_fine", "maybe", "neither on nor off"),
        ("compile", "yes", "neither on nor off"),
    ],
)
def test_samplers_that_make_no_sense_are_refused(field, value, said):
    with pytest.raises(UserError, match=said):
        Options(prompt="p", **{field: value}).job_settings()


@pytest.mark.parametrize(
    ("device", "installed", "gigabytes", "chosen"),
    [
        ("auto", True, 8.0, "animate3d"),
        ("cuda", True, 8.0, "animate3d"),
        ("cpu", True, 8.0, "starter"),
        ("auto", True, 4.0, "starter"),
        ("auto", False, 8.0, "starter"),
    ],
)
def test_the_released_model_is_the_default_where_a_gpu_has_room(
    device, installed, gigabytes, chosen, tmp_path, monkeypatch
):
    if installed:
        (tmp_path / "animate3d").mkdir()
        (tmp_path / "animate3d" / "model.json").write_text("{}")
    monkeypatch.setattr(models, "gpu_memory_gb", lambda: gigabytes)
    assert models.default(device, tmp_path) == chosen


def test_the_drivers_word_on_gpu_memory_is_a_number():
    assert models.gpu_memory_gb() >= 0.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing: --prompt and --output"),
        (["--prompt", "x"], "Missing: --output"),
        (["--preset", "best"], "--preset"),
        (["--seed", "one"], "--seed"),
        (["--colour", "red"], "Unrecognized"),
        (["--jobs", "/nowhere/jobs.csv"], "can't be read"),
    ],
)
def test_wrong_options_are_one_sentence(arguments, said):
    with pytest.raises(UsageError, match=said):
        read_options(arguments)


def test_table_of_a_spreadsheet(tmp_path):
    """Byte order mark, semicolons, Windows line ends, quotes, spaces, an empty line and empty cells."""
    text = "\ufeffInput; prompt ;output;Frame-Step;seed\r\n"
    text += 'a.glb;"it; ""really"" sways";b.blend;2;\r\n;;;;\r\n\r\nc.glb;x;d.glb;;3\r\n'
    jobs, names, _ = table(tmp_path, text, "--seed", "9", "--preset", "paper")
    assert [job.prompt for job in jobs] == ['it; "really" sways', "x"]
    assert [(job.seed, job.frame_step, job.preset) for job in jobs] == [(9, 2, "paper"), (3, 3, "paper")]
    assert names == ["Line 2: ", "Line 5: "]


def test_prompt_over_two_lines_and_missing_cells(tmp_path):
    jobs, _, _ = table(tmp_path, 'prompt,output,input\n"a\nb",o.blend\n')
    assert jobs == [Options(prompt="a\nb", output="o.blend")]
    assert jobs[0].job_settings().prompt == "a b"


def test_bad_rows_do_not_stop_the_others(tmp_path):
    rows = ["input,prompt,output,seed", "a,b,c.blend,x", "a,b,c.blend,1", "a,b,c.blend,1", "a,b,d.blend,1,2"]
    jobs, _, _ = table(tmp_path, "\n".join(rows))
    assert [isinstance(job, UserError) for job in jobs] == [True, False, True, True]
    assert "same output" in jobs[2].message.lower() and "more cells" in jobs[3].message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "first row"),
        ("input,prompt,speed\na,b,c", "speed"),
        ("input,input\na,b", "distinct"),
        ("input,prompt\n", "no rows"),
        (b"\xff\xfe\x00i", "not UTF-8"),
        (b"prompt,output\n\x00,b\n", None),
        ("prompt,output\n" + "x" * 200_000 + ",b\n", "can't be read"),
    ],
)
def test_tables_that_are_none(tmp_path, text, said):
    if said is None:  # a zero byte is refused by some versions of Python, and is a character for others
        try:
            (job,), _, _ = table(tmp_path, text)
        except UsageError:
            return
        with pytest.raises(UserError):
            job.job_settings()
        return
    with pytest.raises(UsageError, match=said):
        table(tmp_path, text)


def test_keep_job_of_a_table_gives_each_row_a_folder(tmp_path):
    jobs, _, _ = table(tmp_path, "prompt,output,keep-job\na,x/b.blend,\nc,d.glb,own\n", "--keep-job", "kept")
    assert [job.keep_job for job in jobs] == ["kept/001-b", "own"]


@pytest.fixture
def good(tmp_path):
    (tmp_path / "in.glb").write_bytes(b"x")
    return {"input": str(tmp_path / "in.glb"), "prompt": "it sways", "output": str(tmp_path / "new" / "out.blend")}


def test_good_options_pass_and_leave_no_file(good, tmp_path):
    check_options(Options(**good), "")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": " \n\t "}, "prompt is empty"),
        ({"prompt": "x" * 10_000}, "10000 characters"),
        ({"frames": 1}, "1 frames"),
        ({"frames": 1000}, "1000 frames"),
        ({"seed": -1}, "seed"),
        ({"preset": "best"}, "preset"),
        ({"device": "tpu"}, "device"),
        ({"frame_step": 0}, "timeline"),
        ({"frame_step": 10**9}, "timeline"),
        ({"input": ""}, "no input"),
        ({"input": "/nowhere/a.glb"}, "There is no file"),
        ({"input": "/etc/passwd"}, "can't be read"),
        ({"output": ""}, "no output"),
        ({"output": "a.mp4"}, "can't be written"),
        ({"output": "/proc/out.blend"}, "can't be written"),
        ({"output": "/etc/passwd/out.blend"}, "can't be written"),
        ({"output": "a\0b.blend"}, "can't be written"),
        ({"report": "/proc/report.json"}, "can't be written"),
    ],
)
def test_refused_before_the_work(good, change, said):
    with pytest.raises(UserError, match=said):
        check_options(Options(**good | change), "")


def test_output_is_not_the_input(good):
    good["output"] = good["input"]
    with pytest.raises(UserError, match="replace the input"):
        check_options(Options(**good), "")


def test_output_that_is_a_folder(good, tmp_path):
    (tmp_path / "folder.blend").mkdir()
    with pytest.raises(UserError, match="it is a folder"):
        check_options(Options(**good | {"output": str(tmp_path / "folder.blend")}), "")


def test_prompts_of_all_kinds_are_kept(good):
    for prompt in ("ein Kaktus schwankt", "仙人掌在摇摆", 'it "sways" 🌵', "it's \\ / {x}"):
        assert Options(**good | {"prompt": prompt}).job_settings().prompt == prompt
