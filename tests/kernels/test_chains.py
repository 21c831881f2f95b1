"""Launches whose arguments stay in memory; a stand-in for the driver reads them as that does."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from jetson_mamba.kernels import chains, through_libraries
from jetson_mamba.kernels.chains import Chain, Place

GRID, BLOCK, SHARED = (7, 8, 9), (32, 4, 1), 96


def parameters(extra: int) -> list[int]:
    """What the driver finds where it is told of parameters."""
    told = (ctypes.c_size_t * 5).from_address(extra)
    assert (told[0], told[2], told[4]) == (1, 2, 0)
    count = ctypes.c_size_t.from_address(told[3]).value // 8
    return list((ctypes.c_longlong * count).from_address(told[1]))


class Driver:
    """Notes what is launched."""

    def __init__(self) -> None:
        self.launched: list[Any] = []
        self.error = 0

    def launch(self, kernel: int, *rest: Any) -> int:
        """``cuLaunchKernel``."""
        *geometry, stream, none, extra = rest
        assert none is None
        self.launched.append((kernel, geometry, stream, parameters(extra)))
        return self.error

    @staticmethod
    def name(error: int, name: Any) -> int:
        """``cuGetErrorName``."""
        name._obj.value = b"CUDA_ERROR_OF_A_KIND"
        return 0


class Extended:
    """``cuLaunchKernelEx``, which is told its types."""

    argtypes: Any = None

    def __init__(self, launched: list[Any]) -> None:
        self._launched = launched

    def __call__(self, configuration: int, kernel: int, none: None, extra: int) -> int:
        """Launch."""
        assert self.argtypes is not None
        geometry = list((ctypes.c_uint * 7).from_address(configuration))
        stream, attributes = (ctypes.c_size_t * 2).from_address(configuration + 32)
        assert ctypes.c_uint.from_address(configuration + 48).value == 1
        # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, and that it is allowed.
        assert ctypes.c_uint.from_address(attributes).value == 6
        assert ctypes.c_int.from_address(attributes + 8).value == 1
        self._launched.append((kernel, geometry, stream, parameters(extra)))
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    driver: Any = Driver()
    driver.cuLaunchKernel, driver.cuGetErrorName = driver.launch, driver.name
    driver.cuLaunchKernelEx = Extended(driver.launched)
    driver.stream = 77
    monkeypatch.setattr(through_libraries, "driver", lambda: driver)
    monkeypatch.setattr(through_libraries, "current_stream", lambda index: driver.stream)
    return driver


def launch(address: int, overlapping: bool, overlaps: bool = True) -> Any:
    kernel = SimpleNamespace(address=address, overlaps=overlaps)
    return SimpleNamespace(
        kernel=kernel, grid=GRID, block=BLOCK, overlapping=overlapping, shared_bytes=SHARED
    )


@pytest.mark.parametrize(("overlapping", "overlaps"), [(False, True), (True, False), (True, True)])
def test_a_launch_finds_its_arguments_as_they_are_now(
    driver: Any, overlapping: bool, overlaps: bool
) -> None:
    chain = Chain([(launch(5, overlapping, overlaps), (Place(1, 16), -2, Place(0)))], 2)
    geometry = [*GRID, *BLOCK, SHARED]
    expected = []
    for addresses in ((100, 200), (100, 300), (1 << 40, 300), (1 << 40, 300)):
        chain(0, *addresses)
        expected.append((5, geometry, 77, [addresses[1] + 16, -2, addresses[0]]))
    driver.stream = 0
    chain(0, 1, 2)
    expected.append((5, geometry, 0, [18, -2, 1]))
    assert driver.launched == expected


def test_launches_follow_one_another(driver: Any) -> None:
    both = [(launch(1, True), (Place(0), 4)), (launch(2, False), (5, Place(0, 8), Place(0)))]
    chain = Chain(both, 1)
    chain(0, 32)
    assert [(each[0], each[3]) for each in driver.launched] == [(1, [32, 4]), (2, [5, 40, 32])]


def test_what_the_driver_refuses_is_an_error(driver: Any) -> None:
    chain = Chain([(launch(1, False), (3,)), (launch(2, False), (3,))], 0)
    driver.error = 719
    with pytest.raises(RuntimeError, match=r"cuLaunchKernel: CUDA_ERROR_OF_A_KIND \(719\)"):
        chain(0)
    assert len(driver.launched) == 1


def test_the_layout_is_that_of_nvidia_s_own_package() -> None:
    driver = pytest.importorskip("cuda.bindings.driver")
    own = driver.CUlaunchConfig()
    own.gridDimX, own.gridDimY, own.gridDimZ = GRID
    own.blockDimX, own.blockDimY, own.blockDimZ = BLOCK
    own.sharedMemBytes, own.hStream = SHARED, driver.CUstream(77)
    attribute = driver.CUlaunchAttribute()
    ids = driver.CUlaunchAttributeID
    attribute.id = ids.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    attribute.value.programmaticStreamSerializationAllowed = 1
    own.attrs, own.numAttrs = [attribute], 1
    laid = ctypes.string_at(own.getPtr(), chains._CONFIGURATION.size)
    *geometry, stream, attributes, count = chains._CONFIGURATION.unpack(laid)
    assert (*geometry, stream, count) == (*GRID, *BLOCK, SHARED, 77, 1)
    assert ctypes.string_at(attributes, chains._ATTRIBUTE.size) == chains._OVERLAPPING
