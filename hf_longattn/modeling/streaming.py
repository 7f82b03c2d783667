"""A decode cache of constant size for stock decoders: the first tokens of a text and its last ones (StreamingLLM).

In place of a tensor of keys, ``update`` returns :class:`StreamedKeys`, with which the attention function finds the
cache layer. Every other attention implementation raises an error on them, since it would compute wrong positions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import DynamicSlidingWindowLayer

from ..errors import BackendError, InputError, OptionError
from ..mechanisms.common.base import Mechanism
from ..mechanisms.common.masked import SparseMechanism
from ..mechanisms.common.options import LARGEST
from ..mechanisms.common.registry import mechanism_from
from ..memory.attention_cache import SparseCacheLayer
from ..names import BACKEND
from .declared import DeclaredMask
from .rotation import rotation_by_config
from .stock_attention import in_words

MECHANISM = "window"


class StreamingCache(Cache):
    """The keys of the first ``sinks`` tokens of each text and of its last ``window`` tokens, for a stock decoder.

    ::

        model = AutoModelForCausalLM.from_pretrained("google/gemma-3-270m", attn_implementation="longattn")
        model.generate(**prompt, cache=hf_longattn.StreamingCache(window=1024, sinks=4))

    Positions are those inside the cache (Xiao et al. 2023, Efficient Streaming Language Models with Attention Sinks,
    section 3.2). No token is further away than ``sinks + window - 1``, so a text may be of any length. Texts of up to
    ``sinks + window`` tokens get full attention. Layers that have a window of their own keep it.

    A prompt is read at once. With ``prefill_chunk_size``, ``generate`` reads it in pieces, and the cache never holds
    more than ``sinks + window`` tokens, 64 further ones and a piece. A cache can be copied (``copy.deepcopy``) and
    pickled, for example with a prompt that many texts begin with. Before transformers 5.24, ``generate`` takes it as
    ``past_key_values``.

    Args:
        window: number of last tokens, the newest included.
        sinks: number of first tokens, at least 1.

    Raises:
        OptionError: ``window`` or ``sinks`` is no such number.
        BackendError: at the first call, if the model does not run ``longattn``, or if its attention does not allow
            sinks, for example because it rotates queries and keys in an unknown way.
    """

    def __init__(self, window: int = 1024, sinks: int = 4) -> None:
        for name, value in (("window", window), ("sinks", sinks)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OptionError(
                    f"{name} of a StreamingCache is {value!r}, but must be a whole number of tokens, at least 1; for "
                    "example StreamingCache(window=1024, sinks=4)."
                )
        self.options = {"num_sinks": sinks, "window": window}
        mechanism_from(MECHANISM, self.options, num_heads=1, head_dim=2)  # checks the options
        self.mechanisms: dict[Any, Mechanism] = {}
        """The mechanism of each kind of layer, made at the first call."""
        super().__init__(layers=[])

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "mechanisms": {}}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Any, Tensor]:
        """Append keys and values ``(B, H, n, D)`` of new tokens to the layer ``layer_idx``. Returns
        :class:`StreamedKeys` and the values of all tokens that the layer holds."""
        while len(self.layers) <= layer_idx:
            self.layers.append(SparseCacheLayer(MECHANISM, json.dumps(self.options)))
        layer = self.layers[layer_idx]
        if isinstance(layer, SparseCacheLayer):
            layer.share_step(self.layers)
        keys, values = super().update(key_states, value_states, layer_idx)
        return StreamedKeys(self, layer_idx, keys), values

    def refuse_states(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise :class:`BackendError`, in place of the methods for layers with a state."""
        raise BackendError(
            "The model has layers with a state in place of keys (convolutions or a recurrence), which a "
            "StreamingCache does not hold; leave it out."
        )

    get_conv_state = get_recurrent_state = update_conv_state = update_recurrent_state = refuse_states
    has_previous_state = refuse_states

    def keep_own_window(self, layer_idx: int, window: int) -> None:
        """Make a layer keep the last ``window`` tokens, as the model's own cache does. Called in a layer's first
        call."""
        before = self.layers[layer_idx]
        self.layers[layer_idx] = DynamicSlidingWindowLayer(window)
        self.layers[layer_idx].update(before.keys, before.values)

    def mechanism_for(self, module: nn.Module, keys: Tensor) -> Mechanism:
        """The mechanism of an attention module without a window of its own. Layers of the same type and width share
        it.

        Raises:
            BackendError: the rotation of keys is unknown, so the positions of sinks cannot be changed.
        """
        types = getattr(module.config, "layer_types", None)
        layer_type = None if types is None else types[module.layer_idx]
        kind = (layer_type, keys.shape[-1])
        if kind not in self.mechanisms:
            mechanism = mechanism_from(MECHANISM, self.options, num_heads=1, head_dim=keys.shape[-1]).eval()
            assert isinstance(mechanism, SparseMechanism)
            try:
                rotation = rotation_by_config(module)
            except OptionError as error:
                raise BackendError(f"{error}, so a StreamingCache cannot move its sinks; leave it out.") from None
            if rotation is not None:
                mechanism.turn_sinks(rotation)
            self.mechanisms[kind] = mechanism
        return self.mechanisms[kind]


