"""Mixins that turn model classes of transformers into Long classes. They attach mechanisms to attention modules, and
add arguments to ``forward``."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.generation.stopping_criteria import MaxLengthCriteria

from ..engines.batch import first_real, for_one_pass, in_graph, of_any_length
from ..errors import BackendError, InputError
from ..files import TAGS
from ..mechanisms.common.base import Mechanism
from ..mechanisms.common.capabilities import Recursion, Stateful
from ..mechanisms.common.masked import has_sinks_in_text, steps_by_mask
from ..mechanisms.common.options import FULL_DECODING
from ..mechanisms.common.shared_options import full_of
from ..memory.decode_cache import CACHE, OTHER_CACHE, prompt_read
from ..memory.segment_memory import SegmentMemory
from ..names import require
from .attach.attachment import attach_mechanisms
from .attach.attention_sites import MECHANISM_ATTRIBUTE, is_causal, layer_mechanisms
from .attach.custom_attention import refuse_scoreless
from .attach.global_mask import check_globals, global_token_ids, global_tokens_of
from .attach.memory_tokens import attach_memory_tokens, run_in_segments
from .attach.weights import LoadsMechanisms, check_tables, freeze_tables
from .backend import weights_requested
from .family.definition import Family, module_name
from .family.long_config import BASE_ATTENTION, runs_mechanisms
from .family.position_table import PositionTable, input_of
from .family.rotary import positions_without_end
from .inference import warn_of_overflow
from .keywords import COLLECT_WEIGHTS, DOCUMENTS
from .losses import auxiliary_loss, deferred_logits, label_count, share_of_step
from .masks import check_size, filled_columns, simplified_mask
from .memory_argument import MEMORY_MASK_ARGUMENT, new_memory, run_with_memory
from .packed_documents import find_documents, leave_out_documents, rule_out_packing
from .pruning import KEPT_HEADS, cut_as_configured

if TYPE_CHECKING:
    from transformers import GenerationMixin, PreTrainedModel
    from typing_extensions import Self

    class _Base(PreTrainedModel, GenerationMixin):
        pass
else:
    _Base = object


class HubMixin(_Base):
    """Saving and uploading of a model whose class only this package has."""

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save the model. If it was loaded from a folder with the Python file that ``--remote-code`` writes, the new
        folder gets such a file too."""
        source = self.config.name_or_path
        model_type = str(self.config.model_type)
        super().save_pretrained(save_directory, *args, **kwargs)
        had_code = bool(source) and Path(source, f"modeling_{module_name(model_type)}.py").is_file()
        if had_code and kwargs.get("is_main_process", True):
            importlib.import_module("hf_longattn.hub.push").write_remote_code(save_directory)

    def push_to_hub(self, repo_id: str, *args: Any, **arguments: Any) -> Any:
        """Upload as transformers does, but refuse an existing public repository if ``private=True`` is given."""
        if arguments.get("private"):
            push = importlib.import_module("hf_longattn.hub.push")
            push.check_login(repo_id, arguments.get("token"), private=True)
        return super().push_to_hub(repo_id, *args, **arguments)

    def _upload_modified_files(
        self, working_dir: Any, repo_id: str, files_timestamps: Mapping[str, float], **arguments: Any
    ) -> Any:
        """Upload a folder as ``longattn push`` does, with this package's model card in place of transformers' empty
        one. ``push_to_hub`` calls this with the folder in which it has saved the model.

        Args:
            files_timestamps: files that were in the folder before saving -> their modification times. Only those that
                have changed are uploaded.
        """
        unchanged = [
            name for name, time in files_timestamps.items() if Path(working_dir, name).stat().st_mtime <= time
        ]
        push = importlib.import_module("hf_longattn.hub.push")
        return push.push_loaded(working_dir, repo_id, self.config.name_or_path, leave_out=unchanged, **arguments)


