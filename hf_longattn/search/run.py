"""Search for a design for a checkpoint: measure candidates, choose one per layer, and try designs."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..conversion.config import ConversionConfig
from ..conversion.model_loading import chosen_device, quiet_libraries
from ..conversion.report import versions
from ..conversion.sources.base import Source
from ..diagnostics import Candidate
from ..diagnostics.trial_model import LossAgainstChunks, check_predicts_tokens
from ..errors import LengthError, OptionError, check_extra, in_a_line
from ..evaluation.layer_choice import layers_keep
from ..evaluation.token_loss import LossChange
from ..positions import widest_span
from .budget import Budget
from .candidates import FULL, read_candidates, unsuitable
from .costs import LayerCosts
from .design import CostedDesign, Design, unique
from .folder import COSTS, SCORES, SearchFolder, opened_folder
from .layers import choose_full_layers
from .model import SearchedModel
from .objectives import FAILURES, Divergence, HeldOutLoss, Transferred, weights_of
from .result import LayerRow, SearchResult
from .scores import QUERIES, CostTable, ScoreTable, choose, divergence_table, mass_table
from .study import ROUNDING, DesignStudy, check_trials, remove_torn_line, run_workers
from .texts import SearchText
from .transfer import transfer_attention

Progress = Callable[[str], None]
MODES, SCORE_NAMES, OBJECTIVES = ("mechanisms", "full-layers"), ("mass", "kl"), ("loss", "kl")
SEEDS = 12
"""Designs of stage 1 with which stage 2 starts."""
PIECES = 4
"""Pieces of the text that are read."""


@dataclass(frozen=True)
class SearchConfig:
    """The arguments of :func:`search_design`, checked; a worker process starts from them alone."""

    model: str
    text: str | Path | Tensor
    budget: Budget | None
    full_layers: int | None
    candidates: tuple[Candidate, ...]
    score: str
    objective: str
    trials: int
    workers: int
    transfer_steps: int
    pieces: int
    queries: int
    compare_at: int | None
    seed: int
    device: str
    conversion: ConversionConfig

    def settings(self) -> dict[str, Any]:
        """What a search that resumes must have in common with the one that was stopped."""
        if isinstance(self.text, Tensor):
            digest = hashlib.sha256(self.text.numpy().tobytes()).hexdigest()
        else:
            whole = self.text.read_bytes() if isinstance(self.text, Path) and self.text.is_file() else str(self.text).encode()
            digest = hashlib.sha256(whole).hexdigest()
        return {
            "model": self.model, "revision": self.conversion.revision, "text": digest, "budget": str(self.budget or self.full_layers),
            "mode": MODES[self.full_layers is not None], "length": self.conversion.max_length, "positions": self.conversion.positions,
            "candidates": [str(one) for one in self.candidates],
            "score": self.score, "objective": self.objective, "transfer_steps": self.transfer_steps, "pieces": self.pieces,
            "queries": self.queries, "compare_at": self.compare_at, "seed": self.seed, "device": self.device,
        }  # fmt: skip

    def opened(self, source: Source | None = None) -> SearchedModel:
        """The checkpoint, not yet loaded."""
        return SearchedModel.open(self.model if source is None else source, self.conversion, torch.device(self.device))

    def length_compared(self, model: SearchedModel) -> int:
        """Tokens of the pieces by which candidates are judged: what the checkpoint was trained to read.

        Raises:
            LengthError: ``compare_at`` is more than that.
        """
        trained = min(model.trained_length, model.length)
        if self.compare_at is not None and not 16 <= self.compare_at <= trained:
            raise LengthError(
                f"Candidates are compared at 16 to {trained:,} tokens, which {self.model!r} was trained to read, not at "
                f"{self.compare_at:,}; change --compare-at, or leave it out."
            )
        return trained if self.compare_at is None else self.compare_at

    def searched_text(self, model: SearchedModel) -> SearchText:
        """The text, tokenised as far as it is needed."""
        vocabulary = getattr(model.original.config.get_text_config(), "vocab_size", 2)
        return SearchText(self.text, model.tokenizer, self.pieces * model.length, vocabulary)

    def objective_of(self, model: SearchedModel, transferred: Transferred) -> HeldOutLoss | Divergence:
        """What stage 2 measures of a design."""
        text = self.searched_text(model)
        if self.objective == "loss":
            return HeldOutLoss(model, text, self.pieces, transferred)
        return Divergence(model, text, self.pieces, self.length_compared(model), transferred)


@quiet_libraries()
def search_design(
    model: str | Path,
    text: str | Path | Tensor,
    output: str | Path | None = None,
    *,
    budget: str | float | Budget = "0.25",
    length: int | None = None,
    candidates: Sequence[str | Candidate] | None = None,
    mode: str = "mechanisms",
    score: str = "mass",
    trials: int = 0,
    objective: str = "loss",
    workers: int = 1,
    transfer_steps: int = 0,
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

        found = hf_longattn.search_design("bert-base-uncased", Path("book.txt"), budget="0.2", length=4096)
        convert_checkpoint("bert-base-uncased", "long-bert", long_attention=found.chosen.design.attention(), max_length=4096)

    Stage 1 measures what each candidate keeps of the softmax of each layer and what it costs at the target length on this machine; layers
    are independent in both sums, so that the best choice under every budget is found exactly. Stage 2 (``trials``) measures what designs do
    to the model as a whole, starting with those of stage 1.

    Args:
        model: a checkpoint of transformers that is not converted yet: a folder or a Hub repository id.
        text: the text itself, a file (``Path``), or token ids ``(N,)`` without special tokens.
        output: the folder of the search, with report, picture and the recipe ``design.yaml``; ``None`` keeps nothing, and makes no stage 2.
        budget: of the attention of all layers for one text: a share of full attention's time (0.25), seconds ("1.5s") or memory ("200MB");
            in the mode "full-layers" the number of layers that keep the checkpoint's attention.
        length: of the target, in tokens; the checkpoint's own if not given.
        candidates: mechanisms such as ``"window:window=256"``; usual ones if not given. In the mode "full-layers" the one that the other
            layers run.
        mode: "mechanisms", or "full-layers" (after Li et al. 2025, arXiv 2512.20569: the layers whose restoration reduces the KL
            divergence most keep the checkpoint's attention).
        score: of stage 1: "mass", captured softmax, or "kl", the divergence of the model in which one layer alone runs the candidate.
        trials: of stage 2, designs tried in all.
        objective: of stage 2: "loss", masked or causal, at the target length, or "kl", the divergence from the checkpoint.
        workers: processes of stage 2; a script that asks for more than one needs ``if __name__ == "__main__":`` around the call.
        transfer_steps: attention transfer of candidates with parameters before they are judged, in optimiser steps.
        pieces: of the text that are read, at most.
        queries: measured in each piece for captured mass.
        compare_at: tokens at which candidates are judged; what the checkpoint was trained to read if not given.
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
    if min(pieces, queries) < 1 or transfer_steps < 0:
        raise OptionError("At least one piece of text and one query must be measured; for example pieces=4, queries=512, transfer_steps=0.")
    check_trials(trials, workers)
    if output is None and (trials or transfer_steps or resume or overwrite):
        raise OptionError("Stage 2 keeps its trials in a folder; give one as output, or leave trials and transfer_steps at 0.")
    if output is not None:
        check_extra("search", "matplotlib")
    if transfer_steps:
        check_extra("train")
    kept = mode == MODES[1]
    config = SearchConfig(
        model=str(model), text=text, budget=None if kept else Budget.read(budget), full_layers=_count(budget) if kept else None,
        candidates=tuple(read_candidates(candidates)), score="kl" if kept else score, objective=objective, trials=trials, workers=workers,
        transfer_steps=transfer_steps, pieces=pieces, queries=queries, compare_at=compare_at, seed=seed, device=str(chosen_device(device)),
        conversion=ConversionConfig(max_length=length, positions=positions, revision=revision, token=token),
    )  # fmt: skip
    if kept and (candidates is None or len(config.candidates) != 1 or trials):
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
        self.config, self.folder, self.progress = config, folder, progress or _silent
        self.model = config.opened(source)
        self.length = config.length_compared(self.model)
        self.text = config.searched_text(self.model)
        self.notes: list[str] = []
        self.reasons: dict[str, str] = {}
        self.candidates: list[Candidate] = []

    def run(self) -> SearchResult:
        model, config = self.model, self.config
        pieces = len(self.text.pieces(self.length, config.pieces))
        if config.trials and config.objective == "loss":
            check_predicts_tokens(model)
            pieces = min(pieces, len(self.text.pieces(model.length, config.pieces)))
        if pieces < config.pieces:
            self.notes.append(f"The text is enough for {pieces} of {config.pieces} pieces; a longer one gives a surer choice.")
        self.candidates = self._suitable()
        prices = self._prices()
        transferred = self._transferred()
        if config.full_layers is not None:
            return self._full_layers(prices, transferred)
        table = self._table(transferred)
        assert config.budget is not None
        best, front = choose(table, self.candidates, prices, config.budget, config.score)
        uniform = self._uniform(prices, table)
        if not config.trials:
            what = "keeps the most of the layers' attention" if config.score == "mass" else "changes the predictions least"
            return self._result(best, f"{best.design} {what} within {config.budget}.", prices, table, front, uniform, transferred)
        tried = self._try(prices, [best, *front], uniform, transferred, table)
        within = [one for one in tried if self._affordable(prices, one.design)]
        what = "held-out loss" if config.objective == "loss" else "KL divergence"
        if not within:  # the search was stopped at its first designs, and resumed with fewer trials
            reason = f"{best.design} is what stage 1 chooses; none of the {len(tried)} designs tried is within {config.budget}."
            return self._result(best, reason, prices, table, front, uniform, transferred, tuple(tried))
        chosen = min(within, key=lambda one: (one.loss, one.seconds))
        first = next((one for one in tried if one.design.names == best.design.names), None)
        reason = f"{chosen.design} has the lowest {what} of the {len(tried)} designs tried, {chosen.loss:.4f} nats within {config.budget}"
        alone = f"stage 1 alone would choose {best.design}, {'not tried' if first is None else f'{first.loss:.4f} nats'}"
        reason += f"; {alone}." if first is not chosen else ", and is what stage 1 alone would choose."
        return self._result(chosen, reason, prices, table, front, uniform, transferred, tuple(tried))

    def _suitable(self) -> list[Candidate]:
        """The candidates that single layers can run and that positions hold for; why others cannot is kept in :attr:`reasons`.

        A candidate that the user named is kept where stage 2 measures what it does at the target length.

        Raises:
            OptionError: one that the user named cannot run, or none is left.
        """
        suitable, shape = [], self.model.original.shape
        measured = self.config.full_layers is not None or (self.config.trials > 0 and self.config.objective == "loss")
        for candidate in self.config.candidates:
            why = unsuitable(candidate, shape.causal, self.model.length)
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
            own = self.model.own_design.layers
            suitable += [own[layer] for layer in sorted(self.model.named)]
        if not suitable:
            name, why = next(iter(self.reasons.items()))
            raise OptionError(
                f"No candidate is left: {name} {why.rstrip('.')}; give one that sees less, for example --candidate "
                f"window:window={widest_span(self.model.trained_length, causal=shape.causal)}."
            )
        return unique_candidates(suitable)

    def _prices(self) -> CostTable:
        model = self.model
        own = list(model.own_design.layers) if self.config.full_layers is not None else []
        costs = LayerCosts(
            model.original.shape, model.length, model.device, None if self.folder is None else self.folder.file(COSTS)
        )  # fmt: skip
        memory = self.config.budget is not None and self.config.budget.of_memory
        known = costs.measure(unique_candidates([*self.candidates, FULL, *own]), self.progress, memory)
        self._leave_out(costs.refused)
        return CostTable(known, model.layers, model.original.shape.causal, model.named)

    def _leave_out(self, reasons: Mapping[str, str]) -> None:
        """Go on without candidates that failed.

        Raises:
            OptionError: none is left.
        """
        self.reasons |= reasons
        self.candidates = [one for one in self.candidates if str(one) not in reasons]
        if not self.candidates:
            raise OptionError(f"No candidate could be measured ({next(iter(reasons.values())).rstrip('.')}); give others with --candidate.")

    def _transferred(self) -> Transferred:
        if not self.config.transfer_steps:
            return {}
        assert self.folder is not None
        return transfer_attention(self.config.model, self.config.text, self.candidates, self.config.transfer_steps, self.length,
                                  self.folder.file("transfer"), self.config.seed, self.progress)  # fmt: skip

    def _table(self, transferred: Transferred) -> ScoreTable:
        config = self.config

        def compute() -> dict[str, Any]:
            if config.score == "mass":
                table = mass_table(self.model, self.text, self.candidates, self.length, config.pieces, config.queries, self.progress)
            else:
                divergence = Divergence(self.model, self.text, config.pieces, self.length, transferred)
                table = divergence_table(self.model, divergence, self.candidates, self.progress)
            return asdict(table)

        table = ScoreTable(**(compute() if self.folder is None else self.folder.stored(SCORES, compute)))
        self._leave_out(table.failed)
        for name, why in table.reasons.items():
            self.reasons[name] = why if config.trials == 0 else f"{why.rstrip('.')}, so stage 1 left it to stage 2."
        return table

    def _uniform(self, prices: CostTable, table: ScoreTable | None) -> list[CostedDesign]:
        designs = [prices.uniform(one) for one in self.candidates]
        return sorted((prices.priced(one, table, self.config.score) for one in designs), key=lambda one: one.seconds)

    def _price(self, prices: CostTable, design: Design) -> float:
        assert self.config.budget is not None
        each = [prices.price(name, self.config.budget) for name in design.names]
        return max(each) if self.config.budget.of_memory and not prices.sums else sum(each)

    def _limit(self, prices: CostTable) -> float:
        assert self.config.budget is not None
        return self.config.budget.limit(prices.full_seconds)

    def _affordable(self, prices: CostTable, design: Design) -> bool:
        return self._price(prices, design) <= self._limit(prices) * (1 + ROUNDING)

    def _try(
        self, prices: CostTable, front: Sequence[CostedDesign], uniform: Sequence[CostedDesign], transferred: Transferred, table: ScoreTable
    ) -> list[CostedDesign]:  # fmt: skip
        config, folder = self.config, self.folder
        assert folder is not None
        assert config.budget is not None
        limit = self._limit(prices)
        peak = config.budget.of_memory and not prices.sums
        candidates = [one for one in self.candidates if not peak or prices.price(str(one), config.budget) <= limit]
        names = {str(one) for one in candidates}

        def possible(designs: Sequence[CostedDesign]) -> list[CostedDesign]:
            return [one for one in designs if names.issuperset(one.design.names) and self._affordable(prices, one.design)]

        most_expensive_first = subsample(possible(front[1:])[::-1], SEEDS)
        spread = [front[0], *most_expensive_first, *sorted(possible(uniform), key=lambda one: -one.seconds)]
        seeds = unique([one.design for one in spread])[: max(min(2, config.trials), config.trials // 2)]
        each = {str(one): prices.costs[str(one)].seconds if peak else prices.price(str(one), config.budget) for one in candidates}
        job = WorkerJob(config, str(folder.path), tuple(candidates), prices.layers, each, float("inf") if peak else limit, prices.named)
        remove_torn_line(folder.path)
        study = job.study()
        study.begin(seeds)
        left = max(0, config.trials - study.complete)
        workers = min(config.workers, left)
        if workers > 1:
            self.progress(f"{left} trials in {workers} processes")
            run_workers(try_designs, [(job, len(range(number, left, workers))) for number in range(workers)])
        elif left:
            study.work(config.objective_of(self.model, transferred), left, self.progress)
        self.notes += [f"{name} could not be tried: {why}." for name, why in study.failed().items()]
        return [prices.priced(design, table, config.score, loss) for design, loss in study.tried()]

    def _full_layers(self, prices: CostTable, transferred: Transferred) -> SearchResult:
        config, model = self.config, self.model
        assert config.full_layers is not None
        divergence = Divergence(model, self.text, config.pieces, self.length, transferred)
        layers, design = choose_full_layers(
            divergence, self.candidates[0], model.own_design, config.full_layers, config.model, self.progress
        )
        table = ScoreTable([{} for _ in range(model.layers)])
        reason = (
            f"{layers_keep(layers.kept)} the checkpoint's attention: of the choices compared, this has the lowest KL divergence from the "
            f"checkpoint, {layers.divergence:.4f} nats; without any full layer it is {layers.nothing:.4f}."
        )
        chosen = prices.priced(design, loss=layers.divergence)
        return self._result(
            chosen, reason, prices, table, [], [], transferred, importance=tuple(layers.importance.values()), compared=layers.compared,
            objective="kl",
        )  # fmt: skip

    def _result(
        self, chosen: CostedDesign, reason: str, prices: CostTable, table: ScoreTable, front: Sequence[CostedDesign],
        uniform: Sequence[CostedDesign], transferred: Transferred, tried: tuple[CostedDesign, ...] = (), **more: Any,
    ) -> SearchResult:  # fmt: skip
        config, model = self.config, self.model
        costs = {name: (cost.seconds, cost.bytes) for name, cost in prices.costs.items()}
        settings = {
            "max_length": config.conversion.max_length,
            "positions": None if config.conversion.positions == "auto" else config.conversion.positions,
        }
        rows = tuple(LayerRow(row, name) for row, name in zip(table.scores, chosen.design.names, strict=True))
        full = prices.priced(prices.uniform(FULL))
        change, no_loss = self._loss_change(chosen.design, transferred)
        return SearchResult(
            model=config.model, text=self.text.name, length=model.length, compared_at=self.length, budget=config.budget, score=config.score,
            full_seconds=full.seconds, full_bytes=full.bytes, chosen=chosen, reason=reason, front=tuple(front), uniform=tuple(uniform),
            rows=rows, costs=costs, reasons=self.reasons, machine=_machine(model.device), recipe=chosen.design.recipe(**settings),
            tried=tried, layers_kept=config.full_layers, notes=tuple(self.notes), loss_change=change, no_loss=no_loss,
            folder=None if self.folder is None else str(self.folder.path),
            **{"objective": config.objective if tried else None, **more},
        )  # fmt: skip

    def _loss_change(self, design: Design, transferred: Transferred) -> tuple[LossChange | None, str]:
        """How the loss at the target length changes with a design, and why that was not measured."""
        try:
            check_predicts_tokens(self.model)
            causal = self.model.original.shape.causal
            pieces = self.text.pieces(self.model.length, self.config.pieces)
            inputs = [(piece, piece) if causal else self.text.masked(piece, number) for number, piece in enumerate(pieces)]
            self.progress(f"held-out loss of {design}")
            measure = LossAgainstChunks(self.model, inputs)
            return measure(design.attention(), weights_of(design, transferred)), ""
        except FAILURES as error:
            return None, f"{in_a_line(error)}."


@dataclass(frozen=True)
class WorkerJob:
    """What a process of stage 2 starts from."""

    config: SearchConfig
    folder: str
    candidates: tuple[Candidate, ...]
    layers: int
    prices: dict[str, float]
    limit: float
    named: frozenset[int]

    def study(self) -> DesignStudy:
        """The study, made by whoever opens it first."""
        return DesignStudy(Path(self.folder), self.candidates, self.layers, self.prices, self.limit, self.config.seed, self.named)


def try_designs(job: WorkerJob, trials: int) -> None:
    """Work on a study in this process until ``trials`` of them have ended."""
    model = job.config.opened()
    transferred: Transferred = {}
    if job.config.transfer_steps:
        transferred = transfer_attention(
            job.config.model, job.config.text, job.candidates, job.config.transfer_steps, job.config.length_compared(model),
            Path(job.folder) / "transfer", job.config.seed, _silent,
        )  # fmt: skip
    with quiet_libraries():
        job.study().work(job.config.objective_of(model, transferred), trials)


def unique_candidates(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Without repetitions, the first of each kept."""
    unique: dict[str, Candidate] = {}
    for one in candidates:
        unique.setdefault(str(one), one)
    return list(unique.values())


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


def _silent(sentence: str) -> None:
    pass
