"""The procedural data set: motions, captions, shapes, pictures."""

import numpy as np
import pytest

from backend.prompts import understand
from backend.protocol import POSITION_CODE_RANGE, SUBJECT_RADIUS, condition_cameras, position_code
from backend.training.captions import UNKNOWN, build_tokenizer, caption, motion_words
from backend.training.clips import make_clip, render_clip, shuffled_code
from backend.training.motions import MOTIONS, TIMINGS, animate
from backend.training.render import render
from backend.training.shapes import random_object


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_motion_starts_and_ends_at_rest(motion: str) -> None:
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (50, 3))
    move = MOTIONS[motion].move
    np.testing.assert_allclose(move(points, 0.0, 1.0), points, atol=1e-12)
    np.testing.assert_allclose(move(points, 1.0, 1.0), points, atol=1e-12)


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_stronger_motion_moves_further(motion: str) -> None:
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (50, 3))
    reach = [np.abs(animate(motion, points, 16, strength) - points).max() for strength in (0.6, 1.0, 1.4)]
    assert 0.05 < reach[0] < reach[1] < reach[2] or motion == "spin"  # which is a whole turn anyway


def test_bounce_only_lifts_and_sway_keeps_its_foot() -> None:
    points = np.array([[0.1, 0.2, -0.5], [0.0, 0.1, 0.0], [0.0, 0.0, 0.5]])
    lifted = animate("bounce", points, 16, 1.0) - points
    assert np.ptp(lifted, axis=1).max() < 1e-12 and lifted[..., 2].min() >= 0.0 and lifted[..., 2].max() > 0.2
    swayed = animate("sway", points, 16, 1.0) - points
    assert np.abs(swayed[:, 0]).max() < 1e-12 and np.abs(swayed[:, 2, 1]).max() > 0.2


def test_both_sides_flap_alike_and_walk_in_turn() -> None:
    points = np.array([[0.0, 0.4, 0.0], [0.0, -0.4, 0.0], [0.0, 0.2, -0.5], [0.0, -0.2, -0.5], [0.0, 0.0, 0.5]])
    flapped = animate("flap", points, 16, 1.0) - points
    np.testing.assert_allclose(flapped[:, 0, 2], flapped[:, 1, 2], atol=1e-12)
    assert np.ptp(flapped[:, 0, 2]) > 0.2
    walked = animate("walk", points, 16, 1.0) - points
    np.testing.assert_allclose(walked[:, 2, 0], -walked[:, 3, 0], atol=1e-12)
    assert np.ptp(walked[:, 2, 0]) > 0.2 and np.abs(walked[:, 4]).max() < 1e-12


def test_a_jump_crouches_on_the_ground_and_a_lid_opens_upwards() -> None:
    points = np.array([[0.3, 0.2, -0.5], [-0.3, 0.2, -0.5], [0.3, 0.0, 0.5], [-0.3, 0.0, 0.5]])
    jumped = animate("jump", points, 16, 1.0) - points
    assert jumped[2, 2, 2] < -0.1 and abs(jumped[2, 0, 2]) < 1e-12  # the head comes down, the foot stays
    assert jumped[8, :, 2].min() > 0.3
    opened = animate("open", points, 16, 1.0) - points
    assert opened[8, 2, 2] > 0.2 and np.abs(opened[:, :2]).max() < 1e-12


def test_a_motion_may_run_twice_or_once_and_then_rest() -> None:
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (50, 3))
    loop, quick, once = (animate("sway", points, 16, 1.0, timing) for timing in TIMINGS)
    np.testing.assert_allclose(quick[:8], loop[::2], atol=1e-12)
    np.testing.assert_allclose(quick[8:], loop[::2], atol=1e-12)
    np.testing.assert_allclose(once[:8], loop[::2], atol=1e-12)
    np.testing.assert_allclose(once[8:], np.broadcast_to(points, (8, 50, 3)), atol=1e-12)


def test_every_caption_names_its_motion() -> None:
    rng = np.random.default_rng(0)
    for motion, names in motion_words().items():
        for unseen in (False, True):
            for _ in range(30):
                assert not understand(caption(motion, 1.0, rng, unseen=unseen), {motion: names}).notice


