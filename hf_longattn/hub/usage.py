"""The usage snippet of a card: short, and it runs as it stands."""

from __future__ import annotations

import re

_QA = """
question = "Where does the name of the house come from?"
document = "The house stands on a hill. It is called Larkfield, after the birds that nest there in spring. " * 40
inputs = tokenizer(question, document, truncation="only_second", max_length={length}, return_tensors="pt")
{globals}with torch.no_grad():
    outputs = model(**inputs)
start, end = outputs.start_logits.argmax(), outputs.end_logits.argmax()
print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))
"""
_QA_GLOBALS = """\
# the question sees everything, and everything sees the question
before_document = torch.tensor(inputs.sequence_ids(0).index(1))
inputs["global_attention_mask"] = (torch.arange(inputs["input_ids"].shape[1]) < before_document).long()[None]
"""
_MASKED = """
text = "import numpy as np\\n" * 100 + f"import {{tokenizer.mask_token}} as np\\n"
inputs = tokenizer(text, truncation=True, max_length={length}, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
masked = inputs["input_ids"][0] == tokenizer.mask_token_id
print(tokenizer.decode(logits[0, masked].argmax(-1)))
"""
_GENERATE = """
inputs = tokenizer("A long document starts here. " * 50, truncation=True, max_length={length} - 20, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=20, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]))
"""
_SUMMARY = """
inputs = tokenizer("A long document starts here. " * 50, truncation=True, max_length={length}, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=20, do_sample=False)
print(tokenizer.decode(output[0], skip_special_tokens=True))
"""
_LOGITS = """
inputs = tokenizer("A long document starts here. " * 50, truncation=True, max_length={length}, return_tensors="pt")
with torch.no_grad():
    print(model(**inputs).logits.shape)
"""
_HIDDEN = """
inputs = tokenizer("A long document starts here. " * 50, truncation=True, max_length={length}, return_tensors="pt")
with torch.no_grad():
    print(model(**inputs).last_hidden_state.shape)
"""

# ending of the class name -> (Auto class, task on the Hub, what comes after loading)
HEADS: dict[str, tuple[str, str | None, str]] = {
    "ForQuestionAnswering": ("AutoModelForQuestionAnswering", "question-answering", _QA),
    "ForMaskedLM": ("AutoModelForMaskedLM", "fill-mask", _MASKED),
    "ForCausalLM": ("AutoModelForCausalLM", "text-generation", _GENERATE),
    "LMHeadModel": ("AutoModelForCausalLM", "text-generation", _GENERATE),
    "ForConditionalGeneration": ("AutoModelForSeq2SeqLM", None, _SUMMARY),
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "text-classification", _LOGITS),
    "ForTokenClassification": ("AutoModelForTokenClassification", "token-classification", _LOGITS),
    "Model": ("AutoModel", "feature-extraction", _HIDDEN),
}


def head_of(architecture: str) -> tuple[str, str | None, str] | None:
    """(Auto class, Hub task, snippet) of a model class by the ending of its name; ``None`` for heads without a snippet."""
    return next((head for ending, head in HEADS.items() if architecture.endswith(ending)), None)


def usage(architecture: str, name: str, length: int, *, is_long: bool, takes_globals: bool) -> str | None:
    """Python that loads ``name`` (a folder or a Hub repository) and runs it once on an input of up to ``length`` tokens."""
    head = head_of(architecture)
    if head is None:
        return None
    auto, _, body = head
    ours = "import hf_longattn  # registers the model with transformers\n" if is_long else ""
    code = f"{'import torch' if 'torch.' in body else ''}\n{ours}from transformers import {auto}, AutoTokenizer\n\n"
    code += f'tokenizer = AutoTokenizer.from_pretrained("{name}")\nmodel = {auto}.from_pretrained("{name}").eval()\n'
    code += body.format(length=length, globals=_QA_GLOBALS if is_long and takes_globals else "")
    return re.sub(r"\n{3,}", "\n\n", code).strip()
