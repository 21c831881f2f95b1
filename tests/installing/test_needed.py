"""What is advised for a missing package goes with the torch that is there.

It goes with the pip as well.
"""

from __future__ import annotations

import platform
import shlex
import sys
from types import SimpleNamespace

import pytest

from jetson_mamba import advice
from jetson_mamba.hook import missing
from jetson_mamba.releases import needed, together

PIP = [sys.executable, "-m", "pip", "install"]


@pytest.fixture(params=[("20.0.2", "aarch64"), ("22.0.2", "aarch64"), ("20.0.2", "x86_64")])
def old(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A machine's pip, and whether it would compile what JetPack 5's would."""
    version, architecture = request.param
    monkeypatch.setattr(advice, "version_of_pip", lambda: version)
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    return bool(request.param == ("20.0.2", "aarch64"))


@pytest.mark.parametrize("torch", ["2.0.1", "2.1.0a0+41361538.nv23.06", "2.4.1", "2.6.0", ""])
def test_transformers_is_one_that_takes_this_torch_and_has_wheels_for_this_pip(
    torch: str, old: bool
) -> None:
    """The newest switches torch before 2.6 off, and asks for what pip 20.0 would compile."""
    words = shlex.split(needed.command(torch, "transformers"))
    assert words[:4] == PIP
    if old:
        hub = f"huggingface-hub{together.HUB_WITHOUT_XET}"
        wanted = ["--prefer-binary", f"transformers{together.TRANSFORMERS_WITHOUT_XET}", hub]
    else:
        wanted = [f"transformers{together.transformers_for(torch) if torch else ''}"]
    assert words[4:] == wanted


def test_what_nothing_depends_on_is_asked_for_by_its_name(old: bool) -> None:
    wanted = ["--prefer-binary"] * old
    assert shlex.split(needed.command("2.4.1", "einops")) == [*PIP, *wanted, "einops"]


@pytest.mark.parametrize(("torch", "bound"), [("2.4.1", "<5"), ("2.11.0", "")])
def test_an_import_that_lacks_transformers_names_that_one(
    torch: str, bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 1, met by who installed mamba-ssm by hand."""
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__=torch))
    error = ModuleNotFoundError("No module named 'transformers'", name="transformers")
    missing.explain(error)
    assert str(error).endswith(f"pip install {shlex.quote(f'transformers{bound}')}")
