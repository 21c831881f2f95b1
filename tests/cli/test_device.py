"""Which device a command computes on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from jetson_mamba.cli import device as devices
from jetson_mamba.errors import CannotRun


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The device by a name, where torch sees a GPU or none."""

    def device(name: str | None, gpu: bool) -> Any:
        cuda = SimpleNamespace(is_available=lambda: gpu)
        torch = SimpleNamespace(cuda=cuda, device=lambda name: f"the {name}")
        monkeypatch.setattr(devices, "torch_here", lambda: torch)
        return devices.device(name)

    return device


@pytest.mark.parametrize(
    ("name", "gpu", "device"),
    [
        (None, True, "the cuda"),
        (None, False, "the cpu"),
        ("cpu", True, "the cpu"),
        ("cpu", False, "the cpu"),
        ("cuda", True, "the cuda"),
    ],
)
def test_it_is_what_is_asked_for_else_a_gpu_where_there_is_one(
    name: str | None, gpu: bool, device: str, seen: Any
) -> None:
    assert seen(name, gpu) == device


def test_what_there_is_not_is_refused(seen: Any) -> None:
    with pytest.raises(CannotRun, match="--device cuda: torch sees no GPU; `jetson-mamba doc"):
        seen("cuda", False)
    for name in ("tpu", "", "CUDA"):
        with pytest.raises(CannotRun, match=f"^--device {name}: expected cpu or cuda$"):
            seen(name, True)


def test_a_torch_that_is_missing_is_told_with_the_command_of_this_board(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = "jetson_mamba.cli.device"
    monkeypatch.setattr(f"{module}.machine", lambda: SimpleNamespace(jetpack="6.2"))
    monkeypatch.setattr(f"{module}.get_torch.command", lambda jetpack: f"for {jetpack}")
    monkeypatch.setattr(f"{module}.require", lambda name, command: (name, command))
    assert devices.torch_here() == ("torch", "for 6.2")
    assert devices.DEVICE.autocompletion() == ["cpu", "cuda"]
