"""What an import of a target gives with the hook. What is no target is left alone."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.hook.pythons import interpreters
from tests.hook.sandbox import INTERFACE, Sandbox

TARGET = "mamba_ssm.ops.selective_scan_interface"
# More arguments than the op has parameters: no form that somebody may contribute.
UNKNOWN_FORM = INTERFACE.replace("None, None, None,", "None, None, None, None, None,")


def test_the_copy_runs_and_calls_the_ops(sandbox: Sandbox) -> None:
    """Calls are replaced with their arguments by name; the extensions are never imported."""
    assert sandbox.output(
        f"""
        from {TARGET} import MambaInnerFn
        name, arguments, keywords = MambaInnerFn().forward("x", True)[1][0]
        print(name, arguments, sorted(keywords.items(), key=lambda item: item[0]))
        print(sorted(set(sys.modules) & {{"causal_conv1d_cuda", "selective_scan_cuda"}}))
        """
    ).splitlines() == [
        "causal_conv1d_fn ('x', 'w', 'b') [('activation', 'silu'), ('final_states_out', None), "
        "('initial_states', None), ('seq_idx', None)]",
        "[]",
    ]


def test_the_flag_decides_the_activation_at_run_time(sandbox: Sandbox) -> None:
    assert sandbox.output(
        f"""
        from {TARGET} import MambaInnerFn
        for flag in (True, False):
            print(MambaInnerFn().forward("x", flag)[1][0][2]["activation"])
        """
    ).split() == ["silu", "None"]


def test_a_function_that_no_release_has_runs_its_own_code(sandbox: Sandbox) -> None:
    assert (
        sandbox.output(
            """
            from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
            print(mamba_chunk_scan_combined("x", "dt", 2) == ("triton", ("x", "dt", 2)))
            """
        )
        == "True"
    )


def test_any_other_name_is_left_alone_without_input_or_output(sandbox: Sandbox) -> None:
    """Not even the module that makes copies is imported, and no file is touched."""
    assert (
        sandbox.output(
            """
            events = []
            sys.addaudithook(lambda event, arguments: events.append(event))
            finder = jetson_mamba._finder
            del events[:]
            results = [finder.find_spec(name) for name in (
                "json", "mamba_ssm", "mamba_ssm.ops", "mamba_ssm.modules.block",
                "selective_scan_interface", "x.mamba_ssm.ops.selective_scan_interface",
            )]
            print(set(results), events, "jetson_mamba.hook.copies" in sys.modules)
            """
        )
        == "{None} [] False"
    )


def test_a_text_in_an_unknown_form_is_imported_as_it_is_with_one_warning(
    sandbox: Sandbox,
) -> None:
    sandbox.interface.write_text(UNKNOWN_FORM)
    stub_extensions(sandbox)
    done = sandbox.run(
        f"""
        import {TARGET} as module
        print(module.__file__)
        import importlib; importlib.import_module("{TARGET}")
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(sandbox.interface)
    assert done.stderr.count("RuntimeWarning") == 1
    assert f"{TARGET} stays as it is installed" in done.stderr
    assert "causal_conv1d_cuda.causal_conv1d_fwd on line 19 has 9 positional" in done.stderr


def test_strict_mode_makes_it_an_import_error(sandbox: Sandbox) -> None:
    sandbox.interface.write_text(UNKNOWN_FORM)
    stub_extensions(sandbox)
    done = sandbox.run(f"import {TARGET}", environment={"JETSON_MAMBA": "strict"})
    assert done.returncode == 1
    assert f"ImportError: {TARGET} stays as it is installed" in done.stderr


def test_off_switches_everything_off(sandbox: Sandbox) -> None:
    stub_extensions(sandbox)
    assert (
        sandbox.output(
            f"""
        import {TARGET} as module
        print(module.__file__, jetson_mamba.is_active())
        """,
            environment={"JETSON_MAMBA": "off"},
        )
        == f"{sandbox.interface} False"
    )


def test_another_mode_is_said_to_be_unknown_and_taken_as_on(sandbox: Sandbox) -> None:
    done = sandbox.run(
        f"import {TARGET} as module; print(module.__file__)", environment={"JETSON_MAMBA": "yes"}
    )
    assert done.stdout.startswith(str(sandbox.cache))
    assert done.stderr.count("expected on, strict or off, found 'yes'; taken as on") == 1


