"""A union's mask is the union of its members' masks, each pair counted once, and it is visited without N×N work."""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from hf_longattn import LongAttentionConfig, attend, build_mechanism, list_mechanisms, reference_attend
from hf_longattn.engines.call import GatherTile, rows_of
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.common import registry
from hf_longattn.mechanisms.common.capabilities import keys_per_query
from hf_longattn.mechanisms.common.masked import GatheredMechanism, SparseMechanism
from hf_longattn.mechanisms.common.registry import check_options, mechanism_class
from tests.cases import every_case
from tests.mechanisms.definition import visible

LENGTH = 300
MASKS = [
    name
    for name in list_mechanisms(grid=False)
    if issubclass(cls := mechanism_class(name), SparseMechanism | GatheredMechanism)
    and check_options(name, dict(cls.about.sample)).is_mask()
    and name != "union"
]


class Residues(GatheredMechanism):
    """Query i sees the keys with the same remainder by 8."""

    summary, paper, cost = "every eighth", "none", "N²/8"

    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> Any:
        return lambda b, h, q_idx, kv_idx: (q_idx - kv_idx) % 8 == 0

    def parts(self, length: int, causal: bool, device: torch.device) -> tuple[GatherTile, ...]:
        rows = rows_of(length, 8, device).transpose(-1, -2)
        return (GatherTile(rows, rows, causal=causal),)


