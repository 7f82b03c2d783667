"""Auxiliary losses: chosen heads are taught where to look, and chosen layers what to hold.

They exist in training only. A chain of lookups is learnt in a fraction of the steps when every hop has its own loss, and far more labels
than answers come with every document: which function each argument is passed to, which import each base class comes from. The finished
checkpoint is a plain question-answering model: :func:`detach_guides` takes them off again.

A *guide* (kind, from, to) says that in the heads of its kind (:data:`HEADS`) token ``from`` looks at token ``to``: the loss is the negative
log of that attention. A *place* (stage, token, place) says that a token's state tells the place of an argument or parameter in its list.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from hf_longattn.private_apis import attention_implementation
from scripts.dev.studies.qa_packing import packed_loss

_NAME = "guides"
_IMPLEMENTATION = "research_guided"
PLACES = 8
"""Places of arguments and parameters that are distinguished; later ones count as the last."""
_RARER = (0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0)

HEADS: dict[str, tuple[tuple[int, int], ...]] = {
    # labels of all the code in a document: the layer (from 0) and the head that learn them
    "previous": ((1, 0),),  # argument (parameter) -> the one before it; the first -> the name called (defined)
    "class": ((1, 1),),  # def -> its class
    "callee": ((1, 2), (2, 0)),  # argument -> the name called; base class -> class; value of a lookup line -> its name
    "inside": ((2, 1),),  # argument -> the function that it is in; the question's argument -> that function in the question
    "list": ((2, 2),),  # argument (parameter) -> itself and all before it, alike: the share of the first one tells the place
    "owner": ((1, 3),),  # parameter -> its def; imported name -> module
    "base": ((2, 3),),  # class -> its base; name of a lookup line -> its value
    "same": ((3, 1),),  # name called -> its def; base class -> its import
    # labels of the questions; "asked" is the question's argument, class or name
    "asked": ((3, 0),),  # asked -> where the document has it
    "found": ((4, 1),),  # asked -> the def (import, line) that the next hop leads to
    "match": ((4, 0),),  # that def (import, line) -> asked
    "other": ((4, 0),),  # all the other ones -> the first token
    "answer": ((4, 2), (5, 1)),  # the right parameter (value of a line) -> asked
    "rest": ((4, 2), (5, 1)),  # all the other ones -> the first token
    "fetch": ((5, 0),),  # parameter -> its def; the right module -> its import; value of a lookup line -> its name
}
KINDS = tuple(HEADS)
STAGES = (3, 4, 5)
"""Hidden states (0 = embeddings) that tell places: of all arguments and parameters; of the asked argument; of the argument, at its def."""


class Guides(nn.Module):
    """The guides' losses.

    Args:
        hidden_size: width of the hidden states.
        weight: weight of the sum of the kinds' mean losses, and of the stages', beside the answer's loss.
    """

    def __init__(self, hidden_size: int, weight: float = 0.3) -> None:
        super().__init__()
        self.weight = weight
        self.place = nn.ModuleList(nn.Linear(hidden_size, PLACES) for _ in STAGES)
        self.handles: list[Any] = []
        self.attention: str | None = None
        self.recent: dict[str, float] = {}

    def forward(self, scores: list[Tensor], hidden_states: tuple[Tensor, ...], guides: Tensor, places: Tensor) -> Tensor:
        """Return the sum over kinds and stages of their mean losses.

        Args:
            scores: per layer the attention's scores before the softmax (B, H, L, L), very low where a token is not seen.
            hidden_states: embeddings and the layers' outputs, (B, L, D) each.
            guides: (N, 4) row of the batch, number of the kind, token, token to look at.
            places: (P, 4) row of the batch, number of the stage, token, place.
        """
        losses: dict[str, Tensor] = {}
        for layer, given in enumerate(scores):
            picked: list[str] = []
            rows: list[Tensor] = []
            heads: list[Tensor] = []
            for number, kind in enumerate(KINDS):
                for where, head in HEADS[kind]:
                    mine = guides[guides[:, 1] == number]
                    if where == layer and head < given.shape[1] and len(mine):
                        picked.append(kind)
                        rows.append(mine)
                        heads.append(torch.full((len(mine),), head, device=given.device))
            if not picked:
                continue
            every = torch.cat(rows)
            chosen = given[every[:, 0], torch.cat(heads), every[:, 2]].float()
            target = chosen.gather(1, every[:, 3:])[:, 0]
            seen = target > -1e4
            wrong = torch.where(seen, torch.logsumexp(chosen, 1) - target, 0.0)
            sizes = [len(mine) for mine in rows]
            for kind, part, known in zip(picked, wrong.split(sizes), seen.split(sizes), strict=True):
                losses[kind if kind not in losses else f"{kind}_again"] = part.sum() / known.sum().clamp(min=1)
        for stage, layer in enumerate(STAGES):
            mine = places[places[:, 1] == stage]
            if layer < len(hidden_states) and len(mine):
                told = self.place[stage](hidden_states[layer][mine[:, 0], mine[:, 2]]).float()
                target = mine[:, 3].clamp(max=PLACES - 1)
                rarer = torch.tensor(_RARER, device=told.device)  # most are the first
                losses[f"place_{stage + 1}"] = 2.0 * nn.functional.cross_entropy(told, target, rarer)
        for name, loss in losses.items():
            self.recent[name] = 0.9 * self.recent.get(name, float(loss.detach())) + 0.1 * float(loss.detach())
        return torch.stack([*losses.values(), self.idle()]).sum()

    def idle(self) -> Tensor:
        """Zero, through every parameter: keeps them in the graph, as distributed training wants."""
        return 0.0 * torch.stack([parameter.sum() for parameter in self.parameters()]).sum()


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None, **_: Any
) -> tuple[Tensor, None]:
    """transformers' eager attention without dropout, which leaves its scores with the module."""
    scores = torch.matmul(query, key.transpose(2, 3)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:  # of window_mask: transformers hands 4-D masks on as they are
            attention_mask = torch.where(attention_mask, 0.0, torch.finfo(scores.dtype).min)
        scores = scores + attention_mask.to(scores.dtype)
    if module.training:
        module.guided_scores = scores
    return torch.matmul(torch.softmax(scores, -1), value).transpose(1, 2).contiguous(), None


AttentionInterface.register(_IMPLEMENTATION, _attention)
AttentionMaskInterface.register(_IMPLEMENTATION, eager_mask)


def attach_guides(model: PreTrainedModel, weight: float = 0.3) -> Guides:
    """Add guides to a question-answering model: its ``loss`` in training then includes theirs whenever a batch has ``guides``.

    They are a submodule, moved, distributed and checkpointed with the model, and work through two forward hooks.
    """
    guides = Guides(model.config.hidden_size, weight)
    guides.attention = attention_implementation(model.config)
    model.set_attn_implementation(_IMPLEMENTATION)
    guides.to(next(model.parameters()).device)
    model.add_module(_NAME, guides)
    layers = [module for module in model.modules() if hasattr(module, "query") and hasattr(module, "key")]
    stash: dict[str, Any] = {}

    def before(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        stash.clear()
        stash.update({key: kwargs.pop(key, None) for key in ("guides", "places", "starts", "ends")})
        return args, {**kwargs, "output_hidden_states": True} if stash["guides"] is not None else kwargs

    def after(_: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        if output.loss is None:
            return output
        scores = [layer.__dict__.pop("guided_scores") for layer in layers if "guided_scores" in layer.__dict__]
        if stash["starts"] is not None and stash["starts"].shape[1] > 1:
            output.loss = packed_loss(output.start_logits, output.end_logits, stash["starts"], stash["ends"])
        if stash["guides"] is None or not scores:
            output.loss = output.loss + guides.idle()
            return output
        output.loss = output.loss + guides.weight * guides(scores, output.hidden_states, stash["guides"], stash["places"])
        output.hidden_states = None
        return output

    guides.handles = [
        model.register_forward_pre_hook(before, with_kwargs=True),
        model.register_forward_hook(after, with_kwargs=True),
    ]
    return guides


def detach_guides(model: PreTrainedModel) -> None:
    """Remove the guides and their hooks; does nothing when there are none."""
    guides = getattr(model, _NAME, None)
    if isinstance(guides, Guides):
        delattr(model, _NAME)
        model.set_attn_implementation(guides.attention or "eager")
        for handle in guides.handles:
            handle.remove()
