"""The pages that a newcomer follows, followed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from tests.hub_state import WRITER, Hub
from tests.pages import blocks, follow, matches
from tests.trained import tokenizer_of

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def short_bert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a small BERT under the name of a known one."""
    monkeypatch.chdir(tmp_path)
    tokenizer = tokenizer_of("bert", 512)
    torch.manual_seed(0)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip
    model.save_pretrained("google-bert/bert-base-uncased")
    tokenizer.save_pretrained("google-bert/bert-base-uncased")


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a … c", "a b\nb c", True),
        ("a …", "a b", True),
        ("a b", "a\n b", True),
        ("a c", "a b c", False),
        ("a … d", "a b c", False),
        ("…b", "ab", True),
    ],
)
def test_what_a_page_shows_is_compared(shown: str, printed: str, same: bool) -> None:
    assert matches(shown, printed) is same


@pytest.fixture
def account(server: Hub) -> Hub:
    """A Hub on which the reader's account has the name that pages use."""
    server.users[WRITER] = ("my-name", "write")
    return server


def test_the_readme_works(short_bert: None, account: Hub) -> None:
    quickstart = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    questions = next(content for _, content, file in blocks(quickstart) if file)
    Path("questions.jsonl").write_text(questions * 10, encoding="utf-8")  # of which a tenth is held out
    names = follow(ROOT / "README.md", {})
    assert names["hidden_states"].shape[1] == names["model"].config.max_position_embeddings == 4096
    assert "my-name/bert-4096-qa" in account.repos


def test_the_quickstart_works(short_bert: None, account: Hub) -> None:
    names = follow(ROOT / "docs" / "quickstart.md", {})
    assert names["states"].shape[1] > 1200
    assert "my-name/bert-4096-qa" in account.repos
