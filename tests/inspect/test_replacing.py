"""Sets of replaced tokens: what they find in a layer whose attention has a planted fault, and that exhaustive ones test every pair."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

import hf_longattn.families as families
from hf_longattn.inspect import audit_reach
from hf_longattn.inspect.declared import LayerReach, Reach, StackReach
from hf_longattn.inspect.replacing import CONFIRMATIONS, MAX_RUN_SETS, Settings, Stage, measure, measure_embedding, replacements
from hf_longattn.inspect.verdict import of_stage
from tests.cells import every_cell
from tests.grids import alternately, quickly
from tests.reference.small_models import long_config

LENGTH = 160


class Layer:
    """A layer that is its matrix of dependence, ``(N, N)`` bool."""

    stages: ClassVar = ["layer 0"]
    noise: ClassVar = [0.0]
    rounding: ClassVar = [0.0]

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix | torch.eye(len(matrix), dtype=torch.bool)

    def of(self, sets: Sequence[Tensor | None]) -> list[Tensor]:
        (tokens,) = sets
        assert tokens is not None
        return [self.matrix[:, tokens].any(-1).float()]

    def dependence(self, rows: Mapping[int, Sequence[int]]) -> dict[int, Tensor]:
        return {number: self.matrix[list(chosen)] for number, chosen in rows.items()}


def reach(back: int, ahead: int, *, causal: bool = False, hubs: Sequence[int] = (), length: int = LENGTH) -> LayerReach:
    """A band with global tokens."""
    chosen = torch.zeros(length, dtype=torch.bool).index_fill(0, torch.tensor(list(hubs), dtype=torch.long), True)

    def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (q_idx - kv_idx <= back) & (kv_idx - q_idx <= ahead) | chosen[q_idx] | chosen[kv_idx]

    return LayerReach("band", length, True, causal, back, ahead, chosen, mask)


def matrix(declared: LayerReach) -> Tensor:
    everything = torch.arange(declared.length)
    return declared.pairs(everything, everything) | torch.eye(declared.length, dtype=torch.bool)


REACHES: dict[str, LayerReach] = {
    "causal window of 32": reach(31, 0, causal=True),
    "window": reach(8, 8),
    "lopsided": reach(3, 20),
    "window and global tokens": reach(8, 8, hubs=(0, 77)),
    "causal window and global tokens": reach(8, 0, causal=True, hubs=(0, 77)),
    "causal": reach(LENGTH, 0, causal=True),
    "full": reach(LENGTH, LENGTH),
    "itself": reach(0, 0),
    "nearly full": reach(100, 100),
    "short": reach(2, 1, length=8),
}


@every_cell(("name", "exhaustive"), alternately([*REACHES]))
def test_a_layer_as_declared_agrees(name: str, exhaustive: bool) -> None:
    declared = REACHES[name]
    measured = measure(Layer(matrix(declared)), [declared], Settings(exhaustive=exhaustive))
    (stage,) = measured.stages
    assert not stage.leaks
    assert not stage.missing
    assert stage.declared == stage.measured
    assert stage.tested is not None
    assert 0.7 < stage.tested <= 1
    assert measured.runs <= (measured.exhaustive_runs if exhaustive else 2 + MAX_RUN_SETS + 5)


@pytest.mark.thorough
@every_cell("name", REACHES, of=2)
def test_exhaustive_sets_test_every_pair(name: str) -> None:
    """Every pair kept apart is in a set none of whose tokens may reach the output, and every other pair is required alone."""
    declared = REACHES[name]
    kept_apart = ~matrix(declared)
    required = matrix(declared).clone()
    runs = 2
    for replacement in replacements(declared, Settings(exhaustive=True)):
        runs += 1
        kept_apart &= ~((~replacement.allowed)[:, None] & replacement.tokens)
        if replacement.isolated and not (replacement.tokens.sum() > 1 and declared.hubs.any()):
            assert int((matrix(declared) & replacement.tokens).sum(-1).max()) <= 1
        required &= ~(replacement.required[:, None] & replacement.tokens)
    assert not kept_apart.any()
    assert not required.any()
    assert runs <= measure(Layer(matrix(declared)), [declared], Settings()).exhaustive_runs


@pytest.mark.thorough
@every_cell("name", REACHES, of=2)
def test_the_share_that_was_tested_is_counted_right(name: str) -> None:
    declared = REACHES[name]
    tested = torch.zeros_like(matrix(declared))
    for replacement in replacements(declared, Settings()):
        tested |= (~replacement.allowed)[:, None] & replacement.tokens
    apart = ~matrix(declared)
    (stage,) = measure(Layer(matrix(declared)), [declared], Settings()).stages
    assert stage.tested == pytest.approx(1.0 if not apart.any() else float(tested.sum() / apart.sum()))
    assert declared.apart == int(apart.sum())


@every_cell("keys", [1, 16, 24, 28, 30, 31, 33, 40, 64])
def test_a_window_of_another_width_is_found(keys: int) -> None:
    """Also if it is one key too narrow or too wide."""
    declared, runs = reach(31, 0, causal=True), reach(keys - 1, 0, causal=True)
    (stage,) = measure(Layer(matrix(runs)), [declared], Settings()).stages
    assert stage.measured == (keys - 1, 0)
    assert bool(stage.leaks) == (keys > 32)
    assert {row - token for row, token in stage.missing} == set(range(keys, 32))


@every_cell("exhaustive", [False, True])
@every_cell(("row", "token"), [(159, 0), (97, 5), (0, 159), (3, 80), (150, 40)])
def test_a_leak_of_one_token_into_one_output_is_found(row: int, token: int, exhaustive: bool) -> None:
    leaking = matrix(reach(31, 0, causal=True))
    leaking[row, token] = True
    (stage,) = measure(Layer(leaking), [reach(31, 0, causal=True)], Settings(exhaustive=exhaustive)).stages
    assert (stage.leak, stage.sources.nonzero().tolist()) == (row, [[token]])
    assert not stage.missing


def test_an_exhaustive_audit_finds_any_single_leak_and_any_single_gap() -> None:
    declared = reach(3, 1, length=12)
    for row in range(12):
        for token in range(12):
            if row == token:
                continue
            changed = matrix(declared)
            changed[row, token] ^= True
            (stage,) = measure(Layer(changed), [declared], Settings(exhaustive=True)).stages
            if changed[row, token]:
                assert (stage.leak, int(stage.sources.nonzero())) == (row, token)
            else:
                assert stage.missing == [(row, token)]


def test_dependence_that_is_too_weak_to_be_seen_is_no_gap() -> None:
    """A far key may weigh so little that no bit changes; its gradient is not 0."""
    declared = reach(31, 0, causal=True)

    class Weak(Layer):
        def dependence(self, rows: Mapping[int, Sequence[int]]) -> dict[int, Tensor]:
            return {number: matrix(declared)[list(chosen)] for number, chosen in rows.items()}

    (stage,) = measure(Weak(matrix(reach(20, 0, causal=True))), [declared], Settings()).stages
    assert not stage.missing
    assert stage.measured == (20, 0)


def test_noise_hides_weak_changes_and_is_no_gap() -> None:
    """Where two equal runs differ, a far token whose effect is smaller than the noise is not missed; one that is seen too far is found."""

    class Noisy(Layer):
        noise: ClassVar = [0.1]

        def dependence(self, rows: Mapping[int, Sequence[int]]) -> dict[int, Tensor]:
            return {}

    declared = reach(31, 0, causal=True)
    (narrow,) = measure(Noisy(matrix(reach(20, 0, causal=True))), [declared], Settings()).stages
    assert not narrow.missing
    (wide,) = measure(Noisy(matrix(reach(40, 0, causal=True))), [declared], Settings()).stages
    assert wide.leaks


class Scaled(Layer):
    """A layer whose outputs all change a little with any token, and now and then one of them by more, as those of int8 graphs do."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(matrix)
        self.generator = torch.Generator().manual_seed(0)

    def of(self, sets: Sequence[Tensor | None]) -> list[Tensor]:
        (changes,) = super().of(sets)
        changes[torch.randint(len(changes), (3,), generator=self.generator)] += 0.2
        return [changes + 0.01]


