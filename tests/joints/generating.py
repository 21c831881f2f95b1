"""Joints of what comes after a prompt.

Caches that are kept, copied, cut and trained through, and the ways of generating that use them.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from tests.joints.declared import MODELS, TRANSFORMERS, joint
from tests.joints.language import NEW, generated
from tests.joints.measures import Results, gradients, loss, same
from tests.joints.subjects import SEQLEN, SUBJECTS, Subject

THEIRS = (TRANSFORMERS,)
LANGUAGE = (MODELS, TRANSFORMERS)
# Those that hold their states in ``cache_params``; the hybrids call it ``past_key_values``.
NAMES = ("cache_params", "past_key_values")


def _begun(model: Any, tokens: Tensor, **options: Any) -> tuple[Tensor, dict[str, Any]]:
    """The logits of a prompt, and its cache by the name that the model takes it by."""
    found = model(tokens, use_cache=True, **options)
    name = next(each for each in NAMES if getattr(found, each, None) is not None)
    return found.logits, {name: getattr(found, name)}


def _next(model: Any, tokens: Tensor, cache: dict[str, Any]) -> Tensor:
    logits: Tensor = model(tokens, use_cache=True, **cache).logits
    return logits


@joint("a cache in training: use_cache and a pass back", on=THEIRS)
def cache_in_training(s: Subject) -> Results:
    model = s.model().train()
    logits, _ = _begun(model, s.tokens)
    loss(logits).backward()
    return {"logits": logits.detach(), **gradients(model)}


# The attention of Bamba gives a token other numbers from a cache than in one call.
WHOLE_AS_CACHED = tuple(
    name for name, kind in SUBJECTS.items() if kind == TRANSFORMERS and not name.endswith("Bamba")
)


def _from_a_prompt(s: Subject, prompt: int, steps: int) -> Results:
    """A pass back from each token after a prompt, which goes on through its cache.

    It is what the same tokens give in one call, or an error, as without the hook: never the
    gradient of a part.
    """
    model = s.model().eval()
    first, cache = _begun(model, s.tokens[:, :prompt])
    places = range(prompt, prompt + steps)
    outs = [first, *(_next(model, s.tokens[:, place : place + 1], cache) for place in places)]
    loss(torch.cat(outs, 1)).backward()
    found = gradients(model)
    model.zero_grad()
    loss(model(s.tokens[:, : prompt + steps], use_cache=False).logits).backward()
    for name, whole in gradients(model).items():
        same(name, found[name], whole, tolerance=1e-4)
    return found


@joint("a gradient through a cache: a prompt, then a token", on=WHOLE_AS_CACHED, slow=True)
def gradient_through_cache(s: Subject) -> Results:
    return _from_a_prompt(s, 7, 1)


@joint("a gradient through a cache: a prompt, then three tokens", on=WHOLE_AS_CACHED)
def gradient_through_tokens(s: Subject) -> Results:
    return _from_a_prompt(s, 4, 3)


@joint("several tokens after a cache", on=THEIRS, slow=True)
def several_after_cache(s: Subject) -> Results:
    model = s.model().eval()
    with torch.no_grad():
        _, cache = _begun(model, s.tokens[:, :6])
        pieces = [_next(model, s.tokens[:, 6:9], cache), _next(model, s.tokens[:, 9:], cache)]
    return {"logits": torch.cat(pieces, 1)}


@joint("a cache that is copied, both of which go on", on=THEIRS, slow=True)
def copied_cache(s: Subject) -> Results:
    model = s.model().eval()
    with torch.no_grad():
        _, cache = _begun(model, s.tokens[:, :7])
        other = copy.deepcopy(cache)
        first = _next(model, s.tokens[:, 7:8], cache)
        second = _next(model, s.tokens[:, 8:9], other)
        last = _next(model, s.tokens[:, 9:10], cache)
    return {"first": first, "second": second, "last": last}


@joint("a cache whose samples change places", on=THEIRS, slow=True)
def reordered_cache(s: Subject) -> Results:
    model = s.model().eval()
    with torch.no_grad():
        _, cache = _begun(model, s.tokens[:, :7])
        for each in cache.values():
            each.reorder_cache(torch.tensor([1, 0]))
        return {"logits": _next(model, s.tokens[:, 7:8], cache)}


@joint("a cache that is reset, and another prompt", on=THEIRS, slow=True)
def reset_cache(s: Subject) -> Results:
    model = s.model().eval()
    with torch.no_grad():
        _, cache = _begun(model, s.tokens[:, :7])
        for each in cache.values():
            each.reset()
        logits = _next(model, s.tokens[:, 2:6], cache)
        return {"logits": logits, "next": _next(model, s.tokens[:, 6:7], cache)}


@joint("a cache of another dtype than the weights", on=THEIRS, rounded=True)
def low_cache(s: Subject) -> Results:
    model = s.model().eval()
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16, enabled=not s.exact):
            _, cache = _begun(model, s.tokens[:, :7])
        return {"logits": _next(model, s.tokens[:, 7:8], cache).float()}


@joint("a cache from inference_mode, used outside of it", on=THEIRS, slow=True)
def cache_of_inference(s: Subject) -> Results:
    model = s.model().eval()
    with torch.inference_mode():
        _, cache = _begun(model, s.tokens[:, :7])
    with torch.no_grad():
        return {"logits": _next(model, s.tokens[:, 7:8], cache)}


@joint("a mask of left padding with a cache, then tokens", on=THEIRS, slow=True)
def padded_cache(s: Subject) -> Results:
    model = s.model().eval()
    mask = torch.ones(2, SEQLEN, dtype=torch.int64)
    mask[1, :4] = 0
    with torch.no_grad():
        first, cache = _begun(model, s.tokens[:, :9], attention_mask=mask[:, :9])
        second = model(s.tokens[:, 9:10], use_cache=True, attention_mask=mask[:, :10], **cache)
    return {"first": first[:, 4:], "second": second.logits}


@joint("a step of a cache in a graph of torch.compile", on=THEIRS, slow=True)
def compiled_step(s: Subject) -> Results:
    model = s.model().eval()
    compiled: Any = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        _, cache = _begun(model, s.tokens[:, :7])
        outs = [_next(compiled, s.tokens[:, place : place + 1], cache) for place in (7, 8)]
    return {"logits": torch.cat(outs, 1)}


@joint("generate, a static cache", on=THEIRS, slow=True)
def static_cache(s: Subject) -> Results:
    options: dict[str, Any] = {"disable_compile": True}
    return generated(s, s.model(), do_sample=False, cache_implementation="static", **options)


@joint("generate, a static cache, compiled", on=THEIRS, slow=True)
def static_cache_compiled(s: Subject) -> Results:
    model = s.model().eval()
    model.forward = torch.compile(model.forward, backend="eager")
    return generated(s, model, do_sample=False, cache_implementation="static")


@joint("generate, the prompt in pieces", on=THEIRS, slow=True)
def in_pieces(s: Subject) -> Results:
    return generated(s, s.model(), do_sample=False, prefill_chunk_size=4)


@joint("generate, assisted by a model", on=THEIRS, slow=True)
def assisted_by_model(s: Subject) -> Results:
    helper = s.model()
    with torch.no_grad():
        for parameter in helper.parameters():
            parameter.mul_(0.9)
    tokens, s.tokens = s.tokens, s.tokens[:1]
    found = generated(s, s.model(), do_sample=False, assistant_model=helper.eval())
    s.tokens = tokens
    return {"sequences": found["sequences"]}


@joint("generate with right padding", on=THEIRS, slow=True)
def right_padded(s: Subject) -> Results:
    mask = torch.ones_like(s.tokens)
    mask[0, -3:] = 0
    return generated(s, s.model(), do_sample=False, attention_mask=mask)


@joint("generate from embeddings", on=THEIRS, slow=True)
def from_embeddings(s: Subject) -> Results:
    model = s.model().eval()
    with torch.no_grad():
        x = model.get_input_embeddings()(s.tokens)
    return {
        "sequences": model.generate(
            inputs_embeds=x, max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=None
        )
    }


@joint("generate, three samples of each, with beams", on=THEIRS, slow=True)
def sampled_beams(s: Subject) -> Results:
    torch.manual_seed(5)
    options: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 3}
    return generated(s, s.model(), do_sample=True, **options)


@joint("generate, streamed, and stopped by a criterion", on=THEIRS, slow=True)
def streamed(s: Subject) -> Results:
    seen: list[int] = []

    class Streamer:
        def put(self, value: Tensor) -> None:
            seen.extend(value.flatten().tolist())

        def end(self) -> None:
            seen.append(-1)

    def enough(tokens: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.full((len(tokens),), tokens.shape[1] > SEQLEN + 2)

    from transformers import StoppingCriteriaList

    found = (
        s.model()
        .eval()
        .generate(
            s.tokens[:1],
            max_new_tokens=NEW,
            do_sample=False,
            streamer=Streamer(),
            stopping_criteria=StoppingCriteriaList([enough]),
            pad_token_id=0,
            eos_token_id=None,
        )
    )
    return {"sequences": found, "seen": seen}


@joint("generate with hidden states", on=THEIRS, slow=True)
def generated_hidden(s: Subject) -> Results:
    found = (
        s.model()
        .eval()
        .generate(
            s.tokens,
            max_new_tokens=3,
            do_sample=False,
            output_hidden_states=True,
            return_dict_in_generate=True,
            pad_token_id=0,
            eos_token_id=None,
        )
    )
    return {
        f"hidden {place} of {i}": each
        for place, step in enumerate(found.hidden_states)
        for i, each in enumerate(step)
    }


@joint("generate in training mode, then a step of training", on=LANGUAGE)
def generate_between_steps(s: Subject) -> Results:
    model = s.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    options: dict[str, Any] = {} if s.kind == MODELS else {"do_sample": False}
    for _ in range(2):
        found = generated(s, model, **options)
        model.train()
        optimizer.zero_grad()
        loss(model(found["sequences"]).logits).backward()
        optimizer.step()
    return {**generated(s, model, **options), **gradients(model)}


@joint("generate in four threads", on=LANGUAGE, slow=True)
def generate_in_threads(s: Subject) -> Results:
    from concurrent.futures import ThreadPoolExecutor

    model = s.model().eval()
    options: dict[str, Any] = {} if s.kind == MODELS else {"do_sample": False}
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: generated(s, model, **options), range(4)))
    return {f"{name} {i}": value for i, each in enumerate(found) for name, value in each.items()}


@joint("generate after the weights have changed", on=LANGUAGE, slow=True)
def generate_changed(s: Subject) -> Results:
    model = s.model()
    options: dict[str, Any] = {} if s.kind == MODELS else {"do_sample": False}
    generated(s, model, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.7)
    return generated(s, model, **options)


@joint("generate with hooks on projections", on=LANGUAGE)
def generate_hooked(s: Subject) -> Results:
    from tests.joints.subjects import mixers

    model = s.model()
    calls: list[str] = []

    def seen(*call: Any) -> Any:
        calls.append("called")
        return 1.1 * call[2]

    for mixer in mixers(model):
        mixer.out_proj.register_forward_hook(seen)
    options: dict[str, Any] = {} if s.kind == MODELS else {"do_sample": False}
    found = generated(s, model, **options)
    return {**found, "called": len(calls) > 0}
