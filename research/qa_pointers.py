"""Auxiliary losses: after each layer, the question's last token must point at the next name of the trail, and look there.

They exist in training only. A chain of lookups is learnt in a fraction of the steps when every hop has its own loss,
and the finished checkpoint is a plain question-answering model: :func:`detach_pointers` takes them off again.
The projections start near the identity, so that "the same word" is what scores from the first step on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_longattn.private_apis import attention_implementation
from research.qa_packing import packed_loss

_NAME = "trail_pointers"
PLACES = 8
"""Places of arguments and parameters that are told apart; later ones count as the last."""


GUIDES = ((2, 0, 0), (3, 0, 0), (3, 1, 2), (4, 0, 3))
"""(layer, head, step): in this layer, this head of the question's last token is taught to look at this step of the trail. A pointer tells
what a layer must hold; it makes no head fetch it: without guides, places of arguments stayed unknown to the question for 300 steps."""


class TrailPointers(nn.Module):
    """One pointer per step of the trail, step t reading the hidden states after layer ``layers[t]`` (1 = first layer).

    Another pointer, from the last word of every lookup line after layer 1 to the embedding of the line's name, teaches the
    first layer what all hops rest on: which name a word belongs to.

    Args:
        hidden_size: width of the hidden states.
        layers: which layer's output each step reads.
        weight: weight of the mean pointer loss beside the answer's loss.
        guide_weight: weight of the mean loss of the attention to :data:`GUIDES`.
        scale: the projections start at ``scale`` times the identity.
    """

    def __init__(self, hidden_size: int, layers: Sequence[int], weight: float = 1.0, guide_weight: float = 0.0, scale: float = 0.8) -> None:
        super().__init__()
        self.layers, self.weight, self.guide_weight = tuple(layers), weight, guide_weight
        self.queries = nn.ModuleList(nn.Linear(hidden_size, hidden_size, bias=False) for _ in layers)
        self.keys = nn.ModuleList(nn.Linear(hidden_size, hidden_size, bias=False) for _ in layers)
        self.link_query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.link_key = nn.Linear(hidden_size, hidden_size, bias=False)
        self.place = nn.Linear(hidden_size, PLACES)
        for projection in (*self.queries, *self.keys, self.link_query, self.link_key):
            nn.init.eye_(projection.weight)
            projection.weight.data.mul_(scale)
        self.handles: list[Any] = []
        self.attention: str | None = None
        self.recent: list[float] = []

    def forward(
        self, hidden_states: Sequence[Tensor], ask: Tensor, trail: Tensor, links: Tensor, places: Tensor, attention_mask: Tensor
    ) -> Tensor:
        """Return the mean cross-entropy of all steps.

        Args:
            hidden_states: per layer (embeddings first) a tensor (B, L, D).
            ask: (B, K) the last tokens of up to K questions.
            trail: (B, K, T) tokens to point at; -1 is left out.
            links: (B, M, 2) tokens; the first must point, after layer 1, at the embedding of the second.
            places: (B, P, 2) a token and its place, to be told from its state after layer 2; the place of the trail's first token also from
                the question's last token after layer 3. -1 is left out.
            attention_mask: (B, L), 1 = real token.
        """
        rows = torch.arange(len(ask), device=ask.device)[:, None]
        after = torch.arange(attention_mask.shape[1], device=ask.device) > ask.max(1, keepdim=True).values
        elsewhere = ~(after & attention_mask.bool())[:, None]
        losses = []
        for step, layer in enumerate(self.layers[: trail.shape[2]]):
            hidden = hidden_states[layer]
            scores = self.queries[step](hidden[rows, ask]) @ self.keys[step](hidden).transpose(1, 2)
            scores = (scores.float() / hidden.shape[-1] ** 0.5).masked_fill(elsewhere, float("-inf"))
            target = trail[:, :, step]
            known = target >= 0
            picked = -torch.log_softmax(scores, -1).gather(2, target.clamp(min=0)[..., None]).squeeze(2)
            losses.append(torch.where(known, picked, 0.0).sum() / known.sum().clamp(min=1))
        losses.append(self._link_loss(hidden_states, links, elsewhere, rows))
        losses.append(self._place_loss(hidden_states[2][rows, places[:, :, 0].clamp(min=0)], places[:, :, 1]))
        if trail.shape[2]:  # what the question's last token has to know of the argument
            same = (places[:, None, :, 0] == trail[:, :, :1]) & (trail[:, :, :1] >= 0)
            asked = torch.where(same.any(2), (same * places[:, None, :, 1]).amax(2), -1)
            losses.append(self._place_loss(hidden_states[min(3, len(hidden_states) - 1)][rows, ask], asked))
        if trail.shape[2]:
            self.recent = [float(loss.detach()) for loss in losses]
        return torch.stack(losses).mean()

    def _place_loss(self, states: Tensor, places: Tensor) -> Tensor:
        """Cross-entropy of the places told from ``states (B, P, D)``; -1 is left out."""
        wrong = nn.functional.cross_entropy(
            self.place(states).float().flatten(0, 1), places.clamp(0, PLACES - 1).flatten(), reduction="none"
        )
        return torch.where(places.flatten() >= 0, wrong, 0.0).sum() / (places >= 0).sum().clamp(min=1)

    def _link_loss(self, hidden_states: Sequence[Tensor], links: Tensor, elsewhere: Tensor, rows: Tensor) -> Tensor:
        query = self.link_query(hidden_states[1][rows, links[:, :, 0].clamp(min=0)])
        scores = (query @ self.link_key(hidden_states[0]).transpose(1, 2)).float() / query.shape[-1] ** 0.5
        picked = -torch.log_softmax(scores.masked_fill(elsewhere, float("-inf")), -1)
        picked = picked.gather(2, links[:, :, 1].clamp(min=0)[..., None]).squeeze(2)
        known = links[:, :, 1] >= 0
        return torch.where(known, picked, 0.0).sum() / known.sum().clamp(min=1)


def guide_loss(attentions: Sequence[Tensor], ask: Tensor, trail: Tensor) -> Tensor:
    """Mean over :data:`GUIDES` of the negative log of the attention that the questions' last tokens pay to their trail.

    Args:
        attentions: per layer the probabilities (B, H, L, L).
        ask: (B, K) the last tokens of up to K questions.
        trail: (B, K, T) tokens; -1, and guides to steps or layers that are not there, are left out.
    """
    rows = torch.arange(len(ask), device=ask.device)[:, None]
    losses = [trail.new_zeros((), dtype=torch.float32)]
    for layer, head, step in GUIDES:
        if step < trail.shape[2] and layer <= len(attentions) and head < attentions[layer - 1].shape[1]:
            target = trail[:, :, step]
            paid = attentions[layer - 1][rows, head, ask, target.clamp(min=0)].float()
            known = target >= 0
            losses.append(torch.where(known, -torch.log(paid + 1e-6), 0.0).sum() / known.sum().clamp(min=1))
    return torch.stack(losses).sum() / max(1, len(losses) - 1)


def attach_pointers(model: PreTrainedModel, layers: Sequence[int], weight: float = 1.0, guide_weight: float = 0.0) -> TrailPointers:
    """Add pointers to a question-answering model: its ``loss`` then includes theirs whenever a batch has a ``trail``.

    They are a submodule, moved, distributed and checkpointed with the model, and work through two forward hooks.
    """
    pointers = TrailPointers(model.config.hidden_size, layers, weight, guide_weight)
    pointers.attention = attention_implementation(model.config)
    if guide_weight:
        model.set_attn_implementation("eager")  # the only one that gives its probabilities
    pointers.to(next(model.parameters()).device)
    model.add_module(_NAME, pointers)
    stash: dict[str, Any] = {}
    extras = ("ask", "trail", "links", "places", "starts", "ends")

    def before(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        stash.clear()
        stash.update({key: kwargs.pop(key, None) for key in extras}, mask=_real(kwargs.get("attention_mask")))
        wanted = stash["trail"] is not None
        guided = {"output_attentions": True} if pointers.guide_weight else {}
        return args, {**kwargs, "output_hidden_states": True, **guided} if wanted else kwargs

    def after(_: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        if output.loss is None:
            return output
        if stash["trail"] is None:  # keeps every parameter in the graph, as distributed training wants
            output.loss = output.loss + 0.0 * sum(parameter.sum() for parameter in pointers.parameters())
            return output
        if stash["starts"] is not None and stash["starts"].shape[1] > 1:
            output.loss = packed_loss(output.start_logits, output.end_logits, stash["starts"], stash["ends"])
        extra = pointers(output.hidden_states, stash["ask"], stash["trail"], stash["links"], stash["places"], stash["mask"])
        output.loss = output.loss + weight * extra
        if pointers.guide_weight:
            output.loss = output.loss + pointers.guide_weight * guide_loss(output.attentions, stash["ask"], stash["trail"])
            output.attentions = None
        output.hidden_states = None
        return output

    pointers.handles = [
        model.register_forward_pre_hook(before, with_kwargs=True),
        model.register_forward_hook(after, with_kwargs=True),
    ]
    return pointers


def _real(mask: Tensor | None) -> Tensor | None:
    """Return which tokens are no padding, (B, L), also from a mask of who sees whom, (B, 1, L, L)."""
    return mask if mask is None or mask.ndim == 2 else mask[:, 0].any(dim=1)


def detach_pointers(model: PreTrainedModel) -> None:
    """Remove the pointers and their hooks; does nothing when there are none."""
    pointers = getattr(model, _NAME, None)
    if isinstance(pointers, TrailPointers):
        delattr(model, _NAME)
        if pointers.guide_weight:
            model.set_attn_implementation(pointers.attention)
        for handle in pointers.handles:
            handle.remove()
