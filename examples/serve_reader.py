"""Serve a question answerer over HTTP, from a folder that `longattn train qa` wrote or a Hub id: an example to start from.

pip install fastapi uvicorn
READER=bert-4096-qa uvicorn --app-dir examples --http limits:Connection --factory serve_reader:application --port 8081
curl localhost:8081/answer -H 'Content-Type: application/json' -d '{"question": "Who came?", "context": "Ada came."}'
"""

import os
from threading import Lock
from typing import Annotated, Any

from fastapi import Body, FastAPI
from limits import limited  # the file beside this one
from pydantic import Field

from hf_longattn.evaluation.qa_reader import QAReader, whole
from hf_longattn.training import load_qa_model

Question = Annotated[str, Field(min_length=1, max_length=4_000), Body()]
Context = Annotated[str, Field(min_length=1, max_length=4_000_000), Body()]


class Reader:
    def __init__(self, name: str) -> None:
        model, tokenizer = load_qa_model(name)
        self.reader, self.lock = QAReader(name, model, tokenizer, whole(tokenizer.model_max_length), batch_size=1), Lock()

    def answer(self, question: Question, context: Context) -> dict[str, Any]:
        """The answer, "" for none, and its place in the context, in characters; a longer context is read in overlapping windows."""
        with self.lock:  # one document at a time, so that memory is bounded
            (found,) = self.reader.read([{"question": question, "context": context, "answers": None}])
        place = found.spans[0] if found.text and found.kind == "span" else None
        return {"answer": found.text, "start": place and place.start, "end": place and place.end, "tokens": found.length}


def application() -> FastAPI:
    app = limited(FastAPI(title="Reader"))
    app.post("/answer")(Reader(os.environ["READER"]).answer)
    return app
