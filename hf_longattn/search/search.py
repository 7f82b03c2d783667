"""Search a design for a checkpoint: measure candidates, choose one for each layer, and report the result."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ..configuration import LongAttentionConfig
from ..conversion.folders import versions
from ..conversion.load import quiet_libraries
from ..conversion.settings import ConversionConfig
from ..conversion.sized import affordable_size
from ..conversion.source import Source
from ..errors import InputError, OptionError, in_a_line
from ..evaluation.token_loss import LossChange
from ..files import check_new_file, write_text
from ..inspect import Candidate
from ..inspect.attention import Progress, silent
from ..inspect.candidates import read_candidates
from ..inspect.device import chosen_device
from ..modeling.family.definition import LANGUAGE_MODELS
from ..modeling.family.input_spec import InputSize
from .budget import BUDGET, Budget, SearchConfig, readable_seconds
from .choice import choose, loss_change, measured_mass
from .costs import FAILURES, layer_seconds
from .design import FULL, CostedDesign, Design, unsuitable, usual_candidates
from .model import SearchedModel, SearchText, read_inputs

FORMAT = 4
"""Version of the JSON form. It changes when a key is removed or changes its meaning."""


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search.

    Attributes:
        model: name of the checkpoint.
        text: name of the text, images or recordings.
        length: length of the target's inputs, in tokens.
        compared_at: number of tokens of the inputs on which captured mass was measured.
        budget: the budget.
        full_seconds: time of full attention in every layer.
        chosen: the chosen design.
        reason: why it was chosen, as a sentence.
        uniform: the designs with the same candidate in every layer, the fastest first.
        scores: for each layer a mapping of candidates (as text) to captured mass.
        costs: candidate (as text) -> seconds for one layer.
        reasons: candidate (as text) -> why it was left out.
        machine: the machine on which costs were measured.
        recipe: the flags of `longattn convert` for this design, by name.
        notes: remarks for the user, as sentences.
        file: the file in which the recipe was written.
        loss_change: change of the loss on held-out text at the target length, from the checkpoint, which reads chunks,
            to the design without training.
        no_loss: why the loss was not measured.
        sizes: for images or sound, the size of the target's inputs, and the size at which captured mass was measured.
        material: plural noun for the inputs, such as "texts".
    """

    model: str
    text: str
    length: int
    compared_at: int
    budget: Budget
    full_seconds: float
    chosen: CostedDesign
    reason: str
    uniform: tuple[CostedDesign, ...]
    scores: tuple[Mapping[str, float], ...]
    costs: Mapping[str, float]
    reasons: Mapping[str, str]
    machine: Mapping[str, Any]
    recipe: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    file: str | None = None
    loss_change: LossChange | None = None
    no_loss: str = ""
    sizes: tuple[InputSize, InputSize] | None = None
    material: str = "texts"

    @property
    def command(self) -> str:
        """The shell command that converts the model with this design."""
        destination = f"{Path(self.model).name}-long"
        return shlex.join(["longattn", "convert", self.model, destination, "--config", self.file or "design.yaml"])

    @property
    def loss_sentence(self) -> str:
        """A sentence about the loss on held-out text, or why it was not measured. It may be empty."""
        if self.no_loss:
            return f"No held-out loss was measured: {self.no_loss}"
        if self.loss_change is None:
            return ""
        verdict = "worse, so train after the conversion" if self.loss_change.worse else "not worse"
        return f"Without training the held-out loss at {self.length:,} tokens is {verdict}: {self.loss_change}."

    def cost_of(self, costed: CostedDesign) -> str:
        """The time of a design in words, also as a share of full attention's."""
        return f"{readable_seconds(costed.seconds)} ({costed.seconds / self.full_seconds:.3g} of full attention)"

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        full = self.full_seconds
        sizes = {}
        if self.sizes is not None:
            new, compared = self.sizes
            sizes = {new.name: new.values[new.name], f"compared_{new.name}": compared.values[new.name]}
        values = {
            "format": FORMAT,
            "model": self.model,
            "text": self.text,
            "length": self.length,
            "compared_at": self.compared_at,
            **sizes,
            "budget": str(self.budget),
            "chosen": self.chosen.to_dict(full),
            "reason": self.reason,
            "long_attention": self.chosen.design.attention().to_dict(),
            "recipe": self.recipe,
            "command": self.command,
            "full_seconds": full,
            "costs": {name: {"seconds": seconds} for name, seconds in self.costs.items()},
            "layers": [
                {"chosen": name, "scores": scores}
                for name, scores in zip(self.chosen.design.names, self.scores, strict=True)
            ],
            "uniform": [costed.to_dict(full) for costed in self.uniform],
            "left_out": self.reasons,
            "notes": list(self.notes),
            "machine": self.machine,
            "loss_change": None,
        }
        if self.loss_change is not None:
            values["loss_change"] = self.loss_change.to_dict()
        elif self.no_loss:
            values["no_loss"] = self.no_loss
        return values