@dataclass(eq=False)
class StreamedKeys:
    """The keys ``(B, H, Nk, D)`` of a layer of ``cache``. Only the attention function ``longattn`` can read them."""

    cache: StreamingCache
    layer_idx: int
    keys: Tensor

    def refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise :class:`BackendError`, in place of every operation of a tensor."""
        raise BackendError(
            f"A StreamingCache needs the attention {BACKEND!r}, in a model that takes its attention from "
            "transformers' AttentionInterface and changes no keys in its cache (BLOOM and DeepSeek are no such "
            f"models); load the model with attn_implementation={BACKEND!r}, or leave the cache out."
        )

    __getattr__ = __getitem__ = __torch_function__ = refuse

    def for_module(
        self, module: nn.Module, mask: Any, kwargs: dict[str, Any]
    ) -> tuple[Mechanism | None, Tensor, SparseCacheLayer | None]:
        """The mechanism for a call of an attention module, the keys ``(B, H, Nk, D)``, and the cache layer. Mechanism
        and layer are ``None`` for a module with a window of its own.

        Args:
            mask: the module's mask.
            kwargs: the other keywords of the attention function.

        Raises:
            BackendError: the module has a mechanism, gets a mask over pairs, or does not see all earlier tokens.
            InputError: the module changes its scores by a bias or a cap.
        """
        cache, keys = self.cache, self.keys
        layer = cache.layers[self.layer_idx]
        if getattr(module, "long_attention", None) is not None:
            raise BackendError(
                f"{in_words(module)} has a mechanism with a cache of its own; leave StreamingCache out, or load the "
                "stock model."
            )
        if isinstance(mask, Tensor):
            raise BackendError(
                f"{in_words(module)} got a mask of pairs of tokens, which a StreamingCache does not follow; pass an "
                "attention_mask (batch, tokens), or leave the cache out if the model makes such a mask itself."
            )
        if not isinstance(layer, SparseCacheLayer):
            return None, keys, None
        # in the first call, the mask says whether the module has a window
        if isinstance(mask, DeclaredMask) and layer.cumulative_length == mask.queries:
            if mask.exact and mask.left < LARGEST:
                cache.keep_own_window(self.layer_idx, mask.left + 1)
                return None, keys, None
            if not mask.exact or mask._labels:
                raise BackendError(f"{in_words(module)} does not see every earlier token, so it has no sinks to keep.")
        if kwargs.get("position_bias") is not None or kwargs.get("softcap") is not None:
            raise InputError(
                f"{in_words(module)} changes its scores by a bias or a cap, which a StreamingCache does not follow; "
                "leave it out."
            )
        return cache.mechanism_for(module, keys), keys, layer
