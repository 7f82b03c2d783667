"""Whole models for inference on one processor core: LongBert after optimize_for_inference against transformers' BERT with SDPA.

    python -m scripts.dev.benchmarks.inference                 # ten minutes; resumes where it was interrupted
    python -m scripts.dev.benchmarks.inference --again         # measures everything anew

Both have base size (12 layers of width 768, random weights) and are measured in fp32, bf16 and int8, so that each is compared with BERT in
fp32 and in its own precision. Inputs: one sequence of 4,096 and of 8,192 tokens, and eight documents of log-normal lengths, padded to the
longest. Equality comes first, then losses and memory. Times are processor time of one thread, which other jobs on the machine change
little; the models take turns in one process. Since random weights have no loss worth the name, the loss beside each precision is that of
the trained reference encoder (model_cards/bert-python-512, converted to 8,192 tokens with the same mechanism) on held-out source files.
Writes OUTPUT.json and OUTPUT.md."""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertModel

import hf_longattn
from hf_longattn.families import LongBertConfig, LongBertModel
from hf_longattn.modeling.inference.fast_linear import FusedPart, InferenceLinear
from hf_longattn.modeling.inference.optimize import PRECISIONS
from scripts.dev.benchmarks.case import AttentionInputs, Case
from scripts.dev.benchmarks.definition import mask_of
from scripts.dev.benchmarks.memory import MiB, growth
from scripts.dev.benchmarks.report import machine, markdown_table, store_study, stored_study

MECHANISM: dict[str, Any] = {"mechanism": "longformer", "window": 512}
MODELS = ("BERT, SDPA", "LongBert")
LONGEST, MEAN, SIGMA, DOCUMENTS = 8192, 1500, 1.0, 8
LENGTHS = (4096, 8192)
INPUTS = (*(f"{length:,} tokens" for length in LENGTHS), "mixed lengths")
LOSS_LENGTHS = (512, 4096, 8192)
TEXTS = 12
ENCODER = Path("model_cards/bert-python-512")
TOLERANCE = {"the mechanism, by a dense mask": 1e-4, "bf16 as model.to(bf16)": 0.0, "packed rows as padded rows": 1e-4, "int8 as fp32": 0.1}
"""Largest difference of hidden states, which are layer-normalised; of int8 relative to their norm."""
Inputs = dict[str, Tensor]


def mixed_lengths(seed: int = 0) -> list[int]:
    """Eight log-normal lengths with a mean of 1,500 before they are cut to 8,192."""
    generator = torch.Generator().manual_seed(seed)
    median = MEAN / math.exp(SIGMA**2 / 2)
    drawn = [int(median * math.exp(SIGMA * torch.randn((), generator=generator).item())) for _ in range(DOCUMENTS)]
    return [min(max(length, 16), LONGEST) for length in drawn]


def inputs_of(name: str) -> Inputs:
    """Random tokens of an entry of :data:`INPUTS`."""
    lengths = mixed_lengths() if name == INPUTS[-1] else [LENGTHS[INPUTS.index(name)]]
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(1000, 30522, mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    return {"input_ids": ids, "attention_mask": mask} if len(lengths) > 1 else {"input_ids": ids}


def build() -> dict[str, Any]:
    """Both models with the same weights, in fp32."""
    torch.manual_seed(0)
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": LONGEST}
    short = BertModel(BertConfig(**quiet, attn_implementation="sdpa"), add_pooling_layer=False).eval()
    long = LongBertModel(LongBertConfig(**quiet, long_attention=MECHANISM), add_pooling_layer=False).eval()
    long.load_state_dict(short.state_dict(), strict=False)
    return dict(zip(MODELS, (short, long), strict=True))


@torch.inference_mode()
def differences(models: dict[str, Any]) -> dict[str, float]:
    """What is compared before anything is timed; see :data:`TOLERANCE`."""
    short, long = (models[name] for name in MODELS)
    ids = inputs_of(INPUTS[0])["input_ids"][:, :1024]
    case = Case(mechanism="longformer", options={"window": 512}, num_globals=1, length=1024)
    visible = mask_of(AttentionInputs(case))
    assert visible is not None
    index = torch.arange(1024)
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.long)
    dense = visible(zero, zero, index.view(1, 1, -1, 1), index.view(1, 1, 1, -1))
    expected, found = short(ids, attention_mask=dense).last_hidden_state, long(ids).last_hidden_state
    mixed = {name: values[[1, 2, 4, 5], :700] for name, values in inputs_of(INPUTS[-1]).items()}
    real = mixed["attention_mask"].bool()
    packed = copy.deepcopy(long).optimize_for_inference("fp32")(**mixed).last_hidden_state
    bf16, rounded = (
        model(ids).last_hidden_state for model in (copy.deepcopy(long).optimize_for_inference("bf16"), copy.deepcopy(long).bfloat16())
    )
    int8 = copy.deepcopy(long).optimize_for_inference("int8")(ids).last_hidden_state
    return {
        "the mechanism, by a dense mask": _largest(found, expected),
        "bf16 as model.to(bf16)": _largest(bf16, rounded),
        "packed rows as padded rows": _largest(packed[real], long(**mixed).last_hidden_state[real]),
        "int8 as fp32": float((int8.float() - found).norm() / found.norm()),
    }


