"""Compares decoding by one release of mamba-ssm with whole sequences.

It decodes token by token. ``python -m tests.releases.decoding CHECK...`` prints a line for each
result of each check: its name and the relative norm of its error. The release is whatever
``mamba_ssm`` is first on the path.
"""

from __future__ import annotations

import inspect
import pickle
from typing import Any, Iterator

import torch
from torch import Tensor

import jetson_mamba  # noqa: F401 - activates the overrides
from tests import checks
from tests.references.tolerance import relative_norm

VOCABULARY, BATCH, PROMPT, LENGTH = 48, 2, 7, 15
LAYERS: dict[str, dict[str, Any]] = {
    "Mamba1": {"d_state": 8},
    "Mamba2": {"d_state": 16, "headdim": 8, "chunk_size": 16},
}
# Triton's interpreter cuts bfloat16 off where a GPU rounds it.
DTYPES = (torch.float32, torch.float16)


def language_model(layer: str) -> Any:
    """A small model with random weights."""
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    options = LAYERS[layer]
    if layer != "Mamba1":  # which is what a release of 1.x has, and knows no name for
        options = {**options, "layer": layer}
    config = MambaConfig(d_model=32, n_layer=2, vocab_size=VOCABULARY, ssm_cfg=options)
    model = MambaLMHeadModel(config).eval()
    with torch.no_grad():
        # What a constructor sets to zero would hide what it is multiplied with, and small
        # embeddings would make every token nearly as likely.
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def generated(layer: str) -> Iterator[tuple[str, float]]:
    """The tokens of a greedy generation, and the logits that they were chosen by."""
    model = language_model(layer)
    prompt = torch.randint(VOCABULARY, (BATCH, PROMPT))
    out = model.generate(
        prompt, LENGTH, return_dict_in_generate=True, output_scores=True, enable_timing=True
    )
    tokens, scores = prompt, []
    with torch.no_grad():
        for _ in range(LENGTH - PROMPT):
            scores.append(model(tokens).logits[:, -1])
            tokens = torch.cat([tokens, scores[-1].argmax(-1, keepdim=True)], 1)
    assert out.sequences.shape == (BATCH, LENGTH)
    yield "tokens", float((out.sequences != tokens).sum())
    yield "logits", relative_norm(torch.stack(out.scores), torch.stack(scores))


def mamba1() -> Iterator[tuple[str, float]]:
    return generated("Mamba1")


def mamba2() -> Iterator[tuple[str, float]]:
    return generated("Mamba2")


def step_arguments(dtype: torch.dtype, nheads: int, is_tied: bool) -> dict[str, Any]:
    """What a block gives for one step, without the axis of heads if there is one."""
    dim, dstate, ngroups = 9, 18, min(2, nheads)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape).to(dtype)

    given = {
        "state": drawn(BATCH, nheads, dim, dstate),
        "x": drawn(BATCH, nheads, dim),
        "dt": drawn(BATCH, nheads, dim),
        "A": -torch.rand(nheads, dim, dstate) - 0.1,
        "B": drawn(BATCH, ngroups, dstate),
        "C": drawn(BATCH, ngroups, dstate),
        "D": torch.randn(nheads, dim),
        "z": drawn(BATCH, nheads, dim),
        "dt_bias": torch.randn(nheads, dim),
    }
    if is_tied:
        given["A"] = given["A"][:, :1, :1].expand(-1, dim, dstate)
        for name in ("dt", "dt_bias", "D"):
            given[name] = given[name][..., :1].expand(given[name].shape)
    if nheads == 1:
        axes = {"A": 0, "D": 0, "dt_bias": 0}
        given = {name: each.squeeze(axes.get(name, 1)) for name, each in given.items()}
    return {**given, "dt_softplus": True}


def steps() -> Iterator[tuple[str, dict[str, Any]]]:
    for dtype in DTYPES:
        for nheads, is_tied in ((1, False), (4, False), (4, True)):
            what = f"{dtype} {nheads} heads{', tied' if is_tied else ''}".replace(" ", "_")
            yield what, step_arguments(dtype, nheads, is_tied)


def on_triton() -> Iterator[tuple[str, float]]:
    """The op against upstream's kernel, under Triton's interpreter."""
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    from jetson_mamba import ops

    assert ops.triton_runs_on(torch.device("cpu")), "TRITON_INTERPRET=1 is needed"
    for what, given in steps():
        states = [given["state"].clone() for _ in range(2)]
        functions = (ops.selective_state_update, selective_state_update)
        ours, theirs = (each(**{**given, "state": state}) for each, state in zip(functions, states))
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        yield f"out_{what}", relative_norm(ours, theirs)
        yield f"state_{what}", relative_norm(*states)


def padded_on_triton() -> Iterator[tuple[str, float]]:
    """The same with indices, two of which are padding."""
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    from jetson_mamba import ops

    given = step_arguments(torch.float32, 4, is_tied=False)
    for name in ("x", "dt", "B", "C", "z"):
        given[name] = given[name].repeat(2, *(1 for _ in given[name].shape[1:]))
    given["state"] = torch.randn(6, *given["state"].shape[1:])
    given["state_batch_indices"] = torch.tensor([4, -1, 0, -1], dtype=torch.int32)
    states = [given["state"].clone() for _ in range(2)]
    functions = (ops.selective_state_update, selective_state_update)
    ours, theirs = (each(**{**given, "state": state}) for each, state in zip(functions, states))
    yield "out", relative_norm(ours, theirs)
    yield "state", relative_norm(*states)


def module() -> Iterator[tuple[str, float]]:
    """What else is asked of the module and of its function, where the op takes its place."""
    from mamba_ssm.modules import mamba_simple
    from mamba_ssm.ops.triton import selective_state_update as home

    function = home.selective_state_update
    assert mamba_simple.selective_state_update is function
    assert pickle.loads(pickle.dumps(function)) is function
    assert inspect.getsourcefile(inspect.unwrap(function)) == home.__file__
    assert inspect.getsource(function).startswith("def selective_state_update(state, x,")
    assert list(inspect.signature(function).parameters)[:6] == ["state", "x", "dt", "A", "B", "C"]
    given = next(given for what, given in steps() if "float32" in what)
    states = [given["state"].clone() for _ in range(2)]
    functions = (function, home.selective_state_update_ref)
    ours, theirs = (each(**{**given, "state": state}) for each, state in zip(functions, states))
    yield "out", relative_norm(ours, theirs)
    yield "state", relative_norm(*states)


CHECKS = {each.__name__: each for each in (mamba1, mamba2, on_triton, padded_on_triton, module)}


def main() -> None:
    """Run the checks named on the command line."""
    checks.run(CHECKS)


if __name__ == "__main__":
    main()
