"""The example of a server that generates, over loopback: the text of `model.generate`, whoever else asks at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from .serving import ask, refusal, serving

for package in ("uvicorn", "fastapi", "onnxruntime", "onnxscript"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def url(decoder_graph: tuple[Path, Path]) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DECODER", str(decoder_graph[1]))
        from examples import serve_decoder

        app = serve_decoder.application()
    with serving(app) as address:
        yield f"{address}/generate"


@pytest.mark.thorough
def test_many_clients_get_what_the_model_generates(url: str, decoder_graph: tuple[Path, Path]) -> None:
    prompts = [f"The quick brown {thing} jumps over the lazy dog." for thing in ("fox", "cat", "frog")] * 2
    with ThreadPoolExecutor(3) as clients:
        answers = list(clients.map(lambda prompt: ask(url, prompt=prompt, max_new_tokens=12), prompts))
    model, tokenizer = (kind.from_pretrained(decoder_graph[0]) for kind in (AutoModelForCausalLM, PreTrainedTokenizerFast))
    for prompt, found in zip(prompts, answers, strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        new = model.eval().generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        assert found == {"text": tokenizer.decode(new, skip_special_tokens=True), "prompt_tokens": ids.shape[1], "tokens": len(new)}


def test_what_the_model_cannot_read_is_refused(url: str) -> None:
    for prompt in ("a" * 250, "a" * 10_000):
        sentence = "The prompt and 10 new tokens are more than the 256 of the model; send fewer."
        assert refusal(url, prompt=prompt, max_new_tokens=10) == (413, sentence)
    for request, problem in ({"prompt": ""}, "at least 1 character"), ({"prompt": "a", "max_new_tokens": 0}, "greater than or equal to 1"):
        code, problems = refusal(url, **request)
        assert code == 422
        assert problem in problems
