"""How large the tensors are that a computation makes."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """Notes the storage of the largest tensor that an operation returns, and the number of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = self.bytes = self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                stored = x.untyped_storage().nbytes()
                self.bytes = max(self.bytes, stored)
                self.elements = max(self.elements, stored // x.element_size())
        return result
