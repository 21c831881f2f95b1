"""Lets tests that are written for a GPU run where there is none, as far as they can.

A plugin of pytest, of which theirs know nothing: what they make on ``cuda`` is made on the CPU, and
a test that then meets what only a GPU has is skipped. With a GPU nothing is changed.
Importing it activates the hook, in processes of pytest-xdist as well.
"""

from __future__ import annotations

import ast
import re
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any, Generator

import pytest
import torch
from einops import rearrange
from torch.overrides import TorchFunctionMode

import jetson_mamba

# What torch and Triton say where there is no GPU.
NEEDS_GPU = re.compile(
    r"NVIDIA driver|active driver|not compiled with CUDA|CUDA GPU|is_cuda|nvidia|dummy base class"
)
EVERY, REFERENCES = "--every", "--references"


class OnTheCPU(TorchFunctionMode):
    """Puts on the CPU what is asked for on a GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func`` with another device."""
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.device:
            return _on_the_cpu(func(*args, **(kwargs or {})))
        args = tuple(_on_the_cpu(each) for each in args)
        return func(*args, **{name: _on_the_cpu(each) for name, each in (kwargs or {}).items()})


def _on_the_cpu(value: Any) -> Any:
    named = isinstance(value, str) and value.partition(":")[0] == "cuda"
    if named or (isinstance(value, torch.device) and value.type == "cuda"):
        return torch.device("cpu")
    return value


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--every N``, one test of N, and ``--references FOLDER``."""
    parser.addoption(EVERY, type=int, default=1, help="run one test of this many")
    parser.addoption(REFERENCES, type=Path, help="their causal_conv1d, for its references")


def pytest_configure(config: pytest.Config) -> None:
    """Redirect, where there is no GPU."""
    assert jetson_mamba.is_active()
    folder = config.getoption(REFERENCES)
    for path in [] if folder is None else folder.glob("causal_conv1d_*.py"):
        _give_references(path)
    if not torch.cuda.is_available():
        OnTheCPU().__enter__()  # type: ignore[no-untyped-call]
        torch.cuda.synchronize = lambda *_: None


def _give_references(path: Path) -> None:
    """Give a module of the stand-in the functions ``*_ref`` that theirs has and their tests use."""
    module = import_module(f"causal_conv1d.{path.stem}")
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    wanted = [
        each
        for each in tree.body
        if isinstance(each, ast.FunctionDef) and each.name.endswith("_ref")
    ]
    names: dict[str, Any] = {"torch": torch, "F": torch.nn.functional, "rearrange": rearrange}
    exec(compile(ast.Module([*wanted], []), str(path), "exec"), names)
    for each in wanted:
        if not hasattr(module, each.name):
            setattr(module, each.name, names[each.name])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out all but one of so many."""
    items[:] = items[:: config.getoption(EVERY)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Skip a test that has met what only a GPU has."""
    try:
        yield
    except Exception as error:
        if not torch.cuda.is_available() and (
            NEEDS_GPU.search(str(error)) or _in_a_launcher(error, item.path)
        ):
            pytest.skip("needs a GPU")
        raise


def _in_a_launcher(error: Exception, test: Path) -> bool:
    """Whether the test itself called a launcher of one kernel, which is private to its module."""
    frames = traceback.extract_tb(error.__traceback__)
    called = [
        after.name
        for before, after in zip(frames, frames[1:])
        if Path(before.filename) == test and Path(after.filename) != test
    ]
    return bool(called) and called[-1].startswith("_") and called[-1].endswith(("_fwd", "_bwd"))
