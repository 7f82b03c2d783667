"""Serve a sentence encoder or a classifier of texts over HTTP, from a folder that `longattn export` wrote, with bounded memory: an example
to start from.

pip install fastapi uvicorn onnxruntime tokenizers
ENCODER=./encoder-onnx uvicorn --app-dir examples --http limits:Connection --factory serve_encoder:application --port 8080
curl localhost:8080/embed -H 'Content-Type: application/json' -d '{"inputs": ["A long document."]}'

The address of a classifier is /predict.
"""

import json
import os
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

import numpy as np
import onnxruntime
from fastapi import Body, FastAPI, HTTPException
from limits import limited  # the file beside this one
from pydantic import Field
from tokenizers import Encoding, Tokenizer

ROWS, TOKENS = 128, 16_384  # of one run of the graph, padding included; a longer text runs alone
Texts = Annotated[list[Annotated[str, Field(max_length=4_000_000)]], Body(embed=True, min_length=1, max_length=256)]


class Encoder:
    """A graph of texts, and what it returns: ``sentence_embedding``, or a classifier's ``logits``."""

    def __init__(self, folder: Path) -> None:
        config, report = (json.loads((folder / f"{name}.json").read_text("utf-8")) for name in ("config", "export_report"))
        classifies = any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or ())
        self.output = "logits" if classifies else "sentence_embedding"
        if self.output not in report["outputs"]:
            raise ValueError(f"the graph in {folder} returns no {self.output}; export a model of sentence-transformers or a classifier")
        labels = config.get("id2label") or {}
        self.labels = [labels[number] for number in sorted(labels, key=int)]
        self.problem = config.get("problem_type")
        settings = folder / "config_sentence_transformers.json"  # only beside sentence encoders
        sentences = {} if classifies else json.loads(settings.read_text("utf-8"))
        self.padding, self.least, self.most = config.get("pad_token_id") or 0, report["min_length"], report["max_length"]
        self.prompt = (sentences.get("prompts") or {}).get(sentences.get("default_prompt_name"), "")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        options, self.lock = onnxruntime.SessionOptions(), Lock()
        options.enable_cpu_mem_arena = False  # the arena never gives memory of a long text back
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])

    def embed(self, inputs: Texts) -> list[list[float]]:
        """The embedding of each text."""
        return self.outputs(inputs)

    def predict(self, inputs: Texts) -> list[list[dict[str, Any]]]:
        """The labels of each text with their scores, the likeliest first, as transformers' text-classification pipeline scores them."""
        return [
            sorted(({"label": label, "score": score} for label, score in zip(self.labels, row, strict=True)), key=lambda one: -one["score"])
            for row in self.scores(np.array(self.outputs(inputs))).tolist()
        ]

    def scores(self, logits: Any) -> Any:
        if self.problem == "regression":
            return logits
        if self.problem == "multi_label_classification" or len(self.labels) == 1:
            return 1 / (1 + np.exp(-logits))
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    def outputs(self, inputs: list[str]) -> list[list[float]]:
        readable = all(len(text) <= 16 * self.most for text in inputs)  # what is far longer is not tokenised
        encodings = self.tokenizer.encode_batch([self.prompt + text for text in inputs]) if readable else []
        if not readable or max(map(len, encodings)) > self.most:
            raise HTTPException(413, f"A text is longer than the {self.most:,} tokens that the model reads; send parts.")
        if not all(map(len, encodings)):
            raise HTTPException(422, "A text has no tokens; send texts that are not empty.")
        order, rows = sorted(range(len(inputs)), key=lambda number: -len(encodings[number])), dict[int, list[float]]()
        while order:  # the longest texts first
            size = min(ROWS, max(1, TOKENS // len(encodings[order[0]])))
            rows |= zip(order[:size], self.run([encodings[number] for number in order[:size]]), strict=True)
            order = order[size:]
        return [rows[number] for number in range(len(inputs))]

    def run(self, encodings: list[Encoding]) -> Any:
        for encoding in encodings:
            encoding.pad(max(self.least, *map(len, encodings)), pad_id=self.padding)
        ids, mask = (np.array([getattr(encoding, name) for encoding in encodings]) for name in ("ids", "attention_mask"))
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        with self.lock:
            return self.session.run([self.output], {put.name: inputs[put.name] for put in self.session.get_inputs()})[0].tolist()


def application() -> FastAPI:
    app, encoder = limited(FastAPI(title="Encoder")), Encoder(Path(os.environ["ENCODER"]))
    if encoder.output == "logits":
        app.post("/predict")(encoder.predict)
    else:
        app.post("/embed")(encoder.embed)
    return app
