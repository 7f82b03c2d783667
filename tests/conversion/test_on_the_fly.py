"""`AutoModelFor….from_pretrained(short, config=Long…Config(…))` gives the converter's tensors, bit for bit, in every
family."""

from __future__ import annotations

import copy
import itertools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import hf_longattn
from hf_longattn.conversion import convert_checkpoint, plan_conversion
from hf_longattn.families import FAMILIES
from hf_longattn.modeling.family.registration import auto_class_name
from scripts.dev.tools.small_models import TEXT_FAMILIES
from tests.cases import every_case
from tests.grids import grid
from tests.reference.small_models import plain_model
from tests.samples import sample_of
from tests.shared_code import code_of_family

from .conftest import LENGTH, Short, head_of

NEW = 150


def on_the_fly(folder: Path, plan: Any) -> dict[str, Tensor]:
    """All tensors of the model that `from_pretrained` makes with the attention and positions of a plan."""
    asked = {name: getattr(plan.config, name) for name in ("max_position_embeddings", "position_extension")}
    asked["long_attention"] = plan.config.long_attention.to_dict()
    for name in ("decoder_long_attention", "max_decoder_position_embeddings", "rope_parameters"):
        value = getattr(plan.config, name, None)
        if value is not None:
            asked[name] = value.to_dict() if hasattr(value, "to_dict") else value
    config = type(plan.config).from_pretrained(folder, **asked)
    name = auto_class_name(plan.config, plan.architecture.long_class)
    loaded = getattr(transformers, name).from_pretrained(folder, config=config)
    assert type(loaded).__name__ == plan.architecture.long_class
    return loaded.state_dict()


def check(folder: Path, destination: Path, **arguments: Any) -> None:
    arguments = {"mechanism": "window", "window": 16, "max_length": NEW, **arguments}
    arguments = {name: value for name, value in arguments.items() if value is not None}
    plan = plan_conversion(folder, **arguments)
    convert_checkpoint(folder, destination, **arguments, verify=False)
    name = auto_class_name(plan.config, plan.architecture.long_class)
    converted = getattr(transformers, name).from_pretrained(destination).state_dict()
    loaded = on_the_fly(folder, plan)
    assert loaded.keys() == converted.keys()
    different = [
        one
        for one, value in converted.items()
        if loaded[one].dtype != value.dtype or not torch.equal(loaded[one], value)
    ]
    assert not different
    grown = [one for one in converted if FAMILIES[plan.architecture.family.base_model_type].table(one) is not None]
    assert all(len(converted[one]) > LENGTH for one in grown if "decoder" not in one)


QUICK = ("bert", "gpt2", "llama", "bart", "t5", "deberta-v2")
"""Bases with a table, without an encoder, with rotary positions, with two stacks, and with relative positions of two
kinds."""


@every_case("base", QUICK, of=2)
def test_loading_a_short_checkpoint_equals_its_conversion(base: str, short: Short, tmp_path: Path) -> None:
    check(short(base, head_of(base)), tmp_path / base)


@pytest.mark.thorough
@every_case("base", [base for base in TEXT_FAMILIES if base not in QUICK], of=6, code=code_of_family)
def test_loading_a_short_checkpoint_equals_its_conversion_in_every_family(
    base: str, short: Short, tmp_path: Path
) -> None:
    check(short(base, head_of(base)), tmp_path / base)


@pytest.mark.thorough
@every_case(
    ("base", "settings"),
    [
        *(
            (base, {"positions": positions})
            for base in ("bert", "roberta", "gpt2", "bart")
            for positions in ("interpolate", "none", "alibi")
        ),
        *(("llama", {"positions": positions}) for positions in ("rope:linear", "rope:yarn", "rope:dynamic")),
        ("bart", {"decoder_long_attention": {"mechanism": "window", "window": 8}, "max_decoder_length": 100}),
        *((base, {"mechanism": "longformer", "separate_global": True}) for base in ("bert", "roberta")),
    ],
    of=3,
)
def test_loading_a_short_checkpoint_equals_its_conversion_with_other_settings(
    base: str, settings: dict[str, Any], short: Short, tmp_path: Path
) -> None:
    check(short(base, head_of(base)), Path(tempfile.mkdtemp(dir=tmp_path)) / "long", **settings)


