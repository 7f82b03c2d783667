import json

import pytest

from hf_longattn import LongAttentionConfig
from hf_longattn.errors import OptionError
from tests.cases import every_case


def test_layers_of_a_config_override_its_default() -> None:
    config = LongAttentionConfig(
        "longformer", window=256, layers={0: {"window": 64}, "3": {"mechanism": "window"}, 5: {"mechanism": "full"}}
    )
    assert config.for_layer(1) == ("longformer", {"window": 256})
    assert config.for_layer(0) == ("longformer", {"window": 64})
    assert config.for_layer(3) == ("window", {}), (
        "a layer that names a mechanism starts from that mechanism's defaults"
    )
    assert config.for_layer(5) == ("full", {})


def test_config_of_attention_is_equal_after_json() -> None:
    config = LongAttentionConfig(
        "longformer", window=256, global_tokens=(0, 5), layers={2: {"mechanism": "window", "window": 32}}
    )
    again = LongAttentionConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.to_dict() == config.to_dict()
    assert LongAttentionConfig.from_dict(config) is config
    assert config != LongAttentionConfig("longformer", window=128)


def test_config_of_attention_prints_a_table_of_layers() -> None:
    config = LongAttentionConfig(
        "window", window=256, layers={0: {"window": 64, "num_sinks": 4}, 11: {"mechanism": "full"}}
    )
    assert config.table(12).splitlines() == [
        "layers  mechanism     options",
        "0       window        window=64  num_sinks=4  sink_positions=cache  dilation=1",
        "1-10    window        window=256  num_sinks=0  dilation=1",
        "11      full",
    ]
    assert "'11': {'mechanism': 'full'}" in str(config)


@every_case(
    ("arguments", "says"),
    [
        ({"mechanism": "longfromer"}, "Did you mean 'longformer'?"),
        ({"mechanism": "based"}, "--config based"),
        ({"mechanism": "lsh", "num_hashes": 0}, "for example num_hashes=4"),
        ({"mechanism": "window", "windwo": 3}, "Did you mean 'window'?"),
        ({"mechanism": "window", "window": "wide"}, "must be int"),
        (
            {"mechanism": "longformer", "global_tokens": "first"},
            "whole numbers joined by .*, for example global_tokens=1",
        ),
        ({"mechanism": "window", "window": 0}, "at least 1"),
        ({"mechanism": "window", "layers": {0: {"mechanism": "ful"}}}, "Did you mean 'full'?"),
        ({"mechanism": "window", "layers": {"first": {}}}, "numbered from 0"),
        ({"mechanism": "window", "layers": {0: 64}}, "must be a mapping"),
        ({"mechanism": "longformer", "global_tokens": [-1]}, "must be at least 0"),
    ],
)
def test_config_of_attention_refuses_bad_names_values_and_layers(arguments: dict, says: str) -> None:
    with pytest.raises(OptionError, match=says.replace("?", r"\?")):
        LongAttentionConfig(**arguments)


def test_config_reads_options_typed_as_text() -> None:
    config = LongAttentionConfig("longformer", window="128", global_tokens="0+7")
    assert config.options == {"window": 128, "global_tokens": [0, 7]}


SHORT_LINES = {
    "0-5:window=64;11=full": {0: ("window", 64), 5: ("window", 64), 6: ("window", 256), 11: ("full", None)},
    "0-1,4=window:window=32; 11:mechanism=full": {
        0: ("window", 32),
        2: ("window", 256),
        4: ("window", 32),
        11: ("full", None),
    },
    "window:window=8,full": {0: ("window", 8), 1: ("full", None), 10: ("window", 8), 11: ("full", None)},
    "window:window=8;full;0=longformer:window=16,global_tokens=0+3": {
        0: ("longformer", 16),
        1: ("full", None),
        2: ("window", 8),
    },
    "window:window=8,full;2:window=16": {0: ("window", 8), 2: ("window", 16), 3: ("full", None)},
}


@pytest.mark.parametrize("line", SHORT_LINES)
def test_config_reads_layers_in_one_line(line: str) -> None:
    config = LongAttentionConfig("window", window=256, layers=line)
    for index, (name, window) in SHORT_LINES[line].items():
        mechanism, options = config.for_layer(index)
        assert (mechanism, options.get("window")) == (name, window), index
    again = LongAttentionConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.table(12) == config.table(12)


def test_layers_in_turn_need_no_default_and_print() -> None:
    config = LongAttentionConfig(layers="window:window=8,window:window=8,full;0=full")
    assert config.mechanism == "window"
    assert config.to_dict() == {
        "mechanism": "window",
        "layers": {
            "in_turn": [{"mechanism": "window", "window": 8}] * 2 + [{"mechanism": "full"}],
            "0": {"mechanism": "full"},
        },
    }
    assert [line.split()[:2] for line in config.table(6).splitlines()[1:]] == [
        ["0", "full"],
        ["1", "window"],
        ["2", "full"],
        ["3-4", "window"],
        ["5", "full"],
    ]
    as_list = LongAttentionConfig(layers=[{"mechanism": "window", "window": 8}, "window:window=8", "full"])
    assert as_list.for_layer(4) == ("window", {"window": 8})
    assert as_list == LongAttentionConfig(layers="window:window=8,window:window=8,full")


@every_case(
    ("layers", "says"),
    [
        ("0-5=windw", "Did you mean 'window'"),
        ("0-5:windo=4", "Did you mean 'window'"),
        ("0-5:window=-4", "at least 1"),
        ("5-0:window=4", "must be numbers from 0"),
        ("first=window", "must read MECHANISM"),
        ("0-5=", "must read MECHANISM"),
        ("0-5:window", "must read NAME=VALUE"),
        ("", "names no mechanism"),
        ([4], "must be a mapping"),
        (4, "a list to take in turn"),
        ({"in_turn": 4}, "a list to take in turn"),
    ],
)
def test_config_refuses_bad_lines_of_layers(layers: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LongAttentionConfig("window", layers=layers)


@pytest.mark.parametrize(
    ("mechanism", "options", "told"),
    [
        ("longformer", {"global_tokens": 0}, "global_tokens=position 0"),
        ("longformer", {"global_tokens": ()}, "global_tokens=none"),
        ("longformer", {"global_tokens": (0, 7)}, "global_tokens=positions 0,7"),
        ("window", {"dilation": (1, 2)}, "dilation=1,2"),
        ("hybrid", {"features": "taylor:feature_dim=8"}, "features=taylor:feature_dim=8"),
    ],
)
def test_table_of_layers_tells_positions_from_numbers(mechanism: str, options: dict, told: str) -> None:
    """A bare global_tokens=0 reads as "none", and is the first token."""
    assert told in LongAttentionConfig(mechanism, **options).table(2)
