"""What a conversion costs and what attention distillation recovers: held-out loss by mechanism and stage.

    python -m scripts.dev.tools.measure_distillation --model model_cards/bert-python-512 --mechanisms hedgehog taylor nystrom linformer
    python -m scripts.dev.tools.measure_distillation --model model_cards/bert-python-512 --mechanisms hedgehog --softmax-layers 2 \\
        --finetune-loss mixed \\
        --beside wikitext-2/valid.txt

Each mechanism is put into the model, trained by `longattn train linearise` on the training packages of the reference corpus, and scored on
its test packages and on WikiText-2's test.txt, on the same tokens for every row. Encoders are scored by masked tokens, decoders by next
tokens. Rows are stored one by one; those that are there already are kept. Writes OUTPUT.json and OUTPUT.md.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import hf_longattn  # noqa: F401  (registers the long models with AutoModel)
from hf_longattn.mechanisms.common.composite import read_choice
from hf_longattn.mechanisms.common.registry import build_mechanism
from hf_longattn.training.linearise.args import LineariseModelArguments, LineariseTrainingArguments
from hf_longattn.training.linearise.stages import STAGE_1, recovered
from hf_longattn.training.linearise.student import CONVERTED
from hf_longattn.training.lm import TextDataArguments, input_length, load_lm
from hf_longattn.training.tasks.linearise import linearise_attention
from scripts.dev.benchmarks.report import machine, one_sentence_errors, store_study, stored_study
from scripts.dev.studies.corpus import iter_modules, write_jsonl
from scripts.dev.studies.text_loss import first_tokens, masked_loss, masked_texts, next_token_loss

STAGES = {"converted": CONVERTED, "stage 1": STAGE_1, "stage 2": "."}
ARTICLE = re.compile(r"^ = [^=].*[^=] = $", re.MULTILINE)
TINY = 1e-3
"""Nats; a conversion that costs less costs nothing, and there is nothing to recover."""
PIECE = 8000
"""Characters of a piece of text."""
Score = Callable[[str], dict[str, dict[str, float]]]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="short checkpoint with a language-modelling head")
    add("--mechanisms", nargs="+", default=[], help="each MECHANISM[:NAME=VALUE,...]; none: write the tables of what is stored")
    add("--layers", default="", help="other mechanisms in some layers, as for `longattn convert --layers`: 0=hybrid:window=64")
    add("--work", required=True, help="folder for the checkpoints")
    add("--text", nargs="+", help="text to train on (default: the training packages of the reference corpus)")
    add("--wikitext", help="WikiText-2's test.txt, to score on as well")
    add("--beside", help="articles of WikiText-2 to train on as well (valid.txt, never test.txt), in pieces among those of the code")
    add("--code-share", type=float, default=0.6, help="with --beside, share of the code among the characters (default: 0.6)")
    add("--name", help="what the tables call the model (default: --model)")
    add("--max-documents", type=int, default=0, help="documents to train on (default: all)")
    add("--length", type=int, help="tokens of an input (default: what the model takes)")
    add("--documents", type=int, default=32, help="held-out documents of each text (default: 32)")
    add("--batch-size", type=int, default=8, help="inputs per step (default: 8)")
    add("--transfer-steps", type=int, default=100, help="steps of stage 1 (default: 100)")
    add("--transfer-learning-rate", type=float, default=1e-2, help="learning rate of stage 1 (default: 1e-2)")
    add("--finetune-steps", type=int, default=200, help="steps of stage 2 (default: 200)")
    add("--finetune-learning-rate", type=float, default=2e-4, help="learning rate of stage 2 (default: 2e-4)")
    add("--finetune-loss", default="lm", help="stage 2: lm, kl (the original's predictions) or mixed (default: lm)")
    add("--kl-factor", type=float, default=1.0, help="of the KL divergence in mixed (default: 1)")
    add("--softmax-layers", type=float, default=0.0, help="layers that keep softmax attention (default: 0)")
    add("--bf16", action="store_true", help="train under bfloat16 autocast")
    add("--lora", action="store_true", help="stage 2 by LoRA (default: all parameters)")
    add("--pretraining-tokens", type=float, default=25.3e6, help="tokens of the model's pre-training (default: 25.3e6)")
    add("--threads", type=int, default=1, help="processor threads (default: 1)")
    add("--seed", type=int, default=0, help="seed of training order and masks")
    add("--output", default="scripts/dev/results/distillation", help="path without suffix (default: %(default)s)")
    return parser.parse_args(arguments)


def held_out_texts(options: argparse.Namespace) -> dict[str, list[str]]:
    """Name -> documents: the test packages of the corpus, and the articles of WikiText-2."""
    found = {"code": [module.text for module in iter_modules("test")]}
    if options.wikitext:
        found["WikiText-2"] = ARTICLE.split(Path(options.wikitext).read_text(encoding="utf-8"))
    return found


def scorer(options: argparse.Namespace) -> tuple[Score, int, str]:
    """A function that scores a checkpoint on the held-out texts, their length in tokens, and the objective."""
    model, tokenizer, objective = load_lm(options.model, "auto")
    length = input_length(model, tokenizer, options.length)
    measures: dict[str, Callable[[Any], list[float]]] = {}
    for name, texts in held_out_texts(options).items():
        if objective == "mlm":
            masked = masked_texts(texts, tokenizer, length, options.documents, seed=options.seed)
            measures[name] = partial(masked_loss, tokenizer=tokenizer, texts=masked)
        else:
            measures[name] = partial(
                next_token_loss, tokenizer=tokenizer, texts=first_tokens(texts, tokenizer, length - 1, options.documents)
            )

    def score(checkpoint: str) -> dict[str, dict[str, float]]:
        loaded = load_lm(checkpoint, objective)[0].eval()
        losses = {name: measure(loaded) for name, measure in measures.items()}
        return {
            name: {"loss": statistics.fmean(values), "loss_se": statistics.stdev(values) / math.sqrt(len(values))}
            for name, values in losses.items()
        }

    return score, length, objective


def measure(mechanism: str, options: argparse.Namespace, length: int, score: Score) -> dict[str, Any]:
    """Train one mechanism and score every stage of it."""
    output = Path(options.work) / re.sub(r"\W+", "-", row_name(mechanism, options))
    choice = read_choice(mechanism)
    sample = build_mechanism(choice.pop("mechanism"), num_heads=4, head_dim=64, max_length=length, **choice)
    learns = any(parameter.requires_grad for parameter in sample.parameters())
    trained: dict[str, Any] = {
        "per_device_train_batch_size": options.batch_size,
        "transfer_steps": options.transfer_steps,
        "transfer_learning_rate": options.transfer_learning_rate,
        "finetune_steps": options.finetune_steps,
        "finetune_learning_rate": options.finetune_learning_rate,
        "finetune_loss": options.finetune_loss,
        "softmax_layers": options.softmax_layers,
        "bf16": options.bf16,
        "full": not options.lora,
        "seed": options.seed,
    }
    if options.finetune_loss == "mixed":
        trained["kl_factor"] = options.kl_factor
    report = linearise_attention(
        LineariseModelArguments(model=options.model, mechanism=mechanism, layers=options.layers),
        TextDataArguments(text=options.text, max_length=length, max_train_samples=options.max_documents or None),
        LineariseTrainingArguments(
            output_dir=str(output), stage="both" if learns else "2", gradient_accumulation_steps=1, warmup_steps=10,
            threads=options.threads, held_out_inputs=16, disable_tqdm=True, save_steps=50, resume=output.exists(), report_to="none",
            **trained,
        ),
    )  # fmt: skip
    stages = {name: score(str(output / folder)) for name, folder in STAGES.items() if learns or name != "stage 1"}
    errors = {stage: [row["share"] for row in report[stage]["layers"]] for stage in ("before", "stage1", "stage2") if stage in report}
    found = {"stages": stages, "tokens": report["tokens"], "settings": trained, "layer_errors": errors, "about": machine()}
    if "softmax_layers" in report:
        found["softmax_layers"] = report["softmax_layers"]["kept"]
    return {**found, "kl": report.get("kl"), "beside": bool(options.beside), "mechanism": mechanism, "layers": options.layers}


def row_name(mechanism: str, options: argparse.Namespace) -> str:
    """What a row is called: the mechanism, and what else of its training differs from the plain two stages."""
    kept = f" + {options.softmax_layers:g} softmax" if options.softmax_layers else ""
    kept = f"; {options.layers}{kept}" if options.layers else kept
    return f"{mechanism}{kept}{'' if options.finetune_loss == 'lm' else f', {options.finetune_loss}'}"


def mixed_text(code: Path, articles: Path, share: float, path: Path) -> None:
    """Write pieces of the articles, each once, and of ``code`` (JSON lines) among them, which are ``share`` of the characters."""
    text = articles.read_text(encoding="utf-8")
    starts = [found.start() for found in ARTICLE.finditer(text)]
    pieces = [piece for start, end in zip(starts, [*starts[1:], len(text)], strict=True) for piece in _cut(text[start:end])]
    rest = sum(map(len, pieces)) * share / (1 - share)
    rng = random.Random(0)
    with code.open(encoding="utf-8") as file:
        documents = [json.loads(line)["text"] for line in file]
    rng.shuffle(documents)
    for document in documents:
        if rest <= 0:
            break
        pieces.append(document[:PIECE])
        rest -= len(pieces[-1])
    rng.shuffle(pieces)
    path.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces), encoding="utf-8")


def _cut(text: str) -> list[str]:
    return [text[start : start + PIECE] for start in range(0, len(text), PIECE)]


def markdown(stored: dict[str, Any]) -> str:
    """All tables as a page."""
    notes = [f"- {model}: " + ", ".join(f"{key} {value}" for key, value in part["about"].items()) for model, part in stored.items()]
    return "\n".join(["# Attention transfer: held-out loss by mechanism and stage", "", tables(stored), "", *notes]) + "\n"


def tables(stored: dict[str, Any]) -> str:
    """What the numbers are, and a table for each model and text."""
    lines = [
        "Nats per masked token (encoders) or next token (decoders) ± standard error over documents. *Recovered* is the share of the loss "
        "that the conversion cost and that the training won back. Stage 1 trains the mechanisms alone to give the softmax attention's "
        "outputs. Stage 2 trains all parameters: *lm* on the model's own objective, *kl* on the original's predictions, *mixed* on both. "
        "Layers in brackets keep softmax attention; it is restored after stage 1, whose column has it. *+ wiki*: the training text is 60 % "
        "code, the rest is WikiText-2's valid.txt; otherwise it is code alone. WikiText-2 is scored on test.txt.",
    ]
    for model, part in stored.items():
        for text, original in part["original"].items():
            lines += ["", f"**{model}, {text}**, inputs of {part['length']:,} tokens. Original: {_cell(original)}.", ""]
            lines += [
                "| mechanism | stage 2 | converted | after stage 1 | after stage 2 | recovered | tokens: stage 1 + 2 | of pre-training |",
                "|---|---|---|---|---|---|---|---|",
            ]
            for name, row in part["rows"].items():
                cells = [_cell(row["stages"][stage][text]) if stage in row["stages"] else "–" for stage in STAGES]
                before, after = (row["stages"][stage][text]["loss"] for stage in ("converted", "stage 2"))
                won = recovered(original["loss"], before, after)
                used = [row["tokens"].get(stage, 0) for stage in ("stage1", "stage2")]
                share = f"{100 * sum(used) / part['pretraining_tokens']:.1f} %"
                gained = "–" if won is None or before - original["loss"] < TINY else f"{100 * won:.1f} %"
                kept = f" [{', '.join(map(str, row['softmax_layers']))}]" if "softmax_layers" in row else ""
                loss = row["settings"].get("finetune_loss", "lm") + (" + wiki" if row.get("beside") else "")
                mechanism = row.get("mechanism") or name.split(" + ")[0].removesuffix(", kl").removesuffix(", mixed")
                other = f", `{row['layers']}`" if row.get("layers") else ""
                lines.append(
                    f"| `{mechanism}`{other}{kept} | {loss} | {' | '.join(cells)} | {gained} | {used[0]:,} + {used[1]:,} | {share} |"
                )
    return "\n".join(lines)


def _cell(value: dict[str, float]) -> str:
    return f"{value['loss']:.3f} ± {value['loss_se']:.3f}"


@one_sentence_errors
def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    stem = Path(options.output)
    stored = stored_study(stem)
    if options.mechanisms:
        if not options.text:
            options.text = [str(Path(options.work) / "corpus.jsonl")]
            if not Path(options.text[0]).exists():
                write_jsonl("train", Path(options.text[0]))
        if options.beside:
            code, options.text = Path(options.text[0]), [str(Path(options.work) / "mixed.jsonl")]
            mixed_text(code, Path(options.beside), options.code_share, Path(options.text[0]))
        score, length, objective = scorer(options)
        about = {**machine(), "objective": objective, "documents": options.documents}
        fresh = {"length": length, "pretraining_tokens": options.pretraining_tokens, "about": about, "rows": {}}
        part = stored.setdefault(options.name or options.model, fresh)
        part.setdefault("original", score(options.model))
    for mechanism in options.mechanisms:
        name = row_name(mechanism, options)
        if name not in part["rows"]:
            part["rows"][name] = measure(mechanism, options, length, score)
            store_study(stem, stored)
    page = markdown(stored)
    store_study(stem, stored, page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
