"""A model that runs over its text one segment after the other, with memory tokens between them (Bulatov et al. 2022).

The base's own ``forward`` runs on each segment; here the text is cut, and the last hidden states are put together again, so that every
head finds as many as there are tokens. Rows are cut from their first real token on, and positions begin anew in each segment. In an
encoder the first token ([CLS]) stands in every segment, and its hidden state is that of the row's last one, which has seen everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import MaskError, OptionError
from ..mechanisms.base import Recursion
from ..mechanisms.gathered import turn
from ..mechanisms.segment_state import leading

ALONG_THE_TEXT = ("token_type_ids",)
"""Arguments ``(B, N)`` that are cut as the text is."""
Forward = Callable[..., Any]


@dataclass(frozen=True)
class Text:
    """The input of a call: embeddings ``(B, N, d)``, real tokens ``(B, N)``, what else runs along the text, and all other arguments."""

    embeddings: Tensor
    real: Tensor
    along: dict[str, Tensor]
    others: dict[str, Any]

    @classmethod
    def of(cls, model: Any, arguments: dict[str, Any]) -> Text:
        """Read the arguments of a base's ``forward``.

        Raises:
            OptionError: attentions are asked for.
            MaskError: the mask is not one of padding.
        """
        others = dict(arguments)
        ids, embeddings, mask = (others.pop(name, None) for name in ("input_ids", "inputs_embeds", "attention_mask"))
        others.pop("position_ids", None)  # they begin anew in each segment
        if others.get("output_attentions") or (others.get("output_attentions") is None and model.config.output_attentions):
            raise OptionError(
                "Attentions were asked for, but the model runs over one segment after the other and has none between them; "
                "leave output_attentions out."
            )
        if embeddings is None:
            if ids is None:
                raise OptionError("The model was given neither input_ids nor inputs_embeds; pass one of them.")
            embeddings = model.get_input_embeddings()(ids)
        batch, length = embeddings.shape[:2]
        if mask is not None and (mask.dim() != 2 or mask.shape[1] < length):
            raise MaskError(f"attention_mask has shape {tuple(mask.shape)}, but must be (batch, tokens) with 1 for real tokens.")
        real = torch.ones(batch, length, dtype=torch.bool, device=embeddings.device) if mask is None else mask[:, -length:].bool()
        along = {name: others.pop(name) for name in ALONG_THE_TEXT if others.get(name) is not None}
        return cls(embeddings, real, along, others)

    def turned(self, start: Tensor) -> Text:
        """With row b turned to the left by ``start[b]``."""
        along = {name: _turned(value, start) for name, value in self.along.items()}
        return Text(_turned(self.embeddings, start), _turned(self.real, start), along, self.others)

    def piece(self, where: slice, *, after_first: bool) -> Text:
        """A part of it, behind its first token where that is to stand in front of every part."""

        def cut(x: Tensor) -> Tensor:
            return torch.cat([x[:, :1], x[:, where]], 1) if after_first else x[:, where]

        return Text(cut(self.embeddings), cut(self.real), {name: cut(x) for name, x in self.along.items()}, self.others)


def run_segments(
    model: Any, forward: Forward, text: Text, recursion: Recursion, memory: Tensor, *, causal: bool, remember: bool
) -> tuple[Any, Tensor]:
    """Run ``forward``, the base's, over all segments of ``text``.

    Args:
        memory: ``(B, M, d)``, what the first segment reads.
        causal: whether memory tokens to write stand behind each segment.
        remember: whether the memory after the last segment is wanted.
    Returns:
        The outputs, as for the whole text, and the memory ``(B, M, d)``: of each row, after its last segment that has a real token.
    """
    start = leading(text.real) % text.real.shape[1]
    turned = torch.compiler.is_compiling() or bool(start.any())
    text = text.turned(start) if turned else text
    pieces = _pieces(text, recursion.text(causal), causal)
    parts: list[Any] = []
    for index, piece in enumerate(pieces):
        left = len(pieces) - 1 - index
        out = _segment(forward, piece, memory, write=causal and (left > 0 or remember))
        count, size = memory.shape[1], piece.real.shape[1]
        hidden = out.last_hidden_state
        written = hidden[:, count + size :] if causal else hidden[:, :count]
        if left or remember:
            own = piece.real if causal or index == 0 else piece.real[:, 1:]
            memory = torch.where(own.any(1)[:, None, None], written, memory)
        if left and recursion.depth is not None and left % (recursion.depth + 1) == 0:
            memory = memory.detach()
        parts.append(out)
    return _joined(model, parts, pieces, memory.shape[1], causal, -start if turned else None), memory


def _pieces(text: Text, size: int, causal: bool) -> list[Text]:
    length = text.real.shape[1]
    if causal:
        return [text.piece(slice(first, first + size), after_first=False) for first in range(0, length, size)]
    rest = [text.piece(slice(first, first + size - 1), after_first=True) for first in range(size, length, size - 1)]
    return [text.piece(slice(0, size), after_first=False), *rest]


def _segment(forward: Forward, piece: Text, memory: Tensor, *, write: bool) -> Any:
    """The base's outputs for one segment with its memory tokens."""
    behind = memory.shape[1] if write else 0
    embeddings = torch.cat([memory, piece.embeddings, memory[:, :behind]], 1)
    mask = torch.nn.functional.pad(piece.real.long(), (memory.shape[1], behind), value=1)
    along = {name: torch.nn.functional.pad(value, (memory.shape[1], behind)) for name, value in piece.along.items()}
    others = {**piece.others, "return_dict": True, "use_cache": False}
    return forward(inputs_embeds=embeddings, attention_mask=mask, **along, **others)


def _joined(model: Any, parts: list[Any], pieces: list[Text], memory: int, causal: bool, back: Tensor | None) -> Any:
    """The outputs of all segments as those of one text."""

    def text(states: list[Tensor]) -> Tensor:
        cut = [state[:, memory : memory + piece.real.shape[1]] for state, piece in zip(states, pieces, strict=True)]
        first = cut[0][:, :1]
        for state, piece in zip(cut[1:], pieces[1:], strict=True) if not causal else ():
            first = torch.where(piece.real[:, 1:].any(1)[:, None, None], state[:, :1], first)
        whole = torch.cat([first, cut[0][:, 1:], *(state if causal else state[:, 1:] for state in cut[1:])], 1)
        return whole if back is None else _turned(whole, back)

    out = parts[-1]
    out.last_hidden_state = text([part.last_hidden_state for part in parts])
    if out.get("hidden_states") is not None:
        out.hidden_states = tuple(text(list(states)) for states in zip(*(part.hidden_states for part in parts), strict=True))
    if out.get("pooler_output") is not None:
        out.pooler_output = model.pooler(out.last_hidden_state)
    return out


def _turned(x: Tensor, start: Tensor) -> Tensor:
    """Turn ``x (B, N)`` or ``(B, N, d)`` to the left by ``start (B,)``."""
    return turn(x[:, None, :, None], start)[:, 0, :, 0] if x.dim() == 2 else turn(x[:, None], start)[:, 0]
