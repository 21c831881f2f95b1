"""Faults of concurrency: several importers at once.

They are processes, threads and interpreters.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.declared import fault
from tests.faults.environment import TARGET, Environment, files, in_cache, served
from tests.hook import test_import
from tests.hook.sandbox import RECORDER, Sandbox

SERVED = "every one runs the copy"

fault(__name__, "16 processes start cold at once", f"{SERVED}; one file is made")(
    test_import.test_processes_that_start_cold_together_all_succeed
)
fault(__name__, "32 threads import a target first", SERVED)(
    test_import.test_thirty_two_threads_may_import_first
)
fault(__name__, "programs run under several Pythons, from 3.8 on", "each makes the very same copy")(
    test_import.test_every_interpreter_here_makes_the_same_copy
)

# A module that worker processes import; it tells what they run the target from.
WORKER = (
    RECORDER
    + f"""
def where(_):
    import {TARGET} as module
    assert jetson_mamba.activated_by == "startup file"
    return module.MambaInnerFn().forward("x", True)[0] + " " + module.__file__
"""
)


@pytest.mark.parametrize("already", [False, True], ids=["cold", "imported before"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@fault(__name__, "worker processes are forked, spawned, or come from a fork server", SERVED)
def test_worker_processes(environment: Environment, method: str, already: bool) -> None:
    (environment.folder / "worker.py").write_text(WORKER)
    printed = environment.output(
        f"""
        import multiprocessing, worker
        if {already}:
            worker.where(0)
        with multiprocessing.get_context("{method}").Pool(2) as pool:
            print(*pool.map(worker.where, range(4), chunksize=1), sep="\\n")
        """
    )
    results = {tuple(line.split(maxsplit=1)) for line in printed.splitlines()}
    ((result, path),) = results
    assert result == "selective_scan_fwd"
    assert in_cache(environment, path)
    assert len(files(environment.cache)) == 1


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs torch")
@fault(__name__, "the workers of a torch `DataLoader` import a target", SERVED)
def test_the_workers_of_a_dataloader(tmp_path: Path) -> None:
    environment = Environment(tmp_path, outer=True)
    printed = environment.output(
        f"""
        import torch
        class Paths(torch.utils.data.Dataset):
            def __len__(self):
                return 4
            def __getitem__(self, index):
                import {TARGET} as module
                return torch.utils.data.get_worker_info().id, module.__file__
        for workers, paths in torch.utils.data.DataLoader(Paths(), num_workers=2):
            print(int(workers), *paths)
        """
    )
    lines = [line.split(maxsplit=1) for line in printed.splitlines()]
    assert {worker for worker, _ in lines} == {"0", "1"}
    assert all(in_cache(environment, path) for _, path in lines)


INTERPRETERS = "import _interpreters as interpreters"
if sys.version_info < (3, 13):
    INTERPRETERS = "import _xxsubinterpreters as interpreters"
USABLE = f"""
{INTERPRETERS}
interpreter = interpreters.create()
interpreters.run_string(interpreter, "import hashlib")
interpreters.destroy(interpreter)
"""


@pytest.mark.skipif(
    subprocess.call([sys.executable, "-W", "ignore", "-c", USABLE], stderr=subprocess.DEVNULL) != 0,
    reason="this Python has no subinterpreters that can import hashlib, as 3.12.1",
)
@fault(__name__, "a subinterpreter imports a target", "it has a hook of its own and runs the copy")
def test_a_subinterpreter(environment: Environment) -> None:
    inside = RECORDER + (
        f"import {TARGET} as module\n"
        "assert jetson_mamba.activated_by == 'startup file'\n"
        "with open('seen', 'a') as file:\n    file.write(module.__file__ + '\\n')\n"
    )
    environment.output(
        f"""
        import warnings
        warnings.simplefilter("ignore")  # of what is provisional in the interface
        {INTERPRETERS}
        for _ in range(2):
            interpreter = interpreters.create()
            raised = interpreters.run_string(interpreter, {inside!r})
            assert raised is None, raised
            interpreters.destroy(interpreter)
        """
    )
    first, second = (environment.folder / "seen").read_text().splitlines()
    assert first == second
    assert in_cache(environment, first)


def free_threaded() -> list[str]:
    """The free-threaded Pythons of this machine."""
    found = [shutil.which(f"python3.{minor}t") for minor in range(13, 20)]
    return [python for python in found if python]


@pytest.mark.skipif(not free_threaded(), reason="no free-threaded Python on this machine")
@fault(__name__, "32 threads import a target first, in a Python without the lock", SERVED)
def test_threads_without_a_lock(sandbox: Sandbox) -> None:
    for python in free_threaded():
        printed = sandbox.output(
            f"""
            import importlib, sys, threading
            start, found = threading.Barrier(32), []
            def work():
                start.wait()
                found.append(importlib.import_module("{TARGET}").MambaInnerFn)
            threads = [threading.Thread(target=work) for _ in range(32)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            print(len(found), len(set(found)), sys._is_gil_enabled())
            """,
            python=python,
        )
        assert printed == "32 1 False"


@fault(
    __name__,
    "one thread switches the hook off while another imports",
    "a module is served or is upstream's own, never half of each",
)
def test_deactivation_while_another_thread_imports(sandbox: Sandbox) -> None:
    """Not even between the finder's being asked and its asking those after it."""
    test_import.stub_extensions(sandbox)
    printed = sandbox.output(
        f"""
        import importlib
        class Deactivating(type(jetson_mamba._finder)):
            def find_spec(self, name, *arguments):
                if name == "{TARGET}":
                    jetson_mamba.deactivate()
                return super().find_spec(name, *arguments)
        jetson_mamba._finder.__class__ = Deactivating
        import {TARGET} as module
        print(module.__file__, jetson_mamba.is_active())
        """
    )
    assert printed == f"{sandbox.interface} False"
    assert in_cache(sandbox, served(sandbox))
