"""Loading and saving Long models: position tables, initial values, tied weights, formats of files."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

import hf_longattn
import hf_longattn.families as families
from hf_longattn import enable_long_attention, list_mechanisms
from hf_longattn.errors import OptionError
from hf_longattn.families import FAMILIES
from hf_longattn.files import FORMAT_FIELD as FIELD
from hf_longattn.mechanisms.common.base import LayerSizes, Mechanism
from hf_longattn.mechanisms.common.capabilities import projection_copies
from hf_longattn.mechanisms.common.options import Options
from hf_longattn.mechanisms.common.registry import has_tensors, mechanism_class, prototype
from hf_longattn.modeling.attach import weights
from hf_longattn.modeling.attach.attention_sites import (
    CROSS_MECHANISM,
    AttentionSite,
    attention_sites,
    copied_parameters,
)
from hf_longattn.modeling.family.registration import auto_class_name
from hf_longattn.positions.tables import extend_table
from scripts.dev.tools.small_models import Shape, small_config
from tests.cases import every_case
from tests.grids import grid
from tests.reference.small_models import (
    BASES,
    HEADS,
    LANGUAGE_MODELS,
    SHAPE,
    head_inputs,
    is_quick_head,
    long_config,
    long_model,
    plain_config,
    plain_model,
    tokens,
)
from tests.shared_code import kind_of_family

HEAD = LANGUAGE_MODELS | {"bert": "BertForQuestionAnswering", "big_bird": "BigBirdForQuestionAnswering"}
TABLES = [base for base in BASES if families.FAMILIES[base].position_tables]
COVERING = {"mechanism": "window", "window": 2048}
LONGER = 700
"""Tokens, more than the plain models take."""


def converted(folder: Path, base: str, rows: int, **changes: Any) -> Any:
    config = families.FAMILIES[base].config_class.from_pretrained(
        folder, max_position_embeddings=rows, **{"long_attention": COVERING, **changes}
    )
    return auto_class(base).from_pretrained(folder, config=config)


def auto_class(base: str) -> Any:
    """The Auto class that gives the Long class of the head of ``HEAD``."""
    name = auto_class_name(long_config(base, None), families.FAMILIES[base].model_classes[HEAD[base]])
    assert name is not None
    return getattr(transformers, name)


def table_of(base: str) -> tuple[str, families.PositionTable]:
    """Name and description of the position table of the model that ``HEAD`` names."""
    family = families.FAMILIES[base]
    return next(
        (name, table)
        for name in plain_model(base, HEAD[base]).state_dict()
        if (table := family.table(name)) is not None
    )


@every_case("base", BASES, of=9, code=kind_of_family)
def test_a_longer_model_equals_the_plain_one_up_to_the_old_length(base: str, tmp_path: Path) -> None:
    plain = plain_model(base, HEAD[base])
    plain.save_pretrained(tmp_path / "short")
    rows = plain.config.max_position_embeddings * 4
    rotary = getattr(plain.config, "rope_parameters", None)
    unscaled = {} if rotary is None else {"rope_parameters": rotary}
    longer = converted(tmp_path / "short", base, rows, position_extension="tile", **unscaled)
    assert type(longer).__name__ == f"Long{HEAD[base]}"
    inputs = head_inputs(HEAD[base], length=200, pad_token=plain.config.pad_token_id)
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        assert (plain(**inputs)[0] - longer(**inputs)[0])[real].abs().max() < 1e-5
        long_logits = longer(tokens(1, LONGER))[0]
    assert long_logits.isfinite().all()

    longer.save_pretrained(tmp_path / "long")
    again = auto_class(base).from_pretrained(tmp_path / "long")
    assert type(again) is type(longer)
    with torch.no_grad():
        assert torch.equal(again(tokens(1, LONGER))[0], long_logits)
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "long" / "model.safetensors"
    ).read_bytes()


STRATEGIES = ("tile", "interpolate", "stretch:20")
EXTENSIONS = grid(
    itertools.product(TABLES, STRATEGIES),
    lambda base, strategy: base == "bert" or strategy == STRATEGIES[TABLES.index(base) % 3],
)
"""Every strategy on one base; on the others, the strategies in turn."""


@pytest.mark.thorough
@every_case(("base", "strategy"), EXTENSIONS)
def test_the_position_table_is_extended_by_the_strategy_of_the_config(
    base: str, strategy: str, tmp_path: Path
) -> None:
    plain = plain_model(base, HEAD[base])
    plain.save_pretrained(tmp_path)
    longer = converted(tmp_path, base, 1200, position_extension=strategy)
    name, table = table_of(base)
    short = plain.state_dict()
    long = longer.state_dict()
    expected = extend_table(
        short.pop(name), table.rows(longer.config), offset=table.offset_rows(longer.config), strategy=strategy
    )
    assert torch.equal(long[name], expected)
    assert all(torch.equal(long[name], value) for name, value in short.items())


@pytest.mark.thorough
@pytest.mark.parametrize("head", ["RobertaForMaskedLM", "RobertaModel"])
def test_a_tokenizer_s_padding_token_does_not_move_the_positions(head: str, tmp_path: Path) -> None:
    model = long_model("roberta", head, {"mechanism": "window", "window": 16})
    ids = tokens(1, 50)
    with torch.no_grad():
        expected = model(ids)[0]
        model.config.pad_token_id = 0  # as Trainer does with a tokenizer that pads with it
        model.save_pretrained(tmp_path)
        assert model.config.pad_token_id == 0
        again = type(model).from_pretrained(tmp_path)
        assert again.config.pad_token_id == 1
        assert torch.equal(again(ids)[0], expected)


@pytest.mark.thorough
@every_case(("base", "head"), grid(HEADS, is_quick_head), of=9, code=kind_of_family, ids=[head for _, head in HEADS])
def test_a_headless_checkpoint_is_loaded_into_every_head(base: str, head: str, tmp_path: Path) -> None:
    plain = plain_model(base)
    plain.save_pretrained(tmp_path)
    family = families.FAMILIES[base]
    changes = {"position_extension": "tile", "long_attention": COVERING}
    config = family.config_class.from_pretrained(tmp_path, max_position_embeddings=700, **changes)
    model = family.model_class(head).from_pretrained(tmp_path, config=config)
    inner = getattr(model, model.base_model_prefix, model).state_dict()
    expected = {name: weight for name, weight in plain.state_dict().items() if "pooler" not in name and name in inner}
    for name, weight in expected.items():
        found = inner[name]
        assert torch.equal(found[: len(weight)], weight), name
        table = family.table(name)
        assert len(found) == (len(weight) if table is None else table.rows(config)), name


def test_a_sharded_checkpoint_in_half_precision_is_extended(tmp_path: Path) -> None:
    plain = plain_model("bert").half()
    plain.save_pretrained(tmp_path / "short", max_shard_size="40KB")
    config = families.LongBertConfig.from_pretrained(
        tmp_path / "short", max_position_embeddings=2048, long_attention=COVERING
    )
    longer = families.LongBertModel.from_pretrained(tmp_path / "short", config=config, dtype="auto")
    assert longer.dtype == torch.float16
    longer.save_pretrained(tmp_path / "long")
    saved = load_file(tmp_path / "long" / "model.safetensors")["embeddings.position_embeddings.weight"]
    assert torch.equal(saved, plain.embeddings.position_embeddings.weight.repeat(4, 1))


def test_rope_parameters_of_a_long_config_scale_as_in_the_plain_model(tmp_path: Path) -> None:
    plain_model("llama").save_pretrained(tmp_path)
    scaled = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    config = families.LongLlamaConfig.from_pretrained(
        tmp_path, max_position_embeddings=2048, rope_parameters=scaled, long_attention=COVERING
    )
    longer = families.LongLlamaModel.from_pretrained(tmp_path, config=config)
    plain_scaled = transformers.LlamaModel(
        plain_config("llama", max_position_embeddings=2048, rope_parameters=scaled)
    ).eval()
    plain_scaled.load_state_dict(longer.state_dict())
    with torch.no_grad():
        assert (longer(tokens()).last_hidden_state - plain_scaled(tokens()).last_hidden_state).abs().max() < 1e-5
    assert len(longer.layers) == SHAPE.layers


SIZED = ("linformer", "recurrent_memory")
"""Their default sizes are larger than these models."""
RELATIVE = ("t5_buckets", "shaw:clip=4", "transformer_xl")
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((name, mechanism_class(name).about.sample) for name in list_mechanisms(grid=False)),
    *((name, {}) for name in list_mechanisms(grid=False) if mechanism_class(name).about.sample and name not in SIZED),
    *(("window", {"relative": relative}) for relative in RELATIVE),
    ("hybrid", {"features": "taylor:feature_dim=4"}),
    ("hybrid", {"features": "taylor:feature_dim=8"}),
    ("linformer", {"rank": 4}),
    ("longformer", {"separate_global": True}),
    ("nystrom", {"num_landmarks": 4, "conv_kernel": 3}),
    ("performer", {"num_features": 8, "kernel": "relu"}),
    ("routing", {"num_clusters": 4, "router": "learned"}),
    ("taylor", {"feature_dim": 4}),
    *(("synthesizer", {"variant": variant}) for variant in ("dense", "random")),
    ("recurrent_memory", {"segment_length": 32, "num_memory_tokens": 4}),
]
SEED = 7
SHORT_SHAPE = Shape(tokens=256)


def adds(name: str, options: dict[str, Any]) -> bool:
    built = prototype(name, options)
    return has_tensors(built) or built.capabilities.recursion is not None


ADDING = [(name, options) for name, options in OPTIONS if adds(name, options)]
BOTH_FORMS = [
    pytest.param(base, name, options, id=f"{base}-{name}-{json.dumps(options)}")
    for base, causal in (("bert", False), ("gpt2", True))
    for name, options in ADDING
    if prototype(name, options).causal in ("both", causal)
]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory that nobody has initialised is NaN, and what draws random values while a model loads draws those of one
    seed."""

    def seeded(module: nn.Module) -> None:
        torch.manual_seed(SEED)
        give(module)

    give = weights.initialise_missing
    monkeypatch.setattr(weights, "initialise_missing", seeded)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def saved_base(base: str, folder: Path) -> Any:
    torch.manual_seed(0)
    plain = (
        FAMILIES[base]
        .base_class(FAMILIES[base].base_model_name)(small_config(base, SHORT_SHAPE, pad_token_id=1))
        .eval()
    )
    plain.save_pretrained(folder)
    return plain


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def module_name(site: AttentionSite) -> str:
    """The name of a layer's mechanism in its model."""
    return f"{site.name}.long_attention.{site.layer}" if site.shared else f"{site.name}.long_attention"


