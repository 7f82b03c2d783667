"""Write pairs that show how far embeddings see: LongEmbed's passkey and needle tasks (Zhu et al. 2024, arXiv 2404.12096).

    python scripts/prepare_longembed.py passkey 4096 passkey.jsonl
    longattn evaluate embed --model minilm-4096 --data passkey.jsonl

Fifty documents differ by one fact each, at a random depth of the same filler; fifty queries ask for them. Chance is 2 %.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from hf_longattn.conversion import verification_text
from hf_longattn.errors import LongAttentionError
from hf_longattn.evaluation.probes.task import NOISE
from hf_longattn.evaluation.probes.words import ADJECTIVES, NOUNS
from hf_longattn.staging import check_new_file, staged_file

COUNT = 50
TASKS = ("passkey", "needle")
LEAST = 64
"""Minimum tokens of a document."""
TOKEN = re.compile(r"\s*(?:\w+|[^\w\s])")


def pairs(task: str, length: int) -> Iterator[dict[str, str]]:
    """The pairs of a task, always the same: anchor and positive.

    Args:
        length: words and signs of a document.
    """
    rng = random.Random(f"{task}:{length}")
    pieces = TOKEN.findall(f"{NOISE} " if task == "passkey" else verification_text(None)[0])
    for anchor, fact in facts(task, rng):
        room = length - len(TOKEN.findall(fact))
        first = rng.randrange(len(pieces))
        around = [pieces[(first + number) % len(pieces)] for number in range(room)]
        depth = rng.randint(0, room)
        yield {"anchor": anchor, "positive": f"{''.join(around[:depth])} {fact}{''.join(around[depth:])}".strip()}


def facts(task: str, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Queries and the sentences that answer them."""
    names = rng.sample([f"{adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS], 2 * COUNT)
    for name, other in zip(names[:COUNT], names[COUNT:], strict=True):
        if task == "passkey":
            key = rng.randint(10_000, 99_999)
            yield f"What is the pass key for the {name}?", f"The pass key for the {name} is {key}. Remember it."
        else:
            price = rng.randint(20, 900)
            yield f"To whom was the {name} sold?", f"After long years, the {name} went to the owner of the {other} for {price} pounds."


def main(arguments: list[str] | None = None) -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("length", type=int, help=f"tokens of a document, words and signs, {LEAST} at least")
    parser.add_argument("output", type=Path, help="the .jsonl file to write, which must not exist")
    options = parser.parse_args(arguments)
    if options.length < LEAST:
        parser.error(f"a document must have at least {LEAST} tokens, not {options.length}")
    try:
        check_new_file(options.output)
        with staged_file(options.output, overwrite=False) as stage, stage.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(pair) + "\n" for pair in pairs(options.task, options.length))
    except (LongAttentionError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
