"""The HTTP example under load: seconds and memory of long documents, against 512-token chunks and full attention.

    python -m scripts.dev.benchmarks.serving                    # some 20 minutes on one core; lengths that OUTPUT.json has are kept

A sentence encoder of base width (768, 12 heads) with random weights is converted to a window of 512 and 32,768 tokens, exported with an
int8 copy, and served by examples/serve_encoder.py in a separate process. Eight clients send documents at the same time. The same documents
are sent as 512-token chunks to the short model in the same server, whose embeddings the client averages, and whole to the model with full
attention at the long length. First the server's embeddings are compared with those of sentence-transformers in PyTorch. Every length has a
fresh process, whose peak resident memory is read at the end. Seconds are processor time of the server, which other jobs on the machine
change little; the elapsed time is stored, too. Writes OUTPUT.json and OUTPUT.md.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_longattn.errors import LongAttentionError
from scripts.dev import RESULTS, ROOT

from .report import machine, markdown_table, one_sentence_errors, store_study, stored_study

SERVER = ROOT / "examples" / "serve_encoder.py"
TOKENIZER = ROOT / "model_cards" / "bert-python-512"
LENGTHS = (512, 1024, 2048, 4096, 8192, 16_384, 32_768)
CHUNK = 512
TOLERANCE = 1e-4
WAYS = ("window", "window, int8", "chunks", "full")
FOLDERS = {"window": "window", "window, int8": "window", "chunks": "short", "full": "full"}
Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What is served, and to whom.

    clients: that ask at the same time, each of them for ``tokens // length`` documents, at least one.
    full_up_to: tokens, since full attention holds N×N scores.
    """

    layers: int = 4
    width: int = 768
    heads: int = 12
    vocabulary: int = 30_522
    window: int = 512
    longest: int = 32_768
    clients: int = 8
    tokens: int = 1024
    threads: int = 1
    full_up_to: int = 4096


# ---- models


def build(setting: Setting, folder: Path) -> None:
    """Make the short sentence encoder, convert it, and export the conversions, each unless it is there."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
    from transformers import AutoTokenizer, BertConfig, BertModel

    from hf_longattn import export_checkpoint
    from hf_longattn.conversion import convert_checkpoint

    source = folder / "source"
    if not source.is_dir():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=setting.vocabulary, hidden_size=setting.width, num_hidden_layers=setting.layers, num_attention_heads=setting.heads,
            intermediate_size=4 * setting.width, max_position_embeddings=CHUNK, pad_token_id=0,
        )  # fmt: skip
        BertModel(config).save_pretrained(folder / "base")
        AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder / "base")
        modules = [Transformer(str(folder / "base")), Pooling(setting.width, "mean"), Normalize()]
        SentenceTransformer(modules=modules).save(str(source))
    wanted: dict[str, dict[str, Any]] = {
        "short": {"mechanism": "full", "max_length": CHUNK},
        "window": {"mechanism": "window", "window": setting.window, "max_length": setting.longest},
        "full": {"mechanism": "full", "max_length": setting.longest},
    }
    for name, options in wanted.items():
        if not (folder / f"{name}-long").is_dir():
            convert_checkpoint(source, folder / f"{name}-long", verify=False, **options)
        if not (folder / name).is_dir():
            export_checkpoint(folder / f"{name}-long", folder / name, int8=name == "window")


# ---- documents


def draw_words(count: int, vocabulary: Sequence[str], seed: int) -> list[str]:
    """Random words, one token each, with "the" at the start of every chunk, where another word might be two tokens."""
    generator = random.Random(seed)
    return ["the" if number % (CHUNK - 2) == 0 else generator.choice(vocabulary) for number in range(count)]


def one_token_words() -> list[str]:
    """Words that the tokenizer writes as one token."""
    from transformers import AutoTokenizer

    from hf_longattn.audit.targets import single_words

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    return [tokenizer.decode([int(one)]).strip() for one in single_words(tokenizer, str(TOKENIZER))]


def chunks(words: list[str]) -> list[str]:
    """Texts of at most ``CHUNK`` tokens, with the two special ones."""
    return [" ".join(words[start : start + CHUNK - 2]) for start in range(0, len(words), CHUNK - 2)]


# ---- a server in a separate process


@contextlib.contextmanager
def serving(folder: Path, way: str, setting: Setting, length: int) -> Iterator[tuple[str, int]]:
    """The address and the process id of a server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(SERVER), str(folder / FOLDERS[way]), "--port", str(port), "--threads", str(setting.threads)]
    command += ["--file", "model_int8.onnx"] if "int8" in way else []
    command += ["--batch-tokens", str(length)] if way == "full" else []  # one text at a time: N×N scores of several do not fit
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise LongAttentionError(f"The server of {str(folder / FOLDERS[way])!r} does not start: `{' '.join(command)}` shows why.")
            time.sleep(0.1)
        yield address, process.pid
    finally:
        process.terminate()
        process.wait(timeout=60)


