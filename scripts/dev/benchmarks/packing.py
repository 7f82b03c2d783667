"""Training on packed rows against padded ones, on documents whose lengths are drawn log-normally.

    python -m scripts.dev.benchmarks.packing                              # all settings; half an hour on one core
    python -m scripts.dev.benchmarks.packing --only "base: bert, longformer, classes"

Documents have 1,000 tokens on average and at most 4,096. First, in float32, a packed and a padded copy of a model take the same steps:
their losses are compared in every step, and their gradients in the first. Then packed, padded and padded-by-length batches of the same
documents take turns in one process (forward, backward and AdamW's step, under bfloat16 autocast at base size). Times are processor time of
one thread, which other jobs on the machine change little; the elapsed time is stored, too. Writes OUTPUT.json and OUTPUT.md; settings that
are not measured keep what OUTPUT.json has.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import DataCollatorForTokenClassification, PreTrainedModel, PreTrainedTokenizerFast

from hf_longattn import LongAttentionConfig
from hf_longattn.data.batching import DocumentCollator, first_tokens
from hf_longattn.errors import OptionError
from hf_longattn.families import (
    LongBertConfig,
    LongBertForMaskedLM,
    LongBertForSequenceClassification,
    LongGPT2Config,
    LongGPT2LMHeadModel,
    LongLlamaConfig,
    LongLlamaForCausalLM,
)
from hf_longattn.training import DataCollatorWithPacking
from scripts.dev.benchmarks.report import machine, markdown_table, one_sentence_errors, store_study, stored_study

LONGEST, MEAN, MEDIAN, SIGMA = 4096, 1000, 779, 1.0
WAYS = ("packed", "padded", "padded by length")
IGNORED = -100
Row = dict[str, Any]
Batch = dict[str, torch.Tensor]
Group = list[Row]


@dataclasses.dataclass(frozen=True)
class Setting:
    """A model, its task and the documents.

    ``task``: classes (a label per document), masked (labels for 15 % of the tokens) or next (the next token). ``steps`` is how many
    batches are trained on in float32 for the comparison of losses; the loss on the batch after them is compared as well.
    """

    family: str
    mechanism: str
    options: dict[str, Any]
    task: str
    base: bool = False
    documents: int = 16
    batch_size: int = 4
    steps: int = 1

    @property
    def name(self) -> str:
        """As ``--only`` takes it."""
        return f"{'base' if self.base else 'small'}: {self.family}, {self.mechanism}, {self.task}"


def _base(family: str, mechanism: str, options: dict[str, Any], task: str) -> Setting:
    return Setting(family, mechanism, options, task, base=True)


SETTINGS = (
    _base("bert", "longformer", {"window": 512}, "classes"),
    _base("gpt2", "window", {"window": 512}, "next"),
    Setting("bert", "window", {"window": 512}, "classes"),
    Setting("bert", "longformer", {"window": 512}, "classes"),
    Setting("bert", "longformer", {"window": 512}, "masked"),
    Setting("bert", "bigbird", {}, "classes"),
    Setting("bert", "lsg", {}, "classes"),
    Setting("bert", "linear", {}, "classes"),
    Setting("gpt2", "window", {"window": 512}, "next"),
    Setting("llama", "window", {"window": 512}, "next"),
    Setting("llama", "hybrid", {"window": 64}, "next"),
)


def draw_lengths(count: int, generator: torch.Generator) -> list[int]:
    """Log-normal lengths, drawn again where they are beyond the longest; the median is such that the mean of what is left is ``MEAN``."""
    found: list[int] = []
    while len(found) < count:
        length = int(MEDIAN * torch.exp(torch.randn((), generator=generator) * SIGMA))
        if 16 <= length <= LONGEST:
            found.append(length)
    return found


def draw_documents(setting: Setting, vocabulary: int, seed: int) -> list[Row]:
    """Random tokens with the labels of the task."""
    generator = torch.Generator().manual_seed(seed)
    rows: list[Row] = []
    for number, length in enumerate(draw_lengths(setting.documents, generator)):
        ids = torch.randint(5, vocabulary, (length,), generator=generator)
        row: Row = {"input_ids": ids.tolist(), "length": length}
        if setting.task == "masked":
            chosen = torch.rand(length, generator=generator) < 0.15
            row |= {"labels": ids.masked_fill(~chosen, IGNORED).tolist(), "input_ids": ids.masked_fill(chosen, 4).tolist()}
        else:
            row["labels"] = number % 2 if setting.task == "classes" else row["input_ids"]
        rows.append(row)
    return rows


def build(setting: Setting, seed: int) -> PreTrainedModel:
    """A model with random weights and without dropout: 12 layers of width 768, or 2 of width 256."""
    torch.manual_seed(seed)
    layers, size, vocabulary = (12, 768, 30522 if setting.family == "bert" else 8192) if setting.base else (2, 256, 1000)
    attention, usual = LongAttentionConfig(mechanism=setting.mechanism, **setting.options), {"vocab_size": vocabulary, "pad_token_id": 0}
    if setting.family == "gpt2":
        sizes = {"n_layer": layers, "n_embd": size, "n_head": size // 64, "n_positions": LONGEST}
        quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False}
        return LongGPT2LMHeadModel(LongGPT2Config(**sizes, **quiet, **usual, bos_token_id=1, eos_token_id=2, long_attention=attention))
    sizes = {"num_hidden_layers": layers, "hidden_size": size, "num_attention_heads": size // 64, "max_position_embeddings": LONGEST}
    if setting.family == "llama":
        inner = {
            "num_key_value_heads": size // 192 if setting.base else 2,
            "intermediate_size": 8 * size // 3 // 64 * 64,
            "use_cache": False,
        }
        return LongLlamaForCausalLM(LongLlamaConfig(**sizes, **inner, **usual, bos_token_id=1, eos_token_id=2, long_attention=attention))
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "intermediate_size": 4 * size}
    config = LongBertConfig(**sizes, **quiet, **usual, long_attention=attention)
    return LongBertForSequenceClassification(config) if setting.task == "classes" else LongBertForMaskedLM(config)


def collators(task: str) -> tuple[Callable[[Group], Batch], Callable[[Group], Batch]]:
    """What makes a packed and a padded batch of some documents."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"[PAD]": 0}, "[PAD]")), pad_token="[PAD]")
    if task == "classes":
        return DocumentCollator(tokenizer, pack=True), DocumentCollator(tokenizer)
    pad = DataCollatorForTokenClassification(tokenizer, label_pad_token_id=IGNORED)

    def padded(group: Group) -> Batch:
        return pad([{name: value for name, value in row.items() if name != "length"} for row in group])

    return DataCollatorWithPacking(shifted=task == "next"), padded


