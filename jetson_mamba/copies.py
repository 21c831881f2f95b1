"""The modified copy of a target: bundled in the wheel, kept in the user's cache, or made here.

A copy is found by a key, the digest of the source that is installed, of the override and of the
code that applies it, so that it can never be used for another text. It is a real file wherever
one can be written; otherwise it is handed over in memory, and tracebacks and ``inspect`` read
it from its loader.
"""

from __future__ import annotations

import copy
import hashlib
import io
import os
import tokenize
from importlib.machinery import SourceFileLoader
from typing import Any, NamedTuple

from jetson_mamba import cache, overrides
from jetson_mamba.rewrite import (
    Dispatch,
    Expression,
    ImportFrom,
    Override,
    Rebind,
    Refused,
    Rewritten,
    rewrite,
)

NOTICE = "# Modified by jetson_mamba: "


class ModifiedCopy(NamedTuple):
    """A modified copy that is ready to run.

    ``origin`` is "bundled", "cached" or "made"; ``edits`` counts the edits. ``path`` is where
    it lies, or where it would if anything could be written. ``data`` are the bytes that run.
    """

    target: str
    source: str
    path: str
    origin: str
    edits: int
    data: bytes


def find(target: str, loader: object) -> ModifiedCopy | None:
    """The modified copy for the source that ``loader`` would load; None if nothing changes.

    Raises :class:`~jetson_mamba.rewrite.Refused` with the reason why there cannot be one.
    """
    if not isinstance(loader, SourceFileLoader):
        raise Refused(f"its loader, {type(loader).__name__}, does not read a plain .py file")
    source: str = os.fspath(loader.path)
    try:
        with open(source, "rb") as file:
            data = file.read()
    except OSError as error:
        raise Refused(f"{source} cannot be read ({error.strerror})") from error
    if not _may_concern(override(target), data):
        return None
    name = file_name(target, data)
    bundled = overrides.folder() / "copies" / name
    if hasattr(bundled, "__fspath__") and bundled.is_file():
        content = cache.unseal(name, bundled.read_bytes())
        if content is not None:
            path = os.fspath(bundled)
            return ModifiedCopy(target, source, path, "bundled", _edits(content), content)

    directory = cache.private_directory("copies")
    content = cache.read(directory, name) if directory else None
    if directory and content is not None:
        path = os.path.join(directory, name)
        return ModifiedCopy(target, source, path, "cached", _edits(content), content)

    content = make(target, data)
    if content is None:
        return None
    written = cache.write(directory, name, content) if directory else None
    return ModifiedCopy(
        target,
        source,
        written or os.path.join(os.path.dirname(source), name),
        "made",
        _edits(content),
        content,
    )


def file_name(target: str, source: bytes) -> str:
    """The name of the copy of a source text, which no other text and no other override shares."""
    declared = overrides.folder()
    parts = (
        target.encode(),
        source,
        declared.joinpath(f"{target.replace('.', '/')}.py").read_bytes(),
        declared.joinpath("extensions.py").read_bytes(),
        declared.joinpath("norms.py").read_bytes(),
        declared.joinpath("blocks.py").read_bytes(),
        declared.parent.joinpath("jetson_mamba/rewrite.py").read_bytes(),
    )
    digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts))
    return f"{target.rpartition('.')[2]}-{digest.hexdigest()[:32]}.py"


def make(target: str, source: bytes) -> bytes | None:
    """The bytes of a modified copy, with the notice after its last line; None if nothing changes.

    The encoding and the line ends are those of the source.
    """
    encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
    text = source.decode(encoding)
    rewritten = rewrite(text, override(target))
    if not rewritten.applied:
        return None
    return _with_notice(target, source, rewritten).encode(encoding)


def override(target: str) -> Override:
    """What changes in ``target``, as declared in ``vendored_overrides``."""
    declared: Override = overrides.declared(target)
    return declared


def loader_for(modified: ModifiedCopy, original: object) -> Any:
    """A loader like ``original``, of the same class, that runs the copy.

    Import hooks that transform source as they load it (typeguard's, beartype's) keep doing so.
    """
    loader: Any = copy.copy(original)
    loader.path = modified.path
    read = loader.get_data

    def get_data(path: str) -> bytes:
        if path == modified.path:
            # The bytes that were checked: the file may be gone since, or another.
            return modified.data
        if modified.origin != "bundled" and path.endswith(".pyc"):
            # Bytecode runs in place of the copy, and may lie where others can write.
            bytecode = cache.read_private(path)
            if bytecode is None:
                raise FileNotFoundError(path)
            return bytecode
        content: bytes = read(path)
        return content

    loader.get_data = get_data
    return loader


def _may_concern(declared: Override, source: bytes) -> bool:
    """False where a text need not be parsed to see that nothing in it changes."""
    names: list[str] = []
    for edit in declared.edits:
        if isinstance(edit, ImportFrom):
            names += edit.names
        elif isinstance(edit, Dispatch):
            names.append(edit.inside)
        elif isinstance(edit, (Rebind, Expression)):
            names.append(edit.of.rpartition(".")[2])
    return declared.required or any(name.encode() in source for name in names)


def _with_notice(target: str, source: bytes, rewritten: Rewritten) -> str:
    end = "\r\n" if "\r\n" in rewritten.text else "\n"
    lines = sorted({applied.line for applied in rewritten.applied})
    notice = (
        "",
        f"{NOTICE}{len(rewritten.applied)} edits, on lines {', '.join(map(str, lines))}.",
        "# Everything else is the work of its authors, under their licence (for mamba-ssm:",
        "# Apache-2.0, whose section 4(b) asks for this notice).",
        f"# Source: {target}, sha256 {hashlib.sha256(source).hexdigest()}",
        "",
    )
    text = rewritten.text if rewritten.text.endswith(("\n", "\r")) else rewritten.text + end
    return text + end.join(notice)


def _edits(content: bytes) -> int:
    notice = content[content.rindex(NOTICE.encode()) + len(NOTICE) :]
    return int(notice.split(b" ", 1)[0])
