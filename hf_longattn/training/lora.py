"""Training of low-rank updates (LoRA, Hu et al. 2021) by peft."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_longattn.errors import OptionError
from hf_longattn.mechanisms import Mechanism
from hf_longattn.modeling.attach.attention_sites import attention_projections, attention_sites

BESIDE_UPDATES = "trained_beside_updates"
"""The attribute of a further module that is trained in full."""


@contextmanager
def low_rank_updates(network: nn.Module, rank: int) -> Iterator[None]:
    """Train LoRA updates of the attention projections within the context, scaled by 2, and merge them on exit.

    Also trained are the mechanisms' parameters, poolers and heads, but no head that predicts tokens.

    ``network`` is a model of transformers, or a module that contains one. With a rank of 0, all weights are trained.
    """
    if not rank:
        yield
        return
    from peft import LoraConfig, get_peft_model

    model = next(module for module in network.modules() if isinstance(module, PreTrainedModel))
    targets: list[Any] = []
    for site in (site for site in attention_sites(model) if not site.cross):
        if not (names := attention_projections(model, site.name)):
            raise OptionError(
                f"No query, key and value projections are known in {site.name} ({type(site.module).__name__}), so LoRA has nothing to "
                "update; leave --lora-rank out to train all parameters."
            )
        targets += names
    beside = (
        part for name, part in model.named_modules()
        if isinstance(part, Mechanism) or name.endswith("pooler") or hasattr(part, BESIDE_UPDATES)
    )  # fmt: skip
    trained = [parameter for part in beside for parameter in part.parameters() if parameter.requires_grad]
    if model.get_output_embeddings() is None:
        base = set(model.base_model.parameters())
        trained += [parameter for parameter in model.parameters() if parameter not in base]
    transposed = any(isinstance(model.get_submodule(name), Conv1D) for name in targets)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(dict.fromkeys(targets)), fan_in_fan_out=transposed)
    wrapped = get_peft_model(model, config)
    for parameter in trained:
        parameter.requires_grad_(True)
    yield
    wrapped.merge_and_unload()
    model.requires_grad_(True)