REPORTED = ("reason", "loss_change", "budget", "compared_at", "chosen", "uniform", "left_out", "machine")
"""Keys of a search's JSON form that go into a conversion's plan and report, besides keys that begin with
"compared_"."""


@quiet_libraries()
def search_design(
    model: str | Path,
    text: str | Path | Tensor,
    output: str | Path | None = None,
    config: SearchConfig | None = None,
    *,
    progress: Progress | None = None,
    **settings: Any,
) -> SearchResult:
    """Search a mechanism for every layer of ``model`` under a budget of time.

        result = hf_longattn.search_design("bert-base-uncased", Path("book.txt"), budget="0.2", length=4096)
        attention = result.chosen.design.attention()
        convert_checkpoint("bert-base-uncased", "long-bert", long_attention=attention, max_length=4096)

    For each candidate and layer, the search measures the share of the layer's softmax weights that the candidate
    keeps. It also measures the candidate's time at the target length on this machine. Both are summed over layers, so
    the best choice is found exactly.

    Args:
        model: a checkpoint of transformers that is not converted yet: a folder or a Hub repository id.
        text: the text itself, a text file (``Path``), or token ids ``(N,)`` without special tokens. For a model of
            images or sound, a file or a folder of files (``Path``).
        output: a new YAML file for the design, as a recipe for ``longattn convert --config``.
        config: the settings. Without it, fields of :class:`~hf_longattn.SearchConfig` are keywords.
        progress: called with a sentence before each step.
    Returns:
        The chosen design, and all measurements.
    Raises:
        OptionError: a setting or candidate does not exist, or no design meets the budget.
        InputError: the text is too short.
        CheckpointError: ``output`` exists, or the checkpoint cannot be loaded.
    """
    config = SearchConfig.from_keywords(config, settings)
    if output is not None:
        check_new_file(Path(output))
    result = Search(str(model), text, config, progress).run()
    if output is not None:
        result = replace(result, file=str(output))
        comment = f"# {result.command}\n# {' '.join(result.reason.split())}\n"
        recipe = yaml.safe_dump(dict(result.recipe), sort_keys=False, allow_unicode=True, width=200)
        write_text(Path(output), comment + recipe)
    return result


def choose_mechanisms(source: Source, config: ConversionConfig) -> tuple[LongAttentionConfig, dict[str, Any]]:
    """Search the attention of every layer for a conversion with ``mechanism="auto"``.

    Args:
        source: the opened checkpoint.
        config: the settings of the conversion.
    Returns:
        The attention, and facts about the search for the plan and the report.
    Raises:
        OptionError: no design meets the budget.
        InputError: the text is too short.
        DataError, CheckpointError: there is no image or recording, or the model has no processor.
    """
    result = Search(
        source,
        None if config.search_input is None else Path(config.search_input),
        SearchConfig(budget=config.budget or BUDGET),
        conversion=config.without_search(),
    ).run()
    values = {
        name: value for name, value in result.to_dict().items() if name in REPORTED or name.startswith("compared_")
    }
    return result.chosen.design.attention(), {**values, result.material: result.text}


