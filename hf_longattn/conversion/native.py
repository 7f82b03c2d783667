"""Export of stock checkpoints: a long model as an architecture of transformers that computes the same outputs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn

from ..engines.call import UNBOUNDED
from ..errors import CheckpointError, checkpoint_errors
from ..evaluation.token_loss import verification_text
from ..files import is_long, staged_folder
from ..hub import origin_of
from ..mechanisms import Mechanism
from ..mechanisms.bigbird import BigBird
from ..mechanisms.common.capabilities import band_of
from ..mechanisms.full import Full
from ..mechanisms.longformer import Longformer, LongformerOptions
from ..mechanisms.window import Window
from ..modeling.costs import affordable_length, layer_mechanisms, model_shape
from ..modeling.family.definition import FAMILIES, Family
from ..modeling.family.sliding_window import band_around, with_base_windows
from ..modeling.pruning import whole_shapes
from ..reports import FAILED, PASSED, Check
from .adopt import ADOPTIONS, HEAD_GLOBALS, Adoption, renamed
from .architecture import NAMES, OWN_FIELDS, read_long
from .folders import ConversionReport, StageProgress, add_source_files, complete_result, no_progress, open_for_writing
from .load import load_checked, quiet_libraries
from .source import Source, refuse_quantised
from .tokenizer import VerificationText, text_inputs

ROBERTAS = frozenset(("roberta", "xlm-roberta", "camembert"))
NATIVE_REPORT = "native_report.json"
SHORT_LENGTH, GENERATED = 24, 12
"""Tokens of the short input, and number of generated tokens, in the comparison. Untuned."""
FLOPS = 5e11
"""Maximum FLOPs of one forward pass over the long input in the comparison: some seconds on two cores."""


class Stock:
    """A stock architecture for one long model, or the reason why the architecture cannot compute the same.

    This class is for encoders with full attention in every layer. Their stock class is the class of the base, such as
    BERT's for a Long BERT. The subclasses are for other attention.

    Attributes:
        head: suffix of the base's class name, for example "ForMaskedLM"; "Model" without a head.
        class_name: name of the stock class with the same head, for example "LongformerForMaskedLM".
        layers: the mechanism of every layer of the long model.
    """

    # base model types of the long models that can become this architecture
    families: ClassVar[frozenset[str]] = ROBERTAS | {"bert", "electra", "distilbert"}
    stem: ClassVar[str] = ""  # prefix of the names of stock classes; empty if they are the base's classes
    heads: ClassVar[tuple[str, ...]] = ()  # heads that are the same in bases of another architecture
    # mechanisms that the stock layers can compute, at least with some options
    computes: ClassVar[tuple[type[Mechanism], ...]] = (Full,)
    words: str = "full attention"  # the attention of every stock layer, for a refusal
    note: ClassVar[str] = ""  # a warning for users
    names: ClassVar[Mapping[str, Any]] = {}  # regular expression for a part of a tensor's name -> its replacement

    def __init__(self, config: Any, long_class: str, family: Family) -> None:
        self.config, self.long_class, self.family = config, long_class, family
        self.base_class = next(base for base, name in family.model_classes.items() if name == long_class)
        self.head = self.base_class.removeprefix(family.base_model_name.removesuffix("Model"))
        self.class_name = self.stem + self.head if self.stem else self.base_class
        num_layers = config.attending[0] if family.base_model_type in self.families else 0
        self.layers: list[Mechanism] = config.long_attention.prototypes(range(num_layers))

    def layer(self, mechanism: Mechanism) -> dict[str, Any] | None:
        """The fields of the stock config for a layer that computes the same as ``mechanism``. ``None`` if no stock
        layer does."""
        band = band_of(mechanism, self.config.attending[1])
        if band is None or band[0] != UNBOUNDED:  # not full attention
            return None
        return {}

    @cached_property
    def reason(self) -> str:
        """Why the stock model would compute something else than the long model, as a sentence. Empty if both are
        equal."""
        if self.family.base_model_type not in self.families:
            return f"A {self.long_class} has none; BERT, RoBERTa and their kin, BigBird, Llama and Mistral have."
        for mechanism in self.layers:
            if mechanism.options.exact_length:
                return (
                    f"No stock architecture has exact_length={mechanism.options.exact_length}; convert with --option "
                    "exact_length=0, or write 0 into config.json."
                )
        fields = [self.layer(mechanism) for mechanism in self.layers]
        for index, mechanism in enumerate(self.layers):
            if fields[index] is None or fields[index] != fields[0]:
                choice = repr(mechanism.name)
                options = mechanism.options.changed()
                if options:
                    choice += f" with {', '.join(options)}"
                return f"Layer {index} has {choice}, and every layer of a {self.class_name} has {self.words}."
        if self.base_class != self.class_name and self.head not in self.heads:
            return (
                f"The head of a {self.base_class} differs from {self.stem}'s; export the encoder alone, or a model "
                "with another head."
            )
        return ""

    def stock_config(self) -> Any:
        """The config of the stock model. Fields that only Long configs or the base have are left out."""
        config_class: Any = getattr(transformers, self.class_name).config_class
        only_base = set(self.family.base_config_class.__dataclass_fields__) - set(config_class.__dataclass_fields__)
        values = {**with_base_windows(self.config.to_dict()), **(self.layer(self.layers[0]) or {})}
        values = {name: value for name, value in values.items() if name not in {*NAMES, *OWN_FIELDS, *only_base}}
        return config_class.from_dict({**values, "architectures": [self.class_name]})

    def state_dict(self, long: nn.Module) -> dict[str, Tensor]:
        """The tensors of the loaded long model under the names of the stock model."""
        config = self.stock_config()
        shapes = whole_shapes(long)
        adoption = ADOPTIONS.get(config.model_type)
        state = {}
        for name, tensor in long.state_dict().items():
            values = tensor
            if name in shapes:  # stock layers have the pruned heads, too; heads of zeros add nothing to the output
                values = tensor.new_zeros(shapes[name])
                values[tuple(map(slice, tensor.shape))] = tensor
            if adoption is not None and name.endswith("position_embeddings.weight"):
                # the tables may have different numbers of rows before position 0
                before = self.family.position_tables[0].offset_rows(self.config)
                after = FAMILIES[adoption.family].position_tables[0].offset_rows(config)
                if before != after:
                    values = nn.functional.pad(values[before:], (0, 0, after, 0))
            state[renamed(name, self.names)] = values
        return state


class Mistral(Stock):
    """Mistral, for decoders with full attention, or with the same window in all layers."""

    families = frozenset(("llama", "mistral"))
    stem, heads = (
        "Mistral",
        ("Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"),
    )
    computes, words = (Full, Window), "full attention or the same window, and no biases"
    names: ClassVar = {r"^transformer\.": "model."}

    def layer(self, mechanism: Mechanism) -> dict[str, Any] | None:
        band = band_of(mechanism, True)
        if band is None or getattr(self.config, "attention_bias", False) or getattr(self.config, "mlp_bias", False):
            return None
        return {"sliding_window": None if band[0] == UNBOUNDED else band[0] + 1}


class LongformerStock(Stock):
    """Longformer, for encoders of RoBERTa and BERT with windows and global tokens.

    Longformer has separate projections for global tokens. If a long model has none, Longformer gets copies of its
    query, key and value. Some of Longformer's task heads choose global tokens. The long model must then have the same
    ones.
    """

    families = ROBERTAS | {"bert"}
    stem, heads = (
        "Longformer",
        ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"),
    )
    computes = (Longformer, Window)
    names: ClassVar = {
        r"^cls\.predictions\.transform\.dense\.": "lm_head.dense.",
        r"^cls\.predictions\.transform\.LayerNorm\.": "lm_head.layer_norm.",
        r"^cls\.predictions\.": "lm_head.",
        # the first layer of Longformer's head for SequenceClassification is BERT's pooler
        r"^bert\.pooler\.dense\.": "classifier.dense.",
        r"^(bert|roberta)\.": "longformer.",
        r"\.long_attention\.separate\.(query|key|value)\.": r".\1_global.",
    }

    def __init__(self, config: Any, long_class: str, family: Family) -> None:
        """Set ``globals``, the options of the head's global tokens.

        ``globals`` is ``None`` if no options of a mechanism can choose them: a question-answering head looks for three
        separators, and a pair of BERT's texts has two.
        """
        super().__init__(config, long_class, family)
        self.globals: LongformerOptions | None = None
        if self.head == "ForQuestionAnswering" and family.base_model_type not in ROBERTAS:
            self.words = "global tokens before the first of three separators in a pair of texts"
            return
        options = {"global_tokens": (), **HEAD_GLOBALS.get(self.head, {})}
        self.globals = LongformerOptions(**options)
        flags = "--option global_tokens=none"
        if options["global_tokens"]:
            flags = "--option global_tokens=0"
        if "global_first_segment" in options:
            flags += " --option global_first_segment=true"
        self.words = (
            "a window of two tokens or more, equally wide on both sides, and its head's global tokens; convert with "
            f"--mechanism longformer {flags}"
        )

    def layer(self, mechanism: Mechanism) -> dict[str, Any] | None:
        config, options = self.config, LongformerOptions(global_tokens=())
        if isinstance(mechanism, Longformer):
            options = mechanism.options
        # the layer must have the global tokens of the head, and none by the config
        choosing = ("global_tokens", "global_first_segment", "global_token_ids")
        if self.globals is None or any(getattr(options, name) != getattr(self.globals, name) for name in choosing):
            return None
        by_config = [getattr(config, field, None) for field in ("global_token_ids", "question_separator_id")]
        if config.attending[1] or not band_around(mechanism) or by_config != [None, None]:
            return None
        pad = config.pad_token_id or 0
        separators = (
            getattr(self.layers[0].options, "separator_token_id", None),
            getattr(config, "sep_token_id", None),
        )
        return {
            "max_position_embeddings": self.family.longest(config) + pad + 1,
            "attention_window": [band_around(layer) for layer in self.layers],
            "pad_token_id": pad,
            "sep_token_id": next((token for token in separators if token is not None), config.eos_token_id),
        }

    def state_dict(self, long: nn.Module) -> dict[str, Tensor]:
        state = super().state_dict(long)
        if self.head == "ForSequenceClassification" and self.family.base_model_type == "bert":
            state |= {f"classifier.out_proj.{part}": state.pop(f"classifier.{part}") for part in ("weight", "bias")}
        for name, tensor in [*state.items()]:
            state.setdefault(re.sub(r"\.self\.(query|key|value)\.", r".self.\1_global.", name), tensor.clone())
        return state


class BigBirdStock(Stock):
    """BigBird, for encoders with the variant of `bigbird` that transformers computes."""

    families = ROBERTAS | {"bert", "big_bird"}
    stem, heads = "BigBird", ("Model", "ForMaskedLM", "ForTokenClassification")
    computes, words = (
        (BigBird,),
        "'bigbird' with random_pattern=hf_eval, blocks_over=input, seed=0 and the same blocks",
    )
    note = (
        "transformers' BigBird computes full attention for good after its first input of at most 5 + 2 * "
        "num_random_blocks blocks"
    )
    names: ClassVar = {
        r"^lm_head\.dense\.": "cls.predictions.transform.dense.",
        r"^lm_head\.layer_norm\.": "cls.predictions.transform.LayerNorm.",
        r"^lm_head\.": "cls.predictions.",
        r"^roberta\.": "bert.",
        r"^pooler\.dense\.": "pooler.",
    }

    def layer(self, mechanism: Mechanism) -> dict[str, Any] | None:
        options: Any = mechanism.options
        if (
            not isinstance(mechanism, BigBird)
            or options.random_pattern == "seeded"
            or (options.blocks_over, options.seed, options.relative) != ("input", 0, None)
        ):
            return None
        values = {
            "attention_type": "block_sparse",
            "block_size": options.block_size,
            "num_random_blocks": options.num_random_blocks,
        }
        if self.family.base_model_type == "big_bird":
            return values
        return {
            "use_bias": True,
            "rescale_embeddings": False,
            "max_position_embeddings": self.family.longest(self.config),
            **values,
        }


def choose_stock(config: Any, long_class: str, family: Family) -> Stock:
    """The stock architecture that computes the same as a long model. If there is none, the nearest architecture, whose
    ``reason`` is not empty."""
    stocks = [stock(config, long_class, family) for stock in (Stock, Mistral, LongformerStock, BigBirdStock)]
    stocks = [stock for stock in stocks if family.base_model_type in stock.families] or stocks[:1]
    for stock in stocks:
        if not stock.reason:
            return stock
    # the nearest architecture computes the first mechanism that is not full attention, with other options
    sparse = next((mechanism for mechanism in stocks[0].layers if not isinstance(mechanism, Full)), None)
    return next((stock for stock in stocks if isinstance(sparse, stock.computes)), stocks[0])


@quiet_libraries()
def export_native(
    model: str | Path | Source,
    destination: str | Path,
    *,
    verify: bool = True,
    overwrite: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    progress: StageProgress = no_progress,
) -> ConversionReport:
    """Write a stock checkpoint: an architecture of transformers that computes the same as a long checkpoint.

    Software that knows this architecture can run it without this package. Outputs and generated tokens of both models
    are compared for a short and a long input, with padding.

    Args:
        model: a long checkpoint: a folder, or a Hub repository id.
        destination: a folder that appears complete, or not at all. It has the returned report as native_report.json.
        verify: whether the outputs are compared.
        overwrite: whether an existing checkpoint folder is replaced.
        revision, token: branch, tag or commit of a Hub repository, and a token for access.
        progress: called as ``progress(stage, done, total)``.

    Raises:
        CheckpointError: no stock architecture computes the same. The message names the layer and the reason.
    """
    source, target = open_for_writing(model, destination, overwrite=overwrite, revision=revision, token=token)
    if not is_long(source.config):
        raise CheckpointError(
            f"{source.name!r} is a short checkpoint, which is already a stock model; convert it first (longattn "
            f"convert {source.name} DST)."
        )
    refuse_quantised(source)
    with staged_folder(target, overwrite=overwrite) as stage:
        return _write(source, stage, str(destination), verify, progress)


def _write(source: Source, stage: Path, name: str, verify: bool, progress: StageProgress) -> ConversionReport:
    """Write and check the stock checkpoint of a long checkpoint.

    Args:
        stage: the folder in which it is written.
        name: the destination as typed by the user.
    """
    config, class_name, family, _ = read_long(source)
    choice = choose_stock(config, class_name, family)
    length = family.longest(config)
    if choice.reason:
        raise CheckpointError(f"{source.name!r} has no stock form: {choice.reason}")
    long, _ = load_checked(family.model_class(class_name), source.folder, source.name, dtype="auto")
    stock_class: Any = getattr(transformers, choice.class_name)
    with checkpoint_errors(f"The config.json of {source.name!r} makes no valid {choice.class_name}"):
        stock, _ = load_checked(
            stock_class,
            None,
            source.name,
            dtype=long.dtype,
            config=choice.stock_config(),
            state_dict=choice.state_dict(long),
        )
    progress("write", 0, sum(path.stat().st_size for path in source.folder.glob("*.safetensors")))
    stock.save_pretrained(stage)
    add_source_files(source, stage, length)

    text = text_inputs(family, config, stage, verification_text(None))
    checks: list[Check] = []
    described = "not verified"
    if verify:
        described = text.describe()
        with checkpoint_errors(
            "Verification failed, so nothing was kept: the long model or the stock model does not run"
        ):
            stock, _ = load_checked(stock_class, stage, name, dtype=torch.float32)
            checks = _compare(long.float(), stock, choice, text, progress)
    return complete_result(
        stage,
        source,
        name,
        NATIVE_REPORT,
        checks,
        f"A `{choice.class_name}` for inputs of up to {length:,} tokens, which computes what the long model does, "
        f"made by `longattn export --format native` from {origin_of(source.name)}.",
        config={"format": "native"},
        plan={
            "source": source.name,
            "long_class": class_name,
            "class": choice.class_name,
            "model_type": stock.config.model_type,
            "old_length": length,
            "new_length": length,
            "positions": "kept",
            "parameters": stock.num_parameters(),
            "warnings": [f"{choice.note}."] if choice.note else [],
        },
        text=described,
        next_step=None,
    )


def _compare(long: Any, stock: Any, choice: Stock, text: VerificationText, progress: StageProgress) -> list[Check]:
    """Compare outputs and generated tokens of the long and the stock model, for a short and a long input."""
    longest, shape = choice.family.longest(choice.config), model_shape(choice.config, long)
    most = affordable_length(longest, shape, layer_mechanisms(choice.config.long_attention, shape, longest), FLOPS)
    adoption = ADOPTIONS.get(stock.config.model_type) or Adoption()
    checks: list[Check] = []
    takes_globals = all(isinstance(mechanism, Longformer) for mechanism in choice.layers)
    for length in dict.fromkeys((min(SHORT_LENGTH, most), most)):
        progress("verify", length, most)
        for probe in adoption.probes(stock.config, type(stock).__name__, text, length, takes_globals):
            for module in stock.modules():  # a short input has set transformers' BigBird to full attention for good
                if hasattr(module, "set_attention_type") and hasattr(module, "config"):
                    module.set_attention_type(module.config.attention_type)
            checks.append(probe.check(f"equal to the long model at {length} tokens", long, stock, "the long model"))
            if not stock.can_generate():
                continue

            # generate after the first tokens of the two texts, padded on the left
            mask = probe.inputs["attention_mask"]
            mask = mask[:, : max(1, mask.shape[1] - GENERATED)]
            pairs = zip(probe.inputs["input_ids"], mask, strict=True)
            ids = torch.stack([row[: len(real)].roll(len(real) - int(real.sum())) for row, real in pairs])
            before, after = (
                model.generate(
                    ids,
                    attention_mask=mask.flip(-1),
                    pad_token_id=model.config.pad_token_id or 0,
                    max_new_tokens=GENERATED,
                    min_new_tokens=GENERATED,
                    do_sample=False,
                    num_beams=1,
                )[:, -GENERATED:]
                for model in (long, stock)
            )
            status, comparison = PASSED, "the same"
            if not torch.equal(before, after):
                status, comparison = FAILED, "others, but they must be equal"
            sentence = f"{GENERATED} tokens after each of two texts, {comparison}"
            checks.append(Check(f"generates the same after {length} tokens", status, sentence, {"length": length}))
    return checks