ROTARY = ("llama", "qwen2", "gpt_neox", "phi", "phi3", "gemma3_text", "modernbert")
"""Bases with rotary positions in every head, in a part of it, with two lengths, and for each of two kinds of layer."""


def test_longer_config_scales_rotary_positions_as_a_conversion_does(short: Short) -> None:
    different, kinds = {}, set()
    for base in ROTARY:
        folder = short(base, head_of(base))
        for attention in ({"mechanism": "longformer", "window": 16}, {"mechanism": "window", "window": 16}):
            options = {name: value for name, value in attention.items() if name != "mechanism"}
            plan = plan_conversion(folder, mechanism=attention["mechanism"], options=options, max_length=NEW)
            config = type(plan.config).from_pretrained(folder, max_position_embeddings=NEW, long_attention=attention)
            kinds.add(plan.positions)
            assert ("rope_parameters" in config.extended_from) == (plan.positions == "rope:yarn")
            for name in ("rope_parameters", "max_position_embeddings", "original_max_position_embeddings"):
                read, planned = (getattr(of, name, None) for of in (config, plan.config))
                if read != planned:
                    different[base, attention["mechanism"], name] = read, planned
    assert not different
    assert kinds == {"rope:none", "rope:yarn"}


def test_longer_config_keeps_chosen_or_scaled_rotary_positions(
    short: Short, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = short("llama", head_of("llama"))
    chosen = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}
    config = hf_longattn.LongLlamaConfig.from_pretrained(folder, max_position_embeddings=NEW, rope_parameters=chosen)
    assert config.rope_parameters == chosen
    scaled = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    transformers.LlamaConfig.from_pretrained(folder, rope_parameters=scaled).save_pretrained(tmp_path)
    config = hf_longattn.LongLlamaConfig.from_pretrained(tmp_path, max_position_embeddings=NEW)
    assert config.rope_parameters == scaled
    assert "Rotary positions stay scaled as in the base, for 150 tokens" in caplog.text


def longrope(frequencies: int, **fields: Any) -> dict[str, Any]:
    """An entry of longrope, by default without a factor."""
    factors = {
        "short_factor": [1.0 + 0.1 * i for i in range(frequencies)],
        "long_factor": [1.0 + i for i in range(frequencies)],
    }
    return {"rope_type": "longrope", "rope_theta": 1e4, **factors, **fields}


