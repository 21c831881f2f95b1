"""Builds the root of an imitation of a board.

It is a user space for aarch64, with what the board's vendor put there.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Sequence

from packaging.version import Version

from tests.boards.declared import Board
from tests.hook.pythons import interpreters

REPOSITORY = Path(__file__).resolve().parent.parent.parent
FOLDER = REPOSITORY / ".boards"
CHECKOUT = "root/jetson-mamba"
CHROOT = shutil.which("chroot", path="/usr/sbin:/usr/bin:/sbin") or "chroot"
BINFMT = Path("/proc/sys/fs/binfmt_misc")
# ELF, 64 bits, little-endian, for aarch64; the emulator is opened once, and so found in any root.
REGISTRATION = (
    r":jetson-mamba-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7"
    r"\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:"
    r"/usr/bin/qemu-aarch64-static:F"
)
MIRROR = "http://deb.debian.org/debian"
NEEDS = {"debootstrap": "debootstrap", "dpkg-deb": "dpkg"}
EMULATOR = {"qemu-aarch64-static": "qemu-user-static"}
ARCHITECTURES = {"aarch64": "arm64", "x86_64": "amd64"}
# The nearest that QEMU has to a board's: ARMv8.2 without bfloat16, as Orin's Cortex-A78AE and
# Xavier's Carmel. Its own choice has everything, and there torch 2.4 multiplies batches of float32
# matrices in bfloat16, and torch 2.1 finds no product in 16 bits.
PROCESSOR = "cortex-a76"
# What an emulator is slow at. Python compiles what it imports; pip would compile every file of
# transformers, of which a block needs few (0 is how an option that begins with "no" is given in a
# variable of pip's). Threads that wait by spinning take each other's turn.
EMULATED = ("PIP_NO_COMPILE=0", "OMP_NUM_THREADS=1")
DEVICES = {"null": (1, 3), "zero": (1, 5), "random": (1, 8), "urandom": (1, 9)}
# Named, since pip would judge for this machine which of them another one needs.
NEEDED_BY_TORCH = (
    *("filelock", "typing-extensions", "sympy<1.14", "mpmath<1.4", "networkx", "jinja2"),
    *("MarkupSafe", "fsspec"),
)
BASE = "python3,python3-venv,python3-pip,ca-certificates"


def emulated(board: Board) -> bool:
    """Whether a board's programs are for another processor than this machine's."""
    return bool(board.suite) and board.machine != os.uname().machine


def prepare_machine(boards: Sequence[Board]) -> str | None:
    """Let this machine run programs for aarch64, if one of the boards has such.

    In one line why that cannot be, if so.
    """
    if not any(board.suite for board in boards):
        return None
    emulation = any(map(emulated, boards))
    needs = {**NEEDS, **(EMULATOR if emulation else {})}
    missing = [package for tool, package in needs.items() if not shutil.which(tool)]
    if missing:
        return f"needs {', '.join(missing)}: apt-get install {' '.join(missing)}"
    if os.geteuid():
        return "needs root, for debootstrap and chroot"
    if emulation and not list(BINFMT.glob("*aarch64")):
        if not (BINFMT / "register").exists():
            subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT], check=True)
        (BINFMT / "register").write_text(REGISTRATION)
    return None


def build(board: Board) -> Path:
    """The root of a board, made anew from what is kept of its suite."""
    if not board.suite:
        return _own_python(board)
    base = FOLDER / "suites" / board.suite
    if not (base / "usr" / "bin" / f"python{board.python}").exists():
        _bootstrap(board, base)
    root = FOLDER / board.name
    shutil.rmtree(root, ignore_errors=True)
    subprocess.run(["cp", "--archive", "--reflink=auto", base, root], check=True)
    shutil.rmtree(root / "var" / "cache" / "apt" / "archives", ignore_errors=True)
    _files_of_the_board(board, root)
    if emulated(board):
        _put(board, _site(board, root))
        _compile(board, root)
    else:
        _let_pip_put(board, root)
    _checkout(root)
    return root


def renew(board: Board) -> Path:
    """A root that is there already, with the project as it is now, also where it is installed."""
    root = FOLDER / board.name
    shutil.rmtree(root / CHECKOUT, ignore_errors=True)
    _checkout(root)
    for record in root.rglob("jetson_mamba-*.dist-info"):
        for package in ("jetson_mamba", "vendored_overrides"):
            there = record.parent / package
            shutil.rmtree(there, ignore_errors=True)
            shutil.copytree(root / CHECKOUT / package, there)
    return root


def _compile(board: Board, root: Path) -> None:
    """Compile what is there to bytecode, as the scripts of its packages do where they are run.

    Done by this machine's own interpreter of that version, where there is one: bytecode is the
    same for every processor, and under emulation this takes longer than all that follows.
    """
    python = interpreter(board)
    if python is not None:
        folders = [root / "usr/lib/python3", root / f"usr/lib/python{board.python}"]
        folders.append(root / "usr/local/lib" / f"python{board.python}")
        named = ["-s", str(root), "-p", "/", "-q", "-q", *map(str, folders)]
        # What it cannot compile, such as a template, Debian's scripts pass over too.
        subprocess.run([python, "-m", "compileall", *named], check=False)


def interpreter(board: Board) -> str | None:
    """This machine's own interpreter of the board's version."""
    return next((each for each in interpreters() if each.endswith(board.python)), None)


def command(board: Board, root: Path, script: str) -> list[str]:
    """The command that runs a script inside, which lies in ``tmp``."""
    path = "PATH=/usr/local/bin:/usr/bin:/bin"
    # As on a board: no settings of pip that are this machine's, but whom it trusts.
    trusted = "PIP_CERT=/etc/ssl/certs/ca-certificates.crt"
    if not board.suite:
        own = [
            f"PATH={root}/python/bin:/usr/bin:/bin",
            f"HOME={root}/root",
            "LANG=C.UTF-8",
            trusted,
        ]
        return ["env", "-i", *own, "bash", f"{root}/tmp/{script}"]
    variables = [path, "HOME=/root", "LANG=C.UTF-8", trusted]
    variables += [f"QEMU_CPU={PROCESSOR}", *EMULATED] if emulated(board) else []
    return ["env", "-i", *variables, CHROOT, str(root), "/bin/bash", f"/tmp/{script}"]


def _own_python(board: Board) -> Path:
    """A copy of this machine's own Python of that version, as the system's; torch is kept."""
    root = FOLDER / board.name
    python = root / "python" / "bin" / "python3"
    if not python.exists():
        found = interpreter(board)
        if found is None:
            raise SystemExit(
                f"{board.name}: needs python{board.python}, on the path or under pyenv"
            )
        prefix = subprocess.run(
            [found, "-c", "import sys; print(sys.base_prefix)"], stdout=subprocess.PIPE, check=True
        ).stdout.decode()
        # A copy finds its library beside itself.
        shutil.copytree(prefix.strip(), root / "python", symlinks=True)
    library = root / "python" / "lib" / f"python{board.python}"
    mark = library / "EXTERNALLY-MANAGED"
    if mark.exists():
        mark.unlink()
    site, pip = library / "site-packages", [str(python), "-m", "pip"]
    if not (site / "torch").exists():
        subprocess.run([*pip, "install", "--quiet", f"torch=={board.torch}"], check=True)
    listed = subprocess.run([*pip, "freeze"], capture_output=True, text=True, check=True).stdout
    kept = {"torch", *(re.sub(r"[<=].*", "", each).lower() for each in NEEDED_BY_TORCH)}
    names = [re.split("[ =@]", line)[0].lower().replace("_", "-") for line in listed.splitlines()]
    others = [
        each for each in names if each not in kept and not each.startswith(("nvidia", "cuda", "-"))
    ]
    subprocess.run([*pip, "uninstall", "--quiet", "--yes", *others, "wheel"], check=True)
    wanted = [*board.packages, *([f"triton=={board.triton}"] if board.triton else ())]
    wanted += [f"pip=={board.pip}"] if board.pip else []
    if wanted:
        subprocess.run([*pip, "install", "--quiet", *wanted], check=True)
    _relabel(site, board)
    if not board.pip:
        mark.write_text("[externally-managed]\nError=As Ubuntu has it from 23.04 on.\n")
    shutil.rmtree(root / "root", ignore_errors=True)
    (root / "tmp").mkdir(exist_ok=True)
    _checkout(root)
    return root


def _bootstrap(board: Board, base: Path) -> None:
    base.parent.mkdir(parents=True, exist_ok=True)
    python = f"python{board.python},python{board.python}-venv"
    subprocess.run(
        [
            *("debootstrap", "--foreign", f"--arch={ARCHITECTURES[board.machine]}"),
            *("--variant=minbase", f"--include={BASE},{python}", board.suite, str(base)),
            # What every suite is made by; an older debootstrap does not know it under all names.
            *(MIRROR, "sid"),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    # Unpacked by this machine's own dpkg, which takes seconds; configured, under emulation, hours.
    for package in sorted((base / "var/cache/apt/archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", package, base], check=True)


def _files_of_the_board(board: Board, root: Path) -> None:
    for name, numbers in DEVICES.items():
        path = root / "dev" / name
        if not path.exists():
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(*numbers))
            path.chmod(0o666)
    for folder in ("dev/shm", "proc/device-tree", "root", "tmp", "etc/ssl/certs", "usr/local/bin"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in ("cpuinfo", "meminfo"):
        (root / "proc" / name).write_text((Path("/proc") / name).read_text())
    processors = root / "sys" / "devices" / "system" / "cpu"
    processors.mkdir(parents=True, exist_ok=True)
    for name in ("possible", "present"):
        (processors / name).write_text((Path("/sys/devices/system/cpu") / name).read_text())
    if board.l4t:
        (root / "proc" / "device-tree" / "model").write_text(board.model + "\0")
        (root / "etc" / "nv_tegra_release").write_text(board.l4t + "\n")
    python = root / "usr" / "local" / "bin" / "python3"
    if os.readlink(root / "usr" / "bin" / "python3") != f"python{board.python}":
        python.symlink_to(f"/usr/bin/python{board.python}")
    for name in ("etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt"):
        shutil.copyfile(f"/{name}", root / name)
    if board.pip:  # Ubuntu's Pythons of JetPack 5 and 6 are older than the rule
        for mark in (root / "usr" / "lib").glob("python3*/EXTERNALLY-MANAGED"):
            mark.unlink()


def _site(board: Board, root: Path) -> Path:
    site = root / "usr" / "local" / "lib" / f"python{board.python}" / "dist-packages"
    site.mkdir(parents=True, exist_ok=True)
    return site


def _put(board: Board, site: Path) -> None:
    """Unpack torch, its dependencies and the board's pip, as their vendor has them."""
    wheels = FOLDER / "wheels" / board.name
    wheels.mkdir(parents=True, exist_ok=True)
    wanted = [f"torch=={board.torch}", *NEEDED_BY_TORCH, *board.packages]
    if board.pip:
        wanted.append(f"pip=={board.pip}")
    if board.triton:
        wanted.append(f"triton=={board.triton}")
    platforms = ("manylinux2014_aarch64", "manylinux_2_17_aarch64", "manylinux_2_28_aarch64")
    if not list(wheels.glob("torch-*.whl")):
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"),
                *("--dest", str(wheels), "--only-binary", ":all:", "--implementation", "cp"),
                *("--python-version", board.python),
                *(part for each in platforms for part in ("--platform", each)),
                *wanted,
            ],
            check=True,
        )
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    _relabel(site, board)