def test_paraphrases_for_measuring_are_new_but_of_known_words() -> None:
    words = set(build_tokenizer().get_vocab())
    for motion in MOTIONS.values():
        assert motion.unseen and not set(motion.unseen) & {*motion.verbs, *motion.gerunds}
        assert set(" ".join(motion.unseen).split()) <= words


def test_the_tokenizer_knows_all_verbs_and_survives_unknown_nouns() -> None:
    tokenizer = build_tokenizer()
    known = tokenizer("a cactus is swaying gently").input_ids
    unknown = tokenizer("A Zygomorph is SWAYING gently").input_ids
    assert tokenizer.unk_token_id not in known
    assert unknown[2] == tokenizer.convert_tokens_to_ids(UNKNOWN) and unknown[3:] == known[3:]


def test_a_seed_names_a_clip() -> None:
    first, second = make_clip(3, 4), make_clip(3, 4)
    assert first.caption == second.caption
    np.testing.assert_array_equal(first.trajectories, second.trajectories)
    np.testing.assert_array_equal(render_clip(first, 16), render_clip(second, 16))
    assert make_clip(4, 4).caption != first.caption


def test_objects_fit_subject_space() -> None:
    for seed in range(20):
        vertices, faces = random_object(np.random.default_rng(seed))
        low, high = vertices.min(axis=0), vertices.max(axis=0)
        np.testing.assert_allclose(low, -high, atol=1e-9)
        assert np.linalg.norm(high) == pytest.approx(SUBJECT_RADIUS)
        assert faces.min() >= 0 and faces.max() < len(vertices)


def test_a_picture_shows_each_point_in_the_colour_of_its_place() -> None:
    half = 0.4
    square = np.array([[half, -half, -half], [half, half, -half], [half, half, half], [half, -half, half]])
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    colors = position_code(square, square.min(axis=0), square.max(axis=0))
    picture = render(square, faces, colors, condition_cameras()[0], 64)  # the front camera looks along -x
    row, column = picture[32], picture[:, 32]
    across, down = row[row[:, 3] == 1.0, 1], column[column[:, 3] == 1.0, 2]
    low, high = POSITION_CODE_RANGE
    assert np.all(np.diff(across) > 0) and np.all(np.diff(down) < 0)  # camera right is +y, up is +z
    assert [across[0], across[-1], down[-1], down[0]] == pytest.approx([low, high, low, high], abs=0.04)
    assert picture[0, 0].max() == 0.0


def test_shuffled_colours_vary_smoothly_but_say_nothing_about_the_place() -> None:
    rest = make_clip(5, 4).rest
    code = position_code(rest, rest.min(axis=0), rest.max(axis=0))
    shuffled = [shuffled_code(rest, np.random.default_rng(seed)) for seed in range(40)]
    alike = [[np.corrcoef(code[:, k], colors[:, k])[0, 1] for k in range(3)] for colors in shuffled]
    assert abs(np.mean(alike)) < 0.2 and np.std(alike) > 0.3
    low, high = POSITION_CODE_RANGE
    assert all(low <= colors.min() and colors.max() <= high for colors in shuffled)
    neighbours = np.linalg.norm(rest - rest[:1], axis=1) < 0.05
    assert all(np.ptp(colors[neighbours], axis=0).max() < 0.4 for colors in shuffled)


def test_a_hidden_surface_is_not_seen() -> None:
    square = np.array([[0, -0.4, -0.4], [0, 0.4, -0.4], [0, 0.4, 0.4], [0, -0.4, 0.4]])
    ahead = np.array([0.3, 0.0, 0.0])
    both = np.concatenate([square + ahead, square - ahead])
    faces = np.array([[4, 5, 6], [4, 6, 7], [0, 1, 2], [0, 2, 3]])
    colors = np.repeat([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], 4, axis=0)
    picture = render(both, faces, colors, condition_cameras()[0], 32)
    assert picture[16, 16] == pytest.approx([1.0, 0.0, 0.0, 1.0])
