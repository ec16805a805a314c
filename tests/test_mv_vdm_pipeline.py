"""Model folders and the whole road from a prompt to pictures, with the real classes at their smallest."""

import dataclasses
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
)

from backend.mv_vdm.checkpoints import MANIFEST, WeightsError, read_tensors, shard_paths, write_manifest, write_tensors
from backend.mv_vdm.execution import Execution
from backend.mv_vdm.images import (
    clip_pixels,
    composite_on_grey,
    over_grey,
    read_rgba,
    vae_pixels,
    write_pictures,
)
from backend.mv_vdm.pipeline import MVVDM, ModelInfo, _read_tokenizer
from backend.mv_vdm.resume import StepLog
from backend.mv_vdm.sampling import SamplerSettings
from backend.mv_vdm.unet import MVVDMUNet
from backend.protocol import condition_cameras

SIZE, WIDTH, LENGTH = 16, 16, 6
WORDS = ["<pad>", "<unknown>", "<start>", "<end>", "a", "cactus", "is", "swaying"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unknown>",
        bos_token="<start>",
        eos_token="<end>",
        model_max_length=LENGTH,
    )


def tiny_encoders() -> dict[str, torch.nn.Module]:
    shape = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(
        **shape,
        vocab_size=len(WORDS),
        max_position_embeddings=LENGTH,
        projection_dim=WIDTH,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    vision = CLIPVisionConfig(**shape, image_size=8, patch_size=4, projection_dim=8)
    return {"text_encoder": CLIPTextModel(text), "image_encoder": CLIPVisionModelWithProjection(vision)}


def tiny_model(kind: str) -> MVVDM:
    """Like the starter ("position": RGBA, predicts the clean difference to frame 0) or like the released ("color")."""
    torch.manual_seed(0)
    starter = kind == "position"
    channels = 4 if starter else 3
    vae = AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    unet = MVVDMUNet(
        block_out_channels=(16, 16),
        down_block_types=("CrossAttn", "Down"),
        up_block_types=("Up", "CrossAttn"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        num_attention_heads=2,
        motion_num_attention_heads=2,
        image_embed_dim=8,
        first_frame_concat=starter,
        i2v_cond_time_zero=starter,
        pooled_text=starter,
        i2v_near_identity_init=starter,
    )
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear", "clip_sample": False}
    if starter:
        schedule |= {
            "prediction_type": "sample",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        }
    info = ModelInfo(
        name=kind,
        licence="CC0-1.0",
        appearance=kind,
        image_channels=channels,
        resolution=SIZE,
        num_frames=3,
        residual_to_first_frame=starter,
        posterior_sample=not starter,
        sampler=SamplerSettings(steps=2, guidance_scale=1.5, freeinit_iterations=1),
        motions={"sway": ["sway", "swaying"]},
    )
    return MVVDM(
        unet=unet.eval(),
        vae=vae.eval(),
        **{name: encoder.eval() for name, encoder in tiny_encoders().items()},
        tokenizer=tiny_tokenizer(),
        scheduler=DDIMScheduler(**schedule),
        info=info,
    )


@pytest.fixture(scope="module")
def position_model() -> MVVDM:
    return tiny_model("position")


@pytest.fixture
def folder(position_model, tmp_path) -> Path:
    position_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def some_pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 2 * SIZE, 2 * SIZE, 4), np.uint8)


def generate(model: MVVDM, **options) -> np.ndarray:
    return model.generate("a cactus is swaying", some_pictures(), condition_cameras(), **options)


@pytest.mark.parametrize(("kind", "channels"), [("position", 4), ("color", 3)])
def test_a_model_generates_and_survives_saving(kind, channels, tmp_path):
    model = tiny_model(kind)
    pictures = generate(model, seed=3)
    assert pictures.shape == (4, 3, SIZE, SIZE, channels) and pictures.dtype == np.uint8
    model.save_pretrained(tmp_path)
    loaded = MVVDM.from_pretrained(tmp_path)
    assert loaded.info == model.info
    assert np.array_equal(generate(loaded, seed=3), pictures)
    assert not np.array_equal(generate(loaded, seed=4), pictures)
    assert not any(p.requires_grad for p in loaded.unet.parameters())


