"""Events that time a generation, also without a GPU."""

from __future__ import annotations

import time

import pytest
import torch

from jetson_mamba.compat import cuda_events


def test_without_a_gpu_two_events_measure_the_milliseconds_between_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    seconds = iter((10.0, 10.25))
    monkeypatch.setattr(time, "perf_counter", lambda: next(seconds))
    start, end = cuda_events.event(enable_timing=True), cuda_events.event(enable_timing=True)
    start.record()
    end.record()
    cuda_events.synchronize()
    assert start.elapsed_time(end) == 250.0


def test_an_event_that_is_not_recorded_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    start, end = cuda_events.event(), cuda_events.event()
    end.record()
    with pytest.raises(RuntimeError, match="expected two recorded events"):
        start.elapsed_time(end)


def test_with_a_gpu_the_events_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", lambda **given: ("event", given))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("synchronize"))
    assert cuda_events.event(enable_timing=True) == ("event", {"enable_timing": True})
    cuda_events.synchronize()
    assert calls == ["synchronize"]
