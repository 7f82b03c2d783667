"""What the models of a family read. The base of the rules of pages, grids, sound and towers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar


class InputRule:
    """What the models of a family read: its :attr:`.definition.Family.rule`."""

    reads: ClassVar[str]
    """Name of what the models read, such as "sound"."""
    mixins: ClassVar[tuple[str, str]] = ("LongAttentionMixin", "LongBaseModelMixin")
    """Names of the mixins of models with a head, and of the base model."""
    docstring: ClassVar[str] = """{base} with the mechanisms of ``config.long_attention``.

``forward`` takes the arguments of {base}, and ``global_attention_mask (B, N)``{whose}, 1 = global token, ``documents (B, N)``, the
numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
the attention of {base} instead.
"""
    """The docstring of Long classes; ``whose`` names the stack of an encoder-decoder."""
    counts_tokens: ClassVar[bool] = True
    """Whether the maximum length is stated in tokens."""
    flash_windows: ClassVar[bool] = False
    """Whether FlashAttention of transformers can compute windows over the tokens."""

    @property
    def kind(self) -> str:
        """Name of the file of :mod:`hf_longattn.inputs` with the kind of input."""
        return self.reads

    @property
    def names(self) -> tuple[str, ...]:
        """The arguments of ``forward`` with numbers for each token."""
        return ()

    def entry_problem(self, family: Any, fields: Collection[str]) -> str | None:
        """The error in a family's entry; ``None`` if it is correct. ``fields``: of its config."""
        return None

    def most_tokens(self, family: Any, config: Any) -> int:
        """Maximum number of tokens of one input. For a config of the family or of its base. Special rows of a table do not count."""
        alone = family.two_stacks and not config.is_encoder_decoder
        table = next((entry for entry in family.position_tables if entry.decoder == alone), None)
        if table is None:
            return int(config.max_position_embeddings)
        return table.tokens(config) if hasattr(config, table.field) else family.base_length(config, table) - table.config_value(0, config)

    def fill(self, config: Any, name: str) -> int:
        """The number for tokens without a place in the argument ``name``."""
        return 0

    def check_tokens(self, config: Any, arguments: Mapping[str, Any], shape: tuple[int, int]) -> None:
        """Raise :class:`PageError` for arguments that the model cannot read. In a forward pass over tokens of ``shape (B, N)``."""
