"""A base's position table, and the check that it has enough positions for a call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ...errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

PADDING = 1
"""The id of the padding token in RoBERTa's vocabulary, for a config without ``pad_token_id``."""


@dataclass(frozen=True)
class PositionTable:
    """A position table of the base architecture.

    pattern: regular expression that matches the name of the parameter, such as ``r"position_embeddings\\.weight$"``.
    offset: number of rows at the start that are not positions (BART, MPNet: 2), or ``"padding"`` if positions start
        after the row of the config's ``pad_token_id`` (RoBERTa). :meth:`offset_rows` returns the number.
    counted: whether the config's length includes the ``offset`` rows (RoBERTa) or not (BART).
    added: whether the model adds the offset itself, so that ``position_ids`` start at 0 (OPT).
    skips_padding: whether padding tokens have no position (RoBERTa, OPT).
    learned: False for a table of sinusoids, which is computed anew for another length (Pegasus).
    decoder: whether the table belongs to the decoder of an encoder-decoder.
    """

    pattern: str
    offset: int | Literal["padding"] = 0
    counted: bool = True
    added: bool = False
    skips_padding: bool = False
    learned: bool = True
    decoder: bool = False

    @property
    def field(self) -> str:
        """The config's field with the table's length."""
        return "max_decoder_position_embeddings" if self.decoder else "max_position_embeddings"

    def offset_rows(self, config: Any) -> int:
        """Number of rows at the start that are not positions, with this config."""
        if self.offset != "padding":
            return self.offset
        return (PADDING if config.pad_token_id is None else config.pad_token_id) + 1

    def config_value(self, tokens: int, config: Any) -> int:
        """The value of :attr:`field` for a table of this number of tokens. ``config`` has the padding id."""
        return tokens + self.offset_rows(config) * self.counted

    def tokens(self, config: Any) -> int:
        """Number of tokens for which the table has positions."""
        return getattr(config, self.field) - self.offset_rows(config) * self.counted

    def rows(self, config: Any) -> int:
        """Number of rows of the table, including those that are not positions."""
        return self.tokens(config) + self.offset_rows(config)

    def first_id(self, config: Any) -> int:
        """The first of a text's ``position_ids``."""
        return 0 if self.added else self.offset_rows(config)

    def check_length(self, config: Any, arguments: Mapping[str, Any]) -> None:
        """Raise :class:`InputError` if a forward pass needs more positions than the table has. Tokens in the cache
        count, and padding without positions does not.

        arguments: the arguments of ``forward``, by name.
        """
        import torch

        from ...memory.decode_cache import CACHE

        limit = self.tokens(config)
        tokens = input_of(arguments)
        if tokens is None:
            return
        past = arguments.get(CACHE)
        seen = 0 if past is None else past.get_seq_length()
        needed = tokens.shape[1]  # at most, if padding has no positions
        if isinstance(seen, int) or not torch.compiler.is_compiling():
            needed += int(seen)
        if needed <= limit:
            return
        # leave out padding
        mask = arguments.get("attention_mask")
        if arguments.get("position_ids") is not None:
            needed = int(arguments["position_ids"].max()) + 1 - self.first_id(config)
        elif self.added and self.skips_padding and isinstance(mask, torch.Tensor):  # OPT
            needed = int(mask.sum(1).max())
        elif self.skips_padding and not self.added and tokens.dim() == 2:  # RoBERTa
            padding = self.first_id(config) - 1  # positions start after the padding id
            needed = int(seen) + int((tokens != padding).sum(1).max())
        self.refuse_beyond(needed, limit)

    def refuse_beyond(self, needed: int, limit: int) -> None:
        """Raise :class:`InputError` if an input needs more than ``limit`` positions."""
        if needed > limit:
            part, flag = ("decoder", "--max-decoder-length") if self.decoder else ("model", "--max-length")
            raise InputError(
                f"The input needs {needed} positions, but this {part} has {limit}; cut it with tokenizer(..., "
                f"truncation=True, max_length={limit}), or convert the checkpoint with a longer maximum length "
                f"(longattn convert SRC DST {flag} {needed})."
            )


def input_of(arguments: Mapping[str, Any]) -> Tensor | None:
    """The ``input_ids (B, N)`` or ``inputs_embeds (B, N, d)`` among the arguments of ``forward``; ``None`` without
    either."""
    from torch import Tensor

    tokens = arguments.get("input_ids")
    tokens = arguments.get("inputs_embeds") if tokens is None else tokens
    return tokens if isinstance(tokens, Tensor) else None
