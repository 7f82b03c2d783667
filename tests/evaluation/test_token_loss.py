"""Losses token by token: equal to what transformers computes, and compared with a standard error."""

from __future__ import annotations

import pytest
import torch
import transformers

from hf_longattn.data.batching import masked_tokens
from hf_longattn.data.tokenization import IGNORED
from hf_longattn.errors import CheckpointError
from hf_longattn.evaluation.token_loss import LossChange, chunk_losses, token_losses, with_context
from tests.trained import tokenizer_of

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize("causal", [False, True])
def test_mean_of_token_losses_is_the_loss_of_transformers(causal: bool) -> None:
    if causal:
        model: torch.nn.Module = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()
    else:
        model = transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)).eval()
    ids = torch.randint(0, 50, (1, 600))
    labels = ids if causal else ids.masked_fill(torch.rand(ids.shape) < 0.8, IGNORED)
    part = slice(None) if causal else slice(0, 512)
    ids, labels = ids[:, part], labels[:, part]
    losses = token_losses(model, ids, labels, causal=causal)
    assert losses.shape == (ids.shape[1],)
    with torch.no_grad():
        assert losses.nanmean() == pytest.approx(float(model(input_ids=ids, labels=labels).loss), rel=1e-5)
    for together in (1, 2):
        chunks = chunk_losses(model, ids[:, :512], labels[:, :512], 128, causal=causal, together=together)
        alone = [
            token_losses(model, *pair, causal=causal)
            for pair in zip(ids[:, :512].split(128, 1), labels[:, :512].split(128, 1), strict=True)
        ]
        torch.testing.assert_close(chunks, torch.cat(alone), equal_nan=True)


@pytest.mark.parametrize(("before", "after"), [([1], []), ([1], [2]), ([], [2]), ([], [])])
def test_chunk_losses_read_every_chunk_between_special_tokens(before: list[int], after: list[int]) -> None:
    """A decoder reads a chunk from its first token (BOS) on, as it reads any text."""
    seen = []

    def model(input_ids: torch.Tensor, return_dict: bool) -> dict[str, torch.Tensor]:
        seen.append(input_ids)
        return {"logits": torch.zeros(*input_ids.shape, 50)}

    ids = torch.arange(10, 34)[None]
    losses = chunk_losses(model, ids, ids, 8, causal=False, special=(before, after))
    read = torch.cat(seen)
    inner = slice(len(before), 8 - len(after))
    assert all(row == [*before, *row[inner], *after] for row in read.tolist())
    assert torch.equal(read[:, inner], ids.view(3, 8)[:, inner])
    assert int(losses.isnan().sum()) == 3 * (len(before) + len(after))
    assert torch.equal(ids, torch.arange(10, 34)[None]), "the text is left as it is"


def test_masked_tokens_depend_on_the_seed_and_spare_special_tokens() -> None:
    tokenizer = tokenizer_of("bert")
    ids = torch.tensor([tokenizer("Call me Ishmael. " * 100)["input_ids"]])
    shown, target = masked_tokens(ids, tokenizer)
    hidden = target != IGNORED
    assert 0.1 < hidden.float().mean() < 0.2
    assert (shown[hidden] == tokenizer.mask_token_id).all()
    assert torch.equal(target[hidden], ids[hidden])
    assert torch.equal(shown[~hidden], ids[~hidden])
    assert not hidden[0, [0, -1]].any()
    assert torch.equal(masked_tokens(ids, tokenizer)[0], shown)
    assert not torch.equal(masked_tokens(ids, tokenizer, seed=1)[0], shown)


def test_masked_tokens_need_a_mask_token_and_mask_at_least_one() -> None:
    with pytest.raises(CheckpointError, match="needs a tokenizer with a mask token"):
        masked_tokens(torch.arange(9), None)
    tokenizer = tokenizer_of("bert")
    special = torch.tensor(tokenizer("")["input_ids"])
    assert (masked_tokens(special, tokenizer)[1] == IGNORED).all()
    for seed in range(20):
        _, labels = masked_tokens(torch.tensor(tokenizer("word")["input_ids"]), tokenizer, seed)
        assert int((labels != IGNORED).sum()) >= 1


def test_loss_change_is_worse_only_beyond_its_standard_error() -> None:
    before = torch.randn(400, generator=torch.Generator().manual_seed(0)) + 4
    noise = torch.randn(400, generator=torch.Generator().manual_seed(1))
    for shift, worse in ((0.5, True), (0.05, False), (-0.5, False)):
        change = LossChange.of(before, before + noise - noise.mean() + shift)
        assert change is not None
        assert change.change == pytest.approx(shift, abs=1e-5)
        assert change.error == pytest.approx(0.05, rel=0.1)
        assert change.worse == worse
        assert f"{shift:+.3f} ± 0.0" in str(change)
    small = LossChange.of(before, before + 0.001)
    assert small is not None
    assert not small.worse, "a thousandth of a nat, however certain, is none"
    broken = LossChange.of(before, torch.full_like(before, float("inf")))
    assert broken is not None
    assert broken.worse
    assert LossChange.of(before, torch.full_like(before, float("nan"))) is None


def test_loss_change_of_a_decoder_compares_chunks_where_they_have_context() -> None:
    chunked, whole = torch.ones(64), torch.zeros(64)
    chunked[:8] = chunked[16:24] = 100.0
    for chunk, causal, before in ((16, True, 1.0), (16, False, 25.75), (64, True, 25.75)):
        change = LossChange.of(with_context(chunked, chunk, causal=causal), whole)
        assert change is not None
        assert change.before == pytest.approx(before)
