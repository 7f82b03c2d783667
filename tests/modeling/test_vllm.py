"""vLLM's Transformers backend, by a stand-in that treats models as ``vllm/model_executor/models/transformers`` of vLLM
0.32.0 does.

The engine is not installed here. Of it the stand-in has what a model meets: one row of tokens of several texts with
``position_ids`` that start again, an attention per layer, found by ``module.layer_idx``, whose window and causality
come from the config and the modules, and no other keyword than ``scaling``.
"""

from __future__ import annotations

import copy
import itertools
import pickle
import random
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import tomllib
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from hf_longattn.engines.dense import repeat_heads
from hf_longattn.errors import BackendError, OptionError
from hf_longattn.families import FAMILIES
from hf_longattn.modeling.family.definition import family_names
from hf_longattn.modeling.family.long_config import LongConfig
from hf_longattn.modeling.family.registration import register_with_vllm
from hf_longattn.modeling.family.sliding_window import TYPES_ARE_MASKS
from scripts.dev import ROOT
from scripts.dev.tools.small_models import Shape, small_config, small_values
from tests.cases import every_case
from tests.reference.definitions import defined_mechanisms, definition_of
from tests.reference.small_models import long_config, tokens

VLLM = "vllm"
SMALL = {"pad_token_id": 1, "head_dim": 8, "num_key_value_heads": 4, "mamba_n_heads": 4, "initializer_range": 0.2}
LENGTHS = (40, 3, 70, 1)


@dataclass
class Attention:
    """``Attention`` and ``EncoderOnlyAttention`` of a layer, for texts of the lengths ``texts``, which lie one after
    the other in a row."""

    window: int | None
    causal: bool
    softcap: float | None
    texts: list[int]
    calls: int = 0


INSTANCES: dict[int, Attention] = {}
"""Layer -> its attention."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """``vllm_attention_forward``."""
    assert kwargs.get("s_aux") is None  # check_sinks
    instance: Any = INSTANCES[module.layer_idx]  # type: ignore[index]
    instance.calls += 1
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = []
    for q, k, v in zip(*(x.split(instance.texts, 2) for x in (query, key, value)), strict=True):
        distance = torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])
        # flash_attn.py: (sliding_window - 1, 0 or sliding_window - 1)
        size = q.shape[2] if instance.window is None else instance.window - 1
        scores = q @ repeat_heads(k, q.shape[1]).mT * scale
        if instance.softcap is not None:
            scores = instance.softcap * torch.tanh(scores / instance.softcap)
        visible = (distance <= size) & (distance >= (0 if instance.causal else -size))
        out.append(scores.masked_fill(~visible, -torch.inf).softmax(-1) @ repeat_heads(v, q.shape[1]))
    return torch.cat(out, 2).transpose(1, 2).reshape(query.shape[2], -1), None


@pytest.fixture(autouse=True)
def engine() -> Iterator[None]:
    AttentionInterface.register(VLLM, attend)
    yield
    del AttentionInterface._global_mapping[VLLM]


def read_by_engine(config: Any) -> Any:
    """A checkpoint's config in a process of the engine, which has called the plugin."""
    LongConfig.served_by = VLLM
    try:
        return type(config).from_dict(config.to_dict())
    finally:
        LongConfig.served_by = None


def refusal(config: Any) -> str:
    """Why a process of the engine refuses a config; empty if it does not."""
    try:
        read_by_engine(config)
    except BackendError as error:
        return str(error)
    return ""


