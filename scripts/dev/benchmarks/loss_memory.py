"""Peak memory of a training step with a vocabulary of 262,144, with all logits and with the loss in pieces.

    python -m scripts.dev.benchmarks.loss_memory

One layer of Gemma 3 270M's sizes with random weights in float32, a window of 512. Each step runs in a new process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from typing import Any

import torch

from hf_longattn.families import FAMILIES
from scripts.dev import RESULTS

from .memory import growth
from .report import machine, store_study

STEPS = [
    ("all logits", 1024),
    ("all logits", 2048),
    ("all logits", 4096),
    ("in pieces", 1024),
    ("in pieces", 4096),
    ("in pieces", 16384),
]
SIZES = {"vocab_size": 262_144, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 1, "head_dim": 256}


def step(how: str, length: int) -> dict[str, Any]:
    """MiB by which a step grows the process, its loss and its seconds."""
    torch.manual_seed(0)
    family = FAMILIES["gemma3_text"]
    attention = {"mechanism": "window", "window": 512}
    config = family.config_class(
        **SIZES, num_key_value_heads=1, use_cache=False, tie_word_embeddings=True, long_attention=attention
    )
    # evaluation mode computes all logits
    model = family.model_class("Gemma3ForCausalLM")(config).train(how == "in pieces")
    ids, losses, started = torch.randint(3, 262_144, (1, length)), [], time.perf_counter()

    def run() -> None:
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        losses.append(loss.item())

    return {
        "how": how,
        "length": length,
        "mebibytes": round(growth(run)),
        "loss": losses[0],
        "seconds": time.perf_counter() - started,
    }


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)  # processes give freed tensors back to the system
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as processes:
        steps = processes.starmap(step, STEPS, chunksize=1)
    store_study(RESULTS / "loss_memory", {"machine": machine(), "kind": "loss memory", "sizes": SIZES, "steps": steps})
