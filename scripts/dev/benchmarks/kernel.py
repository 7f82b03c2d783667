"""The kernel of the Hub beside the import of the package, and continuous batching on a CPU beside sdpa.

    python -m scripts.dev.benchmarks.kernel  # ten minutes, after `make test-kernel`
    python -m scripts.dev.benchmarks.kernel --quick  # 512 tokens and four prompts; stores nothing

It runs with the versions of transformers and kernels that `make test-kernel` puts into `.kernel`. Models have the
shapes of ModernBERT-base and Gemma 3 270M, with fewer layers and random weights. The outputs are compared before
anything is timed.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    ModernBertConfig,
    ModernBertModel,
)

from scripts.build_kernel import NAMES, write_kernel
from scripts.dev import RESULTS, ROOT
from scripts.dev.benchmarks import report
from scripts.dev.benchmarks.memory import growth

OUTPUT, PACKAGES = RESULTS / "kernel", ROOT / ".kernel"
KERNEL, IMPORT = f"me/{NAMES[0]}", "longattn"
LENGTHS, QUICK_LENGTHS = (512, 2048, 8192), (512,)
PROMPTS, QUICK_PROMPTS, SHORTEST, LONGEST, NEW = 32, 4, 64, 4096, 16
ENCODER_LAYERS, DECODER_LAYERS = 6, 6
ROUNDS, TOLERANCE = 7, 1e-5


def encoder(folder: Path, implementation: str) -> Any:
    return AutoModel.from_pretrained(folder, attn_implementation=implementation, allow_all_kernels=True).eval()


def ids_of(length: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"input_ids": torch.randint(3, 50000, (1, length))}


def compared(folder: Path, length: int) -> dict[str, Any]:
    """Seconds of both in turn, the median of the ratios, and the difference. In a process of its own.

    Raises:
        ValueError: the outputs differ.
    """
    import hf_longattn  # noqa: F401  # registers the name

    models, inputs = {name: encoder(folder, name) for name in (KERNEL, IMPORT)}, ids_of(length)
    with torch.inference_mode():
        outs = [model(**inputs).last_hidden_state for model in models.values()]
        difference = float((outs[0] - outs[1]).abs().max() / outs[1].abs().max())
        if not difference <= TOLERANCE:
            raise ValueError(f"The outputs differ by {difference} of the largest.")
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(ROUNDS):
            for name, model in models.items():
                started = time.perf_counter()
                model(**inputs)
                seconds[name].append(time.perf_counter() - started)
    ratio = statistics.median(a / b for a, b in zip(seconds[KERNEL], seconds[IMPORT], strict=True))
    return {"seconds": {name: min(times) for name, times in seconds.items()}, "ratio": ratio, "difference": difference}


def grown(folder: Path, implementation: str, length: int) -> float:
    """MiB of a pass beyond the weights. In a process of its own."""
    if implementation == IMPORT:
        import hf_longattn  # noqa: F401  # registers the name
    model, inputs = encoder(folder, implementation), ids_of(length)
    with torch.inference_mode():
        model(**ids_of(64))
        return growth(lambda: model(**inputs))


def batched(folder: Path, implementation: str, lengths: Sequence[int]) -> dict[str, Any]:
    """Seconds, MiB beyond the weights, and tokens of continuous batching. In a process of its own."""
    from transformers import ContinuousBatchingConfig

    settings: dict[str, Any] = {"attn_implementation": implementation, "allow_all_kernels": True}
    model = AutoModelForCausalLM.from_pretrained(folder, **settings).eval()
    torch.manual_seed(0)
    prompts = [torch.randint(3, 50000, (length,)).tolist() for length in lengths]
    blocks = sum(-(-(length + NEW) // 32) for length in lengths)
    batching = ContinuousBatchingConfig(num_blocks=blocks, page_size=32, max_batch_tokens=2048)
    generation = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
    tokens: list[list[int]] = []

    def run() -> None:
        results = model.generate_batch(
            prompts, generation_config=generation, continuous_batching_config=batching, progress_bar=False
        )
        tokens.extend(result.generated_tokens for result in results.values())

    started = time.perf_counter()
    extra = growth(run)
    return {"seconds": time.perf_counter() - started, "mebibytes": extra, "tokens": tokens}


def apart(run: Any, *arguments: Any) -> Any:
    """The result of a function in a new process."""
    with (
        mock.patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_=str(2**16)),
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process,
    ):
        return process.submit(run, *arguments).result()


def table(record: dict[str, Any]) -> str:
    """The tables of the page."""
    rows = []
    for line in record["lengths"]:
        seconds, memory = line["seconds"], line["mebibytes"]
        rows.append(
            [
                f"{line['tokens']:,}",
                f"{seconds[IMPORT]:.2f}",
                f"{seconds[KERNEL]:.2f}",
                f"{line['ratio']:.2f}",
                f"{memory[IMPORT]:,.0f}",
                f"{memory[KERNEL]:,.0f}",
            ]
        )
    header = ["tokens", "import, s", "kernel, s", "kernel / import", "import, MiB", "kernel, MiB"]
    batch_rows = [
        [name, f"{line['seconds']:.0f}", f"{line['mebibytes']:,.0f}"] for name, line in record["batching"].items()
    ]
    prompts = record["prompts"]
    return (
        f"{report.markdown_table(header, rows)}\n\nContinuous batching of {len(prompts)} prompts of {min(prompts):,} "
        f"to {max(prompts):,} tokens, with {NEW} new tokens for each. The memory includes the cache, and the "
        "generated tokens are equal:\n\n"
        f"{report.markdown_table(['attention', 's', 'MiB'], batch_rows)}\n\n"
        f"*{report.where(record['machine'])}, commit {record['commit']}*\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = report.study_parser(__doc__, OUTPUT, "512 tokens and four prompts")
    options = parser.parse_args(arguments)
    output = report.output_of(options, OUTPUT)
    if not Path(transformers.__file__).is_relative_to(PACKAGES):
        if not PACKAGES.is_dir():
            raise SystemExit(f"error: {PACKAGES} is missing; type make test-kernel first")
        command = [sys.executable, "-m", "scripts.dev.benchmarks.kernel", *(arguments or sys.argv[1:])]
        os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": str(PACKAGES)})
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    record: dict[str, Any] = {"machine": report.machine(), "commit": commit.stdout.strip(), "lengths": []}
    with tempfile.TemporaryDirectory() as scratch:
        write_kernel(Path(scratch) / NAMES[0])
        os.environ["LOCAL_KERNELS"] = f"{KERNEL}={Path(scratch) / NAMES[0]}"
        os.environ["HF_HUB_OFFLINE"] = "1"
        torch.manual_seed(0)
        folder = Path(scratch) / "encoder"
        config = ModernBertConfig(num_hidden_layers=ENCODER_LAYERS)
        ModernBertModel(config).save_pretrained(folder)
        for length in QUICK_LENGTHS if options.quick else LENGTHS:
            line = {"tokens": length, **apart(compared, folder, length)}
            line["mebibytes"] = {name: apart(grown, folder, name, length) for name in (IMPORT, KERNEL)}
            print(line, file=sys.stderr, flush=True)
            record["lengths"].append(line)
        folder = Path(scratch) / "decoder"
        shape = {"hidden_size": 640, "intermediate_size": 2048, "num_attention_heads": 4, "num_key_value_heads": 1}
        decoder = Gemma3TextConfig(
            **shape, head_dim=256, num_hidden_layers=DECODER_LAYERS, sliding_window=512, vocab_size=50257
        )
        Gemma3ForCausalLM(decoder).save_pretrained(folder)
        count = QUICK_PROMPTS if options.quick else PROMPTS
        steps = torch.linspace(0, 1, count)
        lengths = (SHORTEST * (LONGEST / SHORTEST) ** steps).round().int().tolist()
        record["prompts"] = lengths
        lines = {name: apart(batched, folder, name, lengths) for name in ("sdpa", KERNEL)}
    tokens = [line.pop("tokens") for line in lines.values()]
    if tokens[0] != tokens[1]:
        raise SystemExit("error: the tokens of continuous batching differ, so nothing is stored")
    record["batching"] = lines
    if output:
        report.store_study(output, record)
    print(table(record))


if __name__ == "__main__":
    main()
