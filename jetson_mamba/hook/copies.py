"""The modified copy of a target: bundled in the wheel, kept in the user's cache, or made here.

A copy is found by a key: the digest of the source that is installed, of the modules beside it that
decide what it computes, of the overrides and of the code that applies them. So it can never be used
for another text. It is a real file wherever one can be written; otherwise it is handed over in
memory, and tracebacks and ``inspect`` read it from its loader.
"""

from __future__ import annotations

import copy
import hashlib
import io
import os
import tokenize
from functools import lru_cache
from importlib.machinery import SourceFileLoader
from typing import Any, Collection, Iterator, NamedTuple

from jetson_mamba import cache, overrides
from jetson_mamba.errors import LeftOut, Refused
from jetson_mamba.finder import TARGETS
from jetson_mamba.texts import Texts, digest_beside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jetson_mamba.rewrite import Override, Rewritten

NOTICE = "# Modified by jetson_mamba: "
LEFT_OUT = "# Left as it is: "


class ModifiedCopy(NamedTuple):
    """A modified copy that is ready to run.

    ``origin`` is "bundled", "cached" or "made"; ``edits`` counts the edits. ``path`` is where
    it lies, or where it would if anything could be written. ``data`` are the bytes that run.
    ``left_out`` are the parts of the override that do not fit this text, and why.
    """

    target: str
    source: str
    path: str
    origin: str
    edits: int
    data: bytes
    left_out: tuple[LeftOut, ...] = ()


def find(
    target: str, loader: object, without: Collection[str] | None = None
) -> ModifiedCopy | None:
    """The modified copy for the source that ``loader`` would load; None if nothing changes.

    ``without`` names what kernels are written in and it does not import ("triton", "tilelang",
    "cute"); None that this is whatever is not installed.

    Raises :class:`~jetson_mamba.errors.Refused` with the reason why there cannot be one.
    """
    found = look(target, loader, without)
    return found if found is not None and found.edits else None


def look(
    target: str, loader: object, without: Collection[str] | None = None
) -> ModifiedCopy | None:
    """Like :func:`find`, and where nothing changes, why: a copy without edits, not to be run.

    None where the text has nothing that the override is about.
    """
    if not isinstance(loader, SourceFileLoader):
        raise Refused(
            f"its loader, {type(loader).__name__}, does not read a plain .py file",
            "install mamba_ssm as plain files: jetson-mamba install",
        )
    source: str = os.fspath(loader.path)
    try:
        with open(source, "rb") as file:
            data = file.read()
    except OSError as error:
        raise Refused(f"{source} cannot be read ({error.strerror})") from error
    package = package_of(target, getattr(loader, "name", target))
    if without is None:
        without = lacking(data)
    name = file_name(target, data, source, package, without)
    bundled = overrides.folder() / "copies" / name
    if hasattr(bundled, "__fspath__") and bundled.is_file():
        content = cache.unseal(name, bundled.read_bytes())
        if content is not None:
            return _ready(target, source, os.fspath(bundled), "bundled", content)

    directory = cache.private_directory("copies")
    content = cache.read(directory, name) if directory else None
    if directory and content is not None:
        return _ready(target, source, os.path.join(directory, name), "cached", content)

    # Only here is the rewriter imported: what is kept needs none of it.
    if not _override(target, without).concerns(data):
        return None
    encoding, rewritten = examine(target, data, source, package, without)
    content = _with_notice(target, data, rewritten).encode(encoding)
    written = cache.write(directory, name, content) if directory else None
    path = written or os.path.join(os.path.dirname(source), name)
    return _ready(target, source, path, "made", content)


def lacking(source: bytes) -> Collection[str]:
    """What kernels are written in that a source text cannot have here, as far as that is known."""
    from jetson_mamba import kernel_packages

    return kernel_packages.lacking(source)


def file_name(
    target: str,
    source: bytes,
    path: str | None = None,
    package: str = "mamba_ssm",
    without: Collection[str] = (),
) -> str:
    """The name of the copy of a source text, which no other text and no other override shares.

    ``path`` is where the text lies, with the modules beside it that it is known by.
    """
    beside = b"" if path is None else digest_beside(target, path, source, package)
    parts = [target.encode(), source, beside, _own_digest()]
    parts += [f"without {kind}".encode() for kind in sorted(without)]
    digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts))
    return f"{target.rpartition('.')[2]}-{digest.hexdigest()[:32]}.py"


