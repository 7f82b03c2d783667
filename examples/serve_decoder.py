"""Generate text over HTTP with a decoder that `longattn export --task text-generation-with-past` wrote, without torch: an example to start
from.

pip install fastapi uvicorn onnxruntime tokenizers
DECODER=llama-onnx uvicorn --app-dir examples --http limits:Connection --factory serve_decoder:application --port 8083
curl localhost:8083/generate -H 'Content-Type: application/json' -d '{"prompt": "Once upon a time", "max_new_tokens": 40}'
"""

import os
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

from fastapi import Body, FastAPI, HTTPException
from generate_onnx import Decoder, generate  # the file beside this one
from limits import limited  # that, too
from pydantic import Field

Prompt = Annotated[str, Field(min_length=1, max_length=4_000_000), Body()]
Count = Annotated[int, Field(ge=1), Body()]


class Generator:
    def __init__(self, folder: Path) -> None:
        self.decoder, self.lock = Decoder(folder, threads=0), Lock()

    def generate(self, prompt: Prompt, max_new_tokens: Count = 100) -> dict[str, Any]:
        """The text that follows, chosen greedily, and the numbers of tokens of the prompt and of that text."""
        most = self.decoder.max_length
        ids = self.decoder.tokenizer.encode(prompt).ids if len(prompt) <= 16 * most else None  # what is far longer is not tokenised
        if ids is None or len(ids) + max_new_tokens > most:
            raise HTTPException(413, f"The prompt and {max_new_tokens:,} new tokens are more than the {most:,} of the model; send fewer.")
        if not ids:
            raise HTTPException(422, "The prompt has no tokens; send a text.")
        with self.lock:  # one text at a time: the decoder has one state
            self.decoder.restart()
            tokens = list(generate(self.decoder, ids, max_new_tokens, piece=256))
        return {"text": self.decoder.tokenizer.decode(tokens), "prompt_tokens": len(ids), "tokens": len(tokens)}


def application() -> FastAPI:
    app = limited(FastAPI(title="Generator"))
    app.post("/generate")(Generator(Path(os.environ["DECODER"])).generate)
    return app