def test_a_target_imported_before_activation_stays_and_one_warning_says_so(
    sandbox: Sandbox,
) -> None:
    stub_extensions(sandbox)
    done = sandbox.run(
        f"""
        import {TARGET} as module
        import jetson_mamba
        jetson_mamba.deactivate(); jetson_mamba.activate()
        print(module.__file__)
        """,
        recorder=False,
        # Where the package is installed, its startup file would be first.
        options=("-S",),
    )
    assert done.stdout.strip() == str(sandbox.interface)
    assert done.stderr.count("RuntimeWarning") == 1
    assert "imported before jetson_mamba was activated" in done.stderr


def test_deactivation_concerns_later_imports_only(sandbox: Sandbox) -> None:
    stub_extensions(sandbox)
    first, second, *active = sandbox.output(
        f"""
        import {TARGET} as first
        jetson_mamba.deactivate()
        from mamba_ssm.ops.triton import ssd_combined as second
        print(first.__file__, second.__file__, jetson_mamba.is_active(), sep="\\n")
        """
    ).splitlines()
    assert first.startswith(str(sandbox.cache))
    assert second == str(sandbox.combined)
    assert active == ["False"]


def test_a_text_that_needs_no_change_is_imported_as_it_is_without_a_word(
    sandbox: Sandbox,
) -> None:
    """Releases of mamba-ssm that suit the transformers that is there have nothing to mend."""
    assert (
        sandbox.output("import mamba_ssm.utils.generation as module; print(module.__file__)")
    ) == str(sandbox.generation)


def test_names_that_transformers_removed_are_mended(sandbox: Sandbox) -> None:
    sandbox.generation.write_text(
        "from transformers.generation import (\n"
        "    GreedySearchDecoderOnlyOutput,  # gone\n"
        "    TextStreamer,\n"
        ")\n"
    )
    transformers = sandbox.site / "transformers"
    (transformers / "generation").mkdir(parents=True)
    (transformers / "__init__.py").touch()
    names = transformers / "generation" / "__init__.py"
    code = """
    from mamba_ssm.utils import generation
    print(generation.GreedySearchDecoderOnlyOutput, generation.TextStreamer)
    """
    names.write_text("GenerateDecoderOnlyOutput, TextStreamer = 'successor', 'streamer'\n")
    assert sandbox.output(code) == "successor streamer"
    names.write_text("GreedySearchDecoderOnlyOutput, TextStreamer = 'itself', 'streamer'\n")
    assert sandbox.output(code) == "itself streamer"


def test_the_spec_comes_from_the_finders_that_follow(sandbox: Sandbox) -> None:
    """As with an editable install, whose finder maps names to folders outside of sys.path."""
    elsewhere = sandbox.folder / "elsewhere"
    shutil.move(sandbox.site / "mamba_ssm", elsewhere)
    assert (
        sandbox.output(
            f"""
            import importlib.util
            class Editable:
                @staticmethod
                def find_spec(name, path=None, target=None):
                    if name == "mamba_ssm":
                        return importlib.util.spec_from_file_location(
                            name, {str(elsewhere / "__init__.py")!r},
                            submodule_search_locations=[{str(elsewhere)!r}])
            sys.meta_path.append(Editable)
            from {TARGET} import MambaInnerFn
            print(MambaInnerFn().forward("x", True)[0])
            """
        )
        == "selective_scan_fwd"
    )


def test_a_source_that_is_not_a_plain_file_is_left_alone(sandbox: Sandbox) -> None:
    shutil.make_archive(str(sandbox.folder / "packed"), "zip", sandbox.site)
    done = sandbox.run(
        f"""
        sys.path.insert(0, {str(sandbox.folder / "packed.zip")!r})
        for extension in ("selective_scan_cuda", "causal_conv1d_cuda"):
            sys.modules[extension] = object()
        import {TARGET} as module
        print(module.__file__)
        """
    )
    assert "packed.zip" in done.stdout
    assert "does not read a plain .py file" in done.stderr


