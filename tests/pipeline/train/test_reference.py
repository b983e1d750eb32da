"""Reference log-probs: computed once, kept exactly, used again, refused where they do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fixtures.tiny_models import tiny_tokenizer
from tests.pipeline.train.conftest import World
from twdpo.errors import CacheCorrupt, Interrupted
from twdpo.pipeline.models import LoadedModel, load_model
from twdpo.pipeline.train import TrainProgress
from twdpo.pipeline.train.data import Example, Side
from twdpo.pipeline.train.layouts import collate
from twdpo.pipeline.train.logps import TokenLogps
from twdpo.pipeline.train.processes import Alone
from twdpo.pipeline.train.ranks import Ranks
from twdpo.pipeline.train.reference import open_store, read_reference, reference_logps
from twdpo.pipeline.train.render import Renderer
from twdpo.pipeline.train.resident import ResidentFeed
from twdpo.weights_cache import WeightsCache


class Counting(TrainProgress):
    """Counts what is computed, and can press Ctrl-C."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.computed = 0
        self._stop_after = stop_after

    def advance(self, task: str, items: int = 1) -> None:
        """Count."""
        self.computed += items
        if self._stop_after is not None and self.computed >= self._stop_after:
            raise KeyboardInterrupt


@pytest.fixture
def loaded(world: World) -> LoadedModel:
    return load_model(str(world.model), dtype="float32", device="cpu")


@pytest.fixture
def examples(world: World) -> list[Example]:
    with WeightsCache.open(world.weights, layers=(1,)) as cache:
        renderer = Renderer(tiny_tokenizer(), max_length=256)
        config = world.config(eval_split="none", limit=20)
        return ResidentFeed(config, cache, renderer, Alone(), TrainProgress()).train


def compute(
    folder: Path, loaded: LoadedModel, examples: list[Example], progress: Counting, max_length: int = 256
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """One run's reference pass, and what the next one reads."""
    renderer = Renderer(loaded.tokenizer, max_length=max_length)
    model = TokenLogps(loaded.model)
    store = open_store(folder, loaded, renderer, "float32")
    lacking = [example for example in examples if example.example_hash not in store]
    ranks = Ranks.join("cpu")
    reference_logps([lacking], model, store, progress, pairs=None, tokens=500, ranks=ranks, spare=examples[0])
    with open_store(folder, loaded, renderer, "float32") as store:
        return dict(read_reference(examples, store))


def test_they_are_the_models_and_computed_once(world: World, loaded: LoadedModel, examples: list[Example]) -> None:
    folder, first, second = world.folder / "reference_cache", Counting(), Counting()
    found = compute(folder, loaded, examples, first)
    assert compute(folder, loaded, examples, second).keys() == found.keys()
    assert (first.computed, second.computed) == (20, 0)
    model = TokenLogps(loaded.model)
    for example in examples:
        batch = collate([example], None, layout=model.layout)
        with torch.no_grad():
            alone = batch.spread(model(**batch.inputs)).numpy()
        for row, (side, logps) in enumerate(
            zip((example.chosen, example.rejected), found[example.example_hash], strict=True)
        ):
            np.testing.assert_allclose(logps, alone[row, : len(side.weights)], atol=1e-5)


def test_another_length_or_model_has_its_own_folder(world: World, loaded: LoadedModel, examples: list[Example]) -> None:
    folder, counting = world.folder / "reference_cache", Counting()
    compute(folder, loaded, examples, counting)
    compute(folder, loaded, examples, counting, max_length=128)
    assert counting.computed == 40
    assert len(list(folder.iterdir())) == 2


def test_ctrl_c_keeps_what_is_there(world: World, loaded: LoadedModel, examples: list[Example]) -> None:
    folder = world.folder / "reference_cache"
    with pytest.raises(Interrupted, match="run the same command again"):
        compute(folder, loaded, examples, Counting(stop_after=5))
    rest = Counting()
    compute(folder, loaded, examples, rest)
    assert 0 < rest.computed <= 15


def test_log_probs_of_other_tokens_are_refused(world: World, loaded: LoadedModel, examples: list[Example]) -> None:
    folder = world.folder / "reference_cache"
    compute(folder, loaded, examples, Counting())
    first = examples[0]
    shorter = Side(
        ids=first.chosen.ids[:-1], prompt_length=first.chosen.prompt_length, weights=first.chosen.weights[:-1]
    )
    examples[0] = Example(example_hash=first.example_hash, row=0, chosen=shorter, rejected=first.rejected)
    with pytest.raises(CacheCorrupt, match="log-probs of other tokens"):
        compute(folder, loaded, examples, Counting())
