"""Which words of a long text change an embedding? A server that cuts texts off without a word leaves the late ones
out.

python server_reach.py http://localhost:8080/v1/embeddings 1024 MODEL     # of 1,024 words; a key is read from
SERVER_KEY
"""

import json
import os
import random
import sys
import urllib.request
from collections.abc import Callable, Sequence

# one token each, in most vocabularies
WORDS = ["tree", "file", "node", "path", "line", "value", "name", "house", "river", "stone"]


def embedding(url: str, text: str, model: str = "") -> list[float]:
    # text-embeddings-inference's; OpenAI's and Ollama's
    field = "inputs" if url.endswith("/embed") and "/api/" not in url else "input"
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('SERVER_KEY', '')}"}
    request = urllib.request.Request(url, json.dumps({field: text, "model": model}).encode(), headers)
    answer = json.load(urllib.request.urlopen(request, timeout=60))
    rows = (
        answer
        if isinstance(answer, list)
        else answer.get("embeddings") or [row["embedding"] for row in answer["data"]]
    )
    return rows[0]


def unread(embed: Callable[[str], Sequence[float]], length: int) -> list[int]:
    """The places, of 17 in a text of `length` words, where another word does not change what `embed(text)` returns."""
    words = random.Random(0).choices(WORDS, k=length)
    before = embed(" ".join(words))

    def change(place: int | None = None) -> float:
        changed = list(words)
        if place is not None:
            changed[place] = WORDS[WORDS.index(words[place]) - 1]
        return max(abs(old - new) for old, new in zip(before, embed(" ".join(changed)), strict=True))

    noise = change()  # of the same text once more
    places = [number * (length - 1) // 16 for number in range(17)]
    return [place for place in places if change(place) <= 4 * noise]


if __name__ == "__main__":
    url, length, *model = sys.argv[1:]
    places = unread(lambda text: embedding(url, text, *model), int(length))
    print(
        f"The server does not read words {', '.join(map(str, places))} of {length}."
        if places
        else "It reads every word tried."
    )
    sys.exit(bool(places))
