"""The part of the demo that reads a real checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers

from scripts.dev.studies.real_checkpoint import ROUNDS, Comparison, compare_short_texts, summary, time_long_text, tokens_of
from tests.stock_cases import save_long
from tests.trained import tokenizer_of


@pytest.mark.slow
def test_comparison_of_short_texts_tells_equal_vectors_from_others(real_folder: Path, real_long: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    original, converted = (sentence_transformers.SentenceTransformer(str(folder), device="cpu") for folder in (real_folder, real_long))
    same, *_ = compare_short_texts(original, converted, [16])
    assert same.equal
    assert (same.tokens, same.cosine) == (16, pytest.approx(1))
    converted[0].auto_model.embeddings.word_embeddings.weight.data.mul_(2)
    assert not compare_short_texts(original, converted, [16])[0].equal


@pytest.mark.parametrize(
    ("equal", "sentence"),
    [
        ({16: True, 512: True}, "All are equal: an index of texts of up to 512 tokens stays valid."),
        (
            {16: True, 512: False},
            "Equal up to 16 tokens. From 512 tokens on, vectors differ slightly: embed such texts again if an index has them.",
        ),
        ({16: False, 512: False}, "From 16 tokens on, vectors differ slightly: embed such texts again if an index has them."),
    ],
)
def test_summary_says_up_to_which_length_vectors_are_equal(equal: dict[int, bool], sentence: str) -> None:
    assert summary([Comparison(tokens, 1.0, 0.0 if same else 0.1) for tokens, same in equal.items()]) == sentence


def test_timed_full_attention_is_that_of_the_original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_long(tmp_path, "bert", {"mechanism": "window", "window": 8}, "BertModel", vocab_size=1000)
    tokenizer_of("bert").save_pretrained(tmp_path)

    ran: list[str] = []

    def recorded(self: Any, *args: Any, **inputs: Any) -> Any:
        ran.append(self.config._attn_implementation)
        return forward(self, *args, **inputs)

    forward = transformers.BertModel.forward
    monkeypatch.setattr(transformers.BertModel, "forward", recorded)
    assert all(seconds > 0 for seconds in time_long_text(tmp_path, 32))
    assert ran.count("sdpa") == ROUNDS
    assert tokens_of(transformers.AutoTokenizer.from_pretrained(tmp_path), 32)["input_ids"].shape == (1, 32)