def _let_pip_put(board: Board, root: Path) -> None:
    """Install torch, with all that it asks for, by the pip of the root."""
    wanted = [f"torch=={board.torch}", *board.packages]
    wanted += [f"triton=={board.triton}"] if board.triton else []
    script = root / "tmp" / "put.sh"
    options = "--quiet --no-cache-dir --break-system-packages --root-user-action=ignore"
    script.write_text(f"python3 -m pip install {options} {' '.join(wanted)}\n")
    subprocess.run(command(board, root, script.name), check=True)


def _relabel(site: Path, board: Board) -> None:
    """Give torch and its record the version that the vendor's build has."""
    (record,) = site.glob("torch-*.dist-info")
    text = (record / "METADATA").read_text(encoding="utf-8")
    # As it was written there: the nv24.05 of the module is nv24.5 in the record.
    recorded = str(Version(board.label))
    text = re.sub(r"^Version: .*$", f"Version: {recorded}", text, count=1, flags=re.MULTILINE)
    # A vendor's wheel names no packages of NVIDIA's.
    text = re.sub(r"^Requires-Dist: (nvidia|triton).*\n", "", text, flags=re.MULTILINE)
    (record / "METADATA").write_text(text, encoding="utf-8")
    if not record.name.startswith(f"torch-{recorded}."):
        record.rename(record.with_name(f"torch-{recorded}.dist-info"))
    version = site / "torch" / "version.py"
    text = version.read_text()
    version.write_text(re.sub(r"__version__ = '[^']*'", f"__version__ = '{board.label}'", text))


def _checkout(root: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        source, target = REPOSITORY / name, root / CHECKOUT / name
        if name and source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target, follow_symlinks=False)
