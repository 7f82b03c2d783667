"""The HTTP example under load: documents of known length, real processes, nothing lost, too long is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_longattn.errors import LongAttentionError
from scripts.dev.benchmarks import serving
from scripts.dev.benchmarks.serving import (
    CHUNK,
    TOKENIZER,
    WAYS,
    Setting,
    chunks,
    draw_words,
    embed,
    int8_markdown,
    load_markdown,
    one_token_words,
    run,
)


def test_documents_have_the_tokens_that_they_say() -> None:
    from transformers import AutoTokenizer

    tokenizer, vocabulary = AutoTokenizer.from_pretrained(TOKENIZER), one_token_words()
    words = draw_words(1500, vocabulary, 0)
    assert words == draw_words(1500, vocabulary, 0) != draw_words(1500, vocabulary, 1)
    assert len(tokenizer(" ".join(words))["input_ids"]) == 1502
    parts = chunks(words)
    assert [len(tokenizer(part)["input_ids"]) for part in parts] == [CHUNK, CHUNK, 1500 - 2 * 510 + 2]
    assert " ".join(parts).split() == words


def test_chunks_count_by_their_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "ask", lambda address, texts: (200, [[1.0, 0.0] if len(text) > 9 else [0.0, 1.0] for text in texts]))
    words = ["the"] * (CHUNK - 2) + ["a", "b"]
    first, second = embed("", words, chunked=True) or (0.0, 0.0)
    assert first / second == pytest.approx((CHUNK - 2) / 2)
    assert first**2 + second**2 == pytest.approx(1)
    monkeypatch.setattr(serving, "ask", lambda address, texts: (503, "busy"))
    assert embed("", words, chunked=True) is None


def test_the_stored_result_lost_nothing(repository: Path) -> None:
    file = repository / "scripts" / "dev" / "results" / "serving.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    assert file.with_suffix(".md").read_text(encoding="utf-8") == load_markdown(record) + "\n" + int8_markdown(record)
    for part in record["load"].values():
        assert all(row["lost"] == 0 and row["too_long"]["status"] == 413 for row in part["rows"])
        assert {row["length"] for row in part["rows"] if row["way"] == "window"} == set(serving.LENGTHS)


def test_a_server_that_does_not_start_is_told(tmp_path: Path) -> None:
    with pytest.raises(LongAttentionError, match="does not start"), serving.serving(tmp_path, "window", Setting(), 64):
        pass


@pytest.mark.slow
def test_a_small_encoder_from_end_to_end(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    setting = Setting(layers=1, width=32, heads=2, vocabulary=8192, window=32, longest=1024, clients=4, tokens=1024, full_up_to=512)
    stored: dict[str, object] = {}
    run(stored, setting, (512, 1024), WAYS, tmp_path / "work", tmp_path / "result.json")
    (part,) = json.loads((tmp_path / "result.json").read_text())["load"].values()
    assert [(row["way"], row["length"]) for row in part["rows"]] == [
        *((way, 512) for way in WAYS),
        *((way, 1024) for way in WAYS if way != "full"),
    ]
    for row in part["rows"]:
        assert (row["lost"], row["documents"], row["too_long"]["status"]) == (0, 8 if row["length"] == 512 else 4, 413)
        assert row["peak_mib"] >= row["idle_mib"] > 0
    assert part["checks"]["window"]["difference"] < 1e-4
    assert "lost their answer" in (tmp_path / "result.md").read_text()
    before = (tmp_path / "result.json").read_text()
    run(stored, setting, (512,), WAYS, tmp_path / "work", tmp_path / "result.json")
    assert (tmp_path / "result.json").read_text() == before