def serve(config: Any, weights: dict[str, Tensor], texts: Sequence[Tensor]) -> list[Tensor]:
    """Hidden states of ``texts``, as the engine computes them together from a checkpoint."""
    config = read_by_engine(config)
    types = getattr(config, "layer_types", None)
    lengths = [len(text) for text in texts]
    whole = None  # arg_utils.py: the window of all layers, if no layer_types name any
    if types is None or all(layer == "sliding_attention" for layer in types):
        whole = getattr(config, "sliding_window", None)
    text_config = config.get_text_config()
    text_config._attn_implementation = VLLM  # base.py: _patch_config
    model: Any = AutoModel.from_config(config).eval()
    model.load_state_dict(weights)
    encoder = any(not getattr(module, "is_causal", True) for module in model.modules())
    softcap = getattr(text_config, "attn_logit_softcapping", None)
    types = getattr(text_config, "layer_types", None)
    INSTANCES.clear()
    for layer in range(text_config.num_hidden_layers):
        window = text_config.sliding_window if types and types[layer] == "sliding_attention" else whole
        INSTANCES[layer] = Attention(window, not encoder, softcap, lengths)
    positions = torch.cat([torch.arange(length) for length in lengths])
    if "roberta" in config.model_type and encoder:  # legacy.py
        positions = positions + config.pad_token_id + 1
    with torch.no_grad():
        outputs = model(
            input_ids=torch.cat([*texts])[None],
            inputs_embeds=None,
            use_cache=False,
            position_ids=positions[None],
            return_dict=False,
        )
    assert all(instance.calls == 1 for instance in INSTANCES.values())
    return list(outputs[0][0].split(lengths))


def difference(config: Any) -> float:
    """The largest difference of the served states of texts and those of the Long model run on each alone."""
    texts = [tokens(1, length, seed=length)[0] for length in LENGTHS]
    torch.manual_seed(0)
    model: Any = AutoModel.from_config(copy.deepcopy(config)).eval()
    served = serve(config, model.state_dict(), texts)
    with torch.no_grad():
        alone = [model(text[None]).last_hidden_state[0] for text in texts]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(served, alone, strict=True))


def window(width: int, **options: Any) -> dict[str, Any]:
    return {"mechanism": "window", "window": width, **options}


SLIDING, FULL = "sliding_attention", "full_attention"
MIXED = {"mechanism": "full", "layers": {0: window(8), 2: window(8)}}
KEPT = {"sliding_window": 8, "layer_types": [SLIDING, FULL, SLIDING]}
SERVED: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "bert": ("bert", window(6), {}),
    "bert, some layers": ("bert", MIXED, {}),
    "bert, full": ("bert", {"mechanism": "full", "exact_length": 64}, {}),
    "roberta": ("roberta", window(6), {}),
    "nomic_bert": ("nomic_bert", window(6), {}),
    "llama": ("llama", window(6), {}),
    "llama, some layers": ("llama", MIXED, {}),
    "mistral, narrower than its own": ("mistral", MIXED, {"sliding_window": 32}),
    "mistral, full": ("mistral", {"mechanism": "full"}, {"sliding_window": 32}),
    "qwen2": ("qwen2", MIXED, {}),
    "qwen3, in other layers": (
        "qwen3",
        {"layers": "0=full;1=window:window=8;2=full"},
        {"use_sliding_window": True, **KEPT},
    ),
    "gemma2": ("gemma2", {"mechanism": "full"}, KEPT),
    "gemma3": ("gemma3_text", {"mechanism": "full"}, KEPT),
    "gemma3, another width": ("gemma3_text", MIXED, {**KEPT, "sliding_window": 20}),
    "gemma3, an encoder": ("gemma3_text", MIXED, {**KEPT, "sliding_window": 20, "use_bidirectional_attention": True}),
}


@every_case("case", SERVED)
def test_vllm_computes_the_windows_of_a_long_model(case: str) -> None:
    base, attention, changes = SERVED[case]
    assert difference(long_config(base, attention, **changes)) < 1e-5