def test_with_a_tolerance_a_change_out_of_reach_is_confirmed_before_it_counts() -> None:
    declared, settings = REACHES["causal window of 32"], Settings(tolerance=0.05)
    measured = measure(Scaled(matrix(declared)), [declared], settings)
    (stage,) = measured.stages
    assert not stage.leaks
    assert measured.runs <= 2 + (1 + CONFIRMATIONS) * (MAX_RUN_SETS + 5)
    (stage,) = measure(Scaled(matrix(reach(40, 0, causal=True))), [declared], settings).stages
    assert stage.leaks


def test_tokens_that_change_an_output_only_together_are_named_together() -> None:
    """No token is named that does not change the output when it alone is replaced."""

    class Together(Layer):
        def of(self, sets: Sequence[Tensor | None]) -> list[Tensor]:
            (tokens,) = sets
            assert tokens is not None
            changes = super().of(sets)[0]
            changes[LENGTH - 1] += float(tokens[:16].sum() > 4)
            return [changes]

    declared = REACHES["causal window of 32"]
    (stage,) = measure(Together(matrix(declared)), [declared], Settings()).stages
    assert re.match(r"\d+ tokens from 0 to \d+ together change the output at 159, which the config keeps apart", of_stage(stage).problem)


def test_what_a_reach_says_takes_memory_that_does_not_grow_with_the_square_of_the_length() -> None:
    from hf_longattn.inspect.declared import PAIRS_IN_MEMORY
    from tests.engines.test_plain_graph import Largest

    declared = reach(60, 60, hubs=(0,), length=8192)
    with Largest() as largest:
        declared.influence(torch.arange(8192) % 500 == 3)
        assert declared.apart == 8192**2 - int(sum(min(8191, i + 60) - max(0, i - 60) + 1 + (i > 60) for i in range(1, 8192))) - 8192
    assert largest.elements <= PAIRS_IN_MEMORY < 8192**2 / 10


