"""Whole encoders with equal random weights: ours, transformers' base, and transformers' Longformer; and their
verification."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_MAPPING, LongformerConfig, LongformerModel

from hf_longattn.families import FAMILIES
from hf_longattn.mechanisms.common.masked import SparseMechanism

from .attention import Check, Implementation, LeftOut, difference, mask_of
from .case import AttentionInputs, Case

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
"""Values of deberta-v3-base's config beside the sizes. The defaults of its class are those of no checkpoint."""
CPU_LENGTH, CPU_LENGTH_OF_ALL_PAIRS = 16_384, 4096
"""Maximum tokens of the plain model on a CPU: with fused attention, and with attention that holds several numbers of
every pair."""
OFFSET = 2
"""Rows of padding at the start of Longformer's position table."""
DENSE_LENGTH = 2048
"""Maximum tokens for which the plain model runs under a dense mask."""
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-1, "fp16": 2e-2}


class ModelInputs:
    """Weights and tokens for one case. ``plain`` is transformers' model of the case's base, with positions up to its
    length."""

    def __init__(self, case: Case) -> None:
        self.case = case
        torch.manual_seed(0)
        self.family = FAMILIES[case.base]
        plain_class = MODEL_MAPPING[self.family.base_config_class]
        self.fused = plain_class._supports_sdpa
        config = self.family.base_config_class(**self.sizes(), attn_implementation="sdpa" if self.fused else "eager")
        self.plain = self.prepared(plain_class(config))
        generator = torch.Generator().manual_seed(0)
        self.input_ids = torch.randint(1000, VOCABULARY, (1, case.length), generator=generator)
        self.upstream = torch.randn(1, case.length, case.hidden_size, generator=generator).to(case.torch_dtype)
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

    def prepared(self, model: Any) -> Any:
        """The model in the case's dtype, ready for what is measured."""
        return model.to(self.case.torch_dtype).eval().requires_grad_(self.case.backward)


class ModelImplementation(Implementation):
    """A model that maps the tokens to hidden states (B, N, E). The backward pass goes to all parameters that these
    depend on."""

    def __init__(self, inputs: ModelInputs) -> None:
        self.inputs, self.upstream = inputs, inputs.upstream
        self.arguments: dict[str, Any] = {}
        self.model = inputs.prepared(self.build(inputs))
        self.leaves = [parameter for name, parameter in self.model.named_parameters() if self.trains(name)]

    @abstractmethod
    def build(self, inputs: ModelInputs) -> Any:
        """The model with the weights of ``inputs.plain``. Sets ``arguments``, the further ones of the forward call."""

    def trains(self, name: str) -> bool:
        """Whether the hidden states depend on this parameter."""
        return not name.startswith("pooler.")

    def forward(self) -> Tensor:
        return self.model(self.inputs.input_ids, **self.arguments).last_hidden_state


class LongEncoder(ModelImplementation):
    """LongBertModel (or that of another base) of this package."""

    name = "longattn"

    def build(self, inputs: ModelInputs) -> Any:
        config = inputs.family.config_class(
            **inputs.sizes(), long_attention={"mechanism": inputs.case.mechanism, **inputs.case.options}
        )
        long_class = inputs.family.long_class_of(type(inputs.plain))
        assert long_class is not None, "the plain model is the family's base model"
        model = long_class(config)
        # a mechanism's own parameters keep their start values
        model.load_state_dict(inputs.plain.state_dict(), strict=False)
        if inputs.global_attention_mask is not None:
            self.arguments["global_attention_mask"] = inputs.global_attention_mask
        return model


class PlainEncoder(ModelImplementation):
    """transformers' base model with full attention (SDPA; DeBERTa: eager)."""

    name, computes = "sdpa", "full"

    def build(self, inputs: ModelInputs) -> Any:
        if inputs.case.length > (CPU_LENGTH if inputs.fused else CPU_LENGTH_OF_ALL_PAIRS):
            raise LeftOut("a pass of full attention takes many minutes")
        return inputs.plain


