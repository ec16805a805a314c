"""The parity check itself: it holds on the reference's tensors, on networks of any size, and it can fail."""

import json
import shutil
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.mv_vdm import positions
from backend.mv_vdm.positions import sine_table_2d
from benchmarks.parity import GOLDEN, main, sds_rows
from benchmarks.parity_unet import Row, UNetSet, forward, in_type, relative, run_module, traced_forward

needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the reference implementation's outputs are not here")
CAPTURES = {
    "attn_mvdream_i2v": "down_blocks.0.attentions.0.transformer_blocks.0.attn1",
    "attn_ip_cross": "down_blocks.0.attentions.0.transformer_blocks.0.attn2",
    "attn_spatiotemporal": "up_blocks.0.motion_modules.0.transformer_blocks.0.attn2",
    "motion_module": "mid_block.motion_modules.0",
    "transformer2d": "up_blocks.1.attentions.1",
}
HIDDEN = {
    "attn_mvdream_i2v": (30, 36, 16),  # [(b n f), l, c]
    "attn_ip_cross": (30, 36, 16),
    "attn_spatiotemporal": (54, 5, 24),  # [(b n l), f, c]
    "motion_module": (30, 24, 3, 3),  # [(b n f), c, h, w]
    "transformer2d": (30, 16, 6, 6),
}


def write_set(folder: Path) -> None:
    """A folder like ``golden/A`` of another size, with this code's own outputs: 2 clips, 3 views, 5 frames, 6 x 6."""
    torch.manual_seed(0)
    config = {
        "unet_config": {
            "in_channels": 3,
            "out_channels": 3,
            "block_out_channels": [16, 24],
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "norm_eps": 1e-5,
            "cross_attention_dim": 12,
            "num_attention_heads": 2,
            "camera_embedding_dim": 16,
            "down_block_types": ["CrossAttn", "Down"],
            "up_block_types": ["Up", "CrossAttn"],
        },
        "motion_config": {"motion_num_attention_heads": 4, "motion_max_seq_length": 8},
        "ip_adapter": {"num_tokens": 2, "image_embed_dim": 10},
        "num_views": 3,
        "files": {f"{name}.safetensors": {"module": module} for name, module in CAPTURES.items()}
        | {"trace.json": "statistics of every sub-module"},
        "noise_floor_float32_vs_float64": {"rel_l2": 1e-6},
    }
    inputs = {
        "sample": torch.randn(6, 3, 5, 6, 6),
        "timestep": torch.tensor(321),
        "encoder_hidden_states": torch.randn(6, 7, 12),
        "camera": torch.randn(6, 16),
        "image_embeds": torch.randn(6, 10),
    }
    (folder / "config.json").write_text(json.dumps(config))
    data = UNetSet.open(folder)
    save_file(data.build().state_dict(), folder / "weights.safetensors")
    network = data.network()
    with torch.no_grad():
        output, seen = traced_forward(network, inputs, 3)
        time_zero = forward(data.network(i2v_cond_time_zero=True), inputs, 3)
        double = forward(data.network(dtype=torch.float64), in_type(inputs, torch.float64), 3)
        outputs = {"output": output, "output_float64": double, "output_i2v_cond_time_zero": time_zero}
        save_file(inputs | outputs, folder / "forward.safetensors")
        for name, module in CAPTURES.items():
            capture = {"hidden_states": torch.randn(HIDDEN[name])}
            if name == "attn_ip_cross":
                capture["encoder_hidden_states_text"] = inputs["encoder_hidden_states"]
                capture["encoder_hidden_states_ip"] = torch.randn(6, 1, 2, 12)
            got = run_module(network, network.get_submodule(module), capture, inputs, 3)
            save_file(capture | {"output": got.contiguous()}, folder / f"{name}.safetensors")
    trace = [
        {"module": name, "mean": float(t.mean()), "std": float(t.std()), "first8": t.flatten()[:8].tolist()}
        for name, t in seen.items()
    ]
    (folder / "trace.json").write_text(json.dumps(trace))
    table = sine_table_2d(2, 3, 12).T.reshape(1, 12, 2, 3).contiguous()
    save_file({"feats6_h2_w3": table}, folder / "sine_pos_2d.safetensors")


def change(file: Path, name: str) -> None:
    """Adds a thousandth to one number of a tensor."""
    tensors = load_file(file)
    tensors[name].view(-1)[0] += 1e-3
    save_file(tensors, file)


@pytest.fixture
def unet_set(tmp_path) -> Path:
    write_set(tmp_path)
    return tmp_path


