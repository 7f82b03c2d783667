"""One plain encoder with random weights, which every implementation copies, and the tokens that they all read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_MAPPING

from hf_longattn.families import FAMILIES

from ..case import Case
from ..implementations import Implementation

VOCABULARY = 30522
DEBERTA_V3 = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 256,
    "max_relative_positions": 512,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
}
"""What deberta-v3-base's config has beside the sizes; the defaults of its class are those of no checkpoint."""


class ModelInputs:
    """Weights and tokens for one case. ``plain`` is transformers' model of the case's base with positions up to its length."""

    def __init__(self, case: Case) -> None:
        self.case = case
        torch.manual_seed(case.seed)
        self.family = FAMILIES[case.base]
        plain_class = MODEL_MAPPING[self.family.base_config_class]
        implementation = "sdpa" if plain_class._supports_sdpa else "eager"
        config = self.family.base_config_class(**self.sizes(), attn_implementation=implementation)
        self.plain = self.place(plain_class(config))
        generator = torch.Generator().manual_seed(case.seed)
        self.input_ids = torch.randint(1000, VOCABULARY, (case.batch, case.length), generator=generator).to(case.device)
        self.upstream = torch.randn(case.batch, case.length, case.hidden_size, generator=generator).to(case.device, case.torch_dtype)
        self.global_attention_mask: Tensor | None = None
        if case.num_globals:
            self.global_attention_mask = torch.zeros_like(self.input_ids)
            self.global_attention_mask[:, : case.num_globals] = 1

    def sizes(self) -> dict[str, Any]:
        """The arguments of a BERT-like config: base width for 12 heads, no dropout."""
        case = self.case
        return {
            "vocab_size": VOCABULARY,
            "hidden_size": case.hidden_size,
            "num_hidden_layers": case.layers,
            "num_attention_heads": case.heads,
            "intermediate_size": 4 * case.hidden_size,
            "max_position_embeddings": case.length,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            **(DEBERTA_V3 if case.base == "deberta-v2" else {}),
        }

    def place(self, model: Any) -> Any:
        """On the case's device, in its dtype, ready for what is measured."""
        return model.to(self.case.device, self.case.torch_dtype).eval().requires_grad_(self.case.backward)


class ModelImplementation(Implementation):
    """A model that maps the tokens to hidden states (B, N, E); the backward pass goes to all its parameters."""

    model: Any

    def __init__(self, inputs: ModelInputs) -> None:
        self.inputs = inputs
        self.model = inputs.place(self.build(inputs))
        self.leaves = [parameter for name, parameter in self.model.named_parameters() if self.trains(name)]
        self.upstream = inputs.upstream

    def build(self, inputs: ModelInputs) -> Any:
        """The model with the weights of ``inputs.plain``."""
        raise TypeError(f"{type(self).__name__} has no build()")

    def trains(self, name: str) -> bool:
        """Whether the hidden states depend on this parameter."""
        return not name.startswith("pooler.")

    def arguments(self) -> dict[str, Any]:
        """Further arguments of the forward call."""
        return {}

    def forward(self) -> Tensor:
        return self.model(self.inputs.input_ids, **self.arguments()).last_hidden_state