@every_case("form", ["bert", "llama"])
@every_case("name", defined_mechanisms())
def test_every_mechanism_is_equal_or_refused_in_vllm(name: str, form: str) -> None:
    """With options drawn at random; ``window`` and ``full`` also with those that all mechanisms share."""
    draws = random.Random(0)
    shared: Iterator[dict[str, Any]] = itertools.cycle(
        [{}, {"relative": "alibi"}, {"exact_length": 20}, {"exact_length": 0}]
    )
    for _ in range(12):
        options = {**definition_of(name).draw_options(draws, 70), **next(shared)}
        options.pop("longest_of_the_model", None)
        try:
            config = long_config(form, {"mechanism": name, **options})
        except OptionError:  # not in this form
            continue
        if why := refusal(config):
            assert re.search("cannot express (mechanism '|full attention for texts of up to 20 tokens)", why), why
            assert re.search("convert with --(mechanism window|option exact_length=0)", why), why
        else:
            assert difference(config) < 1e-5, options


@pytest.mark.thorough
@every_case("base", family_names(CONFIG_MAPPING_NAMES))
def test_every_family_is_equal_or_refused_in_vllm(base: str) -> None:
    family = FAMILIES[base]
    texts = FAMILIES[base].spec.reads == "text"
    values = small_values(base, Shape(tokens=128, vocabulary=200), **SMALL, sliding_window=6) if texts else {}
    config = family.config_class(**values, **({"long_attention": {"layers": "window:window=6"}} if texts else {}))
    if why := refusal(config):
        assert "cannot express" in why
    else:
        assert difference(config) < 1e-5


def stock_difference(base: str, before: list[str], after: list[str]) -> float:
    """How much other ``layer_types`` change a stock model's states, with windows that all texts fit into."""
    shape = Shape(width=64, layers=2, heads=4, inner=64, tokens=64, vocabulary=99)
    states = []
    for types in (before, after):
        torch.manual_seed(0)
        config = small_config(
            base,
            shape,
            pad_token_id=1,
            head_dim=16,
            sliding_window=64,
            use_sliding_window=True,
            layer_types=types,
            initializer_range=0.5,
        )
        model: Any = AutoModel.from_config(config).eval()
        with torch.no_grad():
            states.append(model(torch.arange(5, 45)[None]).last_hidden_state)
    return float((states[0] - states[1]).abs().max())


WITH_TYPES = [
    base for base in ("cohere2", "exaone4", "gemma3_text", "olmo3", *TYPES_ARE_MASKS) if base in CONFIG_MAPPING_NAMES
]


@every_case("base", WITH_TYPES)
def test_only_bases_whose_layer_types_are_masks_may_have_other_ones_in_vllm(base: str) -> None:
    for before, after in ([FULL, FULL], [FULL, SLIDING]), ([SLIDING, FULL], [SLIDING, SLIDING]):
        values = small_values(
            base, Shape(layers=2, vocabulary=200), pad_token_id=1, sliding_window=8, layer_types=before
        )
        windows = {layer: window(8) if name == SLIDING else {"mechanism": "full"} for layer, name in enumerate(after)}
        why = refusal(FAMILIES[base].config_class(**values, long_attention={"mechanism": "full", "layers": windows}))
        if base in TYPES_ARE_MASKS:
            assert (why, stock_difference(base, before, after)) == ("", 0.0)
        else:
            assert re.search(
                "windows in other layers than its base's, since Long.* chooses positions by layer_types too; convert",
                why,
            ), why


REFUSED: dict[str, tuple[str, Any, dict[str, Any], str]] = {
    "two widths": (
        "bert",
        {"layers": "window:window=4,window:window=6"},
        {},
        "windows of different widths in one model; convert with one",
    ),
    "short texts in full": (
        "bert",
        window(6, exact_length=20),
        {},
        "full attention for texts of up to 20 tokens beside windows; convert with",
    ),
    "sinks": (
        "llama",
        window(6, num_sinks=2),
        {},
        "mechanism 'window' with window=6, num_sinks=2; convert with --mechanism window",
    ),
    "decoding in full": (
        "llama",
        window(6, full_decoding=True),
        {},
        "mechanism 'window' with window=6, full_decoding=True; convert",
    ),
    "global tokens": (
        "bert",
        {"mechanism": "longformer", "window": 6, "global_tokens": []},
        {},
        "mechanism 'longformer' with",
    ),
    "two stacks": ("bart", window(6), {}, "the attention of LongBartConfig; use 'longattn'"),
    "score terms": ("mpnet", window(6), {}, "the attention of LongMPNetConfig; use 'longattn'"),
    "other positions": (
        "camembert",
        window(6),
        {},
        "positions that begin after the padding token's, except those of RoBERTa encoders",
    ),
    "experts": ("mixtral", {"mechanism": "full"}, {}, "experts, with which it was not compared; use 'longattn'"),
    "recurrent layers": ("falcon_h1", {"mechanism": "full"}, {}, "the layers of LongFalconH1Config; use 'longattn'"),
    "neighbouring tokens": ("mobilebert", window(6), {}, "the layers of LongMobileBertConfig; use 'longattn'"),
}


