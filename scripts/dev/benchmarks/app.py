"""The benchmark's command line: `python -m scripts.dev.benchmarks`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_longattn.errors import LongAttentionError, OptionError, visible

if TYPE_CHECKING:
    from .report import BenchmarkResult

app = typer.Typer(
    help="Verify equality with the float64 definition, then time our attention and others in one run; JSON and SVG "
    "are stored.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

LONGEST, MOST = 2**24, 2**16
"""Maximum of lengths in tokens, and of all other counts."""

Mechanism = Annotated[str, typer.Option(help="The mechanism to measure; `longattn mechanisms` lists them.")]
Options = Annotated[
    list[str],
    typer.Option("--option", help="An option of the mechanism as name=value, for example window=512. Repeatable."),
]
Lengths = Annotated[str, typer.Option(help="Tokens, separated by commas.")]
Against = Annotated[str, typer.Option(help="Implementations to compare with, separated by commas; '' for none.")]
Dtype = Annotated[str, typer.Option(help="fp32, bf16 or fp16.")]
Heads = Annotated[int, typer.Option(min=1, max=MOST, help="Attention heads.")]
HeadDim = Annotated[int, typer.Option(min=1, max=MOST, help="Width of a head.")]
Globals = Annotated[int, typer.Option("--globals", min=0, max=MOST, help="Number of leading tokens that are global.")]
Repeats = Annotated[int, typer.Option(min=1, max=MOST, help="Timed rounds; the median is reported.")]
Threads = Annotated[
    int | None, typer.Option(min=1, max=4096, help="Threads per operation; default: PyTorch's choice.")
]
OutputDir = Annotated[Path, typer.Option(help="Folder for the JSON and the SVG.")]


def parse_lengths(text: str) -> list[int]:
    """``"1024,4096"`` or ``"1K,4K"`` -> ``[1024, 4096]``.

    Raises:
        OptionError: when an entry is not a whole number from 1 to :data:`LONGEST`, or there is none.
    """
    parts = [part.strip().lower() for part in text.split(",") if part.strip()]
    try:
        lengths = [int(part.removesuffix("k")) * (1024 if part.endswith("k") else 1) for part in parts]
    except ValueError:
        lengths = []
    if not lengths or not all(1 <= length <= LONGEST for length in lengths):
        example = "for example --lengths 1024,4096"
        raise OptionError(
            f"A benchmark needs lengths from 1 to {LONGEST} tokens, separated by commas, not {text[:80]!r}; {example}."
        )
    return lengths


def say(text: str, err: bool = False) -> None:
    """Print a line with paths, whose bytes need not be UTF-8."""
    typer.echo(visible(text), err=err)


def finish(result: BenchmarkResult, folder: Path) -> None:
    """Store the result; exit with 1 if a check failed."""
    from .report import store_study

    path = store_study(folder / f"{result.name}.json", result.to_dict())
    say(f"stored {path}")
    if not result.equal:
        wrong = next(check for check in result.checks if not check.passed)
        difference = f"{wrong.what}: {wrong.error:.1e}"
        typer.echo(
            f"{wrong.implementation} differs from the definition at {wrong.length} tokens ({difference}), so nothing "
            "was timed.",
            err=True,
        )
        raise typer.Exit(1)


def measure(
    kind: str,
    option: list[str],
    lengths: str,
    against: str,
    repeats: int,
    threads: int | None,
    folder: Path,
    processor_time: bool = False,
    **fields: Any,
) -> None:
    """Run, print and store; a refusal is one sentence and exit code 1."""
    from hf_longattn.mechanisms.common.options import read_pairs
    from hf_longattn.mechanisms.common.registry import check_options

    from .case import Case
    from .run import run_benchmark

    with measuring(folder, threads):
        given = read_pairs(option)
        checked = check_options(fields["mechanism"], given)
        case = Case(options={name: getattr(checked, name) for name in given}, **fields)
        names = [name.strip() for name in against.split(",") if name.strip()]
        settings: dict[str, Any] = {"repeats": repeats, "processor_time": processor_time, "log": typer.echo}
        finish(run_benchmark(kind, case, parse_lengths(lengths), names, **settings), folder)


@contextmanager
def measuring(folder: Path, threads: int | None) -> Iterator[None]:
    """With this many threads; what is refused, does not fit into memory or cannot be written into ``folder`` is one
    sentence and exit code 1."""
    import torch

    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    except LongAttentionError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "allocate" not in str(error):
            raise
        typer.echo("There is not enough memory for these sizes; give smaller ones, or fewer --lengths.", err=True)
        raise typer.Exit(1) from error
    except OSError as error:
        say(f"{error.filename or folder}: {error.strerror}; choose another folder with --output-dir.", err=True)
        raise typer.Exit(1) from error


@app.command()
def attention(
    mechanism: Mechanism = "window",
    option: Options = [],  # noqa: B006 - typer reads the default
    lengths: Lengths = "1024,4096,8192",
    against: Against = "sdpa,flex",
    backward: Annotated[bool, typer.Option("--backward", help="Time the forward and the backward pass.")] = False,
    causal: Annotated[bool, typer.Option("--causal", help="The causal form.")] = False,
    num_globals: Globals = 0,
    dtype: Dtype = "fp32",
    heads: Heads = 12,
    head_dim: HeadDim = 64,
    repeats: Repeats = 5,
    threads: Threads = None,
    output_dir: OutputDir = Path("scripts/dev/results"),
) -> None:
    """Attention alone, on equal q, k, v: ours, PyTorch's SDPA over all keys, compiled flex_attention."""
    fields: dict[str, Any] = {
        "mechanism": mechanism,
        "backward": backward,
        "causal": causal,
        "num_globals": num_globals,
    }
    fields |= {"dtype": dtype, "heads": heads, "head_dim": head_dim}
    measure("attention", option, lengths, against, repeats, threads, output_dir, **fields)


