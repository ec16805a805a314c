"""The paper's recipe on tiny networks of the released layout: what learns, what stays, what is kept."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from backend.mv_vdm.checkpoints import read_tensors
from backend.mv_vdm.pipeline import MVVDM
from backend.protocol import UserError, condition_cameras
from backend.training.clips import make_clip, render_clip, straight
from backend.training.paper import STATE, TRAINED, Clips, PaperSettings, TrainedPart, paper_loss, train_paper
from backend.training.shards import RenderedClip, ShardWriter
from backend.weights.command import main as weights
from benchmarks.released_set import TINY as TINY_SIZE
from benchmarks.released_set import motion_modules, write_released

ROOT = Path(__file__).resolve().parent.parent
FRAMES, STEPS = 2, 4
TINY = PaperSettings(frames=FRAMES, batch=2, precision="no", held_out=1, sample_steps=1, save_seconds=0.5, log_steps=2,
                     measure_steps=100, learning_rate=1e-3)  # fmt: skip
CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.test_training_paper import TINY, STEPS
from backend.training.paper import train_paper
train_paper(*map(Path, sys.argv[2:5]), STEPS, TINY)
"""


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("released")
    write_released(root)
    return root


@pytest.fixture(scope="module")
def model_folder(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "animate3d"
    assert weights(["convert", str(released), "--to", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five objects in random colours."""
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder / "shards", samples_per_shard=2) as writer:
        for seed in range(5):
            made = make_clip(seed, FRAMES)
            colors = np.random.default_rng(seed).uniform(size=made.rest.shape)
            pairs = [(view, frame) for view in range(4) for frame in range(FRAMES)]
            pictures = straight(render_clip(made, 64, pairs, colors)).reshape(4, FRAMES, 64, 64, 4)
            clip = RenderedClip(f"thing{seed}-0", np.empty(0), condition_cameras(), 40.0, made.trajectories, made.faces,
                                made.caption, "CC0-1.0", "color")  # fmt: skip
            entries = clip.entries()
            for view, frame in pairs:
                Image.fromarray(pictures[view, frame]).save(folder / "picture.png")
                entries[f"v{view}f{frame:02d}.png"] = (folder / "picture.png").read_bytes()
            writer.write(clip.key, entries)
    return folder / "shards"


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def whole_run(model_folder: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbs, in one process."""
    out = tmp_path_factory.mktemp("whole")
    assert child(out=out, model_folder=model_folder, shards=shards).wait() == 0
    return out


def losses(out: Path) -> dict[str, list[float]]:
    rows = [dict(entry.split("=") for entry in row.split(",")) for row in (out / "paper.csv").read_text().split()]
    return {name: [float(row[name]) for row in rows if name in row] for name in ("step", "loss", "held_out_loss")}


def child(*launcher: str, out: Path, model_folder: Path, shards: Path) -> subprocess.Popen:
    script = out / "child.py"
    script.write_text(CHILD)
    command = [sys.executable, *launcher, str(script), str(ROOT), str(out), str(model_folder), str(shards)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    with (out / "output.txt").open("a") as output:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)


def test_only_mv_vdms_own_layers_learn_and_all_of_them_do(whole_run: Path, model_folder: Path) -> None:
    before, learnt = read_tensors(model_folder / "unet"), load_file(whole_run / TRAINED)
    assert learnt.keys() == motion_modules(TINY_SIZE).keys()
    tables = [name for name in learnt if name.endswith("time_pos_embed.pe")]
    assert len(learnt) == 888 and len(tables) == 42
    # Keys' own biases would not matter to a softmax; there are none, so everything that is no table moves.
    still = [name for name, tensor in learnt.items() if torch.equal(tensor, before[name].float())]
    assert sorted(still) == sorted(tables)
    assert read_tensors(model_folder / "unet").keys() == before.keys()


def test_what_was_learnt_becomes_a_model(whole_run: Path, released: Path, tmp_path: Path) -> None:
    options = ["--to", str(tmp_path / "mine"), "--motion", str(whole_run / TRAINED)]
    assert weights(["convert", str(released), *options]) == 0
    tensors, learnt = read_tensors(tmp_path / "mine" / "unet"), load_file(whole_run / TRAINED)
    assert all(torch.equal(tensors[name], tensor.half()) for name, tensor in learnt.items())


def test_a_clip_is_learnt(model_folder: Path, shards: Path) -> None:
    model = MVVDM.from_pretrained(model_folder)
    sample, trained = Clips(shards, model, TINY).sample(0), TrainedPart(model.unet)
    optimizer, found = torch.optim.AdamW(trained.parameters(), lr=1e-2), []
    for _ in range(4):
        optimizer.zero_grad()
        found.append(paper_loss(model.unet, model, [sample]))
        found[-1].backward()
        optimizer.step()
    assert found[-1] < found[0] - 1e-4  # little, for the layers around are random and stay so


def test_the_losses_are_kept_and_drawn(whole_run: Path) -> None:
    found = losses(whole_run)
    assert len(found["loss"]) == STEPS // 2 and len(found["held_out_loss"]) == 1
    assert np.asarray(Image.open(whole_run / "paper.png")).std() > 20


def test_the_objective_leaves_frame_0_clean_and_out_of_the_loss(model_folder: Path, shards: Path) -> None:
    model = MVVDM.from_pretrained(model_folder)
    sample = Clips(shards, model, TINY).sample(0)
    seen = {}

    def network(noisy: torch.Tensor, timestep: torch.Tensor, *_: torch.Tensor, num_views: int) -> torch.Tensor:
        seen.update(noisy=noisy, timestep=timestep)
        guess = sample.noise.clone()
        guess[:, :, 0] = 1e6
        return guess

    assert paper_loss(network, model, [sample]) == 0.0
    torch.testing.assert_close(seen["noisy"][:, :, 0], sample.clean[:, :, 0], rtol=0, atol=0)
    assert seen["timestep"].tolist() == [int(sample.timestep)] * 4
    assert not torch.equal(seen["noisy"][:, :, 1:], sample.clean[:, :, 1:])


def test_a_position_of_the_run_names_a_clip_and_its_noise(model_folder: Path, shards: Path) -> None:
    model = MVVDM.from_pretrained(model_folder)
    clips, again = (Clips(shards, model, replace(TINY, text_dropout=0.5)) for _ in range(2))
    assert len(clips.held_out) == 1 and len(clips.trained_on) == 4
    assert sorted(clips.at(position) for position in range(4)) == clips.trained_on
    assert [clips.at(p) for p in range(4, 12)] != [clips.at(p) for p in range(8)]
    first, second = clips.sample(5), again.sample(5)
    for name in ("clean", "noise", "timestep", "text", "image", "camera"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=0, atol=0)
    empty = model.encode_prompt([""])[0]
    dropped = sum(torch.equal(clips.sample(p).text[:1], empty) for p in range(12))
    assert 0 < dropped < 12


def test_gradients_are_the_same_with_checkpoints_and_without(model_folder: Path, shards: Path) -> None:
    model = MVVDM.from_pretrained(model_folder)
    sample, gradients = Clips(shards, model, TINY).sample(0), []
    for parameter in model.unet.mid_block.motion_modules[0].parameters():
        parameter.requires_grad_(True)
    for _ in range(2):
        paper_loss(model.unet, model, [sample]).backward()
        gradients.append([p.grad.clone() for p in model.unet.mid_block.motion_modules[0].parameters()])
        model.unet.zero_grad()
        model.unet.enable_gradient_checkpointing()
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_autocast_trains_too(model_folder: Path, shards: Path, tmp_path: Path) -> None:
    assert train_paper(tmp_path, model_folder, shards, 1, replace(TINY, precision="bf16", clips_at_once=2))
    assert np.isfinite(losses(tmp_path)["loss"]).all()
    assert {tensor.dtype for tensor in load_file(tmp_path / TRAINED).values()} == {torch.float32}


def test_a_run_that_is_out_of_time_goes_on_later(whole_run, model_folder: Path, shards: Path, tmp_path: Path) -> None:
    while not train_paper(tmp_path, model_folder, shards, STEPS, TINY, until=time.monotonic()):
        assert (tmp_path / TRAINED).exists()
        AcceleratorState._reset_state(reset_partial_state=True)
    assert losses(tmp_path) == losses(whole_run)


def test_a_killed_run_goes_on_with_the_losses_of_an_undisturbed_one(
    whole_run: Path, model_folder: Path, shards: Path, tmp_path: Path
) -> None:
    run = child(out=tmp_path, model_folder=model_folder, shards=shards)
    log, deadline = tmp_path / "paper.csv", time.monotonic() + 900
    while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    run.kill()
    assert run.wait() != 0  # it was not done yet
    # In a process like the other ones: the last digits depend on the number of threads.
    assert child(out=tmp_path, model_folder=model_folder, shards=shards).wait() == 0
    assert losses(tmp_path) == losses(whole_run)
    whole, resumed = (load_file(out / STATE) for out in (whole_run, tmp_path))
    for name in whole.keys() - {"counters"}:  # which hold the time
        torch.testing.assert_close(resumed[name], whole[name], rtol=0, atol=0)


def test_two_processes_share_a_batch_and_get_the_losses_of_one(
    whole_run: Path, model_folder: Path, shards: Path, tmp_path: Path
) -> None:
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
                "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")  # fmt: skip
    run = child(*launcher, out=tmp_path, model_folder=model_folder, shards=shards)
    assert run.wait(timeout=900) == 0, (tmp_path / "output.txt").read_text()
    np.testing.assert_allclose(losses(tmp_path)["loss"], losses(whole_run)["loss"], rtol=2e-4)


def test_weights_and_clips_of_another_kind_are_refused(model_folder: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="goes on from the released model"):
        train_paper(tmp_path, ROOT / "weights" / "starter", shards, 1, TINY)
    with pytest.raises(UserError, match="too short"):
        train_paper(tmp_path, model_folder, shards, 1, replace(TINY, frames=FRAMES + 1))
