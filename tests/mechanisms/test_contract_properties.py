"""The contract for shapes that nobody chose: any length, padding, number of heads and of queries, over the whole registry."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_longattn import attend, list_mechanisms, reference_attend
from hf_longattn.mechanisms.registry import mechanism_class

FORMS = [(name, causal) for causal in (False, True) for name in list_mechanisms(causal=causal)]


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int, int, tuple[int, int, int]]:
    """kv_len, q_len, key-value heads, heads per key-value head, and padding: left, right, a hole in the middle."""
    kv_len = draw(st.integers(1, 300))
    q_len = draw(st.one_of(st.just(kv_len), st.integers(1, kv_len)))
    left = draw(st.one_of(st.just(0), st.integers(0, kv_len - 1)))
    right = draw(st.one_of(st.just(0), st.integers(0, kv_len - 1 - left)))
    hole = draw(st.one_of(st.just(0), st.integers(0, max(0, (kv_len - left - right) // 3))))
    return kv_len, q_len, draw(st.integers(1, 2)), draw(st.sampled_from([1, 2])), (left, right, hole)


@pytest.mark.parametrize(("name", "causal"), FORMS, ids=lambda value: str(value))
@settings(max_examples=20, deadline=None, derandomize=True)
@given(shapes(), st.integers(0, 1000))
def test_any_shape_equals_the_reference(name: str, causal: bool, shape: tuple[int, int, int, int, tuple[int, int, int]], seed: int) -> None:
    kv_len, q_len, kv_heads, group, (left, right, hole) = shape
    cls = mechanism_class(name)
    q_len = q_len if cls.takes_fewer_queries else kv_len
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(2, kv_heads * group, q_len, 8, generator=generator)
    k, v = torch.randn(2, 2, kv_heads, kv_len, 8, generator=generator)
    mask = torch.ones(2, kv_len, dtype=torch.bool)
    mask[0, :left] = False
    mask[0, kv_len - right :] = False
    middle = (left + kv_len - right) // 2
    mask[0, middle : middle + hole] = False
    mask[0, left] = True  # the first token between the paddings
    arguments = {"causal": causal, "padding_mask": mask, **cls.sample}
    if cls.takes_globals:
        arguments["global_mask"] = torch.rand(2, kv_len, generator=generator) < 0.1
    out, expected = attend(q, k, v, name, **arguments), reference_attend(q, k, v, name, **arguments)
    real = mask[:, None, kv_len - q_len :, None]
    assert out.isfinite().all()
    torch.testing.assert_close(out * real, (expected * real).float(), atol=1e-5, rtol=0)
