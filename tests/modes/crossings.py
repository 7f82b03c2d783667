"""A cell of the table: one or two ways to call the model of one family, against every sequence run alone."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import json
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from hf_longattn.errors import BackendError, LongAttentionError
from hf_longattn.families import FAMILIES
from scripts.dev.tools.small_models import default_config
from tests.modes.ways import WAYS, WINDOW, Fields, as_built, decodes, head_of
from tests.reference.small_models import long_model

ROWS = (
    *("bert", "roberta", "llama", "opt", "mixtral", "gpt2", "t5:T5EncoderModel", "bart", "bart:BartForCausalLM"),
    "deberta-v2",
)
"""The rows of the stored table, as :func:`tests.modes.ways.head_of` takes them; slow tests take every family."""
LENGTHS = (40, 25, 9)
TOKENS_OF_DECODER = 7
DROPOUTS = """
hidden_dropout_prob attention_probs_dropout_prob attention_dropout activation_dropout dropout resid_pdrop embd_pdrop
attn_pdrop dropout_rate embed_dropout residual_dropout classifier_dropout resid_dropout mlp_dropout embedding_dropout
hidden_dropout pooler_dropout
"""
NO_DROPOUT = dict.fromkeys(DROPOUTS.split(), 0.0)


@dataclasses.dataclass(frozen=True)
class Text:
    """The batch of a cell: the arguments of the call, and where each sequence lies, (row, first token, token after the
    last)."""

    arguments: dict[str, Any]
    places: list[tuple[int, int, int]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """``equal``, ``refused`` with a sentence, or ``none`` with the reason why there is no such cell."""

    kind: str
    words: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.words}" if self.words else self.kind


class Crossing:
    """Ways to call the model of a row, together."""

    def __init__(self, row: str, *names: str) -> None:
        self.row, self.base, self.ways = row, row.partition(":")[0], [WAYS[name] for name in dict.fromkeys(names)]
        self.layouts = {way.layout for way in self.ways if way.layout}
        self.dtype = torch.float32 if any(way.dtype == torch.float32 for way in self.ways) else torch.float64
        self.tolerance = max(way.tolerance for way in self.ways)
        self.attention: dict[str, Any] = WINDOW

    def missing(self) -> str | None:
        """Why there is no such cell."""
        for way in self.ways:
            if (reason := way.lacks(self.row)) is not None:
                return reason
            for other in self.ways:
                if (reason := way.apart.get(other.name)) is not None:
                    return reason
        model_class = FAMILIES[self.base].long_class_of(getattr(transformers, head_of(self.row)))
        if "left" in self.layouts and not self._takes_positions(model_class) and FAMILIES[self.base].position_tables:
            return "without position_ids, padding on the left moves positions in transformers as well"
        if len(self.layouts & {"documents", "restarts", "offsets"}) > 1:
            return "two ways to say the same"
        return None

    def _takes_positions(self, model_class: Any) -> bool:
        return "position_ids" in inspect.signature(model_class.forward).parameters

    def model(self, *, shared: bool = False) -> Any:
        """The model before any way has prepared it; ``shared`` with the next cells of its row, if it is only
        called."""
        values: dict[str, Any] = {
            "long_attention": self.attention,
            **NO_DROPOUT,
            **({"is_decoder": True} if decodes(self.row) else {}),
        }
        for way in sorted(
            self.ways, key=lambda way: "mechanism" not in way.values.get("long_attention", {"mechanism": ""})
        ):
            attention = way.values.get("long_attention", {})
            values |= {
                **way.values,
                "long_attention": {**({} if "mechanism" in attention else values["long_attention"]), **attention},
            }
        known = {name: value for name, value in values.items() if name != "long_attention"}
        model = _built(self.row, json.dumps(values["long_attention"]), json.dumps(_known(self.base, known)))
        if not shared or self.dtype != torch.float64:
            model = copy.deepcopy(model)
        if hasattr(model.config, "num_experts_per_tok"):
            model.set_experts_implementation("eager")
        return model.to(self.dtype)

    # ---- the batch

    def sequences(self) -> list[Tensor]:
        """Token ids, of different lengths where the layout has a place for that."""
        generator = torch.Generator().manual_seed(7)
        lengths = LENGTHS if self.layouts - {"globals", "labels"} else (LENGTHS[0],) * 2
        return [torch.randint(5, 200, (length,), generator=generator) for length in lengths]

    def lay_out(self, model: Any, sequences: Sequence[Tensor]) -> Text:
        """The sequences as one batch."""
        packed = bool(self.layouts & {"documents", "restarts", "offsets"})
        rows = [list(range(len(sequences)))] if packed else [[index] for index in range(len(sequences))]
        padded = self.layouts & {"left", "right"}
        lengths = [sum(len(sequences[index]) for index in row) for row in rows]
        width = max(lengths) + 6 * (packed and bool(padded))
        shape = (len(rows), width)
        ids = torch.full(shape, model.config.pad_token_id if model.config.pad_token_id is not None else 1)
        mask, documents, positions = (
            torch.zeros(shape, dtype=torch.long),
            torch.zeros(shape, dtype=torch.long),
            torch.zeros(shape, dtype=torch.long),
        )
        labels, chosen = torch.full(shape, -100), torch.zeros(shape, dtype=torch.long)
        places = []
        for number, row in enumerate(rows):
            spare = width - lengths[number]
            at = {"": 0, "right": 0, "left": spare, "leftright": (spare // 2 if packed else spare * (number % 2))}[
                "".join(sorted(padded))
            ]
            for document, index in enumerate(row):
                sequence, stop = sequences[index], at + len(sequences[index])
                ids[number, at:stop], mask[number, at:stop] = sequence, 1
                documents[number, at:] = document
                positions[number, at:stop] = torch.arange(len(sequence)) + model.first_position_id
                labels[number, at:stop] = self._labels(model, sequence)
                chosen[number, at] = 1
                places.append((number, at, stop))
                at = stop
        arguments: dict[str, Any] = {"input_ids": ids}
        if padded:
            arguments["attention_mask"] = mask
        if "documents" in self.layouts:
            arguments["documents"] = documents
        if "restarts" in self.layouts:
            arguments |= {"position_ids": positions, "attention_mask": mask}
        if "offsets" in self.layouts:
            starts = [start for _, start, _ in places][1:]
            arguments["cu_seq_lens_q"] = torch.tensor([0, *starts, width])
        if (
            "left" in self.layouts
            and self._takes_positions(type(model))
            and all(way.name != "memory" for way in self.ways)
        ):
            arguments["position_ids"] = positions
        return Text(
            self._finished(model, arguments, labels, chosen, [len(sequence) for sequence in sequences]), places
        )

    def alone(self, model: Any, sequence: Tensor) -> dict[str, Any]:
        """The arguments of a call with one sequence."""
        chosen = torch.zeros(1, len(sequence), dtype=torch.long)
        chosen[:, 0] = 1
        return self._finished(
            model, {"input_ids": sequence[None]}, self._labels(model, sequence)[None], chosen, [len(sequence)]
        )

    def _labels(self, model: Any, sequence: Tensor) -> Tensor:
        labels = sequence.roll(3) % (
            model.config.num_labels if head_of(self.row).endswith("ForTokenClassification") else 200
        )
        return torch.cat([torch.full_like(labels[:1], -100), labels[1:]])

    def _finished(
        self, model: Any, arguments: dict[str, Any], labels: Tensor, chosen: Tensor, lengths: Sequence[int]
    ) -> dict[str, Any]:
        two_stacks = FAMILIES[self.base].two_stacks and not decodes(self.row)
        if "labels" in self.layouts and not two_stacks:
            arguments["labels"] = labels
        if "globals" in self.layouts:
            arguments["global_attention_mask"] = chosen
        # the same wherever a sequence lies
        places_of_ids = FAMILIES[self.base].spec.further_inputs(model.config, 1, 200)
        arguments |= {name: places[0][arguments["input_ids"]] for name, places in places_of_ids.items()}
        if two_stacks and FAMILIES[self.base].has_decoder(head_of(self.row)):
            own = [
                torch.randint(5, 200, (TOKENS_OF_DECODER,), generator=torch.Generator().manual_seed(length))
                for length in lengths
            ]
            arguments["decoder_input_ids"] = torch.stack(own)
        for way in self.ways:
            arguments |= way.arguments
        return arguments

    # ---- running

    def call(self, model: Any, arguments: dict[str, Any], *, baseline: bool = False) -> Fields:
        """The outputs in all ways together, the first one inside."""
        run = fields_of
        order = sorted(self.ways, key=lambda way: INNERMOST.index(way.name) if way.name in INNERMOST else -1)
        for way in order:
            run = way.baseline(run) if baseline else way.call(run)
        needs = any(way.call(fields_of) is not fields_of for way in self.ways if way.name == "gradient checkpointing")
        with torch.set_grad_enabled(needs):
            return run(model, arguments)

    def run(self) -> tuple[list[Fields], Fields]:
        """What every sequence gives in these ways, and the fields of the whole batch."""
        model = self.model(shared=all(way.prepare is as_built for way in self.ways))
        for way in self.ways:
            model = way.prepare(model)
        text = self.lay_out(model, self.sequences())
        fields = self.call(model, text.arguments)
        return self.split(fields, text), {name: value for name, value in fields.items() if name in WHOLE}

    def split(self, fields: Fields, text: Text) -> list[Fields]:
        """The fields of every sequence."""
        width = text.arguments["input_ids"].shape[1]
        found = []
        for number, (row, start, stop) in enumerate(text.places):
            own = {}
            for name, value in fields.items():
                if name in WHOLE:
                    continue
                if name.startswith(("attentions", "encoder_attentions")):
                    own[name] = value[row, :, start:stop, start:stop]
                elif value.shape[1] == width:
                    own[name] = value[row, start:stop]
                else:  # of a decoder's own tokens
                    own[name] = value[number if len(value) > row else row]
            found.append(own)
        return found

    def expected(self) -> tuple[list[Fields], Fields]:
        """The same of every sequence alone."""
        model = self.model(shared=not any(way.in_baseline for way in self.ways))
        for way in self.ways:
            if way.in_baseline:
                model = way.prepare(model)
        fields, whole = [], []
        for sequence in self.sequences():
            arguments = self.alone(model, sequence)
            given = self.call(model, arguments, baseline=True)
            fields += self.split(given, Text(arguments, [(0, 0, len(sequence))]))
            whole.append({name: value for name, value in given.items() if name in WHOLE})
        return fields, self._added_up(model, fields, whole)

    def _added_up(self, model: Any, fields: list[Fields], whole: list[Fields]) -> Fields:
        """Gradients are sums over sequences; losses are means over their labelled tokens, and that of a router over
        all tokens."""
        total: Fields = {}
        if "gradient" in whole[0]:
            total["gradient"] = torch.stack([one["gradient"] for one in whole]).sum(0)
        if any(name.startswith("router_logits") for name in fields[0]):
            from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

            layers = sorted(name for name in fields[0] if name.startswith("router_logits"))
            logits = tuple(torch.cat([one[layer] for one in fields]) for layer in layers)
            experts = logits[0].shape[-1]
            total["aux_loss"] = load_balancing_loss_func(logits, experts, model.config.num_experts_per_tok)
        if "loss" in whole[0]:
            losses = []
            for sequence, own in zip(self.sequences(), fields, strict=True):
                labels, logits = self._labels(model, sequence), own["logits"].double()
                labels, logits = (
                    (labels[1:], logits[:-1])
                    if decodes(self.row) and not FAMILIES[self.base].two_stacks
                    else (labels, logits)
                )
                losses.append(F.cross_entropy(logits[labels != -100], labels[labels != -100], reduction="none"))
            total["loss"] = torch.cat(losses).mean()
            if "aux_loss" in total:
                total["loss"] = total["loss"] + model.config.router_aux_loss_coef * total["aux_loss"]
        return total

    def outcome(self) -> Outcome:
        """Run the cell and compare.

        Raises:
            AssertionError: the ways give something else than the sequences alone.
        """
        if (reason := self.missing()) is not None:
            return Outcome("none", reason)
        torch.manual_seed(0)
        try:
            found = self.run()
        except LongAttentionError as error:
            if isinstance(error, BackendError) and "computes no bf16" in str(error):
                raise  # of the processor, not of the cell: tests are skipped by tests/conftest.py
            return Outcome("refused", str(error))
        except Exception as error:
            if (reason := self.base_fails()) is not None:
                return Outcome("none", reason)
            raise error
        expected = self.expected()
        for number, (one, other) in enumerate(zip(found[0], expected[0], strict=True)):
            assert one.keys() >= other.keys(), f"missing: {sorted(other.keys() - one.keys())}"
            for name in other:
                self.compare(f"{name} of sequence {number}", one[name], other[name])
        in_pieces = any(way.in_pieces for way in self.ways)
        for name, value in expected[1].items():
            if name in found[1] or not in_pieces:  # a router's loss of a piece is its own
                self.compare(name, found[1][name], value)
        return Outcome("equal")

    def base_fails(self) -> str | None:
        """Why transformers' own attention in the same model fails in these ways, too."""
        model = self.model()
        model.use_base_attention("eager")
        try:
            for way in self.ways:
                model = way.prepare(model)
            self.call(model, self.lay_out(model, self.sequences()).arguments)
        except LongAttentionError:
            return None
        except Exception as error:
            return f"with transformers' own attention, it fails as well ({type(error).__name__})"
        return None

    def compare(self, name: str, found: Tensor, expected: Tensor) -> None:
        assert found.shape == expected.shape, f"{name}: {tuple(found.shape)} instead of {tuple(expected.shape)}"
        found, expected = found.detach().double(), expected.detach().double()
        assert bool(found.isfinite().all()), f"{name} is not finite"
        if self.tolerance < 0.01:
            scale = max(1.0, float(expected.abs().max()))
            off = float((found - expected).abs().max()) / scale
        elif found.dim() and hasattr(
            FAMILIES[self.base].config_class, "num_experts_per_tok"
        ):  # rounding sends some tokens to other experts
            flat = (found - expected).flatten(0, -2) if found.dim() > 1 else (found - expected)[None]
            off = (
                float((flat.norm(dim=-1) / expected.flatten(0, -2).norm(dim=-1)).median()) if found.dim() > 1 else 0.0
            )
        else:
            off = float((found - expected).norm() / expected.norm().clamp(min=1e-9))
        # both passes are rounded
        allowed = self.tolerance * (2 if name == "gradient" and self.tolerance >= 0.01 else 1)
        allowed = max(allowed, 1e-7) if name == "gradient" else allowed  # Gemma's norms compute in float32
        assert off <= allowed, f"{name} is off by {off:.1e}"


