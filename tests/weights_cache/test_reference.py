"""Reference log-probs: exact, resumable, and never another model's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.weights_cache.samples import RECIPE, fill
from twdpo.errors import CacheCorrupt, CacheError, MissingRows, RecipeMismatch
from twdpo.weights_cache import ReferenceStore, WeightsCache
from twdpo.weights_cache.shards import list_shards

WHAT = {"model": "a/policy", "max_length": 2048}
logps = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=12)
keys = st.binary(min_size=16, max_size=16).map(bytes.hex)


@given(st.dictionaries(keys, st.tuples(logps, logps), max_size=10))
@settings(max_examples=30, deadline=None)
def test_every_bit_comes_back(
    tmp_path_factory: pytest.TempPathFactory, pairs: dict[str, tuple[list[float], list[float]]]
) -> None:
    folder = tmp_path_factory.mktemp("reference")
    with ReferenceStore.open(folder, "f" * 16, WHAT, shard_rows=3) as store:
        for key, (chosen, rejected) in pairs.items():
            assert store.add(key, chosen, rejected)
            assert not store.add(key, [], [])
            assert key in store
        found = {key: store.get(key) for key in pairs}
    with ReferenceStore.open(folder, "f" * 16, WHAT) as again:
        assert len(again) == len(pairs)
        for key, (chosen, rejected) in pairs.items():
            for sides in (found[key], again.get(key)):
                assert [side.tobytes() for side in sides] == [
                    np.array(side, np.float32).tobytes() for side in (chosen, rejected)
                ]


def test_what_an_error_interrupts_is_kept(tmp_path: Path) -> None:
    def run() -> None:
        with ReferenceStore.open(tmp_path, "f", WHAT) as store:
            store.add("0" * 32, [-1.0], [-2.0, -3.0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    with ReferenceStore.open(tmp_path, "f", WHAT) as store:
        assert store.get("0" * 32)[1].tolist() == [-2.0, -3.0]


def test_another_fingerprint_is_refused_by_what_differs(tmp_path: Path) -> None:
    with ReferenceStore.open(tmp_path, "f", WHAT):
        pass
    with pytest.raises(RecipeMismatch) as caught:
        ReferenceStore.open(tmp_path, "g", {**WHAT, "max_length": 1024, "dtype": "bfloat16"})
    assert str(caught.value) == (
        f"{tmp_path} holds reference log-probs of something else (max_length: 2048 in the store, 1024 asked for; "
        "dtype: None in the store, bfloat16 asked for); choose another folder"
    )


def test_the_two_kinds_of_folder_are_told_apart(tmp_path: Path) -> None:
    fill(tmp_path / "weights", range(2))
    with ReferenceStore.open(tmp_path / "reference", RECIPE.fingerprint, WHAT) as store:
        store.add("0" * 32, [-1.0], [-2.0])
    with pytest.raises(CacheError, match="is no store of reference log-probs"):
        ReferenceStore.open(tmp_path / "weights", RECIPE.fingerprint, WHAT)
    with pytest.raises(CacheError, match="is no weights cache"):
        WeightsCache.open(tmp_path / "reference")
    (shard,) = list_shards(tmp_path / "reference" / "data")
    shard.rename(tmp_path / "weights" / "data" / shard.name)
    with pytest.raises(CacheCorrupt, match="it says .reference. of"):
        WeightsCache.open(tmp_path / "weights")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(CacheError, match="is not empty and holds no reference log-probs"):
        ReferenceStore.open(tmp_path, "f", WHAT)


def test_a_missing_pair_and_a_bad_one(tmp_path: Path) -> None:
    with ReferenceStore.open(tmp_path, "f", WHAT) as store:
        with pytest.raises(MissingRows, match="no reference log-probs of pair 000"):
            store.get("0" * 32)
        bad: list[tuple[str, npt.ArrayLike]] = [
            ("0" * 32, [float("nan")]),
            ("0" * 32, [[1.0]]),
            ("0" * 31, [1.0]),
        ]
        for key, chosen in bad:
            with pytest.raises(ValueError, match="must be one-dimensional and finite"):
                store.add(key, chosen, [0.0])


def test_damage_is_found(tmp_path: Path) -> None:
    with ReferenceStore.open(tmp_path, "f", WHAT) as store:
        store.add("0" * 32, np.linspace(-9, 0, 50), [-1.0])
    (shard,) = list_shards(tmp_path / "data")
    whole = shard.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(whole), 40):
        damaged = bytearray(whole)
        damaged[position] ^= 16
        shard.write_bytes(damaged)
        with pytest.raises(CacheError), ReferenceStore.open(tmp_path, "f", WHAT) as store:
            store.get("0" * 32)
