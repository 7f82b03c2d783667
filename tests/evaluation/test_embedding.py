"""`longattn embed`: vectors are those of `encode` and of late chunking; stopped runs and several processes write the
same files."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import GPT2Config, GPT2Model

from hf_longattn import Embedder
from hf_longattn.errors import LongAttentionError
from hf_longattn.evaluation import embedding, late_chunking
from hf_longattn.evaluation.embedding import embed_documents, read_documents
from hf_longattn.evaluation.late_chunking import late_chunks, read_tokens
from hf_longattn.files import locked, read_json, write_json
from hf_longattn.loading import load_sentence_model
from tests.cases import every_case
from tests.cli.test_commands import run
from tests.pages import ROOT
from tests.ranks import free_port
from tests.saved import change_json
from tests.trained import REAL_TEXT, tokenizer_of
from tests.training.conftest import write_rows

st = pytest.importorskip("sentence_transformers")
SENTENCES = [line for line in REAL_TEXT.splitlines() if len(line.split()) > 5]
MODULES = [
    {"name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
LENGTHS = (3, 40, 1, 8, 2, 30, 5, 1, 12, 60, 4, 2, 7)


@pytest.fixture
def data(tmp_path: Path) -> str:
    rows = [{"name": f"d{number}", "text": "\n".join(SENTENCES[:count])} for number, count in enumerate(LENGTHS)]
    return write_rows(rows, tmp_path / "documents.jsonl")


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "FILE", 2)
    monkeypatch.setattr(embedding, "ROWS", 50)


def read(folder: Path) -> list[dict[str, Any]]:
    return pa.concat_tables([pq.read_table(file) for file in sorted(folder.glob("*.parquet"))]).to_pylist()


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*"))}


@pytest.mark.thorough
@pytest.mark.parametrize("vectors", ["document", "passages:20", "parts:3", "tokens"])
def test_embed_vectors_are_those_of_encode_and_late_chunks(
    vectors: str, folder: str, data: str, small_files: None, tmp_path: Path
) -> None:
    made = embed_documents(folder, data, tmp_path / "out", vectors=vectors, id_column="name")
    rows = read(tmp_path / "out")
    assert made == {"documents": len(LENGTHS), "vectors": len(rows)}
    encoder = st.SentenceTransformer(folder, device="cpu")
    model, tokenizer = encoder.transformers_model, encoder.tokenizer
    texts = [json.loads(line)["text"] for line in Path(data).read_text().splitlines()]
    for number, text in enumerate(texts):
        found = [row for row in rows if row["id"] == f"d{number}"]
        vector = torch.tensor([row["vector"] for row in found])
        assert [row["part"] for row in found] == list(range(len(found)))
        if vectors == "document":
            torch.testing.assert_close(vector, torch.from_numpy(encoder.encode_document([text])))
            ((first, last),) = {(row["start"], row["end"]) for row in found}
            whole, part = (
                len(tokenizer(f"about {shown}", verbose=False)["input_ids"]) for shown in (text, text[:last])
            )
            assert (first, part) == (0, min(whole, 512))
            assert (last == len(text)) == (whole <= 512)
            continue
        assert "".join(text[row["start"] : row["end"]] for row in found) == text
        starts = read_tokens(tokenizer, text, "about ").starts.tolist()
        size = {"passages:20": 20, "parts:3": -(-len(starts) // 3), "tokens": 1}[vectors]
        spans = [*pairwise([0, *starts[size::size], len(text)])]
        assert [(row["start"], row["end"]) for row in found] == spans
        (chunks,) = late_chunks(model, tokenizer, [text], [spans], prefix="about ", max_length=512)
        torch.testing.assert_close(vector, chunks)
        assert len(found) <= 3 or vectors != "parts:3"


@pytest.mark.parametrize("vectors", ["tokens", "parts:4"])
def test_embed_with_a_multi_vector_model_gives_the_vectors_of_encode(
    vectors: str, folder: str, data: str, tmp_path: Path
) -> None:
    load_sentence_model(st.MultiVectorEncoder, folder).save(str(tmp_path / "many"))
    encoder = st.MultiVectorEncoder(str(tmp_path / "many"), device="cpu")
    lines = Path(data).read_text().splitlines(keepends=True)
    short = [line for line, count in zip(lines, LENGTHS, strict=True) if count < 10]
    for task, encode, used in (("document", encoder.encode_document, lines), ("query", encoder.encode_query, short)):
        (tmp_path / "used.jsonl").write_text("".join(used))
        embed_documents(
            str(tmp_path / "many"), str(tmp_path / "used.jsonl"), tmp_path / task, vectors=vectors, task=task
        )
        rows = read(tmp_path / task)
        for number, line in enumerate(used):
            expected = encode([json.loads(line)["text"]])[0]
            if vectors == "parts:4":
                parts = expected.split(-(-len(expected) // 4))
                expected = torch.nn.functional.normalize(torch.stack([part.mean(0) for part in parts]), dim=-1)
            found = torch.tensor([row["vector"] for row in rows if row["id"] == str(number)])
            torch.testing.assert_close(found, expected)
    with pytest.raises(LongAttentionError, match="gives a vector for every token; give --vectors tokens"):
        embed_documents(str(tmp_path / "many"), data, tmp_path / "out")


def test_processes_share_the_files(
    folder: str, data: str, small_files: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_documents(folder, data, tmp_path / "whole", vectors="passages:20")
    for count in (2, 3):
        for index in range(count):
            state = SimpleNamespace(process_index=index, num_processes=count, is_main_process=index == 0, device="cpu")
            here = SimpleNamespace(**vars(state), wait_for_everyone=lambda: None)
            monkeypatch.setattr(embedding, "PartialState", lambda here=here, **_: here)
            embed_documents(folder, data, tmp_path / f"by {count}", vectors="passages:20")
        assert files(tmp_path / f"by {count}") == files(tmp_path / "whole")


class Killed(BaseException):
    pass


def embed_or_stop(steps: int, *arguments: Any, **options: Any) -> int:
    """Embed, and kill the run after ``steps`` texts. Returns the number of texts that were embedded."""
    embed_text, count = Embedder._of_text, 0

    def counted(self: Embedder, network: Any, text: str) -> Iterator[Any]:
        nonlocal count
        if count == steps:
            raise Killed
        count += 1
        return embed_text(self, network, text)

    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        patch.setattr(Embedder, "_of_text", counted)
        embed_documents(*arguments, **options)
    return count


@every_case("stopped, vectors", [(7, "tokens"), (10**6, "passages:20")])
def test_embed_again_keeps_only_vectors_of_the_same_text(
    stopped: int, vectors: str, folder: str, data: str, small_files: None, tmp_path: Path
) -> None:
    """After a kill in any file, or a complete run; each time another kill interrupts the update."""
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding, "ROWS", 7)  # documents cross the groups of rows
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        before = embed_or_stop(stopped, folder, write_rows(rows, Path(data)), tmp_path / "out", vectors=vectors)
        for number in (1, 6, 7, 12):
            rows[number]["text"] = f"corrected, {rows[number]['text']}"
        rows[3]["text"], rows[4]["text"] = rows[4]["text"], rows[3]["text"]
        write_rows(rows, Path(data))
        computed = embed_or_stop(3, folder, data, tmp_path / "out", vectors=vectors)
        computed += embed_or_stop(10**6, folder, data, tmp_path / "out", vectors=vectors)
        shutil.rmtree(tmp_path / "anew", ignore_errors=True)
        embed_documents(folder, data, tmp_path / "anew", vectors=vectors)
    assert files(tmp_path / "out") == files(tmp_path / "anew")
    if before == len(rows):
        assert 6 <= computed <= 6 + 1, computed  # the second kill repeats what its file had computed
    assert embed_or_stop(0, folder, data, tmp_path / "out", vectors=vectors) == 0


SETTINGS = (
    ("max_seq_length", "are of max_seq_length 512, not 100; give another --output, or delete the folder"),
    ("modules", "with other modules, such as its pooling; give another"),
    ("config", "with another config.json"),
    ("tokenizer", "with another tokenizer"),
    ("prompts", "are of prompts .*'about '.*, not .*'search: '"),
    ("weights", "with other weights"),
    ("column", "are of --text-column text, not body"),
    ("task", "are of --task document, not query"),
)
"""What is changed, and the refusal."""


@every_case("changed, words", SETTINGS)
@pytest.mark.parametrize("stopped", [False, True])
def test_embed_into_vectors_of_another_setting_is_refused(
    changed: str, words: str, stopped: bool, folder: str, tmp_path: Path
) -> None:
    data = write_rows([{"id": "a", "text": "some words", "body": "other words"}], tmp_path / "data.jsonl")
    model, out = tmp_path / changed, tmp_path / f"out {changed}"
    shutil.copytree(folder, model)
    embed_documents(str(model), data, out)
    vectors = out / "vectors-00000.parquet"
    if stopped:
        vectors.unlink()
    options = dict[str, str]()
    if changed == "max_seq_length":
        (model / "sentence_bert_config.json").write_text('{"max_seq_length": 100}')
    elif changed == "modules":
        (model / "1_Pooling" / "config.json").write_text('{"embedding_dimension": 32, "pooling_mode": "cls"}')
    elif changed == "config":
        change_json(model, layer_norm_eps=0.1)
    elif changed == "tokenizer":
        rules = read_json(model / "tokenizer.json")
        rules["model"]["vocab"] |= {"the": rules["model"]["vocab"]["of"], "of": rules["model"]["vocab"]["the"]}
        write_json(model / "tokenizer.json", rules)
    elif changed == "prompts":
        change_json(model, "config_sentence_transformers.json", prompts={"document": "search: "})
    elif changed == "weights":
        encoder = st.SentenceTransformer(str(model), device="cpu")
        next(encoder.transformers_model.parameters()).data[5, 5] += 1e-6
        encoder.save(str(model))
    else:
        options = {"column": {"text_column": "body"}, "task": {"task": "query"}}[changed]
    stored = files(out)
    with pytest.raises(LongAttentionError, match=words):
        embed_documents(str(model), data, out, **options)
    assert files(out) == stored


def test_embed_completes_a_folder_whose_model_was_moved_and_written_again(folder: str, tmp_path: Path) -> None:
    data = write_rows([{"id": "a", "text": "some words"}], tmp_path / "data.jsonl")
    embed_documents(folder, data, tmp_path / "out")
    moved = shutil.copytree(folder, tmp_path / "moved")
    config = read_json(moved / "config.json")
    write_json(moved / "config.json", dict(reversed(config.items())))
    (moved / "README.md").write_text("another card")
    stored = files(tmp_path / "out")
    embed_documents(str(moved), data, tmp_path / "out")
    assert files(tmp_path / "out") == stored


ID_ROWS = (
    ("jsonl", ["1", "2", "-3"], ["1", "2", "-3"]),
    ("jsonl", ['"007"', "7", '"{x}"'], ["007", "7", "{x}"]),
    ("jsonl", ["1", "null"], "Row 2 of .* has no id in the column 'id'"),
    ("jsonl", ['"a"', '""'], "Row 2 of .* has no id"),
    ("jsonl", [str(2**70), str(2**70 + 1), "5"], [str(2**70), str(2**70 + 1), "5"]),
    ("jsonl", ["1", "1.5"], "Row . of .* has '1.5' in the column 'id', no text or whole number"),
    ("jsonl", ["true", "false"], "has 'True' in the column 'id', no text"),
    ("jsonl", ["7", '"7"'], "The id '7' is given to two documents"),
    ("csv", ["007", "7", "1e3"], ["007", "7", "1e3"]),
    ("csv", ["1", "", "3"], "Row 2 of .* has no id"),
)
"""Format of the file, its ids as they stand there, and the ids of the documents or the refusal."""


@every_case("ending, ids, expected", ID_ROWS)
def test_document_ids_are_texts_as_they_stand_or_refused(
    ending: str, ids: list[str], expected: list[str] | str, tmp_path: Path
) -> None:
    file = tmp_path / f"data.{ending}"
    if ending == "csv":
        file.write_text("id,text\n" + "".join(f"{value},word {row}\n" for row, value in enumerate(ids)))
    else:
        file.write_text("".join(f'{{"id": {value}, "text": "word {row}"}}\n' for row, value in enumerate(ids)))
    if isinstance(expected, list):
        documents = read_documents(str(file), "train", "text", "")
        assert (documents["id"][:], documents["text"][:]) == (expected, [f"word {row}" for row in range(len(ids))])
    else:
        with pytest.raises(LongAttentionError, match=expected):
            read_documents(str(file), "train", "text", "")


def test_documents_of_a_folder_have_the_names_of_their_files(tmp_path: Path) -> None:
    for name in ("10.txt", "2.txt", "of b/1.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"the text of {name}")
    documents = read_documents(str(tmp_path), "train", "text", "")
    assert documents["id"][:] == ["10.txt", "2.txt", "of b/1.txt"]
    assert documents["text"][:] == [f"the text of {name}" for name in documents["id"]]


DAMAGED = (
    ("modules.json", [{"name": "0", "path": ""}], "must hold a list of modules, each with a path and a type"),
    (
        "modules.json",
        [*MODULES, {"name": "3", "path": "", "type": "sentence_transformers.models.Foo"}],
        "does not define a .Foo.",
    ),
    ("modules.json", [{"path": ""} | {**MODULES[0], "path": "/etc"}], "lies outside of"),
    ("sentence_bert_config.json", {"max_seq_length": "x"}, "says max_seq_length='x', but it must be a whole number"),
    ("sentence_bert_config.json", [], "must contain a JSON object"),
    ("1_Pooling/config.json", {"embedding_dimension": 32, "pooling_mode": 3}, "cannot be loaded: "),
)
"""A small file of a sentence-transformers folder, its damaged content, and the refusal."""


@every_case("file, content, words", DAMAGED)
def test_embed_refuses_damaged_files_of_a_sentence_transformers_folder(
    file: str, content: Any, words: str, folder: str, data: str, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(Path(folder).parent / "short", damaged)
    write_json(damaged / file, content)
    with pytest.raises(LongAttentionError, match=words):
        embed_documents(str(damaged), data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_embed_refuses_a_prompt_that_leaves_no_room_for_windows(folder: str, tmp_path: Path) -> None:
    shutil.copytree(Path(folder).parent / "short", tmp_path / "short")
    change_json(tmp_path / "short", "config_sentence_transformers.json", prompts={"document": "a " * 50})
    data = write_rows([{"text": "b c"}], tmp_path / "data.jsonl")
    embed_documents(str(tmp_path / "short"), data, tmp_path / "one window", vectors="passages:4")
    write_rows([{"text": "b c " * 40}], tmp_path / "data.jsonl")
    for vectors in ("passages:4", "tokens", "parts:2"):
        with pytest.raises(
            LongAttentionError, match="too short for an overlap of 16 and 52 tokens of prompt and special tokens"
        ):
            embed_documents(str(tmp_path / "short"), data, tmp_path / vectors, vectors=vectors)


@pytest.mark.parametrize("vectors", ["document", "passages:4"])
def test_embed_refuses_a_token_beyond_the_table_of_the_model(
    vectors: str, folder: str, data: str, tmp_path: Path
) -> None:
    shutil.copytree(Path(folder).parent / "short", tmp_path / "short")
    values = read_json(tmp_path / "short" / "tokenizer.json")
    values["model"]["vocab"]["the"] = 999_999
    write_json(tmp_path / "short" / "tokenizer.json", values)
    with pytest.raises(LongAttentionError, match=r"token ids up to 999999 \('the'\), but its model has 900 embedd"):
        embed_documents(str(tmp_path / "short"), data, tmp_path / "out", vectors=vectors)
    assert not (tmp_path / "out").exists()


def test_embed_refuses_a_folder_in_which_another_process_writes(folder: str, data: str, tmp_path: Path) -> None:
    embed_documents(folder, data, tmp_path / "out")
    (tmp_path / "out" / "vectors-00000.parquet").unlink()
    stage = tmp_path / "out" / "vectors-00000.partial"
    stage.mkdir()
    refusal = r"Another process is writing .*vectors-00000.parquet.*; wait for it"
    with locked(stage / ".lock", ""), pytest.raises(LongAttentionError, match=refusal):
        embed_documents(folder, data, tmp_path / "out")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "file").touch()
    for name in ("self", "file", "self/out"):
        with pytest.raises(LongAttentionError, match="Cannot write in"):
            embed_documents(folder, data, tmp_path / name)


@pytest.mark.parametrize("base", ["bert", "roberta", "mbart"])
def test_read_tokens_tokenises_pieces_as_the_whole_text(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of(base, 512)
    whole = read_tokens(tokenizer, REAL_TEXT, "about ")
    monkeypatch.setattr(late_chunking, "PIECE", 300)
    pieces = read_tokens(tokenizer, REAL_TEXT, "about ")
    assert pieces.ids.tolist() == whole.ids.tolist()
    assert (pieces.before, pieces.after) == (whole.before, whole.after)
    starts = [REAL_TEXT[start:].lstrip()[:1] for start in pieces.starts.tolist()]
    assert starts == [REAL_TEXT[start:].lstrip()[:1] for start in whole.starts.tolist()]


def test_embed_pads_documents_of_a_decoder_without_a_padding_token(tmp_path: Path) -> None:
    """Documents of different lengths are padded with its end token, and have the vectors that each has alone."""
    tokenizer = tokenizer_of("gpt2", 64)
    assert tokenizer.pad_token is None
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.2}
    GPT2Model(GPT2Config(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path / "decoder")
    tokenizer.save_pretrained(tmp_path / "decoder")
    texts = ["a tree", "a much longer text of a tree and of a file", "file"]
    data = write_rows([{"text": text} for text in texts], tmp_path / "documents.jsonl")
    model = str(tmp_path / "decoder")
    assert embed_documents(model, data, tmp_path / "vectors")["vectors"] == 3
    written = pq.read_table(tmp_path / "vectors" / "vectors-00000.parquet")["vector"].to_pylist()
    alone = [
        load_sentence_model(st.SentenceTransformer, model, device="cpu").encode_document([text])[0] for text in texts
    ]
    torch.testing.assert_close(torch.tensor(written), torch.tensor(np.stack(alone)), atol=1e-5, rtol=1e-4)


def test_embed_refuses_wrong_documents_and_old_vectors(
    folder: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = st.SentenceTransformer(folder, device="cpu")
    encoder[1].pooling_mode = "cls"
    encoder.save(str(tmp_path / "cls"))
    out = str(tmp_path / "out")
    embed_documents(folder, data, out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    text = {"id": "a", "text": "some words"}
    one = write_rows([text], tmp_path / "one.jsonl")
    gap = write_rows([text, {"id": "b", "text": " "}], tmp_path / "gap.jsonl")
    for words, arguments in (
        (
            "'b' of .* has no text",
            [folder, gap, "--output", out + "2"],
        ),
        (
            "has the columns id, text, not 'body'",
            [folder, one, "--text-column", "body", "--output", out + "2"],
        ),
        (
            "vectors of passages are means",
            [str(tmp_path / "cls"), data, "--vectors", "passages", "--output", out + "2"],
        ),
        ("are of --vectors document, not tokens", [folder, data, "--vectors", "tokens", "--output", out]),
        (f"are of {len(LENGTHS)} other documents", [folder, one, "--output", out]),
        ("are of other documents", [folder, data, "--id-column", "name", "--output", out]),
        ("holds other files than", [folder, data, "--output", str(tmp_path / "full")]),
    ):
        code, _, error = run(capsys, "embed", *arguments)
        assert code == 1, error
        assert re.search(words, " ".join(error.split())), (words, error)
        assert not Path(out + "2").exists()


@pytest.mark.slow
def test_embed_of_2000_documents_is_bounded_in_memory_and_survives_kills(folder: str, tmp_path: Path) -> None:
    """Real processes write the same bytes; documents of 1 to 20,000 tokens need the memory that the longest one
    needs."""
    words = REAL_TEXT.split()
    rows = [{"text": " ".join(words[number % 99 :][: 1 + number % 60])} for number in range(1990)]
    long = [{"text": " ".join(words * (20_000 // len(words) + 1))[: 8_000 * size]} for size in range(1, 11)]
    for name, its in (("few", long), ("many", [*rows[:1000], *long, *rows[1000:]])):
        write_rows(its, tmp_path / f"{name}.jsonl")
    measured = "import resource, sys; from hf_longattn.cli import main\ntry: main(sys.argv[1:])\n"
    measured += "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def start(name: str, data: str, *python: str) -> subprocess.Popen[str]:
        line = f"embed {folder} {tmp_path / data}.jsonl --vectors passages:64 --output {tmp_path / name}".split()
        return subprocess.Popen([sys.executable, *python, *line], stderr=subprocess.PIPE, text=True, env=environment)

    def ended(process: subprocess.Popen[str]) -> str:
        _, said = process.communicate()
        assert process.returncode == 0, said[-3000:]
        return said

    kilobytes = [int(ended(start(name, name, "-c", measured)).split()[-1]) for name in ("few", "many")]
    assert kilobytes[1] < kilobytes[0] + 60_000, kilobytes
    for count in (3, 20):
        running = start("killed", "many", "-m", "hf_longattn")
        while len(list((tmp_path / "killed").glob("*.parquet"))) < count:
            assert running.poll() is None
            time.sleep(0.01)
        running.kill()
        running.communicate()
    ended(start("killed", "many", "-m", "hf_longattn"))
    assert files(tmp_path / "killed") == files(tmp_path / "many")
    for count in (2, 3):
        how = f"--multi_gpu --num_processes {count} --main_process_port {free_port()} -m hf_longattn".split()
        ended(start(f"by-{count}", "many", "-m", "accelerate.commands.launch", *how))
        assert files(tmp_path / f"by-{count}") == files(tmp_path / "many")
