"""RULER's other synthetic tasks (Hsieh et al. 2024, arXiv 2404.06654): variable tracking, common and frequent words.

Prompts, answer prefixes and the number of generated tokens are those of NVIDIA/RULER (scripts/data/synthetic, scripts/synthetic.yaml). The
words are ours (:mod:`.words`). At short lengths, outside RULER's range, the worked example of variable tracking takes at most half of the
length. RULER's questions about paragraphs (qa_1, qa_2) need data sets, SQuAD and HotpotQA, and are left out.
"""

from __future__ import annotations

import itertools
import math
import random
import string

from .needles import RULER
from .task import DISTRACTORS, NOISE, CountTokens, ProbeSample, TextTask, register_probe
from .words import WORDS, invented_words


@register_probe
class VariableTracking(TextTask):
    """One chain of assignments in noise, after a worked example. The question asks for all its variables."""

    name = "vt"
    paper = RULER
    summary = "all variables that a value was assigned to, through four steps, in noise"
    new_tokens = 30
    hops = 4
    smallest = 5
    example_tokens = 500

    def build(self, size: int, rng: random.Random, length: int, count: CountTokens, depth: float | None) -> ProbeSample:
        shown, noises = "", self.smallest
        seed, budget = rng.getrandbits(64), min(self.example_tokens, length // 2)
        while True:  # the longest worked example within its budget
            before, context, question, prefix, names = self.text(noises, 3, random.Random(seed))
            text = f"{before}{context}{question}{prefix} {' '.join(names)}\n"
            if shown and count(text) > budget:
                break
            shown, noises = text, noises + 1
            if count(text) > budget:
                break
        before, context, question, prefix, names = self.text(size, 5, rng)
        wrong = [name for name in (letters(5, rng) for _ in range(DISTRACTORS)) if name not in names]
        return ProbeSample(f"{shown}\n{before}", context, question, prefix, tuple(names), tuple(dict.fromkeys(wrong)), self.new_tokens)

    def text(self, noises: int, width: int, rng: random.Random) -> tuple[str, str, str, str, list[str]]:
        """(instruction, context, question, answer prefix, variables in the order of assignment), with names of ``width`` letters."""
        names: list[str] = []
        while len(names) <= self.hops:
            if (name := letters(width, rng)) not in names:
                names.append(name)
        value = str(rng.randrange(10_000, 99_999))
        chain = [f"VAR {names[0]} = {value}", *(f"VAR {after} = VAR {before} " for before, after in itertools.pairwise(names))]
        sentences = [NOISE] * noises
        for added, (place, step) in enumerate(zip(sorted(rng.sample(range(noises), len(chain))), chain, strict=True)):
            sentences.insert(place + added, step)
        return (
            "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n",
            "\n".join(sentences),
            f"\nQuestion: Find all variables that are assigned the value {value} in the text above.",
            f" Answer: According to the chain(s) of variable assignment in the text above, {len(names)} variables are assigned the value "
            f"{value}, they are: ",
            names,
        )


def letters(width: int, rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_uppercase, k=width))


@register_probe
class CommonWords(TextTask):
    """A numbered list in which ten words appear more often than all others, after a worked example."""

    name = "cwe"
    paper = RULER
    summary = "the ten most common words of a numbered list"
    new_tokens = 120
    common_words = 10
    smallest = 11

    def build(self, size: int, rng: random.Random, length: int, count: CountTokens, depth: float | None) -> ProbeSample:
        short = length < 4096
        example, shown = self.listed(*((20, 3, 1) if short else (40, 10, 3)), rng)
        words, answers = self.listed(size, *((6, 1) if short else (30, 3)), rng)
        before = (
            "Below is a numbered list of words. In these words, some appear more often than others. "
            "Memorize the ones that appear most often.\n"
        )
        question = "\nQuestion: What are the 10 most common words in the above list?"
        prefix = " Answer: The top 10 words that appear most often in the list are:"
        worked = f"{before}{numbered(example)}{question}{prefix} {numbered(shown)}"
        wrong, of_example = sorted(set(words) - set(answers)), sorted(set(example) - set(words))
        rng.shuffle(wrong)
        rng.shuffle(of_example)
        return ProbeSample(
            f"{worked}\n{before}",
            numbered(words),
            question,
            prefix,
            tuple(answers),
            tuple((wrong + of_example)[:DISTRACTORS]),  # a short list has few other words, the worked example has more
            self.new_tokens,
            lead=" 1.",
        )

    def listed(self, size: int, common: int, uncommon: int, rng: random.Random) -> tuple[list[str], list[str]]:
        """A shuffled list of ``size`` different words, and the words that appear ``common`` times; others appear ``uncommon`` times."""
        pool = list(WORDS) if size <= len(WORDS) else [*WORDS, *itertools.islice(invented_words(), size - len(WORDS))]
        words = rng.sample(pool, size)
        chosen, rest = words[: self.common_words], words[self.common_words :]
        listed = chosen * common + rest * uncommon
        rng.shuffle(listed)
        return listed, chosen


def numbered(words: list[str]) -> str:
    return " ".join(f"{place}. {word}" for place, word in enumerate(words, 1))


@register_probe
class FrequentWords(TextTask):
    """Coded words with frequencies of a zeta distribution. The most frequent word is noise; the answers are the next three."""

    name = "fwe"
    paper = RULER
    summary = "the three most frequent coded words, whose frequencies follow a zeta distribution"
    new_tokens = 50
    smallest = 100  # below it the third and the fourth appear equally often
    width = 6

    def build(self, size: int, rng: random.Random, length: int, count: CountTokens, depth: float | None) -> ProbeSample:
        vocab: list[str] = []
        while len(vocab) < max(5, (length - self.new_tokens) // 50):
            if (word := "".join(rng.choices(string.ascii_lowercase, k=self.width))) not in vocab:
                vocab.append(word)
        vocab[0] = "..."
        counts = [int(size / rank**2 * 6 / math.pi**2) for rank in range(1, len(vocab) + 1)]  # the zeta distribution of alpha 2
        words = [word for word, times in zip(vocab, counts, strict=True) for _ in range(times)]
        rng.shuffle(words)
        wrong = tuple(word for word, times in zip(vocab[4:], counts[4:], strict=True) if times)
        return ProbeSample(
            "Read the following coded text and track the frequency of each coded word. "
            "Find the three most frequently appeared coded words. ",
            " ".join(words),
            "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. "
            "What are the three most frequently appeared words in the above coded text?",
            " Answer: According to the coded text above, the three most frequently appeared words are:",
            tuple(vocab[1:4]),
            wrong[:DISTRACTORS],
            self.new_tokens,
        )
