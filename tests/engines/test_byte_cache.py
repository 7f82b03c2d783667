"""What is kept between calls is bounded in bytes, shared by all threads, and changes no result."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, list_mechanisms
from hf_longattn.engines.byte_cache import BYTE_CACHE, ENTRY_BYTES, ByteCache, tensor_bytes
from hf_longattn.engines.call import GatherTile
from hf_longattn.engines.cpu import band
from hf_longattn.mechanisms.common.registry import mechanism_class
from tests.cases import every_case
from tests.shared_code import engine_of_form


def test_the_byte_cache_drops_the_longest_unused_first() -> None:
    kept, made = ByteCache(10 * (1024 + ENTRY_BYTES)), []

    def value(key: int) -> Tensor:
        return kept.get(key, lambda: (made.append(key), torch.full((256,), float(key)))[1])

    for key in (*range(10), 0, 10):
        assert float(value(key)[0]) == key
    assert made == list(range(11))
    assert kept.nbytes <= kept.budget
    value(0)
    assert len(made) == 11  # used again, and so still there
    value(1)
    assert made[-1] == 1


def test_freed_tensors_drop_what_was_made_from_them_during_an_eviction() -> None:
    """Dropping a value may free a tensor from which another value was made."""
    kept = ByteCache(3 * (1024 + ENTRY_BYTES))
    source = torch.zeros(4)
    kept.of([source], ("made of",), lambda: torch.zeros(256), lambda value: value.nbytes)
    kept.get("made of", lambda source=source: source, lambda _: 1024)
    kept.of([source], ("made of",), lambda: torch.zeros(256), lambda value: value.nbytes)  # used after its source
    del source
    for key in range(2):
        kept.get(key, lambda: torch.zeros(256))
    assert (len(kept), kept.nbytes) == (2, 2 * (1024 + ENTRY_BYTES))


def test_the_byte_cache_keeps_nothing_larger_than_its_budget() -> None:
    kept = ByteCache(1000)
    assert kept.get("large", lambda: torch.zeros(1000)).shape == (1000,)
    assert len(kept) == kept.nbytes == 0


def test_the_byte_cache_counts_shared_memory_once_and_whole() -> None:
    x = torch.zeros(100, 10)
    part = GatherTile(x[:, :1], x[:, 1:], bias=torch.ones(5).expand(7, 5))
    assert tensor_bytes({"parts": [part], "again": x}) == x.nbytes + 20
    with torch._subclasses.FakeTensorMode():
        assert tensor_bytes(torch.zeros(3)) is None


def test_a_tensor_cached_in_inference_mode_takes_part_in_gradients() -> None:
    kept = ByteCache()
    with torch.inference_mode():
        weight = kept.get("weight", lambda: torch.ones(3))
    x = torch.ones(3, requires_grad=True)
    assert torch.equal(torch.autograd.grad((x * weight).sum(), x)[0], weight)


@pytest.mark.thorough
def test_twenty_threads_share_the_byte_cache() -> None:
    kept, failures = ByteCache(64 * (4000 + ENTRY_BYTES)), []

    def work(seed: int) -> None:
        for step in range(1000):
            key = (seed * 7 + step * step) % 97
            if not bool((kept.get(key, lambda key=key: torch.full((1000,), float(key))) == key).all()):
                failures.append(key)
            if step % 50 == 0:
                kept.drop(key)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(work, range(20)))
    assert not failures
    assert kept.nbytes == sum(nbytes for _, nbytes in kept._entries.values()) <= kept.budget


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> ByteCache:
    """The store of the process with a budget that a few hundred calls exhaust."""
    BYTE_CACHE.clear()
    monkeypatch.setattr(BYTE_CACHE, "budget", 4 << 20)
    return BYTE_CACHE


@pytest.mark.thorough
@every_case("name", list_mechanisms(grid=False), of=9, code=engine_of_form)
def test_every_mechanism_keeps_its_results_within_the_cache_budget(name: str, small: ByteCache) -> None:
    small.clear()
    cls = mechanism_class(name)
    causal = cls.causal is not False
    built = build_mechanism(name, num_heads=2, head_dim=8, **{"max_length": 600, **cls.about.sample}).eval()
    x = torch.randn(3, 1, 2, 600, 8)
    for length in (300, 301, 500, 600, 300):
        first = attend(*x[..., :length, :], built, causal=causal)
        small.clear()
        torch.testing.assert_close(attend(*x[..., :length, :], built, causal=causal), first, atol=1e-6, rtol=0)
        assert small.nbytes <= small.budget


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is made from now on."""
    made: list[Any] = []
    get = ByteCache.get
    monkeypatch.setattr(
        ByteCache, "get", lambda self, key, make, *size: get(self, key, lambda: (made.append(key), make())[1], *size)
    )
    return made


@pytest.mark.parametrize("window", [8192, 32768])
def test_the_mask_of_a_wide_window_is_made_once(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    BYTE_CACHE.clear()
    made = counted(monkeypatch)
    for _ in range(2):
        for group in band.groups(65536, 65536, 0, window - 1, 0, 64):
            mask = band.block_mask(group, 0, window - 1, 0, 64, torch.float32)
            assert mask is None or mask.shape == (1, 1, group.block, group.width)
    assert len(made) == 1  # that of the inner blocks, of which those at the edges are parts
    assert BYTE_CACHE.nbytes < 40 << 20
