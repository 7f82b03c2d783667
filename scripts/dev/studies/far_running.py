"""Runs a study of far-apart evidence: small models are pre-trained, every system is fine-tuned in a process of its own.

A small model learns the task in pictures of ``--short-size`` pixels, or recordings of as many seconds. Every system starts from it and is
fine-tuned on the same ones, which become larger by stages (``--stages``), as many of each size for each system.

A long study can be run in parts: ``--only pretraining`` trains the small model, ``--only SYSTEM`` measures one system, and a run without
it takes what is there.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .far_task import Labelled, Shown, System, Task, task_folder

LOG = "log.json"
RESULTS = Path("scripts/dev/results")
WARMUP = 20
"""Steps in which the rate rises."""
EASY_SHARE, EASY_LOSS = 0.2, 0.5
"""Small inputs are easy ones until the loss is below this, and then this share of them."""
BEFORE, AFTER, CONTROL = "before", "after", "control"
PRETRAINING = "pretraining"
"""What ``--only`` calls the training of a small model."""
FULL = "full"
"""The system with full attention, to which others are compared."""

Logits = Callable[[nn.Module, Tensor], Tensor]


class Stage(NamedTuple):
    """A part of the fine-tuning: inputs of ``size`` pixels or seconds, how many, and how many in a batch."""

    size: int
    examples: int
    batch: int


def stage(text: str) -> Stage:
    """``SIZE:EXAMPLES:BATCH`` as a stage."""
    return Stage(*map(int, text.split(":")))


def batches(task: Task, shown: Shown, batch: int, seed: int, examples: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of ``batch`` inputs; ``examples`` in all, 0 = without end."""
    random = np.random.default_rng(seed)
    drawn = 0
    while not examples or drawn < examples:
        count = min(batch, examples - drawn) if examples else batch
        yield task.batch(shown, count, random)
        drawn += count


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, in per cent (Wilson 1927)."""
    z, share = 1.96, right / count
    centre, spread = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return tuple(100 * (centre + sign * spread) / (1 + z * z / count) for sign in (-1, 1))  # type: ignore[return-value]


def measured(model: nn.Module, logits: Logits, examples: Iterator[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Accuracy in per cent, the share of right answers for each input, and seconds of processor time for an input."""
    model.eval()
    shares: list[float] = []
    seconds = 0.0
    with torch.no_grad():
        for inputs, labels in examples:
            begun = time.process_time()
            answers = logits(model, inputs).argmax(-1)
            seconds += time.process_time() - begun
            answers, labels = answers.view(len(inputs), -1), labels.view(len(inputs), -1)
            scored = labels >= 0
            shares += [round(share, 4) for share in (((answers == labels) & scored).sum(1) / scored.sum(1)).tolist()]
    return {"accuracy": 100 * float(np.mean(shares)), "n": len(shares), "seconds": seconds / len(shares), "shares": shares}


def trained(
    model: nn.Module,
    logits: Logits,
    examples: Iterator[tuple[Tensor, Tensor]],
    rate: float,
    progress: Callable[[int], float],
    losses: list[float],
    labelled: Labelled = "class",
) -> list[float]:
    """Train until ``progress(step)``, the finished share of the training, is 1; the rate falls to zero by then.

    Args:
        examples: batches, drawn outside the measured time.
        progress: called with the number of finished steps.
        losses: to which the loss of each step is appended.
        labelled: the tokens that have labels.

    Returns:
        Seconds of processor time of each step, for the model alone.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    seconds: list[float] = []
    while (share := progress(len(seconds))) < 1:
        inputs, labels = next(examples)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (len(seconds) + 1) / WARMUP) * (1 - share)
        begun = time.process_time()
        loss = loss_of(logits(model, inputs), labels, labelled)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - begun)
        losses.append(loss.item())
    return seconds


def loss_of(logits: Tensor, labels: Tensor, labelled: Labelled) -> Tensor:
    """The mean cross entropy of labelled tokens; if both have labels, the class token's and the mean of the others are added."""
    if labelled == "both":
        return loss_of(logits[:, :1], labels[:, :1], "class") + loss_of(logits[:, 1:], labels[:, 1:], "tokens")
    total = nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum")
    return total / (labels >= 0).sum().clamp(min=1)


