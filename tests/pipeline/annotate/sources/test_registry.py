"""What other packages register, and what of it is refused in one line. A whole package's source: tests/docs."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from twdpo.errors import UsageError
from twdpo.pipeline.annotate import AnnotateConfig
from twdpo.pipeline.annotate.sources import check_source, registry, source_class, source_names
from twdpo.pipeline.annotate.sources.base import WeightSource


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    points = {
        "missing": "no_such_package:Source",
        "other": "pathlib:Path",
        "nothing": "pathlib:NoSuchName",
        "uniform": "pathlib:Path",
    }

    def entry_points(*, group: str) -> list[EntryPoint]:
        assert group == "twdpo.weight_sources"
        return [EntryPoint(name=name, value=value, group=group) for name, value in points.items()]

    monkeypatch.setattr(registry, "entry_points", entry_points)


def test_our_own_come_first_and_win(installed: None) -> None:
    assert source_names() == (*registry.OWN, "missing", "nothing", "other")
    for name in registry.OWN:
        assert issubclass(source_class(name), WeightSource)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "cannot be loaded from no_such_package:Source (ModuleNotFoundError"),
        ("nothing", "cannot be loaded from pathlib:NoSuchName (AttributeError"),
        ("other", "pathlib:Path is no subclass of WeightSource"),
        ("none", "--source none is not known; choose one of attention, uniform,"),
    ],
)
def test_what_cannot_be_used_is_one_line(installed: None, name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        source_class(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_that_say_nothing_to_a_source_are_refused_and_others_pass() -> None:
    check_source(AnnotateConfig(dataset="demo", source="uniform", device="cpu", dtype="float32", batch_size=4))
    check_source(AnnotateConfig(dataset="demo", source="tis", device_map="auto"))
    for source, options, flag in [
        ("uniform", {"device_map": "auto"}, "--device-map"),
        ("tis", {"layers": "1"}, "--layers"),
        ("shuffled", {"base": "x", "max_length": 512}, "--max-length"),
        ("shuffled", {"base": "x", "verdict": False}, "--no-verdict"),
        ("position", {"verdict": False}, "--no-verdict"),
        ("shuffled", {"base": "x", "engine": "vllm"}, "--engine vllm"),
    ]:
        with pytest.raises(UsageError, match=f"leave {flag} out"):
            check_source(AnnotateConfig(dataset="demo", source=source, **options))
    check_source(AnnotateConfig(dataset="demo", source="random", engine="vllm"))
