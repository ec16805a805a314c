"""Does a model know the motion that a prompt asks for?

The small models know a handful, by the verbs that they were taught.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from backend.protocol import UserError


def check_motion(prompt: str, motions: Mapping[str, Sequence[str]]) -> str:
    """The prompt with its verb as the model was taught it: "make it bounce" becomes "make it bounces".

    Args:
        motions: for each motion the words that name it, the commonest first; empty for a model that takes any prompt.

    Raises:
        UserError: none of these words is in the prompt.
    """
    if not motions:
        return prompt
    taught = [word for words in motions.values() for word in words]
    words = re.findall(r"\w+", prompt.lower())
    if any(word in taught for word in words):
        return prompt
    for word in words:
        found = next((form for form in _forms(word) if form in taught), None)
        if found is not None:
            return re.sub(rf"\b{re.escape(word)}\b", found, prompt, count=1, flags=re.IGNORECASE)
    known = ", ".join(words[0] for words in motions.values())
    raise UserError(
        f"These weights do not know the motion that you ask for; what they know is: {known}.",
        f'Use one of these words, for example "it {next(iter(motions.values()))[0]}".',
    )


def _forms(word: str) -> list[str]:
    """How a verb said in its base form may look in a sentence about somebody."""
    return [f"{word}s", f"{word}es", f"{word}ing", f"{word[:-1]}ing", f"{word}{word[-1]}ing"]
