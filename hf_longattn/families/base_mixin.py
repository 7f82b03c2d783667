"""What a base model adds to the other Long classes: it is the one that meets the text, so it checks and completes what is given."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..backend import BACKEND, packing_refused
from ..errors import MaskError
from ..mechanisms.base import Mechanism, Recursion
from .limits import check_length
from .memory_tokens import MemoryTokens, attach_memory_tokens
from .mixin import LongAttentionMixin
from .recurrence import run_in_segments
from .registry import PositionTable
from .token_globals import global_tokens_of, token_rule


class LongBaseModelMixin(LongAttentionMixin):
    """its ``forward`` takes what the base's takes, plus ``global_attention_mask (B, N)``, 1 = global.

    The attention implementation is ``longattn``: no other one knows mechanisms. ``use_base_attention`` computes the plain base's.
    """

    position_table: ClassVar[PositionTable | None]

    @property
    def recursion(self) -> Recursion | None:
        """How this model runs over a text in segments with memory tokens; ``None`` when it runs over the whole text."""
        tokens = getattr(self, "long_memory", None)
        return tokens.recursion if isinstance(tokens, MemoryTokens) else None

    def equip(self) -> None:
        """Memory tokens, where its mechanisms pass any from segment to segment; layers that contradict one another are refused."""
        token_rule(self)
        attach_memory_tokens(self, self.position_table)

    def prepared(self, base_forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
        """As the mixin's: the text fits, tokens that are global by their ids are marked, and memory tokens mean segment after segment."""
        self._check_inputs(args, kwargs)
        self._find_globals(args, kwargs)
        if self.recursion is None or self.config._attn_implementation != BACKEND:
            return base_forward
        return functools.partial(run_in_segments, forward=base_forward)

    def _find_globals(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Without a ``global_attention_mask``, the tokens that are global by their ids."""
        if kwargs.get("global_attention_mask") is None and self.config._attn_implementation == BACKEND:
            rule = token_rule(self)
            if rule is not None:
                kwargs["global_attention_mask"] = global_tokens_of(rule, args, kwargs)

    def _check_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.position_table is not None and (self.recursion is None or self.config._attn_implementation != BACKEND):
            check_length(self.position_table, self.config, args, kwargs)
        if kwargs.get("global_attention_mask") is not None and self.config._attn_implementation == BACKEND:
            mechanisms = [m for m in self.modules() if isinstance(m, Mechanism)]
            length = kwargs["global_attention_mask"].shape[-1]
            if not any(m.takes_globals or m.covers(length) for m in mechanisms):
                raise MaskError(
                    "global_attention_mask was given, but no layer of this model takes global tokens "
                    f"(its mechanism is {self.config.long_attention.mechanism!r}); "
                    "leave it out, or choose a mechanism with takes_globals=True in hf_longattn.mechanism_info."
                )
        if torch.compiler.is_compiling() and kwargs.get("position_ids") is None and kwargs.get("attention_mask") is None:
            self._rule_out_packing(args, kwargs)
        if kwargs.get("position_ids") is not None and self.config._attn_implementation == BACKEND:
            self._check_packing(args, kwargs)

    def _check_packing(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Positions that restart within a row and no attention_mask are documents packed into it. A decoder without a cache gets a mask
        from transformers that keeps them apart, and attention decides whether that is enough for its mechanism; nothing else does."""
        positions = kwargs["position_ids"]
        unmasked = len(args) <= 1 and kwargs.get("attention_mask") is None and kwargs.get("past_key_values") is None
        if not unmasked or not isinstance(positions, Tensor) or positions.dim() != 2 or positions.shape[1] < 2:
            return
        restarts = (positions[:, 1:] <= positions[:, :-1]).any()
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if not traced and not restarts:
            return
        refusal = self._refusal_of_packing(positions.shape[1], kwargs.get("use_cache"))
        if refusal is None or torch.compiler.is_exporting() or torch.jit.is_tracing():
            return
        if not traced:
            raise MaskError(refusal)
        torch._assert_async(~restarts, refusal)  # positions are not known yet
        self._rule_out_packing(args, kwargs)

    def _refusal_of_packing(self, length: int, use_cache: bool | None) -> str | None:
        """Why this model does not take rows of ``length`` tokens with several documents; None where it does."""
        causal = any(getattr(module, "is_causal", False) for module in self.modules() if hasattr(module, "long_attention"))
        if not causal:
            return (
                "Several documents are packed into one row (position_ids restart in it), but nothing keeps them apart in an encoder; "
                "give each document a row of its own with padding."
            )
        for mechanism in self.modules():
            if not isinstance(mechanism, Mechanism):
                continue
            if self.recursion is not None or not (mechanism.takes_packed or mechanism.covers(length, causal)):
                return packing_refused(mechanism, causal)
        if self.config.use_cache if use_cache is None else use_cache:
            return (
                "Several documents are packed into one row (position_ids restart in it), but with a cache nothing keeps them apart; "
                "pass use_cache=False, or give each document a row of its own with padding."
            )
        return None

    def _rule_out_packing(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """While it is compiled, a causal model without attention_mask prepares for packed sequences with an N×N mask; without
        position_ids there are none, and a mask of ones says so."""
        tokens = args[0] if args else kwargs.get("input_ids")
        tokens = kwargs.get("inputs_embeds") if tokens is None else tokens
        if len(args) <= 1 and kwargs.get("past_key_values") is None and isinstance(tokens, Tensor):
            kwargs["attention_mask"] = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)


class LongDecoderMixin(LongBaseModelMixin):
    """its ``forward`` takes what the base's takes; ``global_attention_mask`` is the encoder's, where there is one."""

    embed_positions: Any

    def adapt(self) -> None:
        """The base makes encoder and decoder equally long; the decoder's table gets its own length, before it is initialised."""
        old: Any = getattr(self, "embed_positions")  # noqa: B009 - the base's
        if self.position_table is not None and old.weight.shape[0] != self.position_table.rows(self.config):
            with torch.device(old.weight.device):
                self.embed_positions = type(old)(self.position_table.tokens(self.config), old.embedding_dim)

    def _check_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.config.is_encoder_decoder:
            kwargs.pop("global_attention_mask", None)
        super()._check_inputs(args, kwargs)

    def _find_globals(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.config.is_encoder_decoder:
            super()._find_globals(args, kwargs)
