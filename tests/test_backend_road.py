"""The backend's road for real, with a tiny model of the real classes: run, cancel, kill, resume, refuse."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from animate3d_addon import backend_process
from animate3d_addon.backend_process import BackendProcess, command
from backend.protocol import JobSettings, Motion, Subject, UserError, Video, condition_cameras, subject_to_world
from backend.protocol import position_code as code

SIZE = 32
STAGES = ["video", "matte", "motion"]


def write_subject(job: Path) -> Subject:
    """A box, 2 x 1 x 3 units large and away from the origin, with flat pictures of about its outline."""
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float64)
    world = corners * [2, 1, 3] + [10, 0, 0]
    to_world = subject_to_world(world)
    vertices = ((world - to_world[:3, 3]) @ np.linalg.inv(to_world[:3, :3]).T).astype(np.float32)
    quads = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    faces = np.array([t for a, b, c, d in quads for t in ([a, b, c], [a, c, d])], np.int32)
    subject = Subject(
        vertices=vertices,
        faces=faces,
        weld=np.arange(8, dtype=np.int32),
        to_world=to_world,
        object_names=("Box",),
        object_counts=(8,),
        condition_c2w=condition_cameras(),
        appearance_c2w=np.zeros((0, 4, 4)),
        condition_size=SIZE,
        appearance_size=SIZE,
    )
    subject.save(job)
    rows = np.linspace(1, -1, SIZE)[:, None, None]
    place = np.concatenate([np.zeros((SIZE, SIZE, 2)), np.broadcast_to(rows, (SIZE, SIZE, 1))], axis=-1)
    picture = np.zeros((SIZE, SIZE, 4), np.uint8)
    picture[6:26, 10:22, :3] = (255 * code(place, *subject.box))[6:26, 10:22]
    picture[6:26, 10:22, 3] = 255
    for index in range(4):
        Image.fromarray(picture).save(Subject.image_path(job, "position", index))
    return subject


@pytest.fixture
def job(tmp_path, tiny_weights) -> Path:
    write_subject(tmp_path)
    JobSettings("a box sways", weights=str(tiny_weights), frames=4, device="cpu").save(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    """One process for all tests that leave it alive: starting it is what takes long."""
    process = BackendProcess(command(sys.executable), tmp_path_factory.mktemp("log") / "backend.log")
    process.wait_hello()
    yield process
    process.close()


def run(process: BackendProcess, job: Path, cancel_at: str = "") -> list[dict]:
    """Runs a job to its last message; all messages."""
    process.send("run", job=str(job))
    messages = []
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        message = process.wait(1.0)
        if message is None:
            continue
        messages.append(message)
        if message["type"] in ("done", "error"):
            return messages
        if message["type"] == "progress" and message["stage"] == cancel_at and message["step"] == 0:
            process.cancel()
    raise AssertionError(f"no end; the last of {len(messages)} messages is {messages[-1:]}")


def stages_made(messages: list[dict]) -> list[str]:
    return [m["stage"] for m in messages if m["type"] == "progress" and m["step"] == 0]


def test_a_job_runs_and_runs_again(backend, job):
    messages = run(backend, job)
    done = messages[-1]
    assert done["type"] == "done", done
    assert stages_made(messages) == STAGES and all(m["job"] == str(job) for m in messages)
    assert list(done["report"]["seconds"]) == STAGES and min(done["report"]["peak_memory_gb"].values()) > 0.1
    assert done["report"]["settings"]["frames"] == 4 and done["report"]["versions"]["torch"]
    (preview,) = [m["path"] for m in messages if m["type"] == "preview"]
    with Image.open(preview) as picture:
        assert picture.n_frames == 4 and picture.width >= 256
    motion = Motion.load(job)
    assert motion.offsets.shape == (4, 8, 3) and not motion.offsets[0].any()
    assert not list(job.rglob("*.part")) and (job / "backend.log").stat().st_size

    again = run(backend, job)
    assert again[-1]["type"] == "done" and stages_made(again) == []
    assert again[-1]["report"] == done["report"]

    replace(JobSettings.load(job), seed=1).save(job)
    assert stages_made(run(backend, job)) == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_cancel_at_each_stage_leaves_a_job_that_goes_on(backend, job, stage, monkeypatch):
    monkeypatch.setattr(backend_process, "PATIENCE", 300.0)  # it shall end by itself, on a busy machine too
    messages = run(backend, job, cancel_at=stage)
    assert messages[-1]["type"] == "error" and messages[-1]["kind"] == "cancelled", messages[-1]
    assert backend.alive and not (job / "motion.npz").exists()
    resumed = run(backend, job)
    assert resumed[-1]["type"] == "done"
    finished = [m["stage"] for m in messages if m["type"] == "progress" and m["step"] == m["steps"]]
    assert not set(stages_made(resumed)) & (set(finished) - {stage})


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"weights": "animate3d"}, "missing_weights", "not installed"),
        ({"weights": "/nowhere"}, "missing_weights", "no weights"),
        ({"device": "mps"}, "bad_input", "Apple GPU"),
    ],
)
def test_refusals_are_sentences(backend, job, monkeypatch, change, kind, said):
    settings = replace(JobSettings.load(job), **change)
    settings.save(job)
    error = run(backend, job)[-1]
    assert (error["type"], error["kind"]) == ("error", kind) and said in error["message"] and error["hint"]
    backend.send("check", settings=vars(settings))
    asked = backend.wait(60)
    assert asked["message"] == error["message"]


def test_a_motion_that_the_model_does_not_know_runs_as_the_nearest_and_says_so(backend, job):
    replace(JobSettings.load(job), prompt="a box explodes").save(job)
    messages = run(backend, job)
    (notice,) = [m["message"] for m in messages if m["type"] == "notice"]
    assert "“explodes”" in notice and "“swells”" in notice and "It knows: bounces, sways, twists" in notice
    assert messages[-1]["report"]["settings"]["understood"] == "a box swells"


def test_the_video_is_seen_while_it_forms(job, tiny_weights):
    """Every other frame, as the sampler guesses them, before the video is there; it leaves no file."""
    from backend import jobs, memory

    seen = []

    def tell(kind, **what):
        if kind == "forming":
            seen.append(Video.load(job, forming=True).frames)
            assert not Video.path(job).exists()

    jobs.run_job(job, lambda *_: None, jobs.Models(), memory.PeakMemory(with_parent=False), tell)
    assert seen and seen[0].shape == (4, 2, SIZE, SIZE, 4) and not Video.path(job, forming=True).exists()


def test_check_tells_what_the_model_animates(backend, job):
    backend.send("check", settings=vars(JobSettings.load(job)))
    assert backend.wait(60) == {"type": "checked", "appearance": "position"}
    backend.send("check", settings={"prompt": 3})
    assert backend.wait(60)["kind"] == "bad_input"
    backend.send("check")
    assert backend.wait(60)["kind"] == "bad_input"


@pytest.mark.parametrize("name", ["job.json", "subject/mesh.npz", "subject/subject.json", "subject/position_2.png"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_job_files_are_refused(backend, job, name, damage):
    path = job / name
    data = path.read_bytes()
    path.unlink() if damage == "gone" else path.write_bytes(data[: len(data) // 2])
    error = run(backend, job)[-1]
    assert error["kind"] == "bad_input" and error["message"].endswith("."), error


def test_no_folder_and_a_foreign_folder(backend, tmp_path):
    assert run(backend, tmp_path / "none")[-1]["kind"] == "bad_input"
    assert run(backend, tmp_path)[-1]["message"] == "The job folder has no job.json."


def test_damaged_weights_are_named(backend, job, tiny_weights, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(tiny_weights, copy)
    part = next((copy / "unet").glob("*.safetensors"))
    part.write_bytes(part.read_bytes()[:1000])
    replace(JobSettings.load(job), weights=str(copy)).save(job)
    error = run(backend, job)[-1]
    assert error["kind"] == "missing_weights" and "unet" in error["message"]
    (copy / "model.json").write_text('{"appearance": "smell"}')
    assert run(backend, job)[-1]["kind"] == "missing_weights"


def test_second_job_while_one_runs_is_refused(backend, job):
    backend.send("run", job=str(job))
    backend.send("run", job="other")
    messages = []
    while not messages or messages[-1]["type"] != "done":
        message = backend.wait(1.0)
        messages += [message] if message else []
    (refusal,) = [m for m in messages if m["type"] == "error"]
    assert refusal["job"] == "other" and "busy" in refusal["message"]


def test_killed_in_a_stage_goes_on_with_it(job, tmp_path):
    def start() -> BackendProcess:
        process = BackendProcess(command(sys.executable), tmp_path / "process.log")
        process.wait_hello()
        return process

    process = start()
    process.send("run", job=str(job))
    with pytest.raises(UserError, match="stopped unexpectedly"):
        while True:
            message = process.wait(1.0)
            if message and message["type"] == "progress" and (message["stage"], message["step"]) == ("motion", 1):
                process._process.kill()
    assert not (job / "motion.npz").exists()
    process = start()
    try:
        messages = run(process, job)
        assert messages[-1]["type"] == "done" and stages_made(messages) == ["motion"]
    finally:
        process.close()


def test_out_of_memory_is_tried_once_more_with_less(job, monkeypatch):
    """The failure is made up (one can't run out of memory on purpose and live); the rest is real."""
    import torch

    from backend import jobs, memory, steps

    asked, told = [], []
    real = jobs.Models.get

    def get(self, folder, device, memory, compiled):
        asked.append(memory)
        if len(asked) <= fail:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, folder, device, memory, compiled)

    monkeypatch.setattr(jobs.Models, "get", get)
    peak = memory.PeakMemory(with_parent=False)

    def run_here():
        return jobs.run_job(job, lambda *_: None, jobs.Models(), peak, lambda kind, **what: told.append((kind, what)))

    fail = 2
    with pytest.raises(torch.OutOfMemoryError):
        run_here()
    assert asked == ["auto", "balanced"] and told[0][0] == "notice"
    asked.clear()
    fail = 1
    report = run_here()
    assert asked == ["auto", "balanced"] and report.settings["memory"] == "balanced"
    assert steps.load_matte(job).shape == (4, 4, SIZE, SIZE)


def test_rendering_road_with_splats(job):
    """The paper's preset renders: its splats come back from the folder, and a few steps of its fit give a motion."""
    import torch

    from backend import steps
    from backend.motion.settings import preset

    subject, cpu = Subject.load(job), torch.device("cpu")
    splats = steps.make_splats(job, subject, "position", 0, cpu)
    steps.save_splats(splats, job)
    loaded = steps.load_splats(job)
    assert all(torch.equal(value, getattr(loaded, name)) for name, value in vars(splats).items())
    assert (job / "splats.ply").stat().st_size > 1000
    noise = np.random.default_rng(0).integers(0, 255, (4, 3, SIZE, SIZE, 4)).astype(np.uint8)
    video = Video(noise, "position")
    fit = replace(preset("paper"), iterations=3, frames_every=1, max_gaussians=500, image_size=SIZE)
    seen = []
    matte = steps.make_matte(job, subject, video)
    motion = steps.make_motion(subject, video, matte, loaded, fit, cpu, lambda *step: seen.append(step))
    assert motion.offsets.shape == (3, 8, 3) and seen and not motion.offsets[0].any()
