"""Copies of mamba-ssm in packages of other names are modified. Nothing else is touched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from jetson_mamba.finder import TARGETS, WATCHED, tails
from tests import interpreters
from tests.hook.pythons import oldest_own_newest
from tests.hook.sandbox import COMBINED, INTERFACE, Sandbox
from tests.hook.test_import import UNKNOWN_FORM
from tools.releases import release_path

PLACES = (
    "own.mamba_ssm.ops.selective_scan_interface",
    "networks.mamba.ops.selective_scan_interface",
    "models.selective_scan_interface",
)


def put(sandbox: Sandbox, name: str, text: str) -> Path:
    """A module of that name with a text, in packages."""
    *parents, last = name.split(".")
    folder = sandbox.site
    for each in parents:
        folder = folder / each
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").touch()
    path = folder / f"{last}.py"
    path.write_text(text)
    return path


@pytest.mark.parametrize("python", oldest_own_newest(), ids=os.path.basename)
@pytest.mark.parametrize("name", PLACES)
def test_a_text_that_makes_the_calls_is_served(sandbox: Sandbox, name: str, python: str) -> None:
    put(sandbox, name, INTERFACE + "\nfrom . import __name__ as package\n")
    printed = sandbox.output(
        f"""
        import {name} as module
        print(module.MambaInnerFn().forward("x", True)[0], module.__name__, module.package)
        print(module.__file__)
        found = [each for each in jetson_mamba.status().targets if each.state == "modified"]
        print(*[(each.name, each.copy) for each in found])
        """,
        python=python,
    ).splitlines()
    assert printed[0] == f"selective_scan_fwd {name} {name.rpartition('.')[0]}"
    assert printed[1].startswith(str(sandbox.cache))
    assert printed[2] == str((name, "made"))


UNTOUCHED = {
    "other text under the name": ("x.ops.selective_scan_interface", "VALUE = 1\n"),
    "words of it, no call": ("x.ops.selective_scan_interface", "# causal_conv1d\nVALUE = 1\n"),
    "a call in an unknown form": ("x.ops.selective_scan_interface", UNKNOWN_FORM + "VALUE = 1\n"),
    "no module of a package": ("selective_scan_interface", "VALUE = 1 # mamba causal_conv1d\n"),
    "a common word in another folder": ("x.layers.layer_norm", "VALUE = 1 # triton\n"),
    "a common word in its folder": ("x.triton.layer_norm", "VALUE = 1 # triton\n"),
    "text that does not parse for an edit": ("x.modules.mamba2", "VALUE = 1 # mamba\n"),
}


@pytest.mark.parametrize("mode", ["on", "strict"])
@pytest.mark.parametrize("case", UNTOUCHED)
def test_any_other_is_left_alone_without_a_word(sandbox: Sandbox, case: str, mode: str) -> None:
    name, text = UNTOUCHED[case]
    path = put(sandbox, name, text)
    for extension in ("selective_scan_cuda", "causal_conv1d_cuda", "causal_conv1d"):
        (sandbox.site / f"{extension}.py").write_text("causal_conv1d_fn = None\n")
    assert sandbox.output(
        f"""
            import {name} as module
            print(module.VALUE, module.__file__, type(module.__loader__).__name__)
            print(type(module.__spec__.loader).__name__, module.__spec__.origin)
            print(module.__spec__.cached is not None, len(jetson_mamba.status().targets))
            """,
        environment={"JETSON_MAMBA": mode},
    ).splitlines() == [
        f"1 {path} SourceFileLoader",
        f"SourceFileLoader {path}",
        f"True {len(TARGETS)}",
    ]


def test_a_text_without_its_words_costs_no_import_of_ours(sandbox: Sandbox) -> None:
    put(sandbox, "x.ops.selective_scan_interface", "VALUE = 1\n")
    code = "import x.ops.selective_scan_interface\nprint('jetson_mamba.hook.copies' in sys.modules)"
    assert sandbox.output(code) == "False"


def test_a_loader_of_another_kind_is_left_alone_without_a_word(sandbox: Sandbox) -> None:
    put(sandbox, PLACES[0], INTERFACE)
    archive = shutil.make_archive(str(sandbox.folder / "packed"), "zip", sandbox.site)
    shutil.rmtree(sandbox.site / "own")
    printed = sandbox.output(
        f"""
        sys.path.append({archive!r})
        sys.modules.update(dict.fromkeys(("selective_scan_cuda", "causal_conv1d_cuda"), sys))
        import {PLACES[0]} as module
        print(type(module.__loader__).__name__)
        """
    )
    assert printed == "zipimporter"


def test_both_packages_are_served_side_by_side(sandbox: Sandbox) -> None:
    put(sandbox, "own.mamba_ssm.ops.triton.ssd_combined", COMBINED)
    printed = sandbox.output(
        """
        from own.mamba_ssm.ops.triton import ssd_combined as theirs
        from mamba_ssm.ops.triton import ssd_combined
        print(theirs is ssd_combined, theirs.__file__ == ssd_combined.__file__)
        print(theirs.__name__, ssd_combined.__name__)
        """
    )
    assert printed.splitlines() == [
        "False True",
        "own.mamba_ssm.ops.triton.ssd_combined mamba_ssm.ops.triton.ssd_combined",
    ]


def test_every_target_has_an_end_of_its_own() -> None:
    assert sorted(tails().values()) == sorted(TARGETS)
    for tail, target in tails().items():
        assert target.endswith(f".{tail}")
        assert tail.rpartition(".")[2] in WATCHED


def test_a_block_of_a_release_under_another_name_trains(tmp_path: Path) -> None:
    """The whole package, whose imports name the other package; nothing compiled is there."""
    pytest.importorskip("torch")
    shutil.copytree(release_path("2.3.2.post1") / "mamba_ssm", tmp_path / "own" / "mamba_ssm")
    (tmp_path / "own" / "__init__.py").touch()
    for path in (tmp_path / "own").rglob("*.py"):
        path.write_text(path.read_text().replace("from mamba_ssm", "from own.mamba_ssm"))
    code = (
        "import torch, jetson_mamba\n"
        "from own.mamba_ssm.modules.mamba_simple import Mamba\n"
        "from own.mamba_ssm.modules.mamba2 import Mamba2\n"
        "Mamba(16)(torch.randn(1, 4, 16)).sum().backward()\n"
        "Mamba2(64, headdim=16)(torch.randn(1, 4, 64)).sum().backward()\n"
        "names = [each.name for each in jetson_mamba.status().targets if each.copy]\n"
        "print([name for name in names if name == 'own.mamba_ssm.modules.mamba2'], len(names))\n"
    )
    done = interpreters.run(
        ["-W", "ignore", "-c", code],
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("JETSON_MAMBA")},
            "PYTHONPATH": str(tmp_path),
            "JETSON_MAMBA_CACHE": str(tmp_path / "cache"),
        },
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("['own.mamba_ssm.modules.mamba2'] ")
