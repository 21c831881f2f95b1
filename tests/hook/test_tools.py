"""Tools that look at modules see a modified copy as they see any other."""

from __future__ import annotations

from pathlib import Path

from tests.hook.sandbox import INTERFACE, Sandbox

TARGET = "mamba_ssm.ops.selective_scan_interface"


def test_inspect_reads_the_copy(sandbox: Sandbox) -> None:
    assert sandbox.output(
        f"""
            import inspect
            import {TARGET} as module
            source = inspect.getsource(module.MambaInnerFn.forward)
            print("jetson_mamba.ops.causal_conv1d_fn" in source)
            print(inspect.getsourcefile(module) == module.__file__ == module.__spec__.origin)
            print(inspect.getsourcelines(module.MambaInnerFn)[1])
            """
    ).split() == ["True", "True", str(line_of("class MambaInnerFn"))]


def test_traceback_lines_are_those_of_the_source(sandbox: Sandbox) -> None:
    done = sandbox.run(f"from {TARGET} import MambaInnerFn; MambaInnerFn().fails()")
    line = line_of("raise ValueError")
    assert f"line {line}, in fails\n    raise ValueError" in done.stderr


def test_pickles_cross_between_copy_and_original(sandbox: Sandbox) -> None:
    """A model saved with the hook loads without it, and the other way round."""
    stub = "sys.modules.update(dict.fromkeys(('selective_scan_cuda', 'causal_conv1d_cuda'), sys))"
    for writer, reader in (("on", "off"), ("off", "on")):
        sandbox.output(
            f"""
            {stub}
            import pickle
            from {TARGET} import MambaInnerFn
            with open("saved", "wb") as file:
                pickle.dump(MambaInnerFn(7), file)
            """,
            environment={"JETSON_MAMBA": writer},
        )
        assert (
            sandbox.output(
                f"""
                {stub}
                import pickle
                with open("saved", "rb") as file:
                    print(pickle.load(file).value)
                """,
                environment={"JETSON_MAMBA": reader},
            )
            == "7"
        )


def test_reload_runs_the_copy_of_what_is_installed_then(sandbox: Sandbox) -> None:
    assert (
        sandbox.output(
            f"""
            import importlib
            import {TARGET} as module
            first = module.__file__
            with open({str(sandbox.interface)!r}, "a") as file:
                file.write("ADDED = 1\\n")
            assert importlib.reload(module) is module
            print(module.ADDED, module.__file__ != first, module.MambaInnerFn().forward("x", 1)[0])
            """
        )
        == "1 True selective_scan_fwd"
    )


def test_running_a_target_as_a_script_runs_the_copy(sandbox: Sandbox) -> None:
    sandbox.interface.write_text(INTERFACE + "print(MambaInnerFn().forward('x', True)[0])\n")
    assert (
        sandbox.output(
            f"""
            import runpy
            runpy.run_module("{TARGET}", run_name="__main__")
            """
        )
        == "selective_scan_fwd"
    )


def test_resources_beside_a_target_are_found(sandbox: Sandbox) -> None:
    (sandbox.interface.parent / "data.txt").write_text("beside")
    assert (
        sandbox.output(
            f"""
            import pkgutil
            import {TARGET}
            print(pkgutil.get_data("mamba_ssm.ops", "data.txt").decode())
            """
        )
        == "beside"
    )


def test_coverage_measures_the_copy(sandbox: Sandbox) -> None:
    assert (
        sandbox.output(
            f"""
            import coverage
            measured = coverage.Coverage(data_file=None)
            measured.start()
            import {TARGET} as module
            module.MambaInnerFn().forward("x", True)
            measured.stop()
            _, statements, _, missing, _ = measured.analysis2(module.__file__)
            print(len(statements) > 8, missing)
            """
        )
        == f"True [5, 6, {line_of('raise ValueError')}]"
    )


