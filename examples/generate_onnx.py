"""Generate text from a decoder that `longattn export --task text-generation-with-past` wrote, in constant memory and without torch.

    pip install numpy onnxruntime tokenizers
    python examples/generate_onnx.py ./llama-onnx --max-new-tokens 200 "Once upon a time"
    cat book.txt | python examples/generate_onnx.py ./llama-onnx -

Greedy; each token is printed as it comes. What the model keeps of the text is in the state tensors that export_report.json lists: they are
zeros before the first token, and each step takes the ones that the step before returned.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

Array = np.ndarray[Any, Any]
FIRST: dict[Any, int] = {"batch_size": 1, "past_sequence_length": 0}
"""Sizes of the free axes of the state before the first token."""


class Decoder:
    """An exported decoder and the state of one text."""

    def __init__(self, folder: Path, threads: int) -> None:
        file = folder / "export_report.json"
        report = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if not report.get("decoding"):
            sys.exit(f"{folder} holds no exported decoder; write one with `longattn export MODEL OUT --task text-generation-with-past`.")
        self.max_length: int = report["max_length"]
        self.tensors: list[dict[str, Any]] = report["decoding"]["state"]
        self.columns: int | None = report["decoding"]["mask_columns"]
        """How many of the attention mask's columns before the new tokens are read; None: all."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        self.taken = {one.name for one in self.session.get_inputs()}
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.stops = stop_tokens(folder)
        self.restart()

    def restart(self) -> None:
        """Begin another text."""
        self.state = {one["input"]: np.zeros([FIRST.get(size, size) for size in one["shape"]], dtype=one["dtype"]) for one in self.tensors}
        self.seen = 0
        """Tokens so far."""

    def read(self, tokens: list[int]) -> Array:
        """The logits after the next tokens of the text, ``(vocabulary,)``."""
        before = self.seen if self.columns is None else min(self.seen, self.columns)
        given = {
            "input_ids": np.array([tokens], dtype=np.int64),
            "attention_mask": np.ones((1, before + len(tokens)), dtype=np.int64),
            "position_ids": np.arange(self.seen, self.seen + len(tokens), dtype=np.int64)[None],
            **self.state,
        }
        names = ["logits", *(one["output"] for one in self.tensors)]
        logits, *after = self.session.run(names, {name: value for name, value in given.items() if name in self.taken})
        self.state = {one["input"]: value for one, value in zip(self.tensors, after, strict=True)}
        self.seen += len(tokens)
        last: Array = logits[0, -1]
        return last

    def state_bytes(self) -> int:
        """Size of the state."""
        return sum(value.nbytes for value in self.state.values())


def generate(decoder: Decoder, prompt: list[int], count: int, piece: int) -> Iterator[int]:
    """The next tokens, at most ``count``; the prompt is read ``piece`` tokens at a time, so that memory does not depend on its length."""
    logits: Array | None = None
    for start in range(0, len(prompt), piece):
        logits = decoder.read(prompt[start : start + piece])
    assert logits is not None
    for number in range(count):
        token = int(logits.argmax())
        yield token
        if token in decoder.stops or number + 1 == count:
            return
        logits = decoder.read([token])


def stop_tokens(folder: Path) -> set[int]:
    """The tokens that end a text, by generation_config.json or config.json."""
    found: Any = None
    for name in ("generation_config.json", "config.json"):
        if found is None and (folder / name).is_file():
            found = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token_id")
    return {one for one in (found if isinstance(found, list) else [found]) if one is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description="Generate text greedily from an exported decoder.")
    parser.add_argument("folder", type=Path, help="what `longattn export MODEL OUT --task text-generation-with-past` wrote")
    parser.add_argument("prompt", help="the text to continue; - reads it from standard input")
    parser.add_argument("--max-new-tokens", type=int, default=100)
    parser.add_argument("--piece", type=int, default=256, help="tokens of the prompt that are read at a time")
    parser.add_argument("--threads", type=int, default=0, help="0: one for each core")
    parser.add_argument("--ids", action="store_true", help="print token ids instead of text")
    arguments = parser.parse_args()
    decoder = Decoder(arguments.folder, arguments.threads)
    prompt = list(decoder.tokenizer.encode(sys.stdin.read() if arguments.prompt == "-" else arguments.prompt).ids)
    if not prompt:
        sys.exit("The prompt has no tokens; give a text.")
    if len(prompt) + arguments.max_new_tokens > decoder.max_length:
        sys.exit(
            f"The prompt has {len(prompt)} tokens and {arguments.max_new_tokens} are to follow, but the model takes {decoder.max_length}; "
            "give a shorter prompt or --max-new-tokens."
        )
    stream = DecodeStream(skip_special_tokens=True)
    for token in generate(decoder, prompt, arguments.max_new_tokens, arguments.piece):
        if arguments.ids:
            print(token, flush=True)
        elif (text := stream.step(decoder.tokenizer, token)) is not None:  # None: the token does not complete a character yet
            print(text, end="", flush=True)
    print("" if arguments.ids else "\n", end="")
    print(f"{decoder.seen:,} tokens read, state {decoder.state_bytes():,} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
