"""The reference architectures, their initialisation, their losses and their optimisers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from hf_longattn.errors import LongAttentionError
from scripts.dev.studies.pretraining.data import CLS, SEP, Batch

INIT_STD = 0.04


def _bert(vocab_size: int) -> PreTrainedModel:
    """4 layers × 256 wide, 512 positions: 5.46 M parameters. No dropout: the corpus is passed over once or twice."""
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        max_position_embeddings=512,
        initializer_range=INIT_STD,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
    )
    model = BertForMaskedLM(config)
    _sinusoids_(model.bert.embeddings.position_embeddings.weight)
    return model


def _gpt2(vocab_size: int) -> PreTrainedModel:
    """4 layers × 256 wide, 256 positions: 5.3 M parameters."""
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=256,
        n_embd=256,
        n_layer=4,
        n_head=4,
        initializer_range=INIT_STD,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=CLS,
        eos_token_id=SEP,
        pad_token_id=0,
    )
    model = GPT2LMHeadModel(config)
    _sinusoids_(model.transformer.wpe.weight)
    return model


def _llama(vocab_size: int) -> PreTrainedModel:
    """4 layers × 256 wide, 4 heads with 2 key-value heads, 256 rotary positions: 5.2 M parameters."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=INIT_STD,
        tie_word_embeddings=True,
        bos_token_id=CLS,
        eos_token_id=SEP,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


ARCHITECTURES: dict[str, Callable[[int], PreTrainedModel]] = {"bert": _bert, "gpt2": _gpt2, "llama": _llama}


def build_model(architecture: str, vocab_size: int, seed: int) -> PreTrainedModel:
    """Return a freshly initialised model; ``architecture`` is one of :data:`ARCHITECTURES`."""
    if architecture not in ARCHITECTURES:
        raise LongAttentionError(f"unknown architecture {architecture!r}; choose one of {', '.join(ARCHITECTURES)}")
    torch.manual_seed(seed)
    return ARCHITECTURES[architecture](vocab_size)


def causal_twin(model: PreTrainedModel) -> PreTrainedModel:
    """Return the same weights as a left-to-right model: BERT as ``BertLMHeadModel``; the others are causal already."""
    if model.config.model_type != "bert":
        return model
    twin = BertLMHeadModel(BertConfig.from_dict({**model.config.to_dict(), "is_decoder": True}))
    for name, parameter in model.named_parameters():
        parent, _, leaf = name.rpartition(".")
        setattr(twin.get_submodule(parent), leaf, parameter)
    twin.tie_weights()
    return twin


def picked_loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Return the mean cross-entropy at the picked positions; the head runs on these alone."""
    hidden = model.base_model(input_ids=batch.input_ids, position_ids=batch.position_ids, **_no_cache(model)).last_hidden_state
    picked = hidden.flatten(0, 1).index_select(0, batch.picked)
    head = model.cls if model.config.model_type == "bert" else model.lm_head
    return nn.functional.cross_entropy(head(picked).float(), batch.labels)


class Optimizers:
    """Muon for the 2-D matrices of the layers and AdamW for the rest (embeddings, biases, norms), or AdamW for all.

    Muon orthogonalises the momentum of a weight matrix (Jordan et al. 2024); with the step's size matched to AdamW's
    (Liu et al. 2025, arXiv:2502.16982) the two share one learning rate scale.
    """

    def __init__(self, model: PreTrainedModel, name: str, learning_rate: float, matrix_learning_rate: float) -> None:
        if name not in ("muon", "adamw"):
            raise LongAttentionError(f"unknown optimizer {name!r}; choose muon or adamw")
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for key, parameter in model.named_parameters():
            hidden = parameter.ndim == 2 and (".layer." in key or ".layers." in key or ".h." in key)
            (matrices if hidden and name == "muon" else others).append(parameter)
        decayed = [p for p in others if p.ndim == 2]
        plain = [p for p in others if p.ndim != 2]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
        adam = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)
        self._optimizers: list[torch.optim.Optimizer] = [adam]
        if matrices:
            muon = torch.optim.Muon(matrices, lr=matrix_learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
            self._optimizers.append(muon)
        self._base = [optimizer.param_groups[0]["lr"] for optimizer in self._optimizers]
        self._trained = matrices + others

    def step(self, scale: float) -> None:
        """Clip the gradient norm to 1, step with ``scale`` times the base learning rates, and clear the gradients."""
        nn.utils.clip_grad_norm_(self._trained, 1.0)
        for optimizer, base in zip(self._optimizers, self._base, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the states of all optimisers."""
        return [optimizer.state_dict() for optimizer in self._optimizers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restore :meth:`state_dict`."""
        for optimizer, state in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def _no_cache(model: PreTrainedModel) -> dict[str, bool]:
    return {} if model.config.model_type == "bert" and not model.config.is_decoder else {"use_cache": False}


@torch.no_grad()
def _sinusoids_(table: torch.Tensor) -> None:
    """Fill a position table with sinusoids of the initial standard deviation: neighbours start out alike."""
    positions, width = table.shape
    angles = torch.arange(positions)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    table[:, 0::2] = angles.sin() * math.sqrt(2) * INIT_STD
    table[:, 1::2] = angles.cos() * math.sqrt(2) * INIT_STD
