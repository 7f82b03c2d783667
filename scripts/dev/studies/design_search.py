"""Does a searched design beat the same mechanism in every layer at equal measured cost? Diagnose, search, convert, fine-tune, measure.

    python -m scripts.dev.studies.design_search --work-dir work          # some 50 minutes on one core

The four commands of docs/how-to/search.md, `longattn diagnose`, `longattn search` on the validation packages under a budget
of time, `longattn convert --config design.yaml`, `longattn train mlm` on modules of the test packages, which the checkpoint never read.
Baselines are window and longformer in every layer, each with the narrowest width, in steps of 16 tokens, whose attention takes at least as
long as the design's. All are trained with the same learning rate, chosen by the uniform window's loss on other documents, and predict the
same masked tokens of the same held-out documents. What the work folder holds is not done again. Writes OUTPUT.json, .md and .svg.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from hf_longattn.cli.app import app
from hf_longattn.conversion.config import ConversionConfig
from hf_longattn.diagnostics import Candidate
from hf_longattn.errors import LongAttentionError
from hf_longattn.reading import read_json_object
from hf_longattn.search.costs import LayerCosts
from hf_longattn.search.folder import COSTS
from hf_longattn.search.model import SearchedModel
from scripts.dev.benchmarks.report import machine, markdown_table, one_sentence_errors, store_study
from scripts.dev.studies.adaptation import PARTIAL, paired
from scripts.dev.studies.corpus import iter_modules, without_near_duplicates
from scripts.dev.studies.text_loss import masked_loss, masked_texts

FOUND, BY_MASS = "searched design", "stage 1 by captured mass"
LONG = 5
"""Characters of a token, with a margin: documents with fewer are left out."""
TRAINED = 1_000_000
"""Characters to train on."""
STEP = 16
"""Tokens between the widths of baselines."""
REPEATED = 3
"""Measurements of all costs, of which the least counts."""
FORWARD = 6
"""Forward passes of each model, in turns, of which the fastest counts."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--work-dir", type=Path, required=True, help="folder of texts, search and models; kept between runs")
    add("--model", type=Path, default=Path("model_cards/bert-python-512"), help="folder of the short encoder")
    add("--length", type=int, default=4096, help="tokens of the long input (default: 4096)")
    add("--budget", default="0.115", help="of the search (default: 0.115 of full attention's time)")
    add("--score", default="kl", help="of stage 1 of the search: mass or kl (default: kl)")
    add("--trials", type=int, default=24, help="designs that stage 2 of the search tries (default: 24)")
    add("--also", nargs="*", default=[], metavar="MECHANISM", help="other mechanisms in every layer, whatever they cost")
    add("--steps", type=int, default=80, help="optimiser steps of the training, one input each (default: 80)")
    add("--rate-steps", type=int, default=32, help="steps of the training with each learning rate (default: 32)")
    add("--learning-rates", nargs="+", default=["1e-4", "3e-4", "1e-3"], help="tried ones (default: 1e-4 3e-4 1e-3)")
    add("--seeds", type=int, default=3, help="trainings of each conversion (default: 3)")
    add("--documents", type=int, default=12, help="held-out documents (default: 12)")
    add("--rate-documents", type=int, default=6, help="documents by which the learning rate is chosen (default: 6)")
    add("--threads", type=int, default=1, help="processor threads (default: 1)")
    add("--output", type=Path, default=Path("scripts/dev/results/search"), help="path without suffix (default: %(default)s)")
    return parser.parse_args(arguments)


@dataclass(frozen=True)
class System:
    """A conversion: its ``name``, what its ``layers`` run, and the flags of `longattn convert` that make it so."""

    name: str
    layers: tuple[str, ...]
    flags: tuple[str, ...]

    @classmethod
    def uniform(cls, name: str, layers: int) -> System:
        """The same mechanism in every layer."""
        candidate = Candidate.read(name)
        options = [f"--option={option}={value}" for option, value in candidate.options.items()]
        return cls(name, (name,) * layers, ("--mechanism", candidate.mechanism, *options))


