"""A later layer of a mechanism does not wait for the GPU, and packed documents are one call. Counted without a GPU.

It takes g++; where there is none, the tests are skipped and say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hf_longattn import list_mechanisms

from .device_layers import SETTINGS
from .pretended_h100 import results

CHOSEN_BY_VALUES = ("adaptive_span", "block_top_k", "lsh", "routing", "top_k")
"""Mechanisms whose pairs depend on the values of tokens or parameters: the host may ask for their number once a layer, and choices may be
made in float64."""
WAITING: dict[str, set[str]] = {"performer": {*SETTINGS}}
"""Mechanisms that still wait for the device more often, or compute in float64 without a choice, with the settings in which they do."""


@pytest.fixture(scope="module")
def counted() -> Iterator[Callable[[str], dict[str, Any]]]:
    with results("tests.engines.device_layers", "mechanism", triton=False) as result_of:
        yield result_of


def check(name: str, result: dict[str, Any]) -> None:
    allowed, rows = int(name in CHOSEN_BY_VALUES), {form: row for form, row in result.items() if form != "mechanism"}
    waiting = {
        setting
        for row in rows.values()
        for setting in SETTINGS
        if sum(row[setting]["synchronisations"].values()) > allowed or (not allowed and row[setting]["float64"])
    }
    assert waiting == WAITING.get(name, set())
    for row in rows.values():
        for setting in ("documents", "uneven documents"):
            paths = row[setting]["paths"]
            assert paths.get("unchanged", 0) + paths.get("aligned", 0) + paths.get("split", 0) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", list_mechanisms())
def test_later_layers_on_a_gpu_wait_for_nothing_and_pack_documents_in_one_call(name: str, counted: Callable[[str], dict[str, Any]]) -> None:
    """The first layer of a padded batch may ask where its rows begin."""
    check(name, counted(name))