@every_case("case", REFUSED)
def test_reading_a_config_under_vllm_refuses_what_vllm_cannot_express(case: str) -> None:
    base, attention, changes, message = REFUSED[case]
    values = {**small_values(base, Shape(vocabulary=200)), "pad_token_id": 1, **changes}
    why = refusal(FAMILIES[base].config_class(**values, long_attention=attention))
    assert re.search(f"^attn_implementation='vllm' cannot express {re.escape(message)}.*[.]$", why), why


@every_case("base", ["bert", "mistral", "qwen2", "gemma3_text"])
def test_the_windows_that_vllm_reads_are_seen_under_its_name_alone(base: str, tmp_path: Path) -> None:
    changes = (
        {}
        if base == "bert"
        else {"sliding_window": 32, **({"layer_types": [FULL] * 3} if base in ("qwen2", "gemma3_text") else {})}
    )
    attention = {"mechanism": "full"} if base == "gemma3_text" else MIXED
    config = long_config(base, attention, **changes)
    before = copy.deepcopy(vars(config))
    written = config.to_dict()
    config._attn_implementation = VLLM
    expected = [FULL] * 3 if base == "gemma3_text" else [SLIDING, FULL, SLIDING]
    for seen in (
        config,
        copy.deepcopy(config),
        pickle.loads(pickle.dumps(config)),
        config.get_text_config(),
        read_by_engine(config),
    ):
        assert seen.layer_types == expected
        assert base == "gemma3_text" or seen.sliding_window == (5 if base == "bert" else 8)
        assert seen.to_dict() == written
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).long_attention == config.long_attention
    if base == "bert":
        config.long_attention = window(10)
        assert (config.layer_types, config.sliding_window) == ([SLIDING] * 3, 6)
        config.long_attention = attention
    config._attn_implementation = "longattn"
    assert {**vars(config), "_attn_implementation_internal": None} == {**before, "_attn_implementation_internal": None}


def test_vllm_finds_long_classes_by_its_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"][
        "vllm.general_plugins"
    ].values()
    assert path == f"{register_with_vllm.__module__}:{register_with_vllm.__name__}"
    registered: dict[str, str] = {}
    stand_in = ModuleType("vllm")
    stand_in.ModelRegistry = SimpleNamespace(register_model=registered.__setitem__)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    monkeypatch.setattr(LongConfig, "served_by", None)
    for _ in range(2):  # it may be called again
        register_with_vllm()
    home = "vllm.model_executor.models.transformers:"
    assert registered["LongBertModel"] == f"{home}TransformersEmbeddingModel"
    assert registered["LongLlamaForCausalLM"] == f"{home}TransformersForCausalLM"
    assert not [
        name
        for name in registered
        if not name.startswith("Long") or name.startswith(("LongformerModel", "LongMultimodal"))
    ]
    assert long_config("bert", window(6))._attn_implementation == VLLM
    assert long_config("bert", window(6), attn_implementation="longattn")._attn_implementation == "longattn"
    with pytest.raises(BackendError, match="cannot express mechanism 'bigbird'"):
        long_config("bert", {"mechanism": "bigbird"})
