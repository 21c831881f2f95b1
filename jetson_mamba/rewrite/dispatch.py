"""Functions that go past an autograd function."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, NamedTuple

from jetson_mamba.rewrite import nodes
from jetson_mamba.rewrite.edit import WAY_PAST, NotTaken
from jetson_mamba.rewrite.functions import known_function, parameters

if TYPE_CHECKING:
    from jetson_mamba.rewrite.draft import Draft


class Dispatch(NamedTuple):
    """In the function ``inside``, the call of ``call`` happens only under a condition.

    There it is the call of an autograd function ``Fn.apply``, of which second derivatives are
    taken by ``composed``, which has the parameters ``order``. Otherwise ``becomes`` is called, with
    every parameter of the function by name, all of which must be among ``parameters``. Without
    ``composed`` both are one op. ``{first}`` in ``condition`` is the function's first parameter,
    ``{given}`` are all of them by name.

    Where the function is not known, its own code runs, and with ``unchecked`` the op ``becomes``
    where that cannot.
    """

    inside: str
    call: str
    condition: str
    becomes: str
    parameters: tuple[str, ...]
    composed: str | None = None
    order: tuple[str, ...] = ()
    unchecked: bool = False

    @property
    def turn(self) -> int:
        """When it is made."""
        return WAY_PAST

    @property
    def known_by(self) -> str:
        """The function or class whose digest says whether the way past is taken."""
        return self.inside

    def concerns(self, source: bytes) -> bool:
        """Whether the function's name stands in the source."""
        return self.inside.encode() in source

    def find(self, draft: Draft) -> None:
        """Edit the function, if it is known."""
        op = self.becomes if self.unchecked else None
        function = known_function(draft, self.inside, self.parameters, op, self)
        if function is None:
            return
        calls = [
            node
            for node in ast.walk(function)
            if isinstance(node, ast.Call) and nodes.dotted(node.func) == self.call
        ]
        if len(calls) != 1:
            raise NotTaken(self.inside, f"it calls {self.call} {len(calls)} times, expected once")
        (call,) = calls
        names = parameters(function, self.inside)
        autograd_function = self.call.split(".")[0]
        composed = self._composed(call, names)
        applied = draft.ours(
            f"jetson_mamba.ops.twice_differentiable({autograd_function}, {composed}).apply"
        )
        given = ", ".join(f"{name}={name}" for name in names)
        condition = draft.ours(self.condition.format(first=names[0], given=given))
        otherwise = draft.ours(f"{self.becomes}({given})")
        start, end = draft.extent(call)
        draft.replace(start, start, "(")
        draft.write(call.func, applied)
        draft.substitute(call.func, nodes.expression(applied))
        draft.replace(end, end, f" if {condition} else {otherwise})")
        # The call itself stays a child: edits inside it are made on it as well.
        draft.substitute(
            call,
            nodes.conditional(nodes.expression(condition), call, nodes.expression(otherwise)),
        )
        draft.apply(call.lineno, self)

    def _composed(self, call: ast.Call, taken: list[str]) -> str:
        """What takes the arguments of the call in their order."""
        if call.keywords or any(isinstance(each, ast.Starred) for each in call.args):
            raise NotTaken(self.inside, f"it calls {self.call} by keywords")
        op, order = self.composed or self.becomes, self.order or self.parameters
        names: list[str] = []
        # A constant is for the one parameter that the function has not: it is one of two by that.
        others = [each for each in order if each not in taken]
        for argument in call.args:
            if isinstance(argument, ast.Name):
                names.append(argument.id)
            elif isinstance(argument, ast.Constant) and len(others) == 1:
                names += others
            else:
                raise NotTaken(self.inside, f"it computes what it gives {self.call}")
        if names == list(order[: len(names)]):
            return op
        return f"jetson_mamba.ops.by_name({op}, {', '.join(map(repr, names))})"
