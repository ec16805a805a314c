"""MVVDMUNet and its attention layers: against the reference implementation, and by their own properties."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from backend.mv_vdm.attention import Layout, MultiViewI2VProcessor
from backend.mv_vdm.cameras import camera_vectors
from backend.mv_vdm.layers import run_motion_module, run_spatial_transformer
from backend.mv_vdm.positions import cell_codes, sine_table_2d
from backend.mv_vdm.unet import MVVDMUNet

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "reference" / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the reference implementation's outputs are not here")
TINY = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttn", "CrossAttn"),
    "up_block_types": ("CrossAttn", "CrossAttn"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "num_attention_heads": 2,
    "motion_num_attention_heads": 2,
    "image_embed_dim": 8,
}
STARTER_FIELDS = {
    "first_frame_concat": True,
    "i2v_cond_time_zero": True,
    "pooled_text": True,
    "i2v_near_identity_init": True,
}


def golden_unet(**fields) -> MVVDMUNet:
    unet = MVVDMUNet(
        block_out_channels=(32, 32, 40, 48), norm_num_groups=8, cross_attention_dim=32, image_embed_dim=24, **fields
    )
    unet.load_state_dict(load_file(GOLDEN / "A" / "weights.safetensors"))
    return unet.eval()


@pytest.fixture(scope="module")
def reference() -> MVVDMUNet:
    return golden_unet()


def tiny_inputs(clips: int = 1, views: int = 4, frames: int = 3, size: int = 8) -> dict[str, torch.Tensor]:
    rows = clips * views
    return {
        "sample": torch.randn(rows, 4, frames, size, size),
        "timestep": torch.full((rows,), 500),
        "encoder_hidden_states": torch.randn(rows, 5, 16),
        "camera": torch.randn(rows, 16),
        "image_embeds": torch.randn(rows, 8),
    }


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


@needs_golden
@torch.no_grad()
@pytest.mark.parametrize("time_zero", [False, True])
def test_forward_matches_the_reference(time_zero):
    data = load_file(GOLDEN / "A" / "forward.safetensors")
    unet = golden_unet(i2v_cond_time_zero=time_zero)
    # One of the two clips of the batch: they are independent, and this is the slowest test here.
    sample, text, camera, image = (
        data[key][4:] for key in ("sample", "encoder_hidden_states", "camera", "image_embeds")
    )
    wanted = data["output_i2v_cond_time_zero" if time_zero else "output"][4:]
    assert relative(unet(sample, data["timestep"], text, camera, image), wanted) < 1e-5


# The reference orders images (b n f), here it is (b f n): 2 clips, 4 views, 8 frames.
def to_ours(images: torch.Tensor) -> torch.Tensor:
    return images.unflatten(0, (2, 4, 8)).transpose(1, 2).flatten(0, 2)


def to_theirs(images: torch.Tensor) -> torch.Tensor:
    return images.unflatten(0, (2, 8, 4)).transpose(1, 2).flatten(0, 2)


def golden_layout(image_tokens: torch.Tensor | None = None) -> Layout:
    return Layout(batch=2, num_frames=8, num_views=4, height=4, width=4, image_tokens=image_tokens)


@needs_golden
@torch.no_grad()
def test_multi_view_and_text_attention_match_the_reference(reference):
    block = reference.down_blocks[2].attentions[0].transformer_blocks[0]
    data = load_file(GOLDEN / "A" / "attn_mvdream_i2v.safetensors")
    got = block.attn1(to_ours(data["hidden_states"]), layout=golden_layout())
    assert relative(to_theirs(got), data["output"]) < 1e-5

    block = reference.down_blocks[2].attentions[1].transformer_blocks[0]
    data = load_file(GOLDEN / "A" / "attn_ip_cross.safetensors")
    layout = golden_layout(data["encoder_hidden_states_ip"][:, 0])
    got = block.attn2(to_ours(data["hidden_states"]), data["encoder_hidden_states_text"], layout=layout)
    assert relative(to_theirs(got), data["output"]) < 1e-5


@needs_golden
@torch.no_grad()
def test_spatiotemporal_attention_matches_the_reference(reference):
    data = load_file(GOLDEN / "A" / "attn_spatiotemporal.safetensors")
    hidden = data["hidden_states"].unflatten(0, (2, 4, 16)).permute(0, 3, 1, 2, 4).flatten(0, 2)  # [(b f n), l, c]
    attn = reference.down_blocks[2].motion_modules[1].transformer_blocks[0].attn1
    got = attn(hidden, layout=golden_layout())
    got = got.unflatten(0, (2, 8, 4)).permute(0, 2, 3, 1, 4).flatten(0, 2)  # [(b n l), f, c]
    assert relative(got, data["output"]) < 1e-5


@needs_golden
@torch.no_grad()
def test_whole_transformers_match_the_reference(reference):
    conditions = load_file(GOLDEN / "A" / "forward.safetensors")
    image_tokens = reference.encoder_hid_proj([conditions["image_embeds"][:, None]])[0][:, 0]
    block = reference.down_blocks[2]

    data = load_file(GOLDEN / "A" / "transformer2d.safetensors")
    got = run_spatial_transformer(
        block.attentions[1],
        to_ours(data["hidden_states"]).contiguous(memory_format=torch.channels_last),
        conditions["encoder_hidden_states"],
        golden_layout(image_tokens),
    )
    assert relative(to_theirs(got), data["output"]) < 1e-5

    data = load_file(GOLDEN / "A" / "motion_module.safetensors")
    got = run_motion_module(block.motion_modules[1], to_ours(data["hidden_states"]), golden_layout())
    assert relative(to_theirs(got), data["output"]) < 1e-5


@needs_golden
def test_full_size_has_the_released_keys_and_shapes():
    wanted = json.loads((GOLDEN / "unet_keys.json").read_text())["keys"]
    with torch.device("meta"):
        state = MVVDMUNet().state_dict()
    assert {key: list(tensor.shape) for key, tensor in state.items()} == {
        key: entry["shape"] for key, entry in wanted.items()
    }


def test_full_size_count_is_the_released_one():
    with torch.device("meta"):
        state = MVVDMUNet().state_dict()
    trained = [key for key in state if "i2v." in key or "motion_modules." in key]
    assert (len(state), len(trained)) == (1614, 888)
    assert sum(tensor.numel() for tensor in state.values()) == 1_527_409_902


@needs_golden
def test_position_tables_match_the_reference():
    tables = load_file(GOLDEN / "A" / "sine_pos_2d.safetensors")
    for name, wanted in tables.items():
        _, channels, height, width = wanted.shape
        got = sine_table_2d(height, width, channels).T.reshape(1, channels, height, width)
        assert torch.allclose(got, wanted, atol=1e-5), name


@needs_golden
def test_camera_vectors_match_the_reference():
    data = load_file(GOLDEN / "geometry" / "camera.safetensors")
    assert torch.allclose(camera_vectors(data["c2w"]), data["mvdream_camera_cond"], atol=1e-6)
    assert torch.allclose(camera_vectors(data["c2w"]), data["pipeline_get_camera4"], atol=1e-6)
    assert torch.allclose(camera_vectors(data["rand_c2w"]), data["rand_mvdream_camera_cond"], atol=1e-6)


def test_camera_vectors_ignore_the_distance():
    c2w = torch.eye(4).repeat(2, 1, 1)
    c2w[0, :3, 3] = torch.tensor([0.0, 0.0, 2.0])
    c2w[1, :3, 3] = torch.tensor([0.0, 0.0, 7.0])
    near, far = camera_vectors(c2w)
    assert near.shape == (16,) and torch.allclose(near, far)


@pytest.mark.parametrize("fields", [{}, STARTER_FIELDS])
def test_gradient_reaches_every_parameter(fields):
    torch.manual_seed(0)
    unet = MVVDMUNet(**TINY, **fields)
    pooled = torch.randn(4, 16) if fields else None
    unet(**tiny_inputs(), pooled_text=pooled).square().mean().backward()
    assert [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.any()] == []


@torch.no_grad()
def test_clips_of_a_batch_do_not_see_each_other():
    torch.manual_seed(0)
    unet = MVVDMUNet(**TINY).eval()
    inputs = tiny_inputs(clips=2)
    both = unet(**inputs)
    alone = unet(**{key: value[4:] for key, value in inputs.items()})
    assert torch.allclose(both[4:], alone, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("views", "frames", "size"), [(2, 5, 8), (4, 2, 6), (1, 1, 4)])
def test_other_numbers_of_views_frames_and_cells_work(views, frames, size):
    unet = MVVDMUNet(**TINY, **STARTER_FIELDS).eval()
    inputs = tiny_inputs(views=views, frames=frames, size=size)
    out = unet(**inputs, num_views=views, pooled_text=torch.randn(views, 16))
    assert out.shape == inputs["sample"].shape and out.isfinite().all()


@torch.no_grad()
def test_starter_network_looks_at_its_own_cell_of_frame_0():
    processor = MultiViewI2VProcessor(48, 2, near_identity=True)
    layout = Layout(batch=1, num_frames=1, num_views=4, height=8, width=8)
    coded = processor._add_cell_codes(torch.zeros(1, 4 * 64, 48), 2, layout).unflatten(2, (2, -1))  # [1, s, H, d]
    logits = torch.einsum("qhd,khd->hqk", coded[0], coded[0]) / coded.shape[-1] ** 0.5
    own = logits.softmax(dim=-1).diagonal(dim1=1, dim2=2)
    assert own.min() > 0.9  # against 1 / 256 when looking anywhere


def test_cell_codes_name_cells():
    codes = cell_codes(4, 8, 8, 32)
    likeness = codes @ codes.T
    assert torch.allclose(likeness.diagonal(), torch.ones(256), atol=1e-5)
    assert (likeness.argmax(dim=1) == torch.arange(256)).all()
