"""Goes on with a stream in a new process: reads model, state and sound from a folder, and writes the remaining frames there."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from hf_longattn import LongWav2Vec2ForCTC
from hf_longattn.streaming import Stream

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    stream = Stream(LongWav2Vec2ForCTC.from_pretrained(folder).eval())
    stream.load(folder / "state.safetensors")
    sound = torch.load(folder / "sound.pt")[:, stream.seen :]
    torch.save(torch.cat([stream.feed(sound), stream.finish()], 1), folder / "rest.pt")
