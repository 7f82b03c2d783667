"""Real text for models with an encoder and a decoder: an article, and its continuation to write."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM

from hf_longattn.conversion import convert_checkpoint
from tests.reports import tensor_counts
from tests.trained import REAL_TEXT, tokenizer_of

STEPS, BATCH = 16, 4
SIZES: dict[str, Any] = {
    "vocab_size": 1000,
    "d_model": 64,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "dropout": 0.0,
}
"""Of the models."""
FIRST = 5
"""The tokenizer's ids are moved up, so that the special tokens of a model have none of its pieces."""


@functools.cache
def _ids() -> Tensor:
    return torch.tensor(tokenizer_of("gpt2")(REAL_TEXT, verbose=False)["input_ids"]) + FIRST


def _cut(start: int, length: int) -> Tensor:
    return _ids().roll(-start)[torch.arange(length) % len(_ids())]


def real_texts(length: int, decoded: int, pad_token_id: int) -> dict[str, Tensor]:
    """Two texts, the second of two thirds, padded on the right, with what follows as labels."""
    ids, mask = torch.stack([_cut(0, length), _cut(100, length)]), torch.ones(2, length, dtype=torch.long)
    mask[1, 2 * length // 3 :] = 0
    ids = torch.where(mask.bool(), ids, pad_token_id)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": torch.stack([_cut(length, decoded), _cut(100 + 2 * length // 3, decoded)]),
    }


def adopted(model: Any, folder: Path, length: int, decoded: int, source_length: int) -> tuple[Any, Any]:
    """transformers' model, trained for a few steps and saved, and what it is converted to."""
    train_briefly(model, source_length, decoded, model.config.pad_token_id)
    model.save_pretrained(folder / "theirs")
    tokenizer_of("gpt2", length).save_pretrained(folder / "theirs")
    report = convert_checkpoint(folder / "theirs", folder / "long")
    assert report.verified
    assert not report.needs_training
    assert tensor_counts(report)["kept"] == sum(tensor_counts(report).values())
    assert all(check.status == "passed" for check in report.checks if "equal to the source" in check.name)
    return model.eval(), AutoModelForSeq2SeqLM.from_pretrained(folder / "long").eval()


def assert_same_summaries(
    models: tuple[Any, Any],
    inputs: dict[str, Tensor],
    their_gradient: Callable[[str, Tensor | None], tuple[str, Tensor | None]],
) -> None:
    """Two models have the same states, logits and gradients. ``their_gradient`` says by the name and gradient of one
    of the second model's parameters the name and gradient of the first's."""
    for model in models:
        model.zero_grad()
    expected, found = (model(**inputs) for model in models)
    real = inputs["attention_mask"].bool()
    assert (expected.encoder_last_hidden_state - found.encoder_last_hidden_state)[real].abs().max() < 1e-4
    assert (expected.logits - found.logits).abs().max() < 1e-4
    for outputs in (expected, found):
        outputs.loss.backward()
    gradients = {name: parameter.grad for name, parameter in models[0].named_parameters()}
    for name, parameter in models[1].named_parameters():
        source, got = their_gradient(name, parameter.grad)
        wanted = gradients[source]
        if wanted is None or got is None:  # a part that took none of the text
            assert all(x is None or not x.any() for x in (wanted, got)), name
        else:
            assert (wanted - got).abs().max() < 1e-4, name


def assert_same_texts(models: tuple[Any, Any], inputs: dict[str, Tensor], beams: int) -> None:
    inputs = {name: value for name, value in inputs.items() if name != "labels"}
    arguments = {"max_new_tokens": 16, "min_new_tokens": 16, "num_beams": beams, "do_sample": False}
    assert torch.equal(*(model.generate(**inputs, **arguments) for model in models))


def train_briefly(model: Any, length: int, decoded: int, pad_token_id: int) -> None:
    """A few steps of continuing the text: enough for attention to prefer some tokens over others."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    model.train()
    for _ in range(STEPS):
        starts = torch.randint(0, len(_ids()), (BATCH,), generator=generator).tolist()
        ids = torch.stack([_cut(start, length) for start in starts])
        labels = torch.stack([_cut(start + length, decoded) for start in starts])
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    model.eval()
