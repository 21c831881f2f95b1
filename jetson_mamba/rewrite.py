"""Applies an override to source text and proves that nothing else changed.

The syntax tree says where an edit goes; the edit itself is made in the text, so that formatting,
comments and line numbers stay. Afterwards the result is parsed again and must equal the tree of
the source in which the same edits were made a second time, on the nodes. An edit that reached
further than it declares, or a reference to an extension that is left over, refuses the copy.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from typing import NamedTuple, Sequence, Union

# Upstream's name for the flag that its wrapper spells as an activation.
SILU_FLAG = "silu_activation"


class Refused(Exception):
    """The text is not understood, and why; upstream's own module is used as it is."""


class Form(NamedTuple):
    """One way to call a function: its parameters in order, all of them given.

    ``optional`` parameters may be left out, and are given by name only. A parameter in ``texts``
    is recognised by being a string literal: older wrappers take ``activation`` where later ones
    take something else.
    ``results`` is how many values the caller unpacks, where the replacement returns more.
    """

    parameters: tuple[str, ...]
    optional: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    results: int | None = None


class Call(NamedTuple):
    """Calls of the functions ``of``, in any of ``forms``, become calls of ``becomes``.

    The first ``positional`` arguments stay as they are, the others are passed by name. The flag
    ``silu_activation`` becomes ``activation="silu"`` or ``None``.
    """

    of: tuple[str, ...]
    becomes: str
    forms: tuple[Form, ...]
    positional: int


class Rename(NamedTuple):
    """Calls of the function ``of`` become calls of ``becomes`` with the same arguments.

    ``of`` is an extension's, or with ``keyword`` any function, where it is called with that.
    """

    of: str
    becomes: str
    keyword: str | None = None


class Dispatch(NamedTuple):
    """In the function ``inside``, the call of ``call`` happens only under a condition.

    Otherwise ``becomes`` is called, with every parameter of the function by name, all of which
    must be among ``parameters``. Where a function of that name is another one, an ``optional``
    edit leaves it alone; any other refuses the copy.
    """

    inside: str
    call: str
    condition: str
    becomes: str
    parameters: tuple[str, ...]
    optional: bool = False


class Rebind(NamedTuple):
    """After the last line, the name of the function or method ``of`` is bound to ``becomes``.

    That is an expression of the function. Only where the module, or its class, defines one function
    of that name, with no parameter that is not among ``parameters``: a fork's own is left alone.
    """

    of: str
    becomes: str
    parameters: tuple[str, ...]


class Expression(NamedTuple):
    """The expression ``of`` becomes ``becomes`` in every function that takes ``parameter``."""

    of: str
    becomes: str
    parameter: str


class Import(NamedTuple):
    """Imports of the module, or of names in it, import ``becomes`` in its place.

    What the names stand for is replaced where they are used.
    """

    of: str
    becomes: str


class ImportBeside(NamedTuple):
    """The statement that imports the module ``beside`` imports ``module`` as well.

    Only where an edit is made whose replacement names that module.
    """

    beside: str
    module: str


class ImportFrom(NamedTuple):
    """``from of import ...`` of any of ``names`` becomes ``from becomes import ...``."""

    of: str
    becomes: str
    names: tuple[str, ...]


Edit = Union[Call, Rename, Dispatch, Rebind, Expression, Import, ImportBeside, ImportFrom]


class Override(NamedTuple):
    """What changes in one target.

    ``required`` says that a text with nothing to change is one that is not understood.
    """

    target: str
    edits: tuple[Edit, ...]
    required: bool = True


class Applied(NamedTuple):
    """An edit that was made, and the line that it was made on."""

    line: int
    edit: Edit


class Rewritten(NamedTuple):
    """The text of a modified copy and the edits that made it, in the order of their lines."""

    text: str
    applied: tuple[Applied, ...]


def rewrite(text: str, override: Override) -> Rewritten:
    """The modified copy of ``text``.

    Raises :class:`Refused` where the text does not parse, calls an extension in a form that no
    edit declares, uses it otherwise than by calling it, or differs elsewhere after the edits.
    """
    try:
        rewriter = _Rewriter(text, override.edits)
    except (SyntaxError, ValueError, tokenize.TokenError) as error:
        raise Refused(f"it does not parse on this Python ({error})") from error
    rewriter.find()
    applied = tuple(sorted(rewriter.applied, key=lambda each: each.line))
    if override.required and not applied:
        raise Refused("nothing in it is what this override replaces")
    result = rewriter.apply()
    _prove(rewriter, result)
    return Rewritten(result, applied)