class Walk:
    """The commands, in one work folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.work = options, options.work_dir
        self.work.mkdir(parents=True, exist_ok=True)
        self.model = options.model
        self.tokenizer = AutoTokenizer.from_pretrained(self.model)

    def longattn(self, name: str, *words: str | Path) -> None:
        """Run a command in this process, and keep what it prints in ``NAME.log``."""
        log = self.work / f"{name}.log"
        with log.open("w", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
            code = app([str(word) for word in words], standalone_mode=False)
        if code:
            raise LongAttentionError(f"`longattn {words[0]}` ended with exit code {code}; {log} has what it printed")

    def make(self, name: str, command: Callable[[Path], Sequence[str | Path]]) -> Path:
        """A model folder; ``command`` returns the words that write it to the folder it is given. Done once."""
        folder, stage = self.work / name, self.work / f"{name}{PARTIAL}"
        if not folder.exists():
            shutil.rmtree(stage, ignore_errors=True)
            self.longattn(name, *command(stage))
            stage.replace(folder)
        return folder

    def text(self) -> Path:
        """Validation modules, one after the other; written once."""
        file, size = self.work / "validation.txt", 0
        if not file.exists():
            text = []
            for module in iter_modules("validation"):
                text.append(module.text)
                size += len(module.text)
                if size > 40 * self.options.length:
                    break
            file.write_text("\n\n".join(text), encoding="utf-8")
        return file

    def diagnose(self) -> None:
        """The page of what the checkpoint attends to."""
        page, lengths = self.work / "diagnosis.html", f"{min(512, self.options.length)},{self.options.length}"
        if not page.exists():
            self.longattn("diagnosis", "diagnose", self.model, self.text(), "--lengths", lengths, "--extend", "tile", "--html", page)

    def search(self, name: str, score: str, trials: int) -> dict[str, Any]:
        """The report of a search; an interrupted one resumes. All in a work folder know the costs that the first one measured."""
        folder, costs, options = self.work / name, self.work / "layer_costs.json", self.options
        if not (folder / "report.json").exists():
            if costs.exists() and not folder.exists():
                folder.mkdir()
                shutil.copy(costs, folder / COSTS)
            resume = ["--resume"] if (folder / "settings.json").exists() else []
            self.longattn(
                name, "search", self.model, self.text(), "--budget", options.budget, "--length", str(options.length),
                "--score", score, "--trials", str(trials), "--output", folder, *resume,
            )  # fmt: skip
        if not costs.exists():
            shutil.copy(folder / COSTS, costs)
        return read_json_object(folder / "report.json")

    def convert(self, system: System) -> Path:
        """The long checkpoint."""
        length = str(self.options.length)
        return self.make(self.name(system), lambda folder: ["convert", self.model, folder, "--max-length", length, *system.flags])

    def train(self, system: System, learning_rate: str, seed: int, steps: int) -> Path:
        """The long checkpoint after training."""
        source, text = self.convert(system), self.documents()["train"]

        def command(folder: Path) -> list[str | Path]:
            return [
                "train", "mlm", "--model", source, "--text", text, "--validation", self.documents()["rate"], "--max-steps",
                str(steps), "--gradient-accumulation-steps", "1", "--learning-rate", learning_rate, "--seed", str(seed),
                "--disable-tqdm", "true", "--output", folder,
            ]  # fmt: skip

        return self.make(f"{source.name}-{steps}-{learning_rate}-{seed}", command)

    @staticmethod
    def name(system: System) -> str:
        """Of the folder."""
        return "-".join(system.name.replace(":", "-").replace(",", "-").split())

    def documents(self) -> dict[str, Path]:
        """Files of long modules of the test packages: ``test`` and ``rate``, as many as asked for, and ``train``; written once.

        Copies of one another and of documents of the first two are not trained on.
        """
        options, files = self.options, {name: self.work / f"{name}.jsonl" for name in ("test", "rate", "train")}
        if not all(file.exists() for file in files.values()):
            long = [module for module in iter_modules("test") if len(module.text) >= LONG * options.length]
            random.Random(0).shuffle(long)
            numbers = (0, options.documents, options.documents + options.rate_documents)
            test, rate, rest = long[: numbers[1]], long[numbers[1] : numbers[2]], long[numbers[2] :]
            train, characters = [], 0
            for module in without_near_duplicates(rest, [*test, *rate]):
                if characters < TRAINED:
                    train.append(module)
                    characters += len(module.text)
            for file, modules in zip(files.values(), (test, rate, train), strict=True):
                file.write_text("".join(json.dumps({"text": module.text}) + "\n" for module in modules), encoding="utf-8")
        return files

    def loss(self, folder: Path, name: str) -> list[float]:
        """Nats per masked token of each document of a file; measured once for a folder."""
        file, documents = folder.with_name(f"{folder.name}.{name}.json"), self.documents()[name]
        if not file.exists():
            model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
            texts = [json.loads(line)["text"] for line in documents.read_text(encoding="utf-8").splitlines()]
            losses = masked_loss(model, self.tokenizer, masked_texts(texts, self.tokenizer, self.options.length, len(texts)))
            file.write_text(json.dumps(losses), encoding="utf-8")
        found: list[float] = json.loads(file.read_text(encoding="utf-8"))
        return found


def measured_costs(walk: Walk, names: Sequence[str]) -> dict[str, float]:
    """Seconds of one layer by candidate, all measured together; measured once for a work folder."""
    file, options = walk.work / "costs.json", walk.options
    known: dict[str, float] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if set(names) <= set(known):
        return known
    model = SearchedModel.open(str(walk.model), ConversionConfig(max_length=options.length), torch.device("cpu"))
    turns = []
    for _ in range(REPEATED):
        costs = LayerCosts(model.original.shape, options.length, torch.device("cpu"))
        turns.append(costs.measure([Candidate.read(name) for name in names]))
    known = {name: min(turn[name].seconds for turn in turns) for name in names}
    file.write_text(json.dumps(known, indent=1), encoding="utf-8")
    return known


def systems(walk: Walk, report: Mapping[str, Any], by_mass: Mapping[str, Any]) -> tuple[list[System], dict[str, float]]:
    """The searched design, what captured mass alone would choose, and the baselines; and the seconds of one layer by candidate.

    Raises:
        LongAttentionError: no width costs as much as the design.
    """
    design, other = (tuple(one["chosen"]["layers"]) for one in (report, by_mass))
    widths = {kind: [f"{kind}:window={width}" for width in range(32, 769, STEP)] for kind in ("longformer", "window")}
    names = [*design, *other, *widths["longformer"], *widths["window"], *walk.options.also, "full"]
    costs = measured_costs(walk, list(dict.fromkeys(names)))
    price = sum(costs[name] for name in design)
    found = [
        System(name, layers, ("--config", str(walk.work / folder / "design.yaml")))
        for name, layers, folder in ((FOUND, design, "search"), (BY_MASS, other, "mass"))
    ]
    for kind, known in widths.items():
        equal = next((name for name in known if len(design) * costs[name] >= price), None)
        if equal is None:
            raise LongAttentionError(f"no {kind} costs as much as the design, {price:.3g} s; give a smaller --budget")
        found.append(System.uniform(equal, len(design)))
    return [*found, *(System.uniform(name, len(design)) for name in walk.options.also)], costs


def chosen_rate(walk: Walk, system: System) -> tuple[str, dict[str, float]]:
    """The learning rate with the least loss of one system and the first seed, and the losses of all."""
    steps = walk.options.rate_steps
    tried = {rate: statistics.fmean(walk.loss(walk.train(system, rate, 0, steps), "rate")) for rate in walk.options.learning_rates}
    return min(tried, key=lambda rate: tried[rate]), tried


@torch.inference_mode()
def forward_seconds(walk: Walk, folders: Sequence[Path]) -> list[float]:
    """Processor seconds of the whole model for one input, the fastest of several turns; measured once for the same folders."""
    file = walk.work / "forward.json"
    known: dict[str, float] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if not {folder.name for folder in folders} <= set(known):
        clock: Callable[[], float] = time.process_time if walk.options.threads == 1 else time.perf_counter
        models = [AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval() for folder in folders]
        ids = torch.randint(5, models[0].config.vocab_size, (1, walk.options.length), generator=torch.Generator().manual_seed(0))
        turns: list[list[float]] = []
        for _ in range(1 + FORWARD):
            turn = []
            for model in models:
                start = clock()
                model.base_model(input_ids=ids)
                turn.append(clock() - start)
            turns.append(turn)
        known = {folder.name: min(one) for folder, one in zip(folders, zip(*turns[1:], strict=True), strict=True)}
        file.write_text(json.dumps(known, indent=1), encoding="utf-8")
    return [known[folder.name] for folder in folders]


def table(walk: Walk, found: Sequence[System], costs: Mapping[str, float], rate: str) -> list[dict[str, Any]]:
    """Every system with its cost and its losses before and after training."""
    full, rows = len(found[0].layers) * costs["full"], list[dict[str, Any]]()
    folders = [walk.convert(system) for system in found]
    forwards = forward_seconds(walk, folders)
    trained = [system for system in found if system.name != BY_MASS]
    for seed in range(walk.options.seeds):
        for system in trained:
            loss = statistics.fmean(walk.loss(walk.train(system, rate, seed, walk.options.steps), "test"))
            print(f"seed {seed}, {system.name}: {loss:.4f}", flush=True)
    for system, folder, forward in zip(found, folders, forwards, strict=True):
        seconds = sum(costs[name] for name in system.layers)
        row: dict[str, Any] = {"name": system.name, "layers": list(system.layers), "attention_seconds": seconds}
        row |= {"share_of_full_time": seconds / full, "model_seconds": forward, "untrained": walk.loss(folder, "test")}
        row["untrained_loss"] = statistics.fmean(row["untrained"])
        rows.append(row)
        if system not in trained:
            continue
        row["trained"] = [walk.loss(walk.train(system, rate, seed, walk.options.steps), "test") for seed in range(walk.options.seeds)]
        means = [statistics.fmean(losses) for losses in row["trained"]]
        row["loss"], row["sd"] = statistics.fmean(means), statistics.stdev(means) if len(means) > 1 else 0.0
        best, mine = ([statistics.fmean(one) for one in zip(*each["trained"], strict=True)] for each in (rows[0], row))
        row["above_search"], row["above_search_se"] = paired(mine, best)
        row["gained"], row["gained_se"] = paired(row["untrained"], mine)
    return rows


def layers_text(layers: Sequence[str]) -> str:
    """``0=A; 1-2=B``, or ``A in every layer``."""
    if len(set(layers)) == 1:
        return "the same in every layer"
    return "; ".join(f"{number}={name}" for number, name in enumerate(layers))


def markdown(record: dict[str, Any]) -> str:
    """The table, with what was measured and where."""
    about, search = record["about"], record["search"]
    rows = []
    for row in record["rows"]:
        after, above = "not trained", ""
        if "loss" in row:
            after = f"{row['loss']:.4f} ± {row['sd']:.4f} ({-row['gained']:+.3f} ± {row['gained_se']:.3f})"
            above = "" if row["name"] == FOUND else f"{row['above_search']:+.4f} ± {row['above_search_se']:.4f}"
        rows.append([
            row["name"], layers_text(row["layers"]), f"{row['share_of_full_time']:.4f}", f"{1e3 * row['model_seconds']:.0f}",
            f"{row['untrained_loss']:.4f}", after, above,
        ])  # fmt: skip
    header = ["system", "layers", "attention's time / full", "whole model (ms)", "before training"]
    header += [f"after {about['steps']} steps, mean ± sd over seeds", "above the search"]
    rates = ", ".join(f"{rate}: {loss:.4f}" for rate, loss in record["learning_rates"].items())
    return (
        f"{markdown_table(header, rows)}\n\n"
        f"*Nats per masked token of {about['documents']} held-out documents at {about['length']:,} tokens, before and after "
        f"`longattn train mlm` with one such input in each step, {about['seeds']} seeds. In brackets what training changes, and above the "
        "search the difference from the searched design after training, seeds averaged: means over documents, paired, ± standard error. "
        f"Baselines have the narrowest width, in steps of {STEP} tokens, that costs at least "
        f"as much as the searched design, which was found under a budget of {about['budget']} of full attention's time in "
        f"{len(search['tried'])} designs tried. Learning rate {about['learning_rate']}, by the uniform window's loss on other "
        f"documents after {about['rate_steps']} steps ({rates}). {about['processor']}, {about['threads']} thread, "
        f"torch {about['torch']}, {about['date']}*\n\n"
        f"{search['reason']}\n"
    )


@one_sentence_errors
def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    walk = Walk(options)
    walk.diagnose()
    report, by_mass = walk.search("search", options.score, options.trials), walk.search("mass", "mass", 0)
    found, costs = systems(walk, report, by_mass)
    rate, tried = chosen_rate(walk, next(system for system in found if system.name.startswith("window:")))
    print(f"learning rate {rate}: {tried}", flush=True)
    rows = table(walk, found, costs, rate)
    about = {**machine(), "model": str(options.model), "learning_rate": rate}
    about |= {name: getattr(options, name) for name in ("length", "budget", "score", "trials", "steps", "rate_steps", "seeds", "documents")}
    kept = {name: value for name, value in report.items() if name != "command"} | {
        "model": str(options.model)
    }  # without this machine's paths
    record = {"about": about, "learning_rates": tried, "costs": costs, "search": kept, "rows": rows}
    store_study(options.output, record, markdown(record))
    shutil.copy(options.work_dir / "search" / "pareto.svg", options.output.with_suffix(".svg"))
    print(markdown(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
