"""Tensors that have shapes and no values: on the meta device, and in PyTorch's FakeTensorMode."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from hf_longattn import attend, list_mechanisms, mechanism_info
from hf_longattn.engines.byte_cache import BYTE_CACHE
from hf_longattn.engines.token_grid import Grid
from hf_longattn.mechanisms.common.registry import has_tensors, mechanism_class, mechanism_from
from tests.cases import every_case
from tests.reference.small_models import long_model, plain_model

FORMS = [(name, causal) for causal in (False, True) for name in list_mechanisms(causal=causal)]
GRID = Grid((26, 10))
LENGTH = 260
PLACES = ("meta", "fake")


@contextlib.contextmanager
def without_values(place: str) -> Any:
    """Context in which new tensors have no values."""
    with FakeTensorMode() if place == "fake" else torch.device("meta"):
        yield


def restrictions(name: str) -> dict[str, dict[str, Tensor]]:
    """Arguments of ``attend`` for each kind of call."""
    ones = torch.ones(2, LENGTH, dtype=torch.bool)
    kinds: dict[str, dict[str, Tensor]] = {"plain": {}, "padding": {"padding_mask": ones}}
    if name not in list_mechanisms(grid=True):
        kinds["packed"] = {"documents": torch.zeros(2, LENGTH, dtype=torch.long)}
    if mechanism_info(name).takes_globals:
        kinds["globals"] = {"global_mask": ones}
    return kinds


@every_case("place", PLACES)
@every_case(("name", "causal"), FORMS)
def test_every_mechanism_gives_shapes_forward_and_backward(name: str, causal: bool, place: str) -> None:
    where = {"grid": GRID} if name in list_mechanisms(grid=True) else {}
    options = mechanism_class(name).about.sample
    with without_values(place):
        module = mechanism_from(name, options, num_heads=2, head_dim=8, max_length=LENGTH)
        for kind, arguments in restrictions(name).items():
            q, k, v = (torch.randn(2, 2, LENGTH, 8, requires_grad=True) for _ in range(3))
            out = attend(q, k, v, module, causal=causal, **where, **arguments)
            assert out.shape == q.shape, kind
            out.sum().backward()
            assert q.grad is not None
            assert q.grad.shape == q.shape
        with torch.no_grad():
            for dtype in (torch.float32, torch.bfloat16):
                q, k, v = (torch.randn(2, 2, LENGTH, 8, dtype=dtype) for _ in range(3))
                if dtype == torch.float32 or not has_tensors(module):
                    assert attend(q, k, v, module, causal=causal, **where).dtype == dtype


def test_nothing_without_values_stays_in_the_cache() -> None:
    q = torch.randn(1, 2, LENGTH, 8)
    BYTE_CACHE.clear()
    for place in PLACES:
        with without_values(place):
            fake = torch.randn(1, 2, LENGTH, 8)
            attend(fake, fake, fake, "window", window=8)
    first = attend(q, q, q, "window", window=8)
    with without_values("fake"):
        fake = torch.randn(1, 2, LENGTH, 8)
        assert attend(fake, fake, fake, "window", window=8).shape == first.shape
    assert torch.equal(attend(q, q, q, "window", window=8), first)


WINDOW = {"mechanism": "window", "window": 8}
MODELS: dict[str, Callable[[], Any]] = {
    "bert": lambda: plain_model("bert"),
    "modernbert": lambda: plain_model("modernbert"),
    "mistral": lambda: plain_model("mistral", sliding_window=8),
    "llama": lambda: plain_model("llama"),
    "long bert": lambda: long_model("bert", None, WINDOW),
    "long bert with blocks": lambda: long_model("bert", None, {"mechanism": "bigbird", "block_size": 8}),
    "longformer": lambda: long_model("bert", None, {"mechanism": "longformer", "window": 8}),
    "long llama": lambda: long_model("llama", None, WINDOW),
    "long llama with a state": lambda: long_model("llama", None, {"mechanism": "linear"}),
}


WITHOUT_FAKE_PARAMETERS = ("modernbert",)
"""transformers reads values where it builds these."""


@every_case(
    ("name", "place"), [(n, p) for n in MODELS for p in PLACES if p == "meta" or n not in WITHOUT_FAKE_PARAMETERS]
)
def test_whole_models_give_shapes_for_every_kind_of_call(name: str, place: str) -> None:
    with without_values(place):
        model = MODELS[name]()
        if "long" not in name:
            model.set_attn_implementation("longattn")
        ids = torch.ones(2, LENGTH, dtype=torch.long)
        mask = torch.ones(2, LENGTH, dtype=torch.long)
        for mode in (model.train, model.eval):
            for arguments in ({}, {"attention_mask": mask}):
                states = mode()(ids, **arguments).last_hidden_state
                assert states.shape[:2] == (2, LENGTH)
                states.sum().backward()
        if place == "fake":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert model(ids, attention_mask=mask).last_hidden_state.shape[:2] == (2, LENGTH)
        if "llama" not in name and name != "mistral":
            return
        cache = DynamicCache(config=model.config) if "long" not in name else None
        step = model(ids, attention_mask=mask, past_key_values=cache, use_cache=True)
        longer = torch.ones(2, LENGTH + 1, dtype=torch.long)
        step = model(ids[:, :1], attention_mask=longer, past_key_values=step.past_key_values, use_cache=True)
        assert step.last_hidden_state.shape[:2] == (2, 1)
        if place == "meta":
            return  # transformers itself reads positions, with any attention
        positions = torch.arange(LENGTH).expand(2, -1) % 90
        assert model(ids, position_ids=positions, use_cache=False).last_hidden_state.shape[:2] == (2, LENGTH)


def test_operations_of_a_window_are_counted_on_the_meta_device() -> None:
    """The count follows the band, not all pairs. On a CPU, operators hide theirs."""
    counts = []
    for name, options in (("full", {}), ("window", {"window": 16})):
        with without_values("meta"):
            q = torch.randn(1, 2, 4096, 8)
            with FlopCounterMode(display=False) as counter:
                attend(q, q, q, name, **options)
        counts.append(counter.get_total_flops())
    assert 0 < counts[1] < counts[0] / 8
