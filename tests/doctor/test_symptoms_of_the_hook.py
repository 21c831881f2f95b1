"""A hook that is switched off, comes too late or does not understand a text is found."""

from __future__ import annotations

import shutil

from tests.doctor.sandbox import REPOSITORY, Machine, healthy


def test_a_text_that_is_not_understood(machine: Machine) -> None:
    healthy(machine)
    (machine.site / "mamba_ssm").unlink()
    shutil.copytree(REPOSITORY / "jetson_mamba" / "hook" / "stand_in", machine.site / "mamba_ssm")
    (machine.site / "mamba_ssm" / "ops").mkdir()
    (machine.site / "mamba_ssm" / "ops" / "selective_scan_interface.py").write_text(
        "import causal_conv1d_cuda\ndef f(x):\n    return causal_conv1d_cuda.causal_conv1d_fwd(x)\n"
    )
    report = machine.examine(hook=True)
    (finding,) = (each for each in report["findings"] if each["symptom"] == "copy-refused")
    assert "selective_scan_interface stays as it is installed" in finding["what"]
    assert finding["command"] == "export JETSON_MAMBA=off"  # pip knows of no release to replace
    assert str(machine.site / "mamba_ssm" / "ops") in finding["why"]
    assert "mamba_ssm.ops.selective_scan_interface" in report["hook"]["refused"]


def test_a_hook_that_another_finder_goes_before(machine: Machine) -> None:
    healthy(machine)
    code = (
        "import sys\n"
        "from importlib.machinery import ModuleSpec\n"
        "class Other:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        return ModuleSpec(name, None) if name.startswith('mamba_ssm.') else None\n"
        "sys.meta_path.insert(0, Other())\n"
    )
    report = machine.examine(hook=True, first=code)
    assert report["hook"]["taken_by"] == "__main__.Other"
    assert report["hook"]["finders"][:2] == ["__main__.Other", "jetson_mamba.finder.Finder"]
    assert [each["symptom"] for each in report["findings"]] == ["bypassed"]


def test_a_target_that_was_imported_before_the_hook(machine: Machine) -> None:
    healthy(machine)
    name = "mamba_ssm.ops.selective_scan_interface"
    first = f"import sys, types; sys.modules['{name}'] = types.ModuleType('{name}')\n"
    report = machine.examine(first="import jetson_mamba\n" + first)
    assert report["hook"]["too_late"] == [name]
    (finding,) = report["findings"]
    assert (finding["symptom"], finding["cured"]) == ("bypassed", False)


def test_a_hook_that_is_switched_off(machine: Machine) -> None:
    healthy(machine)
    (machine.site / "selective_scan_cuda.py").unlink()
    machine.environment["JETSON_MAMBA"] = "off"
    report = machine.examine(hook=True)
    assert report["hook"]["mode"] == "off" and not report["hook"]["active"]
    (finding,) = report["findings"]
    assert (finding["command"], finding["cured"]) == ("unset JETSON_MAMBA", False)