class _Replacement(NamedTuple):
    start: int
    end: int
    text: str


class _Token(NamedTuple):
    start: int
    end: int
    string: str


class _Rewriter:
    """Finds what the edits concern and records each change twice: in the text, and on the tree."""

    def __init__(self, text: str, edits: Sequence[Edit]) -> None:
        self.text = text
        self.tree = ast.parse(text)
        self.edits = edits
        self.applied: list[Applied] = []
        self.replacements: list[_Replacement] = []
        # id of a node in the tree -> the node that stands in its place in the copy.
        self.substitutes: dict[int, ast.AST] = {}
        # What stands after the last statement of the source.
        self.appended: list[ast.stmt] = []
        self._lines = _lines(text)
        self._line_starts = [0]
        for line in self._lines:
            self._line_starts.append(self._line_starts[-1] + len(line))
        self._tokens = [
            _Token(
                self._line_starts[token.start[0] - 1] + token.start[1],
                self._line_starts[token.end[0] - 1] + token.end[1],
                token.string,
            )
            for token in tokenize.generate_tokens(io.StringIO(text, newline="").readline)
            if token.type not in (tokenize.COMMENT, tokenize.NL)
        ]
        self.modules = {edit.of: edit for edit in edits if isinstance(edit, Import)}
        self.names = self._imported_names()
        self._imports_beside = [edit for edit in edits if isinstance(edit, ImportBeside)]

    # What the text says

    def origin(self, node: ast.AST) -> str | None:
        """The dotted name in an extension's module that an expression refers to, if any."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            base = self.origin(node.value)
            return f"{base}.{node.attr}" if base else None
        return None

    def _imported_names(self) -> dict[str, str]:
        names: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if self._module(alias.name):
                        root = alias.name.split(".")[0]
                        names[alias.asname or root] = alias.name if alias.asname else root
            elif (
                isinstance(node, ast.ImportFrom)
                and node.level == 0
                and self._module(node.module or "")
            ):
                for alias in node.names:
                    if alias.name == "*":
                        raise Refused(f"line {node.lineno} imports * from {node.module}")
                    names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        return names

    def _module(self, name: str) -> Import | None:
        module = self.modules.get(name)
        if module is None and name.split(".", maxsplit=1)[0] in self.modules:
            raise Refused(f"it imports {name}, which is not known")
        return module

    # What changes

    def find(self) -> None:
        called: set[int] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self._import(node)
            elif isinstance(node, ast.Call):
                if self._call(node):
                    called.add(id(node.func))
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self._function(node)
            elif isinstance(node, ast.Constant) and node.value in self.modules:
                raise Refused(f"line {node.lineno} names {node.value} in a string")
        self._rebind()
        self._import_beside()
        self._uses(called)
        if self.names and not self._binds_at_module_level():
            raise Refused("it imports the extension in functions or under conditions only")

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.ImportFrom):
            for edit in self.edits:
                if (
                    isinstance(edit, ImportFrom)
                    and node.module == edit.of
                    and {alias.name for alias in node.names} & set(edit.names)
                ):
                    self._import_from(node, edit)
                    return
            module = self._module(node.module or "") if node.level == 0 else None
            if module is None:
                return
            names = [ast.alias(name=module.becomes, asname=None)]
        else:
            modules = [self._module(alias.name) for alias in node.names]
            module = next((each for each in modules if each), None)
            if module is None:
                return
            names = []
            for alias, edit_of_alias in zip(node.names, modules):
                kept = alias
                if edit_of_alias:
                    kept = ast.alias(name=edit_of_alias.becomes, asname=None)
                if all((kept.name, kept.asname) != (each.name, each.asname) for each in names):
                    names.append(kept)
        start, end = self._extent(node)
        written = ", ".join(
            f"{alias.name} as {alias.asname}" if alias.asname else alias.name for alias in names
        )
        # A statement over several lines leaves its lines behind it, empty.
        rest = "".join(re.findall(r"\r\n|\r|\n", self.text[start:end]))
        self._replace(start, end, f"import {written}{rest}")
        self._substitute(node, ast.Import(names=names))
        self.applied.append(Applied(node.lineno, module))

    def _import_beside(self) -> None:
        assert isinstance(self.tree, ast.Module)
        written = [
            each.edit.becomes for each in self.applied if not isinstance(each.edit, ImportBeside)
        ]
        for edit in self._imports_beside:
            if not any(edit.module in each for each in written):
                continue
            for statement in self.tree.body:
                if isinstance(statement, ast.Import) and (edit.beside, None) in [
                    (alias.name, alias.asname) for alias in statement.names
                ]:
                    break
            else:
                raise Refused(f"it does not import {edit.beside} at module level")
            end = self._extent(statement)[1]
            self._replace(end, end, f", {edit.module}")
            names = [*statement.names, ast.alias(name=edit.module, asname=None)]
            self._substitute(statement, ast.Import(names=names))
            self.applied.append(Applied(statement.lineno, edit))

    def _rebind(self) -> None:
        assert isinstance(self.tree, ast.Module)
        for edit in self.edits:
            if not isinstance(edit, Rebind):
                continue
            function = _defined(self.tree, edit.of)
            if function is None or _unknown_parameters(function, edit):
                continue
            end = len(self.text)
            line_end = next(iter(re.findall(r"\r\n|\r|\n", self.text)), "\n")
            begun = self.appended or self.text.endswith(("\r", "\n"))
            before = "" if begun else line_end
            self._replace(end, end, f"{before}{edit.of} = {edit.becomes}{line_end}")
            self.appended.append(_statement(f"{edit.of} = {edit.becomes}"))
            line = len(self._lines) + len(self.appended)
            self.applied.append(Applied(line, edit))

    def _import_from(self, node: ast.ImportFrom, edit: ImportFrom) -> None:
        start, end = self._extent(node)
        position = self.text.find(edit.of, start, end)
        self._replace(position, position + len(edit.of), edit.becomes)
        self._substitute(
            node, ast.ImportFrom(module=edit.becomes, names=node.names, level=node.level)
        )
        self.applied.append(Applied(node.lineno, edit))

    def _binds_at_module_level(self) -> bool:
        """Whether an edited import runs whatever happens: the calls rely on the name it binds."""
        assert isinstance(self.tree, ast.Module)
        for statement in self.tree.body:
            first = statement.body[0] if isinstance(statement, ast.Try) else statement
            if isinstance(self.substitutes.get(id(first)), ast.Import):
                return True
        return False

    def _call(self, node: ast.Call) -> bool:
        origin = self.origin(node.func)
        if origin is None:
            self._call_with_keyword(node)
            return False
        for edit in self.edits:
            if isinstance(edit, Rename) and edit.of == origin:
                self._replace(*self._extent(node.func), edit.becomes)
                self._substitute(node.func, _expression(edit.becomes))
            elif isinstance(edit, Call) and origin in edit.of:
                self._rewrite_arguments(node, edit, origin)
            else:
                continue
            self.applied.append(Applied(node.lineno, edit))
            return True
        return False

    def _call_with_keyword(self, node: ast.Call) -> None:
        keywords = [keyword.arg for keyword in node.keywords]
        for edit in self.edits:
            if (
                isinstance(edit, Rename)
                and edit.keyword is not None
                and edit.keyword in keywords
                and self.names
                and ast.dump(node.func) == ast.dump(_expression(edit.of))
            ):
                self._replace(*self._extent(node.func), edit.becomes)
                self._substitute(node.func, _expression(edit.becomes))
                self.applied.append(Applied(node.lineno, edit))

    def _rewrite_arguments(self, node: ast.Call, edit: Call, origin: str) -> None:
        form = _matching_form(node, edit, origin)
        extents = self._argument_extents(node)
        self._replace(*self._extent(node.func), edit.becomes)
        positional = list(node.args[: edit.positional])
        keywords: list[ast.keyword] = []
        for index, argument in enumerate(node.args[edit.positional :], edit.positional):
            name = form.parameters[index]
            start, end = extents[index]
            if name == SILU_FLAG:
                keywords.append(self._activation(argument, start, end))
            else:
                self._replace(start, start, f"{name}=")
                keywords.append(ast.keyword(arg=name, value=argument))
        for index, keyword in enumerate(node.keywords, len(node.args)):
            start, end = extents[index]
            if keyword.arg == SILU_FLAG:
                keywords.append(self._activation(keyword.value, start, end, keyword=True))
            else:
                keywords.append(keyword)
        call: ast.expr = ast.Call(
            func=_expression(edit.becomes), args=positional, keywords=keywords
        )
        if form.results is not None:
            end = self._extent(node)[1]
            self._replace(end, end, f"[:{form.results}]")
            slice_of = _expression(f"_[:{form.results}]")
            assert isinstance(slice_of, ast.Subscript)
            slice_of.value = call
            call = slice_of
        self._substitute(node, call)

    def _activation(
        self, flag: ast.expr, start: int, end: int, keyword: bool = False
    ) -> ast.keyword:
        """The wrapper's spelling of the flag, in the place of the argument from start to end."""
        value: ast.expr
        if isinstance(flag, ast.Constant) and isinstance(flag.value, bool):
            value = _expression('"silu"' if flag.value else "None")
            self._replace(start, end, 'activation="silu"' if flag.value else "activation=None")
        else:
            value = ast.IfExp(test=flag, body=_expression('"silu"'), orelse=_expression("None"))
            inside = [token.start for token in self._tokens if start <= token.start < end]
            # After the tokens of `name =`, or at once.
            after_name = inside[2] if keyword else start
            self._replace(start, after_name, 'activation="silu" if (')
            self._replace(end, end, ") else None")
        return ast.keyword(arg="activation", value=value)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for edit in self.edits:
            if isinstance(edit, Dispatch) and node.name == edit.inside:
                # Without an import to edit, nothing imports what would be called.
                if edit.optional and not (self.names or self._imports_beside):
                    continue
                calls = [
                    each
                    for each in ast.walk(node)
                    if isinstance(each, ast.Call)
                    and ast.dump(each.func) == ast.dump(_expression(edit.call))
                ]
                if edit.optional and (len(calls) != 1 or _unknown_parameters(node, edit)):
                    continue
                if len(calls) != 1:
                    raise Refused(
                        f"{node.name} on line {node.lineno} calls {edit.call} {len(calls)} times, "
                        "expected once"
                    )
                self._dispatch(node, calls[0], edit)
            elif isinstance(edit, Expression) and (self.names or self._imports_beside):
                self._expressions(node, edit)

    def _expressions(
        self, function: ast.FunctionDef | ast.AsyncFunctionDef, edit: Expression
    ) -> None:
        if edit.parameter not in [argument.arg for argument in function.args.args]:
            return
        wanted = ast.dump(_expression(edit.of))
        for node in ast.walk(function):
            if not isinstance(node, ast.expr) or id(node) in self.substitutes:
                continue
            if ast.dump(node) == wanted:
                self._replace(*self._extent(node), edit.becomes)
                self._substitute(node, _expression(edit.becomes))
                self.applied.append(Applied(node.lineno, edit))

    def _dispatch(
        self,
        function: ast.FunctionDef | ast.AsyncFunctionDef,
        call: ast.Call,
        edit: Dispatch,
    ) -> None:
        arguments = function.args
        names = [
            argument.arg
            for argument in arguments.posonlyargs + arguments.args + arguments.kwonlyargs
        ]
        unknown = _unknown_parameters(function, edit)
        if unknown:
            raise Refused(
                f"{function.name} on line {function.lineno} takes parameters that {edit.becomes} "
                f"does not: {unknown}"
            )
        condition = edit.condition.format(first=names[0])
        otherwise = f"{edit.becomes}({', '.join(f'{name}={name}' for name in names)})"
        start, end = self._extent(call)
        self._replace(start, start, "(")
        self._replace(end, end, f" if {condition} else {otherwise})")
        # The call itself stays a child: edits inside it are made on it as well.
        self._substitute(
            call,
            ast.IfExp(test=_expression(condition), body=call, orelse=_expression(otherwise)),
        )
        self.applied.append(Applied(call.lineno, edit))

    def _uses(self, called: set[int]) -> None:
        """Settles every mention of an extension's names that is not a call.

        A test whether the extension is there is answered by the op, which always is. ``None``
        may be stored, as the branch for a failed import does. Anything else refuses the copy.
        """
        inside_calls: set[int] = set()
        for node in ast.walk(self.tree):
            if id(node) in called:
                inside_calls.update(id(each) for each in ast.walk(node))
        tested = {id(each) for node in ast.walk(self.tree) for each in _tested(node)}
        allowed_stores = {
            id(each) for node in ast.walk(self.tree) for each in _names_set_to_none(node)
        }
        for node in ast.walk(self.tree):
            if isinstance(node, ast.arg) and node.arg in self.names:
                raise Refused(f"line {node.lineno} gives the name {node.arg} another meaning")
            if not isinstance(node, ast.Name) or node.id not in self.names:
                continue
            if isinstance(node.ctx, ast.Load):
                if id(node) in inside_calls:
                    continue
                if id(node) not in tested:
                    raise Refused(
                        f"line {node.lineno} refers to {self.names[node.id]} in a way that is "
                        "not a call in a known form"
                    )
                module = self._module_of(self.names[node.id])
                self._replace(*self._extent(node), module.becomes)
                self._substitute(node, _expression(module.becomes))
                self.applied.append(Applied(node.lineno, module))
            elif id(node) not in allowed_stores:
                raise Refused(f"line {node.lineno} gives the name {node.id} another meaning")

    def _module_of(self, origin: str) -> Import:
        while origin not in self.modules:
            origin = origin.rpartition(".")[0]
        return self.modules[origin]

    # Both ways of making a change

    def _replace(self, start: int, end: int, text: str) -> None:
        self.replacements.append(_Replacement(start, end, text))

    def _substitute(self, node: ast.AST, substitute: ast.AST) -> None:
        self.substitutes[id(node)] = substitute

    def apply(self) -> str:
        """The text after the edits."""
        pieces: list[str] = []
        position = 0
        for start, end, text in sorted(
            self.replacements, key=lambda replacement: (replacement.start, replacement.end)
        ):
            if start < position:
                raise Refused("two edits overlap")
            pieces += (self.text[position:start], text)
            position = end
        return "".join((*pieces, self.text[position:]))

    def expected(self) -> ast.AST:
        """The tree of the source after the edits."""
        tree = _Substitution(self.substitutes).visit(self.tree)
        assert isinstance(tree, ast.Module)
        tree.body.extend(self.appended)
        return tree

    # Positions: the tree counts bytes of UTF-8 in a line, the text counts characters

    def _extent(self, node: ast.AST) -> tuple[int, int]:
        assert isinstance(node, (ast.expr, ast.stmt))
        assert node.end_lineno is not None and node.end_col_offset is not None
        return (
            self._offset(node.lineno, node.col_offset),
            self._offset(node.end_lineno, node.end_col_offset),
        )

    def _offset(self, line: int, column: int) -> int:
        prefix = self._lines[line - 1].encode()[:column].decode()
        return self._line_starts[line - 1] + len(prefix)

    def _argument_extents(self, node: ast.Call) -> list[tuple[int, int]]:
        """Where each argument of a call begins and ends, with parentheses around it."""
        begin, end = self._extent(node.func)[1], self._extent(node)[1]
        extents: list[tuple[int, int]] = []
        depth, first, last = 0, -1, -1
        for token in self._tokens:
            if not begin <= token.start < end:
                continue
            if token.string in (")", "]", "}"):
                depth -= 1
            if (depth == 0 and token.string == ")") or (depth == 1 and token.string == ","):
                if first >= 0:
                    extents.append((first, last))
                first = -1
            elif depth >= 1:
                first = token.start if first < 0 else first
                last = token.end
            if token.string in ("(", "[", "{"):
                depth += 1
        if len(extents) != len(node.args) + len(node.keywords):
            raise Refused(f"the arguments of the call on line {node.lineno} cannot be told apart")
        return extents