def ask(address: str, texts: list[str]) -> tuple[int, Any]:
    """Status and answer of /embed."""
    request = urllib.request.Request(f"{address}/embed", json.dumps({"inputs": texts}).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=3600) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        return refused.code, json.loads(refused.read())["detail"]
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error)


def embed(address: str, words: list[str], chunked: bool) -> list[float] | None:
    """The embedding of a document; ``None`` if there is no answer. Chunks count by their words."""
    texts = chunks(words) if chunked else [" ".join(words)]
    status, found = ask(address, texts)
    if status != 200 or len(found) != len(texts):
        return None
    mean = np.average(np.array(found), axis=0, weights=[len(text.split()) for text in texts])
    return list(map(float, mean / np.linalg.norm(mean)))


def resident(process: int, field: str) -> float:
    """MiB of VmRSS or VmHWM of a process."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def processor_seconds(process: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---- measuring


def check(setting: Setting, folder: Path, vocabulary: list[str]) -> Row:
    """Largest difference between the server's embeddings and sentence-transformers' in PyTorch; for int8 the least cosine.

    Raises:
        LongAttentionError: they differ by more than :data:`TOLERANCE`.
    """
    from sentence_transformers import SentenceTransformer

    import hf_longattn  # noqa: F401 - registers the Long classes

    found: Row = {}
    lengths = (CHUNK, min(2048, setting.longest))
    for way in WAYS:
        model = SentenceTransformer(str(folder / f"{FOLDERS[way]}-long"), device="cpu")
        documents = [draw_words(length - 2, vocabulary, length + number) for length in lengths for number in range(2)]
        with serving(folder, way, setting, max(lengths)) as (address, _):
            pairs = []
            for words in documents:
                texts = chunks(words) if way == "chunks" else [" ".join(words)]
                status, answer = ask(address, texts)
                if status != 200:
                    raise LongAttentionError(f"The server refused a document that it should take: {answer}")
                pairs.append((np.array(answer), model.encode(texts, batch_size=1)))
        if "int8" in way:
            found[way] = {"least_cosine": min(float((one * other).sum(-1).min()) for one, other in pairs)}
            continue
        found[way] = {"difference": max(float(np.abs(one - other).max()) for one, other in pairs)}
        if not found[way]["difference"] <= TOLERANCE:
            raise LongAttentionError(f"The server's embeddings ({way}) differ from PyTorch's by {found[way]['difference']:.1e}.")
    return found


def measure(way: str, length: int, setting: Setting, folder: Path, vocabulary: list[str]) -> Row:
    """All clients ask a fresh server for documents of one length."""
    each = max(1, setting.tokens // length)
    documents = [
        [draw_words(length - 2, vocabulary, 1000 * client + number) for number in range(each)] for client in range(setting.clients)
    ]
    chunked = way == "chunks"

    def client(mine: list[list[str]]) -> list[tuple[float, bool]]:
        answers = []
        for words in mine:
            start = time.perf_counter()
            found = embed(address, words, chunked)
            answers.append((time.perf_counter() - start, found is not None and bool(np.isfinite(found).all())))
        return answers

    with serving(folder, way, setting, length) as (address, process):
        embed(address, ["the"], chunked)
        idle = resident(process, "VmRSS")
        start, before = time.perf_counter(), processor_seconds(process)
        with ThreadPoolExecutor(setting.clients) as clients:
            answers = [one for found in clients.map(client, documents) for one in found]
        elapsed, seconds = time.perf_counter() - start, processor_seconds(process) - before
        peak = resident(process, "VmHWM")
        most = CHUNK if chunked else setting.longest
        status, sentence = ask(address, [" ".join(draw_words(most - 1, vocabulary, 0))])
    count = len(answers)
    return {
        "documents": count,
        "lost": sum(not good for _, good in answers),
        "seconds_per_document": seconds / count,
        "tokens_per_second": length * count / seconds,
        "elapsed_per_document": elapsed / count,
        "slowest_answer": max(waited for waited, _ in answers),
        "idle_mib": idle,
        "peak_mib": peak,
        "too_long": {"tokens": most + 1, "status": status, "sentence": sentence},
    }


def quantise_references(folder: Path) -> Row:
    """The int8 copies of the reference encoder and its question-answering model, with Longformer attention for 4,096 tokens."""
    from hf_longattn import export_checkpoint
    from hf_longattn.conversion import convert_checkpoint

    found: Row = {"machine": machine(), "models": {}}
    for name in (TOKENIZER.name, f"{TOKENIZER.name}-qa"):
        if not (folder / name).is_dir():
            convert_checkpoint(TOKENIZER.parent / name, folder / name, mechanism="longformer", window=256, max_length=4096, verify=False)
        found["models"][name] = export_checkpoint(folder / name, folder / f"{name}-onnx", int8=True, overwrite=True).int8
    return found


def int8_markdown(record: dict[str, Any]) -> str:
    """The table of the reference models' int8 copies."""
    made = record["int8"]
    rows = []
    for name, one in made["models"].items():
        sizes, seconds = one["bytes"], one["seconds"]
        rows.append(
            [
                name,
                f"{one['linear_layers']}",
                f"{sizes['float32'] / 1e6:.1f} → {sizes['int8'] / 1e6:.1f}",
                f"{seconds['float32']:.2f} → {seconds['int8']:.2f}",
                ", ".join(f"{output} {values['same_choice']:.1%}" for output, values in one["outputs"].items()),
                ", ".join(f"{values['relative_error']:.1%}" for values in one["outputs"].values()),
            ]
        )
    about = made["machine"]
    return (
        markdown_table(["model", "linear layers", "MB", "seconds for 2,048 tokens", "same largest score", "relative error"], rows)
        + f"\n\n*{about['processor']}, {about['threads']} thread{'s' * (about['threads'] > 1)}, {about['date']}*\n"
    )


