"""ONNX graphs with memory linear in the length: attention and feed-forward networks in blocks.

PyTorch writes attention as two products with a softmax between them, over all pairs of tokens.
:func:`divide_attention` writes a loop over blocks of queries, sized when the graph runs, so a runtime holds the scores
of one block. All operators are in opset 18.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F
from onnx_ir.tape import Tape
from torch.overrides import TorchFunctionMode

MARK = "hf_longattn::Attention"
"""Domain and name of the node that stands for an attention while a model is traced. No written file has it."""
SDPA = F.scaled_dot_product_attention

WHOLE_SCORES = 1 << 22
"""Maximum scores, over all heads and batch rows, that are computed as one block. 12 heads reach it at 591 tokens."""
BLOCK_SCORES = 1 << 21
"""Scores of a block in longer inputs, 8 MiB in float32. A block belongs to one head."""
BLOCK_TOKENS = 1024
"""Maximum tokens of a block of a feed-forward network."""
ELEMENTWISE = {"Add", "Div", "Erf", "Gelu", "Mul", "Pow", "Relu", "Sigmoid", "Split", "Tanh"}
"""Operators of activation functions and gates. A Split separates the halves of a gate."""


class Nodes(Tape):
    """New nodes, with the operators as methods: ``nodes.Add(x, y)``, as in an opset of onnxscript."""

    def __getattr__(self, operator: str) -> Any:
        return lambda *inputs, **attributes: self.op(operator, inputs, attributes)

    def ints(self, *values: int) -> Any:
        return self.Constant(value_ints=values)


class Loop(Nodes):
    """The nodes for one step of a loop, whose number is ``step``.

    A Loop, not a Scan: OpenVINO 2026.4 refuses a Scan that reads values from outside its body.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, scalar = name, ir.Shape([])
        self.step = ir.Value(name=f"{name}_step", type=ir.TensorType(ir.DataType.INT64), shape=scalar)
        self.goes_on = ir.Value(name=f"{name}_goes_on", type=ir.TensorType(ir.DataType.BOOL), shape=scalar)

    def stacked(self, op: Nodes, steps: Any, output: Any) -> Any:
        """Add the loop to ``op``. Returns the outputs of all ``steps`` along a new first axis."""
        outputs = [self.Identity(self.goes_on), output]
        for number, inner in enumerate(out for node in self.nodes for out in node.outputs):
            inner.name = f"{self.name}_{number}"  # names in a nested graph must differ from those around it
        body = ir.Graph([self.step, self.goes_on], outputs, nodes=self.nodes, name=self.name)
        return op.Loop(op.Squeeze(steps), op.Cast(op.Constant(value_int=1), to=ir.DataType.BOOL), body=body)