class _Substitution(ast.NodeTransformer):
    """Puts the substitutes in place, after the children of the nodes that they keep."""

    def __init__(self, substitutes: dict[int, ast.AST]) -> None:
        self._substitutes = substitutes

    def visit(self, node: ast.AST) -> ast.AST:
        substitute = self._substitutes.pop(id(node), None)
        if substitute is None:
            return self.generic_visit(node)
        return self.generic_visit(substitute)


def _prove(rewriter: _Rewriter, result: str) -> None:
    """Raises :class:`Refused` unless the result is the source with the declared edits."""
    try:
        copy = ast.parse(result)
    except SyntaxError as error:
        raise Refused(f"after the edits it does not parse (line {error.lineno})") from error
    expected = rewriter.expected()
    if ast.dump(expected) != ast.dump(copy):
        raise Refused("after the edits it differs elsewhere")
    for before, after in zip(ast.walk(expected), ast.walk(copy)):
        if getattr(before, "lineno", None) not in (None, getattr(after, "lineno", None)):
            raise Refused(f"after the edits line {getattr(before, 'lineno', 0)} has moved")
    left_over = _Rewriter(result, rewriter.edits).names
    if left_over:
        raise Refused(f"after the edits it still imports {', '.join(sorted(left_over.values()))}")