def test_no_writable_cache_is_no_error(sandbox: Sandbox) -> None:
    """The copy then runs from memory, and inspect and tracebacks still read it."""
    sandbox.cache.write_text("a file where the folder should be")
    assert (
        sandbox.output(
            f"""
            import inspect, traceback
            from {TARGET} import MambaInnerFn
            print("jetson_mamba.ops.causal_conv1d_fn" in inspect.getsource(MambaInnerFn))
            try:
                MambaInnerFn().fails()
            except ValueError:
                print('raise ValueError("on line 27")' in traceback.format_exc())
            """
        )
        == "True\nTrue"
    )


@pytest.mark.parametrize("damage", ["truncated", "tampered", "foreign mode"])
def test_a_damaged_copy_is_made_again_and_never_run(sandbox: Sandbox, damage: str) -> None:
    code = f"import {TARGET} as module; print(module.__file__)"
    copy = sandbox.folder / sandbox.output(code)
    text = copy.read_text()
    if damage == "truncated":
        copy.write_text(text[: len(text) // 2])
    elif damage == "tampered":
        copy.write_text(text.replace("import selective", "raise SystemExit; import selective"))
        copy.write_text("raise SystemExit('executed')\n" + text)
    else:
        copy.write_text("raise SystemExit('executed')\n" + text)
        copy.chmod(0o666)
    assert sandbox.output(code) == str(copy)
    assert copy.read_text() == text
    assert copy.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("level", ["cache", "copies"])
def test_a_cache_where_others_may_write_is_not_used(sandbox: Sandbox, level: str) -> None:
    code = f"import {TARGET} as module; print(module.__file__)"
    sandbox.output(code)
    folder = sandbox.cache if level == "cache" else sandbox.cache / "copies"
    folder.chmod(0o777)
    assert not sandbox.output(code).startswith(str(sandbox.cache))


def test_a_second_process_runs_the_cached_copy(sandbox: Sandbox) -> None:
    code = f"""
    import {TARGET}
    print(jetson_mamba._finder.outcomes["{TARGET}"].origin, "jetson_mamba.rewrite" in sys.modules)
    """
    assert sandbox.output(code).split()[0] == "made"
    assert sandbox.output(code).split()[0] == "cached"


def test_another_source_gets_another_copy(sandbox: Sandbox) -> None:
    code = f"import {TARGET} as module; print(module.__file__)"
    first = sandbox.output(code)
    sandbox.interface.write_text(INTERFACE + "# one more comment\n")
    assert sandbox.output(code) != first


def test_thirty_two_threads_may_import_first(sandbox: Sandbox) -> None:
    assert (
        sandbox.output(
            f"""
            import importlib, threading
            start, found = threading.Barrier(32), []
            def work():
                start.wait()
                found.append(importlib.import_module("{TARGET}").MambaInnerFn)
            threads = [threading.Thread(target=work) for _ in range(32)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            print(len(found), len(set(found)))
            """
        )
        == "32 1"
    )


def test_processes_that_start_cold_together_all_succeed(sandbox: Sandbox) -> None:
    code = f"""
    import subprocess
    code = "import jetson_mamba, sys, types; jetson_mamba.ops = types.ModuleType('ops'); "
    code += "sys.modules['jetson_mamba.ops'] = jetson_mamba.ops; import {TARGET}"
    started = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(16)]
    print([process.wait() for process in started])
    """
    assert sandbox.output(code) == str([0] * 16)
    assert len(list((sandbox.cache / "copies").glob("*.py"))) == 1
    assert not list((sandbox.cache / "copies").glob(".*"))


def stub_extensions(sandbox: Sandbox) -> None:
    """Make the extensions importable, so that upstream's own module runs."""
    for name in ("selective_scan_cuda", "causal_conv1d_cuda"):
        (sandbox.site / f"{name}.py").touch()
    (sandbox.site / "causal_conv1d.py").write_text("causal_conv1d_fn = None\n")


@pytest.mark.parametrize("python", interpreters(), ids=os.path.basename)
def test_every_interpreter_here_makes_the_same_copy(sandbox: Sandbox, python: str) -> None:
    code = f"""
    import {TARGET} as module
    from mamba_ssm.ops.triton import ssd_combined
    print(module.MambaInnerFn().forward("x", True)[0])
    from pathlib import Path
    print(Path(module.__file__).read_text(), Path(ssd_combined.__file__).read_text())
    """
    theirs = sandbox.output(code, python=python)
    shutil.rmtree(sandbox.cache)
    assert theirs == sandbox.output(code)
