"""The contract of the reference corpus and of its tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.dev.studies import corpus
from scripts.dev.studies.corpus import iter_modules, split_of


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small installation: ``alpha`` in train, ``beta`` in validation, ``gamma`` in test; one file is in all three."""
    for name in ("alpha", "beta", "gamma"):
        folder = tmp_path / name
        (folder / "_vendor").mkdir(parents=True)
        (folder / "own.py").write_text(f"# {name}\n" + "def own():\n    return 1\n" * 20)
        (folder / "shared.py").write_text("def shared():\n    return 'everywhere'\n" * 20)
        (folder / "_vendor" / "copy.py").write_text("def copied():\n    return 'vendored'\n" * 20)
        (folder / "table.py").write_text("T = [" + "123456, " * 100 + "]\n")
        (folder / "tiny.py").write_text("x = 1\n")
    monkeypatch.setattr(corpus, "PACKAGES", ("alpha", "beta", "gamma"))
    monkeypatch.setattr(corpus, "STANDARD_LIBRARY", frozenset())
    monkeypatch.setattr(corpus, "VALIDATION_PACKAGES", frozenset({"beta"}))
    monkeypatch.setattr(corpus, "TEST_PACKAGES", frozenset({"gamma"}))
    monkeypatch.setattr(corpus, "_locate", lambda name: tmp_path / name if (tmp_path / name).exists() else None)
    corpus._held_out_digests.cache_clear()
    yield tmp_path
    corpus._held_out_digests.cache_clear()


def paths(split: str) -> list[str]:
    return [module.path for module in iter_modules(split)]


def test_corpus_keeps_a_copied_file_in_the_held_out_split(packages: Path) -> None:
    assert paths("train") == ["alpha/own.py"]
    assert paths("validation") == ["beta/own.py"]
    assert paths("test") == ["gamma/own.py", "gamma/shared.py"]


def test_split_of_the_reference_corpus_is_fixed() -> None:
    assert [split_of(name) for name in ("torch", "asyncio", "numpy", "huggingface_hub", "networkx", "pandas")] == [
        "train", "train", "validation", "validation", "test", "test",
    ]  # fmt: skip
    assert "hf_longattn" not in corpus.PACKAGES
