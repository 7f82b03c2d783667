"""The settings of a conversion and its plan: what it says before a byte is written."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import typer

import hf_longattn
from hf_longattn import LongAttentionConfig
from hf_longattn.cli.app import app
from hf_longattn.conversion import ConversionConfig, convert_checkpoint, plan_conversion
from hf_longattn.errors import CheckpointError, OptionError
from hf_longattn.modeling.family.definition import FAMILIES
from hf_longattn.positions.tables import DROPPED
from tests.cases import every_case
from tests.conversion.conftest import CLASSES, LENGTH
from tests.reports import check_of, needing_training, statuses, tensor_counts
from tests.saved import read_json

FIELDS = {one.name: one for one in dataclasses.fields(ConversionConfig)}


@pytest.mark.thorough
@every_case("name", FIELDS)
def test_every_conversion_setting_has_its_help_in_docstring_and_command(name: str) -> None:
    about = FIELDS[name].metadata
    assert about["help"].endswith(".")
    assert f"    {name}: {about['help']}" in (ConversionConfig.__doc__ or "")
    commands: Any = typer.main.get_command(app)
    flag = (about["flag"] or f"--{name.replace('_', '-')}").partition("/")[0]
    for command in ("convert", "plan"):
        flags = {one: found.help for found in commands.commands[command].params for one in found.opts}
        assert flags.get(flag) == (about["help"] if about["flag"] != "-" else None)


def test_conversion_config_is_made_of_keywords_and_refuses_contradictions() -> None:
    assert ConversionConfig.from_keywords(
        None, {"mechanism": "window", "window": 16, "options": {"num_sinks": 2}}
    ) == ConversionConfig(mechanism="window", options={"num_sinks": 2, "window": 16})
    for values, sentence in (
        ({"window": 16, "options": {"window": 8}}, "given twice"),
        ({"options": {"mechanism": "window"}}, "not an option of a mechanism"),
        ({"layers": {0: {}}, "options": {"layers": {}}}, "not an option of a mechanism"),
        ({"generic": True, "remote_code": True}, "leave one of them out"),
    ):
        with pytest.raises(OptionError, match=sentence):
            ConversionConfig.from_keywords(None, values)
    with pytest.raises(OptionError, match="'window' was given together with a config"):
        ConversionConfig.from_keywords(ConversionConfig(), {"window": 16})


def test_conversion_config_does_what_keywords_do(built: Callable[[str], Path], tmp_path: Path) -> None:
    layers = {0: {"mechanism": "full"}}
    config = ConversionConfig(mechanism="window", options={"window": 16}, layers=layers, max_length=200, verify=False)
    plan = plan_conversion(built("BertForMaskedLM"), tmp_path / "long", config)
    keywords = {"mechanism": "window", "window": 16, "layers": layers, "max_length": 200}
    assert plan.to_dict() == plan_conversion(built("BertForMaskedLM"), **keywords).to_dict()
    report = convert_checkpoint(built("BertForMaskedLM"), tmp_path / "long", config)
    written = read_json(tmp_path / "long", "conversion_report.json")["config"]
    assert written == report.config == json.loads(json.dumps(config.to_dict()))
    assert written["layers"] == {"0": {"mechanism": "full"}}


def test_conversion_report_keeps_no_token_and_no_path() -> None:
    config = ConversionConfig(
        token="hf_secret", verify_text="/home/somebody/text.txt", long_attention=LongAttentionConfig("full")
    )
    assert config.to_dict() == {"verify_text": "text.txt", "long_attention": {"mechanism": "full"}}
    assert "hf_secret" not in repr(config)


Built = Callable[[str], Path]


@pytest.mark.thorough
@every_case("name", CLASSES)
def test_plan_needs_the_config_alone(name: str, built: Built, tmp_path: Path) -> None:
    shutil.copyfile(built(name) / "config.json", tmp_path / "config.json")
    settings: dict[str, Any] = {"mechanism": "window", "window": 16, "max_length": 256}
    plan = plan_conversion(tmp_path, **settings)
    assert (plan.old_length, plan.new_length) == (LENGTH, 256)
    assert {**plan.to_dict(), "source": ""} == {**plan_conversion(built(name), **settings).to_dict(), "source": ""}


def test_conversion_writes_what_its_plan_says(built: Built, tmp_path: Path) -> None:
    arguments = {"mechanism": "window", "window": 16, "max_length": 256}
    plan = plan_conversion(built("RobertaForMaskedLM"), **arguments)
    report = convert_checkpoint(built("RobertaForMaskedLM"), tmp_path / "long", verify=False, **arguments)
    assert report.plan == plan.to_dict()
    header_bytes = (tmp_path / "long" / "model.safetensors").stat().st_size - plan.to_dict()["result_bytes"]
    assert 0 < header_bytes < 10_000


def test_plan_without_a_length_keeps_that_of_the_source(built: Built) -> None:
    plan = plan_conversion(built("BertModel"))
    assert plan.new_length == LENGTH
    assert plan.attention == LongAttentionConfig()


def test_plan_takes_a_whole_attention_config_instead_of_options(built: Built) -> None:
    config = LongAttentionConfig("window", window=32, layers={0: {"mechanism": "full"}})
    assert plan_conversion(built("BertModel"), long_attention=config).attention == config
    assert plan_conversion(built("BertModel"), long_attention=config.to_dict()).attention == config
    with pytest.raises(OptionError, match="given together with mechanism, window"):
        plan_conversion(built("BertModel"), long_attention=config, mechanism="window", window=3)


def test_plan_refuses_a_destination_that_exists(built: Built, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        plan_conversion(built("BertModel"), tmp_path)


@every_case(
    ("settings", "sentence"),
    [
        ({"image_size": 1024}, "--image-size is the size of images, but a BertModel reads texts; leave it out"),
        ({"audio_seconds": 60}, "but a BertModel reads texts; "),
        ({"verify_audio": "talk.wav"}, "but a BertModel reads texts; "),
        (
            {"towers": {"text": {"mechanism": "full"}}},
            "is for models of several towers, but a BertModel reads texts; leave it out",
        ),
    ],
)
def test_plan_of_a_text_model_refuses_settings_of_other_inputs(
    settings: dict[str, Any], sentence: str, built: Built
) -> None:
    with pytest.raises(OptionError, match=sentence):
        plan_conversion(built("BertModel"), **settings)


def test_plan_costs_grow_as_the_mechanism_does(built: Built) -> None:
    window = plan_conversion(built("LlamaForCausalLM"), mechanism="window", window=16, max_length=1024).costs
    full = plan_conversion(built("LlamaForCausalLM"), mechanism="full", max_length=1024).costs
    assert [cost.length for cost in window] == [64, 128, 256, 512, 1024]
    assert window[-1].attention_flops / window[-2].attention_flops == pytest.approx(2, rel=0.05)
    assert full[-1].attention_flops / full[-2].attention_flops == pytest.approx(4, rel=0.05)
    assert all(cost.attention_flops == cost.full_attention_flops for cost in full)
    assert window[-1].cache_bytes == window[0].cache_bytes == 2 * 2 * 8 * 4 * (16 + 16)
    assert full[-1].cache_bytes == 64 * window[-1].cache_bytes


def test_plan_flops_of_a_whole_model_are_those_that_torch_counts(built: Built) -> None:
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModel

    cost = plan_conversion(built("BertModel"), mechanism="full").costs[0]
    model = AutoModel.from_pretrained(built("BertModel"), attn_implementation="eager").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, LENGTH, dtype=torch.long))
    # the plan counts the pooler for every token; it runs on one
    assert cost.total_flops == pytest.approx(counter.get_total_flops(), rel=0.15)


# Positions that a conversion drops, replaces with ALiBi, or adds relative ones to.

WITH_TABLES = [
    "BertForMaskedLM",
    "RobertaForMaskedLM",
    "GPT2LMHeadModel",
    "BartForConditionalGeneration",
    "PegasusForConditionalGeneration",
]


def tables(model: Any) -> dict[str, torch.nn.Parameter]:
    family = FAMILIES[model.config.base_model_type]
    return {name: parameter for name, parameter in model.named_parameters() if family.table(name) is not None}


@pytest.mark.thorough
@every_case(("name", "positions"), [(name, positions) for name in WITH_TABLES for positions in DROPPED], of=3)
def test_dropped_position_table_keeps_its_mean_untrained(
    name: str, positions: str, built: Callable[[str], Path], tmp_path: Path
) -> None:
    report = convert_checkpoint(
        built(name), tmp_path / "long", mechanism="window", window=16, max_length=200, positions=positions
    )
    assert report.needs_training
    assert report.train_command
    covered = check_of(report, "equal where the mechanism covers the input")
    assert covered.status == "needs training"
    assert f"{positions} changes the old positions too" in covered.detail
    assert statuses(report)["padding changes nothing"] == "passed"
    config = read_json(tmp_path / "long")
    relative = {} if positions == "none" else {"relative": positions}
    assert config["long_attention"] == {"mechanism": "window", "window": 16, **relative}
    if "Conditional" in name:
        assert config.get("decoder_long_attention") == ({"mechanism": "full", **relative} if relative else None)
    assert config["position_extension"] == "none"
    model = getattr(hf_longattn, f"Long{name}").from_pretrained(tmp_path / "long")
    assert tables(model)
    family, before = FAMILIES[model.config.base_model_type], getattr(transformers, name).from_pretrained(built(name))
    for key, table in tables(model).items():
        offset, trained = family.table(key).offset_rows(model.config), before.get_parameter(key)
        assert not table.requires_grad
        torch.testing.assert_close(table[offset:], trained[offset:].mean(0).expand(len(table) - offset, -1))
        assert torch.equal(table[:offset], trained[:offset])


@pytest.mark.thorough
def test_encoder_without_positions_ignores_the_order_of_words(built: Callable[[str], Path], tmp_path: Path) -> None:
    ids, order = torch.randint(1000, 2000, (1, 40)), torch.randperm(40)
    for positions, blind in (("none", True), ("alibi", False)):
        convert_checkpoint(built("BertModel"), tmp_path / positions, mechanism="full", positions=positions)
        model = hf_longattn.LongBertModel.from_pretrained(tmp_path / positions).eval()
        with torch.no_grad():
            plain, mixed = (model(x).last_hidden_state for x in (ids, ids[:, order]))
        assert torch.allclose(plain[:, order], mixed, atol=1e-5) == blind


def test_short_checkpoint_loads_without_its_position_table(built: Callable[[str], Path]) -> None:
    from hf_longattn import LongBertConfig, LongBertModel

    attention = {"mechanism": "window", "window": 16, "relative": "alibi"}
    config = LongBertConfig.from_pretrained(
        built("BertModel"), max_position_embeddings=300, long_attention=attention, position_extension="none"
    )
    trained = transformers.BertModel.from_pretrained(built("BertModel")).embeddings.position_embeddings.weight
    loaded = LongBertModel.from_pretrained(built("BertModel"), config=config)
    for model, row in ((loaded, trained.mean(0)), (LongBertModel(config), torch.zeros(trained.shape[1]))):
        (table,) = tables(model).values()
        torch.testing.assert_close(table, row.expand(300, -1))
        assert not table.requires_grad


@pytest.mark.thorough
def test_relative_positions_are_added_beside_a_position_table(built: Callable[[str], Path], tmp_path: Path) -> None:
    source = built("BertForMaskedLM")
    report = convert_checkpoint(source, tmp_path / "t5", mechanism="full", relative="t5_buckets")
    assert not report.needs_training  # they begin at zero
    assert tensor_counts(report)["new"] == 2
    report = convert_checkpoint(source, tmp_path / "alibi", mechanism="full", relative="alibi")
    (name,) = needing_training(report)
    assert "relative=alibi changes every score" in check_of(report, name).detail
    model = hf_longattn.LongBertForMaskedLM.from_pretrained(tmp_path / "alibi")
    assert all(table.any() and table.requires_grad for table in tables(model).values())


def test_plan_puts_alibi_into_every_layer(built: Callable[[str], Path]) -> None:
    layers = {1: {"mechanism": "full"}}
    plan = plan_conversion(built("GPT2LMHeadModel"), mechanism="window", window=16, layers=layers, positions="alibi")
    assert [plan.attention.for_layer(index)[1]["relative"] for index in range(2)] == ["alibi", "alibi"]
    plan = plan_conversion(
        built("GPT2LMHeadModel"),
        long_attention={"layers": [{"mechanism": "window"}, {"mechanism": "full"}]},
        positions="alibi",
    )
    assert [plan.attention.for_layer(index)[1]["relative"] for index in range(2)] == ["alibi", "alibi"]


def test_plan_refuses_positions_that_do_not_fit_the_model(built: Callable[[str], Path]) -> None:
    bert, llama = built("BertForMaskedLM"), built("LlamaForCausalLM")
    with pytest.raises(OptionError, match=r"does not fit a model with rotary positions.*--option relative=alibi"):
        plan_conversion(llama, mechanism="window", positions="alibi")
    with pytest.raises(OptionError, match=r"contradicts relative='shaw'; give positions='none'"):
        plan_conversion(bert, mechanism="window", relative="shaw", positions="alibi")
    with pytest.raises(OptionError, match="has no scores that relative positions could be added to"):
        plan_conversion(bert, mechanism="linear", positions="alibi")
    with pytest.raises(OptionError, match=r"expected auto or one of .*none, alibi.*Did you mean 'alibi'"):
        plan_conversion(bert, mechanism="window", positions="alibbi")
    with pytest.raises(
        OptionError, match=r"sinusoidal positions, which are computed; expected auto or one of none, alibi"
    ):
        plan_conversion(built("PegasusForConditionalGeneration"), positions="tile")


# Positions that do not hold without training for what a mechanism sees.

SCALED = "rope:yarn scales the rotations of all tokens, so outputs change for every text, short ones too; "


@pytest.mark.thorough
@every_case(
    ("name", "settings", "told"),
    [
        ("BertForMaskedLM", {"mechanism": "window", "window": LENGTH}, ""),
        (
            "BertForMaskedLM",
            {"mechanism": "window", "window": 2 * LENGTH},
            "in every layer sees keys up to 128 tokens apart",
        ),
        (
            "BertForMaskedLM",
            {"mechanism": "window", "window": 16, "layers": {1: {"mechanism": "full"}}},
            "full in layer 1 sees keys at",
        ),
        ("BertForMaskedLM", {"mechanism": "block_top_k"}, "block_top_k in every layer sees keys at any distance"),
        (
            "BertForMaskedLM",
            {"mechanism": "full", "positions": "interpolate"},
            "interpolate changes the positions of every text",
        ),
        (
            "LlamaForCausalLM",
            {"mechanism": "full", "positions": "rope:linear"},
            "rope:linear changes the positions of every text",
        ),
        ("LlamaForCausalLM", {"mechanism": "full", "positions": "rope:yarn"}, SCALED),
        ("RobertaForMaskedLM", {"mechanism": "window", "window": LENGTH}, ""),  # whose table has two rows more
        (
            "RobertaForMaskedLM",
            {"mechanism": "window", "window": LENGTH + 2},
            "tiled positions repeat every 64 tokens",
        ),
        ("GPT2LMHeadModel", {"mechanism": "window", "window": LENGTH // 2, "num_sinks": 4}, ""),
        ("GPT2LMHeadModel", {"mechanism": "window", "window": LENGTH}, "sees keys up to 63 tokens back, and tiled"),
        ("LlamaForCausalLM", {"mechanism": "full"}, SCALED),
        ("LlamaForCausalLM", {"mechanism": "block_top_k"}, SCALED),
        ("LlamaForCausalLM", {"mechanism": "segmented", "block_size": 32}, ""),
        ("LlamaForCausalLM", {"mechanism": "window", "window": 60, "num_sinks": 4, "positions": "rope:none"}, ""),
        (
            "LlamaForCausalLM",
            {"mechanism": "window", "window": 61, "num_sinks": 4, "positions": "rope:none"},
            "distances up to 64, and",
        ),
        (
            "LlamaForCausalLM",
            {"mechanism": "full", "positions": "rope:none"},
            "rotations were trained for distances below 64",
        ),
        ("BartForConditionalGeneration", {"mechanism": "window", "window": LENGTH}, ""),
        (
            "BartForConditionalGeneration",
            {"mechanism": "window", "window": LENGTH, "max_decoder_length": 256},
            "full in every decoder layer sees keys at any distance",
        ),
    ],
)
def test_plan_warns_where_positions_do_not_hold_without_training(
    name: str, settings: dict[str, Any], told: str, built: Callable[[str], Path]
) -> None:
    plan = plan_conversion(built(name), max_length=256, **settings)
    sentences = [str(warning) for warning in plan.warnings]
    assert bool(sentences) == bool(told), sentences
    assert all(told in sentence for sentence in sentences)
    assert plan.to_dict().get("warnings", []) == sentences
    assert not plan_conversion(built(name), **{**settings, "max_decoder_length": None}).warnings, (
        "at the source's own length"
    )


@every_case(
    ("name", "settings", "factor"),
    [
        ("LlamaForCausalLM", {"window": 32, "num_sinks": 4}, None),
        ("LlamaForCausalLM", {"window": 60, "num_sinks": 4}, None),
        ("LlamaForCausalLM", {"window": 61, "num_sinks": 4}, 65 / 64),
        ("LlamaForCausalLM", {"window": 32, "num_sinks": 4, "dilation": 2}, 4.0),
        ("LlamaForCausalLM", {"window": 32, "num_sinks": 4, "sink_positions": "text"}, 4.0),
        ("LlamaForCausalLM", {"window": 2 * LENGTH}, 2.0),
        ("LlamaForCausalLM", {"window": 32, "num_sinks": 4, "layers": {1: {"mechanism": "full"}}}, 4.0),
        ("SmolLM3ForCausalLM", {"window": 32, "num_sinks": 4}, 4.0),  # some of its layers do not rotate
        ("Gemma3ForCausalLM", {"window": 32, "num_sinks": 4}, None),
        ("LlamaForCausalLM", {"mechanism": "longformer", "window": 32, "global_tokens": (0, 1)}, None),
        ("LlamaForCausalLM", {"mechanism": "longformer", "window": 32, "global_tokens": (0, 2)}, 4.0),
        ("ModernBertForMaskedLM", {"mechanism": "longformer", "window": 32}, 4.0),
        ("ModernBertForMaskedLM", {"window": 2 * LENGTH - 2}, None),
    ],
)
def test_plan_scales_rotations_for_the_furthest_keys_alone(
    name: str, settings: dict[str, Any], factor: float | None, built: Callable[[str], Path]
) -> None:
    """And says that every text changes, and how to leave it out."""
    settings = {"mechanism": "window", "max_length": 256, **settings}
    plan = plan_conversion(built(name), **settings)
    before = plan.architecture.source_config.rope_parameters
    of_layers = [value for value in plan.config.rope_parameters.values() if isinstance(value, dict)] or [
        plan.config.rope_parameters
    ]
    assert next((parameters["factor"] for parameters in of_layers if "factor" in parameters), None) == factor
    assert [str(warning).startswith(SCALED) for warning in plan.warnings] == [True] * (factor is not None)
    if factor is None:
        assert plan.config.rope_parameters == before
    unscaled = plan_conversion(built(name), **settings, positions="rope:none")
    assert unscaled.config.rope_parameters == before
    assert bool(unscaled.warnings) == (factor is not None)


def test_conversion_refuses_an_embedding_table_too_small_for_the_tokenizer(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = checkpoint("LlamaForCausalLM", tokenizer="gpt2")
    reads = transformers.AutoTokenizer.from_pretrained(folder)
    rows = transformers.AutoConfig.from_pretrained(folder).vocab_size
    reads.add_tokens([f"new{number}" for number in range(rows - len(reads))])
    reads.save_pretrained(folder)
    plan_conversion(folder, mechanism="window", window=16)
    reads.add_special_tokens({"pad_token": "<more>"})
    reads.save_pretrained(folder)
    with pytest.raises(
        CheckpointError, match=rf"gives token ids up to {rows} \('<more>'\), but its model has {rows} embeddings"
    ):
        convert_checkpoint(folder, tmp_path / "long", mechanism="window", window=16, verify=False)
    assert not (tmp_path / "long").exists()


@pytest.mark.parametrize(
    ("name", "layers", "says"),
    [
        ("LlamaForCausalLM", [("window", 32, 4)] * 2, "window=32 with 4 sinks"),
        (
            "Qwen2ForCausalLM",
            [("window", 32, 4), ("window", 24, 0)],
            "layers with a window of their own keep it; --budget 0.25",
        ),
        ("MistralForCausalLM", [("window", 24, 0)] * 2, "Every layer keeps its own window"),
    ],
)
def test_auto_gives_decoders_a_window_and_sinks_without_a_search(
    name: str, layers: list[tuple[str, int, int]], says: str, checkpoint: Callable[..., Path]
) -> None:
    plan = plan_conversion(checkpoint(name), mechanism="auto", max_length=4 * LENGTH)
    chosen = [plan.attention.for_layer(number) for number in range(2)]
    assert [(mechanism, options["window"], options.get("num_sinks", 0)) for mechanism, options in chosen] == layers
    assert says in plan.to_dict()["choice"]["reason"]


@pytest.mark.parametrize(("name", "settings"), [("BertForMaskedLM", {}), ("LlamaForCausalLM", {"budget": "0.25"})])
def test_auto_searches_for_encoders_and_under_a_budget(
    name: str, settings: dict[str, Any], checkpoint: Callable[..., Path]
) -> None:
    source = checkpoint(name)
    with pytest.raises(OptionError, match="pass choose=hf_longattn"):
        plan_conversion(source, mechanism="auto", **settings)
    chosen = LongAttentionConfig("window", window=8)
    plan = plan_conversion(
        source, mechanism="auto", choose=lambda source, config: (chosen, {"reason": "mine"}), **settings
    )
    assert (plan.attention.options["window"], plan.choice) == (8, {"reason": "mine"})
