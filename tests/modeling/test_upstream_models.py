"""What is relied on of transformers' models and caches: each test fails when transformers changes."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from torch import nn
from transformers import BertConfig, BertModel, GenerationMixin, PreTrainedModel, cache_utils
from transformers.generation.continuous_batching import ContinuousMixin
from transformers.models.bert.modeling_bert import BertSelfAttention
from transformers.utils import PushToHubMixin

from hf_longattn import enable_long_attention
from hf_longattn.errors import BackendError
from hf_longattn.families.whisper import WhisperOfAnyLength
from hf_longattn.memory import decode_cache
from hf_longattn.memory.attention_cache import AttentionCacheLayer
from hf_longattn.memory.key_cache import GrowingWindowLayer, ReservedLayer
from hf_longattn.modeling import generic, mixin
from hf_longattn.modeling.attach.weights import LoadsMechanisms
from hf_longattn.modeling.grids import LongGridMixin
from hf_longattn.names import PRIVATE_APIS, require
from tests.cases import every_case
from tests.reference.small_models import long_model
from tests.removed_apis import removed

WINDOW = {"mechanism": "window", "window": 6}
DOCUMENTED = {
    "forward",
    "from_pretrained",
    "generate",
    "post_init",
    "prepare_inputs_for_generation",
    "push_to_hub",
    "save_pretrained",
}
"""Methods that users call, or that transformers' pages describe."""
MIXINS: tuple[Any, ...] = (
    mixin.HubMixin,
    mixin.LongAttentionMixin,
    mixin.LongGenerationMixin,
    mixin.LongBaseModelMixin,
    LongGridMixin,
    LoadsMechanisms,
    generic.GenericModel,
    WhisperOfAnyLength,
)


def test_methods_of_ours_that_override_internal_ones_are_all_listed() -> None:
    bases = (PreTrainedModel, GenerationMixin, PushToHubMixin)
    ours = {name for owner in MIXINS for name in vars(owner) if not name.startswith("__")}
    overriding = {name for name in ours if any(callable(getattr(base, name, None)) for base in bases)}
    listed = {where.rpartition(".")[2] for where in PRIVATE_APIS["overridden_methods"]}
    assert overriding - DOCUMENTED == listed


@every_case("where", PRIVATE_APIS["overridden_methods"])
def test_a_long_class_is_refused_where_transformers_no_longer_calls_a_method_of_ours(where: str) -> None:
    class Base(nn.Module):
        def forward(self, input_ids: Any) -> None: ...

    require.cache_clear()
    try:
        with removed(where), pytest.raises(BackendError, match=f"has no {where.replace(':', '.')}, which hf_longattn"):
            type("LongBase", (mixin.LongAttentionMixin, Base), {})
    finally:
        require.cache_clear()


MEMBERS = {
    cache_utils.CacheLayerMixin: (
        "get_mask_sizes get_max_length get_seq_length is_compileable is_croppable lazy_initialization offload "
        "prefetch reorder_cache reset supports_early_init update"
    ),
    cache_utils.DynamicLayer: "batch_repeat_interleave batch_select_indices crop is_sliding",
    cache_utils.DynamicSlidingWindowLayer: "activate_past_recording",
    cache_utils.StaticLayer: "crop is_sliding",
}
"""Public members of transformers' layers that ours are known to inherit or override. A new one would work on the keys
that our layers hold as if they were all: override it, or note here why it need not be.

``offload`` and ``prefetch`` move ``keys`` and ``values``, which states do not have; ``supports_early_init`` is for
tensor-parallel layers of keys; ``is_sliding`` chooses masks, which our attention function reads itself."""


@every_case("owner", MEMBERS)
def test_members_of_cache_layers_are_those_that_ours_know(owner: type[Any]) -> None:
    inherited = {name for base in owner.__mro__[1:] for name in vars(base)}
    new = {name for name in vars(owner) if not name.startswith("_")} - inherited - {"keys", "values"}
    assert new <= {*MEMBERS[owner].split()}
    for ours in (GrowingWindowLayer, ReservedLayer, AttentionCacheLayer):
        assert ours.__mro__[1].__module__ == cache_utils.__name__


def test_layers_whose_attention_is_not_found_are_named(caplog: pytest.LogCaptureFixture) -> None:
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    for number, found in ((None, ""), (1, "1 of 3 layers BertLayer of encoder.layer")):
        model = BertModel(BertConfig(**sizes, intermediate_size=16)).eval()
        if number is not None:  # as where one layer has attention of another class
            attention = model.encoder.layer[number].attention
            attention.self.__class__ = type("BertMixer", (BertSelfAttention,), {})
        caplog.clear()
        enable_long_attention(model, WINDOW)
        assert bool(caplog.messages) == bool(found)
        assert found in caplog.text


def test_continuous_batching_of_mechanisms_is_refused_in_a_sentence_that_ends_the_circle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The base's own would reserve most of the memory for its pages."""
    monkeypatch.setattr(ContinuousMixin, "init_continuous_batching", lambda self, *args, **kwargs: "the base's")
    longer = long_model("llama", "LlamaForCausalLM", WINDOW)
    for implementation in (None, "sdpa"):  # which transformers names, and which selects longattn again
        longer.set_attn_implementation(implementation or "longattn")
        with pytest.raises(
            BackendError, match=r"call generate with a padded batch, or first model\.use_base_attention"
        ):
            longer.generate_batch([[5, 6, 7]])
    longer.use_base_attention()
    assert longer.init_continuous_batching() == "the base's"


def test_the_name_of_the_cache_is_one_that_decoders_take() -> None:
    from transformers import LlamaForCausalLM

    assert decode_cache.CACHE in inspect.signature(LlamaForCausalLM.forward).parameters
