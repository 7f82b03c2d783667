"""The script that finds servers which cut texts off, and the page that shows it."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from tests.examples.embedding_server import serving_embeddings
from tests.fresh_processes import run_fresh

EXAMPLE = Path(__file__).parents[2] / "examples" / "server_reach.py"
READS: dict[str, tuple[int | None, int | None, str]] = {
    "everything": (0, None, "It reads every word tried.\n"),
    "the beginning": (0, 512, "The server does not read words 575, 639, 703, 767, 831, 895, 959, 1023 of 1024.\n"),
    "the end": (-512, None, "The server does not read words 0, 63, 127, 191, 255, 319, 383, 447, 511 of 1024.\n"),
}


@pytest.mark.parametrize(("reads", "route"), [*zip(READS, ("/embed", "/v1/embeddings", "/api/embed"), strict=True)])
def test_server_reach_names_words_that_a_server_does_not_read(reads: str, route: str) -> None:
    first, last, sentence = READS[reads]
    with serving_embeddings(lambda text: [1.0, float(zlib.crc32(" ".join(text.split()[first:last]).encode()))]) as address:
        done = run_fresh(EXAMPLE, address + route, 1024, "small")
    assert (done.stdout, done.returncode) == (sentence, int(reads != "everything")), done.stderr


def test_page_on_server_reach_shows_the_script(repository: Path) -> None:
    assert f"```python\n{EXAMPLE.read_text()}```" in (repository / "docs" / "how-to" / "server_reach.md").read_text()
