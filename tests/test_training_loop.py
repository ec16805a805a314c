"""Training: it learns, it stops and goes on exactly where it was, and it ends as a folder that the pipeline loads."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from backend.protocol import UserError, condition_cameras
from backend.training import captions
from backend.training import codec as codec_stage
from backend.training.captions import build_tokenizer
from backend.training.clips import make_clip, render_clip, rendered_clips
from backend.training.codec import CodecSettings, build_codec, codec_loss, picture_batch, to_model_range, train_codec
from backend.training.export import load_run
from backend.training.latents import LatentStore, on_grey
from backend.training.loop import cosine_rate
from backend.training.muon import StackedMuon
from backend.training.objective import draw_noise, training_loss
from backend.training.shards import RenderedClip, ShardWriter
from backend.training.starter import StarterModel, StarterSettings, build_scheduler, quick
from backend.training.video import share_of_batch, start_from

TINY_CODEC = CodecSettings(channels=(8, 8, 8, 8), clips_per_batch=2, pictures_per_clip=2, latent_channels=4)
TINY = quick(StarterSettings())


@pytest.fixture()
def store(tmp_path: Path) -> LatentStore:
    torch.manual_seed(0)
    codec = build_codec(TINY_CODEC).eval()
    return LatentStore(tmp_path / "clips", codec, build_tokenizer(), size=64, frames=4, shard_clips=2)


def tiny_model(store: LatentStore) -> StarterModel:
    torch.manual_seed(0)
    return StarterModel(TINY, TINY_CODEC.latent_channels, store.tokenizer.get_vocab())


def test_the_codec_learns() -> None:
    torch.manual_seed(0)
    codec = build_codec(TINY_CODEC)
    optimizer = torch.optim.Adam(codec.parameters(), lr=3e-3)
    pictures = picture_batch(TINY_CODEC, 0)
    errors = []
    for _ in range(12):
        loss, error = codec_loss(codec, pictures, TINY_CODEC)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(error)
    assert errors[-1] < 0.7 * errors[0]


def test_a_stopped_codec_run_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(TINY_CODEC, save_steps=2)
    monkeypatch.setattr(codec_stage, "latent_spread", lambda *_: 1.0)
    monkeypatch.setattr(codec_stage, "codec_psnr", lambda *_: 0.0)
    whole = train_codec(tmp_path / "whole", 4, settings)

    def stop_at_the_fourth(settings: CodecSettings, first_seed: int) -> torch.Tensor:
        if first_seed == 3 * settings.clips_per_batch:
            raise KeyboardInterrupt
        return picture_batch(settings, first_seed)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(codec_stage, "picture_batch", stop_at_the_fourth)
        train_codec(tmp_path / "stopped", 4, settings)
    resumed = train_codec(tmp_path / "stopped", 4, settings)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)


def test_every_part_of_the_video_model_gets_a_gradient(store: LatentStore) -> None:
    model, scheduler = tiny_model(store), build_scheduler()
    torch.nn.init.normal_(model.unet.conv_out.weight, std=0.1)
    batch, settings = store.all(1, 2)[0], replace(TINY, text_dropout=0.0)
    draw = draw_noise(batch["latents"].shape, 1000, settings, step=0)
    training_loss(model, scheduler, batch, draw, settings).backward()
    # The image encoder's last norm of the patches feeds nothing: only the class token is read.
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    allowed = ("k_proj.bias", "to_k", "position_embedding", "post_layernorm")
    assert not [name for name in still if not any(part in name for part in allowed)]


def test_a_model_that_says_nothing_leaves_the_object_still(store: LatentStore) -> None:
    model = tiny_model(store)
    batch = store.all(1, 2)[0]
    noisy = torch.randn_like(batch["latents"].flatten(0, 1))
    predicted = model(noisy, torch.tensor([999, 999]), batch["tokens"], batch["images"].flatten(0, 1))
    assert predicted.abs().max() == 0.0


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten steps that nothing disturbs, in one process; each row of the log is the mean of two."""
    out = tmp_path_factory.mktemp("whole")
    prepare(out)
    assert start_training(out).wait(timeout=900) == 0
    return out


def prepare(out: Path) -> None:
    torch.manual_seed(0)
    build_codec(TINY_CODEC).save_pretrained(out / "vae")


def start_training(out: Path, *launcher: str) -> subprocess.Popen:
    script = str(Path(__file__).with_name("tiny_training.py"))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    with (out / "output.txt").open("a") as output:
        command = [sys.executable, *launcher, script, str(out), "10"]
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output)


def logged(out: Path, figure: str) -> dict[int, float]:
    """The values of a figure by step."""
    rows = [dict(entry.split("=") for entry in row.split(",")) for row in (out / "video.csv").read_text().split()]
    return {int(row["step"]): float(row[figure]) for row in rows if figure in row}


