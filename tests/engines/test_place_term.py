"""A term of where two tokens lie is, in every mechanism over scores, what the definition with a matrix of all pairs gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import attend
from hf_longattn.engines.block_sparse import block_sparse_attention
from hf_longattn.engines.common.batch import Batch
from hf_longattn.engines.common.call import AttentionCall, Pattern
from hf_longattn.engines.common.paths import PathChoice, observe
from hf_longattn.engines.common.score_terms import PlaceTerm
from tests.cells import every_cell

BATCH, HEADS, LENGTH, WIDTH, LIMITS = 2, 3, 90, 8, (5, 20, 20)
MECHANISMS: dict[str, dict[str, Any]] = {
    "full": {},
    "window": {"window": 16},
    "longformer": {"window": 16},
    "bigbird": {"block_size": 8},
    "block_top_k": {"block_size": 8},
}


def term_of(dtype: torch.dtype = torch.float64) -> PlaceTerm:
    generator = torch.Generator().manual_seed(5)
    along_the_text = torch.arange(LENGTH).expand(BATCH, -1)
    on_the_page = torch.randint(0, 100, (BATCH, LENGTH, 2), generator=generator)
    tables = tuple(torch.randn(HEADS, 2 * limit + 1, generator=generator, dtype=dtype) for limit in LIMITS)
    return PlaceTerm(torch.cat([along_the_text[..., None], on_the_page], -1), tables)


def written_out(term: PlaceTerm) -> Tensor:
    """The term of all pairs, ``(B, H, N, N)``, by its definition."""
    total = torch.zeros(BATCH, HEADS, LENGTH, LENGTH, dtype=term.tables[0].dtype)
    for axis, limit in enumerate(LIMITS):
        difference = term.places[:, None, :, axis] - term.places[:, :, None, axis]
        total += term.tables[axis][:, difference.clamp(-limit, limit) + limit].transpose(0, 1)
    return total


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    q, k, v = (torch.randn(BATCH, HEADS, LENGTH, WIDTH, generator=generator, dtype=dtype, requires_grad=True) for _ in range(3))
    return q, k, v


def global_tokens() -> Tensor:
    return (torch.arange(LENGTH) % 40 == 0).expand(BATCH, -1)


@every_cell("padding", ["none", "right", "left", "documents"])
@every_cell("mechanism", MECHANISMS)
def test_every_mechanism_adds_it_to_its_pairs_forward_and_backward(mechanism: str, padding: str) -> None:
    """The term as an object, which is cut and rolled with the sequences, and as a look-up in the matrix of all pairs."""
    term, (q, k, v) = term_of(), inputs()
    arguments: dict[str, Any] = {"mechanism": mechanism, **MECHANISMS[mechanism]}
    if mechanism == "longformer":
        arguments["global_mask"] = global_tokens()
    if padding == "documents":
        arguments["documents"] = (torch.arange(LENGTH) >= 33).long().expand(BATCH, -1)
    elif padding != "none":
        places = torch.arange(LENGTH)
        arguments["padding_mask"] = torch.stack([places >= 0, places < 70 if padding == "right" else places >= 20])
    matrix = written_out(term)
    outputs = [attend(q, k, v, score_mod=mod, **arguments) for mod in (term, lambda s, b, h, i, j: s + matrix[b, h, i, j])]
    real = arguments.get("padding_mask", torch.ones(BATCH, LENGTH, dtype=torch.bool))[:, None, :, None]
    found, expected = (output * real for output in outputs)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    weight = torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(7))
    gradients = [torch.autograd.grad((output * weight).sum(), (q, k, v)) for output in (found, expected)]
    for values, others in zip(*gradients, strict=True):
        torch.testing.assert_close(values, others, atol=1e-10, rtol=1e-10)


PATTERNS = Pattern(40, 40, False), Pattern(40, 40, False, True), Pattern(40, 40, False, True, False), Pattern(60, 0, True)


@pytest.mark.thorough
@every_cell("pattern", PATTERNS)
@every_cell("padding", ["none", "right", "holes"])
def test_the_band_kernel_adds_it_to_its_blocks(pattern: Pattern, padding: str) -> None:
    """Of 700 tokens, for which the band has several blocks and edges; global columns and rows, too. The plain path looks it up."""
    generator, length = torch.Generator().manual_seed(8), 700
    q, k, v = (torch.randn(2, HEADS, length, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3))
    places = torch.randint(0, 100, (2, length, 3), generator=generator)
    term = PlaceTerm(places, term_of().tables)
    tokens = torch.isin(torch.arange(length), torch.tensor([0, 350, 690])).expand(2, -1) if pattern.has_globals else None
    mask = None
    if padding != "none":
        mask = torch.ones(2, length, dtype=torch.bool)
        mask[0, slice(620, None) if padding == "right" else slice(300, 340)] = False
    outputs = []
    for path, mod in (("cpu-band", term), ("blockwise", lambda score, b, h, i, j: term(score, b, h, i, j))):
        choices: list[PathChoice] = []
        with observe(lambda _, choice, choices=choices: choices.append(choice)):
            call = AttentionCall(pattern.causal, Batch.of(mask), tokens, scale=0.3, score_mod=mod)
            out = block_sparse_attention(q, k, v, pattern, call)
        assert choices[-1].path == path
        outputs.append(out if mask is None else out * mask[:, None, :, None])
    torch.testing.assert_close(*outputs, atol=1e-10, rtol=1e-10)
    weight = torch.randn(outputs[0].shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad((output * weight).sum(), (q, k, v)) for output in outputs]
    for values, others in zip(*gradients, strict=True):
        torch.testing.assert_close(values, others, atol=1e-10, rtol=1e-10)


def test_tables_that_need_gradients_get_them() -> None:
    """By the plain path, since the kernel's backward pass has none for them."""
    term, (q, k, v) = term_of(), inputs()
    tables = tuple(table.clone().requires_grad_() for table in term.tables)
    outputs = attend(q, k, v, "window", window=16, score_mod=PlaceTerm(term.places, tables))
    matrix = written_out(PlaceTerm(term.places, tables))
    expected = attend(q, k, v, "window", window=16, score_mod=lambda s, b, h, i, j: s + matrix[b, h, i, j])
    for values, others in zip(*(torch.autograd.grad(x.square().sum(), tables) for x in (outputs, expected)), strict=True):
        torch.testing.assert_close(values, others, atol=1e-10, rtol=1e-10)


def test_full_attention_is_the_softmax_of_the_sum() -> None:
    term, (q, k, v) = term_of(), inputs()
    expected = (q @ k.mT * WIDTH**-0.5 + written_out(term)).softmax(-1) @ v
    torch.testing.assert_close(attend(q, k, v, mechanism="full", score_mod=term), expected, atol=1e-10, rtol=1e-10)


def test_some_heads_have_their_own_tables() -> None:
    term = term_of()
    index = torch.arange(LENGTH)
    b, h = torch.arange(BATCH)[:, None, None, None], torch.arange(2)[:, None, None]
    score = torch.zeros(BATCH, 2, LENGTH, LENGTH, dtype=torch.float64)
    found = term.of_heads([2, 0])(score, b, h, index[:, None], index)
    assert torch.equal(found, written_out(term)[:, [2, 0]])
