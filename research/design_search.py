"""Does a searched design beat the same mechanism in every layer at equal measured cost? Diagnose, search, convert, fine-tune, measure.

    python -m research.design_search --work-dir work          # some 15 minutes on one core

The budget is what longformer costs in every layer of the reference encoder at a long input. Three conversions within it: the design that
`longattn search` finds on the validation packages, longformer in every layer, and the widest window in every layer. Each is trained for a
few steps on the train packages, with several seeds, and predicts the same masked tokens of the same held-out documents. Models and the
search are kept in the work folder, and what is complete is not done again. Writes OUTPUT.json, OUTPUT.md and OUTPUT.svg.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

import hf_longattn
from benchmarks.report import machine, markdown_table, store_study
from hf_longattn import LongAttentionConfig, SearchResult
from hf_longattn.errors import LongAttentionError
from hf_longattn.mechanisms.composite import read_choice
from research.adaptation import adapt, paired, write_long_documents
from research.corpus import iter_modules
from research.mlm import MaskedText, masked_loss, masked_texts

FOUND = "searched design"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--work-dir", type=Path, required=True, help="folder of texts, search and models; kept between runs")
    add("--model", type=Path, default=Path("assets/bert-python-512"), help="folder of the short encoder")
    add("--length", type=int, default=4096, help="tokens of the long input (default: 4096)")
    add("--window", type=int, default=128, help="longformer's window, whose cost is the budget (default: 128)")
    add("--trials", type=int, default=0, help="designs that stage 2 of the search tries (default: 0)")
    add("--steps", type=int, default=30, help="optimiser steps of the training, one input each (default: 30)")
    add("--learning-rate", type=float, default=1e-4, help="highest learning rate (default: 1e-4)")
    add("--seeds", type=int, default=3, help="trainings of each conversion (default: 3)")
    add("--documents", type=int, default=16, help="held-out documents (default: 16)")
    add("--threads", type=int, default=1, help="processor threads (default: 1)")
    add("--output", type=Path, default=Path("docs/results/search"), help="path without suffix (default: docs/results/search)")
    return parser.parse_args(arguments)


def search_text(work: Path, characters: int) -> Path:
    """Validation modules, one after the other; written once."""
    file = work / "validation.txt"
    if not file.exists():
        text, size = [], 0
        for module in iter_modules("validation"):
            text.append(module.text)
            size += len(module.text)
            if size > characters:
                break
        work.mkdir(parents=True, exist_ok=True)
        file.write_text("\n\n".join(text), encoding="utf-8")
    return file


def searched(options: argparse.Namespace) -> tuple[SearchResult, float, str]:
    """A search under the cost of uniform longformer, that cost as a share of full attention's, and the widest window within it."""
    work, text = options.work_dir, search_text(options.work_dir, 40 * options.length)
    baseline = f"longformer:window={options.window}"

    def search(folder: str, **settings: Any) -> SearchResult:
        output = work / folder
        return hf_longattn.search_design(
            options.model, text, output, length=options.length, resume=(output / "settings.json").exists(), device="cpu", **settings
        )  # fmt: skip

    costs = search("costs", budget="1").costs
    (work / "search").mkdir(exist_ok=True)
    if not (work / "search" / "costs.json").exists():  # the same measured costs
        shutil.copy(work / "costs" / "costs.json", work / "search" / "costs.json")
    share = costs[baseline][0] / costs["full"][0]
    found = search("search", budget=f"{share:.9f}", trials=options.trials)
    windows = [name for name in costs if name.startswith("window:") and costs[name][0] <= costs[baseline][0]]
    return found, share, max(windows, key=lambda name: read_width(name))


def read_width(name: str) -> int:
    """Of ``window:window=256``."""
    return int(read_choice(name)["window"])


def converted(options: argparse.Namespace, name: str, attention: LongAttentionConfig) -> Path:
    """A conversion of the short encoder; done once."""
    folder = options.work_dir / f"{name.replace(' ', '-').replace(':', '-')}-{options.length}"
    if not folder.exists():
        hf_longattn.convert_checkpoint(options.model, folder, max_length=options.length, long_attention=attention, verify=False)
    return folder


