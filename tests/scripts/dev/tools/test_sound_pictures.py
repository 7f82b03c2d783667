"""What is drawn of a mechanism on the frames of a sound is what its definition says, worked out here by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from scripts.dev.tools.sound_pictures import FILE, FRAMES, LAYERS, QUERY, SEEN, STRIPS, THROUGH, Strip, draw, seen, spectrogram

RULES: dict[str, Callable[[int], bool]] = {
    "full": lambda frame: True,
    "window left=8 right=8": lambda frame: abs(frame - QUERY) <= 8,
    "window left=12 right=2": lambda frame: QUERY - 12 <= frame <= QUERY + 2,
    "window left=12 right=0": lambda frame: QUERY - 12 <= frame <= QUERY,
    "chunked chunk_size=8 left_chunks=1": lambda frame: frame // 8 in (QUERY // 8 - 1, QUERY // 8),
    "longformer window=16 global_tokens=0": lambda frame: abs(frame - QUERY) <= 8 or frame == 0,
    "segmented block_size=8 integration=previous": lambda frame: abs(frame // 8 - QUERY // 8) <= 1,
}
FURTHEST = {
    "window left=8 right=8": (QUERY - 8 * LAYERS, QUERY + 8 * LAYERS),
    "window left=12 right=2": (0, QUERY + 2 * LAYERS),
    "window left=12 right=0": (0, QUERY),
    "chunked chunk_size=8 left_chunks=1": (8 * (QUERY // 8 - LAYERS), 8 * (QUERY // 8) + 7),
}
BY_TITLE = {strip.title: strip for strip in STRIPS}


@pytest.mark.parametrize("title", RULES)
def test_a_strip_shows_what_the_definition_says(title: str) -> None:
    assert (seen(BY_TITLE[title]) == SEEN).tolist() == [RULES[title](frame) for frame in range(FRAMES)]


@pytest.mark.parametrize("title", FURTHEST)
def test_windows_add_up_over_layers_and_chunks_do_not_look_ahead(title: str) -> None:
    reached = (seen(BY_TITLE[title]) >= THROUGH).nonzero().flatten().tolist()
    assert (reached[0], reached[-1]) == (max(0, FURTHEST[title][0]), FURTHEST[title][1])


def test_the_spectrogram_is_that_of_the_frames() -> None:
    assert spectrogram().shape[1] == FRAMES


def test_the_stored_drawing_has_every_strip_and_is_drawn_alike_each_time(repository: Path, tmp_path: Path) -> None:
    stored = (repository / "docs" / "pictures" / FILE).read_text(encoding="utf-8")
    for strip in STRIPS:
        assert isinstance(strip, Strip)
        assert strip.title in stored, f"{strip.title} is not drawn; type: make docs"
    for name in ("a.svg", "b.svg"):
        draw(tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert len(stored) < 150_000