def at_the_start(mechanism: Mechanism) -> dict[str, Tensor]:
    """The values of a new mechanism with these sizes and options."""
    fresh = type(mechanism)(mechanism.sizes, mechanism.options)
    fresh.layer = mechanism.layer
    if (own := next(mechanism.parameters(), next(mechanism.buffers(), None))) is not None:
        fresh.to(own.dtype)
    torch.manual_seed(SEED)
    fresh.reset_parameters()
    return tensors(fresh)


def check(model: nn.Module) -> None:
    """Every mechanism of a model that was made from a plain checkpoint has its initial values."""
    sites = [site for site in attention_sites(model) if not (site.cross and site.mechanism.name == CROSS_MECHANISM)]
    assert sites
    for site in sites:
        mechanism = site.mechanism
        assert isinstance(mechanism, Mechanism)
        expected = at_the_start(mechanism)
        copies = copied_parameters(site.module, projection_copies(mechanism))
        for name, found in tensors(mechanism).items():
            wanted = expected[name]
            if name in copies:
                wanted = copies[name](site.module.get_parameter(copies[name].name))
            assert found.isfinite().all(), f"{site.name}: {name}"
            assert torch.equal(found, wanted), f"{site.name}: {name}"
            assert found.dtype == wanted.dtype, f"{site.name}: {name}"
        assert not [
            name for one in mechanism.modules() for name, value in vars(one).items() if isinstance(value, Tensor)
        ]