TRAINED = {"original_max_position_embeddings": LENGTH // 4}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
ENTRIES: dict[str, tuple[str, dict[str, Any]]] = {
    "longrope of Phi-3": ("phi3", longrope(8)),
    "longrope without factor": ("llama", longrope(8, **TRAINED)),
    "longrope with factor": ("llama", longrope(8, **TRAINED, factor=3.0)),
    "longrope with scaling": ("llama", longrope(8, attention_factor=1.3)),
    "longrope of half a head": ("llama", longrope(4, **TRAINED, partial_rotary_factor=0.5)),
    "longrope of a layer type": (
        "gemma3_text",
        {
            "full_attention": longrope(6, **TRAINED, partial_rotary_factor=0.5),
            "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
        },
    ),
    "yarn": ("llama", YARN),
    "yarn with a factor of null": ("qwen2", {**YARN, **TRAINED, "factor": None}),
    "yarn of DeepSeek": ("llama", {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7}),
    "llama3": (
        "llama",
        {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ),
    "linear": ("gpt_neox", {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0, "partial_rotary_factor": 0.25}),
    "dynamic": ("nomic_bert", {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
}
"""Entries of ``rope_parameters``, some of which transformers completes by the maximum length."""


def rotations(model: Any, config: Any, length: int) -> list[Tensor]:
    """What a base's rotary module computes for ``length`` tokens, for each type of layer, made of ``config``."""
    module = type(next(part for part in model.modules() if type(part).__name__.endswith("RotaryEmbedding")))(config)
    kinds = [
        {"layer_type": kind} for kind in config.rope_parameters if kind in (getattr(config, "layer_types", None) or ())
    ] or [{}]
    return [turned for kind in kinds for turned in module(torch.zeros(1, 1), torch.arange(length)[None], **kind)]


@every_case("mechanism", ["window", "full"])
@every_case("name", ENTRIES)
def test_rotary_entries_keep_their_meaning_at_a_larger_length(mechanism: str, name: str, tmp_path: Path) -> None:
    base, entry = ENTRIES[name]
    fields = TRAINED if base == "phi3" else {}
    source = plain_model(base, None, max_position_embeddings=LENGTH, rope_parameters=copy.deepcopy(entry), **fields)
    source.save_pretrained(tmp_path)
    options = {"window": 16} if mechanism == "window" else {}
    plan = plan_conversion(tmp_path, mechanism=mechanism, options=options, max_length=NEW, positions="rope:none")
    expected = rotations(source, source.config, LENGTH)
    read = type(plan.config).from_pretrained(
        tmp_path, max_position_embeddings=NEW, long_attention={"mechanism": mechanism, **options}
    )
    for config in (
        (plan.config, read) if mechanism == "window" or ("yarn" not in name and name != "linear") else (plan.config,)
    ):
        assert config.rope_parameters == plan.config.rope_parameters
        assert config.max_position_embeddings == (LENGTH if (name, mechanism) == ("dynamic", "full") else NEW)
        torch.testing.assert_close(rotations(source, config, LENGTH), expected, rtol=0, atol=1e-6)


TWO_STACKS = [base for base, family in TEXT_FAMILIES.items() if family.two_stacks]
HEADS = ["ForQuestionAnswering", "ForSequenceClassification", "ForCausalLM"]


@every_case(
    ("base", "head"),
    grid(
        itertools.product(TWO_STACKS, HEADS), lambda base, head: (TWO_STACKS.index(base) + HEADS.index(head)) % 2 == 0
    ),
    of=4,
)
def test_loading_heads_of_encoder_decoders_equals_their_conversion(
    base: str, head: str, short: Short, tmp_path: Path
) -> None:
    check(short(base, head_of(base, head)), tmp_path / "long")


@pytest.mark.thorough
@every_case(
    ("mechanism", "base"),
    itertools.product(["performer", "hedgehog", "adaptive_span", "routing", "hybrid"], ["bert", "gpt2", "llama"]),
    of=4,
)
def test_loading_gives_mechanisms_the_initial_values_of_a_conversion(
    base: str, mechanism: str, short: Short, tmp_path: Path
) -> None:
    """Bit for bit and dtype for dtype: counters stay whole numbers, and layers have different random features."""
    check(
        short(base, head_of(base)),
        tmp_path / "long",
        **{"window": None, **sample_of(mechanism)},
    )


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_counters_of_performer_stay_whole_numbers_in_every_dtype(dtype: str, short: Short, tmp_path: Path) -> None:
    source = transformers.AutoModelForCausalLM.from_pretrained(short("gpt2", head_of("gpt2")), dtype=dtype)
    source.save_pretrained(tmp_path / "short")
    convert_checkpoint(tmp_path / "short", tmp_path / "long", mechanism="performer", max_length=NEW)
    for arguments in ({}, {"dtype": "auto"}, {"dtype": torch.float32}, {"dtype": torch.bfloat16}):
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "long", **arguments)
        with torch.no_grad():
            model.train()(torch.randint(5, 30, (1, 20)))
        for changed in (model, model.half(), model.to(torch.bfloat16)):
            changed.save_pretrained(tmp_path / "again")
            for one in (changed, transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again")):
                counters = [value for name, value in one.state_dict().items() if name.endswith(".passes")]
                assert {(value.dtype, int(value)) for value in counters} == {(torch.int64, 1)}
                assert {value.dtype for name, value in one.state_dict().items() if name.endswith(".projection")} == {
                    one.dtype
                }