def loss_of(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """The training loss of a batch."""
    lengths = batch.get("lengths")
    given = {name: value for name, value in batch.items() if name != "lengths"}
    with nullcontext() if lengths is None else first_tokens(model, lengths):
        loss: torch.Tensor = model(**given).loss
    return loss


def one_step(model: PreTrainedModel, optimizer: torch.optim.Optimizer, batch: Batch, bf16: bool = False) -> float:
    """One step of training; its loss."""
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        loss = loss_of(model, batch)
    loss.backward()
    optimizer.step()
    return loss.item()


def compare(first: PreTrainedModel, groups: Sequence[Group], collate: dict[str, Callable[[Group], Batch]]) -> dict[str, Any]:
    """Train a packed and a padded copy in float32 on the groups, and evaluate them on the last one.

    Returns:
        The losses of both ways, their largest difference, and the difference of the first gradients relative to their norm.
    """
    losses: dict[str, list[float]] = {}
    gradients: list[dict[str, torch.Tensor]] = []
    for name in WAYS[:2]:  # one after the other: two copies with their optimizers are large
        model = copy.deepcopy(first)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
        losses[name] = []
        for number, group in enumerate(groups[:-1]):
            losses[name].append(one_step(model, optimizer, collate[name](group)))
            if number == 0:
                gradients.append({key: one.grad.clone() for key, one in model.named_parameters() if one.grad is not None})
        with torch.no_grad():
            losses[name].append(loss_of(model, collate[name](groups[-1])).item())
        del model, optimizer
    packed, padded = gradients
    away = sum(float((packed[key] - padded[key]).square().sum()) for key in packed)
    norm = sum(float(one.square().sum()) for one in padded.values())
    return {
        "losses": losses,
        "largest_difference_of_losses": max(abs(a - b) for a, b in zip(*losses.values(), strict=True)),
        "relative_difference_of_gradients": (away / norm) ** 0.5,
    }


COMPARED = ("losses", "largest_difference_of_losses", "relative_difference_of_gradients")
"""What :func:`compare` finds."""


def measure(setting: Setting, seed: int = 0, compared: dict[str, Any] | None = None) -> dict[str, Any]:
    """Compare the losses, unless a result that has them is given, then time the ways in turns."""
    first = build(setting, seed)
    if setting.base:
        # padded rows would not fit into the memory; the second name is that before transformers 5.23
        getattr(first, "activation_checkpointing_enable", first.gradient_checkpointing_enable)()
    first.train()
    rows = draw_documents(setting, first.config.vocab_size, seed)
    batch = setting.batch_size
    groups = [rows[at : at + batch] for at in range(0, len(rows), batch)]
    by_length = sorted(rows, key=lambda row: row["length"])
    grouped = [by_length[at : at + batch] for at in range(0, len(rows), batch)]
    pack, pad = collators(setting.task)
    collate = {"packed": pack, "padded": pad, "padded by length": pad}
    found = {name: compared[name] for name in COMPARED} if compared else compare(first, groups[: setting.steps + 1], collate)
    optimizer = torch.optim.AdamW(first.parameters(), lr=3e-4)  # of all ways: what a step costs does not depend on the weights
    if not setting.base:  # the first pass of a process allocates, which a small model notices
        for name in WAYS:
            one_step(first, optimizer, collate[name](groups[0]))
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    elapsed: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(len(groups)):
        for name in WAYS:
            made = collate[name]((grouped if name == "padded by length" else groups)[number])
            started, worked = time.perf_counter(), time.process_time()
            one_step(first, optimizer, made, bf16=setting.base)
            elapsed[name].append(time.perf_counter() - started)
            seconds[name].append(time.process_time() - worked)
    lengths = [row["length"] for row in rows]
    cells = {name: sum(max(row["length"] for row in group) * len(group) for group in made) for name, made in
             (("padded", groups), ("padded by length", grouped))}  # fmt: skip
    speeds = {name: sum(lengths) / sum(values) for name, values in seconds.items()}
    turns = [padded / packed for padded, packed in zip(seconds["padded"], seconds["packed"], strict=True)]
    return {
        "setting": dataclasses.asdict(setting),
        "parameters": first.num_parameters(),
        "seed": seed,
        "machine": machine(),
        "timed_dtype": "bf16" if setting.base else "fp32",
        "gradient_checkpointing": setting.base,
        "lengths": {"mean": statistics.fmean(lengths), "longest": max(lengths)},
        "padding": {name: 1 - sum(lengths) / value for name, value in cells.items()},
        "seconds": seconds,
        "elapsed_seconds": elapsed,
        "tokens_per_second": speeds,
        "packed_over_padded": speeds["packed"] / speeds["padded"],
        "packed_over_padded_in_a_turn": {"least": min(turns), "median": statistics.median(turns)},
        "packed_over_padded_by_length": speeds["packed"] / speeds["padded by length"],
        **found,
    }


def markdown(record: dict[str, dict[str, Any]]) -> str:
    """The table of a document."""
    rows = []
    for name, found in record.items():
        speeds, padding = found["tokens_per_second"], found["padding"]
        rows.append(
            [
                name,
                *(f"{speeds[way]:,.0f}" for way in WAYS),
                f"{found['packed_over_padded']:.2f} ({found['packed_over_padded_in_a_turn']['least']:.2f})",
                f"{found['packed_over_padded_by_length']:.2f}",
                f"{100 * padding['padded']:.0f} % / {100 * padding['padded by length']:.0f} %",
                f"{found['largest_difference_of_losses']:.0e} / {found['relative_difference_of_gradients']:.0e}",
            ]
        )
    header = [
        "model, mechanism, labels",
        *WAYS,
        "packed / padded (least of the turns)",
        "packed / by length",
        "padding",
        "losses / gradients differ by",
    ]
    documents = {
        (found["setting"]["documents"], found["setting"]["batch_size"], round(found["lengths"]["mean"]), found["lengths"]["longest"])
        for found in record.values()
    }
    drawn = "; ".join(
        f"{count} documents of {mean:,} tokens on average, {longest:,} at most, in batches of {batch}"
        for count, batch, mean, longest in sorted(documents)
    )
    base = " Base size: bfloat16 autocast, gradient checkpointing." if any(one["setting"]["base"] for one in record.values()) else ""
    machines = "; ".join(sorted({f"{one['machine']['processor']}, {one['machine']['threads']} thread, torch {one['machine']['torch']}, "
                                 f"{one['machine']['date']}" for one in record.values()}))  # fmt: skip
    return (
        f"Tokens of documents per second of processor time, padding not counted; {drawn}.{base}\n\n"
        f"{markdown_table(header, rows)}\n\n*{machines}*\n"
    )


def chosen(names: Sequence[str]) -> list[Setting]:
    """The settings of these names; all without names.

    Raises:
        OptionError: there is none of that name.
    """
    known = {setting.name: setting for setting in SETTINGS}
    for name in names:
        if name not in known:
            raise OptionError(f"there is no setting {name!r}; give one of: {'; '.join(known)}")
    return [known[name] for name in names or known]


@one_sentence_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="settings to measure (default: all)", metavar="NAME")
    parser.add_argument("--seed", type=int, default=0, help="seed of lengths, tokens and weights")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("scripts/dev/results/packing"),
        help="path without suffix (default: %(default)s)",
    )
    parser.add_argument("--keep-comparison", action="store_true", help="time again, and keep the losses that OUTPUT.json has")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # several threads that wait for one another would count as work
    settings = chosen(options.only)
    stored = stored_study(options.output)
    for setting in settings:
        kept = stored.get(setting.name) if options.keep_comparison else None
        stored[setting.name] = measure(setting, options.seed, kept)
        record = {one.name: stored[one.name] for one in SETTINGS if one.name in stored}
        store_study(options.output, record, markdown(record))
        print(f"{setting.name}: {stored[setting.name]['packed_over_padded']:.2f}", file=sys.stderr, flush=True)
    print(markdown({one.name: stored[one.name] for one in SETTINGS if one.name in stored}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