class LongAttentionMixin(LoadsMechanisms, HubMixin):
    """Mixin before the base's model class that makes it a Long class."""

    family: ClassVar[Family]
    accepts_loss_kwargs: ClassVar[bool]
    """Whether the loss is divided by ``num_items_in_batch``, the number of labels in a whole step. Trainer reads
    this."""
    hands_globals_down: ClassVar[bool] = True
    """Whether the base's heads and layers pass keyword arguments on to attention."""
    annotates_globals: ClassVar[bool] = False
    """Whether the base passes global tokens to attention in the attention mask, because it passes no keyword arguments
    on (DeBERTa-v2)."""

    packs_documents: bool = True
    """Whether this head supports several documents in a row. :func:`.refusal_of_documents` says it for base models."""

    added_arguments: ClassVar[tuple[str, ...]] = ("global_attention_mask", "documents", "memory", "memory_reset")
    """Keyword arguments of ``forward`` besides the base's."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "forward") and "global_attention_mask" not in inspect.signature(cls.forward).parameters:
            require("overridden_methods")
            cls.forward = cls.with_arguments(cls.forward)

    @classmethod
    def with_arguments(cls, base_forward: Any) -> Any:
        """``forward`` of the Long class, made from the base's. It takes :attr:`added_arguments`, and passes all
        arguments on by name."""
        signature = inspect.signature(base_forward)
        names = [name for name in signature.parameters if name != "self"]

        @functools.wraps(base_forward)
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            # arguments by name; an added argument that is None counts as not given
            for name in self.added_arguments:
                if kwargs.get(name, ...) is None:
                    del kwargs[name]
            arguments = {**dict(zip(names, args, strict=False)), **kwargs}
            # transformers has two names for the cache; if both have one, the base refuses them
            if arguments.get(CACHE) is None and OTHER_CACHE in arguments:
                arguments[CACHE] = arguments.pop(OTHER_CACHE)
            self.read_arguments(arguments)
            memory = arguments.pop("memory", None)
            reset = arguments.pop("memory_reset", None)
            if memory is not None or reset is not None:
                return run_with_memory(self, forward, arguments, memory, reset)
            return self.call_base(base_forward, arguments)

        # Libraries read the signature: Trainer drops columns of a dataset that are not in it.
        kind = inspect.Parameter.KEYWORD_ONLY
        added = [inspect.Parameter(name, kind, default=None) for name in cls.added_arguments]
        # kinds are numbers in the order of a signature, in which ``**kwargs`` come last
        parameters = sorted([*signature.parameters.values(), *added], key=lambda parameter: parameter.kind)
        long_forward: Any = forward
        long_forward.__signature__ = signature.replace(parameters=parameters)
        return long_forward

    def read_arguments(self, arguments: dict[str, Any]) -> None:
        """Check the arguments of ``forward``, given by name, before the base's ``forward`` gets them. Subclasses add
        checks, and change ``arguments`` in place."""
        if not self.hands_globals_down:
            leave_out_documents(self, arguments)

    def post_init(self) -> None:
        """Make the model inside a head a Long model, and attach mechanisms. Every base calls this at the end of its
        ``__init__``.

        Raises:
            OptionError: the mechanisms, or the numbers of heads, are not possible in this model.
        """
        # inner models become Long models
        for module in self.modules():
            if module is self or not hasattr(module, "config_class"):
                continue
            long_class = self.family.long_class_of(type(module))
            if long_class is not None:  # the Long class adds no state, so the instance can change its class
                module.__class__ = long_class
                module.after_class_swap()
        # mechanisms, on the heads that are left
        if getattr(self.config, KEPT_HEADS, None) is not None:
            cut_as_configured(self)
        attach_mechanisms(self, self.config.long_attention, getattr(self.config, "decoder_attention", None))
        cap = self.config.score_cap
        if cap is not None and getattr(self.config, cap) is not None:
            refuse_scoreless(self, f"caps its attention scores ({cap}={getattr(self.config, cap)})")
        for module in [*self.modules()]:  # a list, because after_attach may add modules
            if isinstance(module, LongBaseModelMixin):
                module.after_attach()
        super().post_init()
        freeze_tables(self, self.family)
        self.add_model_tags(list(TAGS))

    def after_class_swap(self) -> None:
        """Adapt an instance of the base whose class has just become this Long class. Called once.

        The base makes the decoder's position table as long as the encoder's. It is replaced by one of the decoder's
        length."""
        table = getattr(self, "position_table", None)
        old = getattr(self, "embed_positions", None)
        if table is not None and table.decoder and old is not None and old.weight.shape[0] != table.rows(self.config):
            with torch.device(old.weight.device):
                self.embed_positions = type(old)(table.tokens(self.config), old.embedding_dim)

    def call_base(self, base_forward: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Run ``base_forward``, and complete its loss.

        In training, the auxiliary losses of mechanisms are added to the loss. With ``num_items_in_batch``, Trainer's
        number of labels in a step, the mean loss becomes the batch's share of the step's loss. A causal language model
        that is trained with labels computes its logits only when they are read."""
        items = arguments.pop("num_items_in_batch", None)
        defers = self.training and any(arguments.get(name) is not None for name in ("labels", "shift_labels"))
        with deferred_logits(self) if defers else nullcontext():
            outputs = base_forward(self, **arguments)
        is_tuple = isinstance(outputs, tuple)
        loss = next(iter(outputs), None) if is_tuple else getattr(outputs, "loss", None)
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            return outputs
        added = auxiliary_loss(self) if self.training and self.runs_mechanisms else None
        if added is not None:
            loss = loss + added.to(loss)
        count = None if items is None else label_count(type(self).__name__, arguments)
        if count is not None:
            loss = share_of_step(loss, count, items)
        if is_tuple:
            return (loss, *outputs[1:])
        outputs.loss = loss
        return outputs

    def _initialize_weights(self, module: nn.Module, *_: Any) -> None:
        """Initialise ``module`` as transformers does. Leaves out transformers' flag for models with remote code, with
        which it would skip modules without tensors."""
        super()._initialize_weights(module)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """Whether the attention implementation can be set: always. transformers would look for this in the source code
        of the base, which may not support it (BigBird)."""
        return True

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args: Any, **kwargs: Any) -> str:
        """The attention implementation for a requested name. The config resolves the name first, because transformers
        would take an unknown name for a kernel on the Hub, and download it."""
        chosen = self.config.resolve_implementation(attn_implementation)
        adjusted = super()._check_and_adjust_attn_implementation(chosen, *args, **kwargs)
        # again, since a FlashAttention kernel gets windows only after transformers has loaded it
        return self.config.resolve_implementation(adjusted)

    def use_base_attention(self, implementation: str | None = None) -> None:
        """Compute the plain base's attention instead of the mechanisms, with the same weights.

            model.use_base_attention()                      # full attention, as BertModel
            model.set_attn_implementation("longattn")       # the mechanisms again

        Args:
            implementation: one that the base supports; by default ``sdpa``, or ``eager`` if there is no other.
        """
        configs = [module.config for module in self.modules() if isinstance(module, LongAttentionMixin)]
        for config in configs:
            setattr(config, BASE_ATTENTION, True)
        if implementation is None:
            implementation = "sdpa" if self._supports_sdpa else "eager"
        try:
            self.set_attn_implementation(implementation)
        except BaseException:  # for example, the implementation is not installed: keep the mechanisms
            for config in configs:
                if config._runs_mechanisms:
                    config.__dict__.pop(BASE_ATTENTION, None)
            raise

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Load a model as the base's ``from_pretrained`` does. The position table of a short checkpoint is extended to
        the config's length.

        Raises:
            OptionError: the config is shorter than the checkpoint.
        """
        check_tables(cls.family, pretrained_model_name_or_path, kwargs)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        freeze_tables(model, cls.family)  # transformers loads them as trainable
        if getattr(model.config, "quantization_config", None) is not None:
            warn_of_overflow(model)
        return loaded

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save the model. If positions start after the padding id (RoBERTa), the saved config has the ``pad_token_id``
        with which the model was built, even if Trainer has overwritten it with the tokenizer's."""
        config: Any = self.config
        padding = getattr(config, "pad_token_id", None)
        base: Any = self.running_base
        table = getattr(base, "position_table", None)
        if table is not None and table.offset == "padding" and base.first_id > 0:
            config.pad_token_id = base.first_id - 1
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            if hasattr(config, "pad_token_id"):
                config.pad_token_id = padding

    @property
    def running_base(self) -> LongBaseModelMixin | None:
        """The :class:`LongBaseModelMixin` that every call runs; ``None`` for an encoder-decoder, which has two.

        It may be another than ``base_model``, because some heads call an inner model (OPT's heads call the
        decoder)."""
        bases = [module for module in self.modules() if isinstance(module, LongBaseModelMixin)]
        return bases[0] if len(bases) == 1 else None

    runs_mechanisms = property(runs_mechanisms)

    @property
    def first_position_id(self) -> int:
        """The first of the ``position_ids`` of a text. It is not 0 if the position table starts with rows that are not
        positions (RoBERTa)."""
        base = self.running_base
        return 0 if base is None else base.first_id

    def _prepare_position_ids_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        """The positions of a prompt, from :attr:`first_position_id` on. transformers counts from 0, even for models
        whose positions start later."""
        return super()._prepare_position_ids_for_generation(*args, **kwargs) + self.first_position_id

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Extend ``global_attention_mask (B, N)`` by the generated tokens, which are not global. The mask of an
        encoder does not change."""
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        mask = model_kwargs.get("global_attention_mask")
        if mask is not None and not self.config.is_encoder_decoder:
            new_tokens = 1
            if "attention_mask" in model_kwargs:
                new_tokens = len(model_kwargs["attention_mask"][0]) - mask.shape[1]
            model_kwargs["global_attention_mask"] = nn.functional.pad(mask, (0, new_tokens))
        return model_kwargs

    def new_memory(self, positions: str | None = None) -> SegmentMemory:
        """An empty memory, to read documents segment by segment: ``memory = model(input_ids, memory=memory).memory``.

        Each call sees, without gradients, as much of earlier calls as its mechanisms do: the last ``memory_length``
        tokens with ``transformer_xl``, a state with linear mechanisms, memory tokens with ``recurrent_memory``.
        ``attention_mask (B, n)`` covers the new tokens. Rows where ``memory_reset (B,)`` is True start a new document.

        Args:
            positions: ``"continue"`` counts tokens through all segments of a document. ``"restart"`` counts from 0 in
                each segment. By default, rotary positions continue, and positions in a table of limited length
                restart.

        Raises:
            InputError: the model is an encoder without memory tokens, or runs another attention implementation.
        """
        return new_memory(self, positions)

    def _valid_auto_compile_criteria(self, model_kwargs: dict[str, Any], generation_config: Any) -> bool:
        """Whether ``generate`` may compile its steps. The base must allow it, and every mechanism must be able to
        decode from a static cache in a single graph."""
        valid = super()._valid_auto_compile_criteria(model_kwargs, generation_config)
        if not valid or not self.runs_mechanisms:
            return valid
        return all(
            layer.capabilities.recursion is None and (isinstance(layer, Stateful) or steps_by_mask(layer))
            for layer in layer_mechanisms(self)
            if not layer.is_cross_attention
        )


class LongGenerationMixin(_Base):
    """Mixin for models that generate. It comes before the other mixins."""

    def _validate_generation_mode(self, generation_mode: str, generation_config: Any, *args: Any) -> None:
        """Run the base's checks, and refuse ways to generate that the mechanisms do not support.

        A model with memory tokens has no cache, so it refuses assisted decoding and prompts in pieces. The option
        ``full_decoding`` needs a cache and steps of one token, so it refuses assisted decoding and
        ``use_cache=False``.

        Raises:
            InputError: the way to generate is refused.
        """
        super()._validate_generation_mode(generation_mode, generation_config, *args)
        if not self.runs_mechanisms:
            return
        assisted = generation_mode == "assisted_generation"
        size = generation_config.prefill_chunk_size
        if getattr(self.running_base, "recursion", None) is not None:
            if size is not None:
                raise InputError(
                    f"prefill_chunk_size={size} reads a prompt in pieces with a cache, but a model with memory tokens "
                    "has none and reads the text in segments; leave prefill_chunk_size out."
                )
            if assisted:
                raise InputError(
                    "Assisted decoding needs a cache, and a model with memory tokens generates without one; leave "
                    "assistant_model and prompt_lookup_num_tokens out."
                )
        problem = ""
        if assisted:
            problem = "assisted decoding (assistant_model, prompt_lookup_num_tokens)"
        elif generation_config.use_cache is False:
            problem = "use_cache=False"
        if problem and any(getattr(layer.options, FULL_DECODING, None) for layer in layer_mechanisms(self)):
            raise InputError(
                f"full_decoding needs a cache and steps of one token, and {problem} rules them out; leave that out, "
                "or convert without full_decoding."
            )

    def _prefill(self, input_ids: Tensor, generation_config: Any, model_kwargs: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the base's pass over a prompt, without counting pieces of the prompt as decoding steps
        (:func:`prompt_read`)."""
        with prompt_read(self.config, input_ids, generation_config, model_kwargs):
            return super()._prefill(input_ids, generation_config, model_kwargs, *args, **kwargs)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Start the base's continuous batching, which only the base's attention supports. ``generate_batch`` calls
        this.

        Raises:
            BackendError: mechanisms run. They cannot read keys that are stored in pages.
        """
        if self.runs_mechanisms:
            raise BackendError(
                "Continuous batching (generate_batch, transformers serve) keeps keys in pages, which only the base's "
                "attention reads; call generate with a padded batch, or first model.use_base_attention() to leave the "
                "mechanisms out."
            )
        return super().init_continuous_batching(*args, **kwargs)

    def _prepare_generated_length(self, generation_config: Any, **kwargs: Any) -> Any:
        """Set the lengths as the base does. If texts have no maximum length, the default number of new tokens is not
        cut to ``max_position_embeddings``."""
        default = generation_config.max_length
        requested = generation_config.max_new_tokens
        generation_config = super()._prepare_generated_length(generation_config=generation_config, **kwargs)
        if kwargs["has_default_max_length"] and requested is None and self._has_no_end:
            generation_config.max_length = default + kwargs["input_ids_length"]
        return generation_config

    def _get_stopping_criteria(self, *args: Any, **kwargs: Any) -> Any:
        """The base's criteria. If texts have no maximum length, they do not warn of texts beyond
        ``max_position_embeddings``."""
        criteria = super()._get_stopping_criteria(*args, **kwargs)
        for criterion in criteria:
            if isinstance(criterion, MaxLengthCriteria) and self._has_no_end:
                criterion.max_position_embeddings = None
        return criteria

    @property
    def _has_no_end(self) -> bool:
        """Whether mechanisms run with which texts have no maximum length
        (:func:`~.family.rotary.positions_without_end`)."""
        bounded = self.runs_mechanisms and positions_without_end(self.family, self.config) is not None
        return bounded and not has_sinks_in_text(layer_mechanisms(self))

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The arguments of ``forward`` in a step of ``generate``. Tokens that are global by their ids are found here,
        because later steps pass only the last token to ``forward``.

        ``inputs_embeds`` is in the signature because ``generate`` looks for it there.
        """
        if not self.runs_mechanisms:
            return super().prepare_inputs_for_generation(input_ids, *args, inputs_embeds=inputs_embeds, **kwargs)
        decodes_alone = not self.config.is_encoder_decoder
        if decodes_alone and inputs_embeds is None and kwargs.get("global_attention_mask") is None:
            chosen = global_token_ids(self)
            if chosen is not None:
                text = {"input_ids": input_ids, "attention_mask": kwargs.get("attention_mask")}
                kwargs["global_attention_mask"] = global_tokens_of(chosen, text)
        # With memory tokens, there is no cache: each step reads the whole text.
        if getattr(self.running_base, "recursion", None) is not None:
            if inputs_embeds is not None:
                raise InputError(
                    "A model with memory tokens generates after input_ids, not after inputs_embeds; pass input_ids."
                )
            uncached = {
                name: value
                for name, value in kwargs.items()
                if name not in (CACHE, "position_ids", "next_sequence_length")
            }
            return {**super().prepare_inputs_for_generation(input_ids, **uncached), "use_cache": False}
        inputs = super().prepare_inputs_for_generation(input_ids, *args, inputs_embeds=inputs_embeds, **kwargs)
        if not decodes_alone:
            return inputs

        # With a static cache, masks get the cache's width, so that every step is the same graph.
        cache: Any = inputs.get(CACHE)
        mask = inputs.get("attention_mask")
        global_mask = inputs.get("global_attention_mask")
        seen = cache.get_seq_length() if getattr(cache, "is_compileable", False) else 0
        if isinstance(seen, Tensor) and isinstance(mask, Tensor) and mask.dim() == 2:
            new_tokens: Any = input_of(inputs)
            width = cache.get_max_length()
            inputs["attention_mask"] = filled_columns(len(mask), width, seen + new_tokens.shape[1], mask)
            if global_mask is not None:
                inputs["global_attention_mask"] = nn.functional.pad(global_mask, (0, width - global_mask.shape[1]))
        return inputs


