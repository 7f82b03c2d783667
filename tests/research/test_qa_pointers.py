"""Pointers: part of the loss while attached, gone without a trace when detached."""

from __future__ import annotations

import torch
from transformers import BertForQuestionAnswering

from research.qa_pointers import GUIDES, TrailPointers, attach_pointers, detach_pointers, guide_loss


def batch(**extra: torch.Tensor) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 1000, (2, 12))
    ends = torch.tensor([6, 7])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "start_positions": ends, "end_positions": ends, **extra}


def pointed(trail: torch.Tensor) -> dict[str, torch.Tensor]:
    one = torch.tensor([[3], [3]])
    return {
        "ask": one,
        "trail": trail,
        "links": torch.tensor([[[6, 5]], [[-1, -1]]]),
        "places": torch.tensor([[[6, 1]], [[-1, -1]]]),
        "starts": one + 3,
        "ends": one + 3,
    }


def test_the_loss_is_the_answers_and_the_pointers(tiny_model: BertForQuestionAnswering) -> None:
    inputs = batch()
    trail = pointed(trail=torch.tensor([[[5, 6]], [[7, -1]]]))
    tiny_model.eval()
    with torch.no_grad():
        plain = tiny_model(**inputs, output_hidden_states=True)
        pointers = attach_pointers(tiny_model, (1, 2), weight=0.5)
        extra = pointers(plain.hidden_states, trail["ask"], trail["trail"], trail["links"], trail["places"], inputs["attention_mask"])
        assert torch.isclose(tiny_model(**inputs, **trail).loss, plain.loss + 0.5 * extra)
        assert torch.isclose(tiny_model(**inputs).loss, plain.loss)


def test_guides_reward_heads_that_look_at_the_trail(tiny_model: BertForQuestionAnswering) -> None:
    attentions = [torch.full((1, 2, 6, 6), 1e-4) for _ in range(4)]
    ask, trail = torch.tensor([[1, 2]]), torch.tensor([[[3, 4, 5, 3], [-1, -1, -1, -1]]])
    before = guide_loss(attentions, ask, trail)
    for layer, head, step in GUIDES:
        attentions[layer - 1][0, head, 1, trail[0, 0, step]] = 1.0
    assert before > 5
    assert guide_loss(attentions, ask, trail).abs() < 1e-3
    inputs, extra = batch(), pointed(trail=torch.tensor([[[5, 6]], [[7, -1]]]))
    used = tiny_model.config._attn_implementation
    attach_pointers(tiny_model, (1, 2), guide_weight=0.0)
    tiny_model.eval()
    plain = tiny_model(**inputs, **extra).loss
    tiny_model.trail_pointers.guide_weight = 3.0
    tiny_model.set_attn_implementation("eager")
    assert tiny_model(**inputs, **extra).loss > plain
    detach_pointers(tiny_model)
    assert tiny_model.config._attn_implementation == used


def test_detached_model_is_plain(tiny_model: BertForQuestionAnswering) -> None:
    keys = set(tiny_model.state_dict())
    attach_pointers(tiny_model, (1, 2, 3))
    assert set(tiny_model.state_dict()) > keys
    detach_pointers(tiny_model)
    assert set(tiny_model.state_dict()) == keys
    assert not tiny_model._forward_hooks
    assert not tiny_model._forward_pre_hooks


def test_every_parameter_gets_a_gradient(tiny_model: BertForQuestionAnswering) -> None:
    attach_pointers(tiny_model, (1, 2, 3))
    for extra in ({}, pointed(trail=torch.tensor([[[5, 6, 7]], [[7, 8, 9]]]))):
        tiny_model.zero_grad()
        tiny_model(**batch(**extra)).loss.backward()
        assert [name for name, p in tiny_model.named_parameters() if p.grad is None] == []


def test_pointers_start_as_the_same_word() -> None:
    torch.manual_seed(0)
    hidden = torch.nn.functional.layer_norm(torch.randn(1, 20, 64), (64,))
    hidden[0, 15] = hidden[0, 2]
    pointers = TrailPointers(64, (0,))
    states, none = (hidden, hidden, hidden), torch.tensor([[[-1, -1]]])
    pointers(states, torch.tensor([[2]]), torch.tensor([[[15]]]), torch.tensor([[[15, 15]]]), none, torch.ones(1, 20))
    assert max(pointers.recent) < 0.2