def test_the_output_must_change_only_where_a_token_counts() -> None:
    """Through many layers, what is at the edge of the reach counts next to nothing."""
    layers: Reach = StackReach([reach(8, 8)] * 6)
    (first, *_) = replacements(layers, Settings(layers=False))
    assert int(first.allowed.sum()) > int(first.required.sum()) > 10


def test_an_embedding_tells_where_its_text_is_cut() -> None:
    class Cut(Layer):
        def of(self, sets: Sequence[Tensor | None]) -> list[Tensor]:
            (tokens,) = sets
            assert tokens is not None
            return [tokens[:100].any()[None].float()]

    declared = StackReach([reach(LENGTH, LENGTH, length=LENGTH + 2)])
    embedding = measure_embedding(Cut(torch.ones(1, 1).bool()), declared, None, 1, LENGTH, Settings(layers=False))
    assert {99, 100, 159} <= set(embedding.probes)
    assert embedding.changed.tolist() == [probe < 100 for probe in embedding.probes]
    assert embedding.allowed.all()
    every = measure_embedding(Cut(torch.ones(1, 1).bool()), declared, None, 1, LENGTH, Settings(layers=False, exhaustive=True))
    assert every.probes == tuple(range(LENGTH))


# ---- the same in models


@pytest.fixture(scope="module")
def decoder() -> PreTrainedModel:
    return model(window=32)


def model(window: int) -> Any:
    torch.manual_seed(0)
    return families.LongGPT2Model(long_config("gpt2", {"mechanism": "window", "window": window}, max_position_embeddings=256))


@pytest.mark.thorough
@pytest.mark.parametrize("keys", quickly([24, 31, 33], [31, 33]))
def test_a_model_with_a_window_of_another_width_is_found(keys: int, decoder: PreTrainedModel) -> None:
    other = model(window=keys)
    other.config.long_attention = decoder.config.long_attention
    audit = audit_reach(other, length=LENGTH)
    for layer in audit.stages[:-1]:
        assert (layer.declared, layer.measured) == ((31, 0), (keys - 1, 0))
        assert layer.unreached == (((keys, 31),) if keys < 32 else ())
        assert bool(layer.beyond) == (keys == 33)
    assert not audit.agrees
    assert audit_reach(decoder, length=LENGTH).agrees


Attention = Callable[..., tuple[Tensor, Any]]


def leaking(attend: Attention, rows: Sequence[int], tokens: Sequence[int]) -> Attention:
    """Attention whose outputs ``rows`` also see ``tokens`` a little."""

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        out, weights = attend(module, query, key, value, *args, **kwargs)
        out = out.clone()
        if module.layer_idx == 1:
            out[:, list(rows)] += 1e-3 * value[:, :, list(tokens)].sum(2)[:, None]
        return out, weights

    return attention


@pytest.mark.thorough
@every_cell(
    ("rows_and_tokens", "exhaustive"), alternately([([97], [5]), ([97], [150]), (range(LENGTH), [44]), ([90], range(LENGTH))]), of=2
)
def test_a_leak_at_a_single_position_is_found(
    rows_and_tokens: tuple[Sequence[int], Sequence[int]], exhaustive: bool, decoder: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, tokens = rows_and_tokens
    registered = AttentionInterface._global_mapping  # one table for the process
    monkeypatch.setitem(registered, "longattn", leaking(registered["longattn"], rows, tokens))
    audit = audit_reach(decoder, length=LENGTH, exhaustive=exhaustive)
    assert [bool(layer.problem) for layer in audit.stages[:2]] == [False, True], "in the second layer"
    problem = audit.stages[1].problem
    if len(tokens) == 1:
        assert problem.startswith(f"token {tokens[0]} changes the output at ")
    if len(rows) == 1:
        assert f"changes the output at {rows[0]}, which the config keeps apart" in problem


@pytest.mark.thorough
def test_the_cost_is_stated(decoder: PreTrainedModel) -> None:
    audit = audit_reach(decoder, length=LENGTH)
    assert audit.runs < 35
    assert audit.seconds > 0
    assert 0.9 < audit.tested < 1
    complete = audit_reach(decoder, length=LENGTH, exhaustive=True)
    assert audit.runs < complete.runs <= audit.exhaustive_runs == complete.exhaustive_runs
    assert complete.tested == 1
    assert complete.exhaustive
    values = complete.to_dict()
    assert values["runs"] == complete.runs
    assert values["stages"][0]["tested"] == 1


def test_stages_keep_images_of_the_first_runs() -> None:
    declared = REACHES["window"]
    stage = Stage("layer 0", declared, 0.0, 0.0)
    for replacement in replacements(declared, Settings()):
        stage.record(replacement, replacement.allowed)
    assert len(stage.panels) == 3
    assert all(torch.equal(changed, allowed) for changed, allowed in stage.panels)