class PeakMemory:
    """The most memory that this process has held since it was made beyond what it held then, in MB; needs Linux."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self.before = self._peak()

    def __call__(self) -> float:
        return self._peak() - self.before

    def _peak(self) -> float:
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def small_folder(task: Task, args: argparse.Namespace, seed: int) -> Path:
    """The folder of the small model with this seed and of what its systems have measured."""
    return task_folder(task.name, args, seed, args.short_size)


def pretrained(task: Task, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train a small model on small inputs and save it with its log, which is returned; an earlier run's is taken."""
    folder = small_folder(task, args, seed)
    if (folder / LOG).exists():
        earlier: dict[str, Any] = json.loads((folder / LOG).read_text())
        return earlier
    torch.manual_seed(seed)
    model, random, losses = task.small_model(args, seed), np.random.default_rng(seed), [math.inf]
    started, drawn = time.process_time(), 0

    def progress() -> float:
        return (time.process_time() - started) / (60 * args.short_minutes)

    def examples() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal drawn
        easy = 1.0 if task.easy_first else 0.0
        while True:
            if easy == 1 and np.mean(losses[-20:]) < EASY_LOSS:
                easy = EASY_SHARE
                print(f"fewer easy ones from step {len(losses)} on", flush=True)
            if len(losses) % 100 == 0:
                print(f"step {len(losses)}: loss {np.mean(losses[-100:]):.3f}, {100 * progress():.0f} % of the time", flush=True)
            if task.easy_share:
                easy = task.easy_share * max(0.0, 1 - 2 * progress())
            halved = progress() < args.halved
            size, count = (args.short_size // 2, 2 * args.short_batch) if halved else (args.short_size, args.short_batch)
            drawn += count
            yield task.batch(Shown(size, easy=easy, hints=task.hinted), count, random)

    labelled: Labelled = "both" if task.hinted else task.labelled
    logits = functools.partial(task.small_logits, labelled=labelled)
    seconds = trained(model, logits, examples(), args.short_rate, lambda _: progress(), losses, labelled)
    logits = functools.partial(task.small_logits, labelled=task.labelled)
    held_out = measured(model, logits, batches(task, Shown(args.short_size, held_out=True), 64, 10_000 + seed, 2 * args.test_examples))
    log = {"steps": len(seconds), "examples": drawn, "seconds": sum(seconds), "held_out": held_out}
    model.save_pretrained(folder)
    (folder / LOG).write_text(json.dumps(log), encoding="utf-8")
    return log


def run_system(task: Task, args: argparse.Namespace, seed: int, system: System) -> dict[str, Any]:
    """Fine-tune a system on larger and larger inputs and measure it on the largest ones."""
    torch.manual_seed(seed)
    size = args.stages[-1].size
    model = system.load(small_folder(task, args, seed), size)
    batch = args.stages[-1].batch

    def logits(model: nn.Module, inputs: Tensor) -> Tensor:
        return system.read(model, inputs, task.labelled)

    def test(examples: int, control: bool = False) -> dict[str, Any]:
        shown = Shown(size, held_out=True, control=control)
        return measured(model, logits, batches(task, shown, batch, 20_000 + seed, examples))

    first, drawn = (next(batches(task, Shown(side), args.memory_batch, 40_000)) for side in (2 * args.short_size, size))
    memory = step_memory(model, logits, first, drawn, task.labelled)
    row: dict[str, Any] = {"MB": memory, BEFORE: test(args.other_examples)}
    if system.check is not None:
        row["check"] = system.check(small_folder(task, args, seed), model)
    steps = [math.ceil(part.examples / part.batch) for part in args.stages]

    def examples() -> Iterator[tuple[Tensor, Tensor]]:
        easy = EASY_SHARE if task.easy_first else 0.0
        for number, part in enumerate(args.stages):
            yield from batches(task, Shown(part.size, easy=easy), part.batch, 30_000 + 100 * number + seed, steps[number] * part.batch)

    losses: list[float] = []
    seconds = trained(model, logits, examples(), args.rate, lambda step: step / sum(steps), losses, task.labelled)
    ends = np.cumsum(steps)
    row["stages"] = [
        {
            **part._asdict(),
            "examples": count * part.batch,
            "seconds": sum(seconds[end - count : end]),
            "losses": [float(np.mean(piece)) for piece in np.array_split(losses[end - count : end], min(8, count))],
        }
        for part, end, count in zip(args.stages, ends, steps, strict=True)
    ]
    row[AFTER], row[CONTROL] = test(args.test_examples), test(args.other_examples, control=True)
    return row


def step_memory(model: nn.Module, logits: Logits, first: tuple[Tensor, Tensor], drawn: tuple[Tensor, Tensor], labelled: Labelled) -> float:
    """The memory in MB of a forward and a backward pass over ``drawn`` beyond what a new process holds after one over ``first``.

    Args:
        first: smaller inputs, so that what is loaded once is not counted.
    """

    def step(inputs: Tensor, labels: Tensor) -> None:
        loss_of(logits(model, inputs), labels, labelled).backward()
        model.zero_grad()

    model.train()
    step(*first)
    memory = PeakMemory()
    step(*drawn)
    return memory()


def run_apart(task: Task, args: argparse.Namespace, seed: int, system: str) -> dict[str, Any]:
    """What a system has measured in a process of its own; an earlier process's with the same settings is taken."""
    path = system_file(task, args, seed, system)
    if path.exists() and (row := json.loads(path.read_text()))["settings"] == measuring(args):
        return dict(row)
    subprocess.run([sys.executable, "-m", args.module, *sys.argv[1:], "--seeds", str(seed), "--only", system], check=True)
    return dict(json.loads(path.read_text()))


def system_file(task: Task, args: argparse.Namespace, seed: int, system: str) -> Path:
    """Where a process keeps what a system has measured."""
    return small_folder(task, args, seed) / f"{system}.json"


def measuring(args: argparse.Namespace) -> dict[str, Any]:
    """The settings on which a measured system depends, as JSON has them."""
    names = ("stages", "rate", "test_examples", "other_examples", "scaled", "memory_batch")
    return dict(json.loads(json.dumps({name: getattr(args, name) for name in names})))


def page(result: Mapping[str, Any], task: Task) -> str:
    """The stored result as a page of markdown."""
    settings, runs = result["settings"], result["runs"]
    size, small, items = settings["stages"][-1][0], settings["short_size"], f"{task.item}s"
    scores = ", ".join(f"{run['short']['held_out']['accuracy']:.1f} %" for run in runs)
    stages = ", then ".join(f"{count:,} of {task.of_size(side)}" for side, count, _ in settings["stages"])
    names_of = {name: row["name"] for run in runs for name, row in run["systems"].items()}
    baselines = [name for name in task.baselines if all(name in run["systems"] for run in runs)]
    baseline = max(baselines, key=lambda name: mean_accuracy(runs, name), default=None)
    lines = [
        f"{task.sentence(size)} {task.about_model(settings)} learned it in {items} of {task.of_size(small)} ({scores} there). Every system "
        f"starts from it and is fine-tuned on the same {items}: {stages} ({task.tokens(size)}).",
        "",
        f"{len(runs)} seed{'s' if len(runs) > 1 else ''}, each with a small model of its own. {settings['test_examples']} held-out "
        f"{items} for each seed after fine-tuning, {settings['other_examples']} before it and for the control; accuracy "
        f"in per cent ± its standard error over {items}; in brackets each seed's and the standard error over seeds. Points below full "
        f"attention{f' and above {names_of[baseline]}' if baseline else ''}: on the same {items}, with the errors of the paired "
        f"difference. Seconds of processor time for a {task.item} of {task.of_size(size)}, for the model alone, without {task.making} it, "
        f"and of the whole fine-tuning; MB: memory of a forward and a backward pass over {settings['memory_batch']} {items} beyond what "
        f"the process held after one over {items} of {task.of_size(2 * small)}. Each system ran in a process of its own.",
        "",
    ]
    heads = ["before", "after", "points below full attention", *([f"points above {task.baseline_word}"] if baseline else []), "control"]
    heads += [f"s a training {task.item}", f"s a {task.item} read", "s in all", "MB"]
    lines += [f"| system | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for name in names_of:
        rows = [run["systems"][name] for run in runs if name in run["systems"]]
        seeds = "" if len(rows) == len(runs) else f" ({len(rows)} seed{'s' if len(rows) > 1 else ''})"
        train, read = (np.mean([seconds_each(row)[number] for row in rows]) for number in (0, 1))
        cells = [
            score(rows, BEFORE), score(rows, AFTER, each=True), difference(runs, FULL, name),
            *([difference(runs, name, baseline)] if baseline else []), score(rows, CONTROL), f"{train:.3f}", f"{read:.3f}",
            f"{np.mean([sum(part['seconds'] for part in row['stages']) for row in rows]):.0f}", f"{max(row['MB'] for row in rows):.0f}",
        ]  # fmt: skip
        lines.append(f"| {rows[0]['name']}{seeds} | {' | '.join(cells)} |")
    checks = [f"{row['name']}, seed {run['seed']}: {row['check']}." for run in runs for row in run["systems"].values() if "check" in row]
    notes = [*result["notes"], *checks, f"Machine: {result['machine']}."]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), f"- Command: `{result['command']}`", ""])


