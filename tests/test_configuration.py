import json

import pytest

from hf_longattn import LongAttentionConfig
from hf_longattn.errors import OptionError, UnknownMechanismError


def test_layers_override_the_default() -> None:
    config = LongAttentionConfig(
        "longformer", window=256, layers={0: {"window": 64}, "3": {"mechanism": "window"}, 5: {"mechanism": "full"}}
    )
    assert config.for_layer(1) == ("longformer", {"window": 256})
    assert config.for_layer(0) == ("longformer", {"window": 64})
    assert config.for_layer(3) == ("window", {}), "a layer that names a mechanism starts from that mechanism's defaults"
    assert config.for_layer(5) == ("full", {})


def test_json_round_trip() -> None:
    config = LongAttentionConfig("longformer", window=256, global_tokens=(0, 5), layers={2: {"mechanism": "window", "window": 32}})
    again = LongAttentionConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.to_dict() == config.to_dict()
    assert LongAttentionConfig.from_dict(config) is config
    assert config != LongAttentionConfig("longformer", window=128)


def test_prints_a_readable_table() -> None:
    config = LongAttentionConfig("window", window=256, layers={0: {"window": 64}, 11: {"mechanism": "full"}})
    assert config.table(12).splitlines() == [
        "layers  mechanism     options",
        "0       window        window=64",
        "1-10    window        window=256",
        "11      full",
    ]
    assert "layer 11: mechanism=full" in str(config)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"mechanism": "longfromer"}, UnknownMechanismError, "Did you mean 'longformer'?"),
        ({"mechanism": "window", "windwo": 3}, OptionError, "Did you mean 'window'?"),
        ({"mechanism": "window", "window": "wide"}, OptionError, "must be int"),
        ({"mechanism": "window", "window": 0}, OptionError, "at least 1"),
        ({"mechanism": "window", "layers": {0: {"mechanism": "ful"}}}, UnknownMechanismError, "Did you mean 'full'?"),
        ({"mechanism": "window", "layers": {"first": {}}}, OptionError, "numbered from 0"),
        ({"mechanism": "window", "layers": {0: 64}}, OptionError, "must be a mapping"),
        ({"mechanism": "longformer", "global_tokens": [-1]}, OptionError, "count from 0"),
    ],
)
def test_bad_values_get_a_sentence(arguments: dict, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says.replace("?", r"\?")):
        LongAttentionConfig(**arguments)


def test_overrides_beyond_the_last_layer_are_refused() -> None:
    config = LongAttentionConfig("window", layers={12: {"window": 64}})
    with pytest.raises(OptionError, match="use 0 to 11"):
        config.check_layers(12)


def test_options_read_from_a_command_line() -> None:
    config = LongAttentionConfig("longformer", window="128", global_tokens="0+7")
    assert config.options == {"window": 128, "global_tokens": [0, 7]}
