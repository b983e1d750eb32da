"""Answers to conversations, in batches: greedy, or sampled so that an answer does not depend on its neighbours.

    texts = generate(loaded, conversations, GenerationSettings(max_new_tokens=512))

Prompts are rendered and tokenized as training does it, so text that spells a special token stays text. Batches hold
prompts of like length, padded on the left; a row that has ended leaves its batch. Where memory runs out, a batch is
halved. Not for: which questions are asked, or files (`benchmarks`).
"""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twdpo.errors import ModelError
from twdpo.pipeline.memory import give_back, out_of_memory
from twdpo.pipeline.models import LoadedModel, context_length, input_device
from twdpo.pipeline.train.render import Renderer, RenderError
from twdpo.preferences import Message

#: Conversations in one batch, unless told otherwise.
_BATCH_ON_CPU, _BATCH_ON_ACCELERATOR = 8, 32
#: Below this a temperature means the likeliest token, as in FastChat.
COLD = 1e-4

Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """How answers are generated.

    temperature: of `generate`; below `COLD` the likeliest token is taken. seed: with the conversation it decides all
    that is drawn. batch_size: None for a default by device. chat_template_kwargs: for the model's chat template.
    """

    max_new_tokens: int = 1024
    temperature: float = 0.0
    seed: int = 0
    batch_size: int | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A conversation to be answered. key: what it draws its random numbers by, together with the seed."""

    messages: tuple[Message, ...]
    temperature: float
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer without its end of turn and the white space around it.

    tokens: how many were generated. cut: it did not end by itself. failure: why there is none.
    """

    text: str
    tokens: int = 0
    cut: bool = False
    failure: str | None = None


class Generator(ABC):
    """A model that answers requests. Give it those of one of its `batches` at a time."""

    def __init__(self, renderer: Renderer, context: int | None, settings: GenerationSettings) -> None:
        self.renderer, self._context, self._settings = renderer, context, settings

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """Requests in a batch at the most."""

    @abstractmethod
    def _generate(self, prompts: list[Ids], requests: list[Request], limits: list[int]) -> list[Ids]:
        """The new tokens of each prompt, at most `limits`, the end of turn included where it came."""

    def batches(self, requests: Sequence[Request]) -> list[list[int]]:
        """Indices of requests, those with prompts of like length together; short ones first."""
        lengths = []
        for request in requests:
            try:
                lengths.append(len(self.renderer.prompt_ids(request.messages)))
            except RenderError:
                lengths.append(0)
        order = sorted(range(len(requests)), key=lambda i: (lengths[i], i))
        return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """An answer to each, in order; one that can't be given says why. Raises ModelError."""
        answers: dict[int, Answer] = {}
        places, prompts, limits = [], [], []
        for i, request in enumerate(requests):
            try:
                ids = self.renderer.prompt_ids(request.messages)
            except RenderError as error:
                answers[i] = Answer(text="", failure=str(error))
                continue
            room = self._settings.max_new_tokens if self._context is None else self._context - len(ids)
            if room <= 0:
                why = f"the prompt's {len(ids):,} tokens fill the model's context of {self._context:,}"
                answers[i] = Answer(text="", failure=why)
                continue
            places.append(i)
            prompts.append(ids)
            limits.append(min(room, self._settings.max_new_tokens))
        for i, new in zip(places, self._generate(prompts, [requests[i] for i in places], limits), strict=True):
            answers[i] = self._answer(new)
        return [answers[i] for i in range(len(requests))]

    def _answer(self, new: Ids) -> Answer:
        ended = len(new) > 0 and int(new[-1]) in self._stops
        kept = new[: len(new) - ended].tolist()
        decode = self.renderer.tokenizer.decode
        text = str(decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)).strip()
        return Answer(text=text, tokens=len(new), cut=not ended)

    @property
    def _stops(self) -> frozenset[int]:
        return frozenset(self.renderer.stop_ids)


