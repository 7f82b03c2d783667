"""The contract of the reference corpus and of its tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from hf_longattn.errors import LongAttentionError
from scripts.dev.studies import corpus
from scripts.dev.studies.corpus import iter_modules, split_of
from tests.byte_tokenizer import SPECIAL_TOKENS, train_tokenizer


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


def test_the_copy_in_a_held_out_split_wins(packages: Path) -> None:
    assert paths("train") == ["alpha/own.py"]
    assert paths("validation") == ["beta/own.py"]
    assert paths("test") == ["gamma/own.py", "gamma/shared.py"]


def test_an_unknown_split_is_named(packages: Path) -> None:
    with pytest.raises(LongAttentionError, match="unknown split 'dev'"):
        list(iter_modules("dev"))


def test_line_ends_and_encodings(packages: Path) -> None:
    (packages / "alpha" / "own.py").write_bytes(b"# windows\r\n" * 40)
    (packages / "alpha" / "latin.py").write_bytes(b"# caf\xe9\n" * 40)
    assert [module.text for module in iter_modules("train")] == ["# windows\n" * 40]


def test_the_real_split_is_fixed() -> None:
    assert [split_of(name) for name in ("torch", "asyncio", "numpy", "huggingface_hub", "networkx", "pandas")] == [
        "train", "train", "validation", "validation", "test", "test",
    ]  # fmt: skip
    assert "hf_longattn" not in corpus.PACKAGES


def test_installed_test_package() -> None:
    modules = [module for module in iter_modules("test") if module.package == "networkx"]
    assert len(modules) > 100
    assert all(module.package == "networkx" and module.path.startswith("networkx/") for module in modules)
    assert [module.path for module in modules] == sorted((m.path for m in modules), key=lambda p: (p.rsplit("/", 1)[0], p))


def test_tokenizer_round_trip(tmp_path: Path) -> None:
    train_tokenizer(["def function(argument):\n    return argument\n"] * 20, vocab_size=300).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    question, document = "name the function", "def function(ünïcode):\n\treturn 1"
    encoded = tokenizer(question, document, return_offsets_mapping=True)
    ids, types = encoded["input_ids"], encoded["token_type_ids"]
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3, 4]
    assert [ids[0], ids[-1]] == [2, 3]
    assert ids.count(3) == 2
    assert types == sorted(types)
    assert types[ids.index(3)] == 0
    assert types[ids.index(3) + 1] == 1
    assert tokenizer.decode(tokenizer(document, add_special_tokens=False)["input_ids"]) == document
    offsets = encoded["offset_mapping"]
    start = next(i for i in range(len(ids)) if types[i] == 1 and offsets[i][0] == 4)
    assert document[offsets[start][0]] == "f"
    assert tokenizer.model_max_length == 512


def test_tokenizer_needs_room_for_all_bytes() -> None:
    with pytest.raises(LongAttentionError, match="at least 261"):
        train_tokenizer(["text"], vocab_size=260)
