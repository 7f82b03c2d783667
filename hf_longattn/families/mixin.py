"""What a Long model class adds to its base: mechanisms on its attention modules, and ``global_attention_mask`` in its signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..backend import BACKEND
from ..errors import OptionError
from ..mechanisms.registry import mechanism_class
from ..memory import SegmentMemory
from ..naming import COPY, TAGS, load_module
from .attachment import attach_mechanisms
from .config import BASE_ATTENTION
from .forward import with_long_arguments
from .initial_values import initialise, without_values
from .limits import check_tables, refuse_scoreless
from .loading import drop_tables, freeze_tables
from .recurrence import new_memory
from .registry import Family
from .sharing import separate_parameters, shared_parameters
from .token_globals import global_tokens_of, token_rule

if TYPE_CHECKING:
    from transformers import GenerationMixin, PreTrainedModel

    class _Base(PreTrainedModel, GenerationMixin):
        pass
else:
    _Base = object


class LongAttentionMixin(_Base):
    """its ``forward`` takes what the base's takes, plus ``global_attention_mask (B, N)``, 1 = global.

    The attention implementation is ``longattn``: no other one knows mechanisms. ``use_base_attention`` computes the plain base's.
    """

    family: ClassVar[Family]
    hands_globals_down: ClassVar[bool] = True
    """Whether the base's heads and layers hand keyword arguments down to attention, as a global mask needs."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "forward") and "global_attention_mask" not in inspect.signature(cls.forward).parameters:
            cls.forward = with_long_arguments(cls.forward)

    def post_init(self) -> None:
        """Called at the end of every base's ``__init__``: the model inside a head becomes ours, and mechanisms are attached."""
        for module in self.modules():
            long_class = None if module is self else self.family.long_class_of(type(module))
            if long_class is not None:  # built by the head's own __init__; the Long class adds no state, so the instance can become one
                module.__class__ = long_class
                module.adapt()
        self._refuse_globals()
        attach_mechanisms(self, self.config.long_attention, getattr(self.config, "decoder_attention", None))
        cap = self.config.score_cap
        if cap is not None and getattr(self.config, cap) is not None:
            refuse_scoreless(self, f"caps its attention scores ({cap}={getattr(self.config, cap)})")
        models = [module for module in self.modules() if isinstance(module, LongAttentionMixin)]
        for model in models:
            model.equip()
        for model in models:
            if shared := shared_parameters(model):
                model._tied_weights_keys = {**(model._tied_weights_keys or {}), **shared}  # saved once
        super().post_init()
        freeze_tables(self, self.family)
        self.add_model_tags(list(TAGS))

    def _upload_modified_files(self, working_dir: Any, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """Part of ``push_to_hub``: a repository that has no card yet gets ours in place of transformers' empty one."""
        if not COPY:
            load_module("hub", "trainer_card").complete_pushed_card(working_dir, repo_id, self.config.name_or_path)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def _refuse_globals(self) -> None:
        """Mechanisms with global tokens have no place in models whose layers cannot be told of them."""
        attention = self.config.long_attention
        names = {attention.for_layer(layer)[0] for layer in range(self.config.num_hidden_layers)} if not self.hands_globals_down else set()
        if found := sorted(name for name in names if mechanism_class(name).takes_globals):
            raise OptionError(
                f"{type(self).__name__} cannot hand global tokens to its attention, which mechanism {found[0]!r} is about; "
                "choose one without, for example mechanism='nystrom' or 'window'."
            )

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """As the base's; what the layers' mechanisms share is tied whatever the config says of word embeddings."""
        return {**super().get_expanded_tied_weights_keys(all_submodels), **shared_parameters(self)}

    def mark_tied_weights_as_initialized(self, loading_info: Any) -> None:
        """While it loads, a model does not share: transformers marks what is tied, and must not take the first layer's for loaded."""
        separate_parameters(self)
        super().mark_tied_weights_as_initialized(loading_info)

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """As the base's; what the layers share is initialised by now where a short checkpoint has none, and so is not missing."""
        begun = set(shared_parameters(self).values()) & (missing_keys or set())
        if missing_keys is not None:
            missing_keys -= begun
        super().tie_weights(missing_keys, recompute_mapping)
        if missing_keys is not None:
            missing_keys |= begun

    def adapt(self) -> None:
        """Called once when an instance of the base has become one of ours: what its ``__init__`` would have done otherwise."""

    def equip(self) -> None:
        """Called once when the mechanisms are attached: what a model with these needs besides."""

    def prepared(self, base_forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
        """What runs in place of ``base_forward`` on these arguments, which are checked and completed in ``kwargs``."""
        return base_forward

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """As the base's; then what the mechanisms and memory tokens add, where it was not loaded."""
        added = without_values(self)
        super().initialize_weights()
        drop_tables(self, self.family)
        initialise(self, added)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """Every Long class runs on the interface; the base's own answer is read off its source, which need not be on it (BigBird)."""
        return True

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """As the base's; what does not compute the mechanisms is refused (``LongConfig.resolve_implementation``)."""
        return super().get_correct_attn_implementation(self.config.resolve_implementation(requested_attention), is_init_check)

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args: Any, **kwargs: Any) -> str:
        """The same before transformers looks for kernels, which it downloads."""
        return super()._check_and_adjust_attn_implementation(self.config.resolve_implementation(attn_implementation), *args, **kwargs)

    def use_base_attention(self, implementation: str | None = None) -> None:
        """Compute the attention of the plain base in place of the mechanisms, with the same weights.

            model.use_base_attention()                      # full attention, as BertModel
            model.set_attn_implementation("longattn")       # the mechanisms again

        Args:
            implementation: one that the base has; ``sdpa`` by default, or ``eager`` where it has no other.
        """
        configs = [module.config for module in self.modules() if isinstance(module, LongAttentionMixin)]
        for config in configs:
            setattr(config, BASE_ATTENTION, True)
        try:
            self.set_attn_implementation(implementation or ("sdpa" if self._supports_sdpa else "eager"))
        except BaseException:  # one that is not installed: the mechanisms stay, and were not given up
            for config in configs:
                if config._runs_mechanisms:
                    config.__dict__.pop(BASE_ATTENTION, None)
            raise

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As the base's; a checkpoint of the plain base gets its position table extended to the config's length.

        Raises:
            PositionError: when the config is shorter than the checkpoint.
        """
        check_tables(cls.family, pretrained_model_name_or_path, kwargs)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        freeze_tables(model, cls.family)  # transformers loads them as if they were trained
        return loaded

    def _update_model_kwargs_for_generation(self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """A generated token is not global: ``global_attention_mask`` grows with the text, unless that is an encoder's."""
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        if not self.config.is_encoder_decoder and (given := model_kwargs.get("global_attention_mask")) is not None:
            new = len(model_kwargs["attention_mask"][0]) - given.shape[1] if "attention_mask" in model_kwargs else 1
            model_kwargs["global_attention_mask"] = nn.functional.pad(given, (0, new))
        return model_kwargs

    def new_memory(self, positions: str | None = None) -> SegmentMemory:
        """An empty memory, to feed documents segment by segment: ``memory = model(input_ids, memory=memory).memory``.

        Each call sees what the mechanisms of its layers reach of the calls before (``transformer_xl``: the last ``memory_length`` tokens
        before the segment; ``infini`` and linear mechanisms: their state; ``recurrent_memory``: its memory tokens), without gradients.
        ``attention_mask (B, n)`` is that of the new tokens, and rows of ``memory_reset (B,)`` begin a new document.

        Args:
            positions: ``"continue"`` counts a document's tokens through all its segments, ``"restart"`` begins anew in each call; by
                default rotary positions continue and a position table, which would come to its end, begins anew.

        Raises:
            MemoryMismatchError: the model is an encoder without memory tokens, or runs another attention implementation.
        """
        return new_memory(self, positions)

    def _valid_auto_compile_criteria(self, model_kwargs: dict[str, Any], generation_config: Any) -> bool:
        """A static cache is cut to what is filled, so its shapes move and compiling each of them would not pay."""
        return self.config._attn_implementation != BACKEND and super()._valid_auto_compile_criteria(model_kwargs, generation_config)


class LongGenerationMixin(_Base):
    """Stands before the other mixins in models that generate."""

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Tokens that are global by their ids are found here, where the whole text is at hand and not only its last token.

        ``inputs_embeds`` stands in the signature because ``generate`` looks for it there.
        """
        rule = None if self.config.is_encoder_decoder or inputs_embeds is not None else token_rule(self)
        if rule is not None and kwargs.get("global_attention_mask") is None and self.config._attn_implementation == BACKEND:
            known = {"attention_mask": kwargs.get("attention_mask")}
            kwargs["global_attention_mask"] = global_tokens_of(rule, (input_ids,), known)
        return super().prepare_inputs_for_generation(input_ids, *args, inputs_embeds=inputs_embeds, **kwargs)


__all__ = ["LongAttentionMixin", "LongGenerationMixin"]
