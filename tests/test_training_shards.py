"""Rendered clips: Blender makes shards of them that can be read again, also those of a writer that was killed."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import bpy
import numpy as np
import pytest
from PIL import Image

from backend.protocol import UserError, condition_cameras, subject_to_world, transform_points
from backend.training.shards import RenderedClip, ShardIndex, ShardWriter, check_shards, read_shards

ROOT = Path(__file__).resolve().parent.parent
DEV = ROOT.parent / "shared" / "assets" / "dev"

ENDLESS_WRITER = """
import io, sys
from pathlib import Path
import numpy as np
from PIL import Image
from backend.protocol import condition_cameras
from backend.training.shards import RenderedClip, ShardWriter
writer = ShardWriter(Path(sys.argv[1]), samples_per_shard=2)
picture = io.BytesIO()
Image.fromarray(np.full((64, 64, 4), 200, np.uint8)).save(picture, "PNG")
pictures = {f"v{view}f{frame:02d}.png": picture.getvalue() for view in range(4) for frame in range(2)}
vertices = np.random.default_rng(0).normal(size=(2, 5000, 3))
for index in range(10**9):
    about = ("a fox", "", "color")
    clip = RenderedClip(f"clip-{index}", np.empty(0), condition_cameras(), 40.0, vertices, np.eye(3)[:1], *about)
    writer.write(clip.key, clip.entries() | pictures)
    print(index, flush=True)