def test_pytest_runs_with_the_hook_and_rewrites_assertions(sandbox: Sandbox) -> None:
    """Also where pytest is asked to rewrite the assertions of mamba_ssm itself."""
    (sandbox.folder / "test_it.py").write_text(
        f"from {TARGET} import MambaInnerFn\n"
        "def test_it():\n    assert MambaInnerFn().forward('x', True)[0] == 'other'\n"
    )
    code = """
    import pytest
    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "test_it.py"]) != 1)
    """
    done = sandbox.run(code)
    assert done.returncode == 0, done.stderr
    assert "assert 'selective_scan_fwd' == 'other'" in done.stdout
    done = sandbox.run(
        f"""
        sys.modules.update(dict.fromkeys(('selective_scan_cuda', 'causal_conv1d_cuda'), sys))
        import pytest
        pytest.register_assert_rewrite("mamba_ssm")
        {code.strip().splitlines()[-1].strip()}
        """
    )
    assert "assert 'selective_scan_fwd' == 'other'" in done.stdout
    assert "as it is installed" not in done.stdout + done.stderr


TYPEGUARD = "import typeguard; typeguard.install_import_hook(['mamba_ssm'])"
BEARTYPE = "from beartype import claw; claw.beartype_packages(['mamba_ssm'])"
ANNOTATED = (
    INTERFACE + "\n\ndef typed(value: int) -> int:\n"
    "    return selective_scan_cuda.fwd(value)[0] and value\n"
)


def patched_or_warned(sandbox: Sandbox, before: str, after: str) -> bool:
    """Whether the copy runs, with the other hook's checks in it; else there is a warning."""
    sandbox.interface.write_text(ANNOTATED)
    for extension in ("selective_scan_cuda", "causal_conv1d_cuda"):
        (sandbox.site / f"{extension}.py").write_text("def fwd(*_): return 'upstream'\n")
    done = sandbox.run(
        f"""
        jetson_mamba.deactivate()
        {before}
        jetson_mamba.activate()
        {after}
        import {TARGET} as module
        print(module.MambaInnerFn.forward.__code__.co_filename)
        try:
            module.typed("text")
        except Exception as error:
            print("checked", type(error).__name__)
        """
    )
    assert done.returncode == 0, done.stderr
    assert "checked" in done.stdout
    patched = str(sandbox.cache) in done.stdout
    assert patched or f"{TARGET} stays as it is installed: another import hook" in done.stderr
    return patched


def test_typeguard_installed_before_checks_the_copy(sandbox: Sandbox) -> None:
    assert patched_or_warned(sandbox, TYPEGUARD, "")


def test_typeguard_installed_after_takes_the_target_and_a_warning_says_so(
    sandbox: Sandbox,
) -> None:
    assert not patched_or_warned(sandbox, "", TYPEGUARD)


def test_beartype_checks_the_copy_whenever_it_was_installed(sandbox: Sandbox) -> None:
    assert patched_or_warned(sandbox, BEARTYPE, "")


def test_beartype_installed_after_checks_the_copy_too(sandbox: Sandbox) -> None:
    assert patched_or_warned(sandbox, "", BEARTYPE)


def test_after_a_bypass_the_next_target_is_modified(sandbox: Sandbox) -> None:
    for extension in ("selective_scan_cuda", "causal_conv1d_cuda"):
        (sandbox.site / f"{extension}.py").touch()
    done = sandbox.run(
        f"""
        {TYPEGUARD}
        import {TARGET}
        from mamba_ssm.ops.triton import ssd_combined
        print(ssd_combined.__file__)
        """
    )
    assert done.stdout.startswith(str(sandbox.cache))
    assert done.stderr.count("RuntimeWarning") == 1


def test_a_bypassed_target_is_an_error_in_strict_mode(sandbox: Sandbox) -> None:
    done = sandbox.run(f"{TYPEGUARD}\nimport {TARGET}", environment={"JETSON_MAMBA": "strict"})
    assert done.returncode == 1
    assert "ImportError" in done.stderr
    assert "another import hook" in done.stderr


def line_of(text: str) -> int:
    """The number of the line of the small module that holds ``text``."""
    return 1 + INTERFACE[: INTERFACE.index(text)].count("\n")


def test_no_file_of_the_package_is_changed(sandbox: Sandbox) -> None:
    before = {path: path.read_bytes() for path in files(sandbox.site)}
    sandbox.output(f"import {TARGET}, mamba_ssm.ops.triton.ssd_combined", options=("-B",))
    assert {path: path.read_bytes() for path in files(sandbox.site)} == before


def files(folder: Path) -> list[Path]:
    """Every file below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]
