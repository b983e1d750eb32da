"""Trackers get every record once, with its step and the settings; what is missing or unknown stops at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker

from tests.pipeline.train.conftest import World
from tests.pipeline.train.runs import StopAt, out_of
from twdpo.errors import Interrupted, TrainingError, UsageError
from twdpo.pipeline.train import TrainProgress, train
from twdpo.pipeline.train import loop as loop_module
from twdpo.pipeline.train import trackers as trackers_module
from twdpo.pipeline.train.metrics import MetricsFile
from twdpo.pipeline.train.trackers import Trackers, parse_trackers


class Fake(GeneralTracker):  # type: ignore[misc,unused-ignore]
    """Keeps what it is told; fails where it is asked to."""

    name = "fake"
    requires_logging_directory = False

    def __init__(self, fails: str = "") -> None:
        super().__init__(_blank=True)
        self.calls: list[str] = []
        self.settings: dict[str, Any] = {}
        self.lines: list[tuple[int, dict[str, float]]] = []
        self._fails = fails

    @property
    def tracker(self) -> None:
        return None

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name == self._fails:
            raise ConnectionError(f"no {name}\nfor now")

    def start(self) -> None:
        self._called("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, float], step: int | None, **_: Any) -> None:
        self._called("log")
        assert step is not None
        self.lines.append((step, values))

    def finish(self) -> None:
        self._called("finish")


class Notes(TrainProgress):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Curve → (step, value), of all event files of a run as they stand there, none left out."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.glob("events.*")):
        for event in LegacyEventFileLoader(str(file)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_tensorboard_gets_every_record_with_its_step(world: World) -> None:
    pytest.importorskip("tensorboard")
    result = train(world.config(tracker="tensorboard", run_name="first/run", epochs=2.0, eval_every=5))
    folder = result.out / "trackers" / "first-run"
    curves = scalars(folder)
    lines = MetricsFile(result.out / "metrics.jsonl").read()
    for name in ("loss", "rewards/weighted_margins", "learning_rate"):
        wanted = [(r["step"], pytest.approx(r[name], rel=1e-6)) for r in lines if name in r]
        assert curves[f"train/{name}"] == wanted
    assert curves["eval/loss"] == [(r["step"], pytest.approx(r["eval_loss"])) for r in lines if "eval_loss" in r]
    assert {"train/step", "train/epoch", "eval/epoch"} & curves.keys() == set()
    [settings] = folder.glob("*/hparams.yml")
    assert "beta: 0.1\n" in settings.read_text("utf-8")


def test_no_step_is_sent_twice_by_a_resumed_run(world: World) -> None:
    """Steps after the last checkpoint are done again, and were sent before: from a save at 2 on, stopped hard at 3."""
    pytest.importorskip("tensorboard")

    class Die(TrainProgress):
        def record(self, metrics: Any) -> None:
            if metrics["step"] == 3:
                raise RuntimeError("as a kill would")

    config = world.config(tracker="tensorboard", epochs=2.0)
    with pytest.raises(RuntimeError):
        train(config, Die())
    result = train(config)
    assert result.resumed_at == 2
    curves = scalars(result.out / "trackers" / "trained")
    assert [step for step, _ in curves["train/loss"]] == list(range(1, 15))
    assert [step for step, _ in curves["eval/loss"]] == [0, 4, 8, 12, 14]
    assert len(list((result.out / "trackers" / "trained").glob("*/hparams.yml"))) == 1


def test_a_tracker_of_ones_own(world: World) -> None:
    fake = Fake()
    result = train(world.config(max_steps=2), trackers=[fake])
    assert fake.calls == ["start", *["log"] * 4, "finish"]
    assert [step for step, _ in fake.lines] == [0, 1, 2, 2]
    assert (fake.settings["beta"], fake.settings["pairs"], fake.settings["heldout"]) == (0.1, 52, 8)
    assert {type(value) for value in fake.settings.values()} <= {bool, int, float, str}
    assert fake.lines[1][1]["train/loss"] == MetricsFile(result.out / "metrics.jsonl").read()[1]["loss"]


def test_they_end_whatever_happens(world: World) -> None:
    stopped, failed = Fake(), Fake()
    with pytest.raises(Interrupted):
        train(world.config(out=out_of(world, "a")), StopAt("training", 2), trackers=[stopped])
    with pytest.raises(TrainingError, match="is not finite"):
        train(world.config(out=out_of(world, "b"), learning_rate=1e30, max_grad_norm=1e30), trackers=[failed])
    assert stopped.calls[-1] == failed.calls[-1] == "finish"


def test_one_that_cannot_start_stops_the_run_and_one_that_breaks_off_does_not(world: World) -> None:
    whole = Fake()
    with pytest.raises(TrainingError, match=r"the tracker fake cannot start \(no start\); mend that, or use") as caught:
        train(world.config(max_steps=2), trackers=[whole, Fake(fails="start")])
    assert "\n" not in str(caught.value)
    assert whole.calls == ["start", "finish"]
    broken, notes = Fake(fails="log"), Notes()
    assert train(world.config(max_steps=2), notes, trackers=[broken, whole]).steps == 2
    assert broken.calls == ["start", "log"]
    assert len(whole.lines) == 4
    assert [text for text in notes.texts if "fake" in text] == ["the tracker fake failed and gets no more (no log)"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tensorbored", "--tracker tensorbored is not known; choose none, .*mlflow.*tensorboard.*wandb"),
        ("tensorboard,wandb", "--tracker wandb needs the package wandb; install it with: pip install wandb"),
        ("comet_ml", "pip install comet-ml"),
    ],
)
def test_what_cannot_be_had_stops_before_a_model_is_loaded(
    world: World, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    def unreachable(*_: object, **__: object) -> Callable[[], None]:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(trackers_module, "get_available_trackers", lambda: ["tensorboard"])
    monkeypatch.setattr(loop_module, "load_model", unreachable)
    with pytest.raises(UsageError, match=message):
        train(world.config(tracker=text))
    assert not (world.folder / "trained").exists()


def test_names_are_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers_module, "get_available_trackers", lambda: ["tensorboard", "wandb"])
    assert parse_trackers("none") == parse_trackers("") == ()
    assert parse_trackers(" wandb, tensorboard,wandb") == ("wandb", "tensorboard")


def test_each_is_told_the_name_of_the_run_and_where_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, list[tuple[tuple[str, ...], dict[str, Any]]]] = {}

    def stand_in(name: str) -> type[Fake]:
        class Made(Fake):
            requires_logging_directory = name == "aim"

            def __init__(self, *place: str, **arguments: Any) -> None:
                super().__init__()
                made.setdefault(name, []).append((place, arguments))

        return Made

    names = ("wandb", "trackio", "mlflow", "aim")
    for name in names:
        monkeypatch.setitem(trackers_module.LOGGER_TYPE_TO_CLASS, name, stand_in(name))
    for logged in (None, [], None):
        with Trackers(names, out=tmp_path, run_name="a run", note=print) as trackers:
            trackers.start({}, logged)
    first, resumed, anew = made["wandb"]
    assert first[0] == ("twdpo",)
    assert first[1] == {"name": "a run", "dir": str(tmp_path / "trackers"), "resume": "allow", "id": first[1]["id"]}
    assert resumed == first
    assert anew[1]["id"] != first[1]["id"]
    assert made["trackio"][0] == (("twdpo",), {"name": "a run", "resume": "allow"})
    assert made["mlflow"][0] == (("twdpo",), {"run_name": "a run"})
    assert made["aim"][0] == (("twdpo", str(tmp_path / "trackers")), {})
