"""A name that a text sets to None where a package cannot be imported is ours in that case."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

import jetson_mamba.ops
from jetson_mamba.hook import copies
from jetson_mamba.rewrite import rewrite

OVERRIDE = copies.override("mamba_ssm.modules.mha")
# The text's own way without the package, by which it is known.
OWN_WAY = "from torch.nn.functional import scaled_dot_product_attention\n"
FUNCTION = "flash_attn_with_kvcache"
IMPORT = f"from flash_attn import {FUNCTION}"
GUARDED = f"try:\n    {IMPORT}\nexcept ImportError:\n    {FUNCTION} = None\n"


def names(text: str, monkeypatch: pytest.MonkeyPatch, there: bool = False) -> dict[str, Any]:
    """The names of the copy of a text where the package is not there, or is."""
    package = ModuleType("flash_attn")
    setattr(package, FUNCTION, "theirs")
    for name in ("flash_attn", "flash_attn.layers", "flash_attn.layers.rotary"):
        monkeypatch.setitem(sys.modules, name, package if there else None)
    namespace: dict[str, Any] = {}
    exec(compile(rewrite(f"import torch\n{text}", OVERRIDE).text, "<copy>", "exec"), namespace)
    return namespace


@pytest.mark.parametrize(
    "text",
    [
        GUARDED,
        f"try:\n    {IMPORT}\nexcept (KeyError, ModuleNotFoundError):\n    {FUNCTION} = None\n",
        f"try:\n    {IMPORT}\nexcept Exception as error:\n    {FUNCTION} = None\n",
        f"try:\n    {IMPORT}\nexcept:\n    {FUNCTION} = None\n",
        f"try:\n    {IMPORT}\nexcept ImportError:\n    other, {FUNCTION} = 1, None\n",
        f"try:\n    {IMPORT}\nexcept ImportError:\n    other = {FUNCTION} = None\n",
        f"try:\n    {IMPORT}\nexcept ImportError:\n    if True:\n        {FUNCTION} = None\n",
        f"try:\n    {IMPORT}\nexcept KeyError:\n    pass\nexcept ImportError:\n"
        f"    {FUNCTION} = None\n",
        f"try:\n    import math\n    from flash_attn import other, {FUNCTION}\n"
        f"except ImportError:\n    {FUNCTION} = None\n",
    ],
)
def test_what_cannot_be_imported_is_ours(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = getattr(jetson_mamba.ops, FUNCTION)
    assert names(OWN_WAY + text, monkeypatch)[FUNCTION] is ours
    # Whose way without it is another means something else by the name.
    assert names(text, monkeypatch)[FUNCTION] is None
    renamed = text.replace(IMPORT, f"{IMPORT} as own").replace(f"{FUNCTION} =", "own =")
    renamed = renamed.replace(f", {FUNCTION}\n", f", {FUNCTION} as own\n")
    renamed = renamed.replace(f"{FUNCTION} = 1, None", "own = 1, None")
    assert names(OWN_WAY + renamed, monkeypatch)["own"] is ours


def test_what_can_be_imported_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert names(OWN_WAY + GUARDED, monkeypatch, there=True)[FUNCTION] == "theirs"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # Set to something of the text's own, or to None for another reason.
        (f"try:\n    {IMPORT}\nexcept ImportError:\n    {FUNCTION} = 1\n", 1),
        (f"try:\n    {IMPORT}\nexcept ImportError:\n    other, {FUNCTION} = None, 1\n", 1),
        (f"{FUNCTION} = None\ntry:\n    {IMPORT}\nexcept ImportError:\n    pass\n", None),
        (f"try:\n    1 / 0\nexcept ZeroDivisionError:\n    {FUNCTION} = None\n", None),
        # Another function, of another module.
        (GUARDED.replace("flash_attn import", "not_there import"), None),
        (GUARDED.replace("flash_attn import", "flash_attn import x as"), None),
    ],
)
def test_what_is_none_otherwise_stays(
    text: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert names(OWN_WAY + text, monkeypatch)[FUNCTION] == value


def test_a_module_of_the_texts_own_package_is_another() -> None:
    text = f"import torch\n{OWN_WAY}{GUARDED}"
    assert f"jetson_mamba.ops.{FUNCTION}" in rewrite(text, OVERRIDE).text
    relative = rewrite(text.replace("from flash", "from .flash"), OVERRIDE).text
    assert f"jetson_mamba.ops.{FUNCTION}" not in relative


def test_a_class_deeper_in_the_package_is_ours_too(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        f"{OWN_WAY}try:\n    from flash_attn.layers.rotary import RotaryEmbedding\n"
        "except ImportError:\n    RotaryEmbedding = None\n"
    )
    assert names(text, monkeypatch)["RotaryEmbedding"] is jetson_mamba.ops.RotaryEmbedding