@app.command()
def model(
    mechanism: Mechanism = "longformer",
    option: Options = [],  # noqa: B006 - typer reads the default
    lengths: Lengths = "512,1024,4096",
    against: Against = "sdpa,hf-longformer",
    backward: Annotated[bool, typer.Option("--backward", help="Forward and backward through all parameters.")] = False,
    layers: Annotated[int, typer.Option(min=1, max=1000, help="Layers of the encoder; 12 is base size.")] = 12,
    base: Annotated[str, typer.Option(help="The family: bert, or deberta-v2 in the shape of v3.")] = "bert",
    dtype: Dtype = "fp32",
    repeats: Repeats = 5,
    processor_time: Annotated[
        bool, typer.Option("--processor-time", help="Where others use the machine; with --threads 1.")
    ] = False,
    threads: Threads = None,
    output_dir: OutputDir = Path("scripts/dev/results"),
) -> None:
    """A whole encoder of base size with random weights: LongBert against BERT with SDPA, transformers' Longformer."""
    fields = {"mechanism": mechanism, "layers": layers, "dtype": dtype, "backward": backward, "base": base}
    measure(
        "train" if backward else "model",
        option,
        lengths,
        against,
        repeats,
        threads,
        output_dir,
        processor_time,
        **fields,
    )


@app.command()
def memory(
    mechanism: Annotated[
        list[str], typer.Option(help="Mechanism with its options, such as window:window=512. Repeatable.")
    ],
    lengths: Lengths = "4K,16K,64K",
    base: Annotated[
        str | None, typer.Option(help="Whole encoders of this family and base size, and the stock one; forward only.")
    ] = None,
    causal: Annotated[bool, typer.Option("--causal", help="The causal form.")] = False,
    heads: Heads = 4,
    head_dim: HeadDim = 64,
    threads: Threads = None,
    output_dir: OutputDir = Path("scripts/dev/results"),
) -> None:
    """Peak memory of a forward and backward pass over doublings of the length, each in a fresh process, and how it
    grows."""
    from .case import Case
    from .memory import footprint_table, run_footprint
    from .report import store_study

    with measuring(output_dir, threads):
        case = Case(heads=heads, head_dim=head_dim, causal=causal, backward=base is None, base=base or "bert")
        kind = "attention" if base is None else "model"
        record = run_footprint(mechanism, parse_lengths(lengths), case, kind=kind, log=typer.echo)
        of = f"-{case.base}" if kind == "model" else "-causal" * causal
        say(f"stored {store_study(output_dir / f'memory{of}.json', record)}")
        typer.echo(footprint_table(record))
