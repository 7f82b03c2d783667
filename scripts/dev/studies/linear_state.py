"""Windows and linear attention of equal state: loss, recall and speed, before and after training.

    python -m scripts.dev.studies.linear_state --work runs/linear     # about 75 minutes on one core; complete steps are kept

For each seed, a Llama of two layers learns to recall facts such as ``alpha=blue``, and then to read inputs of 128 tokens: Python source,
associative recall (MQAR), and questions at the end of source in which one fact (passkey) or eight (needles) are hidden.

It is converted by every mechanism, with options that give all decode caches the same bytes. `longattn train linearise` then trains every
result on such inputs, against the predictions of the original: in two stages of equal length, or in the second alone if the mechanism has
no parameters.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from hf_longattn import LongAttentionConfig, convert_checkpoint
from hf_longattn.choice_text import read_choice
from hf_longattn.cli import main as longattn
from hf_longattn.conversion.flops import ModelShape, state_bytes
from hf_longattn.mechanisms import Mechanism
from hf_longattn.modeling.attach.attention_sites import attention_sites
from hf_longattn.training.checkpoints import DISTILLATION_REPORT
from scripts.dev import RESULTS
from scripts.dev.benchmarks.report import finish_study, footnote, in_rows, machine, markdown_table, output_of, study_parser
from scripts.dev.studies.rotary_lengths import BATCH, HEAD_DIM, NAMES, TRAINED, VALUES, fit, interval, losses, prepare, small_llama
from scripts.dev.studies.variable_tracking import MARKER

OUTPUT = RESULTS / "linear_state"
LENGTHS = (TRAINED, 4 * TRAINED, 16 * TRAINED)
PAIRS, SYMBOLS, ASKED = 8, 16, 4
"""Facts of a text of MQAR or needles, names and as many values, and how often a fact is asked for in the first quarter of the training."""
FACTS = [f"{name}={value}" for name in NAMES[:SYMBOLS] for value in VALUES[:SYMBOLS]]
"""A name with its value is one token, so that a model of two layers learns to find it in minutes."""
TEACHER, FAR = "full attention", "full attention, Self-Extend"
WINDOW, DELTA, NO_START = "window + sinks", "delta", "delta, random start"
ROWS = {
    TEACHER: "full",
    FAR: "full",
    WINDOW: "window:window=60,num_sinks=4",
    NO_START: "delta:expand=4",
    DELTA: "delta:expand=4",
    "hybrid": "hybrid:window=32,features=[hedgehog:feature_dim=60]",
    "hedgehog": "hedgehog:feature_dim=120",
    "taylor": "taylor:feature_dim=14",
    "infini": "infini:segment_length=47",
    "performer": "performer:num_features=120",
    "linear": "linear",
    "nsa": "nsa:compress_size=16,compress_stride=16,block_size=16,num_blocks=2,initial_blocks=0,local_blocks=1,window=24",
}
"""Rows of the tables -> mechanism and options. A query of ``nsa`` sees as many tokens as the window has; its cache keeps all."""
UNTRAINED = (TEACHER, FAR)
"""Rows without training."""
DOCUMENTS = 1_000
"""Maximum number of documents of a text."""
TASKS = {"MQAR": PAIRS, "passkey": 1, "needles": PAIRS}
"""Tasks -> questions in a text."""


class Words(NamedTuple):
    """The ids of what texts are made of: source code, names, values, and facts ``(names, values)``, each a name with its value."""

    code: Tensor
    names: Tensor
    values: Tensor
    facts: Tensor

    @classmethod
    def of(cls, work: Path, split: str) -> Words:
        """With the code of one of the texts that :func:`prepare` writes, without its lookups."""
        tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
        lines = [line for text in texts(work, split) for line in text.splitlines(keepends=True) if not line.startswith(MARKER)]
        of_words = (FACTS, NAMES[:SYMBOLS], VALUES[:SYMBOLS])
        facts, names, values = (torch.tensor(tokenizer.convert_tokens_to_ids([f" {word}" for word in words])) for words in of_words)
        return cls(torch.tensor(tokenizer("".join(lines), verbose=False)["input_ids"]), names, values, facts.view(SYMBOLS, SYMBOLS))

    def batch(self, task: str, rows: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Texts of a task and labels ``(rows, length)``: the next token where it answers a question, else -100."""
        if task == "MQAR":
            ids, labels = recall(PAIRS, length + PAIRS, 2 * SYMBOLS, rows, generator)
            symbols, (names, values) = torch.cat([self.names, self.values]), ids[:, : 2 * PAIRS].view(-1, PAIRS, 2).unbind(-1)
            ids = torch.cat([self.facts[names, values - SYMBOLS], symbols[ids[:, 2 * PAIRS :]]], 1)
            return ids, torch.where(labels < 0, labels, symbols[labels.clamp(min=0)])[:, PAIRS:]
        made = [self.haystack(length, TASKS[task], generator) for _ in range(rows)]
        return torch.stack([ids for ids, _ in made]), torch.stack([labels for _, labels in made])

    def haystack(self, length: int, count: int, generator: torch.Generator, asked: int = 1) -> tuple[Tensor, Tensor]:
        """Code with ``count`` facts at random places, which are asked for at the end ``asked`` times, each question with its answer."""
        names = torch.randperm(SYMBOLS, generator=generator)[:count]
        values = torch.randint(SYMBOLS, (count,), generator=generator)
        before = length - 2 * asked * count
        first = int(torch.randint(len(self.code) - length + 1, (), generator=generator))
        ids, labels = self.code[first : first + length].clone(), torch.full((length,), -100)
        ids[torch.randperm(before, generator=generator)[:count]] = self.facts[names, values]
        order = torch.cat([torch.randperm(count, generator=generator) for _ in range(asked)])
        ids[before::2] = self.names[names[order]]
        ids[before + 1 :: 2] = labels[before::2] = self.values[values[order]]
        return ids, labels


