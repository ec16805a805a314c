"""Training: it learns, it stops and goes on exactly where it was, and it ends as a folder that the pipeline loads."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backend.training import latents
from backend.training.captions import build_tokenizer
from backend.training.codec import CodecSettings, build_codec, codec_loss, picture_batch
from backend.training.latents import LatentStore
from backend.training.loop import Average, RunState, cosine_rate, load_state, save_state
from backend.training.starter import StarterModel, StarterSettings, build_scheduler, quick, training_loss

TINY_CODEC = CodecSettings(channels=(8, 8, 8, 8), clips_per_batch=2, pictures_per_clip=2, latent_channels=4)


@pytest.fixture()
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LatentStore:
    monkeypatch.setattr(latents, "CLIPS_PER_SHARD", 2)
    torch.manual_seed(0)
    return LatentStore(tmp_path / "clips", build_codec(TINY_CODEC).eval(), build_tokenizer(), size=64, frames=4)


def tiny_model(store: LatentStore) -> StarterModel:
    torch.manual_seed(0)
    return StarterModel(quick(StarterSettings()), TINY_CODEC.latent_channels, store.tokenizer.get_vocab())


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


def test_every_part_of_the_video_model_gets_a_gradient(store: LatentStore) -> None:
    model, scheduler = tiny_model(store), build_scheduler()
    torch.nn.init.normal_(model.unet.conv_out.weight, std=0.1)
    training_loss(model, scheduler, store.all(1, 2)[0], replace(quick(StarterSettings()), text_dropout=0.0)).backward()
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


def test_a_run_goes_on_exactly_where_it_stopped(store: LatentStore, tmp_path: Path) -> None:
    def run(stop_after: int | None) -> list[torch.Tensor]:
        model, scheduler, settings = tiny_model(store), build_scheduler(), quick(StarterSettings())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        average = Average(model, 0.9)
        path = tmp_path / f"{stop_after}.safetensors"
        state = RunState()
        torch.manual_seed(1)
        for step in range(4):
            if step == stop_after:  # a new process would find this on disk
                save_state(path, model, optimizer, state, average.shadow)
                model = tiny_model(store)
                optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
                average = Average(model, 0.9)
                torch.manual_seed(99)
                state = load_state(path, model, optimizer, average.shadow)
            training_loss(model, scheduler, store.all(1, 2)[0], settings).backward()
            optimizer.step()
            optimizer.zero_grad()
            average.update(model, state.step)
            state.step += 1
        return [*model.state_dict().values(), *average.shadow.values()]

    for whole, resumed in zip(run(None), run(2), strict=True):
        torch.testing.assert_close(whole, resumed, rtol=0, atol=0)


def test_encoded_clips_are_kept_on_disk(store: LatentStore) -> None:
    first = store.all(1, 2)[0]
    again = LatentStore(store.folder, store.codec, store.tokenizer, store.size, store.frames)
    again.codec = None  # would fail if a clip had to be made again
    torch.testing.assert_close(again.all(1, 2)[0]["latents"], first["latents"])


def test_the_other_prompt_of_a_clip_is_another_motion(store: LatentStore) -> None:
    batch = store.all(1, 2)[0]
    assert batch["tokens"].shape == batch["other_tokens"].shape
    assert (batch["empty"] == store.tokenizer.pad_token_id).sum() > (
        batch["tokens"] == store.tokenizer.pad_token_id
    ).sum()


def test_the_rate_warms_up_and_ends_at_zero() -> None:
    assert cosine_rate(0, 10, 0.0) == pytest.approx(0.1)
    assert cosine_rate(100, 10, 0.0) == pytest.approx(1.0)
    assert cosine_rate(100, 10, 1.0) == pytest.approx(0.0)
