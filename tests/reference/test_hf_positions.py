"""Relative and rotary positions equal those of T5, BLOOM, MPT and Llama, and Self-Extend equals its formula."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, T5Config
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

from hf_longattn import LongLlamaForCausalLM, attend, build_mechanism, reference_attend
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.engines import dense
from hf_longattn.engines.call import AttentionCall
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.common.registry import mechanism_from
from hf_longattn.positions.relative import Alibi, SelfExtend, T5Buckets, buckets, build_relative
from tests.cases import every_case
from tests.reference.small_models import long_like, plain_model, tokens


def distances(length: int) -> torch.Tensor:
    return torch.arange(length)[:, None] - torch.arange(length)


@pytest.mark.parametrize("causal", [False, True])
def test_every_distance_has_the_bucket_that_t5_gives_it(causal: bool) -> None:
    distance = torch.arange(-3000, 3001)
    for count, furthest in ((32, 128), (16, 1000), (64, 4096)):
        found = T5Attention._relative_position_bucket(
            -distance, bidirectional=not causal, num_buckets=count, max_distance=furthest
        )
        assert torch.equal(buckets(distance, causal, count, furthest), found)


@pytest.mark.parametrize("causal", [False, True])
def test_t5_buckets_equal_the_bias_and_attention_of_t5(causal: bool) -> None:
    config = T5Config(d_model=32, d_kv=8, num_heads=4, is_decoder=causal, use_cache=False)
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0).eval()
    torch.nn.init.normal_(theirs.relative_attention_bias.weight)
    ours = build_relative("t5_buckets", 4, 8, 32)
    assert isinstance(ours, T5Buckets)
    ours.table.data.copy_(theirs.relative_attention_bias.weight)
    assert torch.equal(ours.bias(distances(200), causal)[None], theirs.compute_bias(200, 200))
    hidden = torch.randn(2, 200, 32)
    mask = torch.full((200, 200), torch.finfo(torch.float32).min).triu(1)[None, None] if causal else None
    expected = theirs(hidden, mask=mask, position_bias=None if mask is None else theirs.compute_bias(200, 200) + mask)[
        0
    ]
    full = build_mechanism("full", num_heads=4, head_dim=8, relative="t5_buckets")
    full.relative = ours
    q, k, v = (part(hidden).view(2, 200, 4, 8).transpose(1, 2) for part in (theirs.q, theirs.k, theirs.v))
    found = theirs.o(attend(q, k, v, full, causal=causal, scaling=1.0).transpose(1, 2).flatten(2))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@every_case("heads", [1, 2, 3, 6, 8, 12, 16, 20, 25, 32, 71])
def test_alibi_equals_the_slopes_and_attention_of_bloom(heads: int) -> None:
    mask = torch.ones(1, 60, dtype=torch.long)
    theirs = build_alibi_tensor(mask, heads, torch.float32).view(1, heads, 1, 60)
    alibi = build_relative("alibi", heads, 8, 8 * heads)
    assert isinstance(alibi, Alibi)
    ours = alibi.bias(distances(60), True).tril()
    # BLOOM adds slope · key position: per query row the same up to a constant, which a softmax does not see.
    torch.testing.assert_close(ours, (theirs - theirs.transpose(2, 3))[0].tril(), atol=1e-5, rtol=0)
    q, k, v = (torch.randn(1, heads, 60, 8) for _ in range(3))
    hidden = torch.full((60, 60), float("-inf")).triu(1)
    expected = ((q @ k.transpose(-1, -2)) * 8**-0.5 + theirs + hidden).softmax(-1) @ v
    torch.testing.assert_close(attend(q, k, v, "full", causal=True, relative="alibi"), expected, atol=1e-5, rtol=0)


def test_parameters_of_relative_positions_are_saved_and_loaded(tmp_path: Any) -> None:
    model = long_like(plain_model("bert"), "bert", {"mechanism": "window", "window": 8, "relative": "t5_buckets"})
    names = [name for name, _ in model.named_parameters() if name.endswith("long_attention.relative.table")]
    assert len(names) == 3
    assert all((model.get_parameter(name) == 0).all() for name in names)
    for name in names:
        torch.nn.init.normal_(model.get_parameter(name))
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    ids = tokens(2, 100)
    assert torch.equal(again(ids).last_hidden_state, model(ids).last_hidden_state)
    assert again.config.long_attention.options["relative"] == "t5_buckets"


OLD, NEW = 64, 256
SCALINGS = ["none", "linear", "dynamic", "yarn", "longrope"]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    plain_model("llama", "LlamaForCausalLM", num_hidden_layers=2, max_position_embeddings=OLD).save_pretrained(
        tmp_path / "llama"
    )
    factors = {"short_factor": [1.0 + 0.01 * n for n in range(8)], "long_factor": [1.0 + 0.5 * n for n in range(8)]}
    (tmp_path / "factors.json").write_text(json.dumps(factors))
    return tmp_path / "llama"


def both_models(llama: Path, kind: str) -> tuple[Any, Any]:
    """The converted model, and transformers' own with the same weights and the same rotary parameters."""
    positions = f"rope:{kind}" + (f":{llama.parent / 'factors.json'}" if kind == "longrope" else "")
    report = convert_checkpoint(llama, llama.parent / kind, mechanism="full", max_length=NEW, positions=positions)
    assert report.verified
    longer = LongLlamaForCausalLM.from_pretrained(llama.parent / kind).eval()
    config = LlamaConfig.from_pretrained(llama)
    config.rope_parameters = dict(longer.config.rope_parameters)
    config.max_position_embeddings = longer.config.max_position_embeddings
    plain = LlamaForCausalLM(config).eval()
    plain.load_state_dict(longer.state_dict())
    return longer, plain


