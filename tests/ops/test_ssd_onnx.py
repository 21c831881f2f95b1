"""Mamba-2's mixer through the exporter that is built on TorchScript, torch's own up to 2.8."""

from __future__ import annotations

import io
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.test_ssd import mixer, mixer_case, packed
from tests.references.ssd import ssd_mixer
from tests.references.tolerance import relative_norm

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


class Module(torch.nn.Module):
    """A mixer of whose tensors the first comes from outside, and the rest are weights."""

    def __init__(self, tensors: dict[str, Tensor], options: dict[str, Any]) -> None:
        super().__init__()
        for name, each in tensors.items():
            self.register_buffer(name, each)
        self.names, self.options = list(tensors), options

    def forward(self, zxbcdt: Tensor, seq_idx: Tensor | None = None) -> Any:
        """Output and last state."""
        given = {name: getattr(self, name) for name in self.names}
        given.update(zxbcdt=zxbcdt, seq_idx=seq_idx)
        return mixer(**given, **self.options, chunk_size=64, return_final_states=True)


# Any two of case, length and sequences meet.
CASES = ("as a Mamba-2 block", "gated MLP, no norm", "groups")
MEETING = [
    (case, seqlen, opset, (place + number) % 2 == 0)
    for place, case in enumerate(CASES)
    for number, (seqlen, opset) in enumerate([(5, 17), (64, 13), (100, 17)])
]


@pytest.mark.parametrize(("case", "seqlen", "opset", "sequences"), MEETING)
def test_an_exported_mixer_is_right(case: str, seqlen: int, opset: int, sequences: bool) -> None:
    torch.manual_seed(0)
    tensors, options = mixer_case(case, seqlen)
    tensors = {name: each.float() for name, each in tensors.items()}
    given = [tensors["zxbcdt"]]
    if sequences:
        given.append(packed(seqlen).to(torch.int32))
    names = ["zxbcdt", "seq_idx"][: len(given)]
    # Initial states are among the weights, and have a batch of their own.
    free = {1: "seqlen"} if "initial_states" in tensors else {0: "batch", 1: "seqlen"}
    file: Any = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, of which torch says that it is old
        torch.onnx.export(
            *(Module(tensors, options).eval(), tuple(given), file),
            dynamo=False,
            opset_version=opset,
            input_names=names,
            dynamic_axes=dict.fromkeys(names, free),
        )
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for length in (seqlen, 1, 64, 131):
        batch = 3 if 0 in free and not sequences and length != seqlen else 2
        x = torch.randn(batch, length, given[0].shape[2])
        inputs = [x] if not sequences else [x, packed(length).to(torch.int32)]
        found = session.run(None, {name: each.numpy() for name, each in zip(names, inputs)})
        exact = {name: each.double() for name, each in {**tensors, "zxbcdt": x}.items()}
        index = inputs[1] if sequences else None
        expected = ssd_mixer(**exact, **options, seq_idx=index)  # type: ignore[arg-type]
        for actual, right in zip(found, expected):
            assert relative_norm(torch.from_numpy(actual), right) < 1e-5
