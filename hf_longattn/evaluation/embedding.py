"""Vectors of documents, or of their parts, passages or tokens, in Parquet files.

A file has :data:`FILE` documents, and each process writes some of the files. An interrupted run continues with the
first file that is not complete.

The folder stores the settings and the fingerprints of the model, and each file stores the fingerprints of its texts.
If a text has changed, its vectors are computed again. If the model has changed, the folder is refused.
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
"""Name of the file with the settings and fingerprints of a folder."""
TEXTS = b"text_fingerprints"
"""Key in the metadata of a file. The value is the fingerprints of the file's texts in order, separated by commas."""
SIZES: dict[str, int | None] = {"document": None, "parts": 8, "passages": 256, "tokens": None}
"""Unit of vectors -> default size: number of parts of a document, or of tokens of a passage. Others have no size."""
COLUMNS = ("start", "end", "embedding")
"""The columns that an embedder adds to a batch."""
Row = tuple[int, int, np.ndarray]
"""A vector: the characters of its text as start and end, the end exclusive, and the vector ``(D,)`` in fp32."""


class Embedder:
    """Embed batches of texts in a library that spreads them over processes and machines.

    Pass an instance to ``datasets.Dataset.map(..., batched=True)``, or the class to Ray Data's ``map_batches``. An
    instance can be pickled: it only holds settings, and each process loads the model once, at the first batch. The
    vectors are the same as in the files of ``longattn embed``.

    Args:
        model: a folder, which all machines must have, or a Hub name that sentence-transformers loads.
        vectors: the unit of the vectors. "document": the vector of ``encode_document``, which cuts long texts, with a
            warning. "parts:8": eight vectors of a text. "passages:256": a vector for every 256 tokens (late chunking).
            "tokens": a vector for each token. Parts, passages and tokens are means of token states, scaled to length
            1, and texts longer than the model's maximum are read in windows.
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
        self.unit, colon, size = str(vectors).partition(":")
        is_valid = self.unit in SIZES
        if colon:
            is_valid = SIZES.get(self.unit) is not None and size.isdecimal() and int(size) >= 1
        if not is_valid:
            raise OptionError(
                f"--vectors is {vectors!r}; give document, parts:8 or passages:256, with any number, or tokens."
            )
        if task not in ("document", "query"):
            raise OptionError(f"--task is {task!r}; give document or query.")
        self.size = int(size) if colon else SIZES[self.unit]
        self.vectors = self.unit
        if self.size is not None:
            self.vectors = f"{self.unit}:{self.size}"
        self.model, self.task, self.text_column, self.device = model, task, text_column, device
        # The key of the loaded model: copies of this object share a model. A new object loads the model again, because
        # the folder may have new weights.
        self.key = uuid4().hex

    def __call__(self, batch: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """The columns of a batch, and the new columns ``start``, ``end`` and ``embedding``.

        With ``vectors="document"``, a row has one vector ``(D,)`` in fp32, and start and end (exclusive) of the text
        that was read, in characters. With other units, a row has three lists, with an item for every vector.

        Args:
            batch: name of a column -> list or NumPy array of its values, one for each row.

        Raises:
            DataError: the batch is not a dictionary, a row has no text, or a query is longer than the model's maximum.
            CheckpointError, OptionError: the model cannot be loaded, or cannot make vectors of this unit.
        """
        if not isinstance(batch, MutableMapping):
            raise DataError(
                f"A batch is a dictionary of columns, not a {type(batch).__name__}; give frame.to_dict('list') or the "
                "like."
            )
        chosen_columns([*batch], {"text": ()}, {"text": self.text_column}, "The batch", "text_column=NAME")
        for name in COLUMNS:
            if name in batch:
                raise DataError(
                    f"The batch has a column {name!r}, which is the name of a column of the vectors; rename it."
                )
        if isinstance(batch[self.text_column], str):
            raise DataError(
                f"The column {self.text_column!r} is a text, not a list of texts; give batches, in datasets with "
                "batched=True."
            )
        texts = list(batch[self.text_column])
        for number, text in enumerate(texts):
            if not self.has_text({self.text_column: text}):
                cells = {name: values[number] for name, values in batch.items() if name != self.text_column}
                shown = [f"{name} {value!r:.40}" for name, value in cells.items() if isinstance(value, str | int)]
                row = f"Row {number + 1} of a batch"
                if shown:
                    row = f"{row} ({listed(shown)})"
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
                result[name].append(values[0] if self.unit == "document" else list(values))
        return result

    def has_text(self, row: Mapping[str, Any]) -> bool:
        """Whether the text of a row is a string with more than white space, so that the row can be embedded.

        Pass it to ``filter`` of datasets and of Ray Data.
        """
        text = row[self.text_column]
        return isinstance(text, str) and bool(text.strip())

    def embed(self, texts: Sequence[str]) -> Iterator[Iterator[Row]]:
        """An iterator over the vectors of each text. The iterators must be read one after another."""
        network = _load(self.model, self.unit, self.device, self.key)
        if self.task == "query":
            check_queries(network, texts)
        if network.model_type == "MultiVectorEncoder" or self.unit == "document":
            return self._encoded(network, texts)
        return map(partial(self._of_text, network), texts)

    def _encoded(self, network: Any, texts: Sequence[str]) -> Iterator[Iterator[Row]]:
        """The vectors of each text, from ``encode_document`` or ``encode_query``.

        Long texts are cut, with a warning.
        """
        prompt = network.prompts.get(self.task) or ""
        longest: int = network.max_seq_length or sys.maxsize
        # cut very long texts before they are tokenised: a token seldom has a hundred characters
        texts = [text[: max(PIECE, 100 * longest)] for text in texts]
        counts = list(map(len, call_tokenizer(network.tokenizer, texts, verbose=False)["input_ids"]))
        if max(counts, default=0) > longest:
            logger.warning_once(  # type: ignore[attr-defined]
                f"Documents of more than {longest:,} tokens are cut there; --vectors passages of a single-vector "
                "model reads on."
            )

        # Encode texts of similar length together.
        encode = network.encode_query if self.task == "query" else network.encode_document
        encoded: dict[int, Any] = {}
        order = sorted(range(len(texts)), key=counts.__getitem__, reverse=True)
        while order:
            size = max(1, BATCH_TOKENS // max(1, min(counts[order[0]], longest)))
            batch, order = order[:size], order[size:]
            vectors = encode([texts[row] for row in batch], batch_size=size, show_progress_bar=False)
            encoded.update(zip(batch, vectors, strict=True))

        fits_surely = longest - len(f" {prompt}".encode())  # a token of the prompt has at least one byte
        for row, (text, count) in enumerate(zip(texts, counts, strict=True)):
            states = encoded.pop(row)
            end = len(text)
            # Find the character at which the model's tokenizer cuts the text.
            if count > fits_surely and network.tokenizer.is_fast:
                tokens = read_tokens(network.tokenizer, text, prompt)
                room = longest - len(tokens.before) - len(tokens.after)
                if len(tokens.ids) > room:
                    end = int(tokens.starts[room])
            if self.unit == "document":
                yield iter([(0, end, states)])
            else:
                size = 1
                if self.size is not None:
                    size = -(-len(states) // self.size)
                yield iter([(0, end, F.normalize(part.mean(0), dim=0).numpy()) for part in states.cpu().split(size)])

    def _of_text(self, network: Any, text: str) -> Iterator[Row]:
        """Yield the vectors of the pieces (parts, passages or tokens) of a text, with one window in memory at a time.

        A piece is ``size`` tokens; its vector is the mean of their states, scaled to length 1.
        """
        model = network.transformers_model
        tokens = read_tokens(network.tokenizer, text, network.prompts.get(self.task) or "")
        count, width = len(tokens.ids), model.config.hidden_size
        ends = [*tokens.starts.tolist(), len(text)]  # a piece ends where the next token begins
        starts = [0, *ends[1:-1]]
        size = self.size or 1
        if self.unit == "parts":
            size = max(1, -(-count // size))
        with evaluating(model):
            windows = token_states(model, tokens, network.max_seq_length)
            if count <= size:  # the whole text, with its special tokens, as in sentence-transformers
                total = sum((torch.cat(window).sum(0) for window in windows), torch.zeros(width))
                yield 0, len(text), F.normalize(total, dim=0).numpy()
                return
            first = 0  # first token of the window
            begun = torch.zeros(width)  # sum of the states of the piece that the last window began
            for states, _ in windows:
                last, first_piece = first + len(states), first // size
                sums = torch.zeros(last // size - first_piece + 1, width)
                sums.index_add_(0, torch.arange(first, last) // size - first_piece, states)[0] += begun
                complete = last // size  # number of pieces that are complete after this window
                if last == count:  # the last piece may be shorter
                    complete = -(-count // size)
                for piece, vector in enumerate(F.normalize(sums[: complete - first_piece]).numpy(), first_piece):
                    yield starts[piece * size], ends[min(piece * size + size, count)], vector
                first, begun = last, sums[-1]


@lru_cache(maxsize=2)  # such as one for documents and one for queries
def _load(name: str, unit: str, device: str | None, key: str) -> Any:
    """The model of an :class:`Embedder`. ``key`` is only a key of the cache.

    Raises:
        CheckpointError: the model does not read texts, or its vectors are not means of token states.
        OptionError: the model makes a vector for every token, and ``unit`` is not parts or tokens.
    """
    check_extra("sentence", "sentence_transformers")
    import sentence_transformers

    loader = sentence_transformers.SentenceTransformer
    if has_token_vectors(name):
        loader = sentence_transformers.MultiVectorEncoder
    network = load_sentence_model(loader, name, complete=True, device=device)
    with suppress(BackendError):  # some models need padding, because their results depend on it
        unpad(network)
    use_fast_products(network)
    # StaticEmbedding and models of images are refused, for example.
    if getattr(network.transformers_model, "main_input_name", "") != "input_ids":
        raise CheckpointError(f"{name!r} is not a text encoder of transformers; give a model that reads token ids.")
    if network.model_type == "MultiVectorEncoder":
        if unit not in ("parts", "tokens"):
            raise OptionError(
                f"{name!r} gives a vector for every token; give --vectors tokens, or parts:64 for 64 means of them."
            )
    elif unit != "document":
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

    A row is a vector. ``part`` numbers the vectors of a document from 0. The vector belongs to the characters from
    ``start`` to ``end`` (exclusive) of the document. With several processes (``accelerate launch``), each process
    writes some of the files. Files do not depend on the number of processes.

    Args:
        model, vectors, task: see :class:`Embedder`.
        documents: see :func:`..data.sources.read_table`.
        output: a new folder, or the folder of an earlier run with the same arguments and ids. The earlier run is
            completed: documents whose text has not changed keep their vectors.
        text_column, id_column, split: columns and split of the data. By default, the ids are the column ``id``, or the
            names of the files in a folder, or numbers.
        note: function called after each file, with the number of documents that this process has embedded, and the
            number of documents that it embeds in all.

    Returns:
        Numbers of ``documents`` and ``vectors`` written by this process.

    Raises:
        DataError: documents have no text or duplicate ids, or queries are longer than the model's maximum.
        CheckpointError: the model cannot make these vectors, or the folder contains others.
    """
    # Processes communicate on the CPU if there is no accelerator.
    state = PartialState(cpu=not torch.accelerator.is_available())
    embedder = Embedder(model, vectors=vectors, task=task, device=str(state.device))
    data = read_documents(documents, split, text_column, id_column)
    network = _load(model, embedder.unit, embedder.device, embedder.key)
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

    # The files of this process: path -> rows of its documents
    files = {}
    for first in range(0, len(data), FILE)[state.process_index :: state.num_processes]:
        files[folder / f"vectors-{first // FILE:05}.parquet"] = range(first, min(first + FILE, len(data)))
    total, done = sum(map(len, files.values())), 0
    for file, rows in files.items():
        write_file(file, data, rows, embedder)
        done += len(rows)
        note(done, total)
    return {"documents": total, "vectors": sum(pq.read_metadata(file).num_rows for file in files)}


