"""Longformer's options beyond the contract: global rows with separate projections, and globals chosen by token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from hf_longattn import attend, build_mechanism, families, reference_attend
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.engines.block_sparse import block_sparse_attention
from hf_longattn.engines.global_rows import index_of_globals
from hf_longattn.errors import InputError, OptionError
from hf_longattn.mechanisms.common import masked
from hf_longattn.mechanisms.common.base import attention_weights
from hf_longattn.mechanisms.common.global_tokens import GlobalTokenIds
from scripts.dev.tools.small_models import Shape, small_values
from tests.cases import every_case
from tests.comparisons import assert_equal_with_gradients
from tests.grids import quickly
from tests.mechanisms.definition import Attention
from tests.reports import tensor_counts

HEADS, HEAD_DIM, WIDTH = 4, 8, 24
SIZES = small_values("bert", Shape(tokens=300, vocabulary=90))
SEPARATE = {"mechanism": "longformer", "window": 8, "separate_global": True}


def separate(**options: Any) -> Any:
    mechanism = build_mechanism(
        "longformer", num_heads=HEADS, head_dim=HEAD_DIM, hidden_size=WIDTH, window=16, separate_global=True, **options
    )
    return mechanism.eval()


def arguments(length: int, count: int, causal: bool = False) -> dict[str, Any]:
    """Hidden states, a padded second text, ``count`` global tokens in the first."""
    real = torch.ones(2, length, dtype=torch.bool)
    real[1, : length // 3] = False
    marked = torch.zeros(2, length, dtype=torch.bool)
    marked[0, torch.randperm(length)[:count]] = marked[1, -1] = True
    return {
        "hidden_states": torch.randn(2, length, WIDTH),
        "padding_mask": real,
        "global_mask": marked,
        "causal": causal,
    }


def qkv(length: int) -> list[Tensor]:
    return [torch.randn(2, HEADS, length, HEAD_DIM) for _ in range(3)]


@every_case("causal", [False, True])
@every_case("count", [1, 30])
@every_case("length", [50, 301])
def test_longformer_separate_global_rows_are_those_of_the_definition(length: int, count: int, causal: bool) -> None:
    """One global token: projections folded into the query; thirty: keys and values projected."""
    mechanism, given, inputs = separate(), arguments(length, count, causal), qkv(length)
    real = given["padding_mask"][:, None, :, None]
    expected = reference_attend(*inputs, mechanism=mechanism, **given)
    assert ((attend(*inputs, mechanism=mechanism, **given) - expected) * real).abs().max() <= 1e-5
    plain = build_mechanism("longformer", num_heads=HEADS, head_dim=HEAD_DIM, window=16)
    marked = given["global_mask"][:, None, :, None]
    rest = {name: value for name, value in given.items() if name != "hidden_states"}
    assert (
        (reference_attend(*inputs, mechanism=plain, **rest) - expected) * (real & ~marked)
    ).abs().max() <= 1e-9  # all other rows are the ordinary ones
    assert ((attention_weights(mechanism, *inputs[:2], **given).sum(-1) - 1) * real[..., 0]).abs().max() <= 1e-5


@pytest.mark.parametrize("count", [1, 30])
def test_longformer_separate_global_gradients_are_those_of_the_definition(count: int) -> None:
    mechanism, given, inputs = separate(), arguments(301, count), qkv(301)
    leaves = [x.requires_grad_() for x in (*inputs, given["hidden_states"])]
    out, expected = (run(*inputs, mechanism, **given) for run in (attend, reference_attend))
    leaves += mechanism.parameters()
    assert_equal_with_gradients(out, expected.float(), leaves, given["padding_mask"], atol=1e-5, gradients=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("count", quickly((0, 3), (3,)))
def test_longformer_with_separate_global_rows_compiles_and_exports_whole(count: int) -> None:
    """The second sequence has no global token."""
    mechanism, given, inputs = separate(), arguments(301, count), qkv(301)
    given["global_mask"][1] = False
    expected = attend(*inputs, mechanism=mechanism, **given)
    compiled = torch.compile(whole := Attention(mechanism), fullgraph=True, backend="aot_eager")
    assert (compiled(*inputs, **given) - expected).abs().max() <= 1e-5
    exported = torch.export.export(whole, tuple(inputs), given).module()
    real = given["padding_mask"]  # what stands at padding is another finite value in the exported graph
    assert (exported(*inputs, **given) - expected).transpose(1, 2)[real].abs().max() <= 1e-5
    gradients = []
    for run in (compiled, whole):
        mechanism.zero_grad()
        run(*inputs, **given).sin().sum().backward()
        gradients.append([p.grad.clone() for p in mechanism.parameters()])
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=0)


def test_longformer_parameters_have_gradients_without_global_tokens() -> None:
    """DistributedDataParallel waits for the gradient of every parameter."""
    mechanism = separate(global_tokens=())
    attend(*qkv(40), mechanism=mechanism, hidden_states=torch.randn(2, 40, WIDTH)).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in mechanism.parameters())


def test_longformer_refuses_calls_and_options_without_what_global_tokens_need() -> None:
    q, k, v = qkv(40)
    with pytest.raises(OptionError, match="hidden states, but this call has none"):
        attend(q, k, v, "longformer", separate_global=True)
    marked = torch.ones(2, 40, dtype=torch.bool)
    with pytest.raises(InputError, match="needs the hidden states of all tokens"):
        attend(q[:, :, -4:], k, v, separate(), causal=True, hidden_states=torch.randn(2, 4, WIDTH), global_mask=marked)
    with pytest.raises(InputError, match="pass the global tokens as a mask"):
        attend(q, k, v, "longformer", global_token_ids=(3,))
    for options in ({"global_token_ids": (-1,)}, {"separator_token_id": -5}):
        with pytest.raises(OptionError, match="must be at least 0"):
            build_mechanism("longformer", num_heads=2, head_dim=4, **options)
    for base, match in (("llama", "rotated by position"),):
        config = families.FAMILIES[base].config_class(**SIZES, num_key_value_heads=2, long_attention=SEPARATE)
        with pytest.raises(OptionError, match=match):
            families.FAMILIES[base].model_class("LlamaModel")(config)


IDS = torch.tensor([[1, 7, 8, 2, 2, 9, 7, 2, 0, 0], [0, 0, 1, 7, 2, 9, 9, 9, 9, 2], [1, 7, 8, 9, 9, 9, 9, 9, 9, 9]])
REAL = IDS != 0


@every_case(
    ("rule", "expected"),
    [
        (GlobalTokenIds(positions=(0, 3)), ["1..1......", "..1..1....", "1..1......"]),
        (GlobalTokenIds(token_ids=(7, 8)), [".11...1...", "...1......", ".11......."]),
        # 0 pads: padding is never global
        (GlobalTokenIds(token_ids=(0, 7)), [".1....1...", "...1......", ".1........"]),
        (GlobalTokenIds(first_segment=True, separator=2), ["111.......", "..11......", ".........."]),
        (
            GlobalTokenIds(positions=(0,), token_ids=(9,), first_segment=True, separator=2),
            ["111..1....", "..11.1111.", "1..1111111"],
        ),
    ],
)
def test_rules_of_global_tokens_mark_positions_ids_and_segments(rule: GlobalTokenIds, expected: list[str]) -> None:
    found = ["".join("1" if one else "." for one in row) for row in rule.mask(IDS, REAL).tolist()]
    assert found == expected


def test_a_rule_of_global_segments_needs_their_separator() -> None:
    rule = GlobalTokenIds(first_segment=True)
    assert rule.with_separator(2).separator == 2
    assert GlobalTokenIds(positions=(0,)).with_separator(None).separator is None
    with pytest.raises(OptionError, match="give separator_token_id, for example 102 for BERT"):
        rule.with_separator(None)


def test_global_token_ids_of_a_model_equal_the_same_mask() -> None:
    config = families.LongBertConfig(
        **SIZES,
        long_attention={"mechanism": "longformer", "window": 4, "global_first_segment": True, "separator_token_id": 2},
    )
    model = families.LongBertModel(config).eval()
    ids = torch.randint(3, 90, (2, 40))
    ids[:, [9, 30]] = 2
    mask = torch.ones_like(ids)
    mask[1, 35:] = 0
    marks = torch.zeros_like(ids)
    marks[:, :9] = 1
    with torch.no_grad():
        by_rule, by_mask = (
            model(ids, attention_mask=mask, **given)[0] for given in ({}, {"global_attention_mask": marks})
        )
    assert torch.equal(by_rule, by_mask)
    with pytest.raises(InputError, match="inputs_embeds came without input_ids"):
        model(inputs_embeds=torch.randn(1, 5, 32))


def test_generation_equals_the_full_forward_when_ids_are_global() -> None:
    chosen = {"mechanism": "longformer", "window": 4, "global_tokens": (), "global_token_ids": (5, 6, 7, 8)}
    config = families.FAMILIES["gpt2"].config_class(
        **small_values("gpt2", Shape(vocabulary=12)),
        bos_token_id=1,
        eos_token_id=None,
        long_attention=chosen,
    )
    model = families.LongGPT2LMHeadModel(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(6 if parameter.ndim == 2 else 1)
    prompt = torch.randint(1, 12, (2, 9))
    mask = torch.ones_like(prompt)
    mask[1, :3] = 0
    grown = model.generate(
        prompt,
        attention_mask=mask,
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    whole = torch.cat([mask, torch.ones(2, 12, dtype=mask.dtype)], 1)
    positions = (whole.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(grown.sequences, attention_mask=whole, position_ids=positions).logits
    for step, scores in enumerate(grown.scores):
        assert (logits[:, 8 + step] - scores).abs().max() <= 1e-4


def test_layers_with_contradicting_rules_of_global_tokens_are_refused() -> None:
    layers = {1: {"global_token_ids": (4,)}}
    config = families.LongBertConfig(**SIZES, long_attention={"mechanism": "longformer", "layers": layers})
    with pytest.raises(OptionError, match="different rules"):
        families.LongBertModel(config)
    config = families.LongBertConfig(**SIZES, long_attention={"mechanism": "longformer", "global_first_segment": True})
    with pytest.raises(OptionError, match="which token ends it"):
        families.LongBertModel(config)


@pytest.mark.parametrize(
    ("kind", "layer", "own"), [("Bert", "encoder.layer.1.attention.self", "query"), ("GPT2", "h.1.attn", "c_attn")]
)
def test_separate_global_projections_begin_as_copies(kind: str, layer: str, own: str, tmp_path: Path) -> None:
    """Written by the converter, and made by loading a short checkpoint directly: the same values, equal to ordinary
    global rows."""
    getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**SIZES)).save_pretrained(
        tmp_path / "short"
    )
    report = convert_checkpoint(
        tmp_path / "short", tmp_path / "long", mechanism="longformer", window=8, separate_global=True
    )
    assert report.verified
    assert tensor_counts(report)["new"] == 12
    written = load_file(tmp_path / "long" / "model.safetensors")
    original = written[f"{layer}.{own}.weight"]
    assert torch.equal(
        written[f"{layer}.long_attention.separate.query.weight"], original if kind == "Bert" else original.T[:32]
    )
    long_class = families.FAMILIES[kind.lower()].model_class(f"{kind}Model")

    def loaded(long_attention: dict[str, Any]) -> Any:
        config = long_class.config_class.from_pretrained(tmp_path / "short", long_attention=long_attention)
        return long_class.from_pretrained(tmp_path / "short", config=config).eval()

    flown, plain = loaded(SEPARATE), loaded({"mechanism": "longformer", "window": 8})
    assert all(torch.equal(flown.state_dict()[name], value) for name, value in written.items())
    ids = torch.randint(3, 90, (1, 60))
    with torch.no_grad():
        assert (flown(ids)[0] - plain(ids)[0]).abs().max() <= 1e-5


@every_case("setting", ["positions", "padded positions", "mask", "padded mask"])
@torch.no_grad()
def test_global_tokens_are_found_once_for_all_layers(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which waits for a GPU; and again for the next pass, though its mask is the same tensor with other values."""
    config: Any = families.LongBertConfig(
        **small_values("bert", Shape(layers=3, tokens=1024)),
        long_attention={"mechanism": "longformer", "window": 8},
    )
    model: Any = families.LongBertModel(config).eval()
    found: list[Tensor] = []

    def recorded(q: Tensor, k: Tensor, v: Tensor, pattern: Any, call: Any) -> Tensor:
        found.append(index_of_globals(call)[0])
        return block_sparse_attention(q, k, v, pattern, call)

    monkeypatch.setattr(masked, "block_sparse_attention", recorded)
    inputs = {"input_ids": torch.randint(99, (2, 900))}
    if "padded" in setting:
        inputs["attention_mask"] = (torch.arange(900) < torch.tensor([[900], [831]])).long()
    if "mask" in setting:
        inputs["global_attention_mask"] = (torch.arange(900) == 5).long().expand(2, -1).clone()
    model(**inputs)
    if "mask" in setting:
        inputs["global_attention_mask"][:, [5, 7]] = torch.tensor([0, 1])
    model(**inputs)
    assert len(found) == 6
    for indices, place in ((found[:3], 5 if "mask" in setting else 0), (found[3:], 7 if "mask" in setting else 0)):
        assert all(index is indices[0] for index in indices)
        assert indices[0].tolist() == [[place], [place]]
