"""Write pairs that show how far embeddings see: LongEmbed's passkey and needle tasks (Zhu et al. 2024, arXiv
2404.12096).

    python scripts/prepare_longembed.py passkey 4096 passkey.jsonl
    longattn evaluate embed --model minilm-4096 --data passkey.jsonl

Fifty documents differ by one fact each, at a random depth of the same filler; fifty queries ask for them. Chance is 2
%.
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
from hf_longattn.files import check_new_file, staged_file

COUNT = 50
TASKS = ("passkey", "needle")
LEAST = 64
"""Minimum tokens of a document."""
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NOUN_LIST = """
anchor apricot avenue badge bakery balcony banjo barrel basket beacon bicycle blanket blossom bottle branch bridge
bucket butter cabin cactus camera candle canyon carpet castle cathedral cellar chalk cheese cherry chimney circus cliff
clock cloud cobbler coconut comet compass copper cottage cradle crystal cushion dagger daisy desert diamond dolphin
donkey drawer drum eagle elbow emerald engine envelope falcon feather fence ferry fiddle flute forest fountain furnace
galaxy garden garlic giraffe glacier goblet gravel guitar hammer harbor hazel helmet hermit honey hotel iceberg island
ivory jacket jaguar jungle kayak kettle kitchen kite ladder lantern lemon library lighthouse lizard lobster locket
magnet mailbox mango maple marble meadow melon mirror mitten monkey mosaic mountain mushroom napkin nectar needle
notebook oak oasis octopus olive onion orchard orchid otter oyster paddle palace panther parade parrot pebble pelican
pencil pepper piano pigeon pillow pirate planet plaza pocket pony prairie pumpkin puzzle quarry quilt rabbit raccoon
radish railway rainbow raven ribbon river robin rocket saddle sailor salmon sandal sapphire satchel scarf school
scooter shadow shelter shovel silver skillet sofa sparrow spiral squirrel stable statue summit sunset swan tablet
teapot temple thimble thunder tiger timber tomato tower tractor trumpet tulip tunnel turnip turtle umbrella valley vase
velvet village violin volcano wagon walnut walrus whistle willow window wizard yacht zebra zipper
"""

ADJECTIVE_LIST = """
absent amber ample ancient angry awake awkward bitter blunt bold bouncy brave brief bright brisk busy calm careful
cheap cheerful chilly clever clumsy cosy crisp curious dainty damp daring decent dizzy dreary dusty eager early elegant
empty faint famous fancy fierce flat fluffy fond fragile frank fresh frosty funny gentle giant gleaming gloomy glossy
graceful grand greedy grumpy handy happy harsh hasty heavy hollow honest hungry idle jolly joyful juicy keen kind large
lazy little lively lonely lovely loyal lucky mellow merry mighty mild modest muddy narrow neat nervous nimble noble
noisy odd patient polite proud purple quick quiet quirky rapid rare rough royal rusty salty scarce shiny shy silent
silly sleepy slim smooth solid sour spicy steep sticky strange sturdy subtle sunny swift tame tender tidy tiny tough
tricky vague vast vivid warm weary wild wise witty wooden young zealous
"""
NOUNS, ADJECTIVES = NOUN_LIST.split(), ADJECTIVE_LIST.split()

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
            yield (
                f"To whom was the {name} sold?",
                f"After long years, the {name} went to the owner of the {other} for {price} pounds.",
            )


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
        with staged_file(options.output) as stage, stage.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(pair) + "\n" for pair in pairs(options.task, options.length))
    except (LongAttentionError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
