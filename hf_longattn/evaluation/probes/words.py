"""Words for the texts of probes.

RULER draws nouns, adjectives and verbs from the package wonderwords; these are ours, of the same kinds. None is part of another, so that a
match of strings is a match of words.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

_NOUNS = """
anchor apricot avenue badge bakery balcony banjo barrel basket beacon bicycle blanket blossom bottle branch bridge bucket butter
cabin cactus camera candle canyon carpet castle cathedral cellar chalk cheese cherry chimney circus cliff clock cloud cobbler
coconut comet compass copper cottage cradle crystal cushion dagger daisy desert diamond dolphin donkey drawer drum eagle elbow
emerald engine envelope falcon feather fence ferry fiddle flute forest fountain furnace galaxy garden garlic giraffe glacier goblet
gravel guitar hammer harbor hazel helmet hermit honey hotel iceberg island ivory jacket jaguar jungle kayak kettle kitchen kite
ladder lantern lemon library lighthouse lizard lobster locket magnet mailbox mango maple marble meadow melon mirror mitten monkey
mosaic mountain mushroom napkin nectar needle notebook oak oasis octopus olive onion orchard orchid otter oyster paddle palace
panther parade parrot pebble pelican pencil pepper piano pigeon pillow pirate planet plaza pocket pony prairie pumpkin puzzle quarry
quilt rabbit raccoon radish railway rainbow raven ribbon river robin rocket saddle sailor salmon sandal sapphire satchel scarf
school scooter shadow shelter shovel silver skillet sofa sparrow spiral squirrel stable statue summit sunset swan tablet teapot
temple thimble thunder tiger timber tomato tower tractor trumpet tulip tunnel turnip turtle umbrella valley vase velvet village
violin volcano wagon walnut walrus whistle willow window wizard yacht zebra zipper
"""

_ADJECTIVES = """
absent amber ample ancient angry awake awkward bitter blunt bold bouncy brave brief bright brisk busy calm careful cheap cheerful
chilly clever clumsy cosy crisp curious dainty damp daring decent dizzy dreary dusty eager early elegant empty faint famous fancy
fierce flat fluffy fond fragile frank fresh frosty funny gentle giant gleaming gloomy glossy graceful grand greedy grumpy handy
happy harsh hasty heavy hollow honest hungry idle jolly joyful juicy keen kind large lazy little lively lonely lovely loyal lucky
mellow merry mighty mild modest muddy narrow neat nervous nimble noble noisy odd patient polite proud purple quick quiet quirky
rapid rare rough royal rusty salty scarce shiny shy silent silly sleepy slim smooth solid sour spicy steep sticky strange sturdy
subtle sunny swift tame tender tidy tiny tough tricky vague vast vivid warm weary wild wise witty wooden young zealous
"""

_VERBS = """
accept admire advise agree announce answer applaud arrive assist attend balance bathe behave believe borrow bounce breathe build
calculate carve chase choose climb collect compare confess consider cook count crawl dance decide deliver describe discover divide
doubt dream educate enjoy escape examine explain explore fasten fetch flee follow forgive gather giggle grasp greet guess harvest
hesitate hover hurry identify imagine improve invent invite juggle jump knit knock laugh launch learn listen lower manage measure
melt mention multiply murmur nod notice obey observe offer organise paint pardon perform persuade plant polish practise praise
prepare promise protect pursue question realise receive recognise refuse rehearse remember repair replace rescue return scatter
scrub search select shiver shout sketch sneeze soothe sprinkle squeeze stretch suggest surprise swallow tease thank throw translate
travel tremble unite vanish visit wander whisper wonder wrestle yawn yell
"""

NOUNS, ADJECTIVES, VERBS = (tuple(words.split()) for words in (_NOUNS, _ADJECTIVES, _VERBS))
WORDS = tuple(sorted(NOUNS + ADJECTIVES + VERBS))


def invented_words() -> Iterator[str]:
    """Further words of four syllables, for lists longer than :data:`WORDS`; always the same, and none is part of another."""
    syllables = ["".join(pair) for pair in itertools.product("bdfgklmnprstvz", "aeiou")]
    for number in range(len(syllables) ** 4):
        place, word = number * 1_000_003 % len(syllables) ** 4, ""  # a step without a common divisor visits every word once
        for _ in range(4):
            place, here = divmod(place, len(syllables))
            word += syllables[here]
        if not any(known in word for known in WORDS):
            yield word
