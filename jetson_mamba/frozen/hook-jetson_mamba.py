"""Has PyInstaller take all of this package, since its imports by name cannot be seen."""

from PyInstaller.utils.hooks import collect_data_files, collect_submodules


def _is_needed(name: str) -> bool:
    # The command line is for a terminal; what lies in the stand-in is found as files.
    return not name.startswith(("jetson_mamba.cli", "jetson_mamba.frozen", "jetson_mamba.demo"))


PACKAGES = ("jetson_mamba", "vendored_overrides")
hiddenimports = [
    name
    for package in PACKAGES
    for name in collect_submodules(package, filter=_is_needed, on_error="ignore")
]
datas = [
    entry for package in PACKAGES for entry in collect_data_files(package, include_py_files=True)
]
module_collection_mode = dict.fromkeys(PACKAGES, "py")