def markdown(record: dict[str, Any]) -> str:
    """All tables."""
    return "\n".join([*([load_markdown(record)] if record.get("load") else []), *([int8_markdown(record)] if "int8" in record else [])])


def load_markdown(record: dict[str, Any]) -> str:
    """The tables of the servers under load, one for each number of layers."""
    parts = []
    for name, part in record["load"].items():
        setting, rows = part["setting"], part["rows"]
        table = []
        for length in sorted({one["length"] for one in rows}):
            found = {one["way"]: one for one in rows if one["length"] == length}
            values = [found.get(way) for way in WAYS]
            table.append(
                [
                    f"{length:,}",
                    *("–" if one is None else f"{one['seconds_per_document']:.2f}" for one in values),
                    *("–" if one is None else f"{one['peak_mib']:,.0f}" for one in values),
                    *("–" if one is None else f"{one['tokens_per_second']:,.0f}" for one in values[:3]),
                ]
            )
        lost, refused = sum(one["lost"] for one in rows), {one["too_long"]["status"] for one in rows}
        checks = part["checks"]
        about = part["machine"]
        header = ["tokens", *(f"{way}: s" for way in WAYS), *(f"{way}: MiB" for way in WAYS), *(f"{way}: tokens/s" for way in WAYS[:3])]
        parts.append(
            f"{name} of width {setting['width']}; {setting['clients']} clients, {setting['threads']} thread"
            f"{'s' * (setting['threads'] > 1)} of onnxruntime. Processor seconds per document; peak resident memory of the server.\n\n"
            + markdown_table(header, table)
            + f"\n\nOf {sum(one['documents'] for one in rows):,} documents {lost} lost their answer; one token too many was answered with "
            f"{', '.join(map(str, sorted(refused)))} and a sentence. Largest difference from sentence-transformers in PyTorch "
            f"{max(one['difference'] for one in checks.values() if 'difference' in one):.0e}; int8: least cosine "
            f"{min(one['least_cosine'] for one in checks.values() if 'least_cosine' in one):.4f}.\n\n"
            f"*{about['processor']}, {setting['threads']} thread{'s' * (setting['threads'] > 1)}, onnxruntime {part['onnxruntime']}, "
            f"{about['date']}*\n"
        )
    return "\n".join(parts)


