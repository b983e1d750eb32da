"""Answering a benchmark from end to end: questions in, batches through the model, answers kept, the official file out.

The official file is written when every question has an answer, and not before; one of an earlier run is removed when
new answers begin. Not for: generating (`evaluate/generation.py`), or the form of the file (`formats.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twdpo.errors import DataError, Interrupted, ModelError
from twdpo.evaluate.benchmarks.commands import official_commands
from twdpo.evaluate.benchmarks.config import GenerateConfig
from twdpo.evaluate.benchmarks.formats import Answered, bench_name, official_path, trial_path, write_answers
from twdpo.evaluate.benchmarks.hub import find_questions
from twdpo.evaluate.benchmarks.markdown import token_counter
from twdpo.evaluate.benchmarks.questions import Question, QuestionSet, read_questions
from twdpo.evaluate.rowlog import RowLog
from twdpo.preferences import Message
from twdpo.weights_cache.durable import storing

if TYPE_CHECKING:
    from twdpo.evaluate.generation import Answer, Generator


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedGenerator:
    """A generator, and what identifies its model in a run."""

    generator: Generator
    revision: str | None
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateProgress:
    """How far a run is: questions answered, those of earlier runs included, and tokens of this one."""

    answered: int
    total: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateResult:
    """What a run made.

    resumed: answers of earlier runs. cut: answers that reached the most tokens. empty: answers without a character.
    trial: the file holds the first questions only. commands: how the official tool judges it. note: what it lacks.
    """

    path: Path
    title: str
    answered: int
    official: int
    resumed: int
    cut: int
    empty: int
    tokens: int
    seconds: float
    trial: bool
    commands: list[str]
    note: str | None = None


Show = Callable[[GenerateProgress], None]


def generate_answers(
    config: GenerateConfig, *, on_progress: Show | None = None, loaded: LoadedGenerator | None = None
) -> GenerateResult:
    """Answer what is not answered yet, then write the official file. `loaded` replaces the model that `config` names.

    Raises what loading raises, UsageError where the folder has answers of another run, ModelError where a question
    cannot be answered, and Interrupted on Ctrl-C: answers are kept.
    """
    questions = _questions(config)
    loaded = loaded or load_generator(config)
    out, asked = Path(config.out), len(questions.questions)
    suffix = "" if asked == questions.official else f"-first-{asked}"
    folder = out / "work" / f"{bench_name(questions)}-{config.called}{suffix}"
    path = _path(config, questions)
    instead = "pass another --name or --out, or remove that folder"
    with RowLog.open(folder, _run(config, questions, loaded), instead=instead) as log:
        if any(question.key not in log.rows for question in questions.questions):
            # It would hold another model's answers, or another run's, under this one's name.
            with storing(path):
                path.unlink(missing_ok=True)
        answering = _Answering(config, questions, loaded.generator, log, on_progress or (lambda _progress: None))
        try:
            answering.run()
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped; {len(log.rows)} of {asked} answers are kept in {folder}: run the same command again to go on"
            ) from None
        if answering.failures:
            raise ModelError(_missing(questions, answering.failures, path))
        return _finish(config, questions, answering, path)


def load_generator(config: GenerateConfig) -> LoadedGenerator:
    """Load the model that `config` names. Raises what loading raises."""
    from twdpo.evaluate.generation import GenerationSettings, TransformersGenerator

    settings = GenerationSettings(
        max_new_tokens=config.tokens,
        seed=config.seed,
        batch_size=config.batch_size,
        chat_template_kwargs=config.chat_template_kwargs,
    )
    if config.engine == "vllm":
        from twdpo.evaluate.generation_vllm import load_vllm_generator

        generator, revision, dtype = load_vllm_generator(config, settings)
        return LoadedGenerator(generator=generator, revision=revision, dtype=dtype)
    from twdpo.pipeline.models import load_model

    model = load_model(
        config.model,
        dtype=config.dtype,
        device=config.device,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
    )
    return LoadedGenerator(generator=TransformersGenerator(model, settings), revision=model.revision, dtype=model.dtype)


def _questions(config: GenerateConfig) -> QuestionSet:
    """The questions to be answered: all, or the first. Raises DataError where they are not as many as there must be."""
    version = config.arena_version if config.benchmark == "arena_hard" else ""
    file = Path(config.questions).expanduser() if config.questions else find_questions(config.benchmark, version)
    questions = read_questions(file, config.benchmark)
    found = len(questions.questions)
    if config.limit is not None and config.limit < questions.official:
        return questions.first(config.limit)
    if found != questions.official:
        raise DataError(
            f"{file} has {found} questions and {questions.title} has {questions.official}: its official tool would "
            f"fail, or judge wrongly and not say so; to try these, --limit {min(found, questions.official - 1)}"
        )
    return questions


def _path(config: GenerateConfig, questions: QuestionSet) -> Path:
    """Where the answers go once they are complete."""
    asked, out = len(questions.questions), Path(config.out)
    if asked < questions.official:
        return trial_path(out, questions, config.called, asked)
    return official_path(out, questions, config.called)


def _run(config: GenerateConfig, questions: QuestionSet, loaded: LoadedGenerator) -> dict[str, Any]:
    """All that decides the answers."""
    return {
        "benchmark": bench_name(questions),
        "questions": f"{len(questions.questions)}, {questions.digest}",
        "model": config.model,
        "model revision": loaded.revision,
        "name": config.called,
        "dtype": loaded.dtype,
        "engine": config.engine,
        "prompts": loaded.generator.renderer.fingerprint,
        "max new tokens": config.tokens,
        "temperature": "of the benchmark" if config.temperature is None else config.temperature,
        "seed": config.seed,
    }


@dataclass(slots=True)
class _Answering:
    config: GenerateConfig
    questions: QuestionSet
    generator: Generator
    log: RowLog
    show: Show
    failures: dict[str, str] = field(default_factory=dict)
    tokens: int = 0
    resumed: int = 0
    seconds: float = 0.0

    def run(self) -> None:
        """Batch by batch. Batches are made of all questions, so that a run that goes on has those of one at once."""
        started, self.resumed = time.perf_counter(), len(self.log.rows)
        asked = self.questions.questions
        for batch in self.generator.batches([self._request(q, ()) for q in asked]):
            waiting = [asked[i] for i in batch]
            if any(question.key not in self.log.rows for question in waiting):
                self._answer(waiting)
            self.show(
                GenerateProgress(
                    answered=len(self.log.rows),
                    total=len(asked),
                    tokens=self.tokens,
                    seconds=time.perf_counter() - started,
                )
            )
        self.seconds = time.perf_counter() - started

    def _answer(self, batch: Sequence[Question]) -> None:
        """All turns of a batch's questions, then into the log what it lacks."""
        given: dict[str, list[Answer]] = {question.key: [] for question in batch}
        for turn in range(max(len(question.turns) for question in batch)):
            going = [q for q in batch if len(q.turns) > turn and q.key not in self.failures]
            requests = [self._request(q, [answer.text for answer in given[q.key]]) for q in going]
            for question, answer in zip(going, self.generator.answer(requests), strict=True):
                self.tokens += answer.tokens
                given[question.key].append(answer)
                if answer.failure is not None:
                    self.failures[question.key] = answer.failure
        self.log.append(
            {
                "key": question.key,
                "turns": [answer.text for answer in given[question.key]],
                "tokens": [answer.tokens for answer in given[question.key]],
                "cut": [answer.cut for answer in given[question.key]],
                "time": time.time(),
            }
            for question in batch
            if question.key not in self.failures and question.key not in self.log.rows
        )

    def _request(self, question: Question, answers: Sequence[str]) -> Any:
        """The question's next turn, after the `answers` to those before."""
        from twdpo.evaluate.generation import Request

        messages = [Message(role="user", content=question.turns[0])]
        for answer, turn in zip(answers, question.turns[1:], strict=False):
            messages += [Message(role="assistant", content=answer), Message(role="user", content=turn)]
        return Request(
            messages=tuple(messages),
            temperature=self.config.temperature_of(question.category),
            key=f"{self.questions.benchmark}/{question.key}/{len(answers)}",
        )


