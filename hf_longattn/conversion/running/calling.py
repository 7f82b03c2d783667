"""One forward pass of any head on a text: what each kind of model is given, and which tensors it returns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["outputs"]


def outputs(model: Any, ids: Tensor, *, decoder_tokens: int | None = None, **arguments: Any) -> dict[str, Tensor]:
    """All tensors that one forward pass returns, by name; the cache left out.

    Args:
        model: any model of transformers.
        ids: ``(B, N)``.
        decoder_tokens: how many of the tokens, moved one place to the right, the decoder beside an encoder is given; ``None`` gives it all.
        arguments: of the forward pass.
    """
    if "MultipleChoice" in type(model).__name__:
        ids = ids.unsqueeze(1)
    if model.config.is_encoder_decoder:
        if type(model).__name__.endswith("ForSequenceClassification"):  # it looks for the end of the text
            ids = torch.cat([ids[:, :-1], torch.full_like(ids[:, :1], model.config.eos_token_id)], dim=1)
        first = model.config.decoder_start_token_id  # of mBART it is a language, which the caller of generate chooses
        start = torch.full_like(ids[:, :1], model.config.eos_token_id if first is None else first)
        arguments["decoder_input_ids"] = torch.cat([start, ids], dim=1)[:, : min(ids.shape[1], decoder_tokens or ids.shape[1])]
    with torch.no_grad():
        returned = model(input_ids=ids, return_dict=True, **arguments)
    return {name: value for name, value in returned.items() if isinstance(value, Tensor)}