def _largest(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())


@torch.inference_mode()
def time_in_turns(models: dict[str, Any], name: str) -> dict[str, list[float]]:
    """Seconds of processor time of every model in every precision; a pass of less than ten seconds is repeated."""
    inputs = inputs_of(name)
    short = {key: values[:, :512] for key, values in inputs.items()}
    seconds: dict[str, list[float]] = {}
    made: dict[str, Any] = {}
    for model in MODELS:
        for precision in PRECISIONS:
            chosen = hf_longattn.optimize_for_inference(copy.deepcopy(models[model]), precision)
            chosen(**short)
            made[f"{model}, {precision}"] = chosen
    for turn in range(3):
        for key, chosen in made.items():
            if turn and min(seconds[key]) > 10:
                continue
            gc.collect()
            started = time.process_time()
            chosen(**inputs)
            seconds.setdefault(key, []).append(time.process_time() - started)
            print(f"{name}: {key}: {seconds[key][-1]:.2f} s", file=sys.stderr, flush=True)
    return seconds


@torch.inference_mode()
def memory(models: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Model and precision -> MiB of its weights, and MiB that the process grows by at most during a pass over the longest input."""
    inputs = inputs_of(INPUTS[len(LENGTHS) - 1])
    found: dict[str, dict[str, float]] = {}
    for model in MODELS:
        for precision in PRECISIONS:
            chosen = hf_longattn.optimize_for_inference(copy.deepcopy(models[model]), precision)
            chosen(**{key: values[:, :512] for key, values in inputs.items()})
            layers = [*chosen.modules(), *{part.fused.layer for part in chosen.modules() if isinstance(part, FusedPart)}]
            packed = [layer.weight for layer in layers if isinstance(layer, InferenceLinear)]
            weights = sum(one.numel() * one.element_size() for one in (*chosen.parameters(), *packed)) / MiB
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # what other models left in the heap would be used again
            found[f"{model}, {precision}"] = {"weights": weights, "pass": growth(partial(chosen, **inputs))}
            print(f"memory: {model}, {precision}: {found[f'{model}, {precision}']}", file=sys.stderr, flush=True)
    return found


def losses() -> dict[str, dict[str, dict[str, float]]]:
    """Model and precision -> length -> nats per masked token of the reference encoder, with the standard error over documents.

    BERT reads pieces of its 512 tokens; its conversion reads whole inputs.
    """
    from scripts.dev.studies.corpus import iter_modules
    from scripts.dev.studies.text_loss import masked_loss, masked_texts, shortened

    tokenizer = AutoTokenizer.from_pretrained(ENCODER)
    texts = masked_texts((module.text for module in iter_modules("test")), tokenizer, max(LOSS_LENGTHS), TEXTS)
    found: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "long"
        hf_longattn.convert_checkpoint(ENCODER, target, max_length=LONGEST, verify=False, **MECHANISM)
        for model, source, chunk in zip(MODELS, (ENCODER, target), (512, None), strict=True):
            for precision in PRECISIONS:
                loaded = AutoModelForMaskedLM.from_pretrained(source, dtype=torch.float32)
                chosen = hf_longattn.optimize_for_inference(loaded, precision)
                for length in LOSS_LENGTHS:
                    values = masked_loss(chosen, tokenizer, shortened(texts, length), chunk)
                    error = statistics.stdev(values) / math.sqrt(len(values))
                    found.setdefault(f"{model}, {precision}", {})[str(length)] = {"loss": statistics.fmean(values), "loss_se": error}
                print(f"loss: {model}, {precision}: {found[f'{model}, {precision}']}", file=sys.stderr, flush=True)
    return found


def speedups(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Model and precision -> times as fast as BERT with SDPA in fp32, and as BERT with SDPA in the same precision."""
    best = {key: min(values) for key, values in seconds.items()}
    return {
        key: {"fp32": best[f"{MODELS[0]}, fp32"] / value, "same": best[f"{MODELS[0]}, {key.rpartition(', ')[2]}"] / value}
        for key, value in best.items()
    }


def markdown(record: dict[str, Any]) -> str:
    """The table of a document."""
    rows = []
    for key in (f"{model}, {precision}" for model in MODELS for precision in PRECISIONS):
        cells = []
        for name in INPUTS:
            seconds = record["seconds"].get(name)
            faster = speedups(seconds)[key] if seconds else None
            cells.append("" if faster is None else f"{min(seconds[key]):.1f} s, {faster['fp32']:.1f} × ({faster['same']:.1f} ×)")
        loss = record.get("losses", {}).get(key, {})
        used = record.get("memory", {}).get(key)
        cells.append("" if used is None else f"{used['weights']:,.0f} + {used['pass']:,.0f}")
        rows.append([key, *cells, *(f"{loss[str(length)]['loss']:.3f}" if loss else "" for length in LOSS_LENGTHS)])
    header = ["model", *INPUTS, "MiB", *(f"loss, {length:,} tokens" for length in LOSS_LENGTHS)]
    about, lengths = record["machine"], mixed_lengths()
    note = f" {record['note']}" if "note" in record else ""
    equal = ", ".join(f"{name}: {value:.0e}" if value else f"{name}: 0" for name, value in record["differences"].items())
    return (
        "Seconds of processor time of one thread for a base-sized encoder with `longformer`, window 512; how many times as fast as BERT "
        f"with SDPA in fp32 (in the same precision). *Mixed lengths*: {len(lengths)} documents of {statistics.fmean(lengths):,.0f} tokens "
        f"on average, padded to {max(lengths):,}. *MiB*: of the weights, and by how much more the process grows during a pass over "
        f"{max(LENGTHS):,} tokens. Losses are nats per masked token of the trained reference encoder (4 layers of width "
        f"256) on {TEXTS} held-out source files; BERT reads them in pieces of 512 tokens.\n\n"
        f"{markdown_table(header, rows)}\n\nLargest differences of hidden states, before timing: {equal} (relative).{note}\n\n"
        f"*{about['processor']}, 1 thread, torch {about['torch']}, transformers {about['transformers']}, {about['date']}*\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("scripts/dev/results/inference"),
        help="path without suffix (default: %(default)s)",
    )
    parser.add_argument("--again", action="store_true", help="measure anew what OUTPUT.json has")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    record = {} if options.again else stored_study(options.output)
    record.setdefault("machine", machine())
    record.setdefault("mechanism", MECHANISM)
    record.setdefault("mixed_lengths", mixed_lengths())
    record.setdefault("seconds", {})

    def keep(store: dict[str, Any], name: str, measure: Callable[[], Any]) -> None:
        if name not in store:
            store[name] = measure()
            store_study(options.output, record)

    models = build()
    keep(record, "differences", lambda: differences(models))
    wrong = {name: value for name, value in record["differences"].items() if not value <= TOLERANCE[name]}
    if wrong:
        name, value = next(iter(wrong.items()))
        print(f"error: {name}: the difference is {value:.1e} and not at most {TOLERANCE[name]:.0e}, so nothing was timed.", file=sys.stderr)
        return 1
    keep(record, "losses", losses)
    keep(record, "memory", lambda: memory(models))
    for name in INPUTS:
        keep(record["seconds"], name, lambda name=name: time_in_turns(models, name))  # type: ignore[misc]
    store_study(options.output, record, markdown(record))
    print(markdown(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
