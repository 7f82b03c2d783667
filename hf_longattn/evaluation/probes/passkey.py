"""Passkey retrieval, by depth and length (Mohtashami & Jaggi 2023, Landmark Attention, arXiv 2305.16300, section 4.2 and appendix)."""

from __future__ import annotations

import random

from .ruler import DISTRACTORS, NOISE
from .task import CountTokens, ProbeSample, TextTask, register_probe


class Passkey(TextTask):
    """A number in repeated sentences, cut off after any character, as in the paper's code."""

    name = "passkey"
    paper = "Mohtashami & Jaggi 2023, Landmark Attention"
    summary = "a number in repeated sentences"
    placed = True
    smallest = 0
    new_tokens = 10

    def build(self, size: int, rng: random.Random, length: int, count: CountTokens, depth: float | None) -> ProbeSample:
        garbage = " ".join([NOISE] * (size // len(NOISE) + 1))
        before = rng.randint(0, size) if depth is None else round(depth * size)
        key = str(rng.randint(1, 50_000))
        least, most = (10 ** (len(key) - 1), min(10 ** len(key) - 1, 50_000))  # as many digits, so about as many tokens
        wrong = dict.fromkeys(str(rng.randint(least, most)) for _ in range(DISTRACTORS))  # in the order in which they are drawn
        wrong.pop(key, None)
        return ProbeSample(
            "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
            "I will quiz you about the important information there.\n",
            f"{garbage[:before]}\nThe pass key is {key}. Remember it. {key} is the pass key.\n{garbage[: size - before]}",
            "\nWhat is the pass key?",
            " The pass key is",
            (key,),
            tuple(wrong),
            self.new_tokens,
            depth=before / size if size else 0.0,
            first_number=True,
        )


register_probe(Passkey())
