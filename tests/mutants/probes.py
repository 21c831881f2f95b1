"""What is asked of a module of ``mamba_ssm``: its functions, with small tensors, in several modes.

A call is made with every argument by name, with those alone that it cannot do without, with every
one by place, and with what only a mutant takes; without gradients, with them, and watched by what
makes a call leave the usual way. Its numbers are those of its results and of all gradients.
"""

from __future__ import annotations

import inspect
import warnings
from contextlib import nullcontext
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any, Callable, ContextManager, Iterator, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

Numbers = list[tuple[list[int], list[float]]]


class Answer(NamedTuple):
    """The numbers of a call or what it raised, and how many warnings there had been by then."""

    numbers: Numbers | None
    raised: str | None
    warned: int


class Subject(NamedTuple):
    """A function and its arguments, in upstream's order; the first ``required`` have no default.

    ``block`` makes the module that a method is one of. What is ``slow``, under Triton's
    interpreter, is called less often. ``label`` tells subjects of one function apart.
    """

    name: str
    arguments: Callable[[], dict[str, Any]]
    required: int
    modes: tuple[str, ...] = ("inference", "gradients", "watched", "dual")
    block: Callable[[ModuleType], Any] | None = None
    slow: bool = False
    label: str = ""


class Watch(TorchDispatchMode):
    """Looks on, as a counter of operations does."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Nothing but the operation."""
        return func(*args, **(kwargs or {}))


def r(*shape: int) -> Tensor:
    return torch.randn(shape)


def scan() -> dict[str, Any]:
    tensors = {"u": r(1, 4, 8), "delta": r(1, 4, 8), "A": -torch.rand(4, 2) - 0.5}
    tensors |= {"B": r(1, 2, 8), "C": r(1, 2, 8)}
    return {**tensors, "D": r(4), "z": r(1, 4, 8), "delta_bias": r(4), "delta_softplus": True}


def inner() -> dict[str, Any]:
    weights = {"conv1d_weight": r(4, 1, 4), "conv1d_bias": r(4), "x_proj_weight": r(5, 4)}
    weights |= {"delta_proj_weight": r(4, 1), "out_proj_weight": r(3, 4)}
    rest = {
        "out_proj_bias": None,
        "A": -torch.rand(4, 2) - 0.5,
        "B": None,
        "C": None,
        "D": r(4),
        "delta_bias": r(4),
    }
    biases = {"B_proj_bias": r(2), "C_proj_bias": r(2)}
    return {"xz": r(1, 8, 8), **weights, **rest, **biases, "delta_softplus": True}


def inner_with_norms() -> dict[str, Any]:
    norms = {"checkpoint_lvl": 1, "b_rms_weight": r(2), "c_rms_weight": r(2)}
    return {**inner(), **norms, "dt_rms_weight": r(4)}


def chunks() -> dict[str, Any]:
    tensors = {"x": r(1, 6, 2, 3), "dt": r(1, 6, 2), "A": -torch.rand(2) - 0.5}
    tensors |= {"B": r(1, 6, 1, 4), "C": r(1, 6, 1, 4)}
    rest = {"D": r(2), "z": r(1, 6, 2, 3), "dt_bias": r(2), "initial_states": r(1, 2, 3, 4)}
    return {**tensors, "chunk_size": 16, **rest, "seq_idx": None, "cu_seqlens": None} | {
        "dt_softplus": True
    }


def mixer() -> dict[str, Any]:
    # The compiled convolution takes rows and channels in multiples of 8, at multiples of 4.
    return {
        **{"zxbcdt": r(1, 8, 32), "conv1d_weight": r(16, 4), "conv1d_bias": r(16)},
        **{"dt_bias": r(4), "A": -torch.rand(4) - 0.5, "D": r(4), "chunk_size": 16},
        **{"initial_states": None, "seq_idx": None, "dt_limit": (0.0, float("inf"))},
        **{"return_final_states": False, "activation": "silu", "rmsnorm_weight": r(12)},
        **{"rmsnorm_eps": 1e-5, "outproj_weight": r(5, 12), "outproj_bias": r(5), "headdim": 3},
    }


def norm() -> dict[str, Any]:
    return {"x": r(3, 8), "weight": r(8), "bias": r(8), "residual": r(3, 8)}


def gated() -> dict[str, Any]:
    return {"x": r(3, 8), "weight": r(8), "bias": r(8), "z": r(3, 8), "eps": 1e-5}


def update() -> dict[str, Any]:
    tensors = {"state": r(1, 4, 2), "x": r(1, 4), "dt": r(1, 4), "A": -torch.rand(4, 2) - 0.5}
    tensors |= {"B": r(1, 2), "C": r(1, 2), "D": r(4), "z": r(1, 4), "dt_bias": r(4)}
    return {**tensors, "dt_softplus": True}


