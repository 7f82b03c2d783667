"""What a decoded token asks of a GPU, counted without one: ``python -m scripts.dev.tools.decode_counts``.

Whole models decode on the CPU while the table of paths is told that it is a GPU. Operations that launch a kernel there, and those that the
host waits for, are counted in one step after a text, of a plain Llama and of LongLlamas, with either cache and with and without padding;
and how many graphs ``torch.compile`` makes of the first steps over a static cache. Nothing is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from hf_longattn import backend, families
from hf_longattn.engines.common import accelerator, dense
from hf_longattn.engines.common.byte_cache import BYTE_CACHE
from hf_longattn.engines.common.call import DispatchContext
from hf_longattn.engines.cuda.flex_kernel import compile_errors
from hf_longattn.modeling.mixin import LongAttentionMixin
from scripts.dev.benchmarks.report import markdown_table
from tests.engines.launches import Counting, Launches

RESULTS = Path(__file__).parents[1] / "results"
LAYERS, BATCH, LENGTH, ROOM, STEPS = 4, 2, 300, 400, 3
BASE = "Llama"
SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 100, "max_position_embeddings": 4096,
}  # fmt: skip
PLANS: dict[str, dict[str, Any]] = {
    "full": {"mechanism": "full"},
    "window": {"mechanism": "window", "window": 128},
    "longformer": {"mechanism": "longformer", "window": 128},
    "linear": {"mechanism": "linear"},
    "window, sinks": {"mechanism": "window", "window": 128, "num_sinks": 4},
    "delta": {"mechanism": "delta"},
    "nsa": {"mechanism": "nsa"},
}
CACHES, PADDINGS = ("dynamic", "static"), ("none", "left")


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Choices as for tensors on CUDA."""
    made = DispatchContext.__init__

    def init(self: Any, device: str, *args: Any, **kwargs: Any) -> None:
        made(self, "cuda", *args, **kwargs)

    with (
        mock.patch.object(DispatchContext, "__init__", init),
        mock.patch.object(dense, "groups_are_fused", lambda k, v, mask: mask is None),
        mock.patch.object(backend, "accelerated", return_value=True),
        mock.patch.object(accelerator, "accelerated", return_value=True),
    ):
        yield


def model_of(plan: dict[str, Any] | None) -> Any:
    """A small model with random weights: plain, or with a mechanism."""
    torch.manual_seed(0)
    if plan is None:
        return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()
    return families.LongLlamaForCausalLM(families.LongLlamaConfig(**SHAPE, long_attention=plan)).eval()


@torch.no_grad()
def step_of(model: Any, cache_kind: str, padding: str) -> Launches:
    """The last of some decoded tokens."""
    ids = torch.randint(SHAPE["vocab_size"], (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[0, : 50 if padding == "left" else 0] = 0
    cache: Any = StaticCache(config=model.config, max_cache_len=ROOM) if cache_kind == "static" else DynamicCache(config=model.config)
    with as_on_a_gpu() if isinstance(model, LongAttentionMixin) else contextlib.nullcontext():
        token = model(ids, attention_mask=mask, past_key_values=cache).logits[:, -1:].argmax(-1)
        for _ in range(STEPS):
            mask = torch.cat([mask, mask.new_ones(BATCH, 1)], 1)
            BYTE_CACHE.clear()  # each step is as long as none before
            with Counting() as counting:
                given = mask if padding == "left" else None
                token = model(token, attention_mask=given, past_key_values=cache).logits[:, -1:].argmax(-1)
    return counting.launches


@torch.no_grad()
def graphs_of(model: Any) -> int | None:
    """Graphs that the first steps over a static cache take, without a break; ``None`` where there is one."""
    torch.compiler.reset()
    graphs: list[Any] = []

    def keep(module: Any, _: Any) -> Any:
        graphs.append(module)
        return module.forward

    ids, mask = torch.ones(BATCH, LENGTH, dtype=torch.long), torch.ones(BATCH, LENGTH, dtype=torch.long)
    cache = StaticCache(config=model.config, max_cache_len=ROOM)
    model(ids, attention_mask=mask, past_key_values=cache)
    step = torch.compile(model.forward, backend=keep, fullgraph=True)
    try:
        for _ in range(STEPS + 1):
            mask = torch.cat([mask, mask.new_ones(BATCH, 1)], 1)
            step(ids[:, :1], attention_mask=mask, past_key_values=cache)
    except compile_errors() as error:
        if "leave torch.compile out" not in str(error):
            raise
        return None
    return len(graphs)


def counted(names: list[str], graphs: bool = True) -> dict[str, Any]:
    """Name -> cache and padding -> operations and waits; ``graphs`` where they are counted."""
    record: dict[str, Any] = {}
    for name in names:
        model = model_of(PLANS.get(name))
        cells: dict[str, Any] = {}
        for cache in CACHES:
            for padding in PADDINGS:
                step = step_of(model, cache, padding)
                cells[f"{cache} {padding}"] = {"operations": step.operations, "waits": dict(sorted(step.waits.items()))}
        record[name] = {"steps": cells, **({"graphs": graphs_of(model)} if graphs else {})}
    return record


def markdown(record: dict[str, Any]) -> str:
    """Operations, as times the base's, and waits."""
    heads = [f"{cache} cache{', padded' if padding == 'left' else ''}" for cache in CACHES for padding in PADDINGS]
    rows = []
    for name, found in record["models"].items():
        row = [f"`{name}`" if name != BASE else name]
        for cell, step in found["steps"].items():
            base, waits = record["models"][BASE]["steps"][cell]["operations"], sum(step["waits"].values())
            ratio = "" if name == BASE else f" (×{math.ceil(100 * step['operations'] / base) / 100:.2f})"
            row.append(f"{step['operations']}{ratio}{f', {waits} waits' if waits else ''}")
        rows.append([*row, "–" if found["graphs"] is None else str(found["graphs"])])
    about = (
        f"Operations that one decoded token launches on a GPU, in {LAYERS} layers, {BATCH} rows, after {LENGTH} tokens, fp32, without a "
        "compiler; waits of the host for the device are those of a whole step. Graphs: of the first steps over a static cache under "
        "torch.compile(fullgraph=True), two since the mask that is passed grows; – where there is none."
    )
    return f"{about}\n\n{markdown_table(['attention', *heads, 'graphs'], rows)}\n"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    logging.disable()
    record = {"torch": torch.__version__, "layers": LAYERS, "models": counted([BASE, *PLANS])}
    (RESULTS / "decode_counts.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "decode_counts.md").write_text(markdown(record), encoding="utf-8")
    print(markdown(record))


if __name__ == "__main__":
    main()
