"""What is measured before and after each stage, on the same held-out inputs: the language-model loss and each layer's error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_longattn.modeling.attention_sites import attention_sites
from hf_longattn.training.transfer.inputs import Batch
from hf_longattn.training.transfer.matching import Matching, matching


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, batches: Sequence[Batch], layers: dict[str, Matching] | None = None) -> dict[str, Any]:
    """Measure ``model`` as it is.

    Args:
        batches: with labels, -100 = not predicted.
        layers: what stands on its attention modules within :func:`matching`, where their errors are wanted.

    Returns:
        ``loss``: nats per predicted token; ``predictions``: how many; and with ``layers`` ``errors``: for each layer its name, the mean
        squared error of its mechanism's output and the same as a share of the softmax output's mean square.
    """
    training = model.training
    model.eval()
    total = predictions = 0.0
    errors: torch.Tensor | None = None
    for batch in batches:
        batch = {name: value.to(model.device) for name, value in batch.items()}
        labels = batch["labels"][:, 1:] if _shifted(model) else batch["labels"]
        count = int((labels != -100).sum())
        total += float(model(**batch).loss) * count
        predictions += count
        if layers is not None:
            found = torch.stack([layer.errors for layer in layers.values() if layer.errors is not None]) * len(labels)
            errors = found if errors is None else errors + found
    model.train(training)
    result: dict[str, Any] = {"loss": total / max(1, predictions), "predictions": int(predictions)}
    if layers is not None and errors is not None:
        inputs = sum(len(batch["labels"]) for batch in batches)
        rows = (errors / inputs).tolist()
        result["errors"] = [{"layer": name, "mean_squared_error": row[0], "share": row[1]} for name, row in zip(layers, rows, strict=True)]
    return result


def measured(model: PreTrainedModel, batches: Sequence[Batch]) -> dict[str, Any]:
    """``original``: the loss with softmax attention in every layer; ``layers``: the mechanisms' errors; ``loss``: with the mechanisms."""
    with matching(model) as layers:
        original = held_out_loss(model, batches, layers)
    return {"original": original["loss"], "loss": held_out_loss(model, batches)["loss"], "layers": original["errors"]}


def _shifted(model: PreTrainedModel) -> bool:
    """Whether labels are compared with the outputs one token earlier, as in decoders."""
    return any(site.module.is_causal for site in attention_sites(model) if not site.cross)
