"""llama.cpp without a server, by the functions that xllamacpp's library exports, and its converter.

The structures are those of ``llama.h`` in the release that ``scripts.dev.real`` pins by its SHA-256.

    python -m scripts.dev.benchmarks.rivals.llama CHECKPOINT TYPE OUTPUT  # f32, f16 or q8_0
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from scripts.dev.benchmarks.rivals.plan import arguments
from scripts.dev.real import LLAMA_CPP

F32, F16, FLASH, NO_POOLING, ERROR, UBATCH = 0, 1, 1, 0, 4, 512
"""Types of a cache, two values of options, the level of errors, and the default of ``n_ubatch``."""


class ModelParams(ctypes.Structure):
    """``llama_model_params``."""

    _fields_ = (
        *((name, c_void_p) for name in ("devices", "tensor_buft_overrides")),
        *((name, c_int32) for name in ("n_gpu_layers", "split_mode", "load_mode", "lazy_mode", "main_gpu")),
        *((name, c_void_p) for name in ("tensor_split", "callback", "callback_data", "kv_overrides")),
        *((name, c_bool) for name in ("vocab_only", "check_tensors", "extra_bufts", "no_host", "no_alloc", "mtp")),
    )


class ContextParams(ctypes.Structure):
    """``llama_context_params``."""

    _fields_ = (
        *((name, c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq", "n_outputs_max")),
        *((name, c_uint32) for name in ("n_outputs_max_per_seq", "n_threads", "n_threads_batch")),
        *((name, c_int32) for name in ("ctx_type", "rope_scaling_type", "pooling_type", "attention_type")),
        ("flash_attn_type", c_int32),
        *((name, c_float) for name in ("rope_freq_base", "rope_freq_scale", "yarn_ext", "yarn_attn", "yarn_fast")),
        *(("yarn_slow", c_float), ("yarn_orig_ctx", c_uint32), ("defrag_thold", c_float)),
        *((name, c_void_p) for name in ("cb_eval", "cb_eval_user_data")),
        *(("type_k", c_int32), ("type_v", c_int32), ("moe_cache_size", c_size_t)),
        *((name, c_void_p) for name in ("abort_callback", "abort_callback_data")),
        *((name, c_bool) for name in ("embeddings", "offload_kqv", "no_perf", "op_offload", "swa_full", "kv_unified")),
        *(("samplers", c_void_p), ("n_samplers", c_size_t), ("ctx_other", c_void_p)),
    )


class Batch(ctypes.Structure):
    """``llama_batch``."""

    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", c_void_p),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


LOG = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)


@LOG
def log_errors(level: int, text: bytes, _: int) -> None:
    """Write messages of the level of errors."""
    if level >= ERROR:
        sys.stderr.write(text.decode(errors="replace"))


def library() -> Any:
    """The functions of llama.cpp."""
    found = ctypes.CDLL(str(LLAMA_CPP / "xllamacpp" / "xllamacpp.abi3.so"))
    for name, result, parameters in (
        ("llama_model_default_params", ModelParams, ()),
        ("llama_context_default_params", ContextParams, ()),
        ("llama_model_load_from_file", c_void_p, (c_char_p, ModelParams)),
        ("llama_init_from_model", c_void_p, (c_void_p, ContextParams)),
        ("llama_free", None, (c_void_p,)),
        ("llama_get_memory", c_void_p, (c_void_p,)),
        ("llama_memory_clear", None, (c_void_p, c_bool)),
        ("llama_batch_init", Batch, (c_int32, c_int32, c_int32)),
        ("llama_encode", c_int32, (c_void_p, Batch)),
        ("llama_decode", c_int32, (c_void_p, Batch)),
        ("llama_synchronize", None, (c_void_p,)),
        ("llama_get_embeddings_ith", POINTER(c_float), (c_void_p, c_int32)),
        ("llama_get_logits_ith", POINTER(c_float), (c_void_p, c_int32)),
        ("llama_model_n_embd", c_int32, (c_void_p,)),
        ("llama_model_get_vocab", c_void_p, (c_void_p,)),
        ("llama_vocab_n_tokens", c_int32, (c_void_p,)),
        ("llama_print_system_info", c_char_p, ()),
        ("llama_log_set", None, (LOG, c_void_p)),
    ):
        function = getattr(found, name)
        function.restype, function.argtypes = result, parameters
    defaults = found.llama_context_default_params()
    if (defaults.n_ctx, defaults.n_ubatch, defaults.flash_attn_type, defaults.n_samplers) != (512, UBATCH, -1, 0):
        raise SystemExit("error: the structures of this llama.cpp are not those that were written down")
    found.llama_log_set(log_errors, None)
    found.llama_backend_init()
    return found


def opened(file: Path, decoder: bool, threads: int) -> Callable[[Any], Callable[[], Any]]:
    """A function from the token ids of a text to a function that reads them and returns the outputs.

    Flash attention is on. An encoder reads a text in one physical batch, since it needs all tokens at once; a decoder
    in batches of llama.cpp's default. Keys and values are in F32 for weights in F32, and in F16 otherwise.
    """
    llama = library()
    model = llama.llama_model_load_from_file(str(file).encode(), llama.llama_model_default_params())
    if not model:
        raise SystemExit(f"error: llama.cpp cannot load {file}")
    contexts: list[int] = []

    def at(ids: Any) -> Callable[[], Any]:
        length = ids.shape[1]
        while contexts:
            llama.llama_free(contexts.pop())
        params = llama.llama_context_default_params()
        params.n_ctx = params.n_batch = length
        params.n_ubatch = min(UBATCH, length) if decoder else length
        params.n_seq_max, params.n_threads, params.n_threads_batch = 1, threads, threads
        params.type_k = params.type_v = F32 if file.stem == "f32" else F16
        params.flash_attn_type, params.pooling_type = FLASH, NO_POOLING
        params.embeddings, params.swa_full, params.no_perf = not decoder, False, True
        context = llama.llama_init_from_model(model, params)
        if not context:
            raise SystemExit(f"error: llama.cpp makes no context of {length} tokens")
        contexts.append(context)
        batch = llama.llama_batch_init(length, 0, 1)
        batch.n_tokens = length
        for index, token in enumerate(ids[0].tolist()):
            batch.token[index], batch.pos[index] = token, index
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            batch.logits[index] = not decoder or index == length - 1

        def run() -> Any:
            if decoder:
                llama.llama_memory_clear(llama.llama_get_memory(context), False)
            if code := (llama.llama_decode if decoder else llama.llama_encode)(context, batch):
                raise SystemExit(f"error: llama.cpp returned {code}")
            llama.llama_synchronize(context)
            if decoder:
                width = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
                return np.ctypeslib.as_array(llama.llama_get_logits_ith(context, -1), (1, width))
            width = llama.llama_model_n_embd(model)
            return np.ctypeslib.as_array(llama.llama_get_embeddings_ith(context, 0), (length, width))

        return run

    return at


def without_vocabulary(writer: Any, settings: dict[str, Any], types: bool) -> None:
    """Write that there is no tokenizer, since models with random weights have none."""
    writer.add_tokenizer_model("none")
    if types:
        writer.add_token_type_count(settings.get("type_vocab_size", 1))


def convert(checkpoint: Path, kind: str, output: Path) -> None:
    """A checkpoint of transformers as a GGUF file, by llama.cpp's converter.

    A config of ModernBERT that transformers 5.24 saves has ``norm_eps``. llama.cpp needs ``layer_norm_eps``.
    """
    sys.path[:0] = [str(LLAMA_CPP), str(LLAMA_CPP / "gguf-py")]
    import convert_hf_to_gguf  # type: ignore[import-not-found]
    from conversion import bert, gemma  # type: ignore[import-not-found]

    def of_bert(self: Any) -> None:
        without_vocabulary(self.gguf_writer, self.hparams, True)
        self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])

    def of_modernbert(self: Any) -> None:
        without_vocabulary(self.gguf_writer, self.hparams, False)

    def of_gemma(self: Any) -> None:
        without_vocabulary(self.gguf_writer, self.hparams, False)
        self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])

    write_parameters = bert.ModernBertModel.set_gguf_parameters

    def parameters_of_modernbert(self: Any) -> None:
        self.hparams.setdefault("layer_norm_eps", self.hparams["norm_eps"])
        self.hparams.setdefault("global_attn_every_n_layers", 3)
        write_parameters(self)

    bert.BertModel.set_vocab, bert.ModernBertModel.set_vocab = of_bert, of_modernbert
    bert.ModernBertModel.set_gguf_parameters = parameters_of_modernbert
    for value in vars(gemma).values():
        if "set_vocab" in getattr(value, "__dict__", {}):
            value.set_vocab = of_gemma
    sys.argv = ["convert_hf_to_gguf.py", str(checkpoint), "--outfile", str(output), "--outtype", kind]
    convert_hf_to_gguf.main()


if __name__ == "__main__":
    folder, dtype, file = arguments(__doc__, "checkpoint", "type", "output")
    convert(Path(folder), dtype, Path(file))
