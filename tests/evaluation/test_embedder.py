"""`Embedder`: the vectors of `longattn embed`, in batches of columns, in processes that engines of many machines
start."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers
from datasets import Dataset

from hf_longattn import Embedder
from hf_longattn.errors import LongAttentionError
from hf_longattn.evaluation import embedding
from hf_longattn.evaluation.embedding import embed_documents
from scripts.dev.tools.small_models import small_image_config
from tests.cases import every_case
from tests.fresh_processes import run_fresh
from tests.trained import REAL_TEXT

st = pytest.importorskip("sentence_transformers")
SENTENCES = [line for line in REAL_TEXT.splitlines() if len(line.split()) > 5]
TEXTS = ["\n".join(SENTENCES[:count]) for count in (3, 40, 1, 8, 2, 30, 5, 1, 12, 60, 4, 2, 7)]
UNITS = ("document", "passages:20", "parts:3", "tokens")


def largest_difference(found: Any, expected: Any) -> float:
    """Of two columns of vectors, or of lists of vectors."""
    return max(float(np.abs(np.array(a) - np.array(b)).max()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("vectors", UNITS)
def test_embedder_gives_the_vectors_and_places_that_longattn_embed_writes(
    vectors: str, folder: str, tmp_path: Path
) -> None:
    batch = {"title": list(map(str, range(len(TEXTS)))), "text": TEXTS}
    Dataset.from_dict(batch).to_parquet(str(tmp_path / "documents.parquet"))
    embed_documents(folder, str(tmp_path / "documents.parquet"), tmp_path / "out", vectors=vectors)
    rows = pq.read_table(tmp_path / "out" / "vectors-00000.parquet").to_pylist()
    embedded = Embedder(folder, vectors=vectors)(batch)
    assert list(batch) == ["title", "text"]
    assert list(embedded) == ["title", "text", "start", "end", "embedding"]
    assert embedded["text"] is TEXTS
    for number in range(len(TEXTS)):
        expected = [row for row in rows if row["id"] == str(number)]
        start, end, found = (embedded[name][number] for name in ("start", "end", "embedding"))
        if vectors == "document":
            start, end, found = [start], [end], [found]
        assert list(zip(start, end, strict=True)) == [(row["start"], row["end"]) for row in expected]
        assert {vector.dtype for vector in found} == {np.dtype("float32")}
        assert largest_difference(found, [row["vector"] for row in expected]) <= (1e-6 if vectors == "document" else 0)


def test_embedder_takes_the_columns_of_numpy_pandas_and_pyarrow(folder: str) -> None:
    embedder, texts = Embedder(folder, text_column="body"), TEXTS[:3]
    expected = embedder({"body": texts})["embedding"]
    frame = pd.DataFrame({"body": texts, "size": [1, 2, 3]}, index=[7, 7, 1])
    for batch in (
        {"body": np.array(texts)},
        {"body": np.array(texts, dtype=object), "size": np.arange(3)},
        dict(frame.items()),
        frame.to_dict("list"),
        pa.table({"body": texts}).to_pydict(),
    ):
        embedded = embedder(batch)
        assert largest_difference(embedded["embedding"], expected) == 0
        table = pa.Table.from_pandas(pd.DataFrame({**embedded, "body": texts}), preserve_index=False)
        assert table.schema.field("embedding").type == pa.list_(pa.float32())
    assert embedder({"body": []})["embedding"] == []


def embed_with_copies(place: str) -> None:
    """Embed with two copies of a pickled embedder, which load one model."""
    loads, load = [], embedding.load_sentence_model

    def counted(*arguments: Any, **options: Any) -> Any:
        loads.append(arguments)
        return load(*arguments, **options)

    embedding.load_sentence_model = counted
    copies = [pickle.loads(Path(place, "pickled").read_bytes()) for _ in range(2)]
    embedded = [copy({"text": TEXTS}) for copy in copies]
    assert len(loads) == 1
    Path(place, "embedded").write_bytes(pickle.dumps(embedded[1]["embedding"]))


def test_a_pickled_embedder_loads_its_model_once_in_another_process(folder: str, tmp_path: Path) -> None:
    embedder = Embedder(folder, vectors="passages:20")
    expected = embedder({"text": TEXTS})["embedding"]
    (tmp_path / "pickled").write_bytes(pickle.dumps(embedder))
    assert (tmp_path / "pickled").stat().st_size < 1000
    done = run_fresh(embed_with_copies, str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert largest_difference(pickle.loads((tmp_path / "embedded").read_bytes()), expected) == 0


def test_another_embedder_of_the_same_folder_reads_its_weights_again(folder: str, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    before = Embedder(str(tmp_path / "model"))({"text": ["a tree"]})["embedding"]
    shutil.rmtree(tmp_path / "model")
    shutil.copytree(Path(folder).parent / "short", tmp_path / "model")
    encoder = st.SentenceTransformer(str(tmp_path / "model"), device="cpu")
    encoder.transformers_model.embeddings.word_embeddings.weight.data.neg_()
    encoder.save(str(tmp_path / "model"))
    assert largest_difference(Embedder(str(tmp_path / "model"))({"text": ["a tree"]})["embedding"], before) > 0.01


BATCHES = (
    ({"body": ["a"]}, "The batch has the columns body, not 'text'; name one with text_column=NAME"),
    ({"text": np.array(["a", "b", float("nan")], dtype=object)}, "Row 3 of a batch has nan"),
    ({"text": ["a", " \n"]}, "Row 2 of a batch has ' "),
    (
        {"text": "a tree"},
        "The column 'text' is a text, not a list of texts; give batches, in datasets with batched=True",
    ),
    ({"text": ["a"], "end": [3]}, "The batch has a column 'end'.*; rename it"),
    (
        {"id": [7, 8], "text": ["a", ""]},
        r"Row 2 of a batch \(id 8\) has '' in the column 'text', not a text; leave it out",
    ),
    (
        {"name": ["x" * 99], "score": [0.5], "text": [None], "shard": [3]},
        r"Row 1 of a batch \(name 'x{39}, shard 3\) has None in .*; leave it out, with data.filter\(embedder.has",
    ),
    (["a"], "A batch is a dictionary of columns, not a list"),
    (pd.DataFrame({"text": ["a"]}), "not a DataFrame; give frame.to_dict"),
)
"""What is no batch of texts, and the refusal."""


@every_case("batch, words", BATCHES)
def test_embedder_refuses_rows_without_text_before_it_loads_a_model(batch: Any, words: str) -> None:
    with pytest.raises(LongAttentionError, match=words) as refused:
        Embedder("no/model")(batch)
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)


@every_case(
    "options, words",
    [
        ({"vectors": "passages:0"}, "vectors is 'passages:0'; give document"),
        ({"vectors": "passages:²"}, "vectors is 'passages:²'; give"),
        ({"vectors": "tokens:3"}, "vectors is 'tokens:3'; give"),
        ({"vectors": 256}, "vectors is 256; give"),
        ({"task": "passage"}, "task is 'passage'; give document or query"),
    ],
)
def test_embedder_refuses_invalid_options_on_creation(options: dict[str, Any], words: str) -> None:
    with pytest.raises(LongAttentionError, match=words):
        Embedder("no/model", **options)


def test_embedder_refuses_a_query_that_the_model_would_cut(folder: str) -> None:
    for vectors in ("document", "tokens"):
        embedder = Embedder(folder, task="query", vectors=vectors)
        assert len(embedder({"text": ["a tree"]})["embedding"]) == 1
        with pytest.raises(LongAttentionError, match="A query has 604 tokens, and the model reads 512"):
            embedder({"text": ["a", "a " * 597]})


def test_embedder_refuses_folders_that_are_no_text_encoders(folder: str, tmp_path: Path) -> None:
    shutil.copytree(Path(folder).parent / "short", tmp_path / "no tokenizer")
    for file in (tmp_path / "no tokenizer").glob("*token*"):
        file.unlink()
    transformers.ViTModel(small_image_config("vit")).save_pretrained(tmp_path / "images")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "images")
    (tmp_path / "empty").mkdir()
    for name, words in (
        (
            "no tokenizer",
            "The tokenizer of .*no tokenizer' has no words; give a checkpoint with the files of its tokenizer",
        ),
        ("images", "images' is not a text encoder of transformers; give a model that reads token ids"),
        ("empty", "has no config.json"),
        ("nothing", "There is no folder"),
    ):
        for vectors in ("document", "passages:20"):
            with pytest.raises(LongAttentionError, match=words) as refused:
                Embedder(str(tmp_path / name), vectors=vectors)({"text": ["a tree"]})
            assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)


# In the engines themselves. Texts of passages are read one by one, so their vectors are equal; those of whole
# documents are equal but for rounding, since batches have other texts.


def test_filter_by_has_text_leaves_the_neighbours_of_rows_without_text(folder: str) -> None:
    texts = [None, "a tree", "", "a file", " \n\t", "\u3000"]
    for vectors in ("document", "passages:20"):
        embedder = Embedder(folder, vectors=vectors, text_column="body")
        data = Dataset.from_dict({"id": list("abcdef"), "body": texts}).filter(embedder.has_text)
        assert data["id"][:] == ["b", "d"]
        embedded = data.map(embedder, batched=True)["embedding"][:]
        expected = embedder({"body": ["a tree", "a file"]})["embedding"]
        assert largest_difference(embedded, expected) == 0
    assert [embedder.has_text({"body": text}) for text in (float("nan"), 3, b"a", ["a"])] == [False] * 4


def in_datasets(model: str, output: str) -> None:
    """Map in two processes; what a worker refuses arrives as our error."""
    data = Dataset.from_dict({"id": list(range(len(TEXTS))), "text": TEXTS})
    for vectors in UNITS:
        data.map(Embedder(model, vectors=vectors), batched=True, batch_size=4, num_proc=2).to_parquet(
            f"{output}/{vectors}.parquet"
        )
    with pytest.raises(LongAttentionError, match="Row 1 of a batch has '' in the column 'text'"):
        Dataset.from_dict({"text": ["a", ""]}).map(Embedder(model), batched=True, num_proc=2)


def test_datasets_maps_an_embedder_in_two_processes(folder: str, tmp_path: Path) -> None:
    done = run_fresh(in_datasets, folder, str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    for vectors in UNITS:
        rows = pq.read_table(tmp_path / f"{vectors}.parquet")
        vector = pa.list_(pa.float32())
        assert rows.schema.field("embedding").type == (vector if vectors == "document" else pa.list_(vector))
        expected = Embedder(folder, vectors=vectors)({"text": TEXTS})
        assert [rows[name].to_pylist() for name in ("text", "start", "end")] == [
            expected[name] for name in ("text", "start", "end")
        ]
        assert largest_difference(rows["embedding"].to_pylist(), expected["embedding"]) <= (
            1e-6 if vectors == "document" else 0
        )