class TransformersGenerator(Generator):
    """Generates with a model in memory. Raises ModelError where it has no token by which an answer could end."""

    def __init__(self, loaded: LoadedModel, settings: GenerationSettings) -> None:
        context = context_length(loaded.model.config)
        super().__init__(renderer_of(loaded.tokenizer, settings), context, settings)
        self._model, self._device = loaded.model, input_device(loaded.model)
        own = getattr(getattr(loaded.model, "generation_config", None), "eos_token_id", None)
        ends = [own] if isinstance(own, int) else list(own or ())
        self._ends = frozenset({*self.renderer.stop_ids, *map(int, ends)})
        default = _BATCH_ON_CPU if self._device.type == "cpu" else _BATCH_ON_ACCELERATOR
        self._batch_size = settings.batch_size or default
        self._at_once = self._batch_size
        self._takes = frozenset(inspect.signature(loaded.model.forward).parameters)

    @property
    def batch_size(self) -> int:
        """As the settings say, or a default by device."""
        return self._batch_size

    @property
    def _stops(self) -> frozenset[int]:
        return self._ends

    @torch.inference_mode()
    def _generate(self, prompts: list[Ids], requests: list[Request], limits: list[int]) -> list[Ids]:
        done: list[Ids] = []
        while len(done) < len(prompts):
            part = slice(len(done), len(done) + self._at_once)
            new = self._try(prompts[part], requests[part], limits[part])
            if new is not None:
                done += new
                continue
            size = len(prompts[part])
            if size == 1:
                raise ModelError(
                    f"out of memory on a single prompt of {len(prompts[len(done)])} tokens; use a smaller "
                    "--max-new-tokens, or --dtype bfloat16"
                )
            self._at_once = size // 2
        return done

    def _try(self, prompts: list[Ids], requests: list[Request], limits: list[int]) -> list[Ids] | None:
        """One batch, or None where there was not memory enough for it."""
        try:
            return self._run(prompts, requests, limits)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        give_back()
        return None

    def _run(self, prompts: list[Ids], requests: list[Request], limits: list[int]) -> list[Ids]:
        """Generate for one batch. B: live rows, T: positions of the longest row so far."""
        draws = _Draws(requests, limits, self._settings.seed)
        new: list[list[int]] = [[] for _ in prompts]
        live = list(range(len(prompts)))
        ids_BT, mask_BT = _left_padded(prompts, self._device)
        past: Any = None
        positions_B = mask_BT.sum(1)
        step_BT = ids_BT
        places_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
        while live:
            logits_BV, past = self._forward(step_BT, mask_BT, places_BT, past)
            tokens_B = draws.next(logits_BV, live)
            chosen = tokens_B.tolist()
            for row, token in zip(live, chosen, strict=True):
                new[row].append(token)
            going = [i for i, row in enumerate(live) if chosen[i] not in self._ends and len(new[row]) < limits[row]]
            if len(going) < len(live):
                if not going:
                    break
                kept = torch.tensor(going, device=self._device)
                past.reorder_cache(kept)
                tokens_B, mask_BT, positions_B = tokens_B[kept], mask_BT[kept], positions_B[kept]
                live = [live[i] for i in going]
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(live), 1)], dim=1)
            step_BT, places_BT = tokens_B[:, None], positions_B[:, None]
            positions_B = positions_B + 1
        return [np.asarray(row, np.int32) for row in new]

    def _forward(self, ids_BT: Tensor, mask_BT: Tensor, places_BT: Tensor, past: Any) -> tuple[Tensor, Any]:
        """The last position's logits, float32[B, V], and the keys and values so far."""
        known = {"position_ids": places_BT, "logits_to_keep": 1}
        arguments = {name: value for name, value in known.items() if name in self._takes}
        out = self._model(input_ids=ids_BT, attention_mask=mask_BT, past_key_values=past, use_cache=True, **arguments)
        logits_BV = out.logits[:, -1].float()
        if bool(logits_BV.isnan().any()):
            raise ModelError("the model's logits are not numbers; try --dtype float32, and check how it was trained")
        return logits_BV, out.past_key_values


