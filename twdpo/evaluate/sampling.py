"""One answer to each of many prompts, in left-padded batches. Not for: files of benchmark answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from twdpo.errors import ModelError
from twdpo.pipeline.chat import chat_template, render_chat
from twdpo.pipeline.models import LoadedModel, context_length, input_device
from twdpo.pipeline.tokens import LiteralTokenizer
from twdpo.pipeline.train.render import plain_prompt
from twdpo.preferences import Message

_BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """temperature: 0 for the likeliest token. batch_size: None for 16."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0
    batch_size: int | None = None


def sample(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[Message]],
    settings: SamplingSettings,
    advance: Callable[[int], None] | None = None,
) -> list[str]:
    """An answer to each prompt, in order. Raises ModelError for a prompt that fills the model's context."""
    tokenizer, model = loaded.tokenizer, loaded.model
    literal = LiteralTokenizer(tokenizer)
    ids = [conversation_ids(tokenizer, literal, prompt) for prompt in prompts]
    context = context_length(model.config)
    if context is not None and any(len(each) >= context for each in ids):
        raise ModelError(f"a prompt fills the context of {loaded.name}, {context} tokens; leave that pair out")
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    answers = [""] * len(ids)
    size = settings.batch_size or _BATCH
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(settings.seed)
        for start in range(0, len(order), size):
            group = order[start : start + size]
            for i, text in zip(group, _batch(loaded, [ids[i] for i in group], settings, context), strict=True):
                answers[i] = text
            if advance is not None:
                advance(len(group))
    return answers


def conversation_ids(
    tokenizer: Any, literal: LiteralTokenizer, messages: Sequence[Message], *, complete: bool = False
) -> list[int]:
    """A conversation as the chat template has it, text that spells a special token staying text.

    complete: it ends with an answer; else with the header of the answer to come.
    """
    if chat_template(tokenizer) is None:
        text = plain_prompt(messages[:-1]) + messages[-1].content if complete else plain_prompt(messages)
        end = [tokenizer.eos_token_id] if complete and tokenizer.eos_token_id is not None else []
        return [*literal.bos_ids, *literal.encode(text).ids.tolist(), *end]
    shielded = [Message(role=m.role, content=literal.shield(m.content)) for m in messages]
    try:
        rendered = render_chat(tokenizer, shielded, add_generation_prompt=not complete)
    except Exception as error:  # templates are programs and raise what they like
        raise ModelError(f"the chat template refuses a conversation: {error}") from None
    found: list[int] = literal.encode(literal.unshield(literal.mark(rendered))).ids.tolist()
    return found


@torch.inference_mode()
def _batch(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], settings: SamplingSettings, context: int | None
) -> list[str]:
    tokenizer, model = loaded.tokenizer, loaded.model
    stop = tokenizer.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop or 0
    longest = max(map(len, prompts))
    ids = np.full((len(prompts), longest), pad, np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    room = settings.max_new_tokens if context is None else min(settings.max_new_tokens, context - longest)
    device = input_device(model)
    warm = settings.temperature > 0
    chosen: dict[str, Any] = {"temperature": settings.temperature, "top_p": 1.0, "top_k": 0} if warm else {}
    if not warm:  # what a model's own generation_config says of sampling would be warned about
        chosen = {"temperature": None, "top_p": None, "top_k": None}
    out = model.generate(
        input_ids=torch.from_numpy(ids).to(device),
        attention_mask=torch.from_numpy(mask).to(device),
        max_new_tokens=room,
        do_sample=warm,
        pad_token_id=pad,
        **chosen,
    )
    return [str(text).strip() for text in tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)]