@pytest.mark.thorough
@every_case(("base", "name", "options"), BOTH_FORMS, of=9, code=lambda base, name, options: name)
def test_new_tensors_of_every_mechanism_have_initial_values(
    base: str, name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    plain = saved_base(base, tmp_path)
    config = FAMILIES[base].config_class.from_pretrained(tmp_path, long_attention={"mechanism": name, **options})
    model = AutoModel.from_pretrained(tmp_path, config=config)
    check(model)
    values = model.state_dict()
    assert all(torch.equal(values[own], value) for own, value in plain.state_dict().items())
    assert all(value.isfinite().all() for value in tensors(model).values())


MIXED = {"layers": [{"mechanism": "hedgehog"}, {"mechanism": "taylor", "feature_dim": 4}]}


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, "auto"])
def test_new_tensors_have_initial_values_in_any_dtype(dtype: Any, tmp_path: Path) -> None:
    saved_base("gpt2", tmp_path)
    config = FAMILIES["gpt2"].config_class.from_pretrained(tmp_path, long_attention=MIXED)
    check(AutoModel.from_pretrained(tmp_path, config=config, dtype=dtype, low_cpu_mem_usage=True))
    check(AutoModel.from_config(config, dtype=None if dtype == "auto" else dtype))


@every_case(
    ("base", "name", "options"),
    [one for one in BOTH_FORMS if one.values[0] == "bert"],
    of=9,
    code=lambda base, name, options: name,
)
def test_saved_model_that_lacks_tensors_gets_initial_values_for_them(
    base: str, name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """What is there is loaded bit for bit; one missing tensor in each mechanism is initialised, and nothing else is
    touched."""
    torch.manual_seed(1)
    config = FAMILIES[base].config_class(
        **small_config(base, SHORT_SHAPE, pad_token_id=1).to_dict(), long_attention={"mechanism": name, **options}
    )
    model = AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1, 1)
    values = {key: value.clone() for key, value in model.state_dict().items()}
    model.save_pretrained(tmp_path / "whole")
    again = AutoModel.from_pretrained(tmp_path / "whole")
    values_again = again.state_dict()
    assert all(torch.equal(values_again[key], value) for key, value in values.items())
    for site in attention_sites(again):
        initial = at_the_start(site.mechanism)
        computed = {
            key: value for key, value in site.mechanism.named_buffers() if key not in site.mechanism.state_dict()
        }
        assert all(torch.equal(value, initial[key]) for key, value in computed.items())

    missing = {}
    for site in attention_sites(model):
        own = [*site.mechanism.state_dict()]
        if own and not projection_copies(site.mechanism):
            missing[f"{module_name(site)}.{own[0]}"] = at_the_start(site.mechanism)[own[0]]
    rest = {key: value for key, value in values.items() if key not in missing}
    partly = type(again).from_pretrained(None, config=again.config, state_dict=rest)
    for key, found in partly.state_dict().items():
        assert torch.equal(found, missing.get(key, values[key])), key


