"""What to do where this package cannot do its work: commands that work when they are typed."""

from __future__ import annotations

import os
import shlex
import sys
from typing import Any

# Where an environment is made, as it is typed.
FOLDER = "~/mamba"
BIN = f"{FOLDER}/bin"
HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


# Whether an index has this project: then, and only then, its name alone is a requirement.
ON_AN_INDEX = False
# What the commands need, as pyproject.toml declares it, and as it is found in a checkout's folder.
COMMANDS = ("rich>=13", "typer>=0.12")
# What each extra brings, as pyproject.toml declares it: named so, it is installed by the same
# words whether this package came from an index, a wheel or a checkout.
EXTRAS = {
    "torch": ("torch>=2.0",),
    "triton": ("triton>=2.1",),
    "demo": ("matplotlib>=3.7", "numpy"),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "cuda12": ("cuda-bindings==12.*", "cuda-core", "nvidia-cuda-nvrtc-cu12"),
    "cuda13": ("cuda-bindings==13.*", "cuda-core", "nvidia-cuda-nvrtc==13.*"),
}


def extra(name: str, *options: str) -> str:
    """The command that brings what the extra ``name`` of this package is for."""
    return f"{pip()} install {' '.join((*options, *map(shlex.quote, EXTRAS[name])))}"


def repair() -> str:
    """How to install this package again, which depends on where it came from."""
    return again() or f"put the files that are missing in {HERE} back, from where they came"


def again() -> str | None:
    """The command that brings the files of this package again, if there is one."""
    kind, place = origin()
    if kind == "checkout" and _editable():
        if os.path.exists(os.path.join(HERE, ".git")):
            folder = shlex.quote(HERE)
            return f"git -C {folder} checkout -- jetson_mamba vendored_overrides"
        return None
    if place is None:
        return None
    return f"{pip()} install --force-reinstall --no-deps {shlex.quote(place)}"


def origin() -> tuple[str, str | None]:
    """How this package was installed, and what pip is given to install it so once more.

    ``index``: by its name; ``wheel``: from a file or an archive; ``repository``: from a version
    control system; ``checkout``: from a folder, copied, editable or on the path as it lies. The
    second is None where nobody knows, or where what it came from is gone.
    """
    if _editable():
        return "checkout", HERE if os.path.exists(os.path.join(HERE, "pyproject.toml")) else None
    told = _direct_url()
    url = told.get("url", "")
    if not url:  # by its name, or by a pip that does not record it
        version = getattr(installed("jetson-mamba"), "version", None)
        return "index", f"jetson-mamba=={version}" if ON_AN_INDEX else None
    vcs = told.get("vcs_info", {})
    if vcs:
        commit = vcs.get("commit_id", "")
        return "repository", f"{vcs.get('vcs', 'git')}+{url}" + f"@{commit}" * bool(commit)
    kind = "checkout" if "dir_info" in told else "wheel"
    if url.startswith("file://"):
        from urllib.parse import unquote, urlsplit

        url = unquote(urlsplit(url).path)
        if not os.path.exists(url):
            return kind, None
    return kind, url


def _editable() -> bool:
    """Whether the files that run are those of a folder that somebody works in."""
    told = _direct_url()
    return installed("jetson-mamba") is None or bool(told.get("dir_info", {}).get("editable"))


def _direct_url() -> dict[str, Any]:
    distribution = installed("jetson-mamba")
    if distribution is None:
        return {}
    import json

    try:
        told = json.loads(distribution.read_text("direct_url.json") or "{}")
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def pip() -> str:
    """How packages are installed for this interpreter: what stands before ``install``.

    Its pip, or uv where there is that and no pip; what brings pip comes first where there is
    neither. Where pip may not add to the system's packages, an environment that sees them.
    """
    if managed():
        return f"{environment()} && {BIN}/python -m pip"
    python = _python()
    if has_pip():
        return f"{python} -m pip"
    import shutil

    uv = os.environ.get("UV") or shutil.which("uv")
    if uv:
        return f"UV_PYTHON={python} {shlex.quote(uv)} pip"
    return f"{bring_pip()} && {python} -m pip"


