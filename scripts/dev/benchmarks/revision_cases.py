"""The worker of :mod:`revisions`: times cases, by name, with whatever ``hf_longattn`` is on the path.

It reads one name a line and answers with the milliseconds of processor time of one call, as JSON; an empty name ends it. It uses public
names of the package alone, so that it runs with older revisions, too.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Call = Callable[[], Any]
WINDOW = {"mechanism": "window", "window": 512}
QUIET = dict.fromkeys(
    ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0
)
CASES: dict[str, Callable[[], Call]] = {}
"""Case -> what prepares it and returns the call."""


def attention(mechanism: str, causal: bool, length: int, backward: bool) -> Call:
    """One call of ``attend`` with the mechanism's default options, twelve heads of 64."""
    from hf_longattn import attend
    from hf_longattn.errors import OptionError

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 12, length, 64, generator=generator).requires_grad_(backward) for _ in range(3))

    options: dict[str, Any] = {}
    for options in ({}, {"max_length": length}, {"gate_input": "key"}):  # what a mechanism needs to be called without a model
        try:
            attend(q[:, :, :8], k[:, :, :8], v[:, :, :8], mechanism, causal=causal, **options)
        except OptionError:
            continue
        break

    def call() -> None:
        with torch.set_grad_enabled(backward):
            out = attend(q, k, v, mechanism, causal=causal, **options)
            if backward:
                out.sum().backward()

    return call


def model(kind: str, length: int, *, precision: str | None = None, rows: int = 1, padded: bool = False, backward: bool = False) -> Call:
    """One call of a four-layer model of base width."""
    built = _models(kind, precision)
    ids = torch.randint(5, 1000, (rows, length), generator=torch.Generator().manual_seed(0))
    inputs: dict[str, Tensor] = {"input_ids": ids}
    if padded:
        lengths = torch.linspace(length // 8, length, rows).long()
        inputs["attention_mask"] = (torch.arange(length) < lengths[:, None]).long()

    def call() -> None:
        with torch.set_grad_enabled(backward):
            out = built(**inputs)[0]
            if backward:
                out.float().square().mean().backward()

    return call


@functools.cache
def _models(kind: str, precision: str | None) -> Any:
    import hf_longattn
    import hf_longattn.families as families

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_hidden_layers": 4, "max_position_embeddings": 8192, "vocab_size": 1000}
    if kind == "Llama":
        sizes |= {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12, "num_key_value_heads": 4}
    if kind == "GPT2":
        sizes = {"n_layer": 4, "n_positions": 8192, "vocab_size": 1000}
    config = getattr(families, f"Long{kind}Config")(**sizes, **QUIET, long_attention=WINDOW)
    built = getattr(families, f"Long{kind}Model")(config).eval()
    return built if precision is None else hf_longattn.optimize_for_inference(built, precision)


def decoding(kind: str, length: int, tokens: int) -> Call:
    """``tokens`` new tokens, one by one, after a text of ``length``; the text's own pass is timed with them."""
    built = _models(kind, None)
    ids = torch.randint(5, 1000, (1, length + tokens), generator=torch.Generator().manual_seed(0))

    def call() -> None:
        with torch.no_grad():
            out = built(ids[:, :length], use_cache=True)
            for index in range(length, length + tokens):
                out = built(ids[:, index : index + 1], past_key_values=out.past_key_values, use_cache=True)

    return call


def register() -> None:
    """Enter the cases: every mechanism in both directions with and without gradients, and whole models.

    8-bit layers are left out: before 60171d0 they took oneDNN's reference code where a processor has no AMX, minutes for a short text.
    """
    from hf_longattn import list_mechanisms

    older = "grid" not in inspect.signature(list_mechanisms).parameters
    tokens: dict[str, Any] = {} if older else {"grid": False}
    for causal in (False, True):
        for name in list_mechanisms(causal=causal, **tokens):
            for backward in (False, True):
                title = f"{name}{', causal' * causal}{', with gradients' * backward}, 1,024 tokens"
                CASES[title] = functools.partial(attention, name, causal, 1024, backward)
    for name in ("window", "longformer", "bigbird", "strided", "linear"):
        CASES[f"{name}, 4,096 tokens"] = functools.partial(attention, name, False, 4096, False)
    for length in (128, 512, 1024, 2048, 4096):
        for kind in ("Bert", "Llama"):
            CASES[f"{kind} model, {length:,} tokens"] = functools.partial(model, kind, length)
        for precision in ("fp32", "bf16"):
            CASES[f"Bert model, {precision} optimised, {length:,} tokens"] = functools.partial(model, "Bert", length, precision=precision)
    CASES["Bert model, bf16 optimised, 8 padded rows of up to 512 tokens"] = functools.partial(
        model, "Bert", 512, precision="bf16", rows=8, padded=True
    )
    CASES["Bert model, 8 padded rows of up to 512 tokens"] = functools.partial(model, "Bert", 512, rows=8, padded=True)
    CASES["Bert model, a training step, 1,024 tokens"] = functools.partial(model, "Bert", 1024, backward=True)
    CASES["Llama model, a training step, 1,024 tokens"] = functools.partial(model, "Llama", 1024, backward=True)
    for kind in ("Llama", "GPT2"):
        CASES[f"{kind} model, 16 tokens after 512"] = functools.partial(decoding, kind, 512, 16)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    register()
    print(json.dumps(list(CASES)), flush=True)
    calls: dict[str, Call] = {}
    for line in sys.stdin:
        name = line.rstrip("\n")
        if not name:
            break
        try:
            if name not in calls:
                calls.clear()
                torch.manual_seed(0)
                calls[name] = CASES[name]()
                calls[name]()
            started = time.process_time()
            calls[name]()
            print(json.dumps((time.process_time() - started) * 1e3), flush=True)
        except Exception as error:
            print(json.dumps(f"{type(error).__name__}: {error}"), flush=True)


if __name__ == "__main__":
    main()
