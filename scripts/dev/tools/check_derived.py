"""Convert and verify a small model of every derived family that the tests do not run in full, and store the table.

    python -m scripts.dev.tools.check_derived                what is not stored yet, or failed
    python -m scripts.dev.tools.check_derived olmo glm4      these, again; a family that is not in the table is added

Each family is stored as soon as it is known, so that an interrupted run resumes where it stopped. A model with random
weights is converted to four times its length with a window that covers its own length, so that outputs there are
compared. The result is loaded by an Auto class, and a decoder reads a text token by token. Exit code 1 when one fails.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import hf_longattn
from hf_longattn.errors import LongAttentionError
from hf_longattn.families import FAMILIES
from hf_longattn.modeling.family.definition import stored_facts
from scripts.dev import RESULTS
from scripts.dev.benchmarks.report import store_study, stored_study
from scripts.dev.tools.every_config import small_config

STORED = RESULTS / "derived_families.json"
VERIFIED, UNSCALED = "verified", "verified with --positions rope:none"
TOKENS, LONG = 64, 256
"""Lengths of the short model and of the long one, in tokens."""
LONG_RELATIVE = 2048
"""Length of the long model with relative positions. Its base takes up to 1024 tokens, whatever its size."""
CAUSAL = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
HEADS = (
    (modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, transformers.AutoModelForSeq2SeqLM),
    (modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, transformers.AutoModelForMaskedLM),
    (CAUSAL, transformers.AutoModelForCausalLM),
)
FIELDS = {
    "vocab_size": 200,
    "max_position_embeddings": TOKENS,
    "sliding_window": 32,
    "attention_chunk_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
"""Values of the small models' configs beside their sizes, where a config has the field."""
LARGEST = 20_000_000
"""Most parameters of a model that still counts as small."""


def small_model(model_type: str) -> tuple[Any, Any]:
    """The Auto class of a base's language model, and a small one with random weights.

    Raises:
        ValueError: its config has other names for its sizes, so that the model would be large.
    """
    config_class = CONFIG_MAPPING[model_type]
    known = {*config_class.__dataclass_fields__, *config_class.attribute_map}
    config = small_config(model_type, **{name: value for name, value in FIELDS.items() if name in known})
    auto: Any = next(auto for table, auto in HEADS if model_type in table)
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in auto.from_config(config).parameters())
    if parameters > LARGEST:
        raise ValueError(f"a small config has {parameters:,} parameters")
    torch.manual_seed(0)
    return auto, auto.from_config(config).eval()


def check(model_type: str) -> str:
    """:data:`VERIFIED`, :data:`UNSCALED` where rotary positions cannot be scaled, or what went wrong."""
    stage = "its small model"
    try:
        with tempfile.TemporaryDirectory() as folder:
            auto, model = small_model(model_type)
            model.save_pretrained(f"{folder}/short")
            stage = "its conversion"
            length = LONG_RELATIVE if FAMILIES[model_type].relative else LONG
            options: dict[str, Any] = {"mechanism": "window", "options": {"window": 2 * TOKENS}, "max_length": length}
            result = VERIFIED
            try:
                report = hf_longattn.convert_checkpoint(f"{folder}/short", f"{folder}/long", **options)
            except LongAttentionError:
                if not FAMILIES[model_type].rope:
                    raise
                report = hf_longattn.convert_checkpoint(
                    f"{folder}/short", f"{folder}/long", positions="rope:none", **options
                )
                result = UNSCALED
            if failed := [check.name for check in report.checks if check.status == "failed"]:
                return f"its conversion: {', '.join(failed)} failed"
            stage = "its long model"
            long = auto.from_pretrained(f"{folder}/long").eval()
            ids = torch.randint(5, 150, (2, LONG - 40), generator=torch.Generator().manual_seed(1))
            with torch.no_grad():
                starts = {"decoder_input_ids": ids[:, :8]} if long.config.is_encoder_decoder else {}
                logits = long(input_ids=ids, **starts).logits
            if not logits.isfinite().all():
                return "its long model: outputs are not finite"
            if auto is transformers.AutoModelForCausalLM:
                stage = "decoding"
                difference = decoded(long, ids[:, :60], logits[:, :60])
                return (
                    result
                    if difference < 1e-3
                    else f"decoding: logits differ by {difference:.2g} from those of one pass"
                )
    except Exception as error:  # of any type, as the architecture raises it
        return f"{stage}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return result


def decoded(model: Any, ids: torch.Tensor, logits: torch.Tensor, prompt: int = 40) -> float:
    """The largest difference between logits with a cache, token by token after the prompt, and those of one pass."""
    with torch.no_grad():
        output = model(input_ids=ids[:, :prompt], use_cache=True)
        pieces = [output.logits]
        for token in range(prompt, ids.shape[1]):
            output = model(input_ids=ids[:, token : token + 1], past_key_values=output.past_key_values, use_cache=True)
            pieces.append(output.logits)
    return float((torch.cat(pieces, 1) - logits).abs().max() / logits.abs().max())


def main(arguments: list[str] | None = None) -> int:
    """Check the families and store what is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="default: those that are not stored as verified")
    options = parser.parse_args(arguments)
    table = stored_study(STORED)
    known = sorted(stored_facts()["derived"])
    if unknown := [name for name in options.families if name not in known]:
        parser.error(f"{unknown[0]!r} is no derived family; expected some of {', '.join(known)}")
    chosen = options.families or [
        name for name, result in table["families"].items() if result not in (VERIFIED, UNSCALED)
    ]
    for name in chosen:
        table["families"][name] = check(name)
        table["transformers"] = transformers.__version__
        table["families"] = {name: row for name, row in sorted(table["families"].items()) if name in known}
        store_study(STORED, table)
        print(f"{name}: {table['families'][name]}", flush=True)
    return int(any(table["families"][name] not in (VERIFIED, UNSCALED) for name in chosen))


if __name__ == "__main__":
    sys.exit(main())
