"""Imports from end to end: every row accounted for, resumed, refused before anything is written, and trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fixtures.tiny_models import save_tiny, tiny_tokenizer
from tests.pipeline.importing.published import (
    LAYERS,
    assert_same,
    judged,
    letters_tokenizer,
    pairs,
    save_tokenizer,
    stored,
    write,
)
from twdpo.errors import DataError, HubUnavailable, Interrupted, ModelError, RecipeMismatch, UsageError
from twdpo.pipeline.importing import ImportConfig, ImportProgress, ImportResult, import_weights
from twdpo.pipeline.importing import run as run_module
from twdpo.pipeline.importing.attentionpo import JUDGES
from twdpo.preferences import Message, Pair, PairStream, Source, load, resolve
from twdpo.weights_cache import Manifest, read_rejects, verify

Row = dict[str, Any]


def run(dataset: Path, out: Path, **options: Any) -> ImportResult:
    reports = options.pop("on_progress", None)
    tokenizer = options.pop("with_tokenizer", tiny_tokenizer())
    config = ImportConfig(dataset=str(dataset), out=str(out), **options)
    return import_weights(config, on_progress=reports, tokenizer=tokenizer)


def counts(result: ImportResult) -> tuple[int, int, int, int, int]:
    found = result.counts
    return (found.seen, found.written, found.cached, found.duplicates, found.rejected)


def demo_rows(count: int) -> tuple[list[Row], list[Any]]:
    """Embedded pairs as the fake engine judges them, and the rows that stage one would store."""
    demo = [item for item in load(resolve("demo"), limit=count) if isinstance(item, Pair)]
    single = [pair for pair in demo if len(pair.prompt) == 1]
    return judged(tiny_tokenizer(), single)


def tis_row(i: int, weight: float = 1.0) -> Row:
    chosen, rejected = f"It is {i}.", f"No, {i}!"
    count = [len(tiny_tokenizer()(text)["input_ids"]) for text in (chosen, rejected)]
    weights = {"chosen_weight": [weight, *[1.0] * (count[0] - 1)], "rejected_weight": [weight, *[2.0] * (count[1] - 1)]}
    return {"prompt": f"What is {i}?", "chosen": chosen, "rejected": rejected, **weights}


@pytest.mark.parametrize("name", ["data.jsonl", "data.parquet"])
@pytest.mark.parametrize("include_text", [False, True])
def test_judged_pairs_come_back(name: str, include_text: bool, tmp_path: Path) -> None:
    rows, own = judged(tiny_tokenizer())
    more, more_own = demo_rows(40)
    result = run(write(tmp_path / name, rows + more), tmp_path / "out", include_text=include_text)
    assert counts(result) == (len(rows + more), len(rows + more), 0, 0, 0)
    assert (result.format, result.layers, result.reasons) == ("attentionpo", LAYERS, {})
    found = stored(tmp_path / "out")
    # Those of this project and those of the data set have the same hashes: a prompt is no part of its conversation.
    assert set(found) == {row.example_hash for row in own + more_own}
    for row in own + more_own:
        assert_same(found[row.example_hash], row)
    assert {row.chosen_text for row in found.values()} >= (
        {pair.chosen for pair in pairs()} if include_text else {None}
    )
    report = verify(tmp_path / "out")
    assert report.rows == len(found)
    assert not report.problems


def test_the_manifest_is_one_that_stage_two_understands(tmp_path: Path) -> None:
    rows, _ = judged(tiny_tokenizer())
    path = write(tmp_path / "data.jsonl", rows)
    run(path, tmp_path / "out", judge_model="a/judge", limit=5)
    manifest = Manifest.load(tmp_path / "out")
    source = {"name": str(path), "kind": "file", "location": str(path), "split": "train", "limit": 5}
    assert manifest.sources == (source,)
    assert manifest.defaults == {"attn_source": "3", "policy_model": "a/judge"}
    assert manifest.counts["pairs"] == 5
    assert "a/judge" in (tmp_path / "out/README.md").read_text()
    assert "judge_model: a/judge" in (tmp_path / "out/import.yaml").read_text()


def test_every_row_is_accounted_for_and_a_second_run_adds_nothing(tmp_path: Path) -> None:
    rows, _ = judged(tiny_tokenizer())
    wrong_ids, wrong_sum = dict(rows[1]), dict(rows[4])
    wrong_ids["chosen_tokens"] = [*rows[1]["chosen_tokens"][1:], 5]
    wrong_sum["rejected_weights_3"] = [0.9 * weight for weight in rows[4]["rejected_weights_3"]]
    no_pair = rows[0] | {"rejected": rows[0]["chosen"]}
    path = write(
        tmp_path / "data.jsonl", [rows[0], wrong_ids, rows[2], rows[3], wrong_sum, rows[2], no_pair, *rows[5:]]
    )
    reports: list[ImportProgress] = []
    result = run(path, tmp_path / "out", on_progress=reports.append)
    assert counts(result) == (10, 6, 0, 1, 3)
    assert reports[-1] == result.counts
    assert (result.counts.total, result.counts.truncated) == (10, 0)
    rejects = {reject.row: reject for reject in read_rejects(tmp_path / "out")}
    assert sorted(rejects) == [1, 4, 6]
    assert "spell another text" in rejects[1].reason
    assert rejects[4].reason == "`rejected_weights_3` does not sum to 1"
    assert rejects[6].reason == "both answers are the same"
    assert rejects[4].example_hash == pairs()[4].example_hash
    assert result.reasons == {reject.reason: 1 for reject in rejects.values()}
    again = run(path, tmp_path / "out")
    assert counts(again) == (10, 0, 6, 1, 3)
    assert len(read_rejects(tmp_path / "out")) == 3
    # Mended rows go in later.
    mended = run(write(tmp_path / "data.jsonl", rows), tmp_path / "out")
    assert counts(mended) == (8, 2, 6, 0, 0)


def test_interrupted_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, own = demo_rows(30)
    path = write(tmp_path / "data.jsonl", rows)

    def stop(progress: ImportProgress) -> None:
        if progress.seen == 12:
            raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "_REPORT", 4)
    with pytest.raises(Interrupted, match="stopped; 12 pairs of this run are kept in .*: run the same command again"):
        run(path, tmp_path / "out", on_progress=stop)
    assert len(stored(tmp_path / "out")) == 12
    assert counts(run(path, tmp_path / "out"))[:3] == (len(rows), len(rows) - 12, 12)
    found = stored(tmp_path / "out")
    for row in own:
        assert_same(found[row.example_hash], row)


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", judged(tiny_tokenizer())[0])
    run(path, tmp_path / "out")
    with pytest.raises(RecipeMismatch, match="layers: 0,3 in the cache, 3 asked for"):
        run(path, tmp_path / "out", layers="3")
    tis = write(tmp_path / "tis.jsonl", [tis_row(i) for i in range(4)])
    with pytest.raises(RecipeMismatch, match="source: import:attentionpo in the cache, import:tis asked for"):
        run(tis, tmp_path / "out")
    run(tis, tmp_path / "tis")
    with pytest.raises(RecipeMismatch, match="source: import:tis in the cache, import:tis:log_ratios asked for"):
        run(tis, tmp_path / "tis", log_ratios=True)


@pytest.mark.parametrize("name", ["data.jsonl", "data.parquet"])
def test_tis_files(name: str, tmp_path: Path) -> None:
    rows = [tis_row(i) for i in range(6)] + [tis_row(6, -1.0)]
    result = run(write(tmp_path / name, rows), tmp_path / "out")
    assert counts(result) == (7, 6, 0, 0, 1)
    assert (result.format, result.layers) == ("tis", (0,))
    (reason,) = result.reasons
    assert "--log-ratios" in reason
    hashes = [item.example_hash for item in load(resolve(str(tmp_path / name)))]
    found = stored(tmp_path / "out")
    assert set(found) == set(hashes[:6])
    side = found[hashes[0] or ""].rejected
    expected = np.asarray(rows[0]["rejected_weight"]) / np.mean(rows[0]["rejected_weight"])
    np.testing.assert_allclose(side.weights[0], expected, rtol=2**-11)
    assert not verify(tmp_path / "out").problems
    raw = run(tmp_path / name, tmp_path / "raw", log_ratios=True)
    assert counts(raw) == (7, 7, 0, 0, 0)
    assert Manifest.load(tmp_path / "raw").defaults == {"attn_source": "0", "sink_fix": False}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            lambda: [tis_row(i, -0.5) for i in range(70)],
            {},
            "64 of the first 64 pairs .* raw log-ratios. see --log-ratios; nothing",
        ),
        (lambda: [tis_row(i, -0.5 if i % 3 else 1.0) for i in range(9)], {}, "6 of the first 9 pairs"),
        (lambda: judged(tiny_tokenizer())[0], {"with_tokenizer": letters_tokenizer(None)}, "see --tokenizer"),
    ],
    ids=["negative", "mostly negative", "another tokenizer"],
)
def test_what_mostly_does_not_fit_is_refused_before_anything_is_written(
    rows: Callable[[], list[Row]], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "data.jsonl", rows())
    with pytest.raises(DataError, match=message) as caught:
        run(path, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_rows_that_make_no_pair_do_not_count_against_the_weights(tmp_path: Path) -> None:
    same = {"prompt": "q", "chosen": "a", "rejected": "a", "chosen_weight": [1.0], "rejected_weight": [1.0]}
    result = run(write(tmp_path / "data.jsonl", [same] * 9 + [tis_row(1)]), tmp_path / "out")
    assert counts(result) == (10, 1, 0, 0, 9)


def test_formats_that_are_not_told_apart(tmp_path: Path) -> None:
    both = [tis_row(i) | {"chosen_tokens": [1], "rejected_tokens": [1], "chosen_weights_0": [1.0]} for i in range(3)]
    with pytest.raises(UsageError, match="columns of both layouts; choose one with --format"):
        run(write(tmp_path / "both.jsonl", both), tmp_path / "out")
    assert run(tmp_path / "both.jsonl", tmp_path / "out", format="tis").counts.written == 3
    plain = write(tmp_path / "plain.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    with pytest.raises(DataError, match=r"has the columns prompt, chosen, rejected; expected `chosen_tokens` and"):
        run(plain, tmp_path / "no")
    with pytest.raises(DataError, match="no column `chosen_weight`; is --format tis right"):
        run(plain, tmp_path / "no", format="tis")
    with pytest.raises(UsageError, match="--layers is for AttentionPO's"):
        run(tmp_path / "both.jsonl", tmp_path / "no", format="tis", layers="3")
    with pytest.raises(UsageError, match="--log-ratios is for TIS-DPO's"):
        run(tmp_path / "both.jsonl", tmp_path / "no", format="attentionpo", log_ratios=True)
    with pytest.raises(UsageError, match="--format json is not known; choose one of auto, attentionpo, tis"):
        ImportConfig(dataset="x", format="json")
    with pytest.raises(UsageError, match="--limit 0 is too small"):
        ImportConfig(dataset="x", limit=0)
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([tis_row(0)]).slice(0, 0), tmp_path / "none.parquet")
    with pytest.raises(DataError, match="holds no rows"):
        run(tmp_path / "none.parquet", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_the_tokenizer_is_named_known_or_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = judged(tiny_tokenizer())
    path = write(tmp_path / "data.jsonl", rows)
    with pytest.raises(UsageError, match="does not say whose tokens its weights belong to; pass --tokenizer"):
        run(path, tmp_path / "out", with_tokenizer=None)
    with pytest.raises(ModelError, match="does not exist"):
        run(path, tmp_path / "out", with_tokenizer=None, tokenizer="./nowhere")
    with pytest.raises(HubUnavailable, match="tokenizer 'a/judge' from the hub .* a local folder with --tokenizer"):
        run(path, tmp_path / "out", with_tokenizer=None, judge_model="a/judge")
    folder = save_tokenizer(tmp_path / "tokenizer")
    assert run(path, tmp_path / "out", with_tokenizer=None, tokenizer=str(folder)).counts.written == len(rows)
    assert Manifest.load(tmp_path / "out").recipe.judge_model == ""

    # The published data sets' own judges, whose tokenizers are asked for by name.
    published, judge = next(iter(JUDGES.items()))
    asked: list[str | None] = []

    def fake_load(source: Source, *, limit: int | None = None) -> PairStream:
        opened = load(resolve(str(path)), limit=limit)
        opened.source = source
        return opened

    def fake_tokenizer(config: ImportConfig, name: str | None) -> Any:
        asked.append(name)
        return tiny_tokenizer()

    monkeypatch.setattr(run_module, "load", fake_load)
    monkeypatch.setattr(run_module, "_load_tokenizer", fake_tokenizer)
    import_weights(ImportConfig(dataset=published, out=str(tmp_path / "hub")))
    manifest = Manifest.load(tmp_path / "hub")
    assert asked == [judge]
    assert manifest.recipe.judge_model == manifest.defaults["policy_model"] == judge
    assert manifest.sources[0]["location"] == published


def test_stage_two_trains_on_an_imported_cache(tmp_path: Path) -> None:
    """The pairs are found by their hashes, and weights pass through to the bit where the tokenizer is the judge's."""
    from tests.pipeline.train.conftest import Alone
    from twdpo.pipeline.train import TrainConfig, TrainProgress, train
    from twdpo.pipeline.train.render import Renderer
    from twdpo.pipeline.train.resident import ResidentFeed
    from twdpo.weights_cache import WeightsCache

    rows, _ = demo_rows(20)
    wrong = dict(rows[0], chosen_tokens=rows[0]["chosen_tokens"][::-1])
    run(write(tmp_path / "data.jsonl", [wrong, *rows[1:]]), tmp_path / "out")
    model = save_tiny(tmp_path / "model", "llama", context=1024)
    config = TrainConfig(
        weights=str(tmp_path / "out"),
        out=str(tmp_path / "trained"),
        model=str(model),
        device="cpu",
        max_length=512,
        max_steps=1,
        batch_size=4,
        eval_split="none",
        sink_fix=False,
    )
    with WeightsCache.open(tmp_path / "out", layers=(LAYERS[-1],)) as cache:
        renderer = Renderer(tiny_tokenizer(), max_length=512)
        examples = ResidentFeed(config, cache, renderer, Alone(), TrainProgress())
        assert len(examples.train) == len(rows) - 1
        assert sum(examples.counts.skipped.values()) == 1
        for example in examples.train:
            stored_row = cache.fetch([example.example_hash])[0]
            for name in ("chosen", "rejected"):
                side, kept = getattr(example, name), stored_row.side(name)
                trained = side.weights[side.weights > 0]
                np.testing.assert_array_equal(trained, kept.weights[LAYERS[-1]][: len(trained)])
    train(config)
    assert (tmp_path / "trained").is_dir()


def test_several_turns_and_a_system_turn(tmp_path: Path) -> None:
    turns = (Message(role="system", content="Be terse."), Message(role="user", content="Hi"))
    pair = Pair(prompt=(*turns, Message(role="assistant", content="Hi."), turns[1]), chosen="7", rejected="nine")
    rows, own = judged(tiny_tokenizer(), [pair])
    run(write(tmp_path / "data.jsonl", rows), tmp_path / "out", include_text=True)
    (found,) = stored(tmp_path / "out").values()
    assert found.example_hash == pair.example_hash
    assert found.prompt == tuple((message.role, message.content) for message in pair.prompt)
    assert_same(found, own[0])


def test_the_configuration_file_is_one_that_can_be_read_back(tmp_path: Path) -> None:
    from twdpo.config import resolve as resolve_config
    from twdpo.pipeline.importing.config import HELP

    path = write(tmp_path / "data.jsonl", [tis_row(1)])
    run(path, tmp_path / "out", format="tis")
    config = resolve_config(ImportConfig, str(tmp_path / "out/import.yaml"), {})
    assert config == ImportConfig(dataset=str(path), out=str(tmp_path / "out"), format="tis")
    assert set(HELP) == set(ImportConfig.__dataclass_fields__)
