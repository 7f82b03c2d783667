"""Serve an encoder over HTTP, from a folder that `longattn export` wrote; memory is bounded, and no text is cut off.

    pip install fastapi uvicorn onnxruntime tokenizers
    python examples/serve_encoder.py ./encoder-onnx --port 8080

Routes, which are those of text-embeddings-inference:
    POST /embed of a sentence encoder: {"inputs": "text" or ["text", …]} -> [[…], …]; "prompt_name": "query" puts that prompt of the model
        before each text, its default prompt if there is one and none is named
    POST /v1/embeddings, the same as OpenAI's: {"input": …} -> {"data": [{"embedding": […]}, …]}
    POST /rerank of a re-ranker: {"query": "…", "texts": ["…", …]} -> [{"index": 2, "score": 0.9}, …], the best first
    POST /predict of a classifier of texts or pairs: {"inputs": "text"} -> [{"label": "…", "score": 0.9}, …], the best first
    GET /health and /info

A request is refused with a sentence: 400 if it is not JSON or not Unicode, 413 if it is too large for this server, 422 if it is not what
the route takes, 424 if the model answers another route, and 503 if too much is waiting.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
from fastapi import Depends, FastAPI, HTTPException, Request
from tokenizers import Tokenizer

EMBEDS, RERANKS, PREDICTS = "/embed", "/rerank", "/predict"
ROW_TOKENS = 128
"""Tokens that a text counts at least: a row of a batch, and a text that waits, cost something however short they are."""
CHARACTERS_PER_TOKEN = 16
"""A text with more characters than these for each token of the model's length is refused before it is tokenised."""
BODIES = 4
"""Requests of ``--body-bytes`` that are read or answered at a time, or more that are smaller; others get a 503."""


@dataclass(frozen=True)
class Row:
    """The tokens of a text, or of two, with special ones."""

    ids: np.ndarray[Any, np.dtype[np.int64]]
    types: np.ndarray[Any, np.dtype[np.int64]]

    @property
    def cost(self) -> int:
        """In tokens."""
        return max(ROW_TOKENS, len(self.ids))


def read_json(file: Path) -> dict[str, Any]:
    """An object, empty if there is no such file."""
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return values


