"""Does a model know the motion that a prompt asks for?

The small models know a handful, by the verbs and phrases that they were taught.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence

from backend.protocol import UserError


def check_motion(prompt: str, motions: Mapping[str, Sequence[str]]) -> str:
    """The prompt with its verb as the model was taught it: "make it bounce" becomes "make it bounces".

    Args:
        motions: for each motion the words or phrases that name it, the commonest first; empty for a model that takes
            any prompt.

    Raises:
        UserError: none of them is in the prompt.
    """
    if not motions:
        return prompt
    taught = [phrase for phrases in motions.values() for phrase in phrases]
    if any(_says(prompt, phrase) for phrase in taught):
        return prompt
    words = re.findall(r"\w+", prompt.lower())
    for word in words:
        for form in _forms(word):
            changed = re.sub(rf"\b{re.escape(word)}\b", form, prompt, count=1, flags=re.IGNORECASE)
            if any(_says(changed, phrase) for phrase in taught):
                return changed
    known = ", ".join(phrases[0] for phrases in motions.values())
    raise UserError(
        f"These weights do not know the motion that you ask for; what they know is: {known}.",
        f'Use one of these words, for example "it {_nearest(words, taught) or taught[0]}".',
    )


def _says(prompt: str, phrase: str) -> bool:
    return re.search(rf"\b{re.escape(phrase)}\b", prompt, re.IGNORECASE) is not None


def _forms(word: str) -> Iterator[str]:
    """How a verb said in its base form may look in a sentence about somebody."""
    yield from (f"{word}s", f"{word}es", f"{word}ing", f"{word[:-1]}ing", f"{word}{word[-1]}ing")


def _nearest(words: Sequence[str], taught: Sequence[str]) -> str | None:
    """What was taught and looks most like a word of the prompt: a slip of the pen."""
    for word in words:
        if len(word) > 3 and (found := difflib.get_close_matches(word, taught, n=1, cutoff=0.75)):
            return found[0]
    return None