class Search:
    """A search: its model, its inputs, and the candidates that remain.

    Args:
        model: a folder, a Hub repository id, or an opened checkpoint.
        text: a text, images or recordings; ``None`` for built-in inputs.
        config: the settings.
        progress: called with a sentence before each step.
        conversion: settings of the conversion, if they are not in ``config``.

    Attributes:
        size: size of the inputs on which candidates are compared.
        inputs: pieces of the text, images or recordings of this size.
        candidates: the candidates that remain.
        reasons: candidate (as text) -> why it was left out.
    """

    def __init__(
        self,
        model: str | Source,
        text: str | Path | Tensor | None,
        config: SearchConfig,
        progress: Progress | None = None,
        conversion: ConversionConfig | None = None,
    ) -> None:
        self.config, self.progress, self.budget = config, progress or silent, Budget.read(config.budget)
        self.requested = None if config.candidates is None else read_candidates(config.candidates)
        if self.requested == []:
            raise OptionError(
                "There is no candidate; give for example --candidate window:window=256, or leave --candidate out."
            )
        self.conversion = conversion or config.conversion()
        self.model = SearchedModel(model, self.conversion, chosen_device(config.device))

        # the size at which candidates are compared: what the checkpoint reads, or for a large model, less
        sizes = self.model.original.inputs
        most = size = sizes.old
        if sizes.reads_new:
            most = sizes.new
            size = affordable_size(self.model.original)
        if config.compare_at is not None:
            size = sizes.at(config.compare_at)
        if not 0 < size.tokens <= most.tokens:
            raise InputError(
                f"Mechanisms are compared on {sizes.spec.nouns} of up to {most.words}, which the checkpoint "
                f"reads, not of {size.words}; change --compare-at, or leave it out."
            )
        self.size = size
        self.text = read_inputs(text, self.model, config.pieces)
        if isinstance(self.text, SearchText):
            self.inputs: list[Any] = self.text.pieces(size.tokens, config.pieces)
        else:
            self.inputs = self.text.pieces(size)
        self.reasons: dict[str, str] = {}
        self.candidates: list[Candidate] = []

    def run(self) -> SearchResult:
        """Measure time and captured mass of the candidates, and choose a design."""
        self._take_candidates()
        model = self.model
        seconds, refused = layer_seconds(
            read_candidates([*self.candidates, FULL]),
            model.original.shape,
            model.length,
            model.device,
            model.original.inputs.new.grid,
            self.progress,
        )
        self._leave_out(refused, "No candidate could be measured ({why}); give others with --candidate.")
        scores, unjudged = measured_mass(model, self.inputs, self.candidates, self.progress)
        self._leave_out(unjudged, "No candidate can be judged by captured mass ({why}); give other candidates.")
        design = choose(scores, self.candidates, seconds, self.budget, model.named)
        return self._result(design, scores, seconds)

    def _take_candidates(self) -> None:
        """Set :attr:`candidates` to those that single layers can run, and whose positions need no training.

        Raises:
            OptionError: a candidate from the user cannot run, or no candidate is left.
        """
        shape, sizes = self.model.original.shape, self.model.original.inputs
        candidates = self.requested or usual_candidates(sizes, shape.causal)
        for candidate in candidates:
            why = unsuitable(candidate, shape.causal, sizes)
            if why and candidate.by_user:
                raise OptionError(f"{why[:-1]}; leave --candidate {candidate} out.")
            if not why:
                mechanism = candidate.sized(self.model.length, shape.heads, shape.head_dim)
                planned, chosen = self.model.original.positions, self.conversion.positions
                untrained = sizes.spec.untrained(sizes, mechanism, planned, chosen, shape.causal)
                if untrained:  # why positions would need training with this candidate
                    why = f"{untrained}."
            if why:
                self.reasons[str(candidate)] = why
                continue
            self.candidates.append(candidate)
        # a layer with a window in the base can keep it
        if str(FULL) in map(str, self.candidates):
            windows = map(self.model.base_attention.for_layer, sorted(self.model.named))
            self.candidates += [Candidate(name, options) for name, options in windows]
        if not self.candidates:
            name, why = next(iter(self.reasons.items()))
            raise OptionError(
                f"No candidate is left: {name} {why.rstrip('.')}; give one that sees less with --candidate."
            )
        self.candidates = read_candidates(self.candidates)

    def _leave_out(self, reasons: Mapping[str, str], refusal: str) -> None:
        """Remove candidates.

        Args:
            reasons: candidate (as text) -> why it is removed.
            refusal: message for the case that no candidate is left, with "{why}" for the first reason.

        Raises:
            OptionError: no candidate is left.
        """
        self.reasons |= reasons
        self.candidates = [candidate for candidate in self.candidates if str(candidate) not in reasons]
        if not self.candidates:
            raise OptionError(refusal.format(why=next(iter(reasons.values())).rstrip(".")))

    def _result(
        self, design: Design, scores: Sequence[Mapping[str, float]], seconds: Mapping[str, float]
    ) -> SearchResult:
        """The result of a search. For a language model, the loss of the design is measured here.

        Args:
            design: the chosen design.
            scores: for each layer a mapping of candidates (as text) to captured mass.
            seconds: candidate (as text) -> seconds for one layer.
        """

        def costed(design: Design) -> CostedDesign:
            mass = sum(row[name] for row, name in zip(scores, design.names, strict=True)) / len(scores)
            return CostedDesign(design, sum(seconds[name] for name in design.names), mass)

        config, model, sizes = self.config, self.model, self.model.original.inputs

        # the recipe, and a note about few inputs
        conversion = self.conversion
        recipe = design.recipe(
            max_length=conversion.max_length,
            image_size=None if conversion.image_size is None else "x".join(map(str, sizes.new.value)),
            audio_seconds=conversion.audio_seconds,
            positions=None if conversion.positions == "auto" else conversion.positions,
        )
        notes: tuple[str, ...] = ()
        if len(self.inputs) < config.pieces:
            notes = (
                f"There are {len(self.inputs)} of {config.pieces} inputs to choose by; more or longer ones give a "
                "surer choice.",
            )

        # the loss on held-out text at the target length
        change = None
        no_loss = ""
        if isinstance(self.text, SearchText):
            original = model.original
            source_class = original.architecture.source_class
            if source_class.endswith(LANGUAGE_MODELS) and not getattr(original.config, "is_encoder_decoder", False):
                self.progress(f"held-out loss of {design}")
                try:
                    change = loss_change(model, self.text, config.pieces, design)
                except FAILURES as error:
                    no_loss = f"{in_a_line(error)}."
            else:
                no_loss = (
                    f"{model.source.name!r} is a {source_class}, which predicts no tokens, so it has no held-out loss."
                )

        # the machine, and designs with one candidate
        device = platform.processor() or platform.machine()
        if model.device.type == "cuda":
            device = torch.cuda.get_device_name(model.device)
        machine = {"device": device, "cores": os.cpu_count(), "threads": torch.get_num_threads(), **versions()}
        uniform = [costed(Design((candidate,) * model.layers, model.named)) for candidate in self.candidates]
        return SearchResult(
            model=model.source.name,
            text=self.text.name,
            length=model.length,
            compared_at=self.size.tokens,
            budget=self.budget,
            full_seconds=model.layers * seconds[str(FULL)],
            chosen=costed(design),
            reason=f"{design} keeps the most of the layers' attention within {self.budget}.",
            uniform=tuple(sorted(uniform, key=lambda costed_design: costed_design.seconds)),
            scores=tuple(scores),
            costs=seconds,
            reasons=self.reasons,
            machine=machine,
            recipe=recipe,
            notes=notes,
            loss_change=change,
            no_loss=no_loss,
            sizes=(sizes.new, self.size) if self.size.name else None,
            material=sizes.spec.nouns,
        )
