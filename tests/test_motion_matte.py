"""Keying of generated frames on grey."""

import numpy as np

from backend.motion.matte import key_matte


def scene(noise: float) -> tuple[np.ndarray, np.ndarray]:
    """A disc that moves to the right on grey; frames [4, 5, 48, 48, 3] uint8 and the true alpha."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:48, :48]
    alpha = np.stack([np.clip(12.5 - np.hypot(x - 18 - 2 * k, y - 24), 0, 1) for k in range(5)])
    colour = np.stack([0.8 + 0 * x, 0.2 + x / 200, 0.1 + y / 100], axis=-1)
    frames = alpha[..., None] * colour + (1 - alpha[..., None]) * 0.5 + noise * rng.standard_normal((5, 48, 48, 3))
    frames[3, 2, 2] = 1.0  # a speck
    frames[2, 22:24, 22:24] = 0.5  # a grey spot inside
    return np.repeat(np.round(255 * frames.clip(0, 1)).astype(np.uint8)[None], 4, axis=0), alpha


def test_the_key_finds_a_moving_disc() -> None:
    frames, alpha = scene(noise=0.015)
    matte = key_matte(frames, np.repeat(alpha[None, 0], 4, axis=0))
    assert matte.shape == (4, 5, 48, 48) and matte.dtype == np.float32
    np.testing.assert_allclose(matte[:, 0], np.repeat(alpha[None, 0], 4, axis=0), atol=1e-6)
    wrong = ((matte > 0.5) != (alpha > 0.5)[None]).mean(axis=(2, 3))
    assert wrong.max() < 0.02
    assert matte[:, 3, 2, 2].max() == 0.0  # the speck
    assert matte[:, 2, 22:24, 22:24].min() == 1.0  # the hole


def test_frames_with_alpha_keep_it() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8, 4), dtype=np.uint8)
    np.testing.assert_allclose(key_matte(frames, np.zeros((4, 8, 8))), frames[..., 3] / np.float32(255))


def test_an_object_as_grey_as_its_background_does_not_fail() -> None:
    frames = np.full((4, 3, 16, 16, 3), 128, np.uint8)
    matte = key_matte(frames, np.ones((4, 16, 16), np.float32))
    assert np.isfinite(matte).all() and matte[:, 0].min() == 1.0
