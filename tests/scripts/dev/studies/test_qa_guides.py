"""Guides: part of the loss while attached, gone without a trace when detached."""

from __future__ import annotations

import torch
from transformers import BertConfig, BertForQuestionAnswering

from scripts.dev.studies.qa_guides import HEADS, KINDS, STAGES, Guides, attach_guides, detach_guides


def batch(**extra: torch.Tensor) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 1000, (2, 12))
    ends = torch.tensor([6, 7])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "start_positions": ends, "end_positions": ends, **extra}


def guided() -> dict[str, torch.Tensor]:
    one = torch.tensor([[3], [3]])
    guides = torch.tensor([[row, number, 4, 7] for row in range(2) for number in range(len(KINDS))])
    places = torch.tensor([[0, stage, 5, 2] for stage in range(len(STAGES))])
    return {"guides": guides, "places": places, "starts": one + 3, "ends": one + 3}


def test_the_loss_is_the_answers_and_the_guides(tiny_model: BertForQuestionAnswering) -> None:
    inputs = batch()
    plain = tiny_model.eval()(**inputs).loss
    guides = attach_guides(tiny_model, 0.5)
    assert torch.isclose(tiny_model(**inputs, **guided()).loss, plain)  # not in training
    tiny_model.train()
    for module in tiny_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert torch.isclose(tiny_model(**inputs).loss, plain)
    assert tiny_model(**inputs, **guided()).loss > plain
    assert set(guides.recent) >= {"previous", "class"}  # in a model of few layers the others have no head


def test_windows_hide_tokens_from_guided_heads(tiny_model: BertForQuestionAnswering) -> None:
    ids, places = torch.randint(5, 1000, (2, 40)), torch.arange(40)
    mask = ((places[:, None] - places).abs() <= 4).expand(2, 1, 40, 40)
    plain = tiny_model.eval()(ids, attention_mask=mask).start_logits
    attach_guides(tiny_model)
    assert torch.allclose(tiny_model(ids, attention_mask=mask).start_logits, plain, atol=1e-5)
    assert not torch.allclose(tiny_model(ids).start_logits, plain, atol=1e-5)


def test_guides_reward_heads_that_look_there() -> None:
    guides = Guides(16)
    states = tuple(torch.zeros(2, 12, 16) for _ in range(7))
    scores = [torch.zeros(2, 4, 12, 12) for _ in range(6)]
    given = guided()
    before = guides(scores, states, given["guides"], given["places"][:0])
    assert torch.isclose(before, sum(map(len, HEADS.values())) * torch.log(torch.tensor(12.0)))
    for layer, head in {place for places in HEADS.values() for place in places}:
        scores[layer][:, head, 4, 7] = 20.0
    assert guides(scores, states, given["guides"], given["places"][:0]) < 1e-3
    for layer in range(6):
        scores[layer][:, :, :, 7] = torch.finfo(torch.float32).min  # a window hides it: nothing to learn
    assert guides(scores, states, given["guides"], given["places"][:0]) == 0


def test_detached_model_is_plain(tiny_model: BertForQuestionAnswering) -> None:
    keys, used = set(tiny_model.state_dict()), tiny_model.config._attn_implementation
    attach_guides(tiny_model)
    assert set(tiny_model.state_dict()) > keys
    detach_guides(tiny_model)
    assert set(tiny_model.state_dict()) == keys
    assert tiny_model.config._attn_implementation == used
    assert not tiny_model._forward_hooks
    assert not tiny_model._forward_pre_hooks


def test_every_parameter_gets_a_gradient() -> None:
    size = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 4, "vocab_size": 1000, "max_position_embeddings": 32}
    model = BertForQuestionAnswering(BertConfig(**size, num_hidden_layers=6))
    attach_guides(model)
    for extra in ({}, guided()):
        model.zero_grad()
        model.train()(**batch(**extra)).loss.backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
