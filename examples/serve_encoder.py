"""Serve a sentence encoder over HTTP, from a folder that `longattn export` wrote, with bounded memory: an example to start from.

pip install fastapi uvicorn onnxruntime tokenizers
python examples/serve_encoder.py ./encoder-onnx --port 8080
curl localhost:8080/embed -H 'Content-Type: application/json' -d '{"inputs": ["A long document."]}'
"""

import argparse
import json
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

import numpy as np
import onnxruntime
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field
from tokenizers import Encoding, Tokenizer

ROW_TOKENS = 128  # that a row of a batch counts at least, since it costs something however short it is


class Texts(BaseModel):
    inputs: Annotated[list[Annotated[str, Field(max_length=4_000_000)]], Field(min_length=1, max_length=256)]


class Encoder:
    """An exported model: texts -> normalised embeddings, one run at a time, of at most ``batch_tokens`` tokens with padding."""

    def __init__(self, folder: Path, batch_tokens: int = 16_384) -> None:
        names = ("config", "config_sentence_transformers", "1_Pooling/config", "tokenizer_config", "export_report")
        files = {name: folder / f"{name}.json" for name in names}
        config, sentences, pooling, tokens, report = (
            json.loads(file.read_text("utf-8")) if file.is_file() else {} for file in files.values()
        )
        self.prompt = (sentences.get("prompts") or {}).get(sentences.get("default_prompt_name"), "")
        if self.prompt and not pooling.get("include_prompt", True):
            raise ValueError("it leaves its prompt out of the average (include_prompt), which a graph cannot")
        self.tokenizer, self.lock, self.batch_tokens = Tokenizer.from_file(str(folder / "tokenizer.json")), Lock(), batch_tokens
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.max_length = min(tokens.get("model_max_length") or 10**9, config.get("max_position_embeddings") or 10**9)
        self.padding, self.min_length = config.get("pad_token_id") or 0, report.get("min_length", 1)
        options = onnxruntime.SessionOptions()
        options.enable_cpu_mem_arena = False  # the arena never gives memory of a long text back
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        outputs = [value.name for value in self.session.get_outputs()]
        self.output = next((name for name in ("sentence_embedding", "last_hidden_state") if name in outputs), None)
        if self.output is None:
            raise ValueError(f"its graph returns {', '.join(outputs)}, and not embeddings or states of tokens")

    def run(self, texts: list[str]) -> list[list[float]]:
        """The embeddings, texts of similar length in one run; 413 for a text that is longer than the model reads."""
        readable = all(len(text) <= 16 * self.max_length for text in texts)  # what is far longer is not tokenised
        encodings = self.tokenizer.encode_batch([self.prompt + text for text in texts]) if readable else []
        if not readable or any(len(encoding.ids) > self.max_length for encoding in encodings):
            raise HTTPException(413, f"A text is longer than the {self.max_length:,} tokens that the model reads; send parts.")
        waiting, embeddings = sorted(range(len(texts)), key=lambda number: -len(encodings[number].ids)), dict[int, list[float]]()
        while waiting:
            size = max(1, self.batch_tokens // max(ROW_TOKENS, len(encodings[waiting[0]].ids)))
            batch, waiting = waiting[:size], waiting[size:]
            with self.lock:
                embeddings |= zip(batch, self.run_batch([encodings[number] for number in batch]), strict=True)
        return [embeddings[number] for number in range(len(texts))]

    def run_batch(self, encodings: list[Encoding]) -> Any:
        """The graph's embeddings, or the means of its states if no pooling is in the graph."""
        for encoding in encodings:
            encoding.pad(max(self.min_length, *(len(row.ids) for row in encodings)), pad_id=self.padding)
        ids, mask = (np.array([getattr(encoding, name) for encoding in encodings]) for name in ("ids", "attention_mask"))
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (values,) = self.session.run([self.output], {value.name: inputs[value.name] for value in self.session.get_inputs()})
        if self.output == "last_hidden_state":
            values = (values * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
            values /= np.linalg.norm(values, axis=-1, keepdims=True)
        return values.tolist()


def application(encoder: Encoder) -> FastAPI:
    app = FastAPI(title="Encoder")

    @app.post("/embed")
    def embed(body: Texts) -> list[list[float]]:
        return encoder.run(body.inputs)

    return app


def main() -> None:
    import uvicorn

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="written by `longattn export`: model.onnx, config.json, tokenizer.json")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--batch-tokens", type=int, default=16_384, help="tokens of one run, padding included; a longer text runs alone")
    options = parser.parse_args()
    try:
        encoder = Encoder(options.folder, options.batch_tokens)
    except Exception as error:  # onnxruntime has no public class of errors
        parser.error(f"{str(options.folder)!r} cannot be served: {error}; give a folder that `longattn export MODEL FOLDER` wrote")
    uvicorn.run(application(encoder), port=options.port, limit_concurrency=64)


if __name__ == "__main__":
    main()
