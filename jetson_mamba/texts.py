"""The modules of one distribution that a target's text reaches by its imports.

What a function computes is decided by its own module and by those that it imports. A copy is found
by all of them, so that one that went past a function is not used when a kernel file is edited.
The files are read where they lie, by the path that the target's loader has; nothing is imported.
"""

from __future__ import annotations

import hashlib
import os
import re
import tokenize
from functools import lru_cache
from io import BytesIO
from typing import Iterator, NamedTuple

# What stands after and before the word in a statement of imports, and in whatever else looks like
# one: to read a file too many is no harm.
AFTER = re.compile(rb"import\b[ \t]*(\([^)]*\)|[^\n\r#;]*)")
BEFORE = re.compile(rb"(?:^|[;:])[ \t]*(?:lazy[ \t]+)?(?:from[ \t]+(\.*)([\w.]*)[ \t]+)?$")
NAME = re.compile(rb"[A-Za-z_][\w.]*")


class _File(NamedTuple):
    source: bytes
    # (dots before it, module, names in it) of each import.
    imports: tuple[tuple[int, str, tuple[str, ...]], ...]


class Texts:
    """The text of a target and of the modules beside it.

    Modules have their names inside the distribution, as ``ops.triton.ssd_bmm``; ``package`` is the
    name that the distribution itself is imported by. ``path`` is where the target lies; without
    one there is nothing beside it.
    """

    def __init__(
        self,
        target: str,
        text: str,
        path: str | None = None,
        source: bytes | None = None,
        package: str = "mamba_ssm",
    ) -> None:
        self.target = target.partition(".")[2]
        self.package = package
        self._files = {}
        self._texts: dict[str, str | None] = {self.target: text}
        if path is not None and source is not None:
            self._files = _reached(self.target, package, path, source)

    def text(self, module: str) -> str | None:
        """The text of a module of the distribution; None if it is not there, or not reached."""
        if module not in self._texts:
            file = self._files.get(module)
            self._texts[module] = None if file is None else decoded(file)
        return self._texts[module]


def digest_beside(target: str, path: str, source: bytes, package: str = "mamba_ssm") -> bytes:
    """A digest of the modules beside a target that its text reaches."""
    files = _reached(target.partition(".")[2], package, path, source)
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + hashlib.sha256(files[name]).digest())
    return digest.digest()


def decoded(source: bytes) -> str | None:
    """The text of a source file; None where its encoding is not what it says."""
    try:
        encoding, _ = tokenize.detect_encoding(BytesIO(source).readline)
        return source.decode(encoding)
    except (SyntaxError, ValueError, LookupError):
        return None


def _reached(target: str, package: str, path: str, source: bytes) -> dict[str, bytes]:
    parts = target.split(".")
    root = path
    for _ in parts:
        root = os.path.dirname(root)
    if os.path.join(root, *parts) + ".py" != path:
        return {}
    found: dict[str, bytes] = {}
    waiting = [(target, _File(source, _imports(source)))]
    while waiting:
        module, file = waiting.pop()
        for dots, name, names in file.imports:
            base = resolve(package, module, dots, name)
            if base is None:
                continue
            for each in (base, *(f"{base}.{inside}".lstrip(".") for inside in names)):
                if each in found or each == target:
                    continue
                read = _read(root, each)
                if read is not None:
                    found[each] = read.source
                    waiting.append((each, read))
    return found


def resolve(package: str, module: str, dots: int, name: str) -> str | None:
    """The module of the distribution that an import in ``module`` names, if it is one."""
    if dots:
        around = module.split(".")[:-dots] if dots <= module.count(".") + 1 else None
        return None if around is None else ".".join([*around, *([name] if name else [])])
    if name == package:
        return ""
    return name[len(package) + 1 :] if name.startswith(f"{package}.") else None


def _read(root: str, module: str) -> _File | None:
    base = os.path.join(root, *module.split(".")) if module else root
    for path in (f"{base}.py", os.path.join(base, "__init__.py")):
        try:
            status = os.stat(path)
            return _parsed(path, status.st_mtime_ns, status.st_size, status.st_ino)
        except OSError:
            continue
    return None


@lru_cache(maxsize=256)
def _parsed(path: str, *_: int) -> _File:
    """A file as it was when it had that size and those times."""
    with open(path, "rb") as file:
        source = file.read()
    return _File(source, _imports(source))


def _imports(source: bytes) -> tuple[tuple[int, str, tuple[str, ...]], ...]:
    return tuple(_found(source))


def _found(source: bytes) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    for match in AFTER.finditer(source):
        begin = 1 + max(source.rfind(end, 0, match.start()) for end in (b"\n", b"\r"))
        before = BEFORE.search(source[begin : match.start()])
        if before is None:
            continue
        dots, module = before.groups()
        if module is not None:
            names = tuple(each.decode() for each in NAME.findall(match[1]))
            yield len(dots), module.decode(), names
            continue
        for each in match[1].split(b","):
            name = NAME.match(each.strip())
            if name:
                yield 0, name[0].decode(), ()
