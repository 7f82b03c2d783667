"""Stand-ins for tensors that are computed when they are read."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

OPERATORS = (
    "abs add and array bool contains eq float ge getitem gt int invert iter le len lt matmul mul ne neg or pow radd "
    "rand rmatmul rmul ror rpow rsub rtruediv rxor sub truediv xor"
)
"""Python's special methods of tensors, which Python looks up in the class."""


class LazyTensor:
    """Base class of objects that models use like a tensor.

    A subclass defines what it knows without computing the tensor, such as its shape. Every other attribute, operator
    and function of torch gets the tensor.
    """

    @abstractmethod
    def dense(self) -> Tensor:
        """The tensor."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copying and pickling look for methods of the object itself
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.dense(), name)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*computed(args), **computed(kwargs or {}))


def computed(value: Any) -> Any:
    """``value`` with tensors in place of lazy ones, also in lists, tuples and dicts."""
    if isinstance(value, LazyTensor):
        return value.dense()
    if isinstance(value, dict):
        return {name: computed(item) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(computed, value))
    return value


def _operator(name: str) -> Any:
    return lambda self, *args, **kwargs: getattr(self.dense(), name)(*computed(args), **kwargs)


for _name in OPERATORS.split():
    setattr(LazyTensor, f"__{_name}__", _operator(f"__{_name}__"))
