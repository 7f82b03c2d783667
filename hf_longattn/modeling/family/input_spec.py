"""Input specs of families: the spec of texts, and the base class for specs of grids, sound and towers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor


class InputSpec:
    """The input spec of a family's models, :attr:`.definition.Family.spec`."""

    reads: ClassVar[str]
    """Name of the modality, such as "sound", and of its file in :mod:`hf_longattn.inputs`."""
    mixins: ClassVar[tuple[str, str]] = ("LongAttentionMixin", "LongBaseModelMixin")
    """Names of the mixins of models with a head, and of the base model."""
    docstring: ClassVar[str] = """{base} with the mechanisms of ``config.long_attention``.

``forward`` takes the arguments of {base}, and ``global_attention_mask (B, N)``{whose}, 1 = global token,
``documents (B, N)``, the numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see
:meth:`new_memory`. :meth:`use_base_attention` computes the attention of {base} instead.
"""
    """The docstring of Long classes; ``whose`` names the stack of an encoder-decoder."""
    counts_tokens: ClassVar[bool] = True
    """Whether the maximum length is stated in tokens."""
    on_grid: ClassVar[bool] = False
    """Whether tokens are the patches of an image."""
    needs_positions: ClassVar[bool] = False
    """Whether a family must declare its type of positions if its config has a maximum length."""
    flash_windows: ClassVar[bool] = False
    """Whether FlashAttention of transformers can compute windows over the tokens."""
    further: Mapping[str, int | str] = {}
    """Argument of ``forward`` with more integers per token -> their number per token, or the config field with the
    number."""

    def most_tokens(self, family: Any, config: Any) -> int:
        """Maximum number of tokens of one input, without special rows of a table. ``config``: of the family or of its
        base."""
        alone = family.two_stacks and not config.is_encoder_decoder
        table = next((entry for entry in family.position_tables if entry.decoder == alone), None)
        if table is None:
            return int(config.max_position_embeddings)
        if hasattr(config, table.field):
            return table.tokens(config)
        return family.base_length(config, table) - table.config_value(0, config)

    def further_operations(self, config: Any, skeleton: Any) -> int:
        """Multiply-accumulate operations per token besides linear layers. ``skeleton``: the Long model on the meta
        device."""
        return 0

    def further_inputs(self, config: Any, rows: int, length: int) -> dict[str, Tensor]:
        """Deterministic values ``(rows, length, width)`` int64 for the arguments in :attr:`further`. Values never
        decrease along the width, so that they are valid boxes."""
        import torch

        random = torch.Generator().manual_seed(0)
        widths = {
            name: getattr(config, width) if isinstance(width, str) else width for name, width in self.further.items()
        }
        return {
            name: torch.randint(2, (rows, length, width), generator=random).cumsum(-1)
            for name, width in widths.items()
        }


@dataclass(frozen=True)
class TextSpec(InputSpec):
    """Token ids and, in some families, more numbers per token (LayoutLM, MarkupLM)."""

    reads = "text"
    needs_positions = True
    flash_windows = True
    further: Mapping[str, int | str] = field(default_factory=dict, compare=False)


PLAIN_TEXT = TextSpec()
"""The spec of models that read only token ids."""
