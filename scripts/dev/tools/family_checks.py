"""What is checked of a family: one method of :class:`Subject` for each column of the table of ``check_families.py``."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from hf_longattn import export_checkpoint
from hf_longattn.conversion.long_models.base import checkpoint_converters
from hf_longattn.data.page_words import text_encoding
from hf_longattn.errors import CheckpointError
from hf_longattn.families import FAMILIES
from hf_longattn.positions import moves_rows
from scripts.dev.tools.family_checkpoints import ROOT, Checkpoint, training_text

PASSED, FAILED, NOT_RUN, NOT_APPLICABLE = "passed", "failed", "not run", "not applicable"
TOLERANCE = 1e-4
"""Largest difference called equal, relative to the largest output (at least 1)."""
GROWTH = 4
ENCODERS = ("encoder", "labels")
"""Kinds of encoders with an output for every token."""
Cell = dict[str, str]


class Differs(Exception):
    """A check that does not hold, in one sentence."""


class NotApplicable(Exception):
    """A check that does not apply to this kind of model, and why."""


def failed(error: Exception) -> Cell:
    """The cell of a check that raised."""
    kind = "" if isinstance(error, Differs) else f"{type(error).__name__}: "
    return {"status": FAILED, "detail": kind + " ".join(str(error).split())[:240].replace("|", "/")}


class Subject:
    """A checkpoint, converted on first use, and the checks of it."""

    trained_length = 96
    """Tokens of the rows that are trained on."""

    def __init__(self, checkpoint: Checkpoint, folder: Path) -> None:
        self.checkpoint, self.folder = checkpoint, folder
        self.family = FAMILIES[checkpoint.base]
        self.long_class = self.family.model_class(checkpoint.head)
        auto_classes = {"encoder": "AutoModelForMaskedLM", "decoder": "AutoModelForCausalLM", "embedder": "AutoModel"}
        auto_classes["labels"] = "AutoModelForTokenClassification"
        self.auto_class = auto_classes.get(checkpoint.kind, "AutoModelForSeq2SeqLM")

    def run(self, name: str) -> Cell:
        """The cell of one check; never raises what the checked code raises."""
        try:
            return {"status": PASSED, "detail": getattr(self, name)()}
        except NotApplicable as reason:
            return {"status": NOT_APPLICABLE, "detail": str(reason)}
        except Exception as error:  # whatever the model, transformers or peft raise is the result
            return failed(error)

    # The checks: each returns what it found in a few words, or raises.

    def convert(self) -> str:
        report, seconds = self._conversion
        checks = [check["status"] for check in report["checks"]]
        return f"{checks.count('passed')} checks passed in {seconds:.0f} s"

    def on_the_fly(self) -> str:
        config = AutoConfig.from_pretrained(self._converted)
        expected = self._long().state_dict()
        try:
            loaded = self.long_class.from_pretrained(self.checkpoint.folder, config=config).state_dict()
        except CheckpointError as error:
            if not self._has_converter:
                raise
            raise NotApplicable("checkpoints of its base go through a checkpoint converter, which renames tensors") from error
        if list(loaded) != list(expected):
            raise Differs(f"other tensors: {sorted(set(loaded) ^ set(expected))[:3]}")
        if unequal := [key for key, value in expected.items() if not torch.equal(value, loaded[key])]:
            raise Differs(f"{len(unequal)} of {len(expected)} tensors differ, first {unequal[0]}")
        return f"{len(expected)} tensors equal"

    def old_length(self) -> str:
        # eager: transformers' sdpa leaves the cap of Gemma 2's scores out
        base = getattr(transformers, self.checkpoint.head).from_pretrained(self.checkpoint.folder, attn_implementation="eager").eval()
        inputs = self._inputs(2, self.checkpoint.length)
        return self._equal(self._logits(base, inputs), self._logits(self._long(), inputs), inputs)

    def save_load(self) -> str:
        first, second = self.folder / "first", self.folder / "second"
        self._long().save_pretrained(first)
        self._auto().from_pretrained(first).save_pretrained(second)
        names = sorted(path.name for path in first.iterdir())
        if unequal := [name for name in names if (first / name).read_bytes() != (second / name).read_bytes()]:
            raise Differs(f"{unequal[0]} has other bytes")
        return f"same bytes in {len(names)} files"

    def lora(self) -> str:
        import peft

        task = {"decoder": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM"}.get(self.checkpoint.kind)
        model = peft.get_peft_model(self._long(), peft.LoraConfig(r=4, target_modules="all-linear", task_type=task))
        inputs = self._inputs(2, self.trained_length)
        before = self._logits(model.eval(), inputs)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for _ in range(2):  # the first step trains B, which is initialised to zero, and the second A
            loss = self._trained(model.train(), inputs)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        after = self._logits(model.eval(), inputs)
        if not torch.isfinite(loss) or torch.equal(before, after):
            raise Differs(f"two steps with loss {loss:.3f} did not change the outputs")
        merged = self._equal(after, self._logits(model.merge_and_unload().eval(), inputs), inputs)
        return f"trains, merges ({merged})"

    def compile(self) -> str:
        model = self._long()
        inputs = self._inputs(2, self.checkpoint.length + 40)
        torch.compiler.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        return self._equal(self._logits(model, inputs), self._logits(compiled, inputs), inputs)

    def export(self) -> str:
        format = "onnx" if self.checkpoint.kind in ENCODERS else "torch"
        report = export_checkpoint(self._converted, self.folder / "graph", format=format, overwrite=True)
        return f"{'ONNX' if format == 'onnx' else 'torch.export'}, {max(check.values['difference'] for check in report.checks):.0e}"

    def generate(self) -> str:
        if self.checkpoint.kind in (*ENCODERS, "embedder"):
            raise NotApplicable("a head over labels of tokens" if self.checkpoint.kind == "labels" else f"an {self.checkpoint.kind}")
        model, inputs = self._long(), self._inputs(2, 100, left=True)
        inputs.pop("decoder_input_ids", None)
        settings = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12}
        with torch.no_grad():
            texts = [model.generate(**inputs, **settings, use_cache=use_cache) for use_cache in (True, False)]
        if not torch.equal(*texts):
            raise Differs("other tokens with the cache than without")
        return "same tokens with and without cache"

    # What they share.

    @cached_property
    def _conversion(self) -> tuple[dict[str, Any], float]:
        """The report of the conversion by the command line, and its seconds."""
        started = time.perf_counter()
        command = [sys.executable, str(ROOT / "scripts" / "convert_checkpoint.py"), str(self.checkpoint.folder), str(self.folder / "long")]
        command += [*self.command_options, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Differs((done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("Error: "))
        return json.loads(done.stdout), time.perf_counter() - started

    @property
    def command_options(self) -> list[str]:
        """A window of all that the base sees, and nothing beyond, at four times the length."""
        length = self.checkpoint.length
        takes_globals = self.checkpoint.kind in ENCODERS and (self.long_class.hands_globals_down or self.long_class.marks_globals)
        embeds_causally = self.checkpoint.kind == "embedder" and getattr(self.family.config_class, "is_decoder", True)
        window = length if self.checkpoint.kind == "decoder" or embeds_causally else 2 * (length - 1)
        chosen = ["--mechanism", "longformer" if takes_globals else "window", "--option", f"window={window}"]
        command = [*([] if self._has_converter else chosen), "--max-length", str(GROWTH * length)]
        if moves_rows(self.family.config_class.default_extension):
            command += ["--positions", "tile"]  # stretched positions are not equal to the base's
        # scaled rotary positions, which `auto` takes for global tokens, are not equal to the base's either
        return [*command, "--positions", "rope:none"] if self.family.rope else command

    def _trained(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """The loss of a step."""
        if self.checkpoint.kind == "embedder":
            return model(**inputs)[0].square().mean()
        labels = inputs.get("decoder_input_ids", inputs["input_ids"])
        return model(**inputs, labels=labels % model.config.num_labels if self.checkpoint.kind == "labels" else labels).loss

    @property
    def _has_converter(self) -> bool:
        """Whether the base has its own long attention, which the result keeps."""
        return any(converter.model_type == self.checkpoint.base for converter in checkpoint_converters())

    @property
    def _converted(self) -> Path:
        return Path(self._conversion[0]["destination"])

    def _auto(self) -> Any:
        return getattr(transformers, self.auto_class)

    def _long(self) -> Any:
        return self._auto().from_pretrained(self._converted).eval()

    def _inputs(self, batch: int, length: int, *, left: bool = False) -> dict[str, Tensor]:
        """Rows of real text of different lengths, padded."""
        tokenizer = AutoTokenizer.from_pretrained(self._converted)
        text = "\n".join(training_text())[: 20 * length]
        ids = text_encoding(tokenizer, text, truncation=True, max_length=length)["input_ids"]
        if ids.count(tokenizer.unk_token_id) > length // 2:  # of proteins
            ids = text_encoding(tokenizer, text.upper(), truncation=True, max_length=length)["input_ids"]
        rows = [ids[: len(ids) - 10 * row] for row in range(batch)]
        batch_of = tokenizer.pad({"input_ids": rows}, padding_side="left" if left else "right", return_tensors="pt")
        inputs = {"input_ids": batch_of["input_ids"], "attention_mask": batch_of["attention_mask"]}
        page = FAMILIES[self.checkpoint.base].rule
        inputs |= page.seeded(AutoConfig.from_pretrained(self._converted), *inputs["input_ids"].shape)
        if self.checkpoint.kind == "encoder-decoder":
            inputs["decoder_input_ids"] = inputs["input_ids"][:, :20].contiguous()
        return inputs

    def _logits(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        arguments = {} if self.checkpoint.kind in (*ENCODERS, "embedder") else {"use_cache": False}
        with torch.no_grad():
            outputs = model(**inputs, **arguments)
        return outputs[0] if self.checkpoint.kind == "embedder" else outputs.logits

    def _equal(self, expected: Tensor, measured: Tensor, inputs: dict[str, Tensor]) -> str:
        """The largest difference at real tokens, in words."""
        return self._equal_at(inputs["attention_mask"][:, : expected.shape[1]].bool(), expected, measured)

    def _equal_at(self, mask: Tensor, expected: Tensor, measured: Tensor) -> str:
        expected, measured = expected[mask], measured[mask]
        largest = (expected - measured).abs().max().item()
        if not largest <= TOLERANCE * max(1.0, expected.abs().max().item()):
            raise Differs(f"outputs differ by {largest:.1e}, the largest is {expected.abs().max().item():.1f}")
        return f"{largest:.0e}" if largest else "0"
