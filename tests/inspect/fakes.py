"""Small models, and graphs that look like theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hf_longattn.families as families
from tests.reference.small_models import long_config

WORDS = ["tree", "file", "node", "path", "line", "value", "name", "house", "river", "stone"]


def window(folder: Path, name: str = "window", **options: Any) -> Path:
    """Write a LongBertModel of two layers and 256 tokens with this mechanism into ``folder``."""
    config = long_config("bert", {"mechanism": name, **options}, num_hidden_layers=2, vocab_size=1000, max_position_embeddings=256)
    torch.manual_seed(0)
    families.LongBertModel(config).save_pretrained(folder)
    return folder


def graph(file: Path, *, window: int | None, pooled: bool = False) -> Path:
    """An ONNX file that adds to every real token's vector the mean of those around it, or of all.

    pooled: whether it returns the mean of a text's vectors, too, with length 1.
    """
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    table = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0)).numpy()
    node, tensors = (
        onnx.helper.make_node,
        [onnx.numpy_helper.from_array(array, name) for name, array in (("table", table), ("last", np.array([2])))],
    )
    nodes = [
        node("Gather", ["table", "input_ids"], ["vectors"]),
        node("Cast", ["attention_mask"], ["real"], to=onnx.TensorProto.FLOAT),
        node("Unsqueeze", ["real", "last"], ["column"]),
        node("Mul", ["vectors", "column"], ["rows"]),
        node("Transpose", ["rows"], ["columns"], perm=[0, 2, 1]),
    ]
    if window is None:
        nodes += [node("ReduceMean", ["columns"], ["means"], keepdims=1)]
    else:
        sizes = {"kernel_shape": [window + 1], "pads": [window // 2] * 2, "count_include_pad": 1}
        nodes += [node("AveragePool", ["columns"], ["means"], **sizes)]
    nodes += [node("Add", ["columns", "means"], ["sums"]), node("Transpose", ["sums"], ["last_hidden_state"], perm=[0, 2, 1])]
    outputs = [onnx.helper.make_tensor_value_info("last_hidden_state", onnx.TensorProto.FLOAT, ["batch", "tokens", 8])]
    if pooled:
        tensors.append(onnx.numpy_helper.from_array(np.array([1]), "first"))
        nodes += [
            node("Mul", ["last_hidden_state", "column"], ["real_states"]),
            node("ReduceSum", ["real_states", "first"], ["sum"], keepdims=0),
            node("LpNormalization", ["sum"], ["sentence_embedding"]),
        ]
        outputs.append(onnx.helper.make_tensor_value_info("sentence_embedding", onnx.TensorProto.FLOAT, ["batch", 8]))
    names = ("input_ids", "attention_mask")
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["batch", "tokens"]) for name in names]
    body = onnx.helper.make_graph(nodes, "local", inputs, outputs, tensors)
    onnx.save(onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), file)
    return file