class _Draws:
    """Next tokens of rows with temperatures of their own; each draws by its own numbers, whatever its batch."""

    def __init__(self, requests: Sequence[Request], limits: Sequence[int], seed: int) -> None:
        self._temperatures = [request.temperature for request in requests]
        self._numbers = [
            random_numbers(seed, request.key, limit) if request.temperature >= COLD else None
            for request, limit in zip(requests, limits, strict=True)
        ]
        self._step = 0

    def next(self, logits_BV: Tensor, rows: Sequence[int]) -> Tensor:
        """int64[B]: the token at which the running sum of the probabilities passes the row's number."""
        step, self._step = self._step, self._step + 1
        tokens_B = logits_BV.argmax(1)
        warm = [i for i, row in enumerate(rows) if self._numbers[row] is not None]
        if not warm:
            return tokens_B
        exact = torch.float32 if logits_BV.device.type == "mps" else torch.float64
        heat = logits_BV.new_tensor([self._temperatures[rows[i]] for i in warm])
        numbers = [float(column[step]) for i in warm if (column := self._numbers[rows[i]]) is not None]
        sums_WV = torch.softmax(logits_BV[warm] / heat[:, None], dim=1, dtype=exact).cumsum(1)
        wanted_W1 = torch.tensor(numbers, dtype=exact, device=logits_BV.device)[:, None] * sums_WV[:, -1:]
        drawn_W = torch.searchsorted(sums_WV, wanted_W1, right=True)[:, 0].clamp(max=sums_WV.shape[1] - 1)
        tokens_B[warm] = drawn_W
        return tokens_B


def random_numbers(seed: int, key: str, count: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) that depend on seed and key alone; the first are the same whatever `count`."""
    return np.random.Generator(np.random.Philox(key=_key_of(seed, key, 16))).random(count)


def _key_of(seed: int, key: str, digest_bytes: int) -> int:
    digest = hashlib.sha256(f"{seed}\x00{key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:digest_bytes], "big")


def request_seed(seed: int, key: str) -> int:
    """The same for engines that take one seed a request: 31 bits."""
    return _key_of(seed, key, 4) >> 1


def renderer_of(tokenizer: Any, settings: GenerationSettings) -> Renderer:
    """What turns conversations into prompts, as training does."""
    return Renderer(tokenizer, max_length=1 << 30, chat_template_kwargs=settings.chat_template_kwargs)


def generate(
    loaded: LoadedModel,
    conversations: Sequence[Sequence[Message]],
    settings: GenerationSettings,
    advance: Callable[[int], None] | None = None,
) -> list[str]:
    """The text of an answer to each conversation, in order; otherwise as `answer_all`."""
    return [answer.text for answer in answer_all(loaded, conversations, settings, advance)]


def answer_all(
    loaded: LoadedModel,
    conversations: Sequence[Sequence[Message]],
    settings: GenerationSettings,
    advance: Callable[[int], None] | None = None,
) -> list[Answer]:
    """An answer to each conversation, in order; `advance` is told how many more are there.

    Raises ModelError where one can't be answered.
    """
    generator = TransformersGenerator(loaded, settings)
    requests = [
        Request(messages=tuple(turns), temperature=settings.temperature, key=conversation_key(turns))
        for turns in conversations
    ]
    answers = [Answer(text="")] * len(requests)
    for batch in generator.batches(requests):
        for i, answer in zip(batch, generator.answer([requests[i] for i in batch]), strict=True):
            if answer.failure is not None:
                raise ModelError(f"conversation {i} cannot be answered: {answer.failure}")
            answers[i] = answer
        if advance is not None:
            advance(len(batch))
    return answers


def conversation_key(messages: Sequence[Message]) -> str:
    """The text that a conversation draws its random numbers by."""
    return "\x1e".join(f"{m.role}\x1f{m.content}" for m in messages)


def _left_padded(prompts: Sequence[Ids], device: Any) -> tuple[Tensor, Tensor]:
    """int64[B, T] ids, which end in the last column, and their mask; what pads is looked at by no row."""
    width = max(map(len, prompts))
    ids = np.zeros((len(prompts), width), np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
