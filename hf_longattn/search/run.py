"""Search for a design for a checkpoint: measure candidates, choose one per layer, and try designs."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..conversion.config import ConversionConfig
from ..conversion.model_loading import chosen_device, quiet_libraries
from ..conversion.report import versions
from ..conversion.sources.base import Source
from ..errors import OptionError, check_extra, in_a_line
from ..evaluation.layer_choice import choose_layers, layers_keep
from ..evaluation.token_loss import LossChange
from ..inputs.grid import size_text
from ..inspect import Candidate
from ..inspect.attention import Progress, silent
from ..inspect.candidates import unique_candidates
from ..positions import widest_span
from .budget import Budget
from .candidates import FULL, read_candidates, unsuitable, usual_candidates
from .config import MODES, OBJECTIVES, PIECES, SCORE_NAMES, SearchConfig
from .costs import LayerCosts
from .design import CostedDesign, Design, unique
from .folder import COSTS, SCORES, SearchFolder, opened_folder
from .objectives import FAILURES, Divergence, LossAgainstChunks, check_predicts_tokens
from .result import LayerRow, SearchResult
from .scores import QUERIES, CostTable, ScoreTable, choose, divergence_table, mass_table
from .study import ROUNDING, DesignStudy, check_trials, remove_torn_line

SEEDS = 12
"""Designs of stage 1 with which stage 2 starts."""


@quiet_libraries()
def search_design(
    model: str | Path,
    text: str | Path | Tensor,
    output: str | Path | None = None,
    *,
    budget: str | float | Budget = "0.25",
    length: int | None = None,
    image_size: str | int | Sequence[int] | None = None,
    frames: int | None = None,
    audio_seconds: float | None = None,
    candidates: Sequence[str | Candidate] | None = None,
    mode: str = "mechanisms",
    score: str = "mass",
    trials: int = 0,
    objective: str = "loss",
    pieces: int = PIECES,
    queries: int = QUERIES,
    compare_at: int | None = None,
    positions: str = "auto",
    seed: int = 0,
    device: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Search a mechanism for every layer of ``model`` under a budget of time or memory at a target length.

        result = hf_longattn.search_design("bert-base-uncased", Path("book.txt"), budget="0.2", length=4096)
        convert_checkpoint("bert-base-uncased", "long-bert", long_attention=result.chosen.design.attention(), max_length=4096)

    Stage 1 measures what each candidate keeps of the softmax of each layer, and what it costs at the target length on this machine. Both
    are summed over layers, so the best choice under every budget is found exactly. Stage 2 (``trials``) measures what designs do to the
    model as a whole, starting with those of stage 1.

    Args:
        model: a checkpoint of transformers that is not converted yet: a folder or a Hub repository id.
        text: the text itself, a file (``Path``), or token ids ``(N,)`` without special tokens; for a model of images an image or a
            folder of images (``Path``), for one of videos a folder of frames, an array (.npy) or a folder of these, for one of sound a
            recording or a folder of recordings.
        output: the folder of the search, with report, image and the recipe ``design.yaml``; ``None`` keeps nothing, and makes no stage 2.
        budget: of the attention of all layers for one text: a share of full attention's time (0.25), seconds ("1.5s") or memory ("200MB");
            in the mode "full-layers" the number of layers that keep the checkpoint's attention.
        length: of the target, in tokens; the checkpoint's own if not given.
        image_size: of the target's images, 1024, or height and width, "768x1024"; the checkpoint's own if not given.
        frames: of the target's videos; the checkpoint's own if not given.
        audio_seconds: of the target's sounds; the checkpoint's own if not given.
        candidates: mechanisms such as ``"window:window=256"``; usual ones if not given. In the mode "full-layers" the one that the other
            layers run.
        mode: "mechanisms", or "full-layers" (after Li et al. 2025, arXiv 2512.20569: the layers whose restoration reduces the KL
            divergence most keep the checkpoint's attention).
        score: of stage 1: "mass", captured softmax, or "kl", the divergence of the model in which one layer alone runs the candidate.
        trials: of stage 2, designs tried in all.
        objective: of stage 2: "loss", masked or causal, at the target length, or "kl", the divergence from the checkpoint.
        pieces: of the text that are read, or images, at most.
        queries: measured in each piece for captured mass.
        compare_at: tokens at which candidates are judged; what the checkpoint was trained to read if not given. For images, pixels along
            both axes; ``image_size`` if not given. For sound, seconds; ``audio_seconds`` up to a minute if not given.
        positions: as in a conversion.
        seed: of stage 2's sampler.
        device: "cpu", "cuda" …; the accelerator if there is one.
        resume: continue the search in ``output``. overwrite: start it again.
        revision, token: of the Hub repository.
        progress: called with a sentence before each step.
    Returns:
        The result.
    Raises:
        OptionError, UnknownMechanismError: settings or candidates that do not exist, or a budget that nothing meets.
        LengthError: the text is too short.
        DestinationExistsError: ``output`` holds a search, or something else.
        MissingExtraError: Optuna or matplotlib is not installed.
        CheckpointError: the checkpoint cannot be loaded.
    """
    for name, value, known in (("mode", mode, MODES), ("score", score, SCORE_NAMES), ("objective", objective, OBJECTIVES)):
        if value not in known:
            raise OptionError(f"{name} is {value!r}, but must be {' or '.join(map(repr, known))}.")
    if min(pieces, queries) < 1:
        raise OptionError("At least one piece of text and one query must be measured; for example pieces=4, queries=512.")
    check_trials(trials)
    if output is None and (trials or resume or overwrite):
        raise OptionError("Stage 2 keeps its trials in a folder; give one as output, or leave trials at 0.")
    if output is not None:
        check_extra("search", "matplotlib")
    full_layers = mode == MODES[1]
    config = SearchConfig(
        model=str(model), text=text, budget=None if full_layers else Budget.read(budget),
        full_layers=_count(budget) if full_layers else None, candidates=None if candidates is None else tuple(read_candidates(candidates)),
        score="kl" if full_layers else score, objective=objective, trials=trials, pieces=pieces, queries=queries,
        compare_at=compare_at, seed=seed, device=str(chosen_device(device)),
        conversion=ConversionConfig(
            max_length=length, image_size=image_size, frames=frames, audio_seconds=audio_seconds, positions=positions, revision=revision,
            token=token,
        ),
    )  # fmt: skip
    if full_layers and (config.candidates is None or len(config.candidates) != 1 or trials):
        raise OptionError("In the mode full-layers all other layers run one candidate, and there are no trials; give one --candidate.")
    opened = nullcontext(None) if output is None else opened_folder(output, config.settings(), resume=resume, overwrite=overwrite)
    with opened as folder:
        result = Search(config, folder, progress).run()
        if folder is not None:
            folder.write(result)
    return result


