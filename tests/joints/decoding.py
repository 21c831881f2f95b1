"""Joints of a block step by step. What holds of its states is among them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.joints.declared import BLOCKS, MODELS, joint
from tests.joints.measures import Results, out_of
from tests.joints.subjects import BATCH, SEQLEN, Subject

# Mamba2Simple cannot decode.
STEPPING = ("Mamba", "Mamba2")


def _stepped(s: Subject, module: Any, states: tuple[Tensor, Tensor], dtype: torch.dtype) -> Results:
    outs, (conv_state, state) = [], states
    for i in range(SEQLEN):
        out, *after = module.step(s.x[:, i : i + 1].to(dtype), conv_state, state)
        assert [each.data_ptr() for each in after] == [conv_state.data_ptr(), state.data_ptr()]
        outs.append(out)
    return {"outs": torch.cat(outs, 1), "conv state": conv_state, "state": state}


def _block(s: Subject) -> Any:
    return s.module().eval()


@joint("step after step", on=STEPPING)
def steps(s: Subject) -> Results:
    module = _block(s)
    with torch.no_grad():
        states = module.allocate_inference_cache(BATCH, SEQLEN)
        found = _stepped(s, module, states, torch.float32)
    return {**found, "whole": out_of(module, s.x)}


@joint("step under inference_mode", on=STEPPING)
def steps_inference(s: Subject) -> Results:
    module = _block(s)
    with torch.inference_mode():
        states = module.allocate_inference_cache(BATCH, SEQLEN)
        found = _stepped(s, module, states, torch.float32)
        return {name: value.clone() for name, value in found.items()}


@joint("step under autocast, float32 weights", on=STEPPING, rounded=True)
def steps_autocast(s: Subject) -> Results:
    module = _block(s)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=not s.exact):
        states = module.allocate_inference_cache(BATCH, SEQLEN)
        found = _stepped(s, module, states, torch.float32)
    return {**found, "outs": found["outs"].float()}


@joint("step with bfloat16 weights", on=STEPPING, rounded=True)
def steps_low(s: Subject) -> Results:
    dtype = s.low(torch.bfloat16)
    module = _block(s).to(dtype)
    with torch.no_grad():
        states = module.allocate_inference_cache(BATCH, SEQLEN)
        return _stepped(s, module, states, dtype)


@joint("step with states of another dtype than the weights", on=STEPPING, rounded=True)
def steps_other_states(s: Subject) -> Results:
    module = _block(s)
    with torch.no_grad():
        states = module.allocate_inference_cache(BATCH, SEQLEN, dtype=s.low(torch.bfloat16))
        return _stepped(s, module, states, torch.float32)


@joint("step with float32 states and bfloat16 weights", on=STEPPING, rounded=True)
def steps_wide_states(s: Subject) -> Results:
    dtype = s.low(torch.bfloat16)
    module = _block(s).to(dtype)
    with torch.no_grad():
        states = module.allocate_inference_cache(BATCH, SEQLEN, dtype=torch.float32)
        return _stepped(s, module, states, dtype)


@joint("step bumps the version counters of its states", on=STEPPING)
def versions(s: Subject) -> Results:
    module = _block(s)
    with torch.no_grad():
        states = module.allocate_inference_cache(BATCH, SEQLEN)
        before = [each._version for each in states]
        module.step(s.x[:, :1], *states)
        bumped = [each._version > version for each, version in zip(states, before)]
    return {"bumped": bumped}


@joint("step with states that something in training has saved", on=STEPPING)
def saved_states(s: Subject) -> Results:
    module = _block(s)
    conv_state, state = module.allocate_inference_cache(BATCH, SEQLEN)
    weight = torch.ones((), requires_grad=True)
    with torch.no_grad():
        module.step(s.x[:, :1], conv_state, state)
    value = (weight * state).sum()
    with torch.no_grad():
        module.step(s.x[:, 1:2], conv_state, state)
    value.backward()
    return {"gradient": weight.grad}


@joint("step with states that are not contiguous", on=STEPPING)
def strided_states(s: Subject) -> Results:
    module = _block(s)
    with torch.no_grad():
        conv_state, state = module.allocate_inference_cache(BATCH, SEQLEN)
        conv_state = conv_state.mT.contiguous().mT
        state = state.transpose(0, 1).contiguous().transpose(0, 1)
        return _stepped(s, module, (conv_state, state), torch.float32)


@joint("step in a graph of torch.compile", on=STEPPING)
def compiled_steps(s: Subject) -> Results:
    module = _block(s)
    step: Any = torch.compile(module.step, backend="aot_eager")
    with torch.no_grad():
        conv_state, state = module.allocate_inference_cache(BATCH, SEQLEN)
        outs = [step(s.x[:, i : i + 1], conv_state, state)[0] for i in range(4)]
    return {"outs": torch.cat(outs, 1), "conv state": conv_state, "state": state}


@joint("a gradient through one step", on=STEPPING)
def trained_step(s: Subject) -> Results:
    module = _block(s)
    states = module.allocate_inference_cache(BATCH, SEQLEN)
    x = s.x[:, :1].clone().requires_grad_()
    out = module.step(x, *states)[0]
    return {"out": out.detach(), "differentiable": out.requires_grad}


class Params:
    """What mamba_ssm's modules take as the parameters of an inference."""

    def __init__(self) -> None:
        self.max_seqlen, self.max_batch_size = SEQLEN, BATCH
        self.seqlen_offset = self.batch_size_offset = 0
        self.key_value_memory_dict: dict[int, Any] = {}
        self.lengths_per_sample = None


def _prefilled(s: Subject, module: Any, call: Any, length: int) -> Results:
    params = Params()
    outs = []
    with torch.no_grad():
        outs.append(call(slice(0, length), params))
        for i in range(length, SEQLEN):
            params.seqlen_offset = i
            outs.append(call(slice(i, i + 1), params))
    states = {
        f"{kind} {layer}": state
        for layer, pair in params.key_value_memory_dict.items()
        for kind, state in zip(("conv state", "state"), pair)
    }
    return {"outs": torch.cat(outs, 1), **states}


@joint("a prefill, then steps", on=(*STEPPING, MODELS))
def prefilled(s: Subject) -> Results:
    if s.kind == BLOCKS:
        module: Any = _block(s)
        module.layer_idx = 0
        return _prefilled(
            s, module, lambda part, params: module(s.x[:, part], inference_params=params), 6
        )
    model = s.model().eval()
    return _prefilled(
        s, model, lambda part, params: model(s.tokens[:, part], inference_params=params).logits, 6
    )


@joint("a prefill shorter than the convolution, then steps", on=(*STEPPING, MODELS))
def short_prefill(s: Subject) -> Results:
    if s.kind == BLOCKS:
        module: Any = _block(s)
        module.layer_idx = 0
        return _prefilled(
            s, module, lambda part, params: module(s.x[:, part], inference_params=params), 2
        )
    model = s.model().eval()
    return _prefilled(
        s, model, lambda part, params: model(s.tokens[:, part], inference_params=params).logits, 2
    )