def mean_accuracy(runs: Sequence[Mapping[str, Any]], name: str) -> float:
    """The mean over seeds of the accuracy of a system."""
    return float(np.mean([run["systems"][name][AFTER]["accuracy"] for run in runs]))


def seconds_each(row: Mapping[str, Any]) -> tuple[float, float]:
    """Seconds of processor time for each of the largest inputs that a system was trained on, and read."""
    last = row["stages"][-1]
    return last["seconds"] / last["examples"], row[AFTER]["seconds"]


def score(rows: Sequence[Mapping[str, Any]], part: str, each: bool = False) -> str:
    """The accuracy over the inputs of all seeds with its standard error, and the accuracy of each seed."""
    return with_error([row[part]["shares"] for row in rows], each)


def difference(runs: Sequence[Mapping[str, Any]], reference: str, name: str) -> str:
    """The points by which a system is below the reference, input by input, with the standard error, and those of each seed."""
    rows = [run["systems"] for run in runs if reference in run["systems"] and name in run["systems"]]
    if name == reference or not rows:
        return "–"
    return with_error([np.subtract(row[reference][AFTER]["shares"], row[name][AFTER]["shares"]) for row in rows], each=True)


def with_error(seeds: Sequence[Sequence[float] | np.ndarray], each: bool) -> str:
    """The mean in per cent of the shares of all inputs, its standard error, the mean of each seed, and the standard error over seeds."""
    shares = np.concatenate([np.asarray(seed) for seed in seeds])
    error = np.std(shares, ddof=1) / math.sqrt(len(shares))
    text = f"{100 * np.mean(shares):.1f} ± {100 * error:.1f}"
    if not each or len(seeds) < 2:
        return text
    means = [100 * float(np.mean(seed)) for seed in seeds]
    return f"{text} ({', '.join(f'{mean:.1f}' for mean in means)}: ± {np.std(means, ddof=1) / math.sqrt(len(means)):.1f})"


