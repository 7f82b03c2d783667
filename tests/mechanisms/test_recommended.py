"""What a message or the help of an option recommends is accepted, typed on a command line or given from Python."""

from __future__ import annotations

import ast
import contextlib
import re
from typing import Any

import pytest

from hf_longattn import build_mechanism, list_mechanisms, mechanism_info
from hf_longattn.errors import LongAttentionError, OptionError
from hf_longattn.mechanisms.registry import mechanism_class

OPTIONS = [(name, info.name) for name in list_mechanisms() for info in mechanism_info(name).options]
WRONG = (-1, 0, 3, 7, 10**30, "nonsense", "", (), (-1,), (1, 2, 3), -0.5, 2.0, float("nan"), float("inf"), True)
EXAMPLE = re.compile(r"(?:for example|such as|give) ([a-z_]+)=('[^']+'|[^\s;']+[^\s;,.'])")


def build(name: str, **options: Any) -> None:
    build_mechanism(name, num_heads=12, head_dim=16, **{"max_length": 512, **options})


@pytest.mark.parametrize(("name", "option"), OPTIONS, ids=str)
def test_a_refusal_recommends_what_works(name: str, option: str) -> None:
    for value in WRONG:
        try:
            build(name, **{option: value})
        except LongAttentionError as refusal:
            for recommended, written in EXAMPLE.findall(str(refusal)):
                typed = written.strip("'")
                known = {info.name for info in mechanism_info(name).options}
                if recommended not in known:
                    continue
                forms = [typed]
                with contextlib.suppress(SyntaxError, ValueError):
                    forms.append(ast.literal_eval(typed))
                for form in forms:
                    build(name, **{recommended: form})


def test_one_number_stands_for_a_tuple_of_one() -> None:
    assert mechanism_class("window").options_type.build("window", {"dilation": 2}).dilation == (2,)
    assert mechanism_class("longformer").options_type.build("longformer", {"global_tokens": 0}).global_tokens == (0,)
    with pytest.raises(OptionError, match="dilation"):
        build("window", dilation=True)
    with pytest.raises(OptionError, match="dilation"):
        build("window", dilation=1.5)