class MarkedAttention(TorchFunctionMode):
    """Context in which transformers' exporter traces an attention as one node, :data:`MARK`, whose inputs are query,
    key and value ``(B, H, N, D)``, and a mask of numbers to add if there is one."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        settings = kwargs or {}
        if function is not SDPA:
            return function(*args, **settings)
        assert not settings.get("is_causal")
        query, value = args[0], args[2]
        scale = settings.get("scale") or query.shape[3] ** -0.5
        inputs = [tensor for tensor in args if tensor is not None]
        shape = (*query.shape[:3], value.shape[3])
        return torch.onnx.ops.symbolic(MARK, inputs, {"scale": float(scale)}, dtype=query.dtype, shape=shape)


def divide_attention(model: ir.Model) -> None:
    """Compute every attention that :class:`MarkedAttention` marked in a loop over heads and blocks of queries.

    Queries of heads that share a key and value head are further rows of that head. A mask with one row for all queries
    becomes one more feature of the keys. A mask with a row for each query has N×N entries, as have its scores. Queries
    without a visible key get finite outputs.
    """
    domain, name = MARK.split("::")
    for node in list(model.graph):
        if (node.domain, node.op_type) != (domain, name):
            continue
        query, key, value, *mask = node.inputs
        op = Nodes()
        scaling = op.Constant(value_float=node.attributes["scale"].as_float())
        bias = mask[0] if mask else op.Constant(value_float=0.0)
        if mask and bias.shape[2] != 1:
            scores = op.Add(op.MatMul(op.Mul(query, scaling), op.Transpose(key, perm=[0, 1, 3, 2])), bias)
            out = op.MatMul(op.Softmax(scores, axis=-1), value)
        else:
            out = _attention_in_blocks(op, query, key, value, bias, scaling)
        model.graph.insert_before(node, op.nodes)
        node.outputs[0].replace_all_uses_with(out)
        model.graph.remove(node, safe=True)
    model.opset_imports.pop(domain, None)


def _attention_in_blocks(op: Nodes, query: Any, key: Any, value: Any, bias: Any, scaling: Any) -> Any:
    """Add the loops for one attention to ``op``. ``bias``: a number, or ``(B, H, 1, Nk)``, added to the scores."""
    heads, keys = op.ReduceProd(op.Shape(key, start=0, end=2)), op.Shape(key, start=2, end=3)
    rows = op.Div(op.ReduceProd(op.Shape(query, start=0, end=3)), heads)
    fits = op.LessOrEqual(op.Mul(op.Mul(heads, rows), keys), op.ints(WHOLE_SCORES))
    group = op.Where(fits, heads, op.ints(1))
    blocks, chosen = _divided(op, rows, op.Where(fits, rows, op.Max(op.Div(op.ints(BLOCK_SCORES), keys), op.ints(1))))
    bias = op.Expand(bias, op.Concat(op.Shape(key, start=0, end=2), op.ints(1), keys, axis=0))
    groups = op.Div(heads, group)
    sides = (query, rows), (key, keys), (value, keys), (bias, op.ints(1))
    q, k, v, bias = (
        op.Reshape(x, op.Concat(groups, group, count, op.Shape(x, start=3), axis=0)) for x, count in sides
    )

    outer, inner = Loop(f"{query.name}_heads"), Loop(f"{query.name}_queries")
    q, k, v, bias = (outer.Gather(x, outer.step) for x in (q, k, v, bias))
    k = outer.Concat(outer.Transpose(k, perm=[0, 2, 1]), bias, axis=1)
    q = inner.Mul(inner.Gather(q, chosen(inner), axis=1), scaling)
    # a feature of ones, for the bias
    q = inner.Pad(q, inner.ints(0, 0, 0, 0, 0, 1), inner.Constant(value_float=1.0))
    out = inner.MatMul(inner.Softmax(inner.MatMul(q, k), axis=-1), v)
    out = outer.Reshape(
        inner.stacked(outer, blocks, out), outer.Concat(group, outer.ints(-1), outer.Shape(v, start=2), axis=0)
    )
    out = outer.stacked(op, groups, outer.Slice(out, outer.ints(0), rows, outer.ints(1)))
    return op.Reshape(out, op.Concat(op.Shape(query, start=0, end=3), op.Shape(value, start=3), axis=0))


def divide_feed_forward(graph: ir.Graph) -> None:
    """Compute every feed-forward network in a loop over blocks of tokens: products with weights, and elementwise
    functions between them."""
    for last in filter(_projects, list(graph)):
        # Walk back from the last product, over elementwise functions, to the products that read the network's input.
        network, sources, waiting = {last}, set[ir.Value](), [last.inputs[0]]
        while waiting:
            node = waiting.pop().producer()
            if node is None or not (_projects(node) or node.op_type in ELEMENTWISE):
                sources.clear()  # no feed-forward network ends here
                break
            network.add(node)
            if _projects(node):
                sources.add(node.inputs[0])
            else:
                waiting += [x for x in node.inputs if x.const_value is None]
        inner = [value for node in network - {last} for value in node.outputs]
        is_read_elsewhere = any(use.node not in network for value in inner for use in value.uses())
        if len(sources) != 1 or is_read_elsewhere:
            continue

        # The loop: each step copies the network for one block of tokens.
        (source,) = sources
        op, body = Nodes(), Loop(f"{last.outputs[0].name}_feed_forward")
        tokens = op.ReduceProd(op.Shape(source, start=0, end=-1))
        out_features = op.Shape(last.inputs[1], start=1)
        blocks, chosen = _divided(op, tokens, op.ints(BLOCK_TOKENS))
        rows = op.Reshape(source, op.Concat(op.ints(1, -1), op.Shape(source, start=-1), axis=0))
        values = {source: body.Gather(rows, chosen(body), axis=1)}
        for node in (node for node in graph if node in network):
            inputs = [values.get(x, x) for x in node.inputs]
            copies = body.op_multi_out(node.op_type, inputs, node.attributes, num_outputs=len(node.outputs))
            values |= zip(node.outputs, copies, strict=True)
        out = body.stacked(op, blocks, values[last.outputs[0]])

        # The rows of all blocks, without those that the last block repeats, in the shape of the network's input.
        out = op.Reshape(out, op.Concat(op.ints(-1), out_features, axis=0))
        out = op.Slice(out, op.ints(0), tokens, op.ints(0))
        out = op.Reshape(out, op.Concat(op.Shape(source, start=0, end=-1), out_features, axis=0))
        graph.insert_before(last, op.nodes)
        last.outputs[0].replace_all_uses_with(out)
        graph.remove(network, safe=True)


def _projects(node: ir.Node) -> bool:
    """Whether a node multiplies hidden states ``(B, N, D)`` with weights."""
    if node.op_type != "MatMul":
        return False
    states, weights = node.inputs
    return states.shape is not None and len(states.shape) == 3 and weights.const_value is not None


def _divided(op: Nodes, count: Any, most: Any) -> tuple[Any, Callable[[Loop], Any]]:
    """The number of blocks of at most ``most`` rows, as equal as possible, and a function that adds the row numbers of
    a step's block.

    The last block repeats the last row.
    """
    one, zero = op.Constant(value_int=1), op.Constant(value_int=0)
    blocks = op.Div(op.Sub(op.Add(count, most), one), most)
    block = op.Div(op.Sub(op.Add(count, blocks), one), blocks)
    numbers, end = op.Range(zero, op.Squeeze(block), one), op.Sub(count, one)
    return blocks, lambda loop: loop.Min(loop.Add(loop.Mul(loop.step, block), numbers), end)