def _missing(questions: QuestionSet, failures: dict[str, str], path: Path) -> str:
    key, reason = next(iter(failures.items()))
    total = len(questions.questions)
    return (
        f"incomplete: {len(failures)} of {total} questions of {questions.title} have no answer (the first is "
        f"{key}: {reason}), so {path} is not written; the other answers are kept"
    )


def _finish(config: GenerateConfig, questions: QuestionSet, answering: _Answering, path: Path) -> GenerateResult:
    """Write the file of a run that is complete."""
    rows, asked = answering.log.rows, questions.questions
    trial = len(asked) < questions.official
    counter = None
    note = None
    if questions.benchmark == "arena_hard":
        counter = token_counter("gpt-3.5-turbo" if questions.version == "legacy" else "gpt-4o")
        if isinstance(counter, str):
            note = f"no metadata, which style control needs: {counter}; run this command again with it"
    answers = [Answered(question=q, turns=tuple(rows[q.key]["turns"]), time=float(rows[q.key]["time"])) for q in asked]
    write_answers(path, questions, answers, config.called, None if isinstance(counter, str) else counter)
    return GenerateResult(
        path=path,
        title=questions.title,
        answered=len(asked),
        official=questions.official,
        resumed=answering.resumed,
        cut=sum(any(rows[q.key]["cut"]) for q in asked),
        empty=sum(not all(rows[q.key]["turns"]) for q in asked),
        tokens=answering.tokens,
        seconds=answering.seconds,
        trial=trial,
        commands=[] if trial else official_commands(questions, path, config.called),
        note=note,
    )