def arguments(tasks: Sequence[type[Task]], line: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; its defaults are for two or three hours of one core."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", choices=[task.name for task in tasks], default=tasks[0].name)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--systems", nargs="+", default=["scaled", "small", "tiles-mean", "global", "last-full", "pooled", FULL])
    parser.add_argument("--once", nargs="*", default=[], help="further systems, with the first seed alone")
    parser.add_argument("--stages", type=stage, nargs="+", default=[Stage(256, 2048, 32), Stage(512, 1024, 16), Stage(1024, 256, 8)],
                        help="SIZE:EXAMPLES:BATCH of each part of the fine-tuning")  # fmt: skip
    parser.add_argument("--short-size", type=int, default=128, help="side of the small pictures in pixels, or seconds of short recordings")
    parser.add_argument("--scaled", type=int, default=224, help="side in pixels to which large pictures are down-scaled")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--short-minutes", type=float, default=6.0, help="minutes of processor time to train on small inputs")
    parser.add_argument(
        "--halved", type=float, default=0.6,
        help="share of the pre-training with inputs of half the size, read with the position table resized, in batches of twice as many",
    )  # fmt: skip
    parser.add_argument("--start-from", help="a task whose small models, in the work folder, these start from, with a new head")
    parser.add_argument("--start-size", type=int, help="size of the inputs of those small models; default: --short-size")
    parser.add_argument("--short-batch", type=int, default=64, help="small inputs in a batch")
    parser.add_argument("--short-rate", type=float, default=2e-3, help="learning rate on small inputs")
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate of the fine-tuning")
    parser.add_argument("--test-examples", type=int, default=400, help="held-out inputs after fine-tuning")
    parser.add_argument("--other-examples", type=int, default=100, help="inputs before fine-tuning, and of the control")
    parser.add_argument("--memory-batch", type=int, default=2, help="inputs in the pass whose memory is measured")
    parser.add_argument("--notes", nargs="+", default=[], help="sentences about this run, for the page")
    parser.add_argument(
        "--work-dir", type=Path, default=Path("far_work"), help="folder of small models and measured systems, which later runs take"
    )
    parser.add_argument("--output", type=Path, help="where the table is stored; default: by the task, in scripts/dev/results")
    parser.add_argument("--only", help="do this alone and keep it in the work folder: the name of a system, or 'pretraining'")
    parser.set_defaults(**tasks[0].defaults)
    return parser.parse_args(line)


