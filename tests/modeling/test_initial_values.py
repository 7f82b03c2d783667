"""Whatever a checkpoint lacks of a mechanism is initialised as a new mechanism is, and whatever it has is loaded unchanged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from hf_longattn import enable_long_attention, list_mechanisms
from hf_longattn.errors import OptionError
from hf_longattn.families import FAMILIES
from hf_longattn.mechanisms.common.base import Mechanism, reset
from hf_longattn.mechanisms.common.capabilities import projection_copies
from hf_longattn.mechanisms.common.options import Options
from hf_longattn.mechanisms.common.registry import has_tensors, mechanism_class, prototype
from hf_longattn.mechanisms.linformer import Linformer
from hf_longattn.modeling.attach import weights
from hf_longattn.modeling.attach.attention_sites import CROSS_MECHANISM, AttentionSite, attention_sites, copied_parameters
from scripts.dev.tools.small_models import TEXT_FAMILIES, Shape, small_config
from tests.cases import every_case
from tests.grids import grid
from tests.reference.small_models import is_quick_head
from tests.shared_code import kind_of_family

SIZED = ("linformer", "recurrent_memory")
"""Their default sizes are larger than these models."""
RELATIVE = ("t5_buckets", "shaw:clip=4", "transformer_xl")
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((name, mechanism_class(name).about.sample) for name in list_mechanisms(grid=False)),
    *((name, {}) for name in list_mechanisms(grid=False) if mechanism_class(name).about.sample and name not in SIZED),
    *(("window", {"relative": relative}) for relative in RELATIVE),
    ("hybrid", {"mixing": 0.5}),
    ("hybrid", {"features": "taylor:feature_dim=4"}),
    ("hybrid", {"features": "taylor:feature_dim=8"}),
    ("linformer", {"rank": 4, "projection": "convolution"}),
    *(("linformer", {"rank": 4, "sharing": sharing}) for sharing in ("headwise", "key-value", "layerwise")),
    ("longformer", {"separate_global": True}),
    ("nystrom", {"num_landmarks": 4, "conv_kernel": 3}),
    ("performer", {"num_features": 8, "kernel": "relu"}),
    ("routing", {"num_clusters": 4, "router": "learned"}),
    ("taylor", {"feature_dim": 4}),
    *(("synthesizer", {"variant": kind}) for kind in ("dense", "factorized_dense", "random", "factorized_random")),
    ("synthesizer", {"variant": "random+dot_product", "trainable": False}),
    ("synthesizer", {"variant": "factorized_random", "trainable": False}),
    ("recurrent_memory", {"segment_length": 32, "num_memory_tokens": 4}),
]
SEED = 7
SHAPE = Shape(tokens=256)


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
    """Memory that nobody has initialised is NaN, and what draws random values while a model loads draws those of one seed."""

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
    plain = FAMILIES[base].base_class(FAMILIES[base].base_model_name)(small_config(base, SHAPE, pad_token_id=1)).eval()
    plain.save_pretrained(folder)
    return plain


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def module_name(site: AttentionSite) -> str:
    """The name of a layer's mechanism in its model."""
    return f"{site.name}.long_attention.{site.layer}" if site.shared else f"{site.name}.long_attention"


def at_the_start(mechanism: Mechanism) -> dict[str, Tensor]:
    """The values of a new mechanism with these sizes and options."""
    fresh = type(mechanism)(*mechanism.sizes, mechanism.options)
    fresh.layer = mechanism.layer
    if (own := next(mechanism.parameters(), next(mechanism.buffers(), None))) is not None:
        fresh.to(own.dtype)
    torch.manual_seed(SEED)
    reset(fresh, None)
    return tensors(fresh)


def check(model: nn.Module) -> None:
    """Every mechanism of a model that was made from a plain checkpoint has its initial values."""
    sites = [site for site in attention_sites(model) if not (site.cross and site.mechanism.name == CROSS_MECHANISM)]
    assert sites
    first: dict[str, Tensor] = {}
    for site in sites:
        mechanism = site.mechanism
        assert isinstance(mechanism, Mechanism)
        expected, copies = at_the_start(mechanism), copied_parameters(site.module, projection_copies(mechanism))
        for name, found in tensors(mechanism).items():
            wanted = expected[name]
            if name in copies:
                wanted = copies[name](site.module.get_parameter(copies[name].name))
            elif isinstance(mechanism, Linformer) and name in mechanism.shared_by_layers:
                wanted = first.setdefault(name, wanted)
            assert found.isfinite().all(), f"{site.name}: {name}"
            assert torch.equal(found, wanted), f"{site.name}: {name}"
            assert found.dtype == wanted.dtype, f"{site.name}: {name}"
        assert not [name for one in mechanism.modules() for name, value in vars(one).items() if isinstance(value, Tensor)]