def uninstall(name: str) -> str:
    """The command that takes a distribution away from where this interpreter has it."""
    if managed():
        return f"{_python()} -m pip uninstall --break-system-packages --yes {name}"
    yes = "--yes " if pip().endswith("-m pip") else ""  # uv does not ask
    return f"{pip()} uninstall {yes}{name}"


def managed() -> str | None:
    """The file of PEP 668 in whose words pip refuses to add to the system's packages, if so."""
    if sys.prefix != sys.base_prefix:
        return None
    if os.environ.get("PIP_BREAK_SYSTEM_PACKAGES", "0").lower() in ("1", "true", "yes", "on"):
        return None
    import sysconfig

    file = os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")
    return file if os.path.exists(file) else None


def environment() -> str:
    """The command that makes an environment that sees the system's packages, torch among them."""
    first = "" if has_ensurepip() else f"{apt('python3-venv')} && "
    return f"{first}{_python()} -m venv --system-site-packages {FOLDER}"


def bring_pip() -> str:
    """The command that brings a pip to this interpreter, which has none."""
    if _is_debians():
        return apt("python3-pip")
    first = "" if has_ensurepip() else f"{apt('python3-venv')} && "
    return f"{first}{_python()} -m ensurepip"


def reachable(text: str) -> str:
    """A text whose commands of this package can be typed here.

    By the name of the program where a shell finds this interpreter's own; else, as where the folder
    of the user's programs is not on the path yet, or an environment is not active, through it.
    """
    import re
    import shutil
    import sysconfig

    program = shutil.which("jetson-mamba")
    names = {f"{os.name}_user"} & set(sysconfig.get_scheme_names())
    folders = [sysconfig.get_path("scripts", each) for each in names]
    own = {os.path.realpath(each) for each in (*folders, sysconfig.get_path("scripts"))}
    own.add(os.path.realpath(os.path.dirname(sys.executable or "")))
    if program and os.path.realpath(os.path.dirname(program)) in own:
        return text
    through = f"{_python()} -m jetson_mamba"
    return re.sub(r"(?<![\w/-])jetson-mamba(?= [a-z])", lambda _: through, text)


def apt(package: str) -> str:
    """The command that installs a package of the system's."""
    return f"{as_root()}apt-get install {package}"


def as_root() -> str:
    """What stands before a command that root alone may give: a container has no sudo."""
    return "" if getattr(os, "geteuid", int)() == 0 else "sudo "


def has_ensurepip() -> bool:
    """Whether the standard library has the part that brings pip, which Debian packs apart."""
    from importlib.machinery import PathFinder

    return PathFinder.find_spec("ensurepip") is not None


def brings_pip() -> bool:
    """Whether ``python -m ensurepip`` brings pip here: Debian's own Python refuses to."""
    return has_ensurepip() and not _is_debians()


def _is_debians() -> bool:
    return sys.prefix == "/usr" and os.path.exists("/etc/debian_version")


def _python() -> str:
    return shlex.quote(sys.executable or "python")


def has_pip() -> bool:
    """Whether this interpreter has a pip.

    Not asked of ``sys.meta_path``: the finder of setuptools takes the question for pip running,
    and gives the process the distutils of the standard library, which setuptools then refuses.
    """
    from importlib.machinery import PathFinder

    return PathFinder.find_spec("pip") is not None


def version_of_pip() -> str:
    """The pip of this interpreter, read from its text: importing it changes the process."""
    import re
    from importlib.machinery import PathFinder

    spec = PathFinder.find_spec("pip")
    try:
        with open(str(spec and spec.origin), encoding="utf-8", errors="replace") as file:
            match = re.search(r"^__version__ = [\"']([^\"']+)", file.read(), re.MULTILINE)
    except OSError:
        return "0"
    return match[1] if match else "0"


def installed(name: str) -> Any:
    """The metadata of a distribution; None where there is none."""
    from importlib import metadata

    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