def test_networks_of_any_size_are_checked(unet_set, tmp_path):
    report = tmp_path / "report.json"
    assert main(["--unet-set", str(unet_set), "--report", str(report)]) == 0
    rows = json.loads(report.read_text())["rows"]
    assert len(rows) == 11
    assert max(row["error"] for row in rows) < 1e-6  # zero on some machines: threads may split a sum in two ways
    floors = [row["floor"] for row in rows if row["name"] in CAPTURES.values()]
    assert len(floors) == 5 and all(0 < floor < 1e-6 for floor in floors)


def edit_config(folder: Path, edit) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_what_a_set_does_not_promise_may_be_missing(unet_set):
    edit_config(
        unet_set, lambda config: (config["files"].pop("trace.json"), config.pop("noise_floor_float32_vs_float64"))
    )
    for name in ("trace.json", "sine_pos_2d.safetensors"):
        (unet_set / name).unlink()
    assert main(["--unet-set", str(unet_set)]) == 0


def test_levels_may_be_named_as_diffusers_does(unet_set):
    kinds = {"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"]}
    kinds["up_block_types"] = ["UpBlock2D", "CrossAttnUpBlock2D"]
    edit_config(unet_set, lambda config: config["unet_config"].update(kinds))
    assert main(["--unet-set", str(unet_set)]) == 0


@pytest.mark.parametrize(
    "name",
    [
        "conv_in.bias",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out_i2v.bias",
        "up_blocks.0.motion_modules.0.transformer_blocks.0.attn2.processor.alpha_blender.mix_factor",
    ],
)
def test_a_changed_weight_fails(unet_set, name):
    change(unet_set / "weights.safetensors", name)
    assert main(["--unet-set", str(unet_set)]) == 1


@pytest.mark.parametrize("name", ["trace.json", "attn_ip_cross.safetensors", "forward.safetensors", "config.json"])
def test_a_missing_file_is_told_in_a_sentence(unet_set, name, capsys):
    (unet_set / name).unlink()
    assert main(["--unet-set", str(unet_set)]) == 1
    assert capsys.readouterr().err == f"There is no file {name} in {unet_set}.\n"


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: (folder / "forward.safetensors").write_bytes(b"123"), "forward.safetensors"),
        (lambda folder: edit_config(folder, lambda c: c["unet_config"].pop("norm_eps")), "does not say 'norm_eps'"),
        (lambda folder: edit_config(folder, lambda c: c.pop("files")), "do not hold 'files'"),
        (lambda folder: edit_config(folder, lambda c: c["unet_config"].update(norm_num_groups=5)), "No network"),
        (lambda folder: edit_config(folder, lambda c: c["unet_config"].update(in_channels=4)), "conv_in.weight"),
        (lambda folder: edit_config(folder, lambda c: c.update(num_views=4)), "do not fit together"),
    ],
)
def test_a_broken_set_is_told_in_a_sentence(unet_set, damage, told, capsys):
    damage(unet_set)
    assert main(["--unet-set", str(unet_set)]) == 1
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1


def test_a_broken_formula_fails(unet_set, monkeypatch):
    columns_first = lambda height, width, channels: sine_table_2d(height, width, channels).roll(channels // 2, 1)  # noqa: E731
    monkeypatch.setattr(positions, "sine_table_2d", columns_first)
    positions.remembered.cache_clear()
    try:
        assert main(["--unet-set", str(unet_set)]) == 1
    finally:
        positions.remembered.cache_clear()


def test_shapes_that_only_broadcast_do_not_count_as_equal():
    assert not Row("", relative(torch.ones(3, 1), torch.ones(3, 3)), 1.0).holds


@needs_golden
def test_quick_parts_hold():
    assert main(["--only", "keys", "cameras", "hexplane", "arap"]) == 0


@needs_golden
def test_guidance_holds_at_the_lowest_noise_level():
    rows = list(islice(sds_rows(GOLDEN, floors=False), 4))  # the settings; all of one of three levels
    assert [row.name for row in rows[1:]] == [f"SDS {part}, t = 20" for part in ("loss", "grad", "latents_recon")]
    assert all(row.holds for row in rows)


@needs_golden
def test_a_changed_field_and_a_missing_folder_fail(tmp_path):
    shutil.copytree(GOLDEN / "geometry", tmp_path / "geometry")
    change(tmp_path / "geometry" / "hexplane.safetensors", "delta_xyz_network.layers.2.weight")
    assert main(["--golden", str(tmp_path), "--only", "hexplane"]) == 1
    assert main(["--golden", str(tmp_path), "--only", "cameras"]) == 0
    assert main(["--golden", str(tmp_path / "nowhere"), "--only", "cameras"]) == 1