class Search:
    """One search, step by step.

    Args:
        config: the arguments.
        folder: where measurements are kept; ``None`` keeps nothing.
        progress: called with a sentence before each step.
        source: the checkpoint, if it is open already.
    """

    def __init__(
        self, config: SearchConfig, folder: SearchFolder | None = None, progress: Progress | None = None, source: Source | None = None
    ) -> None:  # fmt: skip
        self.config, self.folder, self.progress = config, folder, progress or silent
        self.model = config.open_model(source)
        self.length = config.length_compared(self.model)
        self.text = config.inputs(self.model)
        self.notes: list[str] = []
        self.reasons: dict[str, str] = {}
        self.candidates: list[Candidate] = []

    def run(self) -> SearchResult:
        """Measure candidates, choose a design, and try designs if there is a stage 2."""
        model, config = self.model, self.config
        pieces = len(self.text.pieces(self.length, config.pieces))  # type: ignore[arg-type]
        if config.trials and config.objective == "loss":
            if not model.predicts_tokens:
                raise OptionError(
                    f"{model.source.name!r} is a {model.original.architecture.source_class}, which predicts no tokens, so it has no "
                    "held-out loss; add --objective kl."
                )
            pieces = min(pieces, len(self.text.pieces(model.length, config.pieces)))
        if pieces < config.pieces:
            self.notes.append(self.text.too_few(pieces, config.pieces))
        self.candidates = self._suitable()
        costs = self._measure_costs()
        if config.full_layers is not None:
            return self._full_layers(costs)
        table = self._table()
        assert config.budget is not None
        best, front = choose(table, self.candidates, costs, config.budget, config.score)
        uniform = self._uniform(costs, table)
        if not config.trials:
            what = "keeps the most of the layers' attention" if config.score == "mass" else "changes the predictions least"
            return self._result(best, f"{best.design} {what} within {config.budget}.", costs, table, front, uniform)
        tried = self._try(costs, [best, *front], uniform, table)
        affordable = [costed for costed in tried if self._is_affordable(costs, costed.design)]
        what = "held-out loss" if config.objective == "loss" else "KL divergence"
        if not affordable:  # the search was stopped at its first designs, and resumed with fewer trials
            reason = f"{best.design} is what stage 1 chooses; none of the {len(tried)} designs tried is within {config.budget}."
            return self._result(best, reason, costs, table, front, uniform, tuple(tried))
        chosen = min(affordable, key=lambda costed: (costed.loss, costed.seconds))
        first = next((costed for costed in tried if costed.design.names == best.design.names), None)
        reason = f"{chosen.design} has the lowest {what} of the {len(tried)} designs tried, {chosen.loss:.4f} nats within {config.budget}"
        alone = f"stage 1 alone would choose {best.design}, {'not tried' if first is None else f'{first.loss:.4f} nats'}"
        reason += f"; {alone}." if first is not chosen else ", and is what stage 1 alone would choose."
        return self._result(chosen, reason, costs, table, front, uniform, tuple(tried))

    def _suitable(self) -> list[Candidate]:
        """The candidates that single layers can run and that positions hold for; why others cannot is kept in :attr:`reasons`.

        A candidate that the user named is kept where stage 2 measures what it does at the target length.

        Raises:
            OptionError: one that the user named cannot run, or none is left.
        """
        suitable, shape, sizes = [], self.model.original.shape, self.model.original.inputs
        measured = self.config.full_layers is not None or (self.config.trials > 0 and self.config.objective == "loss")
        for candidate in usual_candidates(sizes) if self.config.candidates is None else self.config.candidates:
            why = unsuitable(candidate, shape.causal, sizes)
            if why and candidate.by_user:
                raise OptionError(f"{why[:-1]}; leave --candidate {candidate} out.")
            untrained = "" if why else self.model.untrained_distances(candidate.sized(self.model.length, shape.heads, shape.head_dim))
            if untrained and candidate.by_user and measured:
                self.notes.append(f"{candidate} {untrained}.")
            elif why or untrained:
                self.reasons[str(candidate)] = why or f"{untrained}."
                continue
            suitable.append(candidate)
        if str(FULL) in map(str, suitable):  # a layer with a window of the base can keep that, too
            base = self.model.base_design.layers
            suitable += [base[layer] for layer in sorted(self.model.named)]
        if not suitable:
            name, why = next(iter(self.reasons.items()))
            span = widest_span(self.model.trained_length, causal=shape.causal)
            example = next(iter(sizes.kind.own_windows(sizes)), f"window:window={span}")
            raise OptionError(
                f"No candidate is left: {name} {why.rstrip('.')}; give one that sees less, for example --candidate {example}."
            )
        return unique_candidates(suitable)

    def _measure_costs(self) -> CostTable:
        model = self.model
        base = list(model.base_design.layers) if self.config.full_layers is not None else []
        costs = LayerCosts(
            model.original.shape, model.length, model.device, None if self.folder is None else self.folder.file(COSTS),
            model.original.inputs.new.grid,
        )  # fmt: skip
        memory = self.config.budget is not None and self.config.budget.of_memory
        measured = costs.measure(unique_candidates([*self.candidates, FULL, *base]), self.progress, memory)
        self._leave_out(costs.refused)
        return CostTable(measured, model.layers, model.original.shape.causal, model.named)

    def _leave_out(self, reasons: Mapping[str, str]) -> None:
        """Continue without candidates that failed.

        Raises:
            OptionError: none is left.
        """
        self.reasons |= reasons
        self.candidates = [candidate for candidate in self.candidates if str(candidate) not in reasons]
        if not self.candidates:
            raise OptionError(f"No candidate could be measured ({next(iter(reasons.values())).rstrip('.')}); give others with --candidate.")

    def _table(self) -> ScoreTable:
        config = self.config

        def compute() -> dict[str, Any]:
            if config.score == "mass":
                table = mass_table(self.model, self.text, self.candidates, self.length, config.pieces, config.queries, self.progress)
            else:
                divergence = Divergence(self.model, self.text, config.pieces, self.length)
                table = divergence_table(self.model, divergence, self.candidates, self.progress)
            return asdict(table)

        table = ScoreTable(**(compute() if self.folder is None else self.folder.stored(SCORES, compute)))
        self._leave_out(table.failed)
        for name, why in table.reasons.items():
            self.reasons[name] = why if config.trials == 0 else f"{why.rstrip('.')}, so stage 1 left it to stage 2."
        return table

    def _uniform(self, costs: CostTable, table: ScoreTable | None) -> list[CostedDesign]:
        """Every candidate in all layers, cheapest first."""
        designs = [costs.costed(costs.uniform(candidate), table, self.config.score) for candidate in self.candidates]
        return sorted(designs, key=lambda costed: costed.seconds)

    def _is_affordable(self, costs: CostTable, design: Design) -> bool:
        budget = self.config.budget
        assert budget is not None
        amounts = [costs.layer_cost(name, budget) for name in design.names]
        amount = max(amounts) if budget.of_memory and not costs.sums else sum(amounts)
        return amount <= budget.limit(costs.full_seconds) * (1 + ROUNDING)

    def _try(
        self, costs: CostTable, front: Sequence[CostedDesign], uniform: Sequence[CostedDesign], table: ScoreTable
    ) -> list[CostedDesign]:  # fmt: skip
        """Every design that stage 2 tried, with its loss; those of stage 1 are tried first."""
        config, folder, budget = self.config, self.folder, self.config.budget
        assert folder is not None
        assert budget is not None
        limit = budget.limit(costs.full_seconds)
        peak = budget.of_memory and not costs.sums
        candidates = [candidate for candidate in self.candidates if not peak or costs.layer_cost(str(candidate), budget) <= limit]
        names = {str(candidate) for candidate in candidates}

        def possible(designs: Sequence[CostedDesign]) -> list[CostedDesign]:
            return [costed for costed in designs if names.issuperset(costed.design.names) and self._is_affordable(costs, costed.design)]

        most_expensive_first = subsample(possible(front[1:])[::-1], SEEDS)
        spread = [front[0], *most_expensive_first, *sorted(possible(uniform), key=lambda costed: -costed.seconds)]
        seeds = unique([costed.design for costed in spread])[: max(min(2, config.trials), config.trials // 2)]
        amounts = {name: costs.costs[name].seconds if peak else costs.layer_cost(name, budget) for name in names}
        remove_torn_line(folder.path)
        study = DesignStudy(folder.path, candidates, costs.layers, amounts, float("inf") if peak else limit, config.seed, costs.named)
        study.begin(seeds)
        left = config.trials - study.complete
        if left > 0:
            study.work(config.objective_of(self.model), left, self.progress)
        self.notes += [f"{name} could not be tried: {why}." for name, why in study.failed().items()]
        return [costs.costed(design, table, config.score, loss) for design, loss in study.tried()]

    def _full_layers(self, costs: CostTable) -> SearchResult:
        """The result in the mode full-layers: the layers that need their attention most keep it, and all others run the candidate.

        In the paper (Li et al. 2025, arXiv 2512.20569) the cheap layers are linear and are trained a little by distillation before, as
        ``longattn train linearise --softmax-layers`` does; here they are judged untrained.
        """
        config, model, cheap, base = self.config, self.model, self.candidates[0], self.model.base_design
        assert config.full_layers is not None
        if not 0 < config.full_layers < model.layers:
            raise OptionError(
                f"{config.model!r} has {model.layers} layers, so 1 to {model.layers - 1} of them can keep full attention; give --budget "
                f"{model.layers // 2 or 1}."
            )
        divergence = Divergence(model, self.text, config.pieces, self.length)

        def restored(full_layers: frozenset[int]) -> Design:
            return replace(base, layers=tuple(own if layer in full_layers else cheap for layer, own in enumerate(base.layers)))

        def divergences(sets: Sequence[frozenset[int]]) -> list[float]:
            values = []
            for full_layers in sets:
                self.progress(f"{cheap}, full attention in {', '.join(map(str, sorted(full_layers))) or 'no layer'}")
                values.append(divergence(restored(full_layers)))
            return values

        layers = choose_layers(divergences, range(model.layers), config.full_layers)
        if layers is None:
            raise OptionError(
                f"With {cheap} in every layer the predictions are those of {config.model!r}, so no layer is more important than another; "
                "give a cheaper --candidate."
            )
        design = restored(frozenset(layers.kept))
        table = ScoreTable([{} for _ in range(model.layers)])
        reason = (
            f"{layers_keep(layers.kept)} the checkpoint's attention: of the choices compared, this has the lowest KL divergence from the "
            f"checkpoint, {layers.divergence:.4f} nats; without any full layer it is {layers.nothing:.4f}."
        )
        chosen = costs.costed(design, loss=layers.divergence)
        return self._result(
            chosen, reason, costs, table, [], [], importance=tuple(layers.importance.values()), compared=layers.compared, objective="kl",
        )  # fmt: skip

    def _result(
        self, chosen: CostedDesign, reason: str, costs: CostTable, table: ScoreTable, front: Sequence[CostedDesign],
        uniform: Sequence[CostedDesign], tried: tuple[CostedDesign, ...] = (), **more: Any,
    ) -> SearchResult:  # fmt: skip
        config, model, sizes = self.config, self.model, self.model.original.inputs
        compared = self.length if isinstance(self.length, int) else self.length.tokens
        settings = {
            "max_length": config.conversion.max_length,
            "image_size": None if config.conversion.image_size is None else size_text(sizes.new.value[-2:]),
            "frames": config.conversion.frames,
            "audio_seconds": config.conversion.audio_seconds,
            "positions": None if config.conversion.positions == "auto" else config.conversion.positions,
        }
        rows = tuple(LayerRow(row, name) for row, name in zip(table.scores, chosen.design.names, strict=True))
        full = costs.costed(costs.uniform(FULL))
        change, no_loss = self._loss_change(chosen.design)
        return SearchResult(
            model=config.model, text=self.text.name, length=model.length, compared_at=compared, budget=config.budget, score=config.score,
            full_seconds=full.seconds, full_bytes=full.bytes, chosen=chosen, reason=reason, front=tuple(front), uniform=tuple(uniform),
            rows=rows, costs={name: (cost.seconds, cost.bytes) for name, cost in costs.costs.items()}, reasons=self.reasons,
            machine=_machine(model.device), recipe=chosen.design.recipe(**settings), tried=tried, layers_kept=config.full_layers,
            notes=tuple(self.notes), loss_change=change, no_loss=no_loss, folder=None if self.folder is None else str(self.folder.path),
            sizes=None if isinstance(self.length, int) else (sizes.new, self.length), material=sizes.kind.material,
            **{"objective": config.objective if tried else None, **more},
        )  # fmt: skip

    def _loss_change(self, design: Design) -> tuple[LossChange | None, str]:
        """How the loss at the target length changes with a design, and why that was not measured."""
        if not self.text.has_loss:
            return None, ""
        try:
            check_predicts_tokens(self.model)
            inputs: Any = self.text.predicted(self.model.length, self.config.pieces, causal=self.model.original.shape.causal)
            self.progress(f"held-out loss of {design}")
            measure = LossAgainstChunks(self.model, inputs)
            return measure(design.attention()), ""
        except FAILURES as error:
            return None, f"{in_a_line(error)}."


def subsample(designs: Sequence[CostedDesign], count: int) -> list[CostedDesign]:
    """At most ``count``, evenly spread."""
    step = max(1.0, len(designs) / count)
    return [designs[round(number * step)] for number in range(min(count, len(designs))) if round(number * step) < len(designs)]


def _count(budget: str | float | Budget) -> int:
    text = str(budget).strip()
    if not (text.isascii() and text.isdigit() and int(text)):
        raise OptionError(f"In the mode full-layers the budget is a number of layers, for example --budget 2, not {text!r:.40}.")
    return int(text)


def _machine(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(), **versions()}
