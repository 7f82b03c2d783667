"""Training of low-rank updates (LoRA, Hu et al. 2021) by peft."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_longattn.errors import OptionError, needs_extra
from hf_longattn.mechanisms import Mechanism
from hf_longattn.modeling.attach.attention_sites import attention_projections, attention_sites
from hf_longattn.training.args import ModelArguments

BESIDE_UPDATES = "trained_beside_updates"
"""The attribute of a further module that is trained in full."""


@contextmanager
def low_rank_updates(model: PreTrainedModel, args: ModelArguments) -> Iterator[None]:
    """Train LoRA updates of the attention projections within the context, and merge them on exit. Also trained are the mechanisms'
    parameters, poolers and heads, but no head that predicts tokens. Do not use the model after an error.

    Args:
        model: a base model with or without its head.
        args: ``lora_rank`` and ``lora_alpha``.

    Raises:
        MissingExtraError: peft is not installed.
        OptionError: the projections of this architecture are unknown.
    """
    with needs_extra("peft"):
        from peft import LoraConfig, get_peft_model
    targets = projections(model)
    modules: list[nn.Module] = [module for module in model.modules() if isinstance(module, Mechanism)]
    modules += [module for name, module in model.named_modules() if name.rpartition(".")[2] == "pooler" or hasattr(module, BESIDE_UPDATES)]
    trained = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    if model.get_output_embeddings() is None:
        base = set(model.base_model.parameters())
        trained += [parameter for parameter in model.parameters() if parameter not in base]
    transposed = any(isinstance(model.get_submodule(name), Conv1D) for name in targets)
    config = LoraConfig(r=args.lora_rank, lora_alpha=args.lora_alpha, target_modules=targets, fan_in_fan_out=transposed)
    wrapped = get_peft_model(model, config)
    for parameter in trained:
        parameter.requires_grad_(True)
    yield
    wrapped.merge_and_unload()
    model.requires_grad_(True)


def transformers_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model in ``model``: itself, or the base of a sentence-transformers model or of several heads."""
    return next(module for module in model.modules() if isinstance(module, PreTrainedModel))


def projections(model: nn.Module) -> list[str]:
    """The names of the q, k, v and output projections of every self-attention module."""
    projection_names: list[Any] = []
    for site in attention_sites(model):
        if not site.cross:
            names = attention_projections(model, site.name)
            if not names:
                raise OptionError(
                    f"No query, key and value projections are known in {site.name} ({type(site.module).__name__}), so LoRA has nothing to "
                    "update; leave --use-peft out to train all parameters."
                )
            projection_names += names
    return list(dict.fromkeys(projection_names))