@one_sentence_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=Setting.layers)
    parser.add_argument("--threads", type=int, default=Setting.threads)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--again", action="store_true", help="measure rows again that OUTPUT.json has")
    parser.add_argument(
        "--work-dir", type=Path, default=Path.home() / ".cache" / "hf_longattn" / "serving", help="models and exports, kept"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "serving", help="path without suffix")
    options = parser.parse_args(arguments)
    setting = Setting(layers=options.layers, threads=options.threads)
    file: Path = options.output.with_suffix(".json")
    stored = stored_study(file)
    if "int8" not in stored or options.again:
        options.work_dir.mkdir(parents=True, exist_ok=True)
        stored["int8"] = quantise_references(options.work_dir)
    run(stored, setting, options.lengths, options.ways, options.work_dir, file, options.again)
    store_study(file, stored, markdown(stored))
    print(markdown(stored))
    return 0


def run(
    stored: dict[str, Any], setting: Setting, lengths: Sequence[int], ways: Sequence[str], folder: Path, file: Path, again: bool = False
) -> None:
    """Build, check and measure what ``stored`` lacks, and write it after every row."""
    import importlib.metadata

    folder = folder / f"{setting.layers}-layers-{setting.width}"
    folder.mkdir(parents=True, exist_ok=True)
    build(setting, folder)
    vocabulary = one_token_words()
    part = stored.setdefault("load", {}).setdefault(f"{setting.layers} layers", {"rows": []})
    if part.get("setting") != asdict(setting) or "checks" not in part:
        part |= {"setting": asdict(setting), "checks": check(setting, folder, vocabulary), "rows": []}
    part |= {"machine": machine(), "onnxruntime": importlib.metadata.version("onnxruntime")}
    for length in lengths:
        for way in ways:
            if way == "full" and length > setting.full_up_to:
                continue
            old = [one for one in part["rows"] if (one["way"], one["length"]) == (way, length)]
            if old and not again:
                continue
            row = {"way": way, "length": length, **measure(way, length, setting, folder, vocabulary)}
            part["rows"] = sorted(
                [*(one for one in part["rows"] if one not in old), row], key=lambda one: (one["length"], WAYS.index(one["way"]))
            )
            store_study(file, stored, markdown(stored))
            print(
                f"{length:>6} {way:<13} {row['seconds_per_document']:8.2f} s/document {row['peak_mib']:8,.0f} MiB  lost {row['lost']}  "
                f"{row['too_long']['status']}", file=sys.stderr, flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