def _matching_form(node: ast.Call, edit: Call, origin: str) -> Form:
    if any(isinstance(argument, ast.Starred) for argument in node.args) or any(
        keyword.arg is None for keyword in node.keywords
    ):
        raise Refused(f"the call of {origin} on line {node.lineno} unpacks its arguments")
    for form in edit.forms:
        names = list(form.parameters[: len(node.args)])
        names += [keyword.arg or "" for keyword in node.keywords]
        given = set(names)
        required = set(form.parameters) - set(form.optional)
        if (
            # What may be left out has moved between releases: only its name says what is meant.
            len(node.args) <= (edit.positional if form.optional else len(form.parameters))
            and len(given) == len(names)
            and required <= given <= set(form.parameters)
            and all(
                isinstance(argument, ast.Constant) and isinstance(argument.value, str)
                for name, argument in zip(form.parameters, node.args)
                if name in form.texts
            )
        ):
            return form
    raise Refused(
        f"the call of {origin} on line {node.lineno} has {len(node.args)} positional arguments"
        + "".join(f", {keyword.arg}=" for keyword in node.keywords)
        + ", a form that is not known"
    )


def _defined(tree: ast.Module, name: str) -> ast.FunctionDef | None:
    """The function ``f``, or the method ``C.f``, where a module defines one of that name."""
    *classes, function = name.split(".")
    body = tree.body
    for each in classes:
        found = [x for x in body if isinstance(x, ast.ClassDef) and x.name == each]
        if len(found) != 1:
            return None
        body = found[0].body
    functions = [x for x in body if isinstance(x, ast.FunctionDef) and x.name == function]
    return functions[0] if len(functions) == 1 else None


