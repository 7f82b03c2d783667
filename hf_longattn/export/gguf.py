"""Export a long decoder as a GGUF file for llama.cpp.

llama.cpp decides by architecture which layers have windows: it reads ``attention.sliding_window`` for Gemma 2 (every second layer has full
attention) and Gemma 3 (every sixth), reads but ignores it for Phi-3, and gives Llama, Mistral, Qwen and SmolLM3 full attention. A file is
written only if llama.cpp computes the same as the decoder's native twin, the stock architecture with the same outputs. Matrices keep their
dtype; vectors are float32, which llama.cpp requires.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import FAILED, PASSED, Check
from ..conversion.folders import add_source_files, open_for_writing, short_name, with_report, write_report
from ..conversion.model_loading import quiet_libraries
from ..conversion.native import TwinPlan, plan_twin, tensor_values
from ..conversion.report import require_passed, versions
from ..conversion.sources.base import ResultInfo
from ..conversion.sources.peft import refuse_adapter
from ..conversion.tensor_files import write_json
from ..errors import ExportError, needs_extra
from ..hub import origin_of
from ..inputs.text import load_tokenizer
from ..modeling.family.sliding_window import FULL, SLIDING
from ..staging import staged_folder
from .onnx import ExportReport

FILE, GGUF_REPORT = "model.gguf", "gguf_report.json"
SIMPLE = ("rope_type", "rope_theta", "factor", "original_max_position_embeddings", "partial_rotary_factor")
"""Rotary parameters that this writer knows. A config that sets any other is refused."""
NO_VOCABULARY = "no_vocab"
"""llama.cpp's tokenizer type for a file without tokenizer, which takes token ids as input."""
NO_ROPE_STEP = 4
"""llama.cpp leaves rotary positions out of every fourth layer of a SmolLM3."""