@every_case("kind", SCALINGS)
def test_a_llama_with_longer_rope_has_the_logits_and_texts_of_transformers(llama: Path, kind: str) -> None:
    longer, plain = both_models(llama, kind)
    for length in (20, OLD, OLD + 1, 150, NEW, 30):  # and short again: dynamic kinds go back
        ids = tokens(2, length)
        with torch.no_grad():
            torch.testing.assert_close(longer(ids).logits, plain(ids).logits, atol=1e-5, rtol=0)
    arguments = {"do_sample": False, "max_new_tokens": 20, "eos_token_id": None}
    ids = tokens(2, OLD - 10)
    assert torch.equal(longer.generate(ids, **arguments), plain.generate(ids, **arguments))


@pytest.mark.thorough
@every_case("kind", ["linear", "yarn", "longrope"])
def test_scaled_rope_differs_from_plain_beyond_the_old_length(llama: Path, kind: str) -> None:
    longer, _ = both_models(llama, kind)
    plain = LlamaForCausalLM.from_pretrained(llama).eval()
    ids = tokens(1, NEW)
    with torch.no_grad():
        assert not torch.allclose(longer(ids).logits, plain(ids).logits, atol=1e-3)


@every_case("wrong", [[1.0] * 5, ["a"] * 8, [0.0] * 8])
def test_longrope_factors_that_do_not_fit_are_refused(llama: Path, wrong: list[Any]) -> None:
    file = llama.parent / "wrong.json"
    file.write_text(json.dumps({"short_factor": [1.0] * 8, "long_factor": wrong}))
    with pytest.raises(
        OptionError, match=r"long_factor must be a list of 8 positive numbers, one for each rotary frequency"
    ):
        convert_checkpoint(
            llama, llama.parent / "long", mechanism="full", max_length=NEW, positions=f"rope:longrope:{file}"
        )


HEADS, GROUPS, WIDTH, LENGTH = 2, 1, 8, 29
FREQUENCIES = 10_000.0 ** -(torch.arange(0, WIDTH, 2, dtype=torch.float64) / WIDTH)


