"""A real decoder with each mechanism in its full layers: loss by position, pass keys, seconds, and bytes of the cache.

    # an hour on two cores, less the trained rows; a stopped run goes on
    python -m scripts.dev.studies.decoder --text wiki.test.txt
    # rows with this in their name, also stored ones
    python -m scripts.dev.studies.decoder --text wiki.test.txt --only sinks
    # a few rows on texts of 1,024 tokens; stores nothing
    python -m scripts.dev.studies.decoder --quick

The decoder is Gemma 3 270M (`make real-decoder`) in bf16. Its 15 windows of 512 stay as they are; a row is the
attention of its three full layers, as `longattn convert` plans it, or the stock model with a cache of ours. Of the
latter, a long answer to a long prompt is measured, too. Equality comes first, in fp32: short texts have the
outputs of the stock model where the plan promises that, and decoding with the cache has those of a pass without one.
All rows read the same texts, and the losses are those of the same positions. Prompts and steps take turns with the
stock model's.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_longattn import StreamingCache, plan_conversion
from hf_longattn.memory.decode_cache import CACHE
from hf_longattn.names import BACKEND
from scripts.dev.benchmarks import report
from scripts.dev.benchmarks.memory import cache_bytes
from scripts.dev.benchmarks.run import in_turn
from scripts.dev.real import DECODER

OUTPUT = Path("scripts/dev/results/decoder")
STOCK, SDPA = "stock", "stock, sdpa"
STREAMING = "stock, StreamingCache(1024, sinks=4)"


class Row(NamedTuple):
    """Settings of a conversion, or flags of one that is trained in a folder of the row's name; what a user pays
    besides the loss. Or the options of a StreamingCache for the stock model."""

    settings: dict[str, Any] = {}
    cost: str = "nothing"
    trained: str = ""
    cache: dict[str, int] = {}


def window(width: int, cost: str = "keys before the window", **options: Any) -> Row:
    return Row({"mechanism": "window", "window": width, "num_sinks": 4, **options}, cost)


SCALED = {"sink_positions": "text", "max_length": 65536, "positions": "rope:yarn"}
CHOSEN = {"mechanism": "block_top_k", "num_blocks": 8, "max_length": 65536, "positions": "rope:none"}
ROWS = {
    STOCK: Row(),
    "window of 512, 4 sinks": window(512),
    "window of 1,024, 4 sinks": window(1024),
    STREAMING: Row(cost="keys before the window", cache={"window": 1024, "sinks": 4}),
    "window of 2,048, 4 sinks": window(2048),
    "1,024, 4 sinks at their positions in the text, YaRN": window(
        1024, "keys, and scaled rotations in every text", **SCALED
    ),
    "window of 1,024, no sinks": window(1024, num_sinks=0),
    "1,024, 4 sinks; decoding sees all keys (SWAA)": window(1024, "a cache of all keys", full_decoding=True),
    "block_top_k, 8 blocks of 128": Row(CHOSEN, "a cache of all keys"),
    "full, self-extend": Row(
        {"mechanism": "full", "max_length": 131072, "positions": "rope:self-extend"}, "a cache of all keys, and time"
    ),
    "hybrid": Row(
        {},
        "20 minutes of training",
        "--mechanism hybrid --option window=64 --option features=hedgehog:feature_dim=240",
    ),
    # both: states of about 1,028 keys
    "taylor": Row({}, "20 minutes of training", "--mechanism taylor --option feature_dim=22"),
}
QUICK_ROWS = (
    STOCK,
    "window of 1,024, 4 sinks",
    STREAMING,
    "block_top_k, 8 blocks of 128",
    "full, self-extend",
    "hybrid",
)
NAMES = ("Anna", "Peter", "Maria", "Thomas")
"""A text of pass keys has one for each name, at 1/5 to 4/5 of its length."""
PROMISED, CHECKED, CHECKED_STEPS, TOLERANCE = 400, 1280, 8, 1e-3
"""Tokens of the two comparisons, decoded tokens of the second, and the largest difference relative to the largest
logit."""
PIECE, POSITIONS = 8192, 256
"""Tokens of a prompt that are read at a time, and positions of each range whose loss is measured."""
TURNS = 24
"""Times that steps are measured with each cache."""


class Sizes(NamedTuple):
    """Ends of the ranges of positions in short texts and in a long one, the number of short texts, and texts of pass
    keys by length.

    ``steps`` tokens are decoded after each short text, and ``answer`` tokens after a prompt of ``prompt`` tokens,
    which is read in pieces of ``piece``.
    """

    ends: tuple[int, ...] = (256, 512, 1024, 2048, 4096, 8192)
    far_ends: tuple[int, ...] = (16384, 32768, 65536)
    texts: int = 5
    keys: tuple[tuple[int, int], ...] = ((2048, 2), (8192, 2), (32768, 1))
    steps: int = 64
    prompt: int = 32768
    answer: int = 3000
    piece: int = 2048


QUICK = Sizes((256, 512, 1024), (2048,), 1, ((512, 1),), 8, 2048, 16, 512)


def load(name: str, options: argparse.Namespace, dtype: torch.dtype = torch.bfloat16) -> Any:
    """The model of a row."""
    row = ROWS.get(name, Row())
    settings: dict[str, Any] = {"attn_implementation": "sdpa" if name == SDPA else BACKEND}
    if row.settings:
        settings = {"config": plan_conversion(options.model, **row.settings).config}
    folder = options.trained / name if row.trained else options.model
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **settings).eval()


def new_cache(name: str) -> Any:
    """The cache of a row for a new text; ``None`` if the model makes it."""
    options = ROWS.get(name, Row()).cache
    return StreamingCache(**options) if options else None


def read(model: Any, ids: Tensor, cache: Any = None, piece: int = PIECE) -> Iterator[tuple[Tensor, Any]]:
    """Hidden states ``(piece, width)`` and the cache after every piece of a text ``(1, n)``. cache: an empty one."""
    for part in ids.split(piece, 1):
        output = model.model(part, use_cache=True, **{CACHE: cache})
        cache = output[CACHE]
        yield output.last_hidden_state[0], cache


def by_position(model: Any, ids: Tensor, ends: Sequence[int], empty: Any) -> tuple[list[float], Any]:
    """Mean loss of each range of positions, and the cache; ``ids (1, n)`` has a token after the last range."""
    sums, at = [list[float]() for _ in ends], 0
    for states, cache in read(model, ids[:, : ends[-1]], empty):  # noqa: B007
        for values, start, end in zip(sums, (0, *ends), ends, strict=False):
            places = torch.linspace(start, end - 1, min(POSITIONS, end - start)).long()
            for some in places[(places >= at) & (places < at + len(states))].split(128):  # logits are many
                values += cross_entropy(
                    model.lm_head(states[some - at]).float(), ids[0, some + 1], reduction="none"
                ).tolist()
        at += len(states)
    return [statistics.mean(values) for values in sums], cache


def decoded(model: Any, ids: Tensor, cache: Any) -> Tensor:
    """Logits ``(steps, vocabulary)`` of tokens ``(1, steps)`` that are decoded one by one."""
    return torch.cat([model(ids[:, at : at + 1], **{CACHE: cache}).logits[0] for at in range(ids.shape[1])])


def find_keys(
    model: Any, tokenizer: Any, filler: Tensor, length: int, seed: int, empty: Any
) -> tuple[list[bool], int]:
    """Whether each pass key of a text of about ``length`` tokens is decoded exactly, by its place in the text; bytes
    of the cache."""
    keys = {name: str(random.Random(f"{seed}{name}").randrange(10000, 100000)) for name in NAMES}

    def encode(text: str) -> Tensor:
        return tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"][0]

    *parts, last = filler[:length].chunk(len(NAMES) + 1)
    text = [torch.tensor([tokenizer.bos_token_id])]
    for part, (name, key) in zip(parts, keys.items(), strict=True):
        text += [part, encode(f" The pass key of {name} is {key}.\n")]
    *_, (_, prompt) = read(model, torch.cat([*text, last])[None], empty)
    found = []
    for name, key in keys.items():
        cache, ids, answer = copy.deepcopy(prompt), encode(f" The pass key of {name} is")[None], list[int]()
        while len(answer) <= len(key):  # a space comes before the digits
            # the question, too, since SWAA's prompt ends with its window
            ids = decoded(model, ids, cache)[-1:, None].argmax(-1)
            answer.append(int(ids))
        found.append(tokenizer.decode(answer).strip().startswith(key))
    return found, cache_bytes(cache)  # after steps: what a prompt leaves behind may be views of larger tensors


def check(name: str, options: argparse.Namespace, ids: Tensor) -> dict[str, float]:
    """Differences, in fp32, relative to the largest logit: from the stock model at a short length, and of decoding
    from a pass."""
    row, model, pairs = ROWS[name], load(name, options, torch.float32), {}
    last = {"logits_to_keep": CHECKED_STEPS, "use_cache": False}
    if row.settings.get("positions") != "rope:yarn" and not row.trained:
        pairs["stock"] = [
            model(ids[:, :PROMISED], **{CACHE: new_cache(name)}, **last).logits[0],
            load(SDPA, options, torch.float32)(ids[:, :PROMISED], **last).logits[0],
        ]
    if not row.settings.get("full_decoding"):  # whose steps see more
        *_, (_, cache) = read(model, ids[:, :-CHECKED_STEPS], new_cache(name), 512)
        passed = model(ids, **{CACHE: new_cache(name)}, **last).logits[0]
        pairs["a pass"] = [decoded(model, ids[:, -CHECKED_STEPS:], cache), passed]
    differences = {what: float((x - y).abs().max() / y.abs().max()) for what, (x, y) in pairs.items()}
    if wrong := [f"{what} by {value:.1e}" for what, value in differences.items() if not value <= TOLERANCE]:
        raise SystemExit(
            f"error: {name}: outputs differ from {', '.join(wrong)} of the largest logit, so the row is not measured"
        )
    return differences


def time_pair(name: str, model: Any, base: Any, ids: Tensor, sizes: Sizes) -> dict[str, list[list[float]]]:
    """Seconds of a prompt and of a step after it: [base, row] of every turn."""
    pair, caches = {"base": base, "row": model}, dict[str, Any]()

    def prompt(which: str) -> None:
        *_, (_, caches[which]) = read(pair[which], ids, new_cache(name) if which == "row" else None)

    def steps(which: str) -> None:
        decoded(pair[which], ids[:, : sizes.steps], caches[which])

    seconds = {}
    for what, run, count in (("prompt", prompt, 1), ("step", steps, sizes.steps)):
        turns = zip(*in_turn({x: partial(run, x) for x in pair}, 1).values(), strict=False)
        seconds[what] = [[ms / 1e3 / count for ms in turn] for turn in turns]
    return seconds


def stream(model: Any, ids: Tensor, sizes: Sizes, options: dict[str, int]) -> dict[str, Any]:
    """A long answer to a long prompt, both of ``ids (1, n)``: seconds, the loss of the answer, bytes of the cache, and
    seconds of the processor for a step, in turn with the model's own cache of as many keys."""
    cache = StreamingCache(**options)
    started = time.perf_counter()
    for _ in read(model, ids[:, : sizes.prompt], cache, sizes.piece):
        pass
    seconds = time.perf_counter() - started
    losses, held, started = list[float](), list[int](), time.perf_counter()
    for at in range(sizes.prompt, sizes.prompt + sizes.answer):
        logits = decoded(model, ids[:, at : at + 1], cache)
        losses.append(float(cross_entropy(logits.float(), ids[0, at + 1 : at + 2])))
        held.append(cache_bytes(cache))
    answer_seconds = time.perf_counter() - started
    *_, (_, stock) = read(model, ids[:, : sum(options.values())])
    stocks = [copy.deepcopy(stock) for _ in range(TURNS)]
    steps = ids[:, : sizes.steps // 4]
    passes = {
        "base": lambda: decoded(model, steps, stocks.pop()),
        "row": lambda: decoded(model, steps, cache),
    }
    turns = in_turn(passes, TURNS, clock=time.process_time)
    return {
        "prompt": sizes.prompt,
        "prompt_seconds": seconds,
        "answer": sizes.answer,
        "answer_seconds": answer_seconds,
        "answer_loss": statistics.mean(losses),
        "largest_bytes": max(held),
        "step": [[ms / 1e3 / steps.shape[1] for ms in turn] for turn in zip(*turns.values(), strict=True)],
    }


@torch.inference_mode()
def measure(name: str, options: argparse.Namespace, sizes: Sizes) -> dict[str, Any]:
    """The stored row."""
    tokenizer, longest = AutoTokenizer.from_pretrained(options.model), sizes.ends[-1]
    reference = " ".join(topics[topic] for topic in sorted(topics))  # Python's language reference, one long text
    texts = reference if options.text is None else options.text.read_text(encoding="utf-8"), reference
    tokens = [
        tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False)["input_ids"][0] for text in texts
    ]

    def text(stream: int, start: int, length: int) -> Tensor:
        return torch.cat([torch.tensor([tokenizer.bos_token_id]), tokens[stream][start : start + length]])[None]

    row: dict[str, Any] = {"settings": ROWS[name].settings, "cost": ROWS[name].cost}
    row |= {
        "differences": check(name, options, text(0, 0, CHECKED)),
        "losses": [],
        "decoded": [],
        "keys": {},
        "bytes": {},
    }
    model, stride = load(name, options), longest + sizes.steps
    for number in range(sizes.texts):
        ids = text(0, number * stride, stride)
        means, cache = by_position(model, ids, sizes.ends, new_cache(name))
        row["losses"].append(means)
        row["decoded"].append(
            float(cross_entropy(decoded(model, ids[:, longest:-1], cache).float(), ids[0, longest + 1 :]))
        )
    row["far"], _ = by_position(model, text(1, 0, sizes.far_ends[-1]), sizes.far_ends, new_cache(name))
    for length, count in sizes.keys:
        found = [
            find_keys(model, tokenizer, tokens[1][number * 9973 :], length, number, new_cache(name))
            for number in range(count)
        ]
        row["keys"][str(length)], row["bytes"][str(length)] = [keys for keys, _ in found], found[-1][1]
    if ROWS[name].cache:
        row["stream"] = stream(model, text(1, 0, sizes.prompt + sizes.answer), sizes, ROWS[name].cache)
    row |= time_pair(name, model, load(SDPA if name == STOCK else STOCK, options), text(0, 0, longest - 1), sizes)
    return {**row, "machine": report.machine()}


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the 95 % bootstrap interval over texts."""
    values = torch.tensor(differences)
    means = values[torch.randint(len(values), (10000, len(values)), generator=torch.Generator().manual_seed(0))].mean(
        1
    )
    return float(values.mean()), float(means.quantile(0.025)), float(means.quantile(0.975))


def signed(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f}"  # no -0.000


def loss_cells(rows: dict[str, Any], name: str) -> list[str]:
    """Nats of the stock model, or differences from it: of each range with its interval, of decoded tokens, and of each
    far range."""
    row, stock = rows[name], rows[STOCK]
    if name == STOCK:
        return [f"{statistics.mean(x):.3f}" for x in (*zip(*row["losses"], strict=True), row["decoded"])] + [
            f"{x:.3f}" for x in row["far"]
        ]
    pairs = zip(
        (*zip(*row["losses"], strict=True), row["decoded"]),
        (*zip(*stock["losses"], strict=True), stock["decoded"]),
        strict=True,
    )
    cells = [
        "{} [{}, {}]".format(*map(signed, interval([x - y for x, y in zip(*pair, strict=True)]))) for pair in pairs
    ]
    return cells + [signed(x - y) for x, y in zip(row["far"], stock["far"], strict=True)]


def use_cells(row: dict[str, Any]) -> list[str]:
    """Right pass keys; seconds of a prompt and tokens a second, each with the ratio to its base; MiB of the cache; the
    cost."""
    keys = [f"{sum(map(sum, texts))} of {sum(map(len, texts))}" for texts in row["keys"].values()]
    prompt, step = (statistics.median(ours for _, ours in row[what]) for what in ("prompt", "step"))
    faster, quicker = (statistics.median(base / ours for base, ours in row[what]) for what in ("prompt", "step"))
    sizes = [f"{size / 2**20:.0f}" for size in row["bytes"].values()]
    return [*keys, f"{prompt:.1f} ({faster:.2f} ×)", f"{1 / step:.1f} ({quicker:.2f} ×)", *sizes, row["cost"]]


def loss_table(record: dict[str, Any]) -> str:
    """Losses of all rows."""
    ends, far = ([f"≤ {end:,}" for end in record[name]] for name in ("ends", "far_ends"))
    header = ["full layers", *ends, f"decoded after {record['ends'][-1]:,}", *far]
    return report.markdown_table(header, [[name, *loss_cells(record["rows"], name)] for name in record["rows"]])


def use_table(record: dict[str, Any]) -> str:
    """Pass keys, time, memory and cost of all rows."""
    lengths = [f"{int(length):,}" for length in record["rows"][STOCK]["keys"]]
    header = ["full layers", *(f"keys, {n}" for n in lengths), f"prompt of {record['ends'][-1]:,}, s", "tokens/s"]
    header += [*(f"cache, {n}, MiB" for n in lengths), "costs"]
    rows = [[name, *use_cells(row)] for name, row in record["rows"].items()]
    machines: dict[str, list[str]] = {}
    for name, row in record["rows"].items():
        machines.setdefault(report.where(row["machine"]), []).append(name)
    (first, _), *others = machines.items()
    where = "; ".join([first, *(f"{', '.join(names)}: {machine}" for machine, names in others)])
    return f"{report.markdown_table(header, rows)}\n\n*{where}*"


def stream_lines(record: dict[str, Any]) -> str:
    """A long answer to a long prompt, in three sentences."""
    row, stock = record["rows"][STREAMING], record["rows"][STOCK]
    measured = row["stream"]
    ratio = statistics.median(ours / base for base, ours in measured["step"])
    step = measured["answer_seconds"] / measured["answer"]
    losses = [ours[-1] - base[-1] for ours, base in zip(row["losses"], stock["losses"], strict=True)]
    largest, own = measured["largest_bytes"] / 2**20, stock["bytes"][str(measured["prompt"])] / 2**20
    return (
        f"Gemma 3 270M in bf16 reads a prompt of {measured['prompt']:,} tokens in {measured['prompt_seconds']:.0f} s "
        f"and then {measured['answer']:,} further ones, each in {step * 1e3:.0f} ms, in a cache of at most "
        f"{largest:.1f} MiB. Its own cache takes {own:.0f} MiB after the prompt. A step takes {ratio:.2f} times the "
        f"processor time of a step with as many keys in its own cache. Tokens {record['ends'][-2] + 1:,} to "
        f"{record['ends'][-1]:,} of a text cost {statistics.mean(losses):.3f} nats more than in full attention.\n\n"
        f"*{report.where(row['machine'])}*"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = report.study_parser(__doc__, OUTPUT, "a few rows on texts of 1,024 tokens")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="rows with this in their name, also those that are stored"
    )
    parser.add_argument("--model", type=Path, default=DECODER, help="folder of the decoder (default: %(default)s)")
    parser.add_argument("--text", type=Path, help="file of text for the losses (default: Python's language reference)")
    parser.add_argument(
        "--trained", type=Path, default=DECODER.parent, help="folder of the trained models (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    output, sizes = report.output_of(options, OUTPUT), QUICK if options.quick else Sizes()
    stored = report.stored_study(output) if output else {}
    rows = dict(stored["rows"]) if stored.get("ends") == [*sizes.ends] else {}
    record = {"machine": report.machine(), "ends": sizes.ends, "far_ends": sizes.far_ends, "rows": rows}
    for name, row in ROWS.items():
        if (
            options.only not in name
            or (name in rows and not options.only)
            or (options.quick and name not in QUICK_ROWS)
        ):
            continue
        if row.trained and not (folder := options.trained / name).exists():
            convert = f"longattn convert {options.model} {folder}-start {row.trained} --no-verify"
            train = f"longattn train linearise --model {folder}-start --data TEXTS --max-minutes 20 --output {folder}"
            print(f"{name} is left out; type first: {convert}; {train}", file=sys.stderr)
            continue
        rows[name] = measure(name, options, sizes)
        record["rows"] = rows = {name: rows[name] for name in ROWS if name in rows}
        print(f"{name}: {', '.join(loss_cells(rows, name) + use_cells(rows[name]))}", file=sys.stderr, flush=True)
        if output:
            report.store_study(output, record)
    print(f"{loss_table(record)}\n\n{use_table(record)}")


if __name__ == "__main__":
    main()
