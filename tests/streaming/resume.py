"""Goes on with streams in a new process: reads model, state and sound from each folder, and writes the remaining frames there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

import hf_longattn
from hf_longattn.streaming import Stream


def model_in(folder: Path) -> Any:
    """The model of a folder, by the class that its config names."""
    (name,) = AutoConfig.from_pretrained(folder).architectures
    return getattr(hf_longattn, name).from_pretrained(folder).eval()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for folder in map(Path, sys.argv[1:]):
        stream = Stream(model_in(folder))
        stream.load(folder / "state.safetensors")
        sound = torch.load(folder / "sound.pt")[:, stream.seen :]
        torch.save(torch.cat([stream.feed(sound), stream.finish()], 1), folder / "rest.pt")