def test_copied_projections_of_an_enabled_vit_equal_the_copied_ones() -> None:
    model = AutoModel.from_config(
        AutoConfig.for_model("vit", **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4})
    )
    enable_long_attention(model, {"mechanism": "longformer", "separate_global": True})
    for site in attention_sites(model):
        copies = copied_parameters(site.module, projection_copies(site.mechanism))
        assert len(copies) == 6
        for name, own in copies.items():
            assert torch.equal(site.mechanism.get_parameter(name), own(site.module.get_parameter(own.name)))


def test_a_mechanism_without_initial_values_is_refused() -> None:
    class Forgetful(mechanism_class("full")):  # type: ignore[misc]
        name = "forgetful"

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.gate = nn.Parameter(torch.ones(1))

    built = Forgetful(LayerSizes(2, 8, 16, None), Options())
    with pytest.raises(
        OptionError, match=r"'forgetful' owns a tensor, 'gate', that nothing initialises.*define reset_parameters"
    ):
        built.reset_parameters()


STORED: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("stored_formats.json").read_text(encoding="utf-8")
)
SINCE = ("transformers_version", FIELD)
"""Fields that say who wrote a file, and in which format."""


def written(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in SINCE}


@every_case("name", STORED["configs"])
def test_a_stored_config_is_read_and_written_again(name: str, tmp_path: Path) -> None:
    values = STORED["configs"][name]
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.long_attention.to_dict() == values["long_attention"]
    config.save_pretrained(tmp_path / "again")
    assert written(json.loads((tmp_path / "again" / "config.json").read_text(encoding="utf-8"))) == written(values)


@pytest.mark.parametrize("name", STORED["checkpoints"])
def test_a_stored_checkpoint_is_loaded_whole(name: str, tmp_path: Path) -> None:
    stored = STORED["checkpoints"][name]
    generator = torch.Generator().manual_seed(0)
    tensors = {key: torch.randn(shape, generator=generator) for key, shape in stored["tensors"].items()}
    if name == "recurrent_memory":
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()  # tied
    (tmp_path / "config.json").write_text(json.dumps(stored["config"]), encoding="utf-8")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, report = getattr(hf_longattn, stored["class"]).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    torch.testing.assert_close(dict(model.state_dict()), tensors, rtol=0, atol=0)
