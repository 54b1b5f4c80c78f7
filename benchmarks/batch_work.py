"""The prompts of the batch benchmark: mixed lengths, some with beginnings that they share and that lie scattered.

Pure. Words are of the tiny model's own vocabulary's making, so that lengths in words are about lengths in tokens.
"""

from __future__ import annotations

import random

import msgspec

WORDS = ("the", "of", "return", "self", "in", "is", "not", "for", "if", "name", "value", "and", "to", "a", "with", "as")


class Prompt(msgspec.Struct, frozen=True):
    text: str
    max_tokens: int


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """`groups` of prompts begin alike, each with `prefix_words` of its own; the others share nothing."""

    requests: int
    sharing: float  # part of the requests
    groups: int
    prefix_words: int


def prompts(shape: Shape, rng: random.Random) -> list[Prompt]:
    beginnings = [_words(shape.prefix_words, rng) for _ in range(shape.groups)]
    num_sharing = round(shape.requests * shape.sharing)
    made = [_prompt(beginnings[number % shape.groups], rng) for number in range(num_sharing)]
    made += [
        _prompt(_words(rng.randrange(20, shape.prefix_words), rng), rng) for _ in range(shape.requests - num_sharing)
    ]
    rng.shuffle(made)
    return made


def _prompt(beginning: str, rng: random.Random) -> Prompt:
    return Prompt(f"{beginning} {_words(rng.randrange(4, 60), rng)}", rng.randrange(4, 40))


def _words(num: int, rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=num))
