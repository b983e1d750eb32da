"""The documentation says what the program does: options, defaults, columns, metrics, examples.

What MkDocs checks itself when it builds strictly (`make docs`) is left to it; these tests need no MkDocs.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import fields, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
import yaml

import twdpo
from tests.fixtures.tiny_models import save_tiny
from tests.weights_cache.samples import LAYERS, RECIPE, make_row
from twdpo import recipes
from twdpo.cli import app, main
from twdpo.config import resolve
from twdpo.evaluate.compare import load_config
from twdpo.pipeline.annotate import AnnotateConfig
from twdpo.pipeline.annotate.sources import registry
from twdpo.pipeline.train import TrainConfig
from twdpo.preferences import NAMED, Message, Pair, Reject, example_hash, parse_row
from twdpo.weights_cache import (
    SCHEMA_VERSION,
    CacheWriter,
    Manifest,
    Recipe,
    SideWeights,
    WeightRow,
    WeightsCache,
    round_mantissa,
    verify,
)
from twdpo.weights_cache.schema import FLOATS, KEY, shard_metadata, weights_schema

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *DOCS.glob("experiments/*.md")])
README = ROOT / "README.md"

_FENCE = re.compile(r"^```(?P<kind>\w+)(?: title=\"(?P<title>[^\"]*)\")?\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:|mailto:)(?P<target>[^)\s]+)\)")
#: An option as prose and examples spell it; in a table's ruler or a dash there is no letter.
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")
_ROW = re.compile(r"^\| `(?P<flag>--[\w-]+)` \| (?P<default>\S+) \|", re.MULTILINE)
#: Options of programs other than this one: pip, Slurm, the benchmarks' tools, and accelerate, which has underscores.
_FOREIGN = {
    "--annotators_config",
    "--category",
    "--judge-names",
    "--model-list",
    "--model_outputs",
    "--parallel",
    "--reference_outputs",
    "--setting-file",
    "--array",
    "--gpus",
    "--requeue",
    "--no-deps",
    "--config_file",
    "--fsdp_version",
    "--index-url",
    "--machine_rank",
    "--main_process_ip",
    "--main_process_port",
    "--multi_gpu",
    "--num_machines",
    "--num_processes",
    "--use_fsdp",
}


def _name(page: Path) -> str:
    """As the menu has it: below docs/."""
    return page.relative_to(DOCS if DOCS in page.parents else ROOT).as_posix()


def _hooks() -> Any:
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


hooks = _hooks()


def _tree(command: Any, words: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every command of the program by its words; an independent walk."""
    inner = getattr(command, "commands", None)
    if not inner:
        return {words: command}
    return {key: leaf for name, child in inner.items() for key, leaf in _tree(child, (*words, name)).items()}


COMMANDS = _tree(typer.main.get_command(app))


def _flags(command: Any) -> set[str]:
    return {flag for p in command.params for flag in (*p.opts, *p.secondary_opts) if flag.startswith("--")}


def _benchmark_flags() -> set[str]:
    """Options of the scripts in benchmarks/."""
    scripts = (ROOT / "benchmarks").glob("*.py")
    return {flag for script in scripts for flag in re.findall(r'add_argument\("(--[\w-]+)"', script.read_text("utf-8"))}


def _fences(page: Path, kind: str, title: str | None = None) -> list[str]:
    found = _FENCE.finditer(page.read_text("utf-8"))
    return [m["body"] for m in found if m["kind"] == kind and m["title"] == title]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_each_command_has_a_page_with_all_its_options(words: tuple[str, ...]) -> None:
    command = COMMANDS[words]
    page = hooks.command_pages()[f"commands/{'-'.join(words)}.md"]
    assert page.startswith(f"# twdpo {' '.join(words)}\n")
    assert set(_FLAG.findall(page)) >= _flags(command)
    flat = " ".join(page.split())
    assert " ".join(command.help.split()) in flat
    for parameter in command.params:
        text = re.sub(r"\s*\[default: [^\]]*\]", "", parameter.help or "")
        assert text
        assert " ".join(text.split()) in flat.replace("\\|", "|").replace("&lt;", "<")


def test_the_page_of_commands_lists_and_links_every_one() -> None:
    pages = hooks.command_pages()
    linked = {match["target"] for match in _LINK.finditer(pages["commands/index.md"])}
    assert linked == {f"{'-'.join(words)}.md" for words in COMMANDS}
    assert set(pages) == {f"commands/{name}" for name in linked} | {"commands/index.md"}