def run_study(tasks: Sequence[type[Task]]) -> None:
    """Run the study of one of ``tasks`` and store its table; each system runs in a process of its own."""
    torch.set_num_threads(1)
    args = arguments(tasks)
    spec = sys.modules["__main__"].__spec__
    if spec is None:
        sys.exit("A study starts itself again for each system; run it as a module: python -m scripts.dev.studies.far_digits")
    args.module = spec.name
    task = next(kind for kind in tasks if kind.name == args.task)()
    choices, seeds = task.systems(args), args.seeds
    if args.only == PRETRAINING:
        pretrained(task, args, seeds[0])
        return
    if args.only:
        row = {"name": choices[args.only].name, **run_system(task, args, seeds[0], choices[args.only]), "settings": measuring(args)}
        system_file(task, args, seeds[0], args.only).write_text(json.dumps(row), encoding="utf-8")
        return
    output = args.output or RESULTS / f"far_{task.name}.json"
    left_out = ("output", "work_dir", "notes", "only", "module")
    settings = {name: value for name, value in vars(args).items() if name not in left_out}
    result: dict[str, Any] = {
        "command": command(args, tasks),
        "settings": settings,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread, torch {torch.__version__}",
        "notes": args.notes,
        "runs": [],
    }
    for seed in args.seeds:
        run: dict[str, Any] = {"seed": seed, "short": pretrained(task, args, seed), "systems": {}}
        print(
            f"seed {seed}: {run['short']['held_out']['accuracy']:.1f} % in small {task.item}s, {run['short']['examples']:,} of them",
            flush=True,
        )
        result["runs"].append(run)
        for system in (*args.systems, *(args.once if seed == args.seeds[0] else ())):
            run["systems"][system] = row = run_apart(task, args, seed, system)
            print(summary(row), flush=True)
            output.write_text(stored(result), encoding="utf-8")
            output.with_suffix(".md").write_text(page(json.loads(output.read_text()), task), encoding="utf-8")


def stored(result: Mapping[str, Any]) -> str:
    """The result as JSON with each list of numbers on one line."""
    text = json.dumps(result, indent=1)
    return re.sub(r"\[[-+.\de,\s]+\]", lambda match: " ".join(match[0].split()), text)


def summary(row: Mapping[str, Any]) -> str:
    """A line about what a system has measured."""
    losses = " | ".join(" ".join(f"{loss:.2f}" for loss in part["losses"]) for part in row["stages"])
    scores = " → ".join(f"{row[part]['accuracy']:.1f}" for part in (BEFORE, AFTER))
    return (
        f"{row['name']}: {scores} % (control {row[CONTROL]['accuracy']:.1f} %), {seconds_each(row)[0]:.3f} s each, "
        f"{row['MB']:.0f} MB; losses {losses}"
    )


def command(args: argparse.Namespace, tasks: Sequence[type[Task]]) -> str:
    """The command of this run, without what is by default."""
    defaults = vars(arguments(tasks, []))
    words = []
    for name, value in vars(args).items():
        if name in defaults and value != defaults[name] and name not in ("notes", "work_dir", "output"):
            values = value if isinstance(value, list) else [value]
            shown = [":".join(map(str, item)) if isinstance(item, Stage) else str(item) for item in values]
            words.append(f"--{name.replace('_', '-')} {' '.join(shown)}")
    return " ".join(["python -m", args.module, *words])