"""


def small_clip(key: str) -> RenderedClip:
    rng = np.random.default_rng(len(key))
    return RenderedClip(
        key,
        rng.integers(0, 256, (4, 2, 8, 8, 4), dtype=np.uint8),
        condition_cameras(),
        40.0,
        rng.normal(size=(2, 5, 3)).astype(np.float32),
        np.array([[0, 1, 2]], np.int32),
        "a fox is running",
        "CC0-1.0",
        "color",
    )


def pictures_of(clip: RenderedClip, folder: Path) -> dict[str, bytes]:
    entries = {}
    for view, frames in enumerate(clip.pictures):
        for frame, picture in enumerate(frames):
            name = f"v{view}f{frame:02d}.png"
            Image.fromarray(picture).save(folder / name)
            entries[name] = (folder / name).read_bytes()
    return entries


def test_a_clip_comes_back_as_it_was_written(tmp_path: Path) -> None:
    clip = small_clip("fox-0")
    with ShardWriter(tmp_path / "shards") as writer:
        writer.write(clip.key, clip.entries() | pictures_of(clip, tmp_path))
    (back,) = read_shards(tmp_path / "shards")
    for name in ("pictures", "c2w", "vertices", "faces"):
        np.testing.assert_array_equal(getattr(back, name), getattr(clip, name))
    assert replace(back, pictures=0, c2w=0, vertices=0, faces=0) == replace(
        clip, pictures=0, c2w=0, vertices=0, faces=0
    )


def test_a_killed_writer_leaves_whole_shards_and_the_next_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ENDLESS_WRITER, str(tmp_path)]
    writer = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while int(writer.stdout.readline()) < 4:  # two shards are whole by then, the third has begun
        pass
    writer.kill()
    writer.communicate()
    with ShardWriter(tmp_path, samples_per_shard=2) as following:
        kept = len(following.done)
        assert kept >= 4 and following.done == {f"clip-{index}" for index in range(kept)}
        clip = small_clip("another-0")
        following.write(clip.key, clip.entries() | pictures_of(clip, tmp_path))
    assert not list(tmp_path.glob("*.part"))
    assert check_shards(tmp_path) == kept + 1


def test_writers_at_the_same_time_keep_apart_and_know_of_each_other(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, prefix="clips0") as first, ShardWriter(tmp_path, prefix="clips1") as second:
        first.write("fox-0", {"json": b"{}"})
        second.write("horse-0", {"json": b"{}"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips0-000000.tar", "clips1-000000.tar"]
    assert ShardWriter(tmp_path).done == {"fox-0", "horse-0"}


def test_clips_can_be_read_in_any_order_from_where_they_begin(tmp_path: Path) -> None:
    clips = [small_clip("a" * (index + 1)) for index in range(5)]
    with ShardWriter(tmp_path / "shards", samples_per_shard=2) as writer:
        for clip in clips:
            writer.write(clip.key, clip.entries() | pictures_of(clip, tmp_path))
    index = ShardIndex(tmp_path / "shards")
    assert len(index) == 5
    for number in (4, 1, 2):
        np.testing.assert_array_equal(index.read(number).pictures, clips[number].pictures)
        assert index.read(number).key == clips[number].key


def test_shards_are_checked_clip_by_clip(tmp_path: Path) -> None:
    clip = small_clip("fox-0")
    opaque = replace(clip, pictures=np.maximum(clip.pictures, 1))
    empty = replace(clip, key="still-0", pictures=clip.pictures * 0)
    with ShardWriter(tmp_path / "shards", samples_per_shard=1) as writer:
        writer.write(opaque.key, opaque.entries() | pictures_of(opaque, tmp_path))
    assert check_shards(tmp_path / "shards") == 1
    with ShardWriter(tmp_path / "shards", prefix="more") as writer:
        writer.write(empty.key, empty.entries() | pictures_of(empty, tmp_path))
    with pytest.raises(UserError, match=r"still-0.*shows nothing"):
        check_shards(tmp_path / "shards")
    (tmp_path / "shards" / "more-000000.tar").unlink()
    (tmp_path / "shards" / "twice-000000.tar").write_bytes((tmp_path / "shards" / "clips-000000.tar").read_bytes())
    with pytest.raises(UserError, match=r"fox-0.*there twice"):
        check_shards(tmp_path / "shards")


def test_damaged_shards_are_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shards"):
        next(read_shards(tmp_path))
    (tmp_path / "clips-000000.tar").write_bytes(b"not a tar file" * 100)
    with pytest.raises(UserError, match="damaged"):
        next(read_shards(tmp_path))


def render_dataset(models: Path, shards: Path, *more: str) -> str:
    command = [sys.executable, str(ROOT / "tools" / "render_dataset.py"), "--", "--input", str(models)]
    options = ["--out", str(shards), "--size", "48", "--rigs", "2", "--appearance", "position", *more]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def save_moving_cube(path: Path, animated: bool = True) -> None:
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.ops.mesh.primitive_cube_add(size=1.0)
    cube = bpy.context.object
    if animated:
        for frame, height in ((1, 0.0), (25, 0.6), (49, 0.0)):
            cube.location.z = height
            cube.keyframe_insert("location", frame=frame)
        cube.animation_data.action.name = "HopsUp_again"
    bpy.ops.wm.save_as_mainfile(filepath=str(path))


def visible_share(clip: RenderedClip) -> float:
    """The share of the vertices, over all views and frames, that a camera sees on the object or a pixel beside it."""
    size = clip.pictures.shape[2]
    focal = 0.5 * size / np.tan(np.radians(clip.fovy) / 2)
    hits = []
    for view, c2w in enumerate(clip.c2w):
        local = (clip.vertices - c2w[:3, 3]) @ c2w[:3, :3]
        column, row = 0.5 * size - focal * local[..., :2].T / local[..., 2].T * np.array([1, -1])[:, None, None]
        for frame, alpha in enumerate(clip.pictures[view, ..., 3]):
            grown = np.pad(alpha > 0, 1)
            near = sum(grown[i : i + size, j : j + size] for i in range(3) for j in range(3)) > 0
            x, y = column[:, frame].astype(int), row[:, frame].astype(int)
            inside = (x >= 0) & (y >= 0) & (x < size) & (y < size)
            hits.append(near[y[inside], x[inside]])
    return float(np.concatenate(hits).mean())


def test_blender_renders_animated_files_and_leaves_out_what_must_not_be_trained_on(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for name in ("cube", "refused", "tagged"):
        save_moving_cube(models / f"{name}.blend")
    save_moving_cube(models / "still.blend", animated=False)
    (models / "refused.json").write_text(json.dumps({"caption": "a cube", "ai_training": False}))
    (models / "tagged.json").write_text(json.dumps({"tags": ["cube", "NoAI"]}))
    said = render_dataset(models, tmp_path / "shards", "--workers", "2")
    assert all(words in said for words in ("1 rendered", "2 not for AI training", "1 not animated", "2 clips checked"))
    first, second = read_shards(tmp_path / "shards")
    assert (first.key, second.key, first.caption) == ("cube-0", "cube-1", "hops up again")
    assert first.pictures.shape == (4, 16, 48, 48, 4)
    for clip in (first, second):
        place = clip.c2w[:, :3, 3] / np.linalg.norm(clip.c2w[:, :3, 3], axis=1, keepdims=True)
        elevation, azimuth = np.degrees(np.arcsin(place[:, 2])), np.degrees(np.arctan2(place[:, 1], place[:, 0]))
        assert np.ptp(elevation) < 1e-6 and 0.0 <= elevation[0] <= 30.0
        np.testing.assert_allclose(np.diff(azimuth) % 360.0, 90.0, atol=1e-6)
    assert not np.allclose(first.c2w, second.c2w)
    height = first.vertices[..., 2].mean(axis=1)
    assert height[0] == pytest.approx(0.0, abs=1e-6) and height.argmax() == 8  # frame 1 + 8 * 3 of the timeline
    assert visible_share(first) > 0.99 and visible_share(second) > 0.99
    assert "1 there already" in render_dataset(models, tmp_path / "shards")


@pytest.mark.skipif(not DEV.exists(), reason="needs ../shared/assets/dev")
def test_a_rendered_fox_is_where_the_true_one_is(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "fox.glb").write_bytes((DEV / "fox_run.glb").read_bytes())
    render_dataset(tmp_path / "models", tmp_path / "shards")
    clip = next(read_shards(tmp_path / "shards"))
    truth = np.load(DEV / "gt" / "fox_run.npz")["vertices"]
    to_subject = np.linalg.inv(subject_to_world(truth[0]))
    np.testing.assert_allclose(clip.vertices[0], transform_points(to_subject, truth[0]), atol=1e-4)
    assert visible_share(clip) > 0.97
    assert visible_share(replace(clip, vertices=clip.vertices[:, :, [1, 0, 2]])) < 0.9  # the check can fail