def test_a_default_stands_in_its_own_column() -> None:
    page = hooks.command_pages()["commands/train.md"]
    row = next(line for line in page.split("\n") if line.startswith("| `--learning-rate`"))
    assert row.endswith("| `1e-06` |")
    assert "[default" not in page


def test_the_menu_gets_every_command() -> None:
    class Config:
        nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]

    menu = {name: target for entry in hooks.on_config(Config()).nav for name, target in entry.items()}
    titles = [next(iter(entry)) for entry in menu["Commands"][1:]]
    assert titles == [f"twdpo {' '.join(words)}" for words in COMMANDS]


def test_every_page_is_in_the_menu() -> None:
    menu = str(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"])
    assert [_name(page) for page in PAGES if f"'{_name(page)}'" not in menu] == []


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as Python-Markdown makes them of plain words."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    made = hooks.command_pages()
    for match in _LINK.finditer(page.read_text("utf-8")):
        path, _, anchor = match["target"].partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file() or os.path.relpath(target, DOCS) in made, match["target"]
        if anchor:
            assert anchor in _anchors(target), match["target"]


@pytest.mark.parametrize("page", [*PAGES, README], ids=_name)
def test_every_option_that_is_mentioned_exists(page: Path) -> None:
    if not page.is_file():
        pytest.skip(f"{page.name} is not there")
    known = set[str]().union(*map(_flags, COMMANDS.values())) | {"--help", "--version"} | _benchmark_flags()
    assert set(_FLAG.findall(page.read_text("utf-8"))) - known - _FOREIGN == set()


@pytest.mark.parametrize("page", [*PAGES, README], ids=_name)
def test_commands_that_are_shown_can_be_typed(page: Path) -> None:
    if not page.is_file():
        pytest.skip(f"{page.name} is not there")
    for block in _fences(page, "console"):
        for line in re.findall(r"^\$ twdpo (.+)$", block, re.MULTILINE):
            words = line.split()
            command = next((c for key, c in COMMANDS.items() if tuple(words[: len(key)]) == key), None)
            assert command is not None, line
            assert {word for word in words if word.startswith("--")} <= _flags(command), line


@pytest.mark.parametrize(
    ("page", "title", "kind"),
    [
        (DOCS / "tutorial.md", "annotate.yaml", AnnotateConfig),
        (DOCS / "reproduce.md", "annotate.yaml", AnnotateConfig),
        (DOCS / "training.md", "train.yaml", TrainConfig),
    ],
    ids=["annotate", "annotate as published", "train"],
)
def test_configuration_files_that_are_shown_are_accepted(page: Path, title: str, kind: type, tmp_path: Path) -> None:
    blocks = _fences(page, "yaml", title)
    assert blocks
    for number, block in enumerate(blocks):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block, "utf-8")
        resolved: object = resolve(kind, str(file), {})
        assert all(hasattr(resolved, key) for key in yaml.safe_load(block))


def test_comparisons_that_are_shown_are_accepted(tmp_path: Path) -> None:
    blocks = [block for page in PAGES for block in _fences(page, "yaml", "compare.yaml")]
    assert blocks
    for block in blocks:
        (tmp_path / "compare.yaml").write_text(block, "utf-8")
        assert load_config(str(tmp_path / "compare.yaml")).expanded


def test_every_yaml_block_is_one_that_is_checked() -> None:
    titles = {m["title"] for page in PAGES for m in _FENCE.finditer(page.read_text("utf-8")) if m["kind"] == "yaml"}
    assert titles == {"annotate.yaml", "train.yaml", "compare.yaml", *(f"{name}.yaml" for name in recipes.names())}


@pytest.mark.parametrize("name", recipes.names())
def test_recipes_are_shown_as_they_are(name: str) -> None:
    [block] = _fences(DOCS / "recipes.md", "yaml", f"{name}.yaml")
    assert block == Path(recipes.find(name)).read_text("utf-8")
    assert f"| [`{name}`](#{name}) |" in (DOCS / "recipes.md").read_text("utf-8")


def test_defaults_in_the_training_guide() -> None:
    stated = dict(_ROW.findall((DOCS / "training.md").read_text("utf-8")))
    names = {f"--{field.name.replace('_', '-')}": field.default for field in fields(TrainConfig)}
    shown = {True: "on", False: "off"}
    assert len(stated) >= 8, "the table of options has another form than this test reads"
    for flag, default in names.items():
        if flag in stated:
            assert stated[flag] == (shown[default] if isinstance(default, bool) else str(default)), flag


