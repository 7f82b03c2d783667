"""What layers keep while decoding is what their caches hold, for every causal mechanism."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from hf_longattn import list_mechanisms
from hf_longattn.families import FAMILIES
from hf_longattn.mechanisms.common.registry import mechanism_class, mechanism_from
from hf_longattn.memory.attention_cache import SLACK
from hf_longattn.modeling.costs import DecodeState, ModelShape, decode_states, model_shape
from tests.cases import every_case
from tests.reference.small_models import LANGUAGE_MODELS, long_model, tokens
from tests.shared_code import code_of_form

SHAPE = ModelShape(
    layers=1,
    heads=4,
    kv_heads=2,
    head_dim=16,
    hidden=64,
    intermediate=256,
    causal=True,
    matrix_parameters=0,
    element_bytes=4,
)
LENGTH = 400


def state_of(name: str, length: int = LENGTH, **options: object) -> DecodeState:
    mechanism = mechanism_from(name, options, num_heads=4, head_dim=16, hidden_size=64, max_length=512)
    return decode_states([mechanism], SHAPE, length)[0]


@pytest.mark.thorough
@torch.no_grad()
@every_case(
    "name",
    [name for name in list_mechanisms(causal=True, grid=False) if name != "recurrent_memory"],
    of=4,
    code=code_of_form,
)
def test_planned_decoding_state_is_what_the_cache_holds(name: str) -> None:
    sample = mechanism_class(name).about.sample
    longer = long_model("llama", LANGUAGE_MODELS["llama"], {"mechanism": name, **sample})
    cache, ids = DynamicCache(config=longer.config), tokens(1, LENGTH)
    for first in range(0, LENGTH, 50):
        longer(ids[:, first : first + 50], past_key_values=cache)
    layer = cache.layers[-1]  # the first one also has what belongs to the whole model
    held = (
        sum(x.nbytes for x in layer.state.values())
        if hasattr(layer, "state")
        else layer.keys.nbytes + layer.values.nbytes
    )
    state = state_of(name, **sample)
    assert state.bytes - 2 * SHAPE.token_bytes <= held <= state.bytes + 2 * (SLACK + 50) * SHAPE.token_bytes
    assert (state.per_token == 0) or state.per_token <= SHAPE.token_bytes


def test_planned_decoding_state_grows_with_full_attention_alone() -> None:
    assert state_of("full") == DecodeState(400 * 256, 256)
    assert state_of("window", window=100) == DecodeState(100 * 256, 0)
    assert state_of("window", length=50, window=100) == DecodeState(50 * 256, 0)
    assert state_of("transformer_xl", segment_length=50, memory_length=70) == DecodeState((70 + 50) * 256, 0)
    assert state_of("recurrent_memory", segment_length=50, num_memory_tokens=5) == DecodeState(0, 0)
    assert state_of("strided", window=8, stride=16).per_token == 256


def test_flops_count_a_shared_layer_of_albert_each_time_it_runs() -> None:
    family = FAMILIES["albert"]

    def matrices(layers: int) -> int:
        config = family.config_class(
            hidden_size=32,
            intermediate_size=48,
            embedding_size=16,
            num_attention_heads=4,
            num_hidden_layers=layers,
            vocab_size=50,
        )
        with torch.device("meta"):
            model = family.model_class("AlbertModel")(config)
        return model_shape(config, model).matrix_parameters

    assert matrices(5) - matrices(2) == 3 * (4 * 32 * 32 + 2 * 32 * 48)