@dataclass(frozen=True)
class GgufArchitecture:
    """llama.cpp's counterpart of an architecture of transformers.

    name: in the file. period: each ``period``-th layer has full attention, all others a window; 0 if llama.cpp computes no windows.
    permuted: weights of queries and keys are reordered for interleaved rotary positions. norm_plus_one: norms are saved as 1 + weight.
    scaled_by_width: a model with this number of layers (Gemma 27B) has its scores divided by the square root of hidden_size / heads,
        all other sizes by the square root of head_dim. GGUF files do not contain the scale.
    """

    name: str
    period: int = 0
    permuted: bool = False
    norm_plus_one: bool = False
    scaled_by_width: int = 0

    def score_width(self, config: Any) -> int:
        """Number whose square root divides the scores in llama.cpp."""
        if config.num_hidden_layers == self.scaled_by_width:
            return int(config.hidden_size // config.num_attention_heads)
        return int(config.head_dim)


ARCHITECTURES: dict[str, GgufArchitecture] = {
    "llama": GgufArchitecture("llama", permuted=True),
    "mistral": GgufArchitecture("llama", permuted=True),
    "ministral": GgufArchitecture("llama", permuted=True),
    "smollm3": GgufArchitecture("smollm3", permuted=True),
    "qwen2": GgufArchitecture("qwen2"),
    "qwen3": GgufArchitecture("qwen3"),
    "phi3": GgufArchitecture("phi3"),
    "gemma": GgufArchitecture("gemma", norm_plus_one=True),
    "gemma2": GgufArchitecture("gemma2", period=2, norm_plus_one=True, scaled_by_width=46),
    "gemma3_text": GgufArchitecture("gemma3", period=6, norm_plus_one=True, scaled_by_width=62),
}
"""transformers' model type -> llama.cpp's architecture, for the decoders that this module writes."""


def gguf_refusal(config: Any) -> str | None:
    """Why llama.cpp's outputs would differ from a stock model with this config, as a sentence. ``None`` if they are the same."""
    known = ARCHITECTURES.get(config.model_type)
    if known is None:
        listed = ", ".join(sorted(ARCHITECTURES))
        return f"GGUF files are written for the architectures {listed}, and the native twin is a {config.model_type!r}."
    if not config.architectures[0].endswith("ForCausalLM"):
        return f"llama.cpp generates text, and a {config.architectures[0]} does not."
    width, layers = getattr(config, "sliding_window", None), config.num_hidden_layers
    types = config.__dict__.get("layer_types") or [SLIDING if width is not None else FULL] * layers
    expected = [FULL if not known.period or (index + 1) % known.period == 0 else SLIDING for index in range(layers)]
    odd = next((index for index in range(layers) if types[index] != expected[index]), None)
    if odd is not None and not known.period:
        return (
            f"Layer {odd} has a window of {width} tokens, and llama.cpp computes none in the architecture {known.name!r}: after {width} "
            "tokens it would silently attend to everything."
        )
    if odd is not None:
        has = "a window" if types[odd] == SLIDING else "full attention"
        return f"Layer {odd} has {has}, and llama.cpp gives every layer of {known.name!r} a window except each {known.period}th."
    return _rotary_refusal(config) or _other_refusal(config)


def _rope(config: Any) -> dict[str, Any]:
    """The rotary parameters of layers with full attention."""
    rope: dict[str, Any] = config.rope_parameters or {}
    full: dict[str, Any] = rope.get(FULL, rope)
    return full


def _rotary_refusal(config: Any) -> str | None:
    rope = _rope(config)
    kind = rope.get("rope_type", "default")
    allowed = {"default", "linear"} if config.model_type == "gemma3_text" else {"default", "linear", "yarn"}
    unsupported = sorted(name for name, value in rope.items() if name not in SIMPLE and value is not None)
    if kind not in allowed or unsupported:
        said = f"{unsupported[0]}={rope[unsupported[0]]}" if unsupported else f"rope_type={kind!r}"
        how = " (convert with --positions rope:linear)" if kind == "yarn" and not unsupported else ""
        return f"The rotary positions have {said}, which this GGUF writer does not know; expected {' or '.join(sorted(allowed))}{how}."
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return f"Rotary positions turn {rope['partial_rotary_factor']:.0%} of layer 0's heads, which this GGUF writer does not know."
    near = (config.rope_parameters or {}).get(SLIDING)
    if near is not None and (near.get("rope_type", "default"), near.get("rope_theta")) != ("default", 10000.0):
        return "Windowed layers have other rotary positions than the base of 10,000 that llama.cpp gives them."
    return None


def _other_refusal(config: Any) -> str | None:
    if config.model_type == "smollm3":
        expected = [int((index + 1) % NO_ROPE_STEP != 0) for index in range(config.num_hidden_layers)]
        odd = next((index for index, rotary in enumerate(config.no_rope_layers) if rotary != expected[index]), None)
        if odd is not None:
            return f"Layer {odd} {'has' if config.no_rope_layers[odd] else 'has no'} rotary positions, unlike in llama.cpp's smollm3."
    scaled = getattr(config, "query_pre_attn_scalar", None)
    if scaled is not None and scaled != (width := ARCHITECTURES[config.model_type].score_width(config)):
        return f"Scores are scaled by {scaled}, and llama.cpp scales those of {config.num_hidden_layers} layers by {width}."
    caps = [getattr(config, name, None) for name in ("attn_logit_softcapping", "final_logit_softcapping")]
    if config.model_type == "gemma2" and None in caps:
        return "Scores or logits have no cap, and llama.cpp always caps those of a gemma2."
    if config.model_type == "gemma3_text" and any(cap is not None for cap in caps):
        return "Scores or logits have a cap, and llama.cpp caps none of a gemma3."
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    usual = "gelu_pytorch_tanh" if config.model_type.startswith("gemma") else "silu"
    return None if activation == usual else f"Layer 0 has the activation {activation!r}, and llama.cpp's has {usual!r}."


@quiet_libraries()
def export_gguf(
    model: str | Path, destination: str | Path, *, overwrite: bool = False, revision: str | None = None, token: str | bool | None = None
) -> ExportReport:
    """Write a long decoder as a GGUF file for llama.cpp. With its tokenizer; the file is read back.

    llama.cpp must compute the same as the model's native twin, so only full attention and the windows of Gemma 2 and Gemma 3 are written.

    Args:
        model: the folder of a long checkpoint, or a Hub repository id.
        destination: a folder that does not exist yet: model.gguf and a report.
        overwrite: replace an existing folder, once the new one is complete.
        revision, token: of a Hub repository.

    Raises:
        MissingExtraError: the package ``gguf`` is not installed.
        ExportError: the model has no native twin, or llama.cpp would compute it differently; the message gives the reason.
        CheckpointError, DestinationExistsError: the source cannot be read, or the destination must not be written.
    """
    with needs_extra("gguf"):
        import gguf
    source, target = open_for_writing(model, destination, overwrite=overwrite, revision=revision, token=token)
    plan = plan_twin(source)
    refuse_adapter(source)
    if (reason := gguf_refusal(plan.config)) is not None:
        raise ExportError(f"{source.name!r} has a native twin, but no GGUF file: {reason}")
    tokenizer = _tokenizer(source.folder, plan.config)
    names = _names(plan)

    result = ResultInfo(target, plan.architecture.source_class, "transformers", plan.new_length, name=str(destination))
    with staged_folder(target, needed_bytes=plan.total_bytes + 2**24, overwrite=overwrite) as stage:
        writer = gguf.GGUFWriter(stage / FILE, ARCHITECTURES[plan.config.model_type].name)
        _write_hyperparameters(writer, plan)
        for add, values in tokenizer.items():
            getattr(writer, add)(*values)
        written = [tensor for tensor in plan.tensors if tensor.new_shape is not None]
        for tensor in written:
            empty, kind = _packed(torch.empty(tensor.new_shape or (), dtype=tensor.dtype, device="meta"))
            dtype: Any = np.dtype(str(empty.dtype).removeprefix("torch."))
            writer.add_tensor_info(names[tensor.name], empty.shape, dtype, empty.nbytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in written:  # one in memory at a time
            writer.write_tensor_data(_packed(_in_llama_cpp(plan, tensor.name, tensor_values(plan, tensor)))[0].numpy())
        writer.close()
        write_json(stage / "config.json", json.loads(plan.config.to_json_string()))
        files = with_report(["config.json", FILE, *add_source_files(source, result, stage)], GGUF_REPORT)
        checks = [_check_tensors(plan, stage / FILE, names), _check_tokenizer(stage / FILE, tokenizer)]
        require_passed(checks)
        report = ExportReport(
            target, "gguf", plan.architecture.source_class, ("tokens",), ("logits",), 1, plan.new_length, None, tuple(checks), files,
            (stage / FILE).stat().st_size, versions("gguf"), text="the written file",
        )  # fmt: skip
        introduction = (
            f"The long model as a GGUF file for llama.cpp, for inputs of up to {plan.new_length:,} tokens, made by "
            f"`longattn export --format gguf` from {origin_of(source.name, source.folder)}."
        )
        write_report(stage, source, result, report, GGUF_REPORT, introduction=introduction)
    return report


def _write_hyperparameters(writer: Any, plan: TwinPlan) -> None:
    config = plan.config
    rope, known = _rope(config), ARCHITECTURES[config.model_type]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(short_name(plan.source))
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(plan.new_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    if rope.get("rope_type", "default") != "default":
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(float(rope["factor"]))
        if rope.get("original_max_position_embeddings") is not None:
            writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
    if known.period:
        writer.add_sliding_window(config.sliding_window)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, name, None) is not None:
            getattr(writer, f"add_{name}")(float(getattr(config, name)))


def _names(plan: TwinPlan) -> dict[str, str]:
    """Name of every tensor of the twin -> its name in the file."""
    import gguf

    known = ARCHITECTURES[plan.config.model_type].name
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == known)
    table = gguf.get_tensor_name_map(number, plan.config.num_hidden_layers)
    names = {}
    for tensor in plan.tensors:
        if tensor.new_shape is None:
            continue
        name = table.get_name(tensor.name, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ExportError(f"The gguf package knows no name for {tensor.name!r} of the architecture {known!r}; install a newer gguf.")
        names[tensor.name] = name
    return names


def _in_llama_cpp(plan: TwinPlan, name: str, values: Tensor) -> Tensor:
    """The values of a tensor as llama.cpp expects them."""
    known, config = ARCHITECTURES[plan.config.model_type], plan.config
    if known.norm_plus_one and name.endswith("norm.weight"):
        return values.float() + 1
    if known.permuted and (heads := _heads(name, config)):
        halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        return halves.transpose(1, 2).reshape(values.shape)
    return values


def _heads(name: str, config: Any) -> int:
    """Number of heads of a query or key projection; 0 for any other tensor."""
    if ".q_proj." in name:
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if ".k_proj." in name else 0


def _packed(values: Tensor) -> tuple[Tensor, Any]:
    """The values in a dtype that numpy supports, and their type in the file. bfloat16 becomes bytes, vectors float32."""
    from gguf import GGMLQuantizationType as Kind

    if values.dim() < 2:
        return values.float(), Kind.F32
    if values.dtype == torch.bfloat16:
        return values.contiguous().view(torch.uint8), Kind.BF16
    return values.contiguous(), Kind.F16 if values.dtype == torch.float16 else Kind.F32


def _check_tensors(plan: TwinPlan, file: Path, names: Mapping[str, str]) -> Check:
    """Read every tensor back, and compare it with the twin's."""
    from gguf import GGUFReader

    in_file = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    wrong = sorted({*names.values()} ^ in_file.keys())
    for tensor in plan.tensors:
        if tensor.new_shape is None or names[tensor.name] not in in_file:
            continue
        read = in_file[names[tensor.name]]
        expected, kind = _packed(_in_llama_cpp(plan, tensor.name, tensor_values(plan, tensor)))
        if read.tensor_type != kind or not np.array_equal(read.data, expected.numpy()):
            wrong.append(tensor.name)
    detail = f"{len(in_file)} tensors read back, equal to the native twin's"
    if wrong:
        detail = f"{len(wrong)} tensors differ from the native twin's, the first is {wrong[0]}"
    return Check("tensors", FAILED if wrong else PASSED, detail, {"tensors": len(in_file), "wrong": wrong[:20]})


def _check_tokenizer(file: Path, tokenizer: Mapping[str, tuple[Any, ...]]) -> Check:
    """Read the vocabulary back, and compare it with the tokenizer's."""
    from gguf import GGUFReader

    if "add_token_list" not in tokenizer:
        return Check("tokenizer", PASSED, "the checkpoint has no tokenizer, and neither has the file")
    fields = GGUFReader(file).fields
    lists = {"add_token_list": "tokens", "add_token_merges": "merges", "add_token_types": "token_type", "add_token_scores": "scores"}
    wrong = [
        key
        for add, key in lists.items()
        if add in tokenizer and not np.array_equal(fields[f"tokenizer.ggml.{key}"].contents(), tokenizer[add][0])
    ]
    detail = f"{len(tokenizer['add_token_list'][0])} tokens read back" + (f", but {wrong[0]} differ" if wrong else "")
    return Check("tokenizer", FAILED if wrong else PASSED, detail)


# The tokenizer, from its tokenizer.json: byte-level BPE as llama.cpp's "gpt2", SentencePiece's BPE with byte fallback as its "llama".

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
PATTERNS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
}
"""Regular expression of the pre-tokenizer for byte-level BPE -> llama.cpp's name for it."""


def _tokenizer(folder: Path, config: Any) -> dict[str, tuple[Any, ...]]:
    """Methods of ``GGUFWriter`` -> their arguments, for the tokenizer in ``folder``.

    Raises:
        ExportError: the tokenizer is not BPE, has a pre-tokenizer that is not in :data:`PATTERNS`, or has more ids than embeddings exist.
    """
    loaded = load_tokenizer(folder)
    if loaded is None:
        return {"add_tokenizer_model": (NO_VOCABULARY,)}
    backend = getattr(loaded, "backend_tokenizer", None)
    described: dict[str, Any] = {} if backend is None else json.loads(backend.to_str())
    model = described.get("model") or {}
    if model.get("type") != "BPE":
        raise ExportError(
            f"llama.cpp's tokenizers here are of byte-pair encoding, and this one is a {model.get('type') or type(loaded).__name__!r}; "
            "export the native twin (--format native)."
        )
    vocabulary = {**model["vocab"], **loaded.get_vocab()}
    if max(vocabulary.values()) >= config.vocab_size:
        raise ExportError(
            f"The tokenizer has ids up to {max(vocabulary.values())}, but the model has {config.vocab_size} embeddings; "
            "give its own tokenizer."
        )
    special = {token["id"]: token["special"] for token in described.get("added_tokens", [])}
    pieces = {number: piece for piece, number in vocabulary.items()}
    tokens = [pieces.get(number, f"[PAD{number}]") for number in range(config.vocab_size)]
    fallback = bool(model.get("byte_fallback"))

    def kind(number: int) -> int:
        if number not in pieces:
            return UNUSED
        if number in special:
            return UNKNOWN if pieces[number] == model.get("unk_token") else CONTROL if special[number] else USER_DEFINED
        return BYTE if fallback and re.fullmatch("<0x..>", pieces[number]) else NORMAL

    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    fields: dict[str, tuple[Any, ...]] = {"add_token_list": (tokens,), "add_token_types": ([*map(kind, range(len(tokens)))],)}
    if fallback:
        ranks = {"".join(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        fields |= {
            "add_tokenizer_model": ("llama",),
            "add_token_scores": ([-float(ranks.get(piece, len(merges))) for piece in tokens],),
            "add_add_space_prefix": (_prepends_space(described),),
        }
    else:
        fields |= {"add_tokenizer_model": ("gpt2",), "add_tokenizer_pre": (_splitting(described),), "add_token_merges": (merges,)}
    ids = loaded("a")["input_ids"]
    for name in ("bos", "eos"):
        number = getattr(loaded, f"{name}_token_id", None)
        if number is not None:
            fields[f"add_{name}_token_id"] = (number,)
            fields[f"add_add_{name}_token"] = (ids[0 if name == "bos" else -1] == number,)
    if loaded.pad_token_id is not None:
        fields["add_pad_token_id"] = (loaded.pad_token_id,)
    if loaded.unk_token_id is not None:
        fields["add_unk_token_id"] = (loaded.unk_token_id,)
    template = getattr(loaded, "chat_template", None)
    return {**fields, **({"add_chat_template": (template,)} if isinstance(template, str) else {})}


def _parts(described: Mapping[str, Any], part: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, which is a sequence or a single step."""
    part_values = described.get(part) or {}
    return list(part_values.get("normalizers") or part_values.get("pretokenizers") or ([part_values] if part_values else []))


def _prepends_space(described: Mapping[str, Any]) -> bool:
    steps = [*_parts(described, "normalizer"), *_parts(described, "pre_tokenizer")]
    kinds = {step.get("type") for step in steps if step.get("type") != "Metaspace" or step.get("prepend_scheme") != "never"}
    return not kinds.isdisjoint(("Prepend", "Metaspace"))


def _splitting(described: Mapping[str, Any]) -> str:
    """llama.cpp's name of the pre-tokenizer for byte-level BPE.

    Raises:
        ExportError: this module knows no name for it.
    """
    steps = _parts(described, "pre_tokenizer")
    patterns = [step["pattern"].get("Regex", "") for step in steps if step.get("type") == "Split"]
    kinds = [step.get("type") for step in steps]
    if not patterns and kinds == ["ByteLevel"]:
        return "gpt-2"
    if not patterns and kinds == ["Digits", "ByteLevel"]:
        return "smollm"
    if len(patterns) == 1 and patterns[0] in PATTERNS:
        return PATTERNS[patterns[0]]
    raise ExportError(
        "The tokenizer splits texts in a way that this GGUF writer has no name for in llama.cpp; "
        "export the native twin (--format native) and convert it with llama.cpp's convert_hf_to_gguf.py."
    )