class Encoder:
    """An exported model: tokens -> embeddings or scores. One run at a time, and nothing is kept between runs.

    Raises:
        ValueError: the graph has other inputs or outputs than this server knows, or its scores another activation.
    """

    def __init__(self, folder: Path, threads: int, file: str = "model.onnx") -> None:
        config, report = read_json(folder / "config.json"), read_json(folder / "export_report.json")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.padding = config.get("pad_token_id") or 0
        stated = read_json(folder / "tokenizer_config.json").get("model_max_length")
        lengths = [
            length for length in (stated, report.get("max_length"), config.get("max_position_embeddings")) if isinstance(length, int)
        ]
        self.max_length = min((length for length in lengths if length < 10**9), default=512)
        self.min_length = report.get("min_length", 1)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_cpu_mem_arena = False  # the arena never gives memory of a long text back
        self.session = onnxruntime.InferenceSession(str(folder / file), options, providers=["CPUExecutionProvider"])
        self.inputs = {value.name for value in self.session.get_inputs()}
        if "input_ids" not in self.inputs or self.inputs - {"input_ids", "attention_mask", "token_type_ids"}:
            raise ValueError(
                f"its graph takes {', '.join(sorted(self.inputs))}, and requests hold texts only; export it without further inputs"
            )
        outputs = {value.name: value.shape for value in self.session.get_outputs()}
        output = next((name for name in ("sentence_embedding", "last_hidden_state", "logits") if name in outputs), None)
        if output is None or (output == "logits" and len(outputs[output]) != 2):
            raise ValueError(
                f"its graph returns {', '.join(outputs)}, and not embeddings, states of tokens or one row of scores for a text"
            )
        self.output, self.pooled = output, output != "last_hidden_state"
        self.route = EMBEDS if output != "logits" else RERANKS if outputs[output][-1] == 1 else PREDICTS
        self.labels = [name for _, name in sorted((int(number), name) for number, name in config.get("id2label", {}).items())]
        settings = read_json(folder / "config_sentence_transformers.json")
        activation = (config.get("sentence_transformers") or settings).get("activation_fn") or config.get(
            "sbert_ce_default_activation_function"
        )
        if self.route == RERANKS and activation is not None and not activation.endswith(("Identity", "Sigmoid")):
            raise ValueError(f"its scores go through {activation}, and this server knows Sigmoid and Identity")
        self.raw = activation is not None and activation.endswith("Identity")
        self.prompts, self.prompt_name = settings.get("prompts") or {}, settings.get("default_prompt_name")
        self.averages_prompts = read_json(folder / "1_Pooling" / "config.json").get("include_prompt", True)

    def prompt(self, name: Any) -> str:
        """What the model was trained to read before texts of this kind, as sentence-transformers knows it.

        Raises:
            ValueError: the model has no such prompt, or leaves it out of the average, which the graph cannot.
        """
        name = self.prompt_name if name is None else name
        if name is None:
            return ""
        if not isinstance(name, str) or name not in self.prompts:
            raise ValueError(f"The model has no prompt {name!r:.60}; its prompts are {', '.join(self.prompts) or 'none'}.")
        if self.prompts[name] and not self.averages_prompts:
            raise ValueError(f"The model leaves the prompt {name!r} out of the average (include_prompt), which its graph cannot.")
        return str(self.prompts[name])

    def read(self, texts: Sequence[tuple[str, ...]], most: int) -> list[Row]:
        """The tokens of texts and pairs.

        Raises:
            HTTPException: one of them is longer than the model reads, or together they cost more than ``most``.
        """
        rows: list[Row] = []
        for text in texts:
            what = "A text has" if len(text) == 1 else "Two texts have together"
            reads = f"but the model reads at most {self.max_length:,} tokens; send parts."
            if (characters := sum(map(len, text))) > CHARACTERS_PER_TOKEN * self.max_length:
                raise HTTPException(413, f"{what} {characters:,} characters, {reads}")
            encoding = self.tokenizer.encode(text[0], text[1] if len(text) == 2 else None)
            rows.append(Row(np.array(encoding.ids, dtype=np.int64), np.array(encoding.type_ids, dtype=np.int64)))
            if len(encoding.ids) > self.max_length:
                raise HTTPException(413, f"{what} {len(encoding.ids):,} tokens, {reads}")
            most -= rows[-1].cost
            if most < 0:
                raise HTTPException(413, f"After {len(rows):,} of {len(texts):,} texts the request is too large; send fewer at a time.")
        return rows

    def run(self, rows: Sequence[Row]) -> list[list[float]]:
        """The embeddings of some texts, normalised means if no pooling is in the graph; or their scores."""
        shape = len(rows), max(self.min_length, *(len(row.ids) for row in rows))
        ids = np.full(shape, self.padding, dtype=np.int64)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        for number, row in enumerate(rows):
            here = slice(len(row.ids))
            ids[number, here], mask[number, here], types[number, here] = row.ids, 1, row.types
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        (values,) = self.session.run([self.output], {name: inputs[name] for name in self.inputs})
        if not self.pooled:
            values = (values * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
            values = values / np.linalg.norm(values, axis=-1, keepdims=True)
        return [list(map(float, row)) for row in values]


class Queue:
    """Texts that wait, which cost at most ``queue_tokens``; the oldest runs next, with others of similar length."""

    def __init__(self, encoder: Encoder, batch_tokens: int, queue_tokens: int) -> None:
        self.encoder, self.batch_tokens, self.queue_tokens = encoder, batch_tokens, queue_tokens
        self.waiting: dict[asyncio.Future[list[float]], Row] = {}
        self.arrived = asyncio.Event()

    async def run(self, rows: Sequence[Row]) -> list[list[float]]:
        held = sum(row.cost for row in self.waiting.values())
        if held + sum(row.cost for row in rows) > self.queue_tokens:
            raise HTTPException(503, f"{len(self.waiting):,} texts are waiting; try again in a moment.", {"Retry-After": "1"})
        loop = asyncio.get_running_loop()
        answers = {loop.create_future(): row for row in rows}
        self.waiting |= answers
        self.arrived.set()
        try:
            return list(await asyncio.gather(*answers))
        finally:
            for answer in answers:  # the client has gone
                self.waiting.pop(answer, None)

    async def work(self) -> None:
        while True:
            await self.arrived.wait()
            while self.waiting:
                batch = self.next_batch()
                try:
                    values = await asyncio.to_thread(self.encoder.run, list(batch.values()))
                except Exception as error:
                    for answer in batch:
                        if not answer.done():
                            answer.set_exception(HTTPException(500, f"The model failed on {len(batch[answer].ids):,} tokens: {error}"))
                    continue
                for answer, value in zip(batch, values, strict=True):
                    if not answer.done():
                        answer.set_result(value)
            self.arrived.clear()

    def next_batch(self) -> dict[asyncio.Future[list[float]], Row]:
        """The oldest text, and others between half and all of its length, as long as what they cost together fits."""
        oldest = next(iter(self.waiting.values()))
        longest, most = len(oldest.ids), max(1, self.batch_tokens // oldest.cost)
        batch: dict[asyncio.Future[list[float]], Row] = {}
        for answer, row in self.waiting.items():
            if longest <= 2 * len(row.ids) <= 2 * longest:
                batch[answer] = row
            if len(batch) == most:
                break
        self.waiting = {answer: row for answer, row in self.waiting.items() if answer not in batch}
        return batch


async def read_body(request: Request) -> AsyncIterator[dict[str, Any]]:
    """The object that a request holds, if neither it nor all requests of the moment are too large."""
    content, state = bytearray(), request.app.state
    try:
        async for part in request.stream():
            content += part
            state.bytes_held += len(part)
            if len(content) > state.body_bytes:
                raise HTTPException(413, f"A request has at most {state.body_bytes:,} bytes; send fewer texts at a time.")
            if state.bytes_held > BODIES * state.body_bytes:
                raise HTTPException(503, "Too many large requests at a time; try again in a moment.", {"Retry-After": "1"})
        try:
            body = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, "The request is not JSON in UTF-8, or nested too deeply; send a JSON object.") from error
        if not isinstance(body, dict):
            raise HTTPException(422, "Send a JSON object.")
        yield body
    finally:
        state.bytes_held -= len(content)


Body = Annotated[dict[str, Any], Depends(read_body)]


def text_list(value: Any, sentence: str) -> list[str]:
    """``value`` if it is a list of texts; otherwise a refusal that says ``sentence``."""
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise HTTPException(422, sentence)
    try:
        "".join(value).encode()
    except UnicodeEncodeError as error:
        raise HTTPException(400, "A text holds half of a surrogate pair, which is not Unicode; send whole characters.") from error
    return value


def application(
    folder: Path,
    *,
    file: str = "model.onnx",
    batch_tokens: int = 16_384,
    queue_tokens: int = 1_000_000,
    body_bytes: int = 8_000_000,
    threads: int = 0,
) -> FastAPI:
    """The server of one exported model."""
    encoder = Encoder(folder, threads, file)
    queue = Queue(encoder, batch_tokens, queue_tokens)

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(queue.work())
        yield
        worker.cancel()

    app = FastAPI(title="Encoder", lifespan=running)
    app.state.body_bytes, app.state.bytes_held = body_bytes, 0

    async def run(route: str, texts: Sequence[tuple[str, ...]]) -> list[list[float]]:
        if route != encoder.route:
            raise HTTPException(424, f"This model does not answer {route}; ask {encoder.route}.")
        if len(texts) * ROW_TOKENS > queue_tokens:
            raise HTTPException(413, f"A request has at most {queue_tokens // ROW_TOKENS:,} texts; send fewer at a time.")
        return await queue.run(await asyncio.to_thread(encoder.read, texts, queue_tokens))

    async def embed(inputs: Any, prompt_name: Any) -> list[list[float]]:
        texts = text_list([inputs] if isinstance(inputs, str) else inputs, "Send a text or a list of texts.")
        try:
            prompt = encoder.prompt(prompt_name)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        return await run(EMBEDS, [(prompt + text,) for text in texts])

    @app.post(EMBEDS)
    async def of_inference(body: Body) -> list[list[float]]:
        return await embed(body.get("inputs"), body.get("prompt_name"))

    @app.post("/v1/embeddings")
    async def of_openai(body: Body) -> dict[str, Any]:
        embeddings = await embed(body.get("input"), body.get("prompt_name"))
        data = [{"object": "embedding", "index": number, "embedding": values} for number, values in enumerate(embeddings)]
        return {"object": "list", "model": folder.name, "data": data}

    @app.post(RERANKS)
    async def rerank(body: Body) -> list[dict[str, Any]]:
        sentence = "Send a query, which is a text, and texts, which is a list of texts."
        (query,) = text_list([body.get("query")], sentence)
        logits = np.array(await run(RERANKS, [(query, text) for text in text_list(body.get("texts"), sentence)]))[:, 0]
        scores = logits if encoder.raw or body.get("raw_scores") else 1 / (1 + np.exp(-logits))
        return [{"index": int(index), "score": float(scores[index])} for index in np.argsort(-scores, kind="stable")]

    @app.post(PREDICTS)
    async def predict(body: Body) -> list[Any]:
        sentence = "Send a text, or a list of texts or of pairs of texts."
        inputs = body.get("inputs")
        entries = inputs if isinstance(inputs, list) else [inputs]
        texts = [tuple(text_list(entry if isinstance(entry, list) else [entry], sentence)) for entry in entries]
        if not texts or not all(len(text) in (1, 2) for text in texts):
            raise HTTPException(422, sentence)
        logits = np.array(await run(PREDICTS, texts))
        scores = np.exp(logits - logits.max(-1, keepdims=True))
        scores = logits if body.get("raw_scores") else scores / scores.sum(-1, keepdims=True)
        answers = [
            [{"label": encoder.labels[label], "score": float(row[label])} for label in np.argsort(-row, kind="stable")] for row in scores
        ]
        return answers if isinstance(inputs, list) else answers[0]

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/info")
    async def info() -> dict[str, Any]:
        return {"model": folder.name, "max_length": encoder.max_length, "route": encoder.route, "waiting": len(queue.waiting)}

    return app


def main() -> None:
    import uvicorn

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="written by `longattn export`: model.onnx, config.json, tokenizer.json")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--file", default="model.onnx", help="the graph, for example model_int8.onnx, which `longattn export --int8` adds")
    parser.add_argument(
        "--batch-tokens", type=int, default=16_384,
        help=f"tokens of one run, padding included; a text counts at least {ROW_TOKENS}, and a longer one than this runs alone",
    )  # fmt: skip
    parser.add_argument("--queue-tokens", type=int, default=1_000_000, help="tokens that may wait; with more, clients get a 503")
    parser.add_argument("--body-bytes", type=int, default=8_000_000, help="of one request; with more, the client gets a 413")
    parser.add_argument("--threads", type=int, default=0, help="of onnxruntime; 0 is all cores")
    settings = vars(parser.parse_args())
    folder, host, port = settings.pop("folder"), settings.pop("host"), settings.pop("port")
    for name in (settings["file"], "config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            parser.error(f"{str(folder)!r} has no {name}; give the folder that `longattn export MODEL FOLDER` wrote")
    try:
        app = application(folder, **settings)
    except Exception as error:  # onnxruntime has no public class of errors
        parser.error(f"{str(folder / settings['file'])!r} cannot be served: {error}")
    uvicorn.run(app, host=host, port=port)


if __name__ == "__main__":
    main()
