"""Declares the joints of every area."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Callable, Mapping, NamedTuple

if TYPE_CHECKING:
    from tests.joints.subjects import Subject

# The modules that declare joints, and their headings.
AREAS = {
    "training": "Training",
    "transforms": "Derivatives and transforms",
    "modes": "Modes and devices",
    "tracing": "Traced and exported",
    "compiling": "Compiled",
    "precision": "Precision and settings",
    "projections": "Projections that are changed or watched",
    "lifetimes": "Copied, wrapped and spread",
    "inputs": "Inputs",
    "decoding": "Step by step",
    "language": "Language models",
    "generating": "After a prompt",
    "watching": "Watched and checked",
    "adapters": "Adapted, quantised and explained by libraries",
    "spreading": "Spread over two processes, offloaded",
    "processes": "Processes and threads",
}
BLOCKS, MODELS, TRANSFORMERS = "blocks", "models", "transformers"
ALL = (BLOCKS, MODELS, TRANSFORMERS)
OURS = (BLOCKS, MODELS)

Results = Mapping[str, Any]
Run = Callable[["Subject"], Results]


class Joint(NamedTuple):
    """A way of using a subject.

    ``on`` are the kinds of subject, or the names of subjects, that it can be used with.
    ``rounded``: what is computed is rounded to half precision, and judged by its distance from the
    same in float32. ``may_refuse``: an error that says what to do instead is as good as a result,
    where no program without the hook has one. ``tolerance`` stands in for that of the dtypes.
    """

    name: str
    area: str
    run: Run
    on: tuple[str, ...]
    rounded: bool
    may_refuse: bool
    tolerance: float | None
    slow: bool

    def fits(self, subject: str, kind: str) -> bool:
        """Whether it can be used with that subject."""
        return subject in self.on or kind in self.on


_JOINTS: dict[str, Joint] = {}


def joint(
    name: str,
    *,
    on: tuple[str, ...] = ALL,
    rounded: bool = False,
    may_refuse: bool = False,
    tolerance: float | None = None,
    slow: bool = False,
) -> Callable[[Run], Run]:
    """Declare a joint: a function of a subject that returns tensors and facts by name, or raises.

    Tensors are compared by their relative norm, anything else must be equal. ``slow``: left out of
    the part that runs with the tests.
    """

    def declare(run: Run) -> Run:
        area = run.__module__.rpartition(".")[2]
        if name in _JOINTS:
            raise ValueError(f"name: expected a joint that is declared once, found {name!r}")
        _JOINTS[name] = Joint(name, area, run, on, rounded, may_refuse, tolerance, slow)
        return run

    return declare


def joints() -> dict[str, Joint]:
    """Every joint by its name, in the order of the areas."""
    for area in AREAS:
        import_module(f"tests.joints.{area}")
    order = list(AREAS)
    return dict(sorted(_JOINTS.items(), key=lambda item: order.index(item[1].area)))
