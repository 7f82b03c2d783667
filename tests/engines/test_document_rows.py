"""Packed documents as rows of a batch, as a GPU computes them: equal to the definition of each alone, without a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import Mechanism, attend, build_mechanism, list_mechanisms, reference_attend
from hf_longattn.attend import prepare, run_batch
from hf_longattn.engines.common import document_rows
from hf_longattn.engines.common.batch import Batch
from hf_longattn.engines.common.document_rows import DocumentRows, row_widths
from hf_longattn.engines.common.grid import Grid
from hf_longattn.engines.common.paths import observe
from hf_longattn.engines.common.score_terms import DistanceBias
from hf_longattn.engines.cuda import flex
from hf_longattn.mechanisms.common.registry import mechanism_class, mechanism_from
from hf_longattn.mechanisms.routing import Routing
from hf_longattn.positions.relative import RELATIVE
from tests.alike import engine_of_form
from tests.cells import every_cell
from tests.reference.small_models import long_model, tokens

from .eager_flex import by_the_lists

SIZES = ((130, 5, 105), (88, 87, 65))
LENGTH = 240
FORMS = [(name, causal) for causal in (False, True) for name in list_mechanisms(causal=causal, grid=False)]
QUICK = {name: index % 2 == 0 for index, name in enumerate(list_mechanisms(grid=False))}
pytestmark = pytest.mark.usefixtures("cuda_paths")


@pytest.fixture(autouse=True)
def _no_dense_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paths of long inputs, by the lists of blocks that a kernel would visit."""
    monkeypatch.setattr("hf_longattn.engines.common.call.DENSE_CELLS", 0)
    monkeypatch.setattr(flex, "fused_flex", by_the_lists)
    torch.manual_seed(0)


def documents(sizes: tuple[tuple[int, ...], ...] = SIZES) -> Tensor:
    return torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in sizes])


def tensors(batch: int = 2, length: int = LENGTH) -> tuple[Tensor, ...]:
    return tuple(torch.randn(batch, length, heads, 16, dtype=torch.double).transpose(1, 2).requires_grad_() for heads in (4, 2, 2))


def padding() -> Tensor:
    """Holes in a document, and padding after the last."""
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[0, 30:33], mask[1, -8:] = False, False
    return mask


def run(module: Mechanism, arguments: dict[str, Any], inputs: tuple[Tensor, ...], weight: Tensor, per_sequence: bool) -> list[Tensor]:
    """Output, and gradients of the inputs and of every parameter; ``per_sequence``: each document in a call of its own."""
    prepared, call = prepare(*inputs, module, {}, **arguments)
    out = run_batch(prepared, *inputs, call, per_sequence=per_sequence)
    leaves = (*inputs, *module.parameters())
    gradients = torch.autograd.grad((out * weight).sum(), leaves, allow_unused=True, retain_graph=True)
    return [out * (weight != 0), *(torch.zeros_like(x) if one is None else one for x, one in zip(leaves, gradients, strict=True))]


def assert_equal_to_each_alone(module: Mechanism, inputs: tuple[Tensor, ...], **arguments: Any) -> list[str]:
    """Compares with a call for each document, and returns the paths."""
    mask = arguments.get("padding_mask")
    weight = torch.randn_like(inputs[0]) * (1 if mask is None else mask[:, None, :, None])
    paths: list[str] = []
    with observe(lambda _, choice: paths.append(choice.path)):
        found = run(module, arguments, inputs, weight, per_sequence=False)
    for one, other in zip(found, run(module, arguments, inputs, weight, per_sequence=True), strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)
    return paths


def of_forms() -> list[Any]:
    """Every mechanism in one of its forms, in turn; in both for `make test-slow`."""
    both = {name for name, causal in FORMS if (name, not causal) in FORMS}
    return [pytest.param(name, causal, marks=pytest.mark.slow if name in both and causal == QUICK[name] else ()) for name, causal in FORMS]


