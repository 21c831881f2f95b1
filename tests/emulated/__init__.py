"""Stand-ins for compiled extensions, so that what calls them is tested without a GPU.

They compute with PyTorch, on any device, and are as strict as the real ones: in the number and
kind of arguments, in layouts, in what they return and what they write in place.
:func:`install` makes them importable under the real names, in this process or a fresh one::

    import tests.emulated
    tests.emulated.install(causal_conv1d="1.2.2", selective_scan=True)

This module imports no torch: like a real extension, a stand-in cannot be imported before it.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Callable, Iterator, Sequence

Fill = Callable[[ModuleType], None]

UNDEFINED_SYMBOL = "undefined symbol"
NO_KERNEL_IMAGE = "no kernel image"
CUDA_ONLY = "cuda only"
WRONG_RESULTS = "wrong results"
FAILURES = (UNDEFINED_SYMBOL, NO_KERNEL_IMAGE, CUDA_ONLY, WRONG_RESULTS)


def install(
    causal_conv1d: str | None = None,
    package: bool = False,
    selective_scan: bool = False,
    failure: str | None = None,
) -> None:
    """Make stand-ins importable.

    Args:
        causal_conv1d: the release whose compiled module ``causal_conv1d_cuda`` to provide.
        package: also provide the Python package ``causal_conv1d`` of that release, reduced to
            its functions.
        selective_scan: provide ``selective_scan_cuda``.
        failure: how the compiled modules fail, one of ``FAILURES``. With "undefined symbol"
            they raise when imported, with "no kernel image" when called; "cuda only" refuses
            the tensors of a CPU as the real ones do; "wrong results" gives zeros.
    """
    if failure is not None and failure not in FAILURES:
        raise ValueError(f"failure: expected one of {FAILURES}, found {failure!r}")
    modules: dict[str, Fill] = {}
    if causal_conv1d is not None:
        release = causal_conv1d

        def compiled(module: ModuleType) -> None:
            from . import causal_conv1d_cuda

            causal_conv1d_cuda.fill(module, release, failure)

        modules["causal_conv1d_cuda"] = _after_torch(compiled, failure)
        if package:

            def wrapper(module: ModuleType) -> None:
                from . import causal_conv1d_package

                causal_conv1d_package.fill(module, release)

            modules["causal_conv1d"] = wrapper
            if version(release) >= (1, 5, 1):

                def functions(module: ModuleType) -> None:
                    from . import causal_conv1d_package

                    causal_conv1d_package.fill_cpp_functions(module)

                modules["causal_conv1d.cpp_functions"] = functions
    if selective_scan:

        def scan(module: ModuleType) -> None:
            from . import selective_scan_cuda

            selective_scan_cuda.fill(module, failure)

        modules["selective_scan_cuda"] = _after_torch(scan, failure)
    for name in modules:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, _Finder(modules))


def uninstall() -> None:
    """Take every stand-in away again."""
    for finder in [finder for finder in sys.meta_path if isinstance(finder, _Finder)]:
        sys.meta_path.remove(finder)
        for name in finder.modules:
            sys.modules.pop(name, None)


@contextmanager
def installed(
    causal_conv1d: str | None = None,
    package: bool = False,
    selective_scan: bool = False,
    failure: str | None = None,
) -> Iterator[None]:
    """:func:`install` for the duration of a ``with`` block; what was imported before returns."""
    names = (
        "causal_conv1d",
        "causal_conv1d.cpp_functions",
        "causal_conv1d_cuda",
        "selective_scan_cuda",
    )
    # A test before this one may have imported the real ones, or others' stand-ins.
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    install(causal_conv1d, package, selective_scan, failure)
    try:
        yield
    finally:
        uninstall()
        sys.modules.update(before)


def version(release: str) -> tuple[int, ...]:
    """The numbers of a release, without a suffix: ``(1, 5, 0)`` for ``1.5.0.post8``."""
    return tuple(int(part) for part in release.split(".")[:3] if part.isdigit())


def _after_torch(fill: Fill, failure: str | None) -> Fill:
    """``fill``, failing where the dynamic linker would."""

    def guarded(module: ModuleType) -> None:
        if "torch" not in sys.modules:
            raise ImportError(
                "libc10.so: cannot open shared object file: No such file or directory"
            )
        if failure == UNDEFINED_SYMBOL:
            raise ImportError(
                f"{module.__name__}.cpython-311-aarch64-linux-gnu.so: undefined symbol: "
                "_ZN3c104cuda9SetDeviceEi"
            )
        fill(module)

    return guarded


class _Finder(MetaPathFinder):
    """Finds the stand-ins before whatever may be installed."""

    def __init__(self, modules: dict[str, Fill]) -> None:
        self.modules = modules

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.modules:
            return None
        return ModuleSpec(
            fullname, _Filler(self.modules[fullname]), is_package=fullname == "causal_conv1d"
        )


class _Filler(Loader):
    def __init__(self, fill: Fill) -> None:
        self._fill = fill

    def exec_module(self, module: ModuleType) -> None:
        self._fill(module)
