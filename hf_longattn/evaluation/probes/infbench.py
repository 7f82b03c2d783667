"""∞Bench's calculations (Zhang et al. 2024, arXiv 2402.13718, sections 3.2.2 and 3.2.3): numbers in a list, sums, calls of functions.

Ranges and forms are those of OpenBMB/InfiniteBench (construct_synthetic_dataset.py), prompts those for models that are not tuned to chat,
generated tokens those of its tables (prompt.py, eval_utils.py). Its retrieval tasks are in :mod:`.needles`.
"""

from __future__ import annotations

import random

from .needles import INFBENCH
from .task import DISTRACTORS, CountTokens, ProbeSample, TextTask, register_probe

LARGEST = 99
"""Maximum of a number or intermediate value. The minimum is 0."""
RANKS = {
    "largest": -1, "second largest": -2, "third largest": -3, "smallest": 0, "second smallest": 1, "third smallest": 2, "median": None,
}  # fmt: skip
"""Number that is asked for -> its place among the different numbers in ascending order."""


@register_probe
class MathFind(TextTask):
    """A list of numbers from 0 to 99, and a question about one of :data:`RANKS`.

    The list's greatest or smallest number is drawn, too, from a fifth of the range. A list with a median has an odd length, so that the
    median is one of its numbers.
    """

    name = "infbench_math_find"
    paper = INFBENCH
    summary = "the first, second or third largest or smallest number of a list, or its median"
    smallest = 9
    new_tokens = 3

    def build(self, size: int, rng: random.Random, length: int, count: CountTokens, depth: float | None) -> ProbeSample:
        name, rank = rng.choice(list(RANKS.items()))
        cuts_top = "largest" in name or (rank is None and rng.random() <= 0.5)
        low, high = (0, rng.randint(LARGEST * 4 // 5, LARGEST)) if cuts_top else (rng.randint(0, LARGEST // 5), LARGEST)
        numbers: list[int] = []
        while len(set(numbers)) < 4:  # more than are asked for
            numbers = [rng.randint(low, high) for _ in range(size - (rank is None and size % 2 == 0))]
        answer = sorted(numbers)[len(numbers) // 2] if rank is None else sorted(set(numbers))[rank]
        others = sorted({*numbers} - {answer})
        wrong = rng.sample(others, min(len(others), DISTRACTORS))
        return ProbeSample(
            f"What is the {name} number in the following list?\n\n",
            str(numbers),
            f"\n\nYou should answer with only one number, no other words. The {name} number of the list is:",
            "",
            (str(answer),),
            tuple(map(str, wrong)),
            self.new_tokens,
            score="first_value",
        )


@register_probe
class MathCalc(TextTask):
    """A sum of many numbers, and all its intermediate values, which stay between 0 and 99."""

    name = "infbench_math_calc"
    paper = INFBENCH
    summary = "all intermediate values of a long sum"
    smallest = 3
    modes = ("generate",)

    def build(self, size: int, rng: random.Random, length: int, count: CountTokens, depth: float | None) -> ProbeSample:
        values = [rng.randint(0, LARGEST)]
        terms = [str(values[0])]
        for _ in range(size - 1):
            number, adds = rng.randint(0, LARGEST), rng.random() > 0.5
            room = LARGEST - values[-1] if adds else values[-1]
            number = number if number <= room else rng.randint(0, room)
            terms.append(f"{'+' if adds else '-'} {number}")
            values.append(values[-1] + number if adds else values[-1] - number)
        return ProbeSample(
            "Let us calculate the intermediate values of an expression.\n\nExpression: 1 + 3 + 4\nValues: [1, 4, 8]\n\n"
            "Expression: 8 - 3 + 2 - 4\nValues: [8, 5, 7, 3]\n\nExpression: ",
            " ".join(terms),
            "\nValues:",
            "",
            (str(values),),
            (),
            count(f" {values}"),
            score="leading_values",
        )


@register_probe
class CodeRun(TextTask):
    """Functions that call one another, two to ten deep, and add to the result; what a call returns."""

    name = "infbench_code_run"
    paper = INFBENCH
    summary = "what a Python function returns that calls others, two to ten deep"
    smallest = 10
    new_tokens = 5
    modes = ("generate", "likelihood")

    def build(self, size: int, rng: random.Random, length: int, count: CountTokens, depth: float | None) -> ProbeSample:
        levels = rng.choice((2, 4, 6, 8, 10))
        names = rng.sample(range(1, 2 * size + 1), size)
        called = {name: rng.choice(names[level + 1 :: levels]) for level in range(levels - 1) for name in names[level::levels]}
        added = {name: rng.randint(-12, 17) for name in names}
        lines = []
        for name in sorted(names):
            result, sign = f"func_{called[name]}(x)" if name in called else "x", "+" if added[name] > 0 else "-"
            lines.append(f"def func_{name}(x):\n    return {result}{f' {sign} {abs(added[name])}' if added[name] else ''}\n")
        name, x = rng.choice(names[::levels]), rng.randint(-10, 10)
        answer, at = x + added[name], name
        while at in called:
            at = called[at]
            answer += added[at]
        wrong = rng.sample([answer + step for step in range(-12, 18) if step], 29)  # one step more
        return ProbeSample(
            f"There is a function called func_{name} in the following Python code.\n\n",
            "\n".join(lines),
            f"\n\n\nPlease compute the exact value of func_{name}({x}).",
            f" The value of func_{name}({x}) is",
            (str(answer),),
            tuple(map(str, wrong)),
            self.new_tokens,
            score="last_word",
        )
