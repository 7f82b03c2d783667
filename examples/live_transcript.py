"""Print what is said while it is being said: a CTC model reads a live stream in memory that does not grow.

    pip install 'hf-longattn[audio]'
    longattn convert facebook/wav2vec2-large-960h-lv60-self asr --mechanism chunked --option chunk_size=32 --option left_chunks=8
    arecord -q -t raw -f S16_LE -r 16000 -c 1 | python examples/live_transcript.py asr
    ffmpeg -v error -i talk.mp3 -f s16le -ar 16000 -ac 1 - | python examples/live_transcript.py asr

Reads samples of 16 bits in one channel from standard input. With --state FILE, a stream that was interrupted (Ctrl-C) goes on where it
stopped.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from transformers import AutoModelForCTC, AutoProcessor

import hf_longattn  # noqa: F401 (registers the Long models with transformers)
from hf_longattn.streaming import LiveTranscript

BYTES = 3_200
"""Read at a time: a tenth of a second at 16 kHz."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a converted model for CTC: a folder or a name on the Hub")
    parser.add_argument(
        "--deviation", type=float, default=0.05, help="standard deviation of the samples (full scale is 1), for models that normalise"
    )
    parser.add_argument("--state", type=Path, help="file that the stream goes on from, and is saved to")
    args = parser.parse_args()
    model = AutoModelForCTC.from_pretrained(args.model, trust_remote_code=False).eval()
    processor = AutoProcessor.from_pretrained(args.model, trust_remote_code=False)
    normalise = (0.0, args.deviation) if processor.feature_extractor.do_normalize else None
    transcript = LiveTranscript(model, processor, normalise=normalise)
    if args.state is not None and args.state.exists():
        transcript.load(args.state)
    print(f"The text is {transcript.stream.delay:.1f} s late.", file=sys.stderr)
    try:
        while heard := sys.stdin.buffer.read(BYTES):
            samples = np.frombuffer(heard[: len(heard) // 2 * 2], dtype="<i2").astype(np.float32) / 2**15
            print(transcript.feed(samples), end="", flush=True)
        print(transcript.finish())
    except KeyboardInterrupt:
        if args.state is not None:
            transcript.save(args.state)


if __name__ == "__main__":
    main()
