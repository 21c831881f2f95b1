"""Joints of language models.

Losses, generation, caches, masks, and what transformers does with them.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch

from tests.joints.declared import MODELS, TRANSFORMERS, joint
from tests.joints.measures import Results, gradients, loss, same
from tests.joints.subjects import BATCH, SEQLEN, VOCABULARY, Subject

LANGUAGE = (MODELS, TRANSFORMERS)
THEIRS = (TRANSFORMERS,)
NEW = 5


def _loss(s: Subject, model: Any, **options: Any) -> torch.Tensor:
    if s.kind == MODELS:
        logits = model(s.tokens).logits
        value = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), s.tokens[:, 1:].flatten()
        )
    else:
        value = model(s.tokens, labels=s.tokens, use_cache=False, **options).loss
    return value


@joint("a loss of tokens", on=LANGUAGE)
def of_tokens(s: Subject) -> Results:
    model = s.model().train()
    value = _loss(s, model)
    value.backward()
    return {"loss": value.detach(), **gradients(model)}


@joint("three steps of a trainer, gradients accumulated", on=LANGUAGE, tolerance=5e-3)
def trainer(s: Subject) -> Results:
    model = s.model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    losses = []
    for _ in range(3):
        for _ in range(2):
            value = _loss(s, model) / 2
            value.backward()
            losses.append(value.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
    return {"losses": torch.stack(losses)}


def _checkpointing(s: Subject, reentrant: bool) -> Results:
    model = s.model().train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    value = _loss(s, model)
    value.backward()
    return {"loss": value.detach(), **gradients(model)}


@joint("gradient_checkpointing_enable, non-reentrant", on=THEIRS)
def checkpointing(s: Subject) -> Results:
    return _checkpointing(s, False)


@joint("gradient_checkpointing_enable, reentrant", on=THEIRS)
def checkpointing_reentrant(s: Subject) -> Results:
    return _checkpointing(s, True)


def generated(s: Subject, model: Any, **options: Any) -> Results:
    """Five tokens after those of the subject, and the scores that each was chosen by."""
    model.eval()
    if s.kind == MODELS:
        found = model.generate(
            s.tokens,
            max_length=SEQLEN + NEW,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
    else:
        found = model.generate(
            s.tokens,
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            pad_token_id=0,
            eos_token_id=None,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
    return {"sequences": found.sequences, "scores": torch.stack(found.scores).float()}


@joint("generate, greedy", on=LANGUAGE)
def greedy(s: Subject) -> Results:
    return generated(s, s.model(), **({} if s.kind == MODELS else {"do_sample": False}))


@joint("generate, greedy, twice", on=LANGUAGE)
def greedy_twice(s: Subject) -> Results:
    model = s.model()
    options: dict[str, Any] = {} if s.kind == MODELS else {"do_sample": False}
    generated(s, model, **options)
    return generated(s, model, **options)


@joint("generate, sampled with a seed", on=LANGUAGE)
def sampled(s: Subject) -> Results:
    options: dict[str, Any] = {"top_k": 8, "temperature": 0.9}
    model = s.model()
    torch.manual_seed(11)
    return generated(s, model, **options, **({} if s.kind == MODELS else {"do_sample": True}))


@joint("generate with cg=False", on=(MODELS,))
def without_graphs(s: Subject) -> Results:
    return generated(s, s.model(), cg=False)


@joint("generate under autocast", on=LANGUAGE, rounded=True)
def generated_autocast(s: Subject) -> Results:
    with torch.autocast("cpu", torch.bfloat16, enabled=not s.exact):
        found = generated(s, s.model(), **({} if s.kind == MODELS else {"do_sample": False}))
    # Later scores depend on what was chosen before.
    return {"scores": found["scores"][0]}


@joint("generate with bfloat16 weights", on=LANGUAGE, rounded=True)
def generated_low(s: Subject) -> Results:
    model = s.model().to(s.low(torch.bfloat16))
    found = generated(s, model, **({} if s.kind == MODELS else {"do_sample": False}))
    return {"scores": found["scores"][0]}


@joint("generate, a batch of one and of five", on=LANGUAGE)
def other_batches(s: Subject) -> Results:
    found: Results = {}
    model = s.model()
    tokens = s.tokens
    for size in (1, 5):
        s.tokens = tokens.repeat(3, 1)[:size]
        each = generated(s, model, **({} if s.kind == MODELS else {"do_sample": False}))
        found |= {f"{name} of {size}": value for name, value in each.items()}
    return found


@joint("generate, beam search", on=THEIRS)
def beams(s: Subject) -> Results:
    return generated(s, s.model(), num_beams=3, do_sample=False)


@joint("generate without a cache", on=THEIRS)
def without_cache(s: Subject) -> Results:
    return generated(s, s.model(), do_sample=False, use_cache=False)


@joint("generate with left padding", on=THEIRS)
def padded(s: Subject) -> Results:
    mask = torch.ones_like(s.tokens)
    mask[0, :3] = 0
    return generated(s, s.model(), do_sample=False, attention_mask=mask)


@joint("generate with a repetition penalty and a stop token", on=THEIRS)
def penalised(s: Subject) -> Results:
    model = s.model().eval()
    found = model.generate(
        s.tokens,
        max_new_tokens=NEW,
        do_sample=False,
        repetition_penalty=1.5,
        eos_token_id=4,
        pad_token_id=0,
    )
    return {"sequences": found}


@joint("generate, assisted by the prompt", on=THEIRS)
def assisted(s: Subject) -> Results:
    found = (
        s.model()
        .eval()
        .generate(
            s.tokens[:1],
            max_new_tokens=NEW,
            do_sample=False,
            prompt_lookup_num_tokens=2,
            pad_token_id=0,
            eos_token_id=None,
        )
    )
    return {"sequences": found}


@joint("a mask of left padding, forward and backward", on=THEIRS)
def masked(s: Subject) -> Results:
    model = s.model().train()
    mask = torch.ones_like(s.tokens)
    mask[1, :4] = 0
    out = model(s.tokens, attention_mask=mask, use_cache=False).logits
    loss(out).backward()
    return {"logits": out.detach(), **gradients(model)}


@joint("packed sequences by position_ids and seq_idx", on=THEIRS)
def packed(s: Subject) -> Results:
    """After the first layer, a mixer, each is what it is by itself.

    The attention of GraniteMoeHybrid takes no note of where a sequence begins.
    """
    model = s.model().train()
    lengths = (4, 7)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    index = torch.repeat_interleave(torch.arange(2), torch.tensor(lengths))[None].int()
    edges = torch.tensor([0, 4, 11], dtype=torch.int32)
    found = model(
        s.tokens[:1],
        output_hidden_states=True,
        position_ids=positions,
        seq_idx=index,
        cu_seq_lens_q=edges,
        cu_seq_lens_k=edges,
        max_length_q=7,
        max_length_k=7,
        use_cache=False,
    )
    mixed = found.hidden_states[1].detach()
    for start, stop in ((0, 4), (4, 11)):
        each = s.tokens[:1, start:stop]
        alone = model(each, output_hidden_states=True, use_cache=False).hidden_states[1]
        same("a sequence by itself", mixed[:, start:stop], alone.detach())
    return {"mixed": mixed, "logits": found.logits.detach()}


@joint("logits and states of a cache that goes on", on=THEIRS)
def cached(s: Subject) -> Results:
    model = s.model().eval()
    with torch.no_grad():
        first = model(s.tokens[:, :7], use_cache=True)
        cache = getattr(first, "cache_params", None) or first.past_key_values
        name = "cache_params" if getattr(first, "cache_params", None) else "past_key_values"
        second = model(s.tokens[:, 7:8], use_cache=True, **{name: cache})
    return {"first": first.logits, "second": second.logits}


@joint("output_hidden_states", on=THEIRS)
def hidden_states(s: Subject) -> Results:
    with torch.no_grad():
        found = s.model().eval()(s.tokens, output_hidden_states=True, use_cache=False)
    return {f"hidden {i}": each for i, each in enumerate(found.hidden_states)}


@joint("save_pretrained and from_pretrained", on=LANGUAGE)
def pretrained(s: Subject) -> Results:
    model = s.model().eval()
    with tempfile.TemporaryDirectory() as folder:
        if s.kind == MODELS:
            return {"logits": model(s.tokens).logits.detach()}
        model.save_pretrained(folder)
        other = type(model).from_pretrained(folder).eval()
        half = type(model).from_pretrained(folder, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        return {
            "logits": other(s.tokens, use_cache=False).logits,
            "dtype": str(half.dtype),
            "half": half(s.tokens, use_cache=False).logits.argmax(-1).shape,
        }


@joint("resize_token_embeddings", on=THEIRS)
def resized(s: Subject) -> Results:
    model = s.model().eval()
    model.resize_token_embeddings(VOCABULARY - 4, mean_resizing=False)
    with torch.no_grad():
        return {"logits": model(s.tokens.clamp(max=VOCABULARY - 5), use_cache=False).logits}


@joint("attn_implementation eager", on=THEIRS)
def eager_attention(s: Subject) -> Results:
    model = s.model().train()
    model.set_attn_implementation("eager")
    value = _loss(s, model)
    value.backward()
    return {"loss": value.detach(), **gradients(model)}


@joint("logits_to_keep", on=THEIRS)
def last_logits(s: Subject) -> Results:
    with torch.no_grad():
        return {"logits": s.model().eval()(s.tokens, logits_to_keep=2, use_cache=False).logits}


@joint("return_dict=False", on=THEIRS)
def as_tuple(s: Subject) -> Results:
    with torch.no_grad():
        found = s.model().eval()(s.tokens, use_cache=False, return_dict=False)
    return {"logits": found[0], "values": len(found)}


@joint("num_last_tokens", on=(MODELS,))
def last_tokens(s: Subject) -> Results:
    with torch.no_grad():
        return {"logits": s.model().eval()(s.tokens, num_last_tokens=3).logits}


@joint("a step of decoding in a graph of torch.compile", on=LANGUAGE)
def compiled_forward(s: Subject) -> Results:
    model = s.model().eval()
    compiled: Any = torch.compile(model, backend="aot_eager")
    options: dict[str, Any] = {} if s.kind == MODELS else {"use_cache": False}
    with torch.no_grad():
        return {"logits": compiled(s.tokens, **options).logits}


@joint("transformers' Trainer", on=THEIRS, tolerance=5e-3)
def their_trainer(s: Subject) -> Results:
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": row, "labels": row} for row in s.tokens.repeat(BATCH, 1)]
    model = s.model()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=2,
            per_device_train_batch_size=2,
            gradient_checkpointing=True,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
        )
        done = Trainer(model, arguments, train_dataset=rows).train()
    return {"loss": torch.tensor(done.training_loss)}


# How each model calls a part of its Mamba layers, in its configuration.
_NAMED_OTHERWISE = {
    "NemotronH": {"hidden_act": "mamba_hidden_act"},
    "Bamba": {"use_bias": "mamba_proj_bias", "use_conv_bias": "mamba_conv_bias"},
    "Zamba2": {"use_bias": "add_bias_linear", "n_groups": "mamba_ngroups"},
}
_NAMED_OTHERWISE["Bamba"]["n_groups"] = "mamba_n_groups"
for _each in ("FalconH1", "GraniteMoeHybrid", "Jamba"):
    _NAMED_OTHERWISE[_each] = _NAMED_OTHERWISE["Bamba"]


def _configured(s: Subject, **options: Any) -> Results:
    """A step of training, and what is generated, of a model that is configured otherwise."""
    names = _NAMED_OTHERWISE.get(s.name.rpartition(" ")[2], {})
    model = s.model({names.get(name, name): value for name, value in options.items()}).train()
    value = _loss(s, model)
    value.backward()
    found = {"loss": value.detach(), **gradients(model)}
    return {**found, **generated(s, model, do_sample=False)}


@joint("another activation: gelu", on=THEIRS)
def gelu(s: Subject) -> Results:
    return _configured(s, hidden_act="gelu")


@joint("another activation: relu, compiled", on=THEIRS, slow=True)
def relu_compiled(s: Subject) -> Results:
    names = _NAMED_OTHERWISE.get(s.name.rpartition(" ")[2], {})
    model = s.model({names.get("hidden_act", "hidden_act"): "relu"}).train()
    model.forward = torch.compile(model.forward, backend="eager")
    value = _loss(s, model)
    value.backward()
    return {"loss": value.detach(), **gradients(model)}


@joint("biases of the projections, none of the convolution", on=THEIRS)
def biases(s: Subject) -> Results:
    return _configured(s, use_bias=True, use_conv_bias=False)


@joint("groups, step sizes within limits", on=THEIRS)
def groups(s: Subject) -> Results:
    return _configured(s, n_groups=2, time_step_limit=(0.1, 0.5))
