"""What people may write about a motion, and the small word tokenizer that reads it.

Nouns are drawn from a list or made up, so that a noun the model has never seen does no harm: an unknown word is
one token, `<unk>`, that training shows in the place of nouns all the time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from backend.training.motions import MOTIONS

MAX_TOKENS = 20
PAD, UNKNOWN, START, END = "<pad>", "<unk>", "<start>", "<end>"
# Verbs that say nothing alone: the whole phrase names the motion.
VAGUE = frozenset("takes taking turns turning moves moving grows growing leans leaning bends bending beats".split())

STRENGTHS: dict[float, tuple[str, ...]] = {  # strength of the motion: the words for it
    0.6: ("gently", "slightly", "softly", "a little"),
    1.0: ("",),
    1.4: ("wildly", "strongly", "a lot", "hard"),
}
STRENGTH_SHARES = (0.2, 0.6, 0.2)
TIMING_WORDS: dict[str, tuple[str, ...]] = {  # how the motion runs over the clip: the words for it
    "loop": ("",),
    "quick": ("quickly", "fast"),
    "once": ("once", "one time"),
}
TIMING_SHARES = (0.84, 0.08, 0.08)

NOUNS = tuple(
    "cactus monkey robot chest fox cat dog bird fish tree flower lamp chair table cup bottle toy teapot snowman "
    "mushroom box ball tower house car truck plane ship rocket dragon dinosaur snake shark whale horse cow pig "
    "rabbit bear lion elephant giraffe turtle frog duck chicken penguin owl butterfly bee spider man woman child "
    "knight wizard ghost alien monster skeleton pumpkin apple banana carrot cake candle bell drum guitar clock book "
    "hat boot sword shield crown barrel bucket jelly blob slime plant statue head character figure object thing".split()
)
ADJECTIVES = "little big small red green blue old cute wooden golden heavy funny".split()


def caption(motion: str, strength: float, rng: np.random.Generator, timing: str = "loop", unseen: bool = False) -> str:
    """One way to say that something performs a motion: "a little cactus is swaying gently".

    `unseen` takes the paraphrases that are kept out of training.
    """
    words = MOTIONS[motion]
    subject = _noun_phrase(rng)
    form = rng.integers(4)
    if unseen:
        said = f"{subject} {rng.choice(words.unseen)}"
    elif form == 0:
        said = f"{subject} is {rng.choice(words.gerunds)}"
    elif form == 1:
        said = f"{subject} {rng.choice(words.gerunds)}"
    else:
        said = f"{subject} {rng.choice(words.verbs)}"
    manner = (str(rng.choice(STRENGTHS[strength])), str(rng.choice(TIMING_WORDS[timing])))
    return " ".join(word for word in (said, *manner) if word)


def _noun_phrase(rng: np.random.Generator) -> str:
    article = rng.choice(["a", "the", "an", "this", "my", ""], p=[0.5, 0.3, 0.05, 0.05, 0.05, 0.05])
    adjective = rng.choice(ADJECTIVES) if rng.random() < 0.2 else _made_up(rng) if rng.random() < 0.1 else ""
    noun = _made_up(rng) if rng.random() < 0.4 else rng.choice(NOUNS)
    return " ".join(word for word in (article, adjective, noun) if word)


def _made_up(rng: np.random.Generator) -> str:
    """A word that is in no vocabulary."""
    return "q" + "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 6))


def build_tokenizer(captions: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """Whole lower-case words, those of further `captions` too; the ids of `<start>` and `<end>` frame every text."""
    words: set[str] = set(NOUNS) | set(ADJECTIVES) | {"a", "the", "an", "this", "my", "is"}
    for motion in MOTIONS.values():
        for phrase in (*motion.verbs, *motion.gerunds):
            words |= set(phrase.split())
    for phrases in (*STRENGTHS.values(), *TIMING_WORDS.values()):
        for phrase in phrases:
            words |= set(phrase.split())
    for text in captions:
        words |= set(re.findall(r"\w+", text.lower()))
    vocabulary = {word: index for index, word in enumerate([PAD, UNKNOWN, START, END, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, vocabulary[START]), (END, vocabulary[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=START,
        eos_token=END,
        model_max_length=MAX_TOKENS,
    )


def motion_words() -> dict[str, list[str]]:
    """For each motion the verbs, or phrases, that name it: what a prompt is checked against, and a user is told."""

    def name(phrase: str) -> str:
        first = phrase.split()[0]
        return phrase if first in VAGUE else first

    said = {motion: [*words.verbs, *words.gerunds] for motion, words in MOTIONS.items()}
    return {motion: list(dict.fromkeys(name(phrase) for phrase in phrases)) for motion, phrases in said.items()}
