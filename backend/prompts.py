"""Which motion of a model does a prompt ask for?

The small models know a handful, by the verbs and phrases that they were taught. Any other sentence is led to the
nearest of those, and says so. Standard library alone: the interface asks before any backend runs.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

# What people ask for that no small model knows, and the motions that look most like it, the nearest first.
RELATED: tuple[tuple[tuple[str, ...], str], ...] = (
    (("walk", "bounce"), "walk run march trot jog sprint gallop stroll strut stomp step limp sneak race dash climb"),
    (("jump", "bounce"), "jump leap spring vault launch skip pounce kick"),
    (("bounce", "jump"), "bounce hop bob dribble drop fall land float hover levitate rise"),
    (("sway", "rock"), "sway swing lean bend dance groove drift wobble stagger blow"),
    (("twist", "sway"), "twist turn spin rotate twirl whirl roll revolve swivel pirouette screw curl coil look"),
    (("stretch", "swell"), "stretch squash squeeze extend elongate reach lengthen compress deform melt sprout flex"),
    (("nod", "rock"), "nod bow kneel peck greet agree pray sleep duck crouch sit drink"),
    (("rock", "sway"), "rock tip tilt topple teeter tumble seesaw balance"),
    (("swell", "stretch"), "swell breathe inflate grow shrink pulse pulsate beat throb expand puff explode burst sigh"),
    (("shake", "sway"), "shake tremble shiver vibrate quiver shudder rattle jitter buzz sneeze cough laugh clap"),
    (("wave", "sway"), "wave ripple undulate flow surge flicker burn billow"),
    (("swim", "wave", "sway"), "swim slither wriggle wiggle wag squirm dive crawl snake"),
    (("flap", "wave", "bounce"), "flap flutter fly soar glide flit"),
    (("open", "nod"), "open close shut bite chew yawn snap talk speak sing roar bark eat howl scream shout bloom"),
)
MILD = ("sway", "bounce")  # what everything can do, for sentences that nothing can be made of


@dataclass(frozen=True)
class Understood:
    """A prompt as its model gets it."""

    prompt: str
    notice: str = ""  # a sentence for the user where the model does not know what was asked for


def understand(prompt: str, motions: Mapping[str, Sequence[str]]) -> Understood:
    """The prompt with its verb as the model was taught it: "make it bounce" becomes "make it bounces".

    What the model does not know becomes the nearest motion that it knows, with a notice.

    Args:
        motions: for each motion the words or phrases that name it, the commonest first; empty for a model that takes
            any prompt.
    """
    taught = [phrase for phrases in motions.values() for phrase in phrases]
    if not taught or any(_says(prompt, phrase) for phrase in taught):
        return Understood(prompt)
    words = re.findall(r"\w+", prompt.lower())
    for word in words:
        for form in _forms(word):
            changed = _replaced(prompt, word, form)
            if any(_says(changed, phrase) for phrase in taught):
                return Understood(changed)
    return _nearest(prompt, words, motions, taught)


def _nearest(
    prompt: str, words: Sequence[str], motions: Mapping[str, Sequence[str]], taught: Sequence[str]
) -> Understood:
    """By what looks alike, else by a slip of the pen, else a mild motion."""
    for word in sorted(words, key=lambda word: not word.endswith(("s", "ing", "ed"))):  # verbs before nouns
        phrase = _related(word, motions) or _meant(word, taught)
        if phrase:
            notice = f"This model does not know “{word}”: the nearest that it knows is “{phrase}”."
            return Understood(_replaced(prompt, word, phrase), notice)
    motion = next((name for name in MILD if motions.get(name)), next(name for name, said in motions.items() if said))
    phrase = motions[motion][0]
    notice = f"This model knows no motion in this sentence, and takes the nearest to none: “{phrase}”."
    return Understood(f"it {phrase}", notice)


def known(motions: Mapping[str, Sequence[str]]) -> str:
    """What a model knows, as a sentence."""
    return "It knows: " + ", ".join(phrases[0] for phrases in motions.values() if phrases) + "."


def _related(word: str, motions: Mapping[str, Sequence[str]]) -> str:
    """The phrase of the motion that looks most like what a verb says, in the same form; empty where none is known."""
    stems = _stems(word)
    for nearest, verbs in RELATED:
        if stems.isdisjoint(verbs.split()):
            continue
        phrases = next((motions[name] for name in (*nearest, *MILD) if motions.get(name)), ())
        ing = [phrase for phrase in phrases if phrase.endswith("ing")] if word.endswith("ing") else []
        if phrases:
            return (ing or phrases)[0]
    return ""


def _meant(word: str, taught: Sequence[str]) -> str:
    """What was taught and differs from a word by a slip of the pen; empty where nothing does."""
    alike = [phrase for phrase in taught if phrase[0] == word[0] and len(word) > 3]
    return next(iter(difflib.get_close_matches(word, alike, n=1, cutoff=0.8)), "")


def _says(prompt: str, phrase: str) -> bool:
    return re.search(rf"\b{re.escape(phrase)}\b", prompt, re.IGNORECASE) is not None


def _replaced(prompt: str, word: str, by: str) -> str:
    return re.sub(rf"\b{re.escape(word)}\b", lambda _: by, prompt, count=1, flags=re.IGNORECASE)


def _forms(word: str) -> Iterator[str]:
    """How a verb said in its base form may look in a sentence about somebody."""
    yield from (f"{word}s", f"{word}es", f"{word}ing", f"{word[:-1]}ing", f"{word}{word[-1]}ing")


def _stems(word: str) -> set[str]:
    """What the base form of a verb may be."""
    stems = {word}
    for ending in ("s", "es", "ed", "d", "ing"):
        if word.endswith(ending):
            stem = word.removesuffix(ending)
            stems |= {stem, f"{stem}e", stem[:-1] if stem[-1:] == stem[-2:-1] else stem}
    if word.endswith("ies"):
        stems.add(word[:-3] + "y")
    return stems
