"""Questions whose names are exchanged, excerpts of pages, intervals, and the archive for a GPU."""

from __future__ import annotations

import ast
import tarfile
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_longattn.files import read_json_object, write_json
from scripts.dev.real import WEIGHTS
from scripts.dev.studies import joint_reading
from scripts.dev.studies.joint_reading import excerpts, exchanged, interval, stored_pages
from scripts.dev.studies.reference_pages import FAR, Page, entries_of, program
from tests.trained import tokenizer_of

SOURCE = '''
class Shelf(list):
    """Holds all the books that one reader owns. It may be empty."""

class Novel(Shelf):
    """Anything that was made up by somebody."""

    def lend(self, reader: "Reader", days: int = 3) -> Shelf:
        """Give it away for some days."""

class Poem(Novel):
    """Short lines that sometimes rhyme at their ends."""
'''


@pytest.fixture
def page() -> Page:
    made = Page("library.books")
    for entry in entries_of(ast.parse(SOURCE)):
        made.add(entry)
    return made


def test_names_of_a_page_are_exchanged_only_with_a_class_far_away(page: Page) -> None:
    tokenizer = tokenizer_of("bert")
    assert exchanged([page], tokenizer, 5) == []  # too near
    long = Page("library.books")
    for entry in entries_of(ast.parse(SOURCE)):
        long.add(entry)
        long.text += "\nA line that says nothing." * 60
    (record,) = exchanged([long], tokenizer, 5)
    assert record["places"] == "names exchanged"
    assert record["context"] != long.text
    assert record["distance"] >= FAR
    assert [program(record)] == record["answers"]["text"]


def test_pages_of_another_machine_give_the_same_excerpts(page: Page, tmp_path: Path) -> None:
    write_json(tmp_path / "pages.json", [asdict(page)] * 3)
    stored = excerpts(stored_pages(tmp_path), (20, 200))
    assert stored == excerpts([page] * 3, (20, 200))
    assert len({record["id"] for record in stored}) == len(stored) > 5


@pytest.mark.slow
def test_prepared_archive_has_all_that_a_gpu_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint_reading, "PACKAGES", {"train": "jedi", "validation": "accelerate", "test": "tornado"})
    here, there, result = tmp_path / "here" / "joint", tmp_path / "there", tmp_path / "result"
    assert joint_reading.main(["--work", str(here), "--quick", "--prepare"]) == 0
    with tarfile.open(f"{here}.tar.xz") as archive:
        archive.extractall(there, filter="data")
    assert load_file(there / "joint" / "minilm" / WEIGHTS)["embeddings.word_embeddings.weight"].dtype == torch.float16

    def missing(*_: object) -> None:
        raise AssertionError("only the archive is there")

    for name in ("real_checkpoint", "pages_of", "Nearest"):
        monkeypatch.setattr(joint_reading, name, missing)
    monkeypatch.setattr(joint_reading, "ROUNDS", {"cuda": 2})
    few = "--tokens-per-batch 1024 --max-steps 2 --max-train-samples 40 --max-eval-samples 4 --dataloader-num-workers 2 --save-strategy no"
    monkeypatch.setattr(joint_reading, "GPU", f"{few} --include-num-input-tokens-seen true")
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_, **__: self)  # there is no GPU
    arguments = ["--work", str(there / "joint"), "--device", "cuda", "--output", str(result), "--minutes", "2"]
    assert joint_reading.main([*arguments, "--arms", "windows", "--budget", "20"]) == 0  # no time for any
    assert list(read_json_object(result.with_suffix(".json"))["table"]) == ["random", "lexical", "program"]
    assert joint_reading.main([*arguments, "--arms", "long"]) == 0
    record = read_json_object(result.with_suffix(".json"))
    assert list(record["table"]) == ["random", "lexical", "program", "long"]
    assert set(record["trained"]) == {"first", "second", "reader", "long", "long-0"}
    assert all(steps == 2 and tokens > 100 for steps, tokens in record["trained"].values())
    assert record["commit"]


def test_interval_is_wider_if_pages_differ_than_if_questions_of_a_page_do() -> None:
    between = interval({f"page {page}": [float(page % 2)] * 4 for page in range(20)})
    within = interval({f"page {page}": [0.0, 1.0, 0.0, 1.0] for page in range(20)})
    assert between[0] == within[0] == 50.0
    assert between[2] - between[1] > 20
    assert within[2] - within[1] == 0