def test_frame_0_is_the_condition_and_the_length_is_free(position_model):
    seen = []
    pictures = generate(position_model, num_frames=5, callback=lambda *step: seen.append(step))
    first = position_model.encode_first_frames(some_pictures(), torch.Generator())
    assert np.array_equal(pictures[:, 0], position_model.decode(first[:, :, None])[:, 0])
    assert pictures.shape[1] == 5 and [step[:2] for step in seen] == [(1, 2), (2, 2)]
    assert torch.equal(seen[0][2][:, :, 0], first)


def test_posterior_sample_follows_the_seed_and_its_mode_does_not():
    model = tiny_model("color")
    one, two = (model.encode_first_frames(some_pictures(), torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert not torch.equal(one, two)
    model.info = dataclasses.replace(model.info, posterior_sample=False)
    one, two = (model.encode_first_frames(some_pictures(), torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert torch.equal(one, two)


def test_unconditional_images_are_zeros_before_the_projection(position_model):
    conditional, unconditional = position_model.encode_conditions("a cactus", some_pictures(), condition_cameras())
    assert conditional.image.any() and not unconditional.image.any()
    tokens = position_model.unet.encoder_hid_proj([unconditional.image[:, None]])[0]
    assert tokens.abs().mean() > 0.1  # not zero tokens
    assert not torch.equal(conditional.text, unconditional.text)
    assert torch.equal(conditional.camera, unconditional.camera)


def test_negative_prompt_is_what_the_unconditional_half_is_told(position_model):
    told = position_model.encode_conditions("a cactus", some_pictures(), condition_cameras(), "a cactus")
    assert torch.equal(told[0].text, told[1].text)
    silent = position_model.encode_conditions("a cactus", some_pictures(), condition_cameras())
    assert torch.equal(silent[1].text[0], position_model.encode_prompt([""])[0][0])
    settings = dataclasses.replace(position_model.info.sampler, negative_prompt="swaying")
    assert not np.array_equal(generate(position_model, settings=settings), generate(position_model))


def test_clips_own_tokenizer_is_read_and_filled_up_with_its_end(tmp_path):
    """A folder as Stable Diffusion 1.5 has it, with a vocabulary of a few words."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    merges = ["c a", "ca t</w>"]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "ca", "cat</w>"]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(vocabulary)}))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special |= {"pad_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(special))
    ids = _read_tokenizer(tmp_path)(
        ["A CAT", "a cat " * 9], padding="max_length", max_length=8, truncation=True, return_tensors="pt"
    ).input_ids
    start, end, a, cat = (vocabulary.index(word) for word in (*vocabulary[-2:], "a</w>", "cat</w>"))
    assert ids.tolist() == [[start, a, cat, end, end, end, end, end], [start, a, cat, a, cat, a, cat, end]]


def test_noise_is_drawn_in_the_released_order():
    """One generator: the posterior's noise, the initial noise without frame 0, one draw per further pass."""
    model, drawn = tiny_model("color"), []
    settings = SamplerSettings(steps=1, guidance_scale=1.0, freeinit_iterations=3)
    real = torch.randn

    def spy(*size, **options):
        drawn.append(tuple(size[0]))
        return real(*size, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", spy)
        pictures = generate(model, seed=5, settings=settings)
    assert drawn == [(4, 4, 8, 8)] + 3 * [(4, 4, 2, 8, 8)]
    assert np.array_equal(generate(model, seed=5, settings=settings), pictures)


def test_a_cancelled_run_comes_out_the_same_when_it_is_started_again():
    class Cancelled(Exception):
        pass

    def cancel(step, total, clean):
        if step == 2:
            raise Cancelled

    model = tiny_model("color")
    settings = SamplerSettings(steps=2, guidance_scale=2.0, freeinit_iterations=2, solver="unipc")
    undisturbed = generate(model, seed=5, settings=settings)
    with pytest.raises(Cancelled):
        generate(model, seed=5, settings=settings, callback=cancel)
    assert np.array_equal(generate(model, seed=5, settings=settings), undisturbed)


@pytest.mark.parametrize("solver", ["ddim", "unipc"])
def test_a_killed_run_goes_on_at_its_next_step_and_ends_the_same(solver, tmp_path):
    class Killed(Exception):
        pass

    def kill(step, total, clean):
        if step == 3:
            raise Killed

    model, asked = tiny_model("color"), []
    settings = SamplerSettings(steps=2, guidance_scale=2.0, freeinit_iterations=2, solver=solver)
    undisturbed = generate(model, seed=5, settings=settings)
    log = StepLog(tmp_path, worth_keeping=0.0)
    with pytest.raises(Killed):
        generate(model, seed=5, settings=settings, callback=kill, log=log)
    model.unet.register_forward_pre_hook(lambda *_: asked.append(1))
    assert np.array_equal(generate(model, seed=5, settings=settings, log=log), undisturbed)
    assert len(asked) == 1  # of four steps


def test_damaged_and_fast_steps_are_done_again(tmp_path):
    latents = torch.randn(1, 2, 3, 4, 4)
    log = StepLog.of(tmp_path, ("a prompt", 7), b"pictures")
    log.write(0, latents, seconds=0.01)
    log.write(1, latents, seconds=10.0)
    assert log.read(0, latents) is None and torch.equal(log.read(1, latents), latents)
    assert StepLog.of(tmp_path, ("a prompt", 8), b"pictures").read(1, latents) is None
    path = next(log.folder.iterdir())
    path.write_bytes(path.read_bytes()[:-200])
    assert log.read(1, latents) is None


def test_colours_go_on_grey_as_a_picture_file_holds_them():
    straight = np.array([[[[200, 100, 40, 255], [200, 100, 40, 51], [200, 100, 40, 0]]]], np.uint8)
    assert composite_on_grey(straight)[0, 0].tolist() == [[200, 100, 40], [142, 122, 110], [128, 128, 128]]


@pytest.mark.parametrize("shape", [(64, 64), (50, 81), (40, 32)])
def test_clip_preprocessing_equals_the_librarys(shape):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    pictures = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), np.uint8)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    wanted = processor(list(pictures), return_tensors="pt").pixel_values
    got = clip_pixels(pictures, 28, tuple(processor.image_mean), tuple(processor.image_std))
    assert torch.allclose(got, wanted, atol=1e-6)


def test_vae_reads_pictures_of_its_own_size_as_they_are_and_twice_the_size_as_means():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    same = vae_pixels(pictures, 16)
    assert torch.allclose(same, torch.from_numpy(pictures).movedim(-1, 1) / 127.5 - 1, atol=1e-6)
    assert torch.allclose(vae_pixels(pictures, 8), torch.nn.functional.avg_pool2d(same, 2), atol=1e-6)
    assert vae_pixels(pictures[:, :12], 12).shape == (2, 3, 12, 12)


def test_posterior_sample_is_scaled_after_the_noise():
    model = tiny_model("color")
    pixels, noise = torch.rand(2, 3, SIZE, SIZE), torch.randn(2, 4, 8, 8)
    posterior = model.vae.encode(pixels).latent_dist
    wanted = (posterior.mean + noise * posterior.std) * model.vae.config.scaling_factor
    assert torch.equal(model.encode_pixels(pixels, noise), wanted)
    assert torch.equal(model.encode_pixels(pixels), posterior.mode() * model.vae.config.scaling_factor)


def test_half_precision_runs(folder):
    model = MVVDM.from_pretrained(folder, execution=Execution(torch.bfloat16))
    assert generate(model).shape == (4, 3, SIZE, SIZE, 4)


def test_transparent_colours_do_not_bleed():
    picture = np.zeros((1, 8, 8, 4), np.uint8)
    picture[..., 0] = 255  # red everywhere, visible only on the left
    picture[:, :, :4, 1:] = 255
    pixels = read_rgba(picture, 4)
    assert torch.all(pixels[:, 0] <= pixels[:, 3] + 1e-6)
    grey = over_grey(pixels)
    assert torch.allclose(grey[:, :, :, -1], torch.full((1, 3, 4), 0.5), atol=0.1)


def test_straight_alpha_comes_back():
    straight = np.array([[[[200, 100, 40, 255], [200, 100, 40, 128], [200, 100, 40, 0]]]], np.uint8)
    unit = torch.from_numpy(straight).float() / 255
    premultiplied = torch.cat([unit[..., :3] * unit[..., 3:], unit[..., 3:]], dim=-1)
    got = write_pictures(premultiplied.movedim(-1, -3) * 2 - 1)
    assert np.abs(got[..., :2, :].astype(int) - straight[..., :2, :]).max() <= 1
    assert not got[..., 2, :].any()


def test_weights_are_sharded_and_complete(tmp_path):
    tensors = {f"layer{i}.weight": torch.full((100, 100), float(i)) for i in range(7)}
    write_tensors(tmp_path, tensors, max_bytes=90_000)
    assert shard_paths(tmp_path)[0].name == "weights-00001-of-00004.safetensors"
    assert all(path.stat().st_size < 91_000 for path in shard_paths(tmp_path))
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in read_tensors(tmp_path).items())
    write_tensors(tmp_path, tensors)  # fewer files than before: the old ones must not stay
    assert len(shard_paths(tmp_path)) == 1


def unet_file(folder: Path) -> Path:
    return folder / "unet" / "weights-00001-of-00001.safetensors"


def flip_a_byte(folder: Path) -> None:
    data = bytearray(unet_file(folder).read_bytes())
    data[-1] ^= 1
    unet_file(folder).write_bytes(data)


def truncate(folder: Path) -> None:
    unet_file(folder).write_bytes(unet_file(folder).read_bytes()[:-100])
    write_manifest(folder)


def lie_in_the_header(folder: Path) -> None:
    unet_file(folder).write_bytes(struct.pack("<Q", 2**62) + b"{}")
    write_manifest(folder)


def lose_a_shard(folder: Path) -> None:
    unet_file(folder).rename(folder / "unet" / "weights-00001-of-00002.safetensors")
    write_manifest(folder)


def change_a_shape(folder: Path) -> None:
    tensors = read_tensors(folder / "unet")
    tensors["conv_in.bias"] = torch.zeros(3)
    write_tensors(folder / "unet", tensors)
    write_manifest(folder)


def rename_a_tensor(folder: Path) -> None:
    tensors = read_tensors(folder / "text_encoder")
    tensors["other"] = tensors.pop(next(iter(tensors)))
    write_tensors(folder / "text_encoder", tensors)
    write_manifest(folder)


def bring_a_pickle_named_safetensors(folder: Path) -> None:
    torch.save({"a": torch.zeros(1)}, unet_file(folder))
    write_manifest(folder)


def remove_a_file(folder: Path) -> None:
    unet_file(folder).unlink()


def remove_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def add_a_weight_file(folder: Path) -> None:
    (folder / "unet" / "more.safetensors").write_bytes(b"")


def point_outside(folder: Path) -> None:
    (folder / MANIFEST).write_text(json.dumps({"files": {"../secret": {"bytes": 1, "sha256": "0"}}}))


def scramble_the_config(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text("[1, 2")
    write_manifest(folder)


def want_negative_channels(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"block_out_channels": [-16, 16]}))
    write_manifest(folder)


def ask_for_nonsense(folder: Path) -> None:
    (folder / "model.json").write_text(json.dumps({"appearance": "smell"}))
    write_manifest(folder)


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_byte,
        truncate,
        lie_in_the_header,
        lose_a_shard,
        change_a_shape,
        rename_a_tensor,
        bring_a_pickle_named_safetensors,
        remove_a_file,
        remove_the_manifest,
        add_a_weight_file,
        point_outside,
        scramble_the_config,
        want_negative_channels,
        ask_for_nonsense,
    ],
)
def test_damaged_model_folders_are_refused_in_one_sentence(folder, damage):
    damage(folder)
    with pytest.raises(WeightsError) as caught:
        MVVDM.from_pretrained(folder)
    assert caught.value.kind == "missing_weights"
    assert "\n" not in caught.value.message and caught.value.hint
