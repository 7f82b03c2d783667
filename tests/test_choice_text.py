"""What is written in one line about mechanisms, read into mappings."""

from __future__ import annotations

import pytest

from hf_longattn.configuration import LongAttentionConfig
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms import list_mechanisms, mechanism_info
from hf_longattn.mechanisms.common.options import TOWERS, read_towers
from tests.cases import every_case


def test_read_towers_starts_a_tower_at_the_name_of_one() -> None:
    assert read_towers("text=window:window=64,dilation=2, vision=window2d:window=7") == {
        "text": {"mechanism": "window", "window": "64", "dilation": "2"},
        "vision": {"mechanism": "window2d", "window": "7"},
    }
    assert read_towers("vision=full") == {"vision": {"mechanism": "full"}}


def test_read_towers_takes_values_with_commas_in_brackets() -> None:
    towers = read_towers(
        "vision=full:layers=[0-1=window:window=4,dilation=2;3=window2d],text=union:of=[window:window=8,dilation=2+full]"
    )
    assert set(towers) == {"vision", "text"}
    assert LongAttentionConfig.from_dict(towers["vision"]).for_layer(1) == ("window", {"window": 4, "dilation": [2]})
    assert towers["text"] == {"mechanism": "union", "of": "window:window=8,dilation=2+full"}


def test_no_option_of_a_mechanism_has_the_name_of_a_tower() -> None:
    assert not {option.name for name in list_mechanisms() for option in mechanism_info(name).options} & set(TOWERS)


@every_case(
    ("text", "sentence"),
    [
        ("visoin=window", "'visoin' is not a tower; expected text, .* Did you mean 'vision'?"),
        ("text=full,visoin=window:window=4", "'visoin' is not a tower; .* Did you mean 'vision'?"),
        ("window:window=4", "'window:window' is not a tower"),
        ("full", "'full' names no tower; write for example"),
        ("text=full,text=window", "The tower 'text' is given twice"),
        ("text=,vision=full", "The tower 'text' has no mechanism"),
        ("text=window=4", "must read MECHANISM"),
        (" , ", "names no tower"),
        ("", "names no tower"),
    ],
)
def test_read_towers_refuses_text_that_names_no_towers(text: str, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        read_towers(text)
