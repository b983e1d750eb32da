"""Files of questions in the official forms with made-up texts, and a generator that needs no model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from twdpo.evaluate.benchmarks.run import LoadedGenerator
from twdpo.evaluate.generation import Answer, Generator, Request

#: Texts that encodings, line readers and tables get wrong.
NASTY = (
    "plain",
    "  leading and trailing  ",
    "two\r\nlines\ttab",
    "separators \u2028 and \u0085 and \x0b",
    "emoji 🦊 and zero\u200dwidth",
    'quotes " and \\ and </script>',
    "ä vs a\u0308",
    "<|im_end|> spelt out",
)
CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")


def alpaca_rows(count: int = 805) -> list[dict[str, Any]]:
    subsets = ("helpful_base", "koala", "oasst", "selfinstruct", "vicuna")
    return [
        {
            "instruction": f"{NASTY[i % len(NASTY)]} {i}",
            "output": f"reference {i}",
            "generator": "gpt4_1106_preview",
            "dataset": subsets[i % 5],
        }
        for i in range(count)
    ]


def mt_bench_rows(count: int = 80) -> list[dict[str, Any]]:
    return [
        {"question_id": 81 + i, "category": CATEGORIES[i // 10], "turns": [f"first {NASTY[i % 8]} {i}", f"second {i}"]}
        for i in range(count)
    ]


def arena_rows(version: str = "v0.1", count: int | None = None) -> list[dict[str, Any]]:
    count = count or {"v0.1": 500, "v2.0": 750, "legacy": 500}[version]
    texts = [f"{NASTY[i % len(NASTY)]} {i}" for i in range(count)]
    if version == "v0.1":
        about = {"category": "arena-hard-v0.1", "cluster": "some"}
        return [{"uid": f"u{i}", **about, "prompt": text} for i, text in enumerate(texts)]
    if version == "v2.0":
        kinds = [("hard_prompt", "coding")] * (count - count // 3) + [("creative_writing",) * 2] * (count // 3)
        return [
            {"uid": f"u{i}", "category": kind, "subcategory": sub, "prompt": text}
            for i, (text, (kind, sub)) in enumerate(zip(texts, kinds, strict=True))
        ]
    return [
        {"question_id": f"q{i}", "category": "arena-hard-v0.1", "cluster": "some", "turns": [{"content": text}]}
        for i, text in enumerate(texts)
    ]


def write_json(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A JSON array where the name ends so, else JSON lines."""
    text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, "utf-8")
    return path


def read_json(path: Path) -> list[dict[str, Any]]:
    text = path.read_text("utf-8")
    rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    return list(rows)


class EchoGenerator(Generator):
    """Answers with what it was asked; fails, or is interrupted, where a test says so. `asked`: the requests so far."""

    def __init__(
        self, *, size: int = 8, fails: Sequence[str] = (), stop: Callable[[Sequence[Request]], bool] | None = None
    ) -> None:
        self.renderer: Any = SimpleNamespace(fingerprint="prompts")
        self.asked: list[Request] = []
        self._size, self._fails, self._stop = size, fails, stop

    @property
    def batch_size(self) -> int:
        return self._size

    def batches(self, requests: Sequence[Request]) -> list[list[int]]:
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].messages[-1].content), i))
        return [order[i : i + self._size] for i in range(0, len(order), self._size)]

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        if self._stop is not None and self._stop(requests):
            raise KeyboardInterrupt
        self.asked += requests
        return [self._one(request) for request in requests]

    def _one(self, request: Request) -> Answer:
        if request.key in self._fails:
            return Answer(text="", failure="the prompt is too long")
        said = " | ".join(message.content for message in request.messages)
        return Answer(text=f"to <{said}> at {request.temperature}", tokens=3)

    def _generate(self, prompts: Any, requests: Any, limits: Any) -> Any:
        raise NotImplementedError


def loaded(generator: Generator | None = None, **about: Any) -> LoadedGenerator:
    return LoadedGenerator(generator=generator or EchoGenerator(), **({"revision": "r1", "dtype": "float32"} | about))
