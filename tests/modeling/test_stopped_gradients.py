"""Where `transformer_xl` stops gradients in a model: at the hidden states of the memory, whose keys and values train their projections."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from hf_longattn.errors import BackendError
from hf_longattn.modeling.attach.attention_sites import attention_sites
from tests.cases import every_case
from tests.reference.small_models import BASES, base_class, in_float64, long_like, plain_model, tokens
from tests.shared_code import kind_of_family

SIZE, MEMORY, LENGTH = 24, 16, 72
XL = {"mechanism": "transformer_xl", "segment_length": SIZE, "memory_length": MEMORY}


def model(base: str, head: str | None = None, **options: Any) -> Any:
    return in_float64(long_like(plain_model(base, head), base, {**XL, **options}))


def gradients(module: Any, inputs: dict[str, Tensor], rows: slice, of: list[Tensor], **given: Any) -> tuple[Tensor | None, ...]:
    out = module(**inputs, **given)[0][:, rows]
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    return torch.autograd.grad((out * weight).sum(), of, allow_unused=True)


def projections(module: Any) -> list[Tensor]:
    """The parameters of the last attention that has the mechanism; none where other layers share them."""
    last = [site for site in attention_sites(module) if site.mechanism.name == "transformer_xl"][-1]
    return [] if last.shared else list(last.module.parameters())


def embedded(module: Any) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    width = module.get_input_embeddings().weight.shape[1]
    return torch.randn(2, LENGTH, width, generator=generator, dtype=torch.float64).requires_grad_()


@every_case(
    "base",
    [base for base in BASES if "inputs_embeds" in inspect.signature(base_class(base).forward).parameters],
    of=9,
    code=kind_of_family,
)
def test_gradients_of_a_memory_stop_at_hidden_states_and_reach_projections(base: str) -> None:
    """What feeds the last layer does not matter to its own projections, so they must learn as if nothing were stopped."""
    found = {}
    for name, options in (("paper", {}), ("crossing", {"bptt": True}), ("keys_values", {"stop_gradient": "keys_values"})):
        long, rows = model(base, **options), slice(LENGTH - SIZE, LENGTH)
        embeddings = embedded(long)
        found[name] = gradients(long, {"inputs_embeds": embeddings}, rows, [embeddings, *projections(long)])
    own, crossing, keys_values = found["paper"], found["crossing"], found["keys_values"]
    assert own[0] is not None
    if all(site.mechanism.name == "transformer_xl" for site in attention_sites(long)):  # ModernBERT keeps its windows
        assert (own[0][:, : LENGTH - SIZE] == 0).all(), "gradients reach the own segment alone"
    assert (own[0][:, LENGTH - SIZE :] != 0).any()
    for mine, theirs in zip(own[1:], crossing[1:], strict=True):
        if mine is not None:
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)  # some norms compute in float32
    pairs = [(a, b) for a, b in zip(own[1:], keys_values[1:], strict=True) if a is not None]
    assert not pairs or any(b is None or not torch.allclose(a, b, rtol=1e-3) for a, b in pairs), (
        "keys and values that are constants teach nothing"
    )


def of_segments(attention: Any, hidden: Tensor, keys_and_values: Any, queries: Any) -> Tensor:
    """Transformer-XL as the paper writes it: for every segment, keys and values of [SG(memory) ∘ segment]."""
    outs = []
    for first in range(0, hidden.shape[1], SIZE):
        start, stop = max(0, first - MEMORY), min(first + SIZE, hidden.shape[1])
        states = torch.cat([hidden[:, start:first].detach(), hidden[:, first:stop]], 1)
        q, (k, v) = queries(hidden[:, first:stop], slice(first, stop)), keys_and_values(states, slice(start, stop))
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        scores = q @ k.mT * q.shape[-1] ** -0.5
        if attention.is_causal:
            ahead = torch.arange(start, stop) > torch.arange(first, stop)[:, None]
            scores = scores.masked_fill(ahead, float("-inf"))
        outs.append((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    return torch.cat(outs, 1)


def heads_of(x: Tensor, width: int) -> Tensor:
    return x.unflatten(-1, (-1, width)).transpose(1, 2)


def by_the_paper(plain: Any, base: str) -> Any:
    """A copy of the plain model whose attention is :func:`of_segments`."""
    plain = copy.deepcopy(plain).double()

    def bert(attention: Any, hidden: Tensor, **_: Any) -> tuple[Tensor, None]:
        width = attention.attention_head_size
        key_value = lambda h, at: [heads_of(p(h), width) for p in (attention.key, attention.value)]  # noqa: E731
        return of_segments(attention, hidden, key_value, lambda h, at: heads_of(attention.query(h), width)), None

    def gpt2(attention: Any, hidden: Tensor, **_: Any) -> tuple[Tensor, None]:
        parts = lambda h: [heads_of(x, attention.head_dim) for x in attention.c_attn(h.contiguous()).chunk(3, -1)]  # noqa: E731
        out = of_segments(attention, hidden, lambda h, at: parts(h)[1:], lambda h, at: parts(h)[0])
        return attention.c_proj(out), None

    def llama(attention: Any, hidden_states: Tensor, position_embeddings: Any, **_: Any) -> tuple[Tensor, None]:
        def rotated(x: Tensor, at: slice) -> Tensor:
            return apply_rotary_pos_emb(x, x, *(table[:, at] for table in position_embeddings))[0]

        def key_value(h: Tensor, at: slice) -> list[Tensor]:
            k, v = (heads_of(p(h), attention.head_dim) for p in (attention.k_proj, attention.v_proj))
            return [rotated(k, at), v]

        queries = lambda h, at: rotated(heads_of(attention.q_proj(h), attention.head_dim), at)  # noqa: E731
        return attention.o_proj(of_segments(attention, hidden_states, key_value, queries)), None

    forward = {"bert": bert, "gpt2": gpt2, "llama": llama}[base]
    for site in attention_sites(plain):
        site.module.forward = forward.__get__(site.module)
    return plain


@pytest.mark.parametrize("base", ["bert", "gpt2", "llama"])
def test_transformer_xl_models_have_the_gradients_of_the_paper(base: str) -> None:
    plain = plain_model(base)
    long, explicit = long_like(plain, base, XL).double(), by_the_paper(plain, base)
    ids, rows = {"input_ids": tokens(2, LENGTH)}, slice(0, LENGTH)
    torch.testing.assert_close(long(**ids)[0], explicit(**ids)[0], atol=1e-9, rtol=1e-7)
    own, theirs = dict(long.named_parameters()), dict(explicit.named_parameters())
    assert own.keys() == theirs.keys()
    found = gradients(long, ids, rows, list(own.values()))
    wanted = gradients(explicit, ids, rows, list(theirs.values()))
    for name, mine, expected in zip(own, found, wanted, strict=True):
        assert (mine is None) == (expected is None), name
        if mine is not None:
            torch.testing.assert_close(mine, expected, atol=1e-8, rtol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("base", ["gpt2", "llama"])
def test_a_cache_and_checkpointing_change_no_gradient_of_transformer_xl(base: str) -> None:
    head = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}[base]
    long, ids, rows = model(base, head), {"input_ids": tokens(2, LENGTH)}, slice(0, LENGTH)
    wanted = gradients(long, ids, rows, list(long.parameters()), use_cache=False)
    cached = gradients(long, ids, rows, list(long.parameters()), use_cache=True)
    long.train()
    long.activation_checkpointing_enable({"use_reentrant": False})
    for module in long.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    again = gradients(long, ids, rows, list(long.parameters()), use_cache=False)
    for a, b, c in zip(wanted, cached, again, strict=True):
        torch.testing.assert_close(b, a, atol=1e-9, rtol=1e-7)
        torch.testing.assert_close(c, a, atol=1e-9, rtol=1e-7)


def test_transformer_xl_projects_once_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    long = model("llama")
    projection, calls = attention_sites(long)[0].module.k_proj, []
    projection.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        long(tokens(1, LENGTH))
    assert len(calls) == 1
    long(tokens(1, SIZE))
    assert len(calls) == 2, "one segment has no memory"
    long(tokens(1, LENGTH))
    assert len(calls) == 4


def test_stopped_gradients_are_refused_without_hidden_states() -> None:
    module = attention_sites(model("llama"))[0].module
    with pytest.raises(BackendError, match="stop_gradient=keys_values"):
        module(states=torch.zeros(1, LENGTH, 64, dtype=torch.float64, requires_grad=True))