def measured(folder: Path, tokenizer: Any, texts: Sequence[MaskedText]) -> list[float]:
    """Nats per masked token of each document; measured once for a folder."""
    file = folder / "held_out.json"
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    losses = masked_loss(AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval(), tokenizer, texts)
    file.write_text(json.dumps(losses), encoding="utf-8")
    return losses


def table(options: argparse.Namespace, found: SearchResult, window: str) -> list[dict[str, Any]]:
    """Every system with its cost and its losses before and after training."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    texts = masked_texts([module.text for module in iter_modules("test")], tokenizer, options.length, options.documents)
    text = write_long_documents(options.work_dir / f"train-{options.length}.jsonl", 4 * options.length, 4_000_000)
    uniform = [f"longformer:window={options.window}", window]
    systems = {FOUND: found.chosen.design.attention(), **{name: LongAttentionConfig.from_dict(read_choice(name)) for name in uniform}}
    layers, rows = len(found.rows), []
    for name, attention in systems.items():
        folder = converted(options, name, attention)
        seconds = found.chosen.seconds if name == FOUND else layers * found.costs[name][0]
        row: dict[str, Any] = {"name": name, "design": str(found.chosen.design) if name == FOUND else f"{name} in every layer"}
        row |= {"share_of_full_time": seconds / found.full_seconds, "untrained": measured(folder, tokenizer, texts), "trained": []}
        for seed in range(options.seeds):
            trained = adapt(
                folder, Path(f"{folder}-{options.steps}-{options.learning_rate:g}-{seed}"), text, objective="mlm", length=options.length,
                steps=options.steps, rows=1, learning_rate=options.learning_rate, seed=seed,
            )  # fmt: skip
            row["trained"].append(measured(trained, tokenizer, texts))
        rows.append(row)
    for row in rows:
        means = [statistics.fmean(losses) for losses in row["trained"]]
        row["loss"], row["sd"] = statistics.fmean(means), statistics.stdev(means) if len(means) > 1 else 0.0
        row["untrained_loss"] = statistics.fmean(row["untrained"])
        over_seeds = [[statistics.fmean(one) for one in zip(*each["trained"], strict=True)] for each in (rows[0], row)]
        row["above_search"], row["above_search_se"] = paired(over_seeds[1], over_seeds[0])
    return rows


def markdown(record: dict[str, Any]) -> str:
    """The table, with what was measured and where."""
    about = record["about"]
    rows = [
        [
            row["name"], row["design"], f"{row['share_of_full_time']:.4f}", f"{row['untrained_loss']:.4f}",
            f"{row['loss']:.4f} ± {row['sd']:.4f}", "" if number == 0 else f"{row['above_search']:+.4f} ± {row['above_search_se']:.4f}",
        ]
        for number, row in enumerate(record["rows"])
    ]  # fmt: skip
    header = ["system", "layers", "attention's time / full", "before training", "after (mean ± sd over seeds)", "above the search (± se)"]
    return (
        f"{markdown_table(header, rows)}\n\n"
        f"*Nats per masked token of {about['documents']} held-out documents at {about['length']:,} tokens, before and after "
        f"{about['steps']} steps of one such input, {about['seeds']} seeds; the last column is the paired difference over "
        f"documents, seeds averaged. The budget is the measured time of uniform longformer, {record['share']:.4f} of full attention's. "
        f"{about['processor']}, {about['threads']} thread, torch {about['torch']}, {about['date']}*\n"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    try:
        found, share, window = searched(options)
        rows = table(options, found, window)
    except LongAttentionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    about = {**machine(), "model": str(options.model)}
    about |= {name: getattr(options, name) for name in ("length", "window", "trials", "steps", "learning_rate", "seeds", "documents")}
    kept = {name: value for name, value in found.to_dict().items() if name != "command"}  # which has the work folder's path
    record = {"about": about, "share": share, "reason": found.reason, "search": kept, "rows": rows}
    store_study(options.output, record, markdown(record))
    shutil.copy(options.work_dir / "search" / "pareto.svg", options.output.with_suffix(".svg"))
    print(markdown(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
