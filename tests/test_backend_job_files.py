"""Job folders that are damaged, foreign, or half done: a sentence or another try, never a traceback."""

from __future__ import annotations

import json

import numpy as np
import pytest

from animate3d_addon import job_folder
from backend.memory import PeakMemory
from backend.prompts import Understood, known, understand
from backend.protocol import (
    JobSettings,
    Motion,
    Report,
    Subject,
    UserError,
    Video,
    condition_cameras,
    read_npz,
    write_json,
    write_npz,
)
from backend.stages import Stages


@pytest.fixture
def subject() -> Subject:
    return Subject(
        vertices=np.eye(3, dtype=np.float32),
        faces=np.array([[0, 1, 2]], np.int32),
        weld=np.arange(3, dtype=np.int32),
        to_world=np.eye(4),
        object_names=("A “b”",),
        object_counts=(3,),
        condition_c2w=condition_cameras(),
        appearance_c2w=np.zeros((0, 4, 4)),
        condition_size=8,
        appearance_size=8,
    )


def test_subject_and_settings_come_back(tmp_path, subject):
    subject.save(tmp_path)
    again = Subject.load(tmp_path)
    assert again.object_names == subject.object_names and np.array_equal(again.vertices, subject.vertices)
    settings = JobSettings("it sways", frames=8)
    settings.save(tmp_path)
    assert JobSettings.load(tmp_path) == settings
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "{}", '{"prompt": 1, "protocol": 1}', "[" * 100_000])
def test_bad_settings_are_refused(tmp_path, content):
    (tmp_path / "job.json").write_text(content)
    with pytest.raises(UserError):
        JobSettings.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"frames": "16"}, {"seed": True}, {"seed": 2**64}, {"preset": "x"}, {"a": 1}, {"protocol": 99}, {"prompt": ""}],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, change):
    JobSettings("it sways").save(tmp_path)
    data = json.loads((tmp_path / "job.json").read_text()) | change
    (tmp_path / "job.json").write_text(json.dumps(data))
    with pytest.raises(UserError) as error:
        JobSettings.load(tmp_path)
    assert error.value.message.endswith(".") and error.value.hint


@pytest.mark.parametrize("keep", [0, 10, 200, -1])
def test_truncated_arrays_are_refused(tmp_path, subject, keep):
    subject.save(tmp_path)
    path = tmp_path / "subject" / "mesh.npz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError):
        Subject.load(tmp_path)


def test_flipped_bytes_are_refused_or_harmless(tmp_path, subject):
    subject.save(tmp_path)
    path = tmp_path / "subject" / "mesh.npz"
    good = path.read_bytes()
    for place in range(0, len(good), 7):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :])
        try:
            Subject.load(tmp_path)
        except UserError:
            continue


def test_header_that_lies_about_its_size_is_refused(tmp_path):
    write_npz(tmp_path / "a.npz", a=np.zeros(3))
    data = (tmp_path / "a.npz").read_bytes()
    lie = data.replace(b"(3,), }      ", b"(3000000000000,), }"[:13].ljust(13))
    assert lie != data
    (tmp_path / "a.npz").write_bytes(lie)
    with pytest.raises(UserError):
        read_npz(tmp_path / "a.npz", ("a",))


class Bomb:
    def __reduce__(self):
        return (open, ("animate3d-bomb", "w"))


def test_pickles_are_never_loaded(tmp_path):
    path = tmp_path / "motion.npz"
    np.savez(path.open("wb"), offsets=np.array([Bomb()], dtype=object))
    with pytest.raises(UserError):
        Motion.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"faces": np.array([[0, 1, 7]], np.int32)},
        {"faces": np.array([[0, 1, -1]], np.int32)},
        {"weld": np.array([0, 1, 3], np.int32)},
        {"weld": np.array([0, 1], np.int32)},
        {"object_counts": (2,)},
        {"object_names": ()},
        {"vertices": np.full((3, 3), np.nan, np.float32)},
        {"vertices": np.zeros((0, 3), np.float32)},
        {"to_world": np.eye(3)},
    ],
)
def test_captures_that_do_not_fit_together_are_refused(tmp_path, subject, change):
    Subject(**{**vars(subject), **change}).save(tmp_path)
    with pytest.raises(UserError, match="damaged"):
        Subject.load(tmp_path)


# Stages


@pytest.fixture(scope="module")
def peak() -> PeakMemory:
    return PeakMemory(with_parent=False)


class Runs:
    """Runs two small stages in a folder and counts what was really made."""

    def __init__(self, job, peak):
        self.job, self.peak, self.made, self.steps = job, peak, [], []

    def __call__(self, first=1, second=2, stop_at=None) -> Report:
        self.made.clear()
        report = Report()

        def progress(*step):
            self.steps.append(step)
            if step == stop_at:
                raise UserError("Cancelled.", kind="cancelled")

        stages = Stages(self.job, "digest", progress, self.peak, report)
        video = stages.run("video", first, Video.load, lambda step: self.make("video", step), Video.save)
        assert video.frames.shape == (4, 1, 1, 1, 3)
        stages.run("motion", second, Motion.load, lambda step: self.make("motion", step), Motion.save)
        return report

    def make(self, name, step):
        step(1, 2)
        self.made.append(name)
        if name == "video":
            return Video(np.zeros((4, 1, 1, 1, 3), np.uint8), "color")
        return Motion(np.zeros((1, 3, 3), np.float32))