class HeadBlocks(GatheredMechanism):
    """Query i sees the keys of its block of 16, in odd heads only, and not its own place."""

    summary, paper, cost = "blocks", "none", "N·16"
    name: ClassVar[str]

    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> Any:
        return lambda b, h, q_idx, kv_idx: (q_idx // 16 == kv_idx // 16) & (h % 2 == 1) & (q_idx != kv_idx)

    def parts(self, length: int, causal: bool, device: torch.device) -> tuple[GatherTile, ...]:
        rows = rows_of(length, 16, device)
        odd = torch.arange(self.num_heads, device=device).view(1, -1, 1, 1) % 2 == 1
        return (GatherTile(rows, torch.where(odd, rows, -1), causal=causal, outside=(0, 0)),)


@pytest.fixture(autouse=True)
def _two_more(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, cls in (("residues", Residues), ("head_blocks", HeadBlocks)):
        monkeypatch.setitem(registry._REGISTRY, name, cls)
        monkeypatch.setattr(cls, "name", name, raising=False)


def inputs() -> list[Tensor]:
    return [torch.randn(2, heads, LENGTH, 8) for heads in (4, 2, 2)]


def union_of(names: tuple[str, ...]) -> list[dict[str, Any]]:
    return [{"mechanism": name, **mechanism_class(name).about.sample} for name in names]


def check(of: Any, causal: bool, padding_mask: Tensor | None = None, global_mask: Tensor | None = None) -> None:
    q, k, v = inputs()
    arguments = {"causal": causal, "padding_mask": padding_mask, "global_mask": global_mask}
    real = True if padding_mask is None else padding_mask[:, None, :, None]
    out = attend(q, k, v, "union", of=of, **arguments)
    torch.testing.assert_close(
        out * real, (reference_attend(q, k, v, "union", of=of, **arguments) * real).float(), atol=1e-5, rtol=0
    )


@pytest.mark.thorough
@every_case("causal", [False, True])
@every_case("names", list(itertools.combinations([*MASKS, "residues", "head_blocks"], 2)), of=3, ids="+".join)
def test_a_union_joins_any_two_masks(names: tuple[str, str], causal: bool) -> None:
    if any(mechanism_class(name).causal not in ("both", causal) for name in names):
        pytest.skip("one of them has no such form")
    for order in (names, names[::-1]):
        check(union_of(order), causal)
    of = union_of(names)
    built = build_mechanism("union", num_heads=4, head_dim=8, of=of)
    seen = [visible(m, LENGTH, causal, batch=2) for m in built.members]
    whole = visible(built, LENGTH, causal, batch=2)
    assert torch.equal(whole.expand(2, 4, LENGTH, LENGTH), (seen[0] | seen[1]).expand(2, 4, LENGTH, LENGTH))


@pytest.mark.parametrize("causal", [False, True])
def test_a_union_of_three_with_padding_and_global_tokens_equals_the_definition(causal: bool) -> None:
    of = "residues+longformer:window=20,global_tokens=0+7+head_blocks"
    padding = torch.ones(2, LENGTH, dtype=torch.bool)
    padding[0, :37] = False
    padding[1, 250:] = False
    check(of, causal, padding)
    check(of, causal, padding, torch.rand(2, LENGTH) < 0.03)
    check(of, causal, None, torch.zeros(2, LENGTH, dtype=torch.bool))


@every_case("causal", [False, True], pairs=True)
@every_case("other", ["longformer:window=20,global_tokens=0+7", "strided:window=12,stride=9", "window:window=16"])
@every_case(
    "window",
    ["window:window=8,num_sinks=3", "window:window=8,dilation=1+2+3+2,num_sinks=3", "window:dilation=4,window=6"],
)
def test_windows_with_sinks_and_dilation_join_in_a_union(window: str, other: str, causal: bool) -> None:
    padding = torch.ones(2, LENGTH, dtype=torch.bool)
    padding[0, :37] = False
    of = f"{window}+{other}"
    for order in (of, f"{other}+{window}"):
        check(order, causal, padding)
    union = build_mechanism("union", num_heads=4, head_dim=8, of=of)
    members = [build_mechanism("union", num_heads=4, head_dim=8, of=one) for one in (window, other)]
    seen = [visible(m, LENGTH, causal, padding) for m in (union, *members)]
    assert torch.equal(*(x.expand(2, 4, LENGTH, LENGTH) for x in (seen[0], seen[1] | seen[2])))
    alone = build_mechanism(
        "window",
        num_heads=4,
        head_dim=8,
        **build_mechanism("union", num_heads=4, head_dim=8, of=window).options.of[0].options.to_dict(),
    )
    mask = visible(alone, LENGTH, causal, padding)
    real = padding[:, None, :, None]
    assert torch.equal(mask.expand(2, 4, -1, -1) & real, seen[1].expand(2, 4, -1, -1) & real)


def test_a_union_of_bands_is_one_band() -> None:
    q, k, v = inputs()
    out = attend(q, k, v, "union", of="window:window=8+window:window=32")
    torch.testing.assert_close(out, attend(q, k, v, "window", window=32), atol=0, rtol=0)
    union = build_mechanism("union", num_heads=4, head_dim=8, of="window:window=8+window:window=32")
    assert keys_per_query(union) == 32
    assert not union.capabilities.takes_globals


def test_all_ways_to_write_a_union_are_one_config() -> None:
    ways = [
        [{"mechanism": "window", "window": 256}, {"mechanism": "longformer", "window": 8, "global_tokens": [0, 3]}],
        ["window:window=256", "longformer:window=8,global_tokens=0+3"],
        "window:window=256+longformer:window=8,global_tokens=0+3",
    ]
    configs = [LongAttentionConfig("union", of=way) for way in ways]
    assert all(config == configs[0] for config in configs)
    assert configs[0].to_dict() == {"mechanism": "union", "of": ways[0]}
    assert LongAttentionConfig.from_dict(configs[0].to_dict()) == configs[0]


@every_case(
    ("of", "says"),
    [
        ([], "needs the mechanisms that it joins"),
        ("windw", "Did you mean 'window'"),
        ("window:window=0", "at least 1"),
        ("window:windo=3", "Did you mean 'window'"),
        ("segmented:integration=pooled", "not a mask over positions"),
        ("longformer:separate_global=true", "not a mask over positions"),
        ([3], "each entry must name a mechanism"),
        (7, "must be a list of mechanisms"),
        ("window:window", "must read NAME=VALUE"),
        ("window:window=3,window=4", "given twice"),
    ],
)
def test_a_union_refuses_members_that_do_not_fit(of: Any, says: str) -> None:
    with pytest.raises((OptionError, ValueError), match=says):
        LongAttentionConfig("union", of=of)
