"""Ask a checkpoint probes at several lengths, and report its answers."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.tokenization import special_ids
from ...errors import LengthError, LongAttentionError, OptionError, nearest
from ...loading import load_config, load_model, load_part
from ...modeling.family.definition import model_name
from ...modeling.family.validation import known_length
from ...modeling.inference.optimize import evaluating
from ...reading import check_name
from ..summaries import mean_and_error
from .needles import Niah
from .scoring import HEADS, ProbeAnswer, by_generation, by_likelihood, by_span, head_of, score_tokens
from .task import ProbeTask, TextTask, TokenTask, probe_task

TASKS = ("niah_single_1", "niah_multikey_2", "passkey", "induction")
LENGTHS = (512, 1024, 2048, 4096)
SHORTEST, LONGEST = 16, 1 << 24
MOST_SAMPLES = 10_000
DEFAULT_WINDOW = 512


@dataclass(frozen=True)
class ProbeRecord:
    """One text and its answer.

    tokens: of the input. depth: of the needle, 0 to 1; ``None`` without a needle.
    """

    answers: tuple[str, ...]
    answered: str
    score: float
    tokens: int
    depth: float | None


@dataclass(frozen=True)
class ProbeCell:
    """Scores of a task at one length, and at one depth if depths are chosen.

    score: percent, the mean over samples. error: its standard error over samples; ``None`` for fewer than ten.
    chance: percent that a random choice among the candidates scores; ``None`` without candidates.
    """

    task: str
    length: int
    depth: float | None
    score: float
    error: float | None
    chance: float | None
    samples: int
    seconds: float
    records: tuple[ProbeRecord, ...]


@dataclass(frozen=True)
class ProbeReport:
    """The answers of a model.

    mode: "generate", "likelihood" or "span".
    """

    model: str
    class_name: str
    mode: str
    seed: int
    cells: tuple[ProbeCell, ...]

    def score(self, task: str, length: int) -> float | None:
        """Percent, averaged over depths; ``None`` if it was not asked."""
        scores = [cell.score for cell in self.cells if (cell.task, cell.length) == (task, length)]
        return statistics.fmean(scores) if scores else None

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(cell.task for cell in self.cells))

    @property
    def lengths(self) -> list[int]:
        return sorted({cell.length for cell in self.cells})

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return asdict(self)


def probe_model(
    model: str | Path | PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    tasks: Sequence[str] = TASKS,
    lengths: Sequence[int] = LENGTHS,
    depths: Sequence[float] | None = None,
    samples: int = 20,
    mode: str | None = None,
    choices: int = 8,
    seed: int = 0,
    essay: str | Path | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    progress: Callable[[ProbeCell], None] | None = None,
) -> ProbeReport:
    """Ask a model synthetic tasks at several lengths, with answers anywhere in the text.

    RULER's tasks (``niah_…``, ``vt``, ``cwe``, ``fwe``), HELMET's ``json_kv``, ∞Bench's (``infbench_…``), ``passkey`` and ``listops`` are
    texts with a question; ``mqar``, ``compositional``, ``forgetting``, ``induction`` and ``copy`` are rows of random tokens.

    Args:
        model: a checkpoint of transformers with a language-model or question-answering head (a folder or a Hub repository id), or a model
            in memory, which then needs ``tokenizer``.
        tasks: names; :func:`hf_longattn.evaluation.probes.list_probes` lists them.
        lengths: tokens of a text with its answer, special tokens included; texts are the longest that fit.
        depths: places of the needles, 0 (beginning) to 1 (end), each with all samples; default: random. Tasks without a needle ignore them.
        samples: texts of each task, length and depth.
        mode: "generate": the answer is generated greedily with the model's cache, and scored as in the task's paper.
            "likelihood": the right answers are compared with wrong ones, from the same text if it has any. "span": a question-answering
            head marks the answer in the text, beyond its maximum in overlapping windows. Default: "span" for question-answering heads,
            "likelihood" for masked language models, "generate" for others.
        choices: candidates for likelihood, with the answers. There are more if a task has many answers, since a question has at least as
            many wrong candidates as answers.
        seed: of the texts.
        essay: a UTF-8 text file, the haystack of the needles in essays; default: English text that comes with this package and Python.
        dtype: of the weights; default: float32.
        revision, token: of the Hub repository.
        progress: called with every cell that is complete.
    Raises:
        LengthError: a length beyond the model's maximum, or too short for a task.
        OptionError: a mode that the head or a task does not have, an essay that no task reads, or a value out of range.
        CheckpointError: the model cannot be loaded.
        LongAttentionError: an unknown task, or a model without a supported head.
    """
    chosen = [probe_task(name) for name in tasks]
    _check(lengths, depths, samples, choices, mode, chosen)
    if essay is not None:
        if not any(isinstance(task, Niah) and task.haystack == "essay" for task in chosen):
            raise OptionError(f"None of {', '.join(tasks)} hides needles in an essay; leave out --essay.")
        chosen = [replace(task, essay=Path(essay)) if isinstance(task, Niah) else task for task in chosen]
    loaded, tokenizer, name = _opened(model, tokenizer, dtype, revision, token)
    head = head_of(loaded)
    chosen_mode, modes = mode or HEADS[head][1][0], HEADS[head][1]
    if chosen_mode not in modes:
        raise OptionError(f"A {type(loaded).__name__} cannot be asked by {mode!r}; leave out --mode, or give {' or '.join(modes)}.")
    if head == "encoder-decoder" and (wrong := [task for task in chosen if not isinstance(task, TextTask)]):
        raise LongAttentionError(
            f"A {type(loaded).__name__} is asked about texts, but the probe {wrong[0].name!r} is rows of tokens; leave it out of --task."
        )
    if wrong := [task for task in chosen if chosen_mode not in task.modes]:
        raise OptionError(
            f"The probe {wrong[0].name!r} is asked by {' or '.join(wrong[0].modes)}, and this is a run by {chosen_mode!r}; leave it out of "
            "--task, or give another --mode."
        )
    asker = Asker(loaded, tokenizer, head, chosen_mode, choices)
    asker.check_length(max(lengths))
    for task in chosen:  # before the first question
        asker.sample(task, min(lengths), None, seed)
    cells = []
    with evaluating(loaded):
        for task in chosen:
            for length in lengths:
                for depth in depths if depths is not None and task.placed else (None,):
                    cells.append(asker.cell(task, length, depth, samples, seed))
                    if progress is not None:
                        progress(cells[-1])
    return ProbeReport(name, type(loaded).__name__, chosen_mode, seed, tuple(cells))


class Asker:
    """A model with one mode."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, head: str, mode: str, choices: int) -> None:
        self.model, self.tokenizer, self.head, self.mode, self.choices = model, tokenizer, head, mode, choices
        special, known = set(tokenizer.all_special_ids), min(len(tokenizer), model.config.get_text_config().vocab_size)
        self.ids = torch.tensor([token for token in range(known) if token not in special])

    def check_length(self, length: int) -> None:
        """Refuse a length beyond a table of positions. Rotary positions have no limit, and spans are found in windows.

        Raises:
            LengthError: the model reads fewer tokens.
        """
        config = self.model.config
        if self.head == "span" or getattr(config.get_text_config(), "rope_parameters", None):
            return
        longest = known_length(config, self.tokenizer, self.model)
        if longest is not None and length > longest:
            name = model_name(self.model)
            raise LengthError(
                f"{name!r} reads {longest:,} tokens, not {length:,}; give smaller --lengths, or convert it (longattn convert SRC DST "
                f"--max-length {length})."
            )

    def sample(self, task: ProbeTask, length: int, depth: float | None, seed: int | str) -> Any:
        """A text or row of a task; the same for the same seed, length and depth.

        Raises:
            LengthError: the length is too short.
        """
        rng = random.Random(f"{seed} {task.name} {length} {depth}")
        if isinstance(task, TextTask):
            return task.sample(length, rng, lambda text: len(self.tokenizer(text, verbose=False)["input_ids"]), depth)
        assert isinstance(task, TokenTask)
        special = len(self.tokenizer("")["input_ids"]) if self.head == "masked" else len(special_ids(self.tokenizer)[0])
        return task.sample(length - special - 1, self.ids, rng.getrandbits(62), self.choices, depth)

    def ask(self, task: ProbeTask, sample: Any, length: int) -> ProbeAnswer:
        """The model's answer."""
        masked = self.head == "masked"
        if isinstance(task, TokenTask):
            return score_tokens(self.model, self.tokenizer, sample, self.mode, masked)
        if self.mode == "span":
            window = known_length(self.model.config, self.tokenizer, self.model) or DEFAULT_WINDOW
            return by_span(self.model, self.tokenizer, sample, min(length, window))
        if self.mode == "generate":
            return by_generation(self.model, self.tokenizer, sample)
        return by_likelihood(self.model, self.tokenizer, sample, self.choices, masked)

    def cell(self, task: ProbeTask, length: int, depth: float | None, samples: int, seed: int) -> ProbeCell:
        """A task at a length and depth."""
        started, records, chances = time.perf_counter(), [], []
        for number in range(samples):
            sample = self.sample(task, length, depth, f"{seed}/{number}")
            answer = self.ask(task, sample, length)
            answers = sample.answers if isinstance(task, TextTask) else (self.tokenizer.decode(list(sample.targets)),)
            records.append(ProbeRecord(answers, answer.text, answer.score, answer.tokens, sample.depth))
            chances.append(answer.chance)
        score, error = mean_and_error([100 * record.score for record in records])
        chance = 100 * statistics.fmean(share for share in chances if share is not None) if chances[0] is not None else None
        return ProbeCell(task.name, length, depth, score, error, chance, samples, time.perf_counter() - started, tuple(records))