class LanguageModel(torch.nn.Module):
    """As small as ``decode`` takes one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(7, 7)
        self.config = SimpleNamespace(vocab_size=7)

    def forward(self, input_ids: Tensor, *_: Any, **__: Any) -> Any:
        """The logits after the last token."""
        return SimpleNamespace(logits=self.embedding(input_ids).cumsum(1)[:, -1:])


def decoding() -> dict[str, Any]:
    return {"input_ids": torch.randint(7, (1, 3)), "model": LanguageModel(), "max_length": 6}


def forward_of_1() -> dict[str, Any]:
    return {"hidden_states": r(1, 8, 4)}


def forward_of_2() -> dict[str, Any]:
    return {"u": r(1, 8, 12)}


def step_of_1() -> dict[str, Any]:
    states = {"conv_state": r(1, 8, 4), "ssm_state": r(1, 8, 2)}
    return {"hidden_states": r(1, 1, 4), **states}


def step_of_2() -> dict[str, Any]:
    states = {"conv_state": r(1, 16, 4), "ssm_state": r(1, 4, 3, 2)}
    return {"hidden_states": r(1, 1, 12), **states}


# Of the sizes of :func:`mixer`.
SMALL_2 = {"d_model": 12, "expand": 1, "d_state": 2, "headdim": 3, "chunk_size": 16}
PLAIN = ("inference", "gradients")
IN_PLACE = ("inference", "watched")
SUBJECTS: dict[str, tuple[Subject, ...]] = {
    "mamba_ssm.ops.selective_scan_interface": (
        Subject("selective_scan_fn", scan, 5),
        Subject("mamba_inner_fn", inner, 8),
        Subject("mamba_inner_fn", inner_with_norms, 8, ("inference",), slow=True, label="norms, "),
    ),
    "mamba_ssm.ops.triton.ssd_combined": (
        Subject("mamba_chunk_scan_combined", chunks, 6, (*PLAIN, "dual"), slow=True),
        Subject("mamba_split_conv1d_scan_combined", mixer, 7, PLAIN, slow=True),
    ),
    "mamba_ssm.ops.triton.layer_norm": tuple(
        Subject(name, norm, 3) for name in ("layer_norm_fn", "rms_norm_fn")
    ),
    "mamba_ssm.ops.triton.layernorm": tuple(
        Subject(name, norm, 3) for name in ("layer_norm_fn", "rms_norm_fn")
    ),
    "mamba_ssm.ops.triton.layernorm_gated": tuple(
        Subject(name, gated, 3) for name in ("layernorm_fn", "rmsnorm_fn")
    ),
    "mamba_ssm.ops.triton.selective_state_update": (
        Subject("selective_state_update", update, 6, IN_PLACE),
    ),
    "mamba_ssm.utils.generation": (Subject("decode", decoding, 3, ("inference",)),),
    "mamba_ssm.modules.mamba_simple": (
        Subject("Mamba.forward", forward_of_1, 1, block=lambda m: m.Mamba(4, d_state=2)),
        Subject("Mamba.step", step_of_1, 3, IN_PLACE, block=lambda m: m.Mamba(4, d_state=2)),
    ),
    "mamba_ssm.modules.mamba2": (
        Subject("Mamba2.forward", forward_of_2, 1, PLAIN, lambda m: m.Mamba2(**SMALL_2), True),
        Subject("Mamba2.step", step_of_2, 3, IN_PLACE, block=lambda m: m.Mamba2(**SMALL_2)),
    ),
    "mamba_ssm.modules.mamba2_simple": (
        Subject(
            "Mamba2Simple.forward",
            forward_of_2,
            1,
            PLAIN,
            lambda m: m.Mamba2Simple(**SMALL_2),
            True,
        ),
    ),
}
# Functions that models do not call, and whose arguments they take.
REFERENCES = {
    "selective_scan_ref": scan,
    "mamba_inner_ref": inner,
    "mamba_split_conv1d_scan_ref": mixer,
}


def probe(
    target: str, known: dict[str, list[str]], renamed: dict[str, str], extra: dict[str, float]
) -> dict[str, Answer]:
    """Ask everything of a module; ``known`` are upstream's parameters of each function.

    The warnings of the process must be recorded in :data:`said` by whoever calls this.
    """
    module = import_module(target)
    answers = {}
    for name, mode, call, arguments in _calls(module, target, known, renamed, extra):
        torch.manual_seed(0)
        try:
            numbers, raised = _numbers(call, arguments, mode), None
        except Exception as error:
            numbers, raised = None, f"{type(error).__name__}: {str(error).strip()[:300]}"
        answers[f"{name}, {mode}"] = Answer(numbers, raised, len(said))
    return answers


# What was warned of in this process, in order.
said: list[str] = []


def listen() -> None:
    """Record every warning of this process, but for those that something will go one day."""
    warnings.simplefilter("always")

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if not issubclass(category, (DeprecationWarning, FutureWarning)):
            said.append(str(message))

    warnings.showwarning = show


Prepared = Callable[[], "tuple[list[Any], dict[str, Any]]"]


def _calls(
    module: ModuleType,
    target: str,
    known: dict[str, list[str]],
    renamed: dict[str, str],
    extra: dict[str, float],
) -> Iterator[tuple[str, str, Callable[..., Any], Prepared]]:
    for subject in SUBJECTS[target]:
        owner = module if subject.block is None else _seeded(subject.block, module)
        function = getattr(owner, subject.name.rpartition(".")[2], None)
        if function is None or subject.name not in known:
            continue
        for form, modes in (
            ("by name", subject.modes),
            ("required", ("inference",)),
            ("by place", () if subject.slow else ("inference",)),
            ("extra", [*(set(subject.modes) & set(PLAIN))] if extra else ()),
        ):
            for mode in sorted(modes):
                prepared = _prepared(subject, form, known[subject.name], renamed, extra)
                yield f"{subject.name} {subject.label}{form}", mode, function, prepared
    for name, arguments in REFERENCES.items():
        function = getattr(module, name, None)
        if inspect.isfunction(function) and function.__module__ == target:
            fitting = _fitting(function, arguments, 0)
            if fitting is not None:
                yield name, "inference", function, fitting
    for name, value in sorted(vars(module).items()):
        if (
            inspect.isclass(value)
            and issubclass(value, torch.autograd.Function)
            and value.__module__ == target
        ):
            for subject in [each for each in SUBJECTS[target] if not each.slow]:
                fitting = _fitting(value.forward, subject.arguments, 1)
                if subject.block is None and fitting is not None:
                    yield f"{name} as {subject.name}", "gradients", value.apply, fitting


def _seeded(block: Callable[[ModuleType], Any], module: ModuleType) -> Any:
    torch.manual_seed(1)
    return block(module)


def _prepared(
    subject: Subject, form: str, known: list[str], renamed: dict[str, str], extra: dict[str, float]
) -> Prepared:
    def prepared() -> tuple[list[Any], dict[str, Any]]:
        given = {name: value for name, value in subject.arguments().items() if name in known}
        if form == "required":
            given = dict(list(given.items())[: subject.required])
        if form == "by place":
            return list(given.values()), {}
        keywords = {renamed.get(name, name): value for name, value in given.items()}
        return [], {**keywords, **(extra if form == "extra" else {})}

    return prepared


def _fitting(
    function: Callable[..., Any], arguments: Callable[[], dict[str, Any]], skipped: int
) -> Prepared | None:
    """Arguments by place as far as their names are known; None if one that is needed is not."""
    taken = list(inspect.signature(function).parameters.values())[skipped:]
    names = list(arguments())
    known = 0
    for each in taken:
        if each.name not in names:
            if each.default is inspect.Parameter.empty:
                return None
            break
        known += 1

    def prepared() -> tuple[list[Any], dict[str, Any]]:
        given = arguments()
        return [given[each.name] for each in taken[:known]], {}

    return prepared if known else None


def _numbers(call: Callable[..., Any], prepared: Prepared, mode: str) -> Numbers:
    places, keywords = prepared()
    leaves = [each for each in (*places, *keywords.values()) if isinstance(each, Tensor)]
    leaves += [
        parameter
        for each in (*places, *keywords.values(), getattr(call, "__self__", None))
        if isinstance(each, torch.nn.Module)
        for parameter in each.parameters()
    ]
    leaves = [each for each in leaves if each.is_floating_point()]
    around: dict[str, Callable[[], ContextManager[Any]]] = {
        "watched": Watch,
        "dual": forward_ad.dual_level,
    }
    with torch.set_grad_enabled(mode == "gradients"), around.get(mode, nullcontext)():
        for leaf in leaves:
            leaf.requires_grad_(mode == "gradients" or isinstance(leaf, torch.nn.Parameter))
            leaf.grad = None
        results = _tensors(call(*places, **keywords))
        if mode == "gradients":
            sum((each.double() * _weights(each)).sum() for each in results).backward()  # type: ignore[union-attr]
            results += [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
        else:
            # What is written in place.
            results += [each for each in keywords.values() if isinstance(each, Tensor)]
    return [(list(each.shape), each.detach().double().flatten().tolist()) for each in results]


def _weights(result: Tensor) -> Tensor:
    return torch.linspace(-1, 1, result.numel(), dtype=torch.float64).reshape(result.shape)


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if hasattr(result, "sequences"):
        return [result.sequences]
    if isinstance(result, (tuple, list)):
        return [tensor for each in result for tensor in _tensors(each)]
    return []
