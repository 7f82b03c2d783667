"""Attention for families whose base computes it outside transformers' AttentionInterface."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...errors import OptionError
from ...mechanisms.common.base import Mechanism
from ..backend import BACKEND, longattn_attention_forward
from ..family.long_config import IMPLEMENTATION_FIELD, attention_implementation, runs_mechanisms
from ..masks import padding_of_row
from ..stock_attention import Attended

if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Base

    ModuleMixin: Any = nn.Module
else:
    _Base = ModuleMixin = object


def by_head(hidden: Tensor, size: int, *projections: Any) -> tuple[Tensor, ...]:
    """Each of the ``projections`` of ``hidden (…, N, C)``, with an axis of heads: ``(…, heads, N, size)``."""
    return tuple(projection(hidden).unflatten(-1, (-1, size)).transpose(-3, -2) for projection in projections)


def attend_by_mechanism(
    module: Any,
    *qkv_and_mask: Tensor | None,
    function: Callable[..., Any] = longattn_attention_forward,
    scaling: float | None = None,
    dropout: float | None = None,
    **kwargs: Any,
) -> Attended:
    """Run an attention function for ``module``. Returns the output with its heads joined, ``(B, N, width)``, and the
    weights if they are requested.

    Args:
        qkv_and_mask: query, key and value ``(B, H, N, D)``, and the mask.
        function: the attention function.
        scaling: factor on q·k; by default from the head size, under the name in BERT's attention modules.
        dropout: dropout probability in training; by default that of ``module.dropout``.
    """
    if scaling is None:
        scaling = module.attention_head_size**-0.5
    if not module.training:
        dropout = 0.0
    elif dropout is None:
        dropout = module.dropout.p
    output, weights = function(module, *qkv_and_mask, scaling=scaling, dropout=dropout, **kwargs)
    return output.flatten(2), weights


def attend_by_config(module: Any, eager: Callable[..., Any], *qkv_and_mask: Tensor | None, **kwargs: Any) -> Attended:
    """Like :func:`attend_by_mechanism`, with the attention function that the module's config names.

    eager: the base's function for ``attn_implementation="eager"``.
    """
    interface = ALL_ATTENTION_FUNCTIONS.get_interface(attention_implementation(module.config), eager)
    return attend_by_mechanism(module, *qkv_and_mask, function=interface, **kwargs)


class HandsKeywordsDown(ModuleMixin):
    """Mixin for attention modules that do not pass keyword arguments on to their attention function (SigLIP). If
    mechanisms run, this ``forward`` passes them on."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Attended:
        if not runs_mechanisms(self):
            return super().forward(hidden_states, attention_mask, **kwargs)
        query, key, value = by_head(hidden_states, self.head_dim, self.q_proj, self.k_proj, self.v_proj)
        output, weights = attend_by_mechanism(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scale,
            dropout=self.dropout,
            is_causal=self.is_causal,
            **kwargs,
        )
        return self.out_proj(output), weights


class ReadsPadding(ModuleMixin):
    """Mixin before a base's encoder that receives an additive padding mask ``(B, 1, 1, N)``.

    If mechanisms run, the encoder's layers receive the padding mask ``(B, N)`` in its place, also in graphs."""

    config: Any

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        if attention_mask is not None and runs_mechanisms(self):
            attention_mask = padding_of_row(attention_mask)
        return super().forward(hidden_states, attention_mask, *args, **kwargs)


class ReplacedModules(_Base):
    """Mixin before a base's model class that replaces modules by instances of subclasses, before mechanisms are
    attached.

    The base builds its modules as usual. Afterwards, the ``__class__`` of each instance becomes the subclass.
    Subclasses add no parameters or state.
    """

    replaced: ClassVar[Mapping[type[nn.Module], type[Any]]]
    """Module class of the base -> its subclass, or a mixin from which a subclass is created."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make the subclasses that :attr:`replaced` names by a mixin only."""
        super().__init_subclass__(**kwargs)
        if "replaced" not in vars(cls):
            return
        classes = dict(cls.replaced)
        for base, mixin in classes.items():
            if not issubclass(mixin, base):
                name = f"Long{base.__name__}"
                namespace = {"__module__": cls.__module__, "__doc__": mixin.__doc__}
                classes[base] = type(name, (mixin, base), namespace)
                # pickle looks for the class in the family's module
                setattr(sys.modules[cls.__module__], name, classes[base])
        cls.replaced = classes

    def adapt_module(self, name: str, module: Any) -> None:
        """Set further attributes that a replaced module needs. Does nothing by default.

        name: the module's name in the model.
        """

    def post_init(self) -> None:
        """Replace the modules, before the other mixins attach mechanisms."""
        for name, module in self.named_modules():
            if type(module) in self.replaced:
                module.__class__ = self.replaced[type(module)]
                if not hasattr(module, "config"):  # a module of a stack keeps the stack's config, which may be a copy
                    module.config = self.config
                self.adapt_module(name, module)
        super().post_init()


def replacing(
    module: str, replaced: Mapping[type[nn.Module], type[Any]], mixin: type[ReplacedModules] = ReplacedModules
) -> type[ReplacedModules]:
    """A subclass of ``mixin`` that replaces the module classes in the mapping ``replaced``.

    module: name of the family's module, in which replaced classes are stored.
    """
    return type("Replacing", (mixin,), {"__module__": module, "replaced": replaced})


def refuse_scoreless(model: nn.Module, why: str) -> None:
    """Raise :class:`OptionError` if a mechanism of ``model`` has no scores that could be changed.

    why: how the model changes scores, as the predicate of the message.
    """
    for module in model.modules():
        if isinstance(module, Mechanism) and not module.capabilities.takes_score_mod:
            raise OptionError(
                f"{type(model).__name__} {why}, but mechanism {module.name!r} has no scores of query-key "
                "pairs that could change; choose one that has, for example mechanism='window'."
            )


class OnTheInterface(ReplacedModules):
    """Mixin for bases whose attention is not on the AttentionInterface. The modules that replace the base's use the
    interface, so any implementation may be requested.

    The base model inside a head is built before its modules are replaced, and would refuse ``sdpa``, for example. It
    is therefore built with the implementation ``longattn``, and ``post_init`` sets the requested one afterwards.
    """

    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _requested: str | None = None

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """The implementation to use for a requested one. While the model is built, store it and return ours."""
        chosen = super().get_correct_attn_implementation(requested_attention, is_init_check)
        if is_init_check:
            self._requested = chosen
            return BACKEND
        return chosen

    def post_init(self) -> None:
        if self._requested is not None:
            setattr(self.config, IMPLEMENTATION_FIELD, self._requested)
            self._requested = None
        super().post_init()


class OnTheBackend(ReplacedModules):
    """Mixin for bases that add relative positions to scores. Mechanisms take the relative positions as score terms.
    With other attention implementations, the base's own code runs."""

    _supports_attention_backend = True
    adding: ClassVar[tuple[str, ...]] = ()
    """Names of config fields that switch relative positions on. Without names, they are always on."""

    def post_init(self) -> None:
        """Also refuse mechanisms that cannot add relative positions."""
        super().post_init()
        if not self.adding or any(getattr(self.config, name) for name in self.adding):
            refuse_scoreless(self, "adds relative positions to its attention scores")