def _check(
    lengths: Sequence[int], depths: Sequence[float] | None, samples: int, choices: int, mode: str | None, tasks: Sequence[ProbeTask]
) -> None:
    if not tasks or not lengths:
        raise OptionError("There is nothing to ask; give a --task and --lengths.")
    if wrong := [length for length in lengths if length < SHORTEST]:
        raise LengthError(f"A probe's texts have {SHORTEST} tokens or more, not {wrong[0]}; give greater --lengths.")
    if max(lengths) > LONGEST:
        raise LengthError(f"A probe's texts have at most {LONGEST:,} tokens, not {max(lengths):,}; give smaller --lengths.")
    if any(not 0 <= depth <= 1 for depth in depths or ()):
        raise OptionError(f"Depths are shares from 0 (at the beginning) to 1 (at the end), not {list(depths or ())}.")
    if depths is not None and not any(task.placed for task in tasks):
        raise OptionError(
            f"None of {', '.join(task.name for task in tasks)} has one needle whose depth could be chosen; leave out --depths, or ask for "
            "passkey."
        )
    if not (1 <= samples <= MOST_SAMPLES and 2 <= choices <= MOST_SAMPLES):
        raise OptionError(f"A probe has 1 to {MOST_SAMPLES:,} samples and 2 to {MOST_SAMPLES:,} choices, not {samples:,} and {choices:,}.")
    known = sorted({mode for _, modes, _ in HEADS.values() for mode in modes})
    if mode is not None and mode not in known:
        raise OptionError(f"There is no mode {mode!r}; the modes are {', '.join(known)}.{nearest(mode, known)}")


def _opened(
    model: str | Path | PreTrainedModel, tokenizer: Any | None, dtype: torch.dtype | None, revision: str | None, token: str | bool | None
) -> tuple[Any, Any, str]:
    """The model with its head, its tokenizer and its name."""
    if isinstance(model, torch.nn.Module):
        if tokenizer is None:
            raise OptionError("A model in memory is asked with its tokenizer; give tokenizer=AutoTokenizer.from_pretrained(…).")
        return model, tokenizer, model_name(model)
    import transformers

    name = str(model)
    source: dict[str, Any] = {"revision": revision, "token": token}
    check_name(name)
    config = load_config(name, **source)
    stated = type((config.architectures or ["a model without a named class"])[0], (), {"config": config})()
    loader = getattr(transformers, HEADS[head_of(stated)][0])
    loaded = load_model(loader, name, complete=True, dtype=dtype or torch.float32, **source)
    return loaded, tokenizer or load_part(transformers.AutoTokenizer, name, **source), name