class HFLongformer(ModelImplementation):
    """LongformerModel of transformers, with the same projections for local and global tokens."""

    name = "hf-longformer"

    def build(self, inputs: ModelInputs) -> Any:
        case = inputs.case
        attention = AttentionInputs(case.at(layers=1))
        mechanism = attention.mechanism
        band = mechanism.pattern(case.causal) if isinstance(mechanism, SparseMechanism) else None
        if band is None or band.left != band.right or band.left >= case.length:
            raise LeftOut(
                f"it has symmetric windows with global tokens, not {case.mechanism} with "
                f"{case.options or 'its default options'}"
            )
        if attention.resolved_globals is not None:
            self.arguments["global_attention_mask"] = attention.resolved_globals.long()
        sizes = inputs.sizes() | {
            "max_position_embeddings": case.length + OFFSET,
            "pad_token_id": 1,
            "layer_norm_eps": 1e-12,
        }
        model = LongformerModel(
            LongformerConfig(**sizes, type_vocab_size=2, attention_window=2 * band.left), add_pooling_layer=False
        )
        weights: dict[str, Tensor] = {
            name: x for name, x in inputs.plain.state_dict().items() if not name.startswith("pooler.")
        }
        table = weights["embeddings.position_embeddings.weight"]
        weights["embeddings.position_embeddings.weight"] = torch.cat([table[:OFFSET], table])
        for name in list(weights):
            head, _, projection = name.rpartition(".self.")
            if head:
                part, _, kind = projection.partition(".")
                weights[f"{head}.self.{part}_global.{kind}"] = weights[name]
        model.load_state_dict(weights, strict=True)
        return model

    def trains(self, name: str) -> bool:
        return super().trains(name) and ("_global." not in name or bool(self.arguments))


ENCODERS: dict[str, type[ModelImplementation]] = {
    made.name: made for made in (LongEncoder, PlainEncoder, HFLongformer)
}
"""Name in ``--against`` -> implementation."""


def verify_model(inputs: ModelInputs, candidates: Sequence[Implementation]) -> list[Check]:
    """Compare with the plain model under a dense mask: hidden states and, in training, the gradient of the word
    embeddings."""
    case = inputs.case
    if case.length > DENSE_LENGTH:
        return []
    masks: dict[str, Any] = {"mechanism": mask_of(AttentionInputs(case)), "full": None}
    expected: dict[str, list[Any]] = {}
    checks = []
    for candidate in candidates:
        if candidate.computes == "mechanism" and masks["mechanism"] is None:
            continue
        if candidate.computes not in expected:
            expected[candidate.computes] = _plain_under(masks[candidate.computes], inputs)
        error = difference(candidate.run(case.backward), expected[candidate.computes][0])
        checks.append(Check(candidate.name, case.length, "hidden states", error, TOLERANCE[case.dtype]))
        if case.backward:
            error = difference(candidate.gradients[0], expected[candidate.computes][1])
            checks.append(
                Check(candidate.name, case.length, "gradient of the word embeddings", error, TOLERANCE[case.dtype])
            )
    return checks


def _plain_under(mask: Any, inputs: ModelInputs) -> list[Any]:
    """Hidden states of the plain model under a mask and, in training, the gradient of its word embeddings."""
    index, zero = torch.arange(inputs.case.length), torch.zeros(1, 1, 1, 1, dtype=torch.long)

    def see(encoder: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Replace the mask that the model made of padding."""
        if mask is None:
            return None
        dense = mask(zero, zero, index.view(1, 1, -1, 1), index.view(1, 1, 1, -1))
        named = dict(zip(("hidden_states", "attention_mask"), arguments, strict=False)) | keywords
        if inputs.fused:  # DeBERTa's own attention takes a bool
            dense = torch.zeros_like(dense, dtype=inputs.case.torch_dtype).masked_fill(~dense, float("-inf"))
        return (), {**named, "attention_mask": dense}

    hook = inputs.plain.encoder.register_forward_pre_hook(see, with_kwargs=True)
    with torch.set_grad_enabled(inputs.case.backward):
        output = inputs.plain(inputs.input_ids).last_hidden_state
    hook.remove()
    if not inputs.case.backward:
        return [output]
    return [
        output.detach(),
        *torch.autograd.grad(output, [inputs.plain.embeddings.word_embeddings.weight], inputs.upstream),
    ]
