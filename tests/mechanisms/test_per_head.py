"""Every head of a layer may have its own mechanism; the output is what each mechanism gives on its heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import LongAttentionConfig, attend, build_mechanism, reference_attend
from hf_longattn.engines.common.dense import repeat_heads
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.common.locality import keys_per_query
from tests.cells import every_cell

N = 300


def inputs(heads: int = 8, kv_heads: int = 2) -> list[Tensor]:
    return [torch.randn(2, h, N, 8) for h in (heads, kv_heads, kv_heads)]


@pytest.mark.thorough
@every_cell("causal", [False, True])
@every_cell(
    ("heads", "expected"),
    [
        ("0-3=window:window=16;4-7=full", {"window": [0, 1, 2, 3], "full": [4, 5, 6, 7]}),  # whole groups of key heads
        ("0,5=window:window=16;full", {"window": [0, 5], "full": [1, 2, 3, 4, 6, 7]}),  # groups are cut
        ("window:window=16,full", {"window": [0, 2, 4, 6], "full": [1, 3, 5, 7]}),  # in turn
        ("7=window:window=16;full", {"window": [7], "full": [0, 1, 2, 3, 4, 5, 6]}),
    ],
)
def test_each_head_is_its_mechanisms(heads: str, expected: dict[str, list[int]], causal: bool) -> None:
    q, k, v = inputs()
    mask = torch.rand(2, N) < 0.9

    def farther(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score - 0.1 * h * (i - j).abs()

    arguments: dict[str, Any] = {"causal": causal, "padding_mask": mask, "scaling": 0.5}
    for score_mod in (None, farther):
        out = attend(q, k, v, "per_head", heads=heads, score_mod=score_mod, **arguments)
        for name, numbers in expected.items():
            options = {"window": 16} if name == "window" else {}
            alone = attend(q, repeat_heads(k, 8), repeat_heads(v, 8), name, score_mod=score_mod, **arguments, **options)
            torch.testing.assert_close(out[:, numbers], alone[:, numbers], atol=1e-5, rtol=0)


def test_global_tokens_reach_the_heads_that_take_them() -> None:
    q, k, v = inputs()
    tokens = torch.zeros(2, N, dtype=torch.bool)
    tokens[:, 123] = True
    out = attend(q, k, v, "per_head", heads="0-3=longformer:window=8;window:window=8", global_mask=tokens)
    longformer, window = attend(q, k, v, "longformer", window=8, global_mask=tokens), attend(q, k, v, "window", window=8)
    torch.testing.assert_close(out, torch.cat([longformer[:, :4], window[:, 4:]], 1), atol=1e-5, rtol=0)


def test_it_states_what_its_members_do() -> None:
    both = build_mechanism("per_head", num_heads=4, head_dim=8, heads="0=window:window=8;window:window=16")
    assert keys_per_query(both) == 16
    assert both.pairs(100, True) == -(
        -sum(n * build_mechanism("window", num_heads=1, head_dim=8, window=w).pairs(100, True) for n, w in ((1, 8), (3, 16))) // 4
    )
    assert not both.traits.takes_globals
    assert keys_per_query(build_mechanism("per_head", num_heads=4, head_dim=8, heads="0=window:window=8;full")) is None
    assert build_mechanism("per_head", num_heads=1, head_dim=8, heads="window:window=8,full").groups == [[0]]


def test_it_is_a_configuration() -> None:
    config = LongAttentionConfig("per_head", heads="0-5=window:window=64;full")
    assert config.to_dict() == {
        "mechanism": "per_head",
        "heads": [{"heads": "0-5", "mechanism": "window", "window": 64}, {"mechanism": "full"}],
    }
    assert LongAttentionConfig.from_dict(config.to_dict()) == config
    assert LongAttentionConfig("per_head", heads=[{"heads": [0, 1, 2, 3, 4, 5], "mechanism": "window", "window": 64}, "full"]) == config
    assert "heads=0-5=window:window=64;full" in str(config)
    nested = LongAttentionConfig("per_head", heads="0=union:of=[window:window=8+longformer:window=4,global_tokens=0+2];full")
    assert [one["mechanism"] for one in nested.options["heads"][0]["of"]] == ["window", "longformer"]
    assert LongAttentionConfig.from_dict(nested.to_dict()) == nested


@every_cell(
    ("heads", "says"),
    [
        ([], "needs the mechanisms of its heads"),
        ("0-3=window;3=full", "head 3 twice"),
        ("0-3=windw;full", "Did you mean 'window'"),
        ("0-3=window:window=-4;full", "at least 1"),
        ("3-1=window;full", "must be numbers from 0"),
        ([{"heads": "first", "mechanism": "window"}], "must be numbers from 0"),
        ([{"heads": -1, "mechanism": "window"}], "must be numbers from 0"),
        ([{"heads": "0"}], "must name a mechanism"),
    ],
)
def test_bad_heads_get_a_sentence_when_the_config_is_made(heads: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LongAttentionConfig("per_head", heads=heads)


@every_cell(
    ("heads", "says"),
    [
        ("0-9=window", "use 0 to 7"),
        ("0-3=window", "has no mechanism for head 4 of 8"),
        ("0-3=longformer:separate_global=true;full", "which a member of 'per_head' does not get; choose separate_global=False"),
    ],
)
def test_heads_that_do_not_fit_the_layer_get_a_sentence(heads: str, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        build_mechanism("per_head", num_heads=8, head_dim=8, heads=heads)


def test_relative_positions_need_scores_in_every_head() -> None:
    with pytest.raises(OptionError, match=r"its member 'linear' has no scores that relative positions could be added to"):
        build_mechanism("per_head", num_heads=4, head_dim=16, heads="window,linear", relative="alibi")
    assert not build_mechanism("per_head", num_heads=4, head_dim=16, heads="window,linear").traits.takes_score_mod


def test_seeded_members_differ_from_layer_to_layer() -> None:
    heads = ["bigbird:block_size=4,num_random_blocks=2", "window:window=4"]
    modules = [build_mechanism("per_head", num_heads=2, head_dim=8, heads=heads) for _ in range(3)]
    modules[1].layer = 1
    q, k, v = torch.randn(3, 1, 2, 300, 8).unbind(0)
    first, second, again = (attend(q, k, v, module) for module in modules)
    assert torch.equal(first, again)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(second, reference_attend(q, k, v, modules[1]).float(), atol=1e-5, rtol=0)


def test_what_its_members_are_holds_for_the_whole() -> None:
    """Facts that depend on the members are asked of the instance: its class cannot know them."""

    def built(heads: str) -> Any:
        return build_mechanism("per_head", num_heads=4, head_dim=8, max_length=64, heads=heads)

    assert not built("window,strided").traits.takes_globals
    assert built("window,longformer").traits.takes_globals
    assert (built("window,hierarchical").traits.exports, built("window,full").traits.exports) == (False, True)
    assert built("window,full").handling.exports_definition
    assert built("linformer:rank=8,sharing=layerwise,full").traits.shared_by_layers == ("members.0.key_projection",)
    assert built("linformer:rank=8,full").traits.fits_activations
    assert not built("linformer:rank=8,projection=convolution,full").traits.fits_activations


def test_a_member_that_counts_padding_is_refused() -> None:
    with pytest.raises(OptionError, match=r"'nystrom' counts padding, .*use 'nystrom' for the whole layer"):
        build_mechanism("per_head", num_heads=4, head_dim=8, heads="nystrom:inv_coeff_init_option=original,full")


def test_members_are_initialised_from_the_activations_of_their_heads() -> None:
    module = build_mechanism("per_head", num_heads=4, head_dim=8, max_length=32, heads="1,3=linformer:rank=8;full")
    q, k, v = torch.randn(3, 6, 4, 32, 8)
    assert module.init_from_activations(q, k, v)
    alone = build_mechanism("linformer", num_heads=2, head_dim=8, max_length=32, rank=8)
    alone.init_from_activations(*(x[:, [1, 3]] for x in (q, k, v)))
    member = next(one for one in module.mechanisms if one.name == "linformer")
    assert torch.equal(member.key_projection, alone.key_projection)
