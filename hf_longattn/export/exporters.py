"""transformers' exporters, and what they lack: a check that a program takes all sizes, and ONNX graphs in blocks.

Each exporter takes a module with the inputs and outputs of one graph, and writes it for all batch sizes and lengths.
An ONNX graph computes attention and feed-forward networks in blocks. OpenVINO's operator for attention does so itself.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.exporters import DynamoExporter, OnnxExporter, OpenVINOExporter

MIN_LENGTH = 2
"""Minimum tokens of a graph: PyTorch specialises on sizes of 0 and 1."""
MOST_TEXTS = 1 << 20
"""Maximum texts of a batch."""


class TorchGraphs(DynamoExporter):
    """Programs of torch.export.

    is_traced: whether there is a program, which a format may still fail to express.
    """

    is_traced = False

    def exported(
        self, module: nn.Module, example: dict[str, Tensor], max_length: int, opset: int | None = None
    ) -> Any:
        """The program for all batch sizes and lengths, which are axes 0 and 1 of its inputs.

        PyTorch infers the sizes: if they are given, release 2.15 reports violations of conditions that hold, such as
        n != 1 if n > 9.

        Raises:
            AssertionError: the program does not take all sizes.
        """
        axes = {
            0: torch.export.Dim.AUTO(min=1, max=MOST_TEXTS),
            1: torch.export.Dim.AUTO(min=MIN_LENGTH, max=max_length),
        }
        config: Any = self.config_class(dynamic=True, dynamic_shapes=dict.fromkeys(example, axes))
        if opset is not None:
            config.opset_version = opset
        return self.export(module, example, config).program

    def export_program(self, model: Any, sample_inputs: MutableMapping[str, Any], config: Any) -> Any:
        """Trace the model, and check the sizes that the program takes. The other exporters call this first."""
        program, metadata = super().export_program(model, sample_inputs, config)
        values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
        ranges = {str(symbol): limits for symbol, limits in program.range_constraints.items()}
        for name in sample_inputs:
            for axis, most in config.dynamic_shapes[name].items():
                limits = ranges.get(str(values[name].shape[axis]))
                if limits is None or limits.lower > MIN_LENGTH or limits.upper < most.max:
                    raise AssertionError(f"axis {axis} of {name} is not free")
        for part in program.graph_module.modules():
            if isinstance(part, torch.fx.GraphModule):
                for node in part.graph.nodes:
                    node.meta.pop("stack_trace", None)  # would contain local file names
        self.is_traced = True
        return program, metadata


class OnnxGraphs(OnnxExporter, TorchGraphs):
    """ONNX graphs with attention and feed-forward networks in blocks."""

    def exported(self, *args: Any, **kwargs: Any) -> Any:
        from . import onnx_blocks

        with onnx_blocks.MarkedAttention():
            model = super().exported(*args, **kwargs)
        onnx_blocks.divide_attention(model)
        onnx_blocks.divide_feed_forward(model.graph)
        return model

    @classmethod
    def save_program(cls, program: Any, path: Path) -> None:
        """Weights are in a file of their own, named as optimum's, which ONNX Runtime maps into memory in place of a
        copy."""
        from . import onnx_blocks

        onnx_blocks.ir.save(program, path, external_data=f"{path.name}_data")


class OpenVINOGraphs(OpenVINOExporter, TorchGraphs):
    """OpenVINO graphs, whose own attention is linear in memory."""


EXPORTERS: dict[str, Any] = {"onnx": OnnxGraphs, "openvino": OpenVINOGraphs, "torch": TorchGraphs}
"""Format of a graph -> its exporter."""