def make(
    target: str,
    source: bytes,
    path: str | None = None,
    package: str = "mamba_ssm",
    without: Collection[str] = (),
) -> bytes | None:
    """The bytes of a modified copy, with the notice after its last line; None if nothing changes.

    The encoding and the line ends are those of the source.
    """
    encoding, rewritten = examine(target, source, path, package, without)
    if not rewritten.applied:
        return None
    return _with_notice(target, source, rewritten).encode(encoding)


def examine(
    target: str,
    source: bytes,
    path: str | None = None,
    package: str = "mamba_ssm",
    without: Collection[str] = (),
) -> tuple[str, Rewritten]:
    """The encoding of a source text, and what the override makes of it.

    ``path`` is where it lies: without it, functions that need other modules are known to be none
    of a release.
    """
    from jetson_mamba.rewrite import rewrite

    encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
    text = source.decode(encoding)
    texts = Texts(target, text, path, source, package)
    return encoding, rewrite(text, _override(target, without), texts)


def package_of(target: str, module: str) -> str:
    """The name of the distribution's package, where ``target`` is imported as ``module``."""
    inside = target.partition(".")[2]
    return module[: -len(inside) - 1] if module.endswith(f".{inside}") else "mamba_ssm"


def override(target: str) -> Override:
    """What changes in ``target``, as declared in ``vendored_overrides``.

    In a module of mamba_ssm that is no target that is nothing.
    """
    if target in TARGETS:
        declared: Override = overrides.declared(target)
        return declared
    from jetson_mamba.rewrite import Override

    return Override(target, (), required=False)


def _override(target: str, without: Collection[str]) -> Override:
    declared = override(target)
    more = [edit for kind in sorted(without) for edit in overrides.edits_without(kind)]
    return declared._replace(edits=(*declared.edits, *more))


def loader_for(modified: ModifiedCopy, original: object) -> Any:
    """A loader like ``original``, of the same class, that runs the copy.

    Import hooks that transform source as they load it (typeguard's, beartype's) keep doing so.
    """
    loader: Any = copy.copy(original)
    loader.path = modified.path
    read = loader.get_data

    def get_data(path: str) -> bytes:
        if path == modified.path:
            # The bytes that were checked: the file may be gone since, or another. As they lie
            # there, since bytecode is known by the size of the file that it was compiled from.
            return cache.seal(os.path.basename(path), modified.data)
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


@lru_cache(maxsize=None)
def _own_digest() -> bytes:
    """A digest of the overrides and of the code that applies them.

    That is in the hook, in the rewriter and among the modules beside them, all of which are taken.
    """
    overrides.check()
    digest = hashlib.sha256()
    declared = overrides.folder()
    package = declared.parent / "jetson_mamba"
    folders = (declared, package / "hook", package / "rewrite")
    parts = [part for folder in folders for part in _files(folder, folder.name)]
    parts += [(each.name, each) for each in package.iterdir() if each.is_file()]
    for name, file in sorted(parts, key=lambda part: part[0]):
        if name.endswith((".py", ".json")):
            digest.update(name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.digest()


def _files(folder: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The files in a folder, by their names from there, without those that are generated."""
    for each in folder.iterdir():
        inside = f"{name}/{each.name}"
        if each.is_file():
            yield inside, each
        elif each.name not in ("__pycache__", "copies"):
            yield from _files(each, inside)


def _ready(target: str, source: str, path: str, origin: str, content: bytes) -> ModifiedCopy:
    notice = content[content.rindex(NOTICE.encode()) + len(NOTICE) :]
    edits = int(notice.split(b" ", 1)[0])
    mark = LEFT_OUT.encode()
    left_out = []
    for line in notice.splitlines():
        if line.startswith(mark):
            what, _, reason = line[len(mark) :].decode("utf-8", "replace").partition(": ")
            left_out.append(LeftOut(what, reason))
    return ModifiedCopy(target, source, path, origin, edits, content, tuple(left_out))


def _with_notice(target: str, source: bytes, rewritten: Rewritten) -> str:
    end = "\r\n" if "\r\n" in rewritten.text else "\n"
    lines = sorted({applied.line for applied in rewritten.applied})
    notice = (
        "",
        f"{NOTICE}{len(rewritten.applied)} edits, on lines {', '.join(map(str, lines)) or 'none'}.",
        "# Everything else is the work of its authors, under their licence (for mamba-ssm:",
        "# Apache-2.0, whose section 4(b) asks for this notice).",
        *(f"{LEFT_OUT}{each.what}: {each.reason}" for each in rewritten.left_out),
        f"# Source: {target}, sha256 {hashlib.sha256(source).hexdigest()}",
        "",
    )
    # A copy in which nothing changed is kept to know that, and is not run.
    text = rewritten.text if rewritten.applied else ""
    return text + end.join(notice)
