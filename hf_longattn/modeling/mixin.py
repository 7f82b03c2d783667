"""What a Long model class adds to its base: mechanisms on its attention modules, and ``global_attention_mask`` in its signature."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..backend import BACKEND, documents_of, packing_refused, takes_masked_documents
from ..engines.batch import in_graph, positions_in
from ..errors import MaskError, MemoryMismatchError, OptionError
from ..mechanisms.base import Mechanism, Recursion
from ..mechanisms.registry import mechanism_class
from ..memory import SegmentMemory
from ..naming import COPY, TAGS, load_module
from ..private_apis import ModelHooks, assert_in_graph, attention_implementation, tie_parameters
from .attachment import attach_mechanisms
from .config import BASE_ATTENTION
from .family import Family, PositionTable
from .recurrence import MemoryTokens, attach_memory_tokens, new_memory, run_in_segments, run_with_memory
from .token_globals import global_tokens_of, token_rule
from .validation import check_length, check_tables, refuse_scoreless
from .weights import drop_tables, freeze_tables, initialise, separate_parameters, shared_parameters, without_values

if TYPE_CHECKING:
    from typing import Self  # Python 3.11, for type checkers only: bundled code must not import what transformers does not need

    from transformers import GenerationMixin, PreTrainedModel

    class _Base(PreTrainedModel, GenerationMixin):
        pass
else:
    _Base = object


class LongAttentionMixin(ModelHooks, _Base):
    """Comes before the base's model class; makes a head of the base a Long class."""

    family: ClassVar[Family]
    hands_globals_down: ClassVar[bool] = True
    """Whether the base's heads and layers pass keyword arguments on to attention, as a global mask requires."""

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
                tie_parameters(model, shared)
        super().post_init()
        freeze_tables(self, self.family)
        self.add_model_tags(list(TAGS))

    def before_upload(self, working_dir: Any, repo_id: str) -> None:
        """A repository that has no card yet gets ours in place of transformers' empty one."""
        if not COPY:
            load_module("hub", "trainer_card").complete_pushed_card(working_dir, repo_id, self.config.name_or_path)

    def _refuse_globals(self) -> None:
        """Refuse mechanisms with global tokens in models that cannot pass a global mask to their layers."""
        attention = self.config.long_attention
        names = {attention.for_layer(layer)[0] for layer in range(self.config.num_hidden_layers)} if not self.hands_globals_down else set()
        if found := sorted(name for name in names if mechanism_class(name).takes_globals):
            raise OptionError(
                f"{type(self).__name__} cannot pass global tokens to its attention, which mechanism {found[0]!r} needs; "
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
        """Called once when an instance of the base has become a Long model, for what its ``__init__`` has not done."""

    def equip(self) -> None:
        """Called once when the mechanisms are attached, for what else the model needs."""

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

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """As the base's; what does not compute the mechanisms is refused (``LongConfig.resolve_implementation``)."""
        return super().get_correct_attn_implementation(self.config.resolve_implementation(requested_attention), is_init_check)

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
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Self:
        """As the base's; a checkpoint of the plain base gets its position table extended to the config's length.

        Raises:
            PositionError: when the config is shorter than the checkpoint.
        """
        check_tables(cls.family, pretrained_model_name_or_path, kwargs)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        freeze_tables(model, cls.family)  # transformers loads them as if they were trained
        return loaded

    def after_generated_token(self, model_kwargs: dict[str, Any]) -> dict[str, Any]:
        """A generated token is not global: ``global_attention_mask`` grows with the text, unless that is an encoder's."""
        if not self.config.is_encoder_decoder and (given := model_kwargs.get("global_attention_mask")) is not None:
            new = len(model_kwargs["attention_mask"][0]) - given.shape[1] if "attention_mask" in model_kwargs else 1
            model_kwargs["global_attention_mask"] = nn.functional.pad(given, (0, new))
        return model_kwargs

    def new_memory(self, positions: str | None = None) -> SegmentMemory:
        """An empty memory, to feed documents segment by segment: ``memory = model(input_ids, memory=memory).memory``.

        Each call sees what the mechanisms of its layers reach of the calls before (``transformer_xl``: the last ``memory_length`` tokens
        before the segment; ``infini`` and linear mechanisms: their state; ``recurrent_memory``: its memory tokens), without gradients.
        ``attention_mask (B, n)`` is that of the new tokens, and rows of ``memory_reset (B,)`` start a new document.

        Args:
            positions: ``"continue"`` counts a document's tokens through all its segments, ``"restart"`` starts from 0 in each call; by
                default rotary positions continue and those of a position table, which is finite, restart.

        Raises:
            MemoryMismatchError: the model is an encoder without memory tokens, or runs another attention implementation.
        """
        return new_memory(self, positions)

    def may_compile_generation(self) -> bool:
        """A static cache is cut to what is filled, so its shapes move and compiling each of them would not pay."""
        return attention_implementation(self.config) != BACKEND


class LongGenerationMixin(_Base):
    """Comes before the other mixins in models that generate."""

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Tokens that are global by their ids are found here, where the whole text is available and not only its last token.

        ``inputs_embeds`` is in the signature because ``generate`` looks for it there.
        """
        rule = None if self.config.is_encoder_decoder or inputs_embeds is not None else token_rule(self)
        if rule is not None and kwargs.get("global_attention_mask") is None and attention_implementation(self.config) == BACKEND:
            known = {"attention_mask": kwargs.get("attention_mask")}
            kwargs["global_attention_mask"] = global_tokens_of(rule, (input_ids,), known)
        return super().prepare_inputs_for_generation(input_ids, *args, inputs_embeds=inputs_embeds, **kwargs)


__all__ = ["LongAttentionMixin", "LongGenerationMixin"]


class LongBaseModelMixin(LongAttentionMixin):
    """Comes before the base model, which receives the input with or without a head: checks and completes its arguments."""

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
        if self.recursion is None or attention_implementation(self.config) != BACKEND:
            return base_forward
        return functools.partial(run_in_segments, forward=base_forward)

    def _find_globals(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Without a ``global_attention_mask``, the tokens that are global by their ids."""
        if kwargs.get("global_attention_mask") is None and attention_implementation(self.config) == BACKEND:
            rule = token_rule(self)
            if rule is not None:
                kwargs["global_attention_mask"] = global_tokens_of(rule, args, kwargs, kwargs.get("documents"))

    def _check_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs.get("global_attention_mask") is not None and attention_implementation(self.config) == BACKEND:
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
        if attention_implementation(self.config) == BACKEND:
            self._find_documents(args, kwargs)
        elif kwargs.pop("documents", None) is not None:
            raise MaskError(
                "documents are kept apart by mechanisms only; call model.set_attn_implementation('longattn'), or leave documents out."
            )
        if self.position_table is not None and (self.recursion is None or attention_implementation(self.config) != BACKEND):
            check_length(self.position_table, self.config, args, kwargs)

    def _find_documents(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Documents packed into one row, by numbers, by offsets or by positions that restart, as ``documents (B, N)`` for attention."""
        tokens = args[0] if args else kwargs.get("input_ids")
        tokens = kwargs.get("inputs_embeds") if tokens is None else tokens
        if not isinstance(tokens, Tensor):
            return
        positions = kwargs.get("position_ids")
        unmasked = len(args) <= 1 and kwargs.get("attention_mask") is None and kwargs.get("past_key_values") is None
        restarting = positions if unmasked and isinstance(positions, Tensor) and positions.dim() == 2 and positions.shape[1] > 1 else None
        shape = (tokens.shape[0], tokens.shape[1])
        traced = in_graph()
        told = documents_of(kwargs, shape)
        if told is None and (restarting is None or torch.compiler.is_exporting() or torch.jit.is_tracing()):
            return
        restarts = None if restarting is None else restarting[:, 1:] <= restarting[:, :-1]
        if told is None and traced:
            assert restarts is not None
            if (refusal := self._refusal_of_packing(shape[1], kwargs.get("use_cache"))) is not None:
                assert_in_graph(~restarts.any(), refusal)  # positions are not known yet
                self._rule_out_packing(args, kwargs)
            return
        if told is None:
            assert restarts is not None
            if not restarts.any():
                return
            told = nn.functional.pad(restarts.cumsum(1), (1, 0)).expand(shape)
        if not traced and shape[1] and bool((told[:, -1:] == told[:, :1]).all()):  # one document in each row
            return
        if (refusal := self.refusal_of_documents(kwargs)) is not None:
            raise MaskError(refusal)
        kwargs["documents"] = told
        if positions is None and "position_ids" in inspect.signature(type(self).forward).parameters:
            first = self.position_table.first_id if self.position_table is not None else 0
            kwargs["position_ids"] = positions_in(told) + first
        if kwargs.get("use_cache") is None and getattr(self.config, "use_cache", False):
            kwargs["use_cache"] = False
        if unmasked:  # otherwise transformers makes an N×N mask for positions that restart
            self._rule_out_packing(args, kwargs)

    def refusal_of_documents(self, kwargs: dict[str, Any]) -> str | None:
        """Why documents cannot be packed into a row of this call; None where they can."""
        if self.recursion is not None or self.config.is_encoder_decoder or not self.hands_globals_down:
            which = "runs in segments with memory tokens" if self.recursion is not None else "cannot tell its attention where each starts"
            return (
                f"Several documents are packed into one row, but {type(self).__name__} {which}; give each document its own row "
                "with padding."
            )
        if kwargs.get("use_cache") or kwargs.get("past_key_values") is not None:
            return (
                "Several documents are packed into one row, but with a cache nothing keeps them apart; "
                "pass use_cache=False, or give each document its own row with padding."
            )
        takes_positions = "position_ids" in inspect.signature(type(self).forward).parameters
        if self.position_table is not None and kwargs.get("position_ids") is None and not takes_positions:
            return (
                f"Several documents are packed into one row, but {type(self).__name__} takes no position_ids that could restart with each; "
                "give each document its own row with padding."
            )
        return None

    def _refusal_of_packing(self, length: int, use_cache: bool | None) -> str | None:
        """Why a traced graph of this model does not take rows of ``length`` tokens with several documents; None where it does: there a
        mask of transformers keeps them apart, which is enough where distances alone matter."""
        causal = any(getattr(module, "is_causal", False) for module in self.modules() if hasattr(module, "long_attention"))
        if not causal:
            return (
                "Several documents are packed into one row (position_ids restart in it), but nothing keeps them apart in a compiled "
                "encoder; call it without torch.compile, or give each document its own row with padding."
            )
        for mechanism in self.modules():
            if isinstance(mechanism, Mechanism) and (self.recursion is not None or not takes_masked_documents(mechanism, length, causal)):
                return packing_refused(mechanism)
        if getattr(self.config, "use_cache", False) if use_cache is None else use_cache:
            return (
                "Several documents are packed into one row (position_ids restart in it), but with a cache nothing keeps them apart; "
                "pass use_cache=False, or give each document its own row with padding."
            )
        return None

    def _rule_out_packing(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """While it is compiled, a causal model without attention_mask prepares for packed sequences with an N×N mask; without
        position_ids there are none, as a mask of ones tells it."""
        tokens = args[0] if args else kwargs.get("input_ids")
        tokens = kwargs.get("inputs_embeds") if tokens is None else tokens
        if len(args) <= 1 and kwargs.get("past_key_values") is None and isinstance(tokens, Tensor):
            kwargs["attention_mask"] = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)


class LongDecoderMixin(LongBaseModelMixin):
    """Comes before the decoder of a base that has both; ``global_attention_mask`` is the encoder's, where there is one."""

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


def with_long_arguments(base_forward: Any) -> Any:
    """``base_forward`` with our arguments in its signature: Trainer drops the columns that it does not find there."""

    @functools.wraps(base_forward)
    def forward(
        self: Any,
        *args: Any,
        global_attention_mask: Tensor | None = None,
        documents: Tensor | None = None,
        memory: SegmentMemory | None = None,
        memory_reset: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if global_attention_mask is not None and not self.hands_globals_down:
            raise MaskError(f"{type(self).__name__} cannot pass a global_attention_mask to its attention; leave it out.")
        if global_attention_mask is not None:  # heads that take several texts for each example flatten them, (B, choices, N)
            several = global_attention_mask.dim() == 3
            kwargs["global_attention_mask"] = global_attention_mask.flatten(0, 1) if several else global_attention_mask
        if documents is not None:
            kwargs["documents"] = documents
        if memory is not None:
            return run_with_memory(self, forward, args, kwargs, memory, memory_reset)
        if memory_reset is not None:
            raise MemoryMismatchError("memory_reset was given without a memory; pass memory=model.new_memory() as well.")
        outputs = self.prepared(base_forward, args, kwargs)(self, *args, **kwargs)
        return with_auxiliary_loss(self, outputs, kwargs) if self.training and attention_implementation(self.config) == BACKEND else outputs

    signature = inspect.signature(base_forward)
    parameters = list(signature.parameters.values())
    own = inspect.signature(forward, follow_wrapped=False).parameters.values()
    added = [parameter for parameter in own if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    last = len(parameters) - 1 if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD else len(parameters)
    forward.__signature__ = signature.replace(parameters=[*parameters[:last], *added, *parameters[last:]])  # type: ignore[attr-defined]
    return forward


def auxiliary_loss(model: nn.Module) -> Tensor | None:
    """The sum of :meth:`hf_longattn.Mechanism.auxiliary_loss` over all mechanisms of ``model``; ``None`` when none has one."""
    losses = [module.auxiliary_loss() for module in model.modules() if isinstance(module, Mechanism)]
    found = [loss for loss in losses if loss is not None]
    return sum(found[1:], found[0]) if found else None


def with_auxiliary_loss(model: nn.Module, outputs: Any, arguments: dict[str, Any]) -> Any:
    """``outputs`` of a forward pass with the auxiliary loss in their loss, where they have one.

    With ``num_items_in_batch``, by which Trainer makes the losses of accumulated batches add up to one mean, each batch brings its share.
    """
    by_name = hasattr(outputs, "loss")
    loss = outputs.loss if by_name else outputs[0] if isinstance(outputs, tuple) and outputs else None
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        return outputs
    added = auxiliary_loss(model)
    if added is None:
        return outputs
    labels, items = arguments.get("labels"), arguments.get("num_items_in_batch")
    if isinstance(labels, Tensor) and items is not None:
        added = added * (labels != -100).sum() / torch.as_tensor(items, device=labels.device)
    loss = loss + added.to(loss)
    if not by_name:
        return (loss, *outputs[1:])
    outputs.loss = loss
    return outputs