INNERMOST = (*("compiled", "tuples", "memory", "cache", "gradient checkpointing"), *("inference mode", "autocast"))
"""Ways that wrap the call, from the inside to the outside."""
WHOLE = ("gradient", "loss", "aux_loss")
"""Fields of the whole batch."""


def fields_of(model: Any, arguments: dict[str, Any]) -> Fields:
    """The outputs of a call by name, router's logits as ``(B, N, experts)``."""
    outputs = model(**arguments)
    tokens = arguments.get("input_ids", arguments.get("inputs_embeds"))
    fields: Fields = {}
    for name, value in outputs.items():
        name = "logits" if name == "last_hidden_state" and "logits" not in outputs else name
        if name in ("past_key_values", "memory", "pooler_output") or name.startswith(("decoder_", "cross_")):
            continue
        for number, one in enumerate(value) if isinstance(value, tuple | list) else [(None, value)]:
            if isinstance(one, Tensor):
                fields[name if number is None else f"{name}.{number}"] = (
                    one.unflatten(0, (tokens.shape[0], -1)) if name == "router_logits" else one
                )
    return fields


@functools.lru_cache(maxsize=2)  # a copy takes a third of the time, and cells of one row follow one another
def _built(row: str, long_attention: str, values: str) -> Any:
    """The model of a row in float64, by what is in its config as JSON."""
    return long_model(row.partition(":")[0], head_of(row), json.loads(long_attention), **json.loads(values)).to(
        torch.float64
    )


def _known(base: str, values: dict[str, Any]) -> dict[str, Any]:
    """Those values that the config of the base has."""
    default, fields = default_config(base)
    known = {*fields, *default.attribute_map}
    return {name: value for name, value in values.items() if name in known}