def self_extend(i: int, j: int) -> int:
    """Jin et al. 2024, section 3, for a key before the query: w_n = 6 and G_s = 3."""
    return i - j if i - j < 6 else (i // 3 + 6 - 6 // 3) - j // 3


SELF_EXTEND = "self_extend:window=6,group=3"


def rotated(x: Tensor, positions: Tensor) -> Tensor:
    """``x (…, N, D)`` as a model gives it to attention, with complex numbers for the planes of features n and n +
    D/2."""
    planes = torch.complex(*x.chunk(2, -1)) * torch.polar(torch.ones(()).double(), positions[:, None] * FREQUENCIES)
    return torch.cat([planes.real, planes.imag], -1)


def defined(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """The attention of unrotated ``q (H, N, D)`` and ``k, v (H_kv, N, D)``, by a loop over pairs."""
    length, rows = k.shape[1], []
    for h, i in itertools.product(range(q.shape[0]), range(length)):
        keys = range(i + 1 if causal else length)
        distances = [self_extend(i, j) if j <= i else -self_extend(j, i) for j in keys]
        group = h * k.shape[0] // q.shape[0]
        turned = [
            rotated(q[h, i][None], torch.tensor([d]).double())[0] @ k[group, j]
            for j, d in zip(keys, distances, strict=True)
        ]
        rows.append((torch.stack(turned) / WIDTH**0.5).softmax(0) @ v[group, : len(keys)])
    return torch.stack(rows).view(*q.shape)


def drawn(batch: int = 1) -> list[Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(batch, heads, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)
        for heads in (HEADS, GROUPS, GROUPS)
    ]


@every_case("causal", [True, False])
@every_case("blocks", [False, True])
def test_self_extend_equals_its_formula_with_gradients(
    causal: bool, blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if blocks:  # as for long texts
        monkeypatch.setattr(dense, "MAX_SCORES", 5 * HEADS * LENGTH)
    (q, k, v), places = drawn(), torch.arange(LENGTH).double()
    expected = defined(q[0], k[0], v[0], causal)[None]
    weight = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weight).sum(), (q, k, v))
    for run in (attend, reference_attend):
        out = run(rotated(q, places), rotated(k, places), v, "full", causal=causal, relative=SELF_EXTEND)
        torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
        found = torch.autograd.grad((out * weight).sum(), (q, k, v))
        torch.testing.assert_close(found, wanted, atol=1e-11, rtol=0)


@every_case("causal", [True, False])
def test_self_extend_counts_positions_from_each_sequence(causal: bool) -> None:
    """With padding on either side, packed documents, and fewer queries than keys. The model's own positions may count
    padding."""
    (q, k, v), places = drawn(2), torch.arange(LENGTH).double()
    turned = (rotated(q, places), rotated(k, places), v)
    arguments: dict[str, Any] = {"causal": causal, "relative": SELF_EXTEND}
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[0, :9], mask[1, 20:] = False, False
    padded = attend(*turned, "full", padding_mask=mask, **arguments)
    torch.testing.assert_close(
        padded[0, :, 9:], defined(q[0, :, 9:], k[0, :, 9:], v[0, :, 9:], causal), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(
        padded[1, :, :20], defined(q[1, :, :20], k[1, :, :20], v[1, :, :20], causal), atol=1e-12, rtol=0
    )
    packed = attend(*turned, "full", documents=(torch.arange(LENGTH) >= 11).long().expand(2, -1), **arguments)
    torch.testing.assert_close(
        packed[1, :, 11:], defined(q[1, :, 11:], k[1, :, 11:], v[1, :, 11:], causal), atol=1e-12, rtol=0
    )
    last = attend(turned[0][:, :, -4:], *turned[1:], "full", padding_mask=mask, **arguments)
    torch.testing.assert_close(last[0], padded[0, :, -4:], atol=1e-12, rtol=0)


@every_case("causal", [True, False])
@every_case("blocks", [False, True])
def test_a_cap_and_padding_meet_the_scores_of_self_extend(
    causal: bool, blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the definition over all pairs. A cap sees the score of one pair, whatever listing of the key gave it."""
    if blocks:
        monkeypatch.setattr(dense, "MAX_SCORES", 5 * HEADS * LENGTH)
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[0, :9], mask[1, 20:] = False, False
    arguments: dict[str, Any] = {"causal": causal, "relative": SELF_EXTEND, "padding_mask": mask}
    arguments["score_mod"] = lambda score, b, h, i, j: 3 * torch.tanh(score / 3) + 0.01 * (h + 1) * (i - j)
    out, expected = (
        run(*drawn(2), "full", **arguments) * mask[:, None, :, None] for run in (attend, reference_attend)
    )
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)


def test_self_extend_changes_nothing_in_short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts without distant pairs have no vectors for them, either."""
    for length in (6, 5):
        q, k, v = (x.detach()[:, :, :length] for x in drawn())
        places = torch.arange(length).double()
        out = attend(rotated(q, places), rotated(k, places), v, "full", causal=True, relative=SELF_EXTEND)
        torch.testing.assert_close(
            out, attend(rotated(q, places), rotated(k, places), v, "full", causal=True), atol=1e-12, rtol=0
        )
        monkeypatch.setattr(SelfExtend, "moved", lambda *_: pytest.fail("vectors for distant pairs"))


def test_self_extend_takes_values_wider_than_keys() -> None:
    """As in MiMo, whatever the length of the text."""
    for length in (4, LENGTH):
        q, k, v = (x.detach()[:, :, :length] for x in drawn())
        mechanism = mechanism_from("full", {"relative": SELF_EXTEND}, num_heads=HEADS, head_dim=WIDTH, max_length=None)
        out = mechanism(q, k, torch.cat([v, v[..., :4]], -1), AttentionCall(causal=True))
        torch.testing.assert_close(
            out[..., :WIDTH], mechanism(q, k, v, AttentionCall(causal=True)), atol=1e-12, rtol=0
        )
        assert out.shape[-1] == WIDTH + 4