@pytest.fixture
def runs(tmp_path, peak):
    return Runs(tmp_path, peak)


def test_stages_are_taken_over(runs):
    first = runs()
    assert runs.made == ["video", "motion"]
    assert first.peak_memory_gb["video"] > 0.01
    runs.steps.clear()
    assert runs() == first and runs.made == []
    assert runs.steps == [("video", 1, 1), ("motion", 1, 1)]


def test_changed_settings_redo_the_stage_and_those_after_it(runs):
    runs()
    runs(second=3)
    assert runs.made == ["motion"]
    runs(first=5, second=3)
    assert runs.made == ["video", "motion"]


def test_interrupted_stage_is_redone_and_finished_ones_are_kept(runs):
    with pytest.raises(UserError):
        runs(stop_at=("motion", 1, 2))
    assert runs.made == ["video"]
    runs()
    assert runs.made == ["motion"]


@pytest.mark.parametrize("content", [b"", b"PK", None])
def test_damaged_result_is_made_again(runs, content):
    runs()
    path = runs.job / "video" / "video.npz"
    path.unlink() if content is None else path.write_bytes(content)
    runs()
    assert runs.made == ["video"]


@pytest.mark.parametrize("content", ["", "[]", '{"video": 3}', '{"video": {}}'])
def test_damaged_notes_make_everything_again(runs, content):
    runs()
    (runs.job / "stages.json").write_text(content)
    runs()
    assert runs.made[0] == "video"


# Batch's folder


IDENTITY = {"input": "a.glb", "capture": {"views": (1, 2)}}


def test_same_capture_is_taken_over(tmp_path, subject):
    with job_folder.opened(str(tmp_path / "job")) as folder:
        assert folder.start(IDENTITY) is False
        subject.save(folder.path)
        folder.captured(IDENTITY)
        (folder.path / "motion.npz").write_text("")
    with job_folder.opened(str(tmp_path / "job")) as folder:
        assert folder.start(IDENTITY) is True and (folder.path / "motion.npz").exists()
        assert folder.start(IDENTITY | {"input": "b.glb"}) is False
        assert not (folder.path / "motion.npz").exists() and not (folder.path / "subject").exists()


def test_half_a_capture_is_not_taken_over(tmp_path, subject):
    with job_folder.opened(str(tmp_path / "job")) as folder:
        folder.start(IDENTITY)
        subject.save(folder.path)  # killed before it was noted down
        assert folder.start(IDENTITY) is False
        folder.captured(IDENTITY)
        assert folder.start(IDENTITY) is False  # noted down, but not there


def test_folders_of_somebody_else_are_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="other things"), job_folder.opened(str(tmp_path)):
        pass
    assert (tmp_path / "thesis.txt").exists()
    with pytest.raises(UserError, match="can't be used"), job_folder.opened(str(tmp_path / "thesis.txt")):
        pass


def test_one_run_at_a_time_in_a_folder(tmp_path):
    with job_folder.opened(str(tmp_path / "job")):
        with pytest.raises(UserError, match="Another run"), job_folder.opened(str(tmp_path / "job")):
            pass
        with pytest.raises(UserError, match="Another run"), job_folder.opened(str(tmp_path / "job")):
            pass
    with job_folder.opened(str(tmp_path / "job")):
        pass


def test_temporary_folder_goes_unless_it_is_of_use():
    with job_folder.opened("") as folder:
        write_json(folder.path / "job.json", {})
    assert not folder.path.exists()
    with pytest.raises(PermissionError), job_folder.opened("") as folder:
        raise PermissionError
    assert not folder.path.exists()


# Prompts


MOTIONS = {"bounce": ["bounces", "hopping", "bouncing"], "twist": ["twists", "twisting"]}


@pytest.mark.parametrize(
    ("prompt", "taught"),
    [
        ("a fox bounces", "a fox bounces"),
        ("A Fox Is HOPPING", "A Fox Is HOPPING"),
        ("make the fox bounce!", "make the fox bounces!"),
        ("Hop, fox", "hopping, fox"),
        ("it will Twist 🌵", "it will twists 🌵"),
    ],
)
def test_known_motions(prompt, taught):
    assert understand(prompt, MOTIONS) == Understood(taught)
    assert understand(prompt, {}) == Understood(prompt)


@pytest.mark.parametrize(
    ("prompt", "taught", "named"),
    [
        ("a fox runs", "a fox bounces", "runs"),
        ("the rock is exploding", "the rock is hopping", "exploding"),
        ("a fox bownces", "a fox bounces", "bownces"),
        ("make it spin", "make it twists", "spin"),
        ("bouncer", "bounces", "bouncer"),
    ],
)
def test_an_unknown_motion_becomes_the_nearest_known_one_and_says_so(prompt, taught, named):
    found = understand(prompt, MOTIONS | {"nothing": []})
    assert found.prompt == taught and f"“{named}”" in found.notice
    assert known(MOTIONS) == "It knows: bounces, twists."


@pytest.mark.parametrize("prompt", ["仙人掌在摇摆", "(((", "e", "\\1 \\g<0>"])
def test_a_sentence_that_says_nothing_becomes_a_mild_motion(prompt):
    found = understand(prompt, MOTIONS)
    assert found.prompt == "it bounces" and "“bounces”" in found.notice
