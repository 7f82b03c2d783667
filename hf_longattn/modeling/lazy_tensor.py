"""Stand-ins for tensors that are computed when they are read."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

OPERATORS = (
    "abs add and array bool contains eq float ge getitem gt int invert iter le len lt matmul mul ne neg or pow radd "
    "rand rmatmul rmul ror rpow rsub rtruediv rxor sub truediv xor"
)
"""Names of the operators of tensors. Python looks up their methods in the class, not by ``__getattr__``."""


class LazyTensor:
    """Base class of objects that models use like a tensor.

    A subclass defines the attributes that it knows without computing the tensor, such as ``shape``. Every other
    attribute, every operator and every function of torch computes the tensor first.
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
    """A special method that computes the tensor, and calls the tensor's method ``name``."""
    return lambda self, *args, **kwargs: getattr(self.dense(), name)(*computed(args), **kwargs)


for _name in OPERATORS.split():
    setattr(LazyTensor, f"__{_name}__", _operator(f"__{_name}__"))