def test_a_killed_run_goes_on_with_the_losses_of_an_undisturbed_one(whole_run: Path, tmp_path: Path) -> None:
    prepare(tmp_path)
    run = start_training(tmp_path)
    log = tmp_path / "video.csv"
    deadline = time.monotonic() + 900
    while not (log.exists() and len(logged(tmp_path, "loss")) >= 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    run.kill()
    assert run.wait() != 0  # it was not done yet
    assert start_training(tmp_path).wait(timeout=900) == 0
    assert logged(tmp_path, "loss") == logged(whole_run, "loss")
    assert len(logged(whole_run, "loss")) == 5
    assert logged(tmp_path, "right_prompt") == logged(whole_run, "right_prompt")
    whole, resumed = (load_file(out / "video.state.safetensors") for out in (whole_run, tmp_path))
    for name in whole.keys() - {"counters"}:  # which hold the time
        torch.testing.assert_close(resumed[name], whole[name], rtol=0, atol=0)


def test_a_run_draws_its_curves_and_samples_and_writes_for_tensorboard(whole_run: Path) -> None:
    picture = np.asarray(Image.open(whole_run / "video.png"))
    assert picture.shape[1] > 400 and picture.std() > 20
    (events,) = (whole_run / "tensorboard" / "video").iterdir()
    content = events.read_bytes()
    assert b"right_prompt" in content and b"samples" in content and b"PNG" in content


def test_two_processes_share_a_batch_and_get_the_losses_of_one(whole_run: Path, tmp_path: Path) -> None:
    prepare(tmp_path)
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
                "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")  # fmt: skip
    assert start_training(tmp_path, *launcher).wait(timeout=900) == 0
    one, two = logged(whole_run, "loss"), logged(tmp_path, "loss")
    assert list(two) == list(one)
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=2e-4)


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    assert share_of_batch(6, process=1, processes=3) == slice(2, 4)
    with pytest.raises(UserError, match="evenly among 2 processes"):
        share_of_batch(3, process=0, processes=2)
    with pytest.raises(UserError, match="at least one clip"):
        share_of_batch(0, process=0, processes=1)


def test_a_finished_model_is_taken_over_word_by_word(
    whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = load_run(whole_run, TINY)
    finished.save_pretrained(tmp_path)
    monkeypatch.setattr(captions, "NOUNS", ("zebra",))  # all other words get other places
    tokenizer = build_tokenizer()
    model = StarterModel(TINY, TINY_CODEC.latent_channels, tokenizer.get_vocab())
    start_from(model, tokenizer, tmp_path)
    rows, old_rows = (encoder.get_input_embeddings().weight for encoder in (model.text_encoder, finished.text_encoder))
    place, old_place = (t.convert_tokens_to_ids("sways") for t in (tokenizer, finished.tokenizer))
    assert place != old_place
    torch.testing.assert_close(rows[place], old_rows[old_place])
    torch.testing.assert_close(model.unet.state_dict(), finished.unet.state_dict())


def test_encoded_clips_are_kept_on_disk(store: LatentStore) -> None:
    first = store.all(1, 2)[0]
    again = LatentStore(
        store.folder, store.codec, store.tokenizer, store.source.size, store.source.frames, shard_clips=2
    )
    again.codec = None  # would fail if a clip had to be made again
    torch.testing.assert_close(again.all(1, 2)[0]["latents"], first["latents"])


def test_rendered_clips_take_part_with_their_own_words(store: LatentStore, tmp_path: Path) -> None:
    made = make_clip(7, 4)
    clip = RenderedClip("fox-0", np.zeros((4, 0)), condition_cameras(), 40.0, made.trajectories.astype(np.float32),
                        made.faces, "a fox zigzags", "CC0-1.0", "position")  # fmt: skip
    with ShardWriter(tmp_path / "shards") as writer:
        for key in ("fox-0", "fox-1"):  # two rigs
            writer.write(key, clip.entries())
    clips = rendered_clips(tmp_path / "shards")
    assert len(clips) == 1
    tokenizer = build_tokenizer([clip.caption for clip in clips])
    mixed = LatentStore(tmp_path / "mixed", store.codec, tokenizer, 64, 4, shard_clips=2, rendered=clips,
                        rendered_share=1.0)  # fmt: skip
    batch = mixed.all(1, 2)[0]
    assert batch["motions"].tolist() == [-1, -1]
    assert tokenizer.convert_tokens_to_ids("zigzags") in batch["tokens"][0]
    drawn = to_model_range(render_clip(replace(made, rest=clips[0].rest), 64, [(0, 0)]))
    torch.testing.assert_close(batch["images"][0, 0], on_grey(drawn)[0], atol=0.02, rtol=0)


def test_the_other_prompt_of_a_clip_is_another_motion(store: LatentStore) -> None:
    batch = store.all(1, 2)[0]
    assert batch["tokens"].shape == batch["other_tokens"].shape
    assert (batch["empty"] == store.tokenizer.pad_token_id).sum() > (
        batch["tokens"] == store.tokenizer.pad_token_id
    ).sum()


def test_matrices_turned_together_take_the_steps_of_each_alone() -> None:
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((24, 16), (24, 16), (8, 20), (24, 16))]
    alone, together = ([torch.nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2))
    settings = {"lr": 0.01, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    optimizers = torch.optim.Muon(alone, **settings), StackedMuon(together, **settings)
    for _ in range(3):
        for parameters, optimizer in zip((alone, together), optimizers, strict=True):
            for parameter, target in zip(parameters, start, strict=True):
                parameter.grad = (parameter.detach() + 1.0).tanh() * target
            optimizer.step()
    for one, other, before in zip(alone, together, start, strict=True):
        moved = (one - before).norm()
        assert moved > 0.05
        assert (one - other).norm() < 0.02 * moved  # the iteration is in bfloat16


def test_the_rate_warms_up_and_ends_at_zero() -> None:
    assert cosine_rate(0, 10, 0.0) == pytest.approx(0.1)
    assert cosine_rate(100, 10, 0.0) == pytest.approx(1.0)
    assert cosine_rate(100, 10, 1.0) == pytest.approx(0.0)