@pytest.mark.parametrize("page", [DOCS / "data.md", DOCS / "tutorial.md"], ids=lambda page: page.name)
def test_example_rows_are_read_as_said(page: Path) -> None:
    good = [json.loads(line) for block in _fences(page, "json") for line in block.splitlines()]
    bad = [json.loads(line) for block in _fences(page, "json", "left out") for line in block.splitlines()]
    assert good
    assert bad
    assert [row for row in good if not isinstance(parse_row(row, 0), Pair)] == []
    assert [row for row in bad if not isinstance(parse_row(row, 0), Reject)] == []


def test_the_rows_of_one_question_are_one_question_in_every_format() -> None:
    """The formats differ in form, not in what they say: the answers are 7 and 9 in each."""
    rows = [json.loads(line) for block in _fences(DOCS / "data.md", "json") for line in block.splitlines()]
    pairs = [pair for pair in (parse_row(row, 0) for row in rows) if isinstance(pair, Pair)]
    assert {(pair.chosen.strip(), pair.rejected.strip()) for pair in pairs} == {("7", "9")}


def test_the_reject_of_the_tutorial_is_that_of_its_row() -> None:
    page = (DOCS / "tutorial.md").read_text("utf-8")
    shown = json.loads(next(line for line in page.splitlines() if line.startswith('{"row"')))
    rows = [*_fences(DOCS / "tutorial.md", "json")[0].splitlines(), *_fences(DOCS / "tutorial.md", "json", "left out")]
    reject = parse_row(json.loads(rows[shown["row"]]), shown["row"])
    assert isinstance(reject, Reject)
    assert (reject.example_hash, reject.reason) == (shown["example_hash"], shown["reason"])


