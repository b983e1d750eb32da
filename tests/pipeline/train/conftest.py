"""A small world to train in: a tiny model, sixty pairs, and a cache of random weights for them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import settings

from tests.fixtures.tiny_models import save_tiny, tiny_tokenizer
from twdpo.pipeline.tokens import LiteralTokenizer
from twdpo.pipeline.train import TrainConfig
from twdpo.pipeline.train.processes import Alone
from twdpo.preferences import Pair, load, resolve
from twdpo.weights_cache import CacheWriter, Recipe, SideWeights, WeightRow

LAYERS = (0, 1)
Item = TypeVar("Item")
Result = TypeVar("Result")

# The first call of a torch function takes longer than hypothesis allows an example.
settings.register_profile("torch", deadline=None)
settings.load_profile("torch")


def stored_weights(text: str, seed: int = 0) -> SideWeights:
    """Random weights of mean 1 over the tiny tokenizer's tokens of `text`."""
    tokens = LiteralTokenizer(tiny_tokenizer()).encode(text)
    rng = np.random.default_rng([seed, len(text)])
    raw = {layer: rng.random(len(tokens)) + 0.01 for layer in LAYERS}
    weights = {layer: (w / w.mean()).astype(np.float32) for layer, w in raw.items()}
    return SideWeights(starts=tokens.starts, ends=tokens.ends, weights=weights)


class Together:
    """One of several processes of a run, each a thread here."""

    def __init__(self, rank: int, parts: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.count = rank, len(parts)
        self._parts, self._barrier = parts, barrier

    def collect(self, items: Sequence[Item]) -> list[Item]:
        """The items of all, once all are here."""
        self._parts[self.rank] = list(items)
        self._barrier.wait(60)
        everything = [item for part in self._parts for item in part]
        self._barrier.wait(60)
        return everything


def in_ranks(count: int, work: Callable[[Any], Result]) -> list[Result]:
    """What `work` gives in each of so many processes that run together; what one raises is raised."""
    if count == 1:
        return [work(Alone())]
    parts: list[Any] = [None] * count
    barrier = threading.Barrier(count)
    with ThreadPoolExecutor(count) as threads:
        running = [threads.submit(work, Together(rank, parts, barrier)) for rank in range(count)]
        return [future.result() for future in running]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Where everything lies, and how to train in it."""

    folder: Path
    model: Path

    @property
    def pairs(self) -> Path:
        """The data set."""
        return self.folder / "pairs.jsonl"

    @property
    def weights(self) -> Path:
        """The cache."""
        return self.folder / "weights_cache"

    def config(self, **changes: Any) -> TrainConfig:
        """A run of some seconds."""
        values: dict[str, Any] = {
            "weights": str(self.weights),
            "out": str(self.folder / "trained"),
            "max_length": 256,
            "batch_size": 8,
            "learning_rate": 3e-3,
            "beta": 0.1,
            "eval_split": "8",
            "eval_every": 4,
            "save_every": 2,
            "device": "cpu",
        }
        return TrainConfig(**(values | changes))

    def write_pairs(self, count: int, name: str = "pairs.jsonl") -> Path:
        """A data set of so many different pairs."""
        rows = [
            {
                "prompt": f"What is {i} plus {i}?",
                "chosen": f"It is {2 * i}, of course.",
                "rejected": f"Maybe {i}1 or so.",
            }
            for i in range(count)
        ]
        path = self.folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return path

    def annotate(
        self,
        dataset: Path,
        take: Callable[[Pair], bool] = lambda _pair: True,
        include_text: bool = False,
        stored: Callable[[str], SideWeights] = stored_weights,
        shard_rows: int = 512,
        judge_template: str = "{question} {answer_a} {answer_b}",
        **source: Any,
    ) -> None:
        """Write random weights for the pairs of a data set."""
        recipe = Recipe(
            judge_model=str(self.model),
            judge_revision=None,
            dtype="float32",
            judge_template=judge_template,
            chat_template_hash=None,
            chat_template_kwargs={},
            max_length=256,
            layers=LAYERS,
        )
        entry = {"name": str(dataset), "kind": "file", "location": str(dataset), **source}
        with CacheWriter.open(
            self.weights, recipe, dataset=entry, include_text=include_text, shard_rows=shard_rows
        ) as writer:
            for pair in load(resolve(str(dataset))):
                if isinstance(pair, Pair) and take(pair):
                    texts: dict[str, Any] = {
                        "prompt": tuple((m.role, m.content) for m in pair.prompt),
                        "chosen_text": pair.chosen,
                        "rejected_text": pair.rejected,
                    }
                    writer.add(
                        WeightRow(
                            example_hash=pair.example_hash,
                            chosen=stored(pair.chosen),
                            rejected=stored(pair.rejected),
                            **(texts if include_text else {}),
                        )
                    )


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tiny models are faster without threads that wait for each other."""
    import torch

    threads = torch.get_num_threads()
    if request.node.get_closest_marker("model") is None:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny Llama."""
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def empty_world(tmp_path: Path, tiny_folder: Path) -> World:
    """The folder and the model, no pairs yet."""
    return World(folder=tmp_path, model=tiny_folder)


@pytest.fixture
def world(empty_world: World) -> World:
    """Sixty pairs, all with weights."""
    empty_world.annotate(empty_world.write_pairs(60))
    return empty_world
