"""Names on the Hub with subsets; a folder with a card of subsets stands for a repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_longattn.training.data import DataError, load_or_refuse

CARD = """---
configs:
- config_name: first
  data_files: first.jsonl
- config_name: second.part
  data_files: second.jsonl
---
"""


@pytest.fixture
def repository(tmp_path: Path) -> str:
    (tmp_path / "README.md").write_text(CARD)
    for name in ("first", "second"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name}"}}\n')
    return str(tmp_path)


def test_a_subset_is_named_after_a_colon(repository: str) -> None:
    assert load_or_refuse(f"{repository}:second.part", "")["train"]["text"] == ["second"]


@pytest.mark.parametrize(
    ("subset", "sentence"),
    [
        ("", "has the subsets first, second.part; name one, for example .*:first$"),
        (":secondpart", "has the subsets first, second.part, not 'secondpart'. Did you mean 'second.part'"),
    ],
)
def test_a_missing_or_wrong_subset_is_told_with_those_that_there_are(repository: str, subset: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        load_or_refuse(repository + subset, "")