def test_named_sources_are_listed_with_their_place_and_split() -> None:
    page = (DOCS / "data.md").read_text("utf-8")
    listed = set(re.findall(r"^\| `([\w-]+)` \| ", page.partition("## Files and folders")[0], re.MULTILINE))
    assert listed == set(NAMED)
    for source in NAMED.values():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{source.name}` |"))
        assert f"`{source.split}`" in row
        assert (source.location if source.kind == "hub" else "108 pairs") in row
        assert (source.licence or "not stated") in row


def test_the_recipe_for_a_hash_gives_it(capsys: pytest.CaptureFixture[str]) -> None:
    [code] = _fences(DOCS / "data.md", "python")
    exec(compile(code, "data.md", "exec"), {})
    question = Message(role="user", content="Name a prime.")
    assert capsys.readouterr().out.strip() == example_hash((question,), "7", "9")


def test_the_cache_format_has_every_column_field_and_key() -> None:
    page = (DOCS / "cache-format.md").read_text("utf-8")
    quoted = set(re.findall(r"`([^`\n]+)`", page))
    columns = {re.sub(r"\d+", "L", name) for name in weights_schema((0,), include_text=True).names}
    manifest = Manifest(recipe=RECIPE).to_json()
    metadata = shard_metadata(kind="weights", fingerprint="")
    assert (columns | {f.name for f in fields(Recipe)} | set(manifest) | set(metadata)) - quoted == set()
    assert f"Schema version **{SCHEMA_VERSION}**" in page


def test_the_example_row_is_one(tmp_path: Path) -> None:
    """It holds every column of the layers it shows, and a cache takes it as it stands."""
    [text] = _fences(DOCS / "cache-format.md", "json", "example row")
    row = json.loads(text)
    assert sorted(row) == sorted(weights_schema((0, 29), include_text=True).names)
    made = {
        side: SideWeights(
            starts=np.array(row[f"{side}_starts"], np.int32),
            ends=np.array(row[f"{side}_ends"], np.int32),
            weights={layer: np.array(row[f"{side}_weights_{layer}"], np.float32) for layer in (0, 29)},
        )
        for side in ("chosen", "rejected")
    }
    for side in made.values():
        assert all(np.array_equal(round_mantissa(weights), weights) for weights in side.weights.values())
    prompt = tuple((turn["role"], turn["content"]) for turn in row["prompt"])
    texts = {"prompt": prompt, "chosen_text": row["chosen"], "rejected_text": row["rejected"]}
    figures = {name: row[name] for name in (KEY, *FLOATS, "truncated")}
    with CacheWriter.open(tmp_path, replace(RECIPE, layers=(0, 29)), include_text=True) as writer:
        assert writer.add(WeightRow(**figures, **made, **texts))
    assert verify(tmp_path).problems == ()
    assert json.loads(json.dumps(row)) in read_rows(tmp_path)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Rows as plain values, floats in their shortest form."""
    rows = [row for path in (folder / "data").iterdir() for row in pq.read_table(path).to_pylist()]

    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return float(str(np.float32(value)))
        return [plain(each) for each in value] if isinstance(value, list) else value

    return [{name: plain(value) for name, value in row.items()} for row in rows]


@pytest.mark.parametrize("title", ["pandas", "polars", "duckdb", "pyarrow", "twdpo"])
def test_code_that_reads_a_cache_runs(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if title in ("pandas", "polars", "duckdb"):
        pytest.importorskip(title)
    assert 29 in LAYERS, "the snippets read layer 29"
    with CacheWriter.open(tmp_path / "weights_cache", RECIPE) as writer:
        for number in range(3):
            writer.add(make_row(number))
    monkeypatch.chdir(tmp_path)
    [code] = _fences(DOCS / "cache-format.md", "python", title)
    exec(compile(code, "cache-format.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_the_source_that_is_shown_works_as_an_installed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The class, its registration and the command of the page, as a package would bring them."""
    page = DOCS / "sources.md"
    [code] = _fences(page, "python", "emphasis.py")
    [registered] = _fences(page, "toml", "pyproject.toml of your package")
    [(group, points)] = tomllib.loads(registered)["project"]["entry-points"].items()
    (tmp_path / "emphasis.py").write_text(code, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    installed = [EntryPoint(name=name, value=value, group=group) for name, value in points.items()]
    monkeypatch.setattr(
        registry, "entry_points", lambda *, group: [point for point in installed if point.group == group]
    )
    row = {"prompt": "Say it", "chosen": "Yes, it is: 1!", "rejected": "..."}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    save_tiny(tmp_path / "model")
    command = next(
        line for block in _fences(page, "console") for line in block.splitlines() if "--source words" in line
    )
    assert main([*command.split()[2:], "--model", "model"]) == 0
    assert "weighed now" in capsys.readouterr().out
    with WeightsCache.open(tmp_path / "weights/words") as cache:
        [found] = cache.rows()
        assert (cache.recipe.source, cache.recipe.source_options) == ("words", {"others": 0.0})
    for token, weight in zip(_tokens(row["chosen"], found.chosen), found.chosen.weights[0], strict=True):
        assert (weight > 0) == any(map(str.isalnum, token)), token
    # Nothing in it is a word, so all weigh the same.
    assert set(found.rejected.weights[0].tolist()) == {1.0}
    assert main([*command.split()[2:], "--model", "model", "--source-options", "others=-1"]) == 2
    assert "others must not be negative, and is -1" in capsys.readouterr().err


def _tokens(text: str, side: SideWeights) -> list[str]:
    return [text[start:end] for start, end in zip(side.starts, side.ends, strict=True)]


def test_python_that_is_shown_is_python() -> None:
    blocks = [m for page in PAGES for m in _FENCE.finditer(page.read_text("utf-8")) if m["kind"] == "python"]
    assert blocks
    for block in blocks:
        compile(block["body"], "docs", "exec")


def test_the_package_names_what_the_api_page_says() -> None:
    sentence = (DOCS / "api.md").read_text("utf-8").partition("in `twdpo` itself: ")[2].partition(".")[0]
    assert re.findall(r"`(\w+)`", sentence) == twdpo.__all__


def test_every_metric_is_explained() -> None:
    from twdpo.pipeline.train.metrics import NAMES, Window

    window = Window.empty()
    window.pairs = 1
    record: Mapping[str, float] = window.record()
    page = (DOCS / "training.md").read_text("utf-8").partition("## Metrics")[2].partition("## Held-out")[0]
    quoted = set(re.findall(r"`([^`\n]+)`", page))
    assert set(NAMES) <= set(record)
    assert (set(record) | {"step", "epoch", "eval_seconds"}) - quoted == set()


def test_nothing_comes_from_another_host() -> None:
    """The site must read well without a network: links lead out, but nothing is loaded from elsewhere."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    assert config["theme"]["font"] is False
    assert "extra_javascript" not in config
    texts = [*PAGES, *DOCS.glob("stylesheets/*.css")]
    loaded = re.compile(r"!\[[^\]]*\]\(https?:|(?:src|@import|url\()\s*[=\s(\"']*https?:")
    assert [path.name for path in texts if loaded.search(path.read_text("utf-8"))] == []
