"""The sentences that were asked for, newest first, kept from one session to the next. No bpy in it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from .shared import protocol

FILE = "prompts.json"
MOST = 50


def history(home: Path) -> list[str]:
    try:
        kept = protocol.read_json(home / FILE).get("prompts")
    except protocol.UserError:
        return []
    return [text for text in kept if isinstance(text, str)] if isinstance(kept, list) else []


def remember(home: Path, prompt: str) -> None:
    """Puts a sentence at the top of the history."""
    others = [text for text in history(home) if text != prompt]
    with contextlib.suppress(OSError):  # a history is no reason to fail
        protocol.write_json(home / FILE, {"prompts": [prompt, *others][:MOST]})