@every_cell(("name", "causal"), of_forms(), of=9, alike=engine_of_form)
def test_documents_are_one_call_and_equal_the_definition(name: str, causal: bool) -> None:
    """Two rows with padding in a document and after the last, grouped heads, global tokens, hidden states and a score term; gradients."""
    module = mechanism_from(name, mechanism_class(name).sample, num_heads=4, head_dim=16, max_length=LENGTH).double().eval()
    inputs, mask = tensors(), padding()
    arguments: dict[str, Any] = {"causal": causal, "documents": documents(), "padding_mask": mask}
    if module.traits.takes_globals:
        arguments["global_mask"] = torch.rand(2, LENGTH) < 0.05
    if module.traits.takes_hidden_states:
        arguments["hidden_states"] = torch.randn(2, LENGTH, 64, dtype=torch.double)
    if module.traits.takes_score_mod:
        arguments["score_mod"] = lambda score, b, h, i, j: score - 0.01 * (h + b + (i - j) * (i + 1) / 30)
    calls: list[int] = []
    module.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    paths: list[str] = []
    with observe(lambda _, choice: paths.append(choice.path)):
        out = attend(*inputs, module, **arguments)
    assert paths[0] in ("packed", "stacked")
    if name != "bigbird" or causal:  # whose random blocks depend on the number of blocks
        assert calls == [2 if paths[0] == "packed" else 6]
    expected, real = reference_attend(*inputs, module, **arguments), mask[:, None, :, None]
    torch.testing.assert_close(out * real, expected * real, atol=1e-9, rtol=0)
    assert paths[0] == "packed" or not out[1, :, -8:].any(), "padding in no document"
    weight = torch.randn_like(out) * real
    for one, other in zip(*(torch.autograd.grad((x * weight).sum(), inputs) for x in (out, expected)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


@every_cell("name", list_mechanisms(grid=True))
def test_documents_on_one_grid_share_a_call(name: str) -> None:
    grids = [Grid((5, 6)), Grid((7, 9), 1), Grid((5, 6)), Grid((7, 9), 1)]
    labels = documents((tuple(grid.length for grid in grids),))
    module = build_mechanism(name, num_heads=4, head_dim=16, **mechanism_class(name).sample).double().eval()
    calls: list[int] = []
    module.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    assert assert_equal_to_each_alone(module, tensors(1, labels.shape[1]), documents=labels, grid=grids)[0] == "stacked"
    assert calls == [2, 2, 1, 1, 1, 1]


VARIANTS: dict[str, dict[str, Any]] = {
    "random blocks": {"mechanism": "bigbird", "block_size": 8, "num_random_blocks": 2, "num_window_blocks": 3},
    "a memory without gradients": {"mechanism": "transformer_xl", "segment_length": 40, "memory_length": 60},
    "sinks": {"mechanism": "window", "window": 16, "num_sinks": 3},
    **{kind: {"mechanism": "top_k", "num_keys": 8, "relative": kind} for kind in RELATIVE},
    "far distances": {"mechanism": "longformer", "window": 16, "relative": "shaw:clip=8"},
}
"""Options besides the mechanisms' samples."""


@every_cell(("name", "calls"), [(name, 1 + 2 * (number % 2)) for number, name in enumerate(VARIANTS)])
def test_other_options_too_in_one_call_or_several(name: str, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_rows, "TOKENS_PER_CALL", 1 if calls > 1 else LENGTH * 6)
    options = {**VARIANTS[name]}
    module = mechanism_from(options.pop("mechanism"), options, num_heads=4, head_dim=16, max_length=LENGTH).double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    paths = assert_equal_to_each_alone(module, tensors(), causal=name != "random blocks", documents=documents(), padding_mask=padding())
    assert "stacked" in paths


def test_documents_that_a_pattern_covers_are_full_attention_in_one_call(emulated_flash: list[dict[str, Any]]) -> None:
    module = build_mechanism("segmented", num_heads=2, head_dim=16, block_size=90)
    q, k, v = (torch.randn(1, 2, 240, 16, dtype=torch.double) for _ in range(3))
    labels = documents(((80, 70, 90),))
    assert module.covers(90, True)
    out = attend(q, k, v, module, causal=True, documents=labels)
    torch.testing.assert_close(out, reference_attend(q, k, v, module, causal=True, documents=labels), atol=1e-9, rtol=0)
    assert len(emulated_flash) <= 2, "the last may be the trial of the operator"


@every_cell("term", ["distance", "distance and query"])
def test_score_terms_of_a_batch_move_with_its_documents(term: str) -> None:
    terms: dict[str, Any] = {"distance": DistanceBias(torch.randn(4, 61, dtype=torch.double), 30)}
    inputs = tensors()
    if term == "distance and query":
        terms[term] = terms["distance"].by_distance(inputs[0].detach(), inputs[1].detach())
    module = build_mechanism("top_k", num_heads=4, head_dim=16, num_keys=8)
    assert "stacked" in assert_equal_to_each_alone(module, inputs, documents=documents(), score_mod=terms[term])


def test_dropout_reaches_every_document() -> None:
    q, k, v = tensors()
    arguments = {"documents": documents(), "window": 16, "score_mod": lambda score, b, h, i, j: score}
    assert not attend(q, k, v, "window", dropout_p=1.0, **arguments).any()
    dropped, whole = (attend(q, k, torch.ones_like(v), "window", dropout_p=p, **arguments) for p in (0.5, 0.0))
    assert abs((dropped - whole).mean().item()) < 0.05
    assert dropped.std() > 0.05


@pytest.mark.thorough
def test_centroids_move_once_for_all_documents() -> None:
    inputs = tensors()
    module = build_mechanism("routing", num_heads=4, head_dim=16, num_clusters=4, window_per_cluster=16, decay=0.5).double().train()
    assert isinstance(module, Routing)
    before = module.centroids.clone()
    _, call = prepare(*inputs, module, {}, documents=documents(), padding_mask=padding())
    run_batch(module, *inputs, call).sum().backward()
    found = module.centroids.clone()
    module.centroids.copy_(before)
    rows = DocumentRows.of(call.batch, (2, LENGTH), (tuple(range(6)),), torch.device("cpu"))  # type: ignore[arg-type]
    stacked = [rows.rows(x, 2)[0] for x in inputs]
    attend(*stacked, module, padding_mask=rows.calls[0].batch.mask).sum().backward()  # type: ignore[union-attr]
    assert not torch.equal(found, before)
    torch.testing.assert_close(found, module.centroids)


@pytest.mark.parametrize(("arguments", "why"), [
    ({"blocks_over": "input"}, "padding changes the output"),
    ({"queries": 100}, "there are fewer queries than keys"),
])  # fmt: skip
def test_a_call_for_each_where_padding_counts_or_queries_are_few(arguments: dict[str, Any], why: str) -> None:
    (q, k, v), count = tensors(), arguments.pop("queries", LENGTH)
    module = build_mechanism("bigbird", num_heads=4, head_dim=16, **{**mechanism_class("bigbird").sample, **arguments})
    choices: list[Any] = []
    with observe(lambda _, choice: choices.append(choice)), torch.no_grad():
        out = attend(q[:, :, -count:], k, v, module, documents=documents())
        expected = reference_attend(q[:, :, -count:], k, v, module, documents=documents())
    assert choices[0].path == "split"
    assert why in dict(choices[0].refused)["stacked"]
    torch.testing.assert_close(out, expected, atol=1e-9, rtol=0)


def test_layers_of_a_model_share_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    of = DocumentRows.of.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(DocumentRows, "of", classmethod(lambda cls, *arguments: made.append(1) or of(cls, *arguments)))
    attention = {"mechanism": "longformer", "window": 16, "global_tokens": [0]}
    model = long_model("bert", None, attention, num_hidden_layers=3).double().eval()
    ids, sizes = tokens(1, LENGTH), SIZES[:1]
    with torch.inference_mode():
        found = model(ids, documents=documents(sizes))[0]
        expected = torch.cat([model(one)[0] for one in ids.split(sizes[0], 1)], 1)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    assert made == [1]


@every_cell(("lengths", "widths"), [
    ([512] * 8, (512,)),
    ([448, 128, 1056, 320, 640, 224, 768, 512], (1056,)),
    ([100] * 500 + [9000], (100, 9000)),
    ([100] * 500 + [1000] * 50 + [9000] * 5, (100, 1000, 9000)),
    ([10] * 500 + [100] * 500 + [1000] * 50 + [9000] * 5, (100, 1000, 9000)),
    ([7], (7,)),
])  # fmt: skip
def test_a_call_more_is_made_where_it_saves_much_padding(lengths: list[int], widths: tuple[int, ...]) -> None:
    assert row_widths(lengths) == widths
    assert row_widths(lengths, 1) == (max(lengths),)


def test_many_lengths_leave_little_padding() -> None:
    lengths = torch.randint(50, 5000, (400,)).tolist()
    widths = row_widths(lengths)
    slots = sum(min(width for width in widths if width >= length) for length in lengths)
    assert len(widths) == document_rows.MOST_CALLS
    assert sum(lengths) > 0.75 * slots


def test_rows_hold_the_documents() -> None:
    x = torch.arange(2 * LENGTH).view(2, LENGTH)
    rows = DocumentRows.of(Batch(padding(), documents()), (2, LENGTH), ((0, 1, 2), (3, 4, 5)), torch.device("cpu"))
    first, second = rows.rows(x, 1)
    assert (first.shape, second.shape) == ((3, 130), (3, 88))
    assert first[1, :7].tolist() == [130, 131, 132, 133, 134, 134, 134], "padding repeats the last token"
    assert [call.batch.mask.sum(1).tolist() for call in rows.calls] == [[127, 5, 105], [88, 87, 57]]  # type: ignore[union-attr]
    again = rows.packed([part[:, None, :, None] for part in (first, second)])[:, 0, :, 0]
    assert torch.equal(again[0], x[0])
    assert torch.equal(again[1], x[1].where(torch.arange(LENGTH) < LENGTH - 8, 0))