class LongBaseModelMixin(LongAttentionMixin):
    """Mixin before a base model, which is the part of a model that runs the layers. Checks and completes the arguments
    of ``forward``."""

    position_table: ClassVar[PositionTable | None]
    attention_modules: list[Any]
    """The modules with a mechanism."""
    is_rotary: bool = False
    has_encoder: Any = False
    """Whether the model is a decoder that reads an encoder's output. A ``global_attention_mask`` is for the encoder
    then."""
    first_id: int = 0
    """The first of the ``position_ids`` of a text. It is stored, because it depends on ``config.pad_token_id``, which
    Trainer may change later."""
    longest: int = 0
    """The number of tokens for which the position table has rows."""
    recursion: Recursion | None = None
    """How memory tokens pass from segment to segment. ``None`` if the model runs over the whole text at once."""
    takes_positions: bool = False
    """Whether ``forward`` takes ``position_ids``."""
    exact_length: int | None = None
    """Maximum length of batches that get the same ``position_ids`` as in the source, where positions also count left
    padding. In longer batches, positions start after left padding.

    It is the length up to which layers have full attention. It is 0 for an encoder that never computes the source's
    attention, and for an encoder with rotary positions, for which the start does not matter. ``None`` means that every
    batch gets the source's positions."""

    def after_attach(self) -> None:
        """Store facts about layers and positions that every call needs, and add memory tokens.

        Raises:
            OptionError: layers have different rules for global tokens, or different memory tokens.
        """
        self.attention_modules = [module for module in self.modules() if hasattr(module, MECHANISM_ATTRIBUTE)]
        global_token_ids(self)  # raises an error if layers have different rules
        layers = layer_mechanisms(self)
        table = self.position_table
        if any(mechanism.capabilities.recursion is not None for mechanism in layers):
            self.recursion = attach_memory_tokens(self, table)
        self.is_rotary = rotary = self.family.rotary(self.config)
        self.takes_positions = "position_ids" in inspect.signature(type(self).forward).parameters
        if table is not None:
            self.longest = table.tokens(self.config)
            if not rotary:
                self.first_id = table.first_id(self.config)
        # find ``exact_length``
        if not self.takes_positions or (table is None and not rotary):
            return
        if not rotary:
            lengths = (layer.options.exact_length for layer in layers if full_of(layer) is not None)
            self.exact_length = min(filter(None, lengths), default=None)
        if self.exact_length is None and not any(map(is_causal, self.attention_modules)):
            computes_source = all(layer.covers(self.config.max_position_embeddings) for layer in layers)
            if not computes_source and all(layer.capabilities.ignores_padding for layer in layers):
                self.exact_length = 0

    @property
    def mixes_beside_attention(self) -> bool:
        """Whether convolutions or recurrent layers of a text model carry information from token to token (Jamba,
        LFM2)."""
        recurrent = "linear_attention" in (getattr(self.config, "layer_types", None) or ())
        convolves = any(isinstance(module, nn.Conv1d) for module in self.modules())
        return (recurrent or convolves) and not self.family.spec.units

    def call_base(self, base_forward: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Check inputs, find documents and global tokens, and run ``base_forward``. With memory tokens, it runs over
        one segment of the text after another.

        Raises:
            InputError: masks or documents do not fit, or the text is too long.
        """
        if (mask := arguments.pop(MEMORY_MASK_ARGUMENT, None)) is not None:
            arguments["attention_mask"] = mask
        if self.has_encoder:
            arguments.pop("global_attention_mask", None)
        for name in ("global_attention_mask", "documents", "seq_idx"):
            # multiple-choice heads flatten (B, choices, N)
            if (value := arguments.get(name)) is not None and value.dim() == 3:
                arguments[name] = value.flatten(0, 1)
        runs = self.runs_mechanisms
        self.check_inputs(arguments, runs)
        if not runs:
            return base_forward(self, **arguments)
        global_mask = arguments.get("global_attention_mask")
        if global_mask is None and not self.has_encoder:
            # The first layer that may take global tokens makes the whole model look for their ids. Layers that share
            # a module have a ModuleDict of mechanisms there, any of which may take them.
            for module in self.attention_modules:
                mechanism = module.long_attention
                if not isinstance(mechanism, Mechanism) or mechanism.capabilities.takes_globals:
                    chosen = global_token_ids(self)
                    if chosen is not None:
                        global_mask = global_tokens_of(chosen, arguments, arguments.get("documents"))
                    break
        if global_mask is not None:
            arguments["global_attention_mask"] = for_one_pass(global_mask)
        if self.hands_globals_down and weights_requested(arguments, self.config.output_attentions):
            arguments[COLLECT_WEIGHTS] = True
        if self.recursion is not None:
            return run_in_segments(self, base_forward, arguments)
        return base_forward(self, **arguments)

    def check_inputs(self, arguments: dict[str, Any], runs: bool) -> None:
        """Refuse inputs that this model cannot process, and add documents, positions and a mask to ``arguments``.

        runs: whether mechanisms run, and not the base's attention.
        """
        tokens = arguments.get("input_ids")
        if tokens is None:
            tokens = arguments.get("inputs_embeds")
        names_no_tokens = arguments.get("position_ids") is None and arguments.get("attention_mask") is None
        if torch.compiler.is_compiling() and names_no_tokens:
            rule_out_packing(arguments)
        if runs:
            self.check_masks(arguments, tokens)
        elif arguments.pop("documents", None) is not None:
            raise InputError(
                "Only mechanisms keep documents apart; call model.set_attn_implementation('longattn'), or leave "
                "documents out."
            )
        positions = arguments.get("position_ids")
        mask = arguments.get("attention_mask")
        if tokens is not None and self.exact_length is not None and positions is None and mask is not None:
            arguments["position_ids"] = self.own_positions(arguments, tokens)
        if self.position_table is not None and (self.recursion is None or not runs):
            may_be_too_long = arguments.get(CACHE) is not None
            if not may_be_too_long and tokens is not None:
                may_be_too_long = tokens.shape[1] > self.longest
            if may_be_too_long:  # check_length counts positions exactly: in some models, padding has none
                self.position_table.check_length(self.config, arguments)

    def check_masks(self, arguments: dict[str, Any], tokens: Tensor | None) -> None:
        """Refuse masks that do not fit ``tokens (B, N)`` or ``(B, N, D)``, and add documents to ``arguments``. Called
        only if mechanisms run."""
        mask: Any = arguments.get("attention_mask")
        if arguments.get("global_attention_mask") is not None:
            check_globals(self, arguments)
        has_positions = arguments.get("position_ids") is not None
        is_over_pairs = getattr(mask, "ndim", 2) == 4
        if has_positions or is_over_pairs or not DOCUMENTS.isdisjoint(arguments):
            find_documents(self, arguments)
        # Some bases use a padding mask before their attention (ESM), or drop a mask of ones (LayoutLM). Its size is
        # therefore checked here. With a cache, the mask also has columns for earlier tokens.
        is_padding_mask = isinstance(mask, Tensor) and mask.dim() == 2
        if is_padding_mask and tokens is not None and arguments.get(CACHE) is None and mask.shape != tokens.shape[:2]:
            check_size(mask, tokens.shape[0], tokens.shape[1])

    def own_positions(self, kwargs: dict[str, Any], tokens: Tensor) -> Tensor:
        """The ``position_ids (B, N)`` for a call without any.

        In batches longer than :attr:`exact_length`, they start after left padding. Shorter batches get the source's
        positions.

        Args:
            kwargs: the other arguments of the call.
            tokens: ``input_ids (B, N)`` or ``inputs_embeds (B, N, D)``.
        """
        table = self.position_table
        first = self.first_id
        # a table in which padding has no position: count real tokens
        if table is not None and table.skips_padding and not self.is_rotary:
            real: Tensor | None = None
            if table.added:
                real = kwargs.get("attention_mask")
            elif kwargs.get("input_ids") is not None:
                real = kwargs["input_ids"] != first - 1
            if real is not None:
                return real.long().cumsum(1) * real.long() + first - 1
        batch, length = tokens.shape[:2]
        positions = torch.arange(first, first + length, device=tokens.device).expand(batch, length)
        mask = kwargs.get("attention_mask")
        any_length = torch.compiler.is_exporting() and of_any_length(length)  # decided when the exported graph runs
        if isinstance(mask, Tensor) and mask.dim() == 4 and not in_graph():
            mask = simplified_mask(mask, batch, causal=False)
        if (
            getattr(self.config, BASE_ATTENTION, False)
            or self.exact_length is None
            or not isinstance(mask, Tensor)
            or mask.dim() != 2
        ):
            return positions
        if not any_length and length <= self.exact_length:
            return positions
        start = first_real(mask)
        if any_length:  # 0 for short batches, as above
            start = start * (torch.full((), length, device=tokens.device) > self.exact_length)
        return (positions - start[:, None]).clamp(min=first)


class LongDecoderMixin(LongBaseModelMixin):
    """Mixin before the decoder of an encoder-decoder."""

    has_encoder = property(lambda self: bool(self.config.is_encoder_decoder))


class LongStackMixin(LongDecoderMixin):
    """Mixin before a base class that is both encoder and decoder (``T5Stack``), without position tables."""

    has_encoder = property(lambda self: self.is_decoder)


TEXT_ARGUMENTS = ("documents", "seq_idx", "cu_seq_lens_q", "memory", "memory_reset")
"""Arguments that only Long text models take. Models of images and sound would ignore them, since they accept any
``**kwargs``."""


def refuse_text_arguments(model: Any, keywords: dict[str, Any], names: tuple[str, ...] = TEXT_ARGUMENTS) -> None:
    """Remove the arguments ``names`` from ``keywords``, and raise :class:`InputError` if one of them is not
    ``None``."""
    for name in names:
        if keywords.pop(name, None) is not None:
            raise InputError(
                f"{name} is for texts, but {type(model).__name__} reads {model.main_input_name}; leave {name} out."
            )