def _unknown_parameters(
    function: ast.FunctionDef | ast.AsyncFunctionDef, edit: Dispatch | Rebind
) -> str:
    """What a function takes and the replacement does not, in words; nothing if all is known."""
    arguments = function.args
    if arguments.vararg or arguments.kwarg:
        return "a variable number"
    names = arguments.posonlyargs + arguments.args + arguments.kwonlyargs
    return ", ".join(each.arg for each in names if each.arg not in edit.parameters)


def _tested(node: ast.AST) -> list[ast.expr]:
    """The expressions that a node asks for their truth, or compares with None."""
    if isinstance(node, ast.Compare):
        others = node.comparators
        if len(others) == 1 and isinstance(others[0], ast.Constant) and others[0].value is None:
            return [node.left]
    if isinstance(node, (ast.If, ast.IfExp, ast.While, ast.Assert)):
        return [node.test]
    if isinstance(node, ast.BoolOp):
        return node.values
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return [node.operand]
    return []


def _names_set_to_none(node: ast.AST) -> list[ast.AST]:
    """The names that an assignment sets to None, also several at once."""
    if not isinstance(node, ast.Assign):
        return []
    values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
    if not all(isinstance(value, ast.Constant) and value.value is None for value in values):
        return []
    return [each for target in node.targets for each in ast.walk(target)]


def _expression(text: str) -> ast.expr:
    """The tree of an expression, without positions: it stands on whatever line it is put."""
    expression = ast.parse(text, mode="eval").body
    _forget_positions(expression)
    return expression


def _statement(text: str) -> ast.stmt:
    """The tree of a statement, without positions."""
    statement = ast.parse(text).body[0]
    _forget_positions(statement)
    return statement


def _forget_positions(tree: ast.AST) -> None:
    for node in ast.walk(tree):
        for attribute in ("lineno", "col_offset", "end_lineno", "end_col_offset"):
            if hasattr(node, attribute):
                delattr(node, attribute)


def _lines(text: str) -> list[str]:
    """The lines of a text with their ends, as Python counts them."""
    return re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+$", text)