@pytest.mark.thorough
@every_case(("base", "name", "options"), BOTH_FORMS, of=9, code=lambda base, name, options: name)
def test_new_tensors_of_every_mechanism_have_initial_values(base: str, name: str, options: dict[str, Any], tmp_path: Path) -> None:
    plain = saved_base(base, tmp_path)
    config = FAMILIES[base].config_class.from_pretrained(tmp_path, long_attention={"mechanism": name, **options})
    model = AutoModel.from_pretrained(tmp_path, config=config)
    check(model)
    values = model.state_dict()
    assert all(torch.equal(values[own], value) for own, value in plain.state_dict().items())
    assert all(value.isfinite().all() for value in tensors(model).values())


ALL_HEADS = [(base, head) for base, family in TEXT_FAMILIES.items() for head in family.model_classes]


@pytest.mark.thorough
@every_case(("base", "head"), grid(ALL_HEADS, is_quick_head), of=9, code=kind_of_family, ids=[head for _, head in ALL_HEADS])
def test_new_tensors_of_every_head_have_initial_values(base: str, head: str, tmp_path: Path) -> None:
    """The head's own parameters are loaded, and what the mechanism adds is initialised."""
    torch.manual_seed(0)
    config = small_config(base, SHAPE, pad_token_id=1)
    if not FAMILIES[base].two_stacks and head.endswith(("LMHeadModel", "ForCausalLM")) and hasattr(config, "is_decoder"):
        config.is_decoder = True
    plain = getattr(transformers, head)(config)
    with torch.no_grad():
        for parameter in plain.parameters():
            if parameter.requires_grad:  # sinusoids are computed
                parameter.normal_()
    plain.tie_weights()
    plain.save_pretrained(tmp_path)
    for name in ("hedgehog", "adaptive_span"):
        try:
            longer = FAMILIES[base].config_class.from_pretrained(tmp_path, long_attention={"mechanism": name})
            model, report = FAMILIES[base].model_class(head).from_pretrained(tmp_path, config=longer, output_loading_info=True)
        except OptionError:  # the family's scores have terms, and hedgehog has no scores
            continue
        break
    check(model)
    assert type(model).__name__ == FAMILIES[base].model_classes[head]
    assert not report["unexpected_keys"]
    assert all(".long_attention." in key for key in report["missing_keys"])
    values = model.state_dict()
    for key, value in plain.state_dict().items():
        assert torch.equal(values[key], value), key
    assert all(value.isfinite().all() for value in tensors(model).values())


MIXED = {"layers": [{"mechanism": "hedgehog"}, {"mechanism": "taylor", "feature_dim": 4}]}


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, "auto"])
def test_new_tensors_have_initial_values_in_any_dtype(dtype: Any, tmp_path: Path) -> None:
    saved_base("gpt2", tmp_path)
    config = FAMILIES["gpt2"].config_class.from_pretrained(tmp_path, long_attention=MIXED)
    check(AutoModel.from_pretrained(tmp_path, config=config, dtype=dtype, low_cpu_mem_usage=True))
    check(AutoModel.from_config(config, dtype=None if dtype == "auto" else dtype))


def test_new_tensors_below_a_head_have_initial_values(tmp_path: Path) -> None:
    saved_base("gpt2", tmp_path)
    config = FAMILIES["gpt2"].config_class.from_pretrained(tmp_path, long_attention=MIXED)
    for name in ("LongGPT2LMHeadModel", "LongGPT2ForSequenceClassification"):
        check(FAMILIES["gpt2"].model_class(name).from_pretrained(tmp_path, config=config))


@every_case(
    ("base", "name", "options"),
    [one for one in BOTH_FORMS if one.values[0] == "bert"],
    of=9,
    code=lambda base, name, options: name,
)
def test_saved_model_that_lacks_tensors_gets_initial_values_for_them(base: str, name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """What is there is loaded bit for bit; one missing tensor in each mechanism is initialised, and nothing else is touched."""
    torch.manual_seed(1)
    config = FAMILIES[base].config_class(
        **small_config(base, SHAPE, pad_token_id=1).to_dict(), long_attention={"mechanism": name, **options}
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
        computed = {key: value for key, value in site.mechanism.named_buffers() if key not in site.mechanism.state_dict()}
        assert all(torch.equal(value, initial[key]) for key, value in computed.items())

    shared = {f"{module_name(site)}.{key}" for site in attention_sites(model) for key in getattr(site.mechanism, "shared_by_layers", ())}
    missing = {}
    for site in attention_sites(model):
        own = [key for key in site.mechanism.state_dict() if f"{module_name(site)}.{key}" not in shared]
        if own and not projection_copies(site.mechanism):
            missing[f"{module_name(site)}.{own[0]}"] = at_the_start(site.mechanism)[own[0]]
    rest = {key: value for key, value in values.items() if key not in missing}
    partly = type(again).from_pretrained(None, config=again.config, state_dict=rest)
    for key, found in partly.state_dict().items():
        assert torch.equal(found, missing.get(key, values[key])), key


def test_copied_projections_of_an_enabled_vit_equal_the_copied_ones() -> None:
    model = AutoModel.from_config(AutoConfig.for_model("vit", **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}))
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

    built = Forgetful(2, 8, 16, None, Options())
    with pytest.raises(OptionError, match=r"'forgetful' owns a tensor, 'gate', that nothing initialises.*define reset_parameters"):
        built.reset_parameters()
