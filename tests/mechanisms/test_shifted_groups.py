"""Shifted groups: what each half of the heads sees, the two readings of the ends, and training against eval mode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_longattn import LongAttentionConfig, attend, build_mechanism, reference_attend
from hf_longattn.engines.common.call import AttentionCall
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms import Mechanism
from hf_longattn.memory import decode_layer_types
from tests.cells import every_cell
from tests.mechanisms.listed import image, visible
from tests.reference.small_models import long_like, plain_model, tokens


def built(heads: int = 2, **options: object) -> Mechanism:
    return build_mechanism("shifted_groups", num_heads=heads, head_dim=8, **{"group_size": 4, **options})


def inputs(length: int, heads: int = 4, batch: int = 2, grad: bool = False) -> list[Tensor]:
    shapes = [(batch, heads, length, 8), (batch, 2, length, 8), (batch, 2, length, 8)]
    return [torch.randn(shape, dtype=torch.float64).requires_grad_(grad) for shape in shapes]


def rolled(q: Tensor, k: Tensor, v: Tensor, size: int, causal: bool) -> Tensor:
    """The authors' reading: roll the second half of the heads, attend inside the groups of the rolled order, roll back."""
    heads, length = q.shape[1], q.shape[2]
    k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
    late = torch.arange(heads) >= heads // 2

    def shift(x: Tensor, by: int) -> Tensor:
        return torch.where(late.view(1, -1, 1, 1), x.roll(by, 2), x)

    groups = [shift(x, -(size // 2)).unflatten(2, (length // size, size)) for x in (q, k, v)]
    out = torch.nn.functional.scaled_dot_product_attention(*groups, is_causal=causal)
    return shift(out.flatten(2, 3), size // 2)


def test_a_hand_made_example() -> None:
    """Ten tokens in groups of four: the second head's groups begin and end with half a group."""
    plain, shifted = (image(seen) for seen in visible(built(), 10, causal=True)[0])
    assert plain == [
        "#.........", "##........", "###.......", "####......", "....#.....",
        "....##....", "....###...", "....####..", "........#.", "........##",
    ]  # fmt: skip
    assert shifted == [
        "#.........", "##........", "..#.......", "..##......", "..###.....",
        "..####....", "......#...", "......##..", "......###.", "......####",
    ]  # fmt: skip


def test_a_step_in_eval_mode_sees_what_training_hid() -> None:
    """The masks of steps are kept for later calls, in each mode its own."""
    module, (q, k, v), call = built(4).double(), inputs(50), AttentionCall(causal=True)
    for mode in (True, False, True):
        found = module.train(mode).attend_step(q[:, :, -3:], k, v, call)
        torch.testing.assert_close(found, reference_attend(q, k, v, module, causal=True)[:, :, -3:], atol=1e-9, rtol=0)


@pytest.mark.thorough
@every_cell("causal", [False, True])
@every_cell("size", [4, 20, 60, 120])
def test_wrapping_is_the_authors_roll(size: int, causal: bool) -> None:
    q, k, v = inputs(480, grad=True)
    module = built(4, group_size=size, wrap=True).double()
    expected = rolled(q, k, v, size, causal)
    weight = torch.randn_like(expected)
    for run in (attend, reference_attend):
        out = run(q, k, v, module, causal=causal)
        torch.testing.assert_close(out, expected, atol=1e-9, rtol=0)
        found, wanted = (torch.autograd.grad((x * weight).sum(), (q, k, v), retain_graph=True) for x in (out, expected))
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


def test_without_wrapping_no_head_looks_ahead() -> None:
    q, k, v = inputs(480)
    for wrap in (False, True):
        before = attend(q, k, v, built(4, group_size=60, wrap=wrap), causal=True)
        late = v.clone()
        late[:, :, -1] += 1.0
        changed = (attend(q, k, late, built(4, group_size=60, wrap=wrap), causal=True) != before).any(-1)[0]
        assert not changed[:2, :-1].any(), "heads that are not shifted"
        assert changed[2:, :30].all() == wrap, "with wrap the first half group sees the last token"
        assert not changed[2:, 30:-1].any()


@pytest.mark.thorough
@every_cell("causal", [False, True])
@every_cell("wrap", [False, True])
@every_cell("length", [1, 7, 130, 300])
def test_padding_and_documents_change_nothing(length: int, wrap: bool, causal: bool) -> None:
    q, k, v = inputs(length, batch=1)
    module = built(4, group_size=50, wrap=wrap).double()
    alone = attend(q, k, v, module, causal=causal)
    torch.testing.assert_close(alone, reference_attend(q, k, v, module, causal=causal), atol=1e-9, rtol=0)
    for before, after in ((13, 0), (0, 29), (8, 8)):
        padded = [torch.nn.functional.pad(x, (0, 0, before, after), value=7.0) for x in (q, k, v)]
        mask = torch.zeros(1, length + before + after, dtype=torch.bool)
        mask[:, before : before + length] = True
        for run in (attend, reference_attend):
            out = run(*padded, module, causal=causal, padding_mask=mask)[:, :, before : before + length]
            torch.testing.assert_close(out, alone, atol=1e-9, rtol=0)
    others = inputs(90, batch=1)
    joined = [torch.cat(pair, 2) for pair in zip((q, k, v), others, strict=True)]
    documents = torch.cat([torch.zeros(1, length), torch.ones(1, 90)], 1).long()
    packed = attend(*joined, module, causal=causal, documents=documents)
    torch.testing.assert_close(packed[:, :, :length], alone, atol=1e-9, rtol=0)
    torch.testing.assert_close(packed[:, :, length:], attend(*others, module, causal=causal), atol=1e-9, rtol=0)


def test_holes_between_the_tokens_of_a_group_that_wraps() -> None:
    q, k, v = inputs(300)
    mask = torch.rand(2, 300) < 0.8
    module = built(4, group_size=50, wrap=True).double()
    for causal in (False, True):
        out, expected = (run(q, k, v, module, causal=causal, padding_mask=mask) for run in (attend, reference_attend))
        torch.testing.assert_close(out * mask[:, None, :, None], expected * mask[:, None, :, None], atol=1e-9, rtol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_eval_mode_is_full_attention_unless_the_groups_are_kept(causal: bool) -> None:
    q, k, v = inputs(300)
    full = attend(q, k, v, "full", causal=causal)
    module = built(4, group_size=20)
    assert not torch.allclose(attend(q, k, v, module, causal=causal), full)
    assert not module.covers(300, causal)
    trained = attend(q, k, v, module, causal=causal)
    module.eval()
    assert torch.equal(attend(q, k, v, module, causal=causal), full)
    torch.testing.assert_close(reference_attend(q, k, v, module, causal=causal), full, atol=1e-9, rtol=0)
    assert module.covers(10**6, causal)
    assert module.pairs(300, causal) == (300 * 301 // 2 if causal else 300 * 300)
    assert torch.equal(attend(q, k, v, built(4, group_size=20, keep_groups=True).eval(), causal=causal), trained)


def test_a_model_trains_in_groups_and_generates_with_full_attention() -> None:
    plain = plain_model("llama", "LlamaForCausalLM")
    longer = long_like(plain, "llama", {"mechanism": "shifted_groups", "group_size": 16})
    ids = tokens(2, 96)
    with torch.no_grad():
        assert torch.allclose(longer.eval()(ids).logits, plain.eval()(ids).logits, atol=1e-5)
        assert not torch.allclose(longer.train()(ids).logits, plain.train()(ids).logits, atol=1e-2)
    arguments = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 12}
    longer, plain = longer.eval(), plain.eval()
    assert torch.equal(longer.generate(ids, **arguments), plain.generate(ids, **arguments))


def test_the_cache_keeps_everything_or_the_last_groups() -> None:
    def types(**options: object) -> list[str] | None:
        return decode_layer_types(LongAttentionConfig("shifted_groups", group_size=8, **options), 1)

    assert types() is None
    assert types(keep_groups=True) is not None
    positions = torch.arange(24)[None]
    module = built(keep_groups=True, group_size=8)
    for upcoming in range(24):
        seen = visible(module, 24, causal=True)[0, :, upcoming:].any(0).any(0)
        kept = module.kept(positions, torch.tensor([[upcoming]]))
        assert kept is not None
        assert not (seen & ~kept[0]).any()


@every_cell("causal", [False, True])
@every_cell("options", [{}, {"wrap": True}], ids=str)
@every_cell(("length", "heads"), [(1, 2), (9, 1), (40, 3), (77, 4)])
def test_pairs_are_what_is_seen(length: int, heads: int, options: dict, causal: bool) -> None:
    module = built(heads, group_size=16, **options)
    x = torch.zeros(1, heads, length, 8)
    seen = module.visible(x, x, AttentionCall(causal=causal)).expand(1, heads, length, length)
    assert module.pairs(length, causal) == int(seen.sum()) // heads


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"group_size": 7}, "'group_size' of mechanism 'shifted_groups' is 7, but must be even"),
        ({"wrap": True, "keep_groups": True}, "'wrap' and 'keep_groups' of mechanism 'shifted_groups' exclude each other"),
    ],
)
def test_impossible_options_are_refused(options: dict, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        built(**options)


def test_a_union_takes_masks_that_hold_in_every_mode() -> None:
    with pytest.raises(OptionError, match="'shifted_groups' is not a mask over positions"):
        build_mechanism("union", num_heads=2, head_dim=8, of="window:window=8+shifted_groups:group_size=8")
