"""Global tokens at fixed positions, by token ids, or in the first text of a pair."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from ...engines.batch import cached_on, first_real, for_one_pass
from ...engines.byte_cache import BYTE_CACHE
from ...engines.call import AttentionCall
from ...errors import OptionError
from .options import runs


@dataclasses.dataclass(frozen=True)
class GlobalTokenIds:
    """The tokens that are global: the union of positions, token ids and the first segment. Padding is never global.

    positions: positions of global tokens, counted from each sequence's first real token.
    token_ids: every token with one of these ids is global.
    first_segment: whether the tokens before the first separator are global (Beltagy et al. 2020, section 3.1, "global
        attention on all question tokens"). The separator itself is not.
    separator: the id that ends a segment; ``None`` takes the model's ``config.sep_token_id``.
    question_separator: the id between a question and a document. If set, all tokens before the document are global
        instead of ``positions``. This includes separators: one in BERT's ``[CLS] question [SEP] document [SEP]``, two
        in RoBERTa's pairs.

    A sequence without a separator has no segments. A sequence with nothing after the separator has no question. A
    separator inside the first text, such as a ``[SEP]`` typed by a user, is ignored if token types or two consecutive
    separators show where the first text ends.
    """

    positions: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    first_segment: bool = False
    separator: int | None = None
    question_separator: int | None = None

    def with_separator(self, separator: int | None) -> GlobalTokenIds:
        """A copy with ``separator`` filled in, if a separator is needed and missing.

        Raises:
            OptionError: a separator is needed and ``separator`` is ``None``.
        """
        if self.separator is not None or not self.first_segment:
            return self
        if separator is None:
            raise OptionError(
                "The first segment is global by global_first_segment, but neither the option separator_token_id nor "
                "the config's sep_token_id says which token ends it; give separator_token_id, for example 102 for "
                "BERT."
            )
        return dataclasses.replace(self, separator=separator)

    def mask(self, ids: Tensor, real: Tensor, types: Tensor | None = None) -> Tensor:
        """Mask ``(B, N)`` bool of the global tokens.

        Args:
            ids: ``(B, N)``.
            real: ``(B, N)`` bool, False for padding.
            types: ``(B, N)``, 1 in the second text.
        """
        chosen = at_positions(self.positions, real)
        ids = self._without_inner_separators(ids, real, types)
        if self.question_separator is not None:  # a question replaces `positions` in the rows that have one
            question = self.question(ids, real)
            chosen = question | (chosen & ~question.any(-1, keepdim=True))
        if self.token_ids:
            chosen = chosen | torch.isin(ids, torch.tensor(self.token_ids, device=ids.device))
        if self.first_segment:
            ends = (ids == self.separator) & real
            chosen = chosen | ((ends.cumsum(-1) == 0) & ends.any(-1, keepdim=True))
        return chosen & real

    def _without_inner_separators(self, ids: Tensor, real: Tensor, types: Tensor | None) -> Tensor:
        """``ids`` with separators inside the first text replaced by -1.

        The first text ends before the first token of type 1, if a separator precedes this token. Otherwise it ends at
        two consecutive separators (RoBERTa).
        """
        separator = self.separator if self.question_separator is None else self.question_separator
        if separator is None:
            return ids
        ends = (ids == separator) & real
        after_end = torch.cat([torch.zeros_like(ends[:, :1]), ends[:, :-1]], -1)
        border = ends & after_end
        if types is not None:
            second = (types == 1) & real
            second_begins = second & (second.cumsum(-1) == 1) & after_end
            border = second_begins | (border & ~second_begins.any(-1, keepdim=True))
        first_text = (border.cumsum(-1) == 0) & border.any(-1, keepdim=True)
        # whether a token of the first text that is no separator comes later
        continues = (first_text & ~ends & real).flip(-1).cumsum(-1).flip(-1) > 0
        return ids.masked_fill(first_text & ends & continues, -1)

    def question(self, ids: Tensor, real: Tensor) -> Tensor:
        """Mask of the question and its separators, ``(B, N)`` bool. All False in a batch row without a document."""
        ends = (ids == self.question_separator) & real
        # the document begins at the first real token after a separator that is no separator itself
        document = ((ends.cumsum(-1) > 0) & ~ends & real).cumsum(-1) > 0
        return ~document & document.any(-1, keepdim=True) & real


def at_positions(
    positions: tuple[int, ...], real: Tensor, documents: Tensor | None = None, skips_padding: bool = True
) -> Tensor:
    """Mask ``(B, N)`` bool of the tokens at ``positions``, counted from each sequence's first real token.

    Args:
        real: ``(B, N)`` bool, False for padding.
        documents: ``(B, N)``, the number of each token's document (:class:`DocumentLabels`). If given, positions
            count from the start of each document.
        skips_padding: whether padding inside a sequence is left out of the count.
    """
    if skips_padding:
        counted = real.cumsum(-1) - 1
    else:
        counted = torch.arange(real.shape[1], device=real.device) - first_real(real)[:, None]
    if documents is not None:
        begins = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
        counted = counted - torch.where(begins, counted, -1).cummax(-1).values
    chosen = torch.zeros_like(real)
    # Compare with Python numbers: a compiled step would copy a tensor of positions to the GPU every time.
    for first, last in runs(sorted(positions)):
        chosen = chosen | (counted == first if first == last else (counted >= first) & (counted <= last))
    return chosen & real


def global_tokens(
    positions: tuple[int, ...], k: Tensor, call: AttentionCall, skips_padding: bool = True
) -> Tensor | None:
    """Mask ``(B, Nk)`` bool of a call's global tokens: ``global_mask``, or tokens at ``positions``. ``None`` without
    either.

    Positions count as in :func:`at_positions`, and padding is never global.
    """
    tokens, real = call.global_mask, call.key_mask
    if tokens is not None:
        if real is None:
            return tokens
        # The cached tuple also holds `real`, so that no other mask can get the id in the key.
        _, real_tokens = cached_on(tokens, ("of real tokens", id(real)), lambda: (real, for_one_pass(tokens & real)))
        return real_tokens
    if not positions:
        return None

    def make() -> Tensor:
        documents = None if call.documents is None else call.documents.number
        chosen: Tensor = for_one_pass(at_positions(positions, call.real(k), documents, skips_padding))
        return chosen

    key = ("global positions", positions, skips_padding)
    if call.batch is None:
        return BYTE_CACHE.get((*key, k.shape[0], k.shape[2], k.device), make)
    return call.batch.cached(key, make)