def read_documents(source: str, split: str, text_column: str, id_column: str) -> Dataset:
    """The documents of a source, with the columns ``id`` and ``text``. See :func:`embed_documents` for the ids.

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
    """Raise :class:`DataError` if the model would cut a query."""
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
"""Name of a setting -> text that says how vectors with another value of it differ. For a setting without an entry, the
message names both values."""


def open_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Create a folder and store the settings in it, or check that its vectors were written with these settings.

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
    stored = read_json_object(file)
    for name, value in settings.items():
        before = stored.get(name)
        if name == "model" or before == value:  # the same model may have another path
            continue
        label = flag(name) if name in ("vectors", "task", "text_column") else name
        difference = DIFFERENCES.get(name, "{label} {before}, not {now}")
        description = difference.format(label=label, before=before, now=value, model=stored.get("model"))
        raise CheckpointError(
            f"The vectors in {str(folder)!r} are of {description}; give another --output, or delete the folder."
        )


def write_file(file: Path, data: Dataset, rows: range, embedder: Embedder) -> None:
    """Write a file of vectors. Documents whose text is the same as in the existing file keep their vectors.

    Args:
        data: all documents.
        rows: numbers of the documents in this file.

    Raises:
        CheckpointError: another process is writing the file.
    """
    documents = data[rows.start : rows.stop]
    texts = list(map(fingerprints.of_text, documents["text"]))
    stored_texts: list[str] = []
    stored: Iterator[tuple[str, Iterator[Vector]]] = iter(())
    if file.is_file():
        stored_texts = ((pq.read_schema(file).metadata or {}).get(TEXTS) or b"").decode().split(",")
        stored = stored_documents(file)

    def vectors() -> Iterator[Vector]:
        """The rows of the file. Stored documents and new documents are read in step, one row at a time."""
        is_stored = [stored_texts[number : number + 1] == [text] for number, text in enumerate(texts)]
        changed = [text for text, kept in zip(documents["text"], is_stored, strict=True) if not kept]
        new = embedder.embed(changed) if changed else iter(())
        for name, kept in zip(documents["id"], is_stored, strict=True):
            _, stored_rows = next(stored, (name, iter(())))
            if kept:
                yield from stored_rows
            else:
                yield from ((name, part, *row) for part, row in enumerate(next(new)))

    # Write into a folder of its own, then move the complete file.
    stage = file.with_suffix(".partial")
    if stored_texts != texts:
        stage.mkdir(exist_ok=True)
        refusal = f"Another process is writing {str(file)!r}; wait for it, or give another folder."
        with locked(stage / ".lock", refusal):
            with staged_file(stage / file.name) as staged:
                _write(staged, vectors(), texts)
            (stage / file.name).replace(file)
    shutil.rmtree(stage, ignore_errors=True)


Vector = tuple[str, int, int, int, np.ndarray]
"""A row of a file: id of the document, number of the vector, start and end (exclusive) in characters, and values."""


def stored_documents(file: Path) -> Iterator[tuple[str, Iterator[Vector]]]:
    """The documents in a file, each as its id and its rows.

    The rows of a document must be read before the next document.
    """

    def rows() -> Iterator[Vector]:
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(ROWS):
                vectors = batch["vector"].flatten().to_numpy().reshape(len(batch), -1)
                columns = (batch[name].to_pylist() for name in ("id", "part", "start", "end"))
                yield from zip(*columns, vectors, strict=True)

    return groupby(rows(), itemgetter(0))


def _write(file: Path, rows: Iterator[Vector], texts: Sequence[str]) -> None:
    """Write rows to a new file, :data:`ROWS` at a time. ``texts`` are the fingerprints of all texts."""
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
