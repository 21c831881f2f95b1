"""The arguments of an op as a NamedTuple, taken apart by what its fields are said to be.

Autograd and ``torch.library`` know arguments by their places, tensors apart from the rest. Which
place is whose is said here once, by the names of the fields, so that one more shifts none.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any, Callable, Generic, Mapping, Optional, Sequence, Tuple, TypeVar

from torch import Tensor

Arguments = TypeVar("Arguments", bound=Tuple[Any, ...])
Tensors = Tuple[Optional[Tensor], ...]
# Of an annotation, what a schema of torch.library says.
_TYPES = {"str": "str", "torch.dtype": "ScalarType"}


class Fields(Generic[Arguments]):
    """The fields of a NamedTuple whose first are tensors or None, and the others options.

    ``tensors`` and ``options`` give those of one, or of a sequence in its order.
    """

    tensors: Callable[[Any], Tensors]
    options: Callable[[Any], tuple[Any, ...]]

    def __init__(self, kind: type[Arguments]) -> None:
        self._kind: Any = kind
        annotations = kind.__annotations__.values()
        self._annotations = [str(getattr(each, "__forward_arg__", each)) for each in annotations]
        are = ["Tensor" in each for each in self._annotations]
        count = sum(are)
        if not all(are[:count]):
            raise TypeError(f"{kind.__name__}: expected its tensors before all else, found {are}")
        self.count = len(are)
        self._names = kind._fields  # type: ignore[attr-defined]
        self._names_of_tensors = self._names[:count]
        self.tensors = itemgetter(slice(count))
        self.options = itemgetter(slice(count, None))

    @property
    def schema(self) -> str:
        """The fields as the arguments of an operator of ``torch.library``.

        One with a default is left out of the graphs that torch's compiler keeps between processes,
        so that graphs of before there was the field stay right.
        """
        arguments = map(_argument, self._kind._fields, self._annotations)
        defaults = self._kind._field_defaults
        return ", ".join(
            f"{each}={defaults[name]}" if name in defaults else each
            for name, each in zip(self._kind._fields, arguments)
        )

    def unpack(self, given: Arguments) -> tuple[Tensors, tuple[Any, ...]]:
        """The tensors, and the options."""
        return self.tensors(given), self.options(given)

    def pack(self, tensors: Sequence[Any], options: Sequence[Any]) -> Arguments:
        """What :meth:`unpack` took apart."""
        packed: Arguments = self._kind(*tensors, *options)
        return packed

    def split(self, arguments: Sequence[Any]) -> tuple[Arguments, Sequence[Any]]:
        """The fields out of a sequence that begins with them, and the rest of it."""
        return self._kind(*arguments[: self.count]), arguments[self.count :]

    def keep(self, ctx: Any, given: Arguments, *others: Tensor | None) -> None:
        """Keep arguments for the backward pass of an autograd function, and tensors with them."""
        tensors, ctx.options = self.unpack(given)
        ctx.save_for_backward(*tensors, *others)

    def kept(self, ctx: Any) -> tuple[Arguments, tuple[Any, ...]]:
        """What :meth:`keep` kept: the arguments, and the others."""
        # Once: each look unpacks all of them again.
        saved = ctx.saved_tensors
        return self.pack(self.tensors(saved), ctx.options), self.options(saved)

    def gradients(self, found: Mapping[str, Tensor | None]) -> Tensors:
        """One for each field in its place; None for an option, and where none was found."""
        return (*map(found.get, self._names),)

    def gradients_of_tensors(self, found: Mapping[str, Tensor | None]) -> Tensors:
        """The same of the tensors alone."""
        return (*map(found.get, self._names_of_tensors),)


def _argument(name: str, annotation: str) -> str:
    kind, *optional = annotation.split(" | ")
    return f"{_TYPES.get(kind, kind)}{'?' if optional else ''} {name}"