def recall(pairs: int, length: int, vocab: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Multi-query associative recall (Arora et al. 2023, Zoology, section 3 and appendix E): key–value pairs, and later each key once.

        k₁ v₁ k₂ v₂ … k_P v_P   x x k₂ x x x k₇ x k₁ …

    Distances from the pairs follow a power law, ``p(gap) ∝ gap^-0.9``, so that most are near; the rest is random.

    vocab: tokens; the lower half are keys, the upper half values.
    Returns:
        Tokens and labels ``(size, length)``: the value at each question's key, else -100.
    """
    keys = torch.rand(size, vocab // 2, generator=generator).topk(pairs, -1).indices
    values = torch.randint(vocab // 2, vocab, (size, pairs), generator=generator)
    tokens = torch.randint(vocab, (size, length), generator=generator)
    tokens[:, : 2 * pairs] = torch.stack([keys, values], -1).flatten(1)
    law = torch.arange(1, (length - 2 * pairs) // 2 + 1, dtype=torch.float64) ** -0.9
    places = 2 * pairs + 2 * torch.multinomial(law.expand(size, -1), pairs, generator=generator)
    tokens.scatter_(1, places, keys)
    return tokens, torch.full_like(tokens, -100).scatter_(1, places, values)


def texts(work: Path, split: str) -> list[str]:
    """The documents of a file that :func:`prepare` has written."""
    lines = (work / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines[:DOCUMENTS]]


def document_ids(work: Path, split: str) -> list[Tensor]:
    """The tokens of its documents, with their lookups."""
    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    return [torch.tensor(ids) for ids in tokenizer(texts(work, split), verbose=False)["input_ids"]]


def shifted(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Labels at the tokens that they predict, as models of transformers take them."""
    ids, labels = batch
    return ids, torch.nn.functional.pad(labels[:, :-1], (1, 0), value=-100)


def mixture(words: Words, documents: Tensor, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs and labels ``(BATCH, length)`` for a model: half are documents, a quarter MQAR, an eighth each of the other tasks."""
    text = documents[torch.randint(len(documents) - length, (BATCH // 2, 1), generator=generator) + torch.arange(length)]
    shares = {"MQAR": BATCH // 4, "passkey": BATCH // 8, "needles": BATCH // 8}
    batches = [(text, text), *(shifted(words.batch(task, rows, length, generator)) for task, rows in shares.items())]
    return torch.cat([ids for ids, _ in batches]), torch.cat([labels for _, labels in batches])


def teacher(work: Path, steps: int, seed: int) -> Path:
    """The model that is converted. A quarter of its training is on questions that are asked :data:`ASKED` times."""
    target = work / "source"
    if not (target / "config.json").exists():
        words, documents = Words.of(work, "train"), torch.cat(document_ids(work, "train"))
        tokenizer, step = AutoTokenizer.from_pretrained(work / "tokenizer"), itertools.count()

        def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
            if next(step) < steps // 4:
                asked = [words.haystack(TRAINED, PAIRS, generator, ASKED) for _ in range(BATCH)]
                return shifted((torch.stack([ids for ids, _ in asked]), torch.stack([labels for _, labels in asked])))
            return mixture(words, documents, TRAINED, generator)

        torch.manual_seed(seed)
        model = small_llama(len(tokenizer), 4 * HEAD_DIM, 344, tie_word_embeddings=True, initializer_range=0.08)
        fit(model, batch, steps, 3e-3, seed, target)
        tokenizer.save_pretrained(target)
    return target


def write_inputs(work: Path, steps: int, seed: int) -> Path:
    """The text of the further training: documents that fill inputs exactly, with the end token that the training adds."""
    file = work / f"inputs-{steps}.jsonl"
    if not file.exists():
        words, documents = Words.of(work, "further"), torch.cat(document_ids(work, "further"))
        tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
        generator, found = torch.Generator().manual_seed(seed + 1), list[str]()
        while len(found) < steps * BATCH * 5 / 4:  # some are held out
            for ids in mixture(words, documents, TRAINED - 1, generator)[0].tolist():
                text = tokenizer.decode(ids)
                if tokenizer(text)["input_ids"] == ids:
                    found.append(json.dumps({"text": text}) + "\n")
        file.write_text("".join(found), encoding="utf-8")
    return file


def train(model: Path, target: Path, text: Path, steps: int, seed: int, start: bool) -> dict[str, Any]:
    """`longattn train linearise` for ``2 * steps`` steps, and its report."""
    if not (target / DISTILLATION_REPORT).exists():
        modules = AutoModelForCausalLM.from_pretrained(model).modules()
        learns = any(p.requires_grad for module in modules if isinstance(module, Mechanism) for p in module.parameters())
        settings = {
            "model": model, "text": text, "output": target, "max-length": TRAINED, "batch-size": BATCH, "seed": seed,
            "stage": "both" if learns else 2, "transfer-steps": steps, "finetune-steps": steps if learns else 2 * steps,
            "finetune-loss": "kl", "transfer-learning-rate": 1e-2, "finetune-learning-rate": 1e-3, "logging-steps": 5, "report-to": "none",
        }  # fmt: skip
        flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        with nullcontext() if start else patch("hf_longattn.mechanisms.delta.Delta.start_from", lambda *_: None):
            try:
                longattn(["train", "linearise", *flags, "--full", "--overwrite"])
            except SystemExit as end:
                if end.code:
                    raise
    found: dict[str, Any] = json.loads((target / DISTILLATION_REPORT).read_text(encoding="utf-8"))
    return found


@torch.inference_mode()
def measured(folder: Path, file: Path, words: Words, documents: Tensor, count: int, seed: int) -> dict[str, dict[str, list[Any]]]:
    """By measure and length, the losses of documents and whether answers are right; from ``file`` if it is there."""
    if not file.exists():
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        found: dict[str, dict[str, list[Any]]] = {"loss": {str(length): losses(model, documents, length) for length in LENGTHS}}
        for (task, questions), length in ((item, length) for item in TASKS.items() for length in LENGTHS):
            ids, labels = words.batch(task, max(1, count // max(2, questions)), length, torch.Generator().manual_seed(seed + length))
            right = [model(some).logits[at >= 0].argmax(-1) == at[at >= 0] for some, at in zip(ids.split(4), labels.split(4), strict=True)]
            found.setdefault(task, {})[str(length)] = torch.cat(right).tolist()
        file.write_text(json.dumps(found), encoding="utf-8")
        print(file.stem, {name: [round(fmean(values), 3) for values in cells.values()] for name, cells in found.items()}, flush=True)
    stored: dict[str, dict[str, list[Any]]] = json.loads(file.read_text(encoding="utf-8"))
    return stored


@torch.inference_mode()
def decoded(folders: dict[str, Path], ids: Tensor, steps: int) -> dict[str, dict[str, float]]:
    """The bytes of every model's state after ``ids (1, N)``, and milliseconds of processor time per further token; models take turns."""
    models = {name: AutoModelForCausalLM.from_pretrained(folder).eval() for name, folder in folders.items()}
    states, times = {name: DynamicCache(config=model.config) for name, model in models.items()}, {name: list[float]() for name in models}
    for name, model in models.items():
        model(ids, past_key_values=states[name], use_cache=True, logits_to_keep=1)
    for _ in range(steps):
        for name, model in models.items():
            begun = time.process_time()
            model(ids[:, :1], past_key_values=states[name], use_cache=True)
            times[name].append(1e3 * (time.process_time() - begun))
    return {name: {"bytes": bytes_of(model, ids.shape[1]), "milliseconds": median(times[name][2:])} for name, model in models.items()}


def bytes_of(model: Any, length: int) -> int:
    """The bytes of a state after ``length`` tokens, as `longattn plan` counts them: what later tokens can see."""
    mechanisms = [site.mechanism for site in attention_sites(model) if isinstance(site.mechanism, Mechanism)]
    return state_bytes(mechanisms, ModelShape.of(model.config, causal=True, matrix_parameters=0, element_bytes=4), length)


def summary(seeds: list[dict[str, dict[str, list[Any]]]], firsts: list[list[float]]) -> dict[str, dict[str, list[float]]]:
    """By measure and length: the mean of all seeds, how sure it is, and the mean of each seed.

    Of losses, the standard error of the difference from ``firsts``, over documents; of answers, the interval of 95 %.
    """
    cells: dict[str, dict[str, list[float]]] = {}
    first = [*itertools.chain(*firsts)]
    for measure, length in itertools.product(("loss", *TASKS), map(str, LENGTHS)):
        parts = [found[measure][length] for found in seeds]
        values = [*itertools.chain(*parts)]
        changes = [value - other for value, other in zip(values, first, strict=True)] if measure == "loss" else []
        error = [stdev(changes) / math.sqrt(len(changes))] if changes else [*interval(sum(values), len(values))]
        cells.setdefault(measure, {})[length] = [fmean(values), *error, *map(fmean, parts)]
    return cells


def starts(histories: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """For each stage the last loss of `delta` from a random start, and after how many tokens of this stage either start reaches it."""
    found: dict[str, dict[str, Any]] = {}
    for stage in ("stage1", "stage2"):
        logs = {name: [log for log in histories[name][stage] if "loss" in log] for name in (NO_START, DELTA)}
        found[stage] = {"loss": logs[NO_START][-1]["loss"]}
        for name, rows in logs.items():
            steps = (row["step"] for row in rows if row["loss"] <= found[stage]["loss"])
            found[stage][name] = next((step * BATCH * TRAINED for step in steps), None)
    return found


def page(record: dict[str, Any]) -> str:
    """The tables: state, speed and loss; recall; tokens until `delta` has the same loss."""
    settings, rows, lengths = record["settings"], record["rows"], [f"{length:,}" for length in LENGTHS]
    fastest = rows[TEACHER]["milliseconds"]

    def cells(row: dict[str, Any], measure: str) -> Iterator[str]:
        for stage in ("before", "after"):
            for length in map(str, LENGTHS):
                mean, error, *_ = row[stage][measure][length] if stage in row else (math.nan, math.nan)
                yield f"{mean:.2f} ± {error:.2f}" if stage in row else "–"

    def shares(row: dict[str, Any], task: str, length: int) -> str:
        return " → ".join(f"{100 * row[stage][task][str(length)][0]:.0f}" for stage in ("before", "after") if stage in row)

    header = ["nats per token", "bytes of state", "time per token", *lengths, *(f"{length}, trained" for length in lengths)]
    loss = [[name, f"{row['bytes']:,}", f"{row['milliseconds'] / fastest:.2f}×", *cells(row, "loss")] for name, row in rows.items()]
    recall = [[name, *(shares(row, task, length) for task in TASKS for length in LENGTHS)] for name, row in rows.items()]
    stages = [row[stage] for row in rows.values() for stage in ("before", "after") if stage in row]
    widest = max(100 * (cell[2] - cell[1]) / 2 for cells in stages for task in TASKS for cell in cells[task].values())

    def spread(values: list[float], format: str) -> str:
        """The least and the greatest of all seeds."""
        return "–".join(dict.fromkeys(f"{value:{format}}" for value in (min(values), max(values))))

    def reached(stage: str, name: str) -> str:
        return spread([cells[stage][name] or math.inf for cells in record["starts"]], "," if name != "loss" else ".3f")

    tokens = [[f"{stage[:5]} {stage[5:]}", *(reached(stage, name) for name in ("loss", NO_START, DELTA))] for stage in ("stage1", "stage2")]
    tables = [
        markdown_table(header, loss),
        markdown_table(["right answers, %", *(f"{task}, {length}" for task in TASKS for length in lengths)], recall),
        markdown_table(["`delta`: tokens until the loss of a stage is", "loss", "random start", "closed-form start"], tokens),
    ]
    more = (
        f"; {len(settings['seeds'])} seeds, taken as given, times with the first; {settings['documents']} held-out documents a seed, ± "
        f"standard error of the difference from {TEACHER} at {TRAINED} tokens; {settings['questions']} questions a seed (half as many "
        f"passkeys), intervals of 95 % within ± {widest:.0f}, chance {100 / SYMBOLS:.0f} %; before → after training of "
        f"{2 * settings['steps']} steps of {BATCH * TRAINED:,} tokens; pre-training of {settings['pretraining_steps']:,} steps"
    )
    return "\n\n".join([*(table.strip() for table in tables), footnote(record["machine"], more).strip()]) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = study_parser(__doc__, OUTPUT, "a few steps of everything, to see that it runs")
    parser.add_argument("--work", type=Path, required=True, help="folder of texts, models and measured cells, kept between runs")
    parser.add_argument("--pretraining-steps", type=int, default=900)
    parser.add_argument("--steps", type=int, default=25, help="steps of each of both stages (default: 25)")
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--questions", type=int, default=48, help="of each task and length, half as many passkeys")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="the training data, first weights and test data")
    options = parser.parse_args(arguments)
    if options.quick:
        options.pretraining_steps, options.steps, options.documents, options.questions = 3, 5, 2, 4
    seeds = [of_seed(options.work / f"seed{seed}", options, seed) for seed in options.seeds]
    firsts = [found[TEACHER]["before"]["loss"][str(TRAINED)] for found, _ in seeds]
    first_work = options.work / f"seed{options.seeds[0]}"
    speeds = decoded({name: folder_of(first_work, name) for name in ROWS}, held_out(first_work, 1), 32)
    record: dict[str, Any] = {
        "machine": machine(),
        "settings": {name: getattr(options, name) for name in ("pretraining_steps", "steps", "documents", "questions", "seeds")},
        "rows": {
            name: {
                "attention": ROWS[name],
                **speeds[name],
                **{stage: summary([found[name][stage] for found, _ in seeds], firsts) for stage in seeds[0][0][name]},
            }
            for name in ROWS
        },
        "starts": [starts(histories) for _, histories in seeds],
    }
    record = json.loads(in_rows(record))  # as it is stored
    finish_study(output_of(options, OUTPUT), record, page(record))
    return 0


def of_seed(work: Path, options: Any, seed: int) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """What one seed measured, by row and stage ("before", "after"), and the logs of the trainings."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "tokenizer" / "tokenizer.json").exists():
        prepare(work, seed)
        tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
        tokenizer.add_tokens([AddedToken(f" {fact}") for fact in FACTS])
        tokenizer.save_pretrained(work / "tokenizer")
    source, text = teacher(work, options.pretraining_steps, seed), write_inputs(work, 2 * options.steps, seed)
    words, documents = Words.of(work, "test"), held_out(work, options.documents)
    found, histories = dict[str, dict[str, Any]](), dict[str, Any]()
    for name, choice in ROWS.items():
        folder = folder_of(work, name)
        if not (folder / "config.json").exists():
            torch.manual_seed(seed)
            attention, positions = LongAttentionConfig(**read_choice(choice)), "rope:self-extend" if name == FAR else "rope:none"
            convert_checkpoint(source, folder, long_attention=attention, max_length=LENGTHS[-1], positions=positions, verify=False)
        stages = {"before": folder}
        if name not in UNTRAINED:
            stages["after"] = folder.with_name(f"{folder.name}-trained")
            histories[name] = train(folder, stages["after"], text, options.steps, seed, name != NO_START)["history"]
        found[name] = {
            stage: measured(at, work / f"{at.name}.json", words, documents, options.questions, seed) for stage, at in stages.items()
        }
    return found, histories


def folder_of(work: Path, name: str) -> Path:
    """The converted model of a row."""
    return work / name.replace(" ", "-").replace(",", "")


def held_out(work: Path, count: int) -> Tensor:
    """The first tokens of held-out documents, ``(count, LENGTHS[-1])``."""
    return torch.stack([ids[: LENGTHS[-1]] for ids in document_ids(work, "test") if len(ids) >= LENGTHS[-1]][:count])


if __name__ == "__main__":
    raise SystemExit(main())
