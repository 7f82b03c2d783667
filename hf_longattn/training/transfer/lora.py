"""Stage 2's parameters: LoRA (Hu et al. 2021) on the q, k, v and output projections, and the mechanisms' own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_longattn.errors import OptionError
from hf_longattn.mechanisms import Mechanism
from hf_longattn.modeling.attention_sites import attention_projections, attention_sites


@contextmanager
def low_rank_updates(model: PreTrainedModel, rank: int, alpha: float) -> Iterator[None]:
    """Within, only low-rank updates of the attention projections and the mechanisms' parameters train; afterwards the updates are
    merged into the projections and the model has its usual parameters. After an error the model is not to be used.

    Raises:
        OptionError: peft is not installed, or no projection is known in an attention module of this architecture.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise OptionError("LoRA needs peft (pip install peft); install it, or say --full") from error
    targets = projections(model)
    mechanisms = [module for module in model.modules() if isinstance(module, Mechanism)]
    own = [p for mechanism in mechanisms for p in mechanism.parameters() if p.requires_grad]
    transposed = any(isinstance(model.get_submodule(name), Conv1D) for name in targets)
    wrapped = get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, fan_in_fan_out=transposed))
    for parameter in own:
        parameter.requires_grad_(True)
    yield
    wrapped.merge_and_unload()
    model.requires_grad_(True)


def projections(model: nn.Module) -> list[str]:
    """The names of the q, k, v and output projections of every self-attention module."""
    found = []
    for site in attention_sites(model):
        if not site.cross:
            names = attention_projections(model, site.name)
            if not names:
                raise OptionError(
                    f"No query, key and value projection is known in {site.name} ({type(site.module).__name__}), so LoRA has nothing to "
                    "update; say --full."
                )
            found += names
    return list(dict.fromkeys(found))
