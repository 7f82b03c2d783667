"""What the option exact_length costs: all-MiniLM-L6-v2, converted to longformer and 4,096 tokens, with the option and without.

    python -m scripts.dev.benchmarks.short_texts         # a quarter of an hour; writes results/short_texts.json and .md
    python -m scripts.dev.benchmarks.short_texts --quick # fewer turns; stores nothing

Batches are of the language reference, padded on the right. Equality comes first: every text of up to 512 tokens has the original's hidden
states, alone and beside a long text, and every longer text has those of the model without the option. Times are processor time of one
thread; the models take turns in one process, and a ratio is the median of those of the turns.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertModel

from scripts.dev.benchmarks.report import finish_study, footnote, machine, markdown_table, one_sentence_errors, output_of, study_parser
from scripts.dev.benchmarks.timing import processor_turns
from scripts.dev.real import NAME, real_checkpoint
from scripts.dev.studies.real_checkpoint import LENGTH, converted, tokens_of

OUTPUT = Path("scripts/dev/results/short_texts")
SHORT = 512
BATCHES: dict[str, list[int]] = {
    "8 × 128": [128] * 8,
    "2 × 512": [512] * 2,
    "1,024": [1024],
    "1,024 + 512 + 300 + 128": [1024, 512, 300, 128],
    "4,096": [4096],
    "4,096 + 7 × 128": [4096] + [128] * 7,
}
"""Tokens of the texts of a batch."""
TOLERANCE = 1e-5
"""Largest difference of hidden states in fp32."""
SECONDS, QUICK_SECONDS, TURNS = 120.0, 4.0, (9, 61)
"""Processor time that the turns of one batch may take, and fewest and most turns."""
ORIGINAL, WITHOUT, WITH = "original", "exact_length=0", f"exact_length={SHORT}"


def build(source: Path) -> dict[str, Any]:
    """Name -> the model: the original, and the converted one without and with the option."""
    with converted(source) as folder:
        without = AutoConfig.from_pretrained(folder).long_attention.with_option("exact_length", 0)
        models = {
            ORIGINAL: BertModel.from_pretrained(source),
            WITHOUT: AutoModel.from_pretrained(folder, long_attention=without),
            WITH: AutoModel.from_pretrained(folder),
        }
    return {name: model.eval() for name, model in models.items()}


def batch_of(tokenizer: Any, lengths: Sequence[int]) -> dict[str, Tensor]:
    """The beginnings of the language reference of these lengths as one batch, padded on the right."""
    rows = [tokens_of(tokenizer, length)["input_ids"][0] for length in lengths]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]).long()}


@torch.inference_mode()
def largest_difference(models: dict[str, Any], tokenizer: Any, lengths: Sequence[int]) -> float:
    """That of a batch with the option from each text alone: the original's states of short texts, those without the option of long ones."""
    found = models[WITH](**batch_of(tokenizer, lengths)).last_hidden_state
    differences = []
    for row, length in enumerate(lengths):
        alone = models[ORIGINAL if length <= SHORT else WITHOUT](**tokens_of(tokenizer, length)).last_hidden_state[0]
        differences.append(float((found[row, :length] - alone).abs().max()))
    return max(differences)


@torch.inference_mode()
def time_in_turn(models: dict[str, Any], inputs: dict[str, Tensor], seconds: float) -> list[dict[str, float]]:
    """Milliseconds of processor time of every model, for every turn."""
    return processor_turns({name: partial(model, **inputs) for name, model in models.items()}, seconds, TURNS, alternate=True)


def ratio(turns: Sequence[dict[str, float]], above: str, below: str) -> tuple[float, float, float]:
    """The median of the quotients of two models' times within a turn, and the 95 % interval of that median by its order statistics."""
    quotients, half = sorted(turn[above] / turn[below] for turn in turns), 0.98 * len(turns) ** 0.5
    low, high = (round((len(turns) - 1) / 2 + step) for step in (-half, half))
    return statistics.median(quotients), quotients[max(low, 0)], quotients[min(high, len(turns) - 1)]


def shown(turns: Sequence[dict[str, float]], other: str) -> str:
    """The time with the option as a share of another model's."""
    median, low, high = ratio(turns, WITH, other)
    return f"{median:.3f} [{low:.2f}, {high:.2f}]"


def markdown(record: dict[str, Any]) -> str:
    """The table of a document."""
    rows = []
    for batch, turns in record["milliseconds"].items():
        taken = f"{statistics.median(turn[WITH] for turn in turns):,.0f}"
        cost, of_original = (shown(turns, other) if other in turns[0] else "–" for other in (WITHOUT, ORIGINAL))
        rows.append([batch, taken, cost, of_original, f"{record['differences'][batch]:.0e}"])
    head = ["tokens of the texts", f"ms with {WITH}", "of the time without it", "of the original's time", "largest difference"]
    return (
        f"{NAME}, converted to `longformer` (window 512, one global token) and {LENGTH:,} tokens, in fp32. The difference is that of a "
        "batch's hidden states from each text read alone: by the original up to 512 tokens, by the model without the option beyond. "
        "Shares are medians of paired turns, with 95 % intervals. *Original*: with SDPA, where it reads the whole batch.\n\n"
        f"{markdown_table(head, rows)}\n\n" + footnote(record["machine"], ", processor time")
    )


@one_sentence_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = study_parser(__doc__, OUTPUT, "fewer turns").parse_args(arguments)
    torch.set_num_threads(1)
    source = real_checkpoint()
    models, tokenizer = build(source), AutoTokenizer.from_pretrained(source)
    record: dict[str, Any] = {"machine": machine(), "differences": {}, "milliseconds": {}}
    for batch, lengths in BATCHES.items():
        record["differences"][batch] = difference = largest_difference(models, tokenizer, lengths)
        if not difference <= TOLERANCE:
            print(
                f"error: {batch}: hidden states differ by {difference:.1e}, not at most {TOLERANCE:.0e}: nothing is stored.",
                file=sys.stderr,
            )
            return 1
        timed = {name: model for name, model in models.items() if name != ORIGINAL or max(lengths) <= SHORT}
        record["milliseconds"][batch] = time_in_turn(timed, batch_of(tokenizer, lengths), QUICK_SECONDS if options.quick else SECONDS)
        print(f"{batch}: {shown(record['milliseconds'][batch], WITHOUT)}", file=sys.stderr, flush=True)
    finish_study(output_of(options, OUTPUT), record, markdown(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
