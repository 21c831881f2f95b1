"""Which parameters the arguments of a call stand for, where a function is called in several ways.

The rewriter asks this of calls in a text, and ``jetson_mamba.ops.any_form`` of calls as they are
made.
"""

from __future__ import annotations

from typing import NamedTuple, Sequence


class Form(NamedTuple):
    """One way to call a function: its parameters in order, all of them given.

    ``optional`` parameters may be left out, and are given by name only. A parameter in ``texts``
    is recognised by being a string: older wrappers take ``activation`` where later ones take
    something else. ``results`` is how many values the caller unpacks, where the replacement
    returns more.
    """

    parameters: tuple[str, ...]
    optional: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    results: int | None = None


def matching(
    forms: Sequence[Form], texts: Sequence[bool], keywords: Sequence[str], positional: int
) -> Form | None:
    """The form of a call with these arguments; None where it has none of ``forms``.

    ``texts`` says of each positional argument whether it is a string; a form with ``optional``
    parameters takes at most ``positional`` of them.
    """
    for form in forms:
        names = [*form.parameters[: len(texts)], *keywords]
        given = set(names)
        required = set(form.parameters) - set(form.optional)
        if (
            # What may be left out has moved between releases: only its name says what is meant.
            len(texts) <= (positional if form.optional else len(form.parameters))
            and len(given) == len(names)
            and required <= given <= set(form.parameters)
            and all(is_text for name, is_text in zip(form.parameters, texts) if name in form.texts)
        ):
            return form
    return None


# How the convolution is called; a further way is one more form here.
FORWARD = (
    Form(("x", "weight", "bias", "silu_activation")),
    Form(("x", "weight", "bias", "seq_idx", "silu_activation")),
    Form(
        (
            "x",
            "weight",
            "bias",
            "seq_idx",
            "initial_states",
            "final_states_out",
            "silu_activation",
        )
    ),
)

BACKWARD = (
    Form(("x", "weight", "bias", "dout", "dx", "silu_activation"), results=3),
    Form(("x", "weight", "bias", "dout", "seq_idx", "dx", "silu_activation"), results=3),
    Form(
        (
            "x",
            "weight",
            "bias",
            "dout",
            "seq_idx",
            "initial_states",
            "dfinal_states",
            "dx",
            "return_dinitial_states",
            "silu_activation",
        )
    ),
)

# To causal-conv1d 1.1 the activation came by position.
WRAPPER = (
    Form(("x", "weight", "bias", "activation"), texts=("activation",)),
    Form(("x", "weight", "bias", "seq_idx", "activation"), texts=("activation",)),
    Form(
        (
            "x",
            "weight",
            "bias",
            "seq_idx",
            "initial_states",
            "return_final_states",
            "final_states_out",
            "activation",
        ),
        optional=(
            "bias",
            "seq_idx",
            "initial_states",
            "return_final_states",
            "final_states_out",
            "activation",
        ),
    ),
)

UPDATE = tuple(
    Form(("x", "conv_state", "weight", "bias", "silu_activation", *later))
    for later in ((), ("cache_seqlens",), ("cache_seqlens", "conv_state_indices"))
)
