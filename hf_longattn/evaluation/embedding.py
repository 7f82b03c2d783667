"""Vectors of documents, of their parts, passages or tokens, in Parquet files.

A file has :data:`FILE` documents. An interrupted run is resumed with the first file that is not complete. Processes
share the files. The folder stores what its vectors depend on besides the texts, and each file the fingerprints of its
texts, so that no vector is kept whose text or model has changed.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from copy import copy
from functools import lru_cache, partial
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from accelerate import PartialState
from datasets import Dataset

from ..data import fingerprints
from ..data.rows import chosen_columns, rows_of
from ..data.sources import DataError, files_of, saved_by_datasets
from ..errors import BackendError, CheckpointError, OptionError, check_extra, flag, listed, visible
from ..files import check_writable, locked, read_json_object, staged_file, write_text
from ..loading import call_tokenizer, has_token_vectors, load_sentence_model
from ..modeling.inference import evaluating, use_fast_products
from ..modeling.unpadding import unpad
from ..names import logger
from .late_chunking import PIECE, read_tokens, token_states

FILE = 64
"""Documents per Parquet file. Untuned."""
ROWS = 16_384
"""Vectors per row group."""
BATCH_TOKENS = 4096
"""Tokens per forward pass, with padding where a model keeps it. A longer document is read alone."""
SETTINGS = "embedding.json"
TEXTS = b"text_fingerprints"
"""Key in a file's metadata: the fingerprints of its documents' texts, in their order, with a comma between them."""
SIZES: dict[str, int | None] = {"document": None, "parts": 8, "passages": 256, "tokens": None}
"""Unit of vectors -> default size: parts of a document, or tokens of a passage."""
COLUMNS = ("start", "end", "embedding")
"""The columns that an embedder adds."""
Row = tuple[int, int, np.ndarray]
"""First and last character of a vector in its text, and the vector ``(D,)`` in fp32."""


class Embedder:
    """Embed batches of texts in an engine that spreads them over processes and machines.

    It is the function for ``datasets.Dataset.map(..., batched=True)`` and the class for Ray Data's ``map_batches``. It
    can be pickled: it holds settings only, and each process loads the model once, at the first batch. The vectors are
    those that ``longattn embed`` writes.

    Args:
        model: a folder, which all machines must have, or a Hub name that sentence-transformers loads.
        vectors: "document": the vector of ``encode_document``, which cuts long texts, with a warning. "parts:8": eight
            vectors of a text. "passages:256": late chunks of 256 tokens. "tokens": a vector for each token. These are
            means of token states, scaled to length 1, and texts longer than the model are read in windows.
        task: "document", or "query" for the model's query prompt.
        text_column: name of the column of texts.
        device: such as "cpu" or "cuda:1"; default: a GPU if there is one.

    Raises:
        OptionError: an invalid ``vectors`` or ``task``.
    """

    def __init__(
        self,
        model: str,
        *,
        vectors: str = "document",
        task: str = "document",
        text_column: str = "text",
        device: str | None = None,
    ) -> None:
        self.of, colon, size = str(vectors).partition(":")
        if self.of not in SIZES or (colon and (SIZES[self.of] is None or not size.isdecimal() or int(size) < 1)):
            raise OptionError(
                f"--vectors is {vectors!r}; give document, parts:8 or passages:256, with any number, or tokens."
            )
        if task not in ("document", "query"):
            raise OptionError(f"--task is {task!r}; give document or query.")
        self.size = int(size) if colon else SIZES[self.of]
        self.vectors = self.of
        if self.size is not None:
            self.vectors = f"{self.of}:{self.size}"
        self.model, self.task, self.text_column, self.device = model, task, text_column, device
        # copies of this object in a process share a model; others may find new weights in the folder
        self.key = uuid4().hex

    def __call__(self, batch: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Return the columns of a batch with three more, ``start``, ``end`` and ``embedding``.

        With ``vectors="document"``, a row has its vector ``(D,)`` in fp32, and the start and end, in characters, of
        the part that was read. Otherwise it has a list of each, with an item for every vector.

        Args:
            batch: name of a column -> list or NumPy array of its values, one for each row.

        Raises:
            DataError: a batch of another kind, a row without text, or a query longer than the model.
            CheckpointError, OptionError: the model cannot be loaded, or makes no such vectors.
        """
        if not isinstance(batch, MutableMapping):
            raise DataError(
                f"A batch is a dictionary of columns, not a {type(batch).__name__}; give frame.to_dict('list') or the "
                "like."
            )
        chosen_columns([*batch], {"text": ()}, {"text": self.text_column}, "The batch", "text_column=NAME")
        if taken := next((name for name in COLUMNS if name in batch), None):
            raise DataError(
                f"The batch has a column {taken!r}, which is the name of a column of the vectors; rename it."
            )
        if isinstance(batch[self.text_column], str):
            raise DataError(
                f"The column {self.text_column!r} is a text, not a list of texts; give batches, in datasets with "
                "batched=True."
            )
        texts = list(batch[self.text_column])
        for number, text in enumerate(texts):
            if not self.has_text({self.text_column: text}):
                others = {name: values[number] for name, values in batch.items() if name != self.text_column}
                named = [f"{name} {value!r:.40}" for name, value in others.items() if isinstance(value, str | int)]
                row = f"Row {number + 1} of a batch"
                if named:
                    row = f"{row} ({listed(named)})"
                raise DataError(
                    f"{row} has {text!r:.60} in the column {self.text_column!r}, not a text; leave it out, with "
                    "data.filter(embedder.has_text)."
                )
        result = copy(batch)
        result.update({name: [] for name in COLUMNS})
        if not texts:
            return result
        for rows in self.embed(texts):
            for name, values in zip(COLUMNS, zip(*rows, strict=True), strict=True):
                result[name].append(values[0] if self.of == "document" else list(values))
        return result

    def has_text(self, row: Mapping[str, Any]) -> bool:
        """Whether a row can be embedded: its text is a string with more than white space. For ``filter`` of datasets
        and of Ray Data."""
        text = row[self.text_column]
        return isinstance(text, str) and bool(text.strip())

    def embed(self, texts: Sequence[str]) -> Iterator[Iterator[Row]]:
        """Yield the vectors of each text. The iterators are read one after another."""
        network = _load(self.model, self.of, self.device, self.key)
        if self.task == "query":
            check_queries(network, texts)
        if network.model_type == "MultiVectorEncoder" or self.of == "document":
            return self._encoded(network, texts)
        return map(partial(self._of_text, network), texts)

    def _encoded(self, network: Any, texts: Sequence[str]) -> Iterator[Iterator[Row]]:
        """Yield each text's vectors from ``encode_document`` or ``encode_query``. Long texts are truncated, with a
        warning."""
        prompt = network.prompts.get(self.task) or ""
        longest: int = network.max_seq_length or sys.maxsize
        texts = [text[: max(PIECE, 100 * longest)] for text in texts]
        counts = list(map(len, call_tokenizer(network.tokenizer, texts, verbose=False)["input_ids"]))
        if max(counts, default=0) > longest:
            logger.warning_once(  # type: ignore[attr-defined]
                f"Documents of more than {longest:,} tokens are cut there; --vectors passages of a single-vector "
                "model reads on."
            )
        fitting = longest - len(f" {prompt}".encode())  # a prompt token has at least one byte
        encode = network.encode_query if self.task == "query" else network.encode_document
        encoded: dict[int, Any] = {}
        order = sorted(range(len(texts)), key=counts.__getitem__, reverse=True)
        while order:  # texts of similar length are read together
            size = max(1, BATCH_TOKENS // max(1, min(counts[order[0]], longest)))
            batch, order = order[:size], order[size:]
            vectors = encode([texts[row] for row in batch], batch_size=size, show_progress_bar=False)
            encoded.update(zip(batch, vectors, strict=True))
        for row, (text, count) in enumerate(zip(texts, counts, strict=True)):
            states = encoded.pop(row)
            end = len(text)
            # the character at which the model's tokenizer cuts the text
            if count > fitting and network.tokenizer.is_fast:
                tokens = read_tokens(network.tokenizer, text, prompt)
                room = longest - len(tokens.before) - len(tokens.after)
                if len(tokens.ids) > room:
                    end = int(tokens.starts[room])
            if self.of == "document":
                yield iter([(0, end, states)])
            else:
                size = 1
                if self.size is not None:
                    size = -(-len(states) // self.size)
                yield iter([(0, end, F.normalize(part.mean(0), dim=0).numpy()) for part in states.cpu().split(size)])

    def _of_text(self, network: Any, text: str) -> Iterator[Row]:
        """Yield the vectors of a text's pieces, with one window in memory at a time."""
        model = network.transformers_model
        tokens = read_tokens(network.tokenizer, text, network.prompts.get(self.task) or "")
        count, width = len(tokens.ids), model.config.hidden_size
        ends = [*tokens.starts.tolist(), len(text)]  # a token ends where the next begins
        starts = [0, *ends[1:-1]]
        size = self.size or 1
        if self.of == "parts":
            size = max(1, -(-count // size))
        with evaluating(model):
            windows = token_states(model, tokens, network.max_seq_length)
            if count <= size:  # sentence-transformers averages a text of one piece
                total = sum((torch.cat(window).sum(0) for window in windows), torch.zeros(width))
                yield 0, len(text), F.normalize(total, dim=0).numpy()
                return
            first, begun = 0, torch.zeros(width)
            for states, _ in windows:
                last, piece = first + len(states), first // size
                sums = torch.zeros(last // size - piece + 1, width)
                sums.index_add_(0, torch.arange(first, last) // size - piece, states)[0] += begun
                complete = last // size
                if last == count:  # the last piece may be shorter
                    complete = -(-count // size)
                for number, vector in enumerate(F.normalize(sums[: complete - piece]).numpy(), piece):
                    yield starts[number * size], ends[min(number * size + size, count)], vector
                first, begun = last, sums[-1]


@lru_cache(maxsize=2)  # such as one for documents and one for queries
def _load(name: str, of: str, device: str | None, key: str) -> Any:
    """The model of an :class:`Embedder`. It is refused if it cannot make vectors of this unit."""
    check_extra("sentence", "sentence_transformers")
    import sentence_transformers

    loader = sentence_transformers.SentenceTransformer
    if has_token_vectors(name):
        loader = sentence_transformers.MultiVectorEncoder
    network = load_sentence_model(loader, name, complete=True, device=device)
    with suppress(BackendError):  # a model whose texts depend on padding keeps it
        unpad(network)
    use_fast_products(network)
    # such as StaticEmbedding, or a model of images
    if getattr(network.transformers_model, "main_input_name", "") != "input_ids":
        raise CheckpointError(f"{name!r} is not a text encoder of transformers; give a model that reads token ids.")
    if network.model_type == "MultiVectorEncoder":
        if of not in ("parts", "tokens"):
            raise OptionError(
                f"{name!r} gives a vector for every token; give --vectors tokens, or parts:64 for 64 means of them."
            )
    elif of != "document":
        modules = ", ".join(type(module).__name__ for module in list(network)[1:])
        pooling = getattr(network[1], "pooling_mode", "mean")
        if pooling != "mean":
            modules += f" ({pooling})"
        if modules not in ("Pooling", "Pooling, Normalize"):
            raise CheckpointError(
                f"{name!r} makes its vectors by {modules}, but vectors of passages are means of token states; give a "
                "model with mean pooling."
            )
    return network


def embed_documents(
    model: str,
    documents: str,
    output: str | Path,
    *,
    vectors: str = "document",
    task: str = "document",
    text_column: str = "text",
    id_column: str = "",
    split: str = "train",
    note: Callable[[int, int], None] = lambda done, count: None,
) -> dict[str, Any]:
    """Embed documents into Parquet files with the columns ``id``, ``part``, ``start``, ``end`` and ``vector``.

    ``start`` and ``end`` are characters in the part of the document that is read; ``part`` numbers its vectors from 0.
    With several processes (``accelerate launch``), each writes its share of the files. Files do not depend on the
    number of processes.

    Args:
        model, vectors, task: see :class:`Embedder`.
        documents: see :func:`..data.sources.read_table`.
        output: a new folder, or the folder of an earlier run with the same arguments and ids, which is completed:
            documents with the same text keep their vectors.
        text_column, id_column, split: columns and split of the data. Default ids: the column ``id``, a folder's file
            names, or numbers.
        note: function called with the number of documents that this process has embedded, and the number of its share.

    Returns:
        Number of documents and vectors written by this process.

    Raises:
        DataError: documents have no text or duplicate ids, or queries are longer than the model.
        CheckpointError: the model makes no such vectors, or the folder contains others.
    """
    # without an accelerator, processes communicate on the CPU
    state = PartialState(cpu=not torch.accelerator.is_available())
    embedder = Embedder(model, vectors=vectors, task=task, device=str(state.device))
    data = read_documents(documents, split, text_column, id_column)
    network = _load(model, embedder.of, embedder.device, embedder.key)
    if task == "query":
        check_queries(network, data["text"])
    folder = Path(output)
    if state.is_main_process:
        settings = {
            "model": model,
            "weights": fingerprints.of_weights(network.state_dict()),
            "config": fingerprints.of_config(network.transformers_model.config),
            "tokenizer": fingerprints.of_tokenizer(network.tokenizer),
            "modules": fingerprints.of_value(
                [[type(module).__name__, module.get_config_dict()] for module in network]
            ),
            "max_seq_length": network.max_seq_length,
            "prompts": dict(network.prompts),
            "vectors": embedder.vectors,
            "task": task,
            "text_column": text_column,
            "documents": len(data),
            "ids": fingerprints.of_value(data["id"][:]),
        }
        open_folder(folder, settings)
    state.wait_for_everyone()
    mine = range(0, len(data), FILE)[state.process_index :: state.num_processes]
    share, done = sum(min(FILE, len(data) - first) for first in mine), 0
    for first in mine:
        rows = range(first, min(first + FILE, len(data)))
        write_file(folder / f"vectors-{first // FILE:05}.parquet", data, rows, embedder)
        done += len(rows)
        note(done, share)
    written = (pq.read_metadata(folder / f"vectors-{first // FILE:05}.parquet") for first in mine)
    return {"documents": share, "vectors": sum(file.num_rows for file in written)}


def read_documents(source: str, split: str, text_column: str, id_column: str) -> Dataset:
    """The documents with the columns ``id`` and ``text``.

    Raises:
        DataError: a missing column, a document without text, or a missing, duplicate or unsuitable id.
    """
    named = {"text": text_column}
    if id_column:
        named["id"] = id_column
    data = rows_of(source, split, {"text": (), "id": ("id",)}, named, leave_out=False, option="--{role}-column")
    if "id" not in data.column_names:
        folder = Path(source)
        names = list(map(str, range(len(data))))
        if folder.is_dir() and not saved_by_datasets(folder):
            names = [visible(str(file.relative_to(folder))) for file in files_of(folder, "text")]
        data = data.add_column("id", names)
    seen: set[str] = set()
    for row in data:
        if row["id"] in seen:
            raise DataError(
                f"The id {row['id']!r} is given to two documents of {source}; name a column of other ids with "
                "--id-column."
            )
        seen.add(row["id"])
        if not row["text"].strip():
            raise DataError(f"The document {row['id']!r} of {source} has no text; leave it out.")
    return data


def check_queries(network: Any, queries: Sequence[str]) -> None:
    """Raise :class:`DataError` for queries that the model would truncate."""
    longest, prompt = network.max_seq_length, network.prompts.get("query") or ""
    for query in queries:
        tokens = len(call_tokenizer(network.tokenizer, prompt + query, verbose=False)["input_ids"])
        if longest and tokens > longest:
            raise DataError(
                f"A query has {tokens:,} tokens, and the model reads {longest:,}: {query[:60]!r}…; shorten it."
            )


DIFFERENCES = {
    "weights": "a model {model!r} with other weights",
    "config": "a model {model!r} with another config.json",
    "tokenizer": "a model {model!r} with another tokenizer",
    "modules": "a model {model!r} with other modules, such as its pooling",
    "documents": "{before} other documents",
    "ids": "other documents, or of the same ones in another order",
}
"""What stored vectors depend on -> how they differ from the vectors that would be written. Others are named with both
values."""


def open_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Create the folder, or check that its vectors were written with these settings.

    Raises:
        CheckpointError: the folder has other files, or vectors with other settings.
    """
    file = folder / SETTINGS
    if not file.is_file():
        check_writable(folder)
        if folder.exists() and any(folder.iterdir()):
            raise CheckpointError(
                f"{str(folder)!r} holds other files than this command's vectors; give another folder."
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(settings, indent=2))
        return
    before = read_json_object(file)
    other = next((name for name in settings if name != "model" and before.get(name) != settings[name]), None)
    if other is not None:
        name = other
        if other in ("vectors", "task", "text_column"):
            name = flag(other)
        stored = DIFFERENCES.get(other, "{name} {before}, not {now}").format(
            name=name, before=before.get(other), now=settings[other], model=before.get("model")
        )
        raise CheckpointError(
            f"The vectors in {str(folder)!r} are of {stored}; give another --output, or delete the folder."
        )


def write_file(file: Path, data: Dataset, rows: range, embedder: Embedder) -> None:
    """Write a file of vectors. Documents whose text is the same as in the existing file keep their vectors.

    Raises:
        CheckpointError: another process is writing the file.
    """
    documents = data[rows.start : rows.stop]
    texts = list(map(fingerprints.of_text, documents["text"]))
    before: list[str] = []
    old: Iterator[tuple[str, Iterator[Vector]]] = iter(())
    if file.is_file():
        before = ((pq.read_schema(file).metadata or {}).get(TEXTS) or b"").decode().split(",")
        old = stored_documents(file)

    def vectors() -> Iterator[Vector]:
        is_stored = [before[number : number + 1] == [text] for number, text in enumerate(texts)]
        changed = [text for text, stored in zip(documents["text"], is_stored, strict=True) if not stored]
        new = embedder.embed(changed) if changed else iter(())
        for name, stored in zip(documents["id"], is_stored, strict=True):
            _, kept = next(old, (name, iter(())))
            if stored:
                yield from kept
            else:
                yield from ((name, part, *row) for part, row in enumerate(next(new)))

    stage = file.with_suffix(".partial")
    if before != texts:
        stage.mkdir(exist_ok=True)
        refusal = f"Another process is writing {str(file)!r}; wait for it, or give another folder."
        with locked(stage / ".lock", refusal):
            with staged_file(stage / file.name) as staged:
                _write(staged, vectors(), texts)
            (stage / file.name).replace(file)
    shutil.rmtree(stage, ignore_errors=True)


Vector = tuple[str, int, int, int, np.ndarray]
"""A row of a file: the document's id, the number of the vector, its first and last character, and its values."""


def stored_documents(file: Path) -> Iterator[tuple[str, Iterator[Vector]]]:
    """The documents in a file, each as its id and its rows. The rows are read one after another."""

    def rows() -> Iterator[Vector]:
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(ROWS):
                vectors = batch["vector"].flatten().to_numpy().reshape(len(batch), -1)
                places = (batch[name].to_pylist() for name in ("id", "part", "start", "end"))
                yield from zip(*places, vectors, strict=True)

    return groupby(rows(), itemgetter(0))


def _write(file: Path, rows: Iterator[Vector], texts: Sequence[str]) -> None:
    writer: pq.ParquetWriter | None = None
    while group := list(islice(rows, ROWS)):
        names, parts, starts, ends, vectors = zip(*group, strict=True)
        values = pa.array(np.concatenate(vectors))
        table = pa.table(
            {
                "id": pa.array(names),
                "part": pa.array(parts, pa.int32()),
                "start": pa.array(starts),
                "end": pa.array(ends),
                "vector": pa.FixedSizeListArray.from_arrays(values, len(vectors[0])),
            },
            metadata={TEXTS: ",".join(texts)},
        )
        writer = writer or pq.ParquetWriter(file, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
