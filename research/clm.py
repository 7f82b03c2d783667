"""Next-token loss of long inputs: the same documents for every model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.inference_mode()
def next_token_loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Sequence[int]]) -> list[float]:
    """Return the mean cross-entropy in nats of each text's tokens, given those before.

    Args:
        model: a causal language model.
        tokenizer: gives the token that stands before a text, where it has one.
        texts: tokens without special ones, see :func:`research.mlm.first_tokens`.
    """
    first = next((token for token in (tokenizer.cls_token_id, tokenizer.bos_token_id) if token is not None), None)
    losses = []
    for text in texts:
        ids = torch.tensor([[*([first] if first is not None else []), *text]], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        losses.append(float(nn.functional.cross_entropy(logits.float(), ids[0, 1:])))
    return losses
