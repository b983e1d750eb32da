"""The picture of a run: the right curves, the same bytes for the same figures, nothing left behind in matplotlib."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.train.conftest import World
from tests.pipeline.train.runs import StopAt, out_of, records
from twdpo import plotting
from twdpo.errors import Interrupted
from twdpo.pipeline.train import TrainProgress, train
from twdpo.pipeline.train.curves import INSTALL, PICTURES, _figure, write_curves
from twdpo.pipeline.train.metrics import Record
from twdpo.plotting import plain_style

pytest.importorskip("matplotlib")


def run_of(steps: int) -> list[Record]:
    """Metrics of a run that learns, evaluated before, in the middle and after."""
    lines: list[Record] = []
    for step in range(steps + 1):
        names = ("rewards/weighted_margins", "rewards/weighted_accuracies")
        figures = {"loss": 0.69 - step / 1000, **dict.fromkeys(names, 0.0 if step < 2 else 0.5 + step / 1000)}
        if step:
            lines.append({"step": step, "learning_rate": 1e-6 * step, **figures})
        if step in (0, steps // 2, steps):
            lines.append({"step": step, **{f"eval_{name}": value for name, value in figures.items()}})
    return lines


def drawn(lines: list[Record], best: int | None = None) -> dict[str, dict[str, tuple[list[Any], list[Any]]]]:
    """Panel → label of a curve → its points."""
    with plain_style():
        panels = _figure(lines, "a run", best).axes
    return {
        panel.get_ylabel(): {str(line.get_label()): tuple(map(list, line.get_data())) for line in panel.lines}  # type: ignore[misc]
        for panel in panels
    }


def test_each_panel_shows_training_and_held_out_over_the_steps() -> None:
    panels = drawn(run_of(10), best=5)
    assert list(panels) == ["loss", "weighted margin", "weighted accuracy", "rate"]
    assert panels["loss"]["training"] == (list(range(1, 11)), [0.69 - step / 1000 for step in range(1, 11)])
    assert panels["loss"]["held out"][0] == [0, 5, 10]
    assert panels["loss"]["best checkpoint"] == ([5], [0.69 - 5 / 1000])
    assert "best checkpoint" not in drawn(run_of(10))["loss"]
    assert panels["loss"]["log 2: no preference learnt"][1] == [math.log(2)] * 2
    assert panels["weighted margin"]["held out"] == ([0, 5, 10], [0.0, 0.5 + 5 / 1000, 0.51])
    # Before the policy has changed no pair is right or wrong, which must not look like an accuracy of 0.
    assert panels["weighted accuracy"]["training"][0] == list(range(2, 11))
    assert panels["weighted accuracy"]["held out"][0] == [5, 10]


def test_many_points_are_smoothed_over_those_around() -> None:
    lines = run_of(200)
    for line in lines[::2]:
        if "loss" in line:
            line["loss"] += 1.0
    panel = drawn(lines)["loss"]
    [label] = (label for label in panel if label.startswith("training"))
    assert label == "training, mean over 17 lines"
    raw = [record["loss"] for record in lines if "loss" in record]
    smooth = panel[label][1]
    assert len(smooth) == 200
    assert smooth[100] == pytest.approx(sum(raw[92:109]) / 17)
    assert smooth[-1] == pytest.approx(sum(raw[-9:]) / 9)


def test_the_same_figures_give_the_same_bytes(tmp_path: Path) -> None:
    import matplotlib

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write_curves(tmp_path / "a", run_of(60), title="a run", best=30)
    with matplotlib.rc_context({"font.size": 30, "axes.grid": False, "svg.hashsalt": "another"}):
        write_curves(tmp_path / "b", run_of(60), title="a run", best=30)
        assert matplotlib.rcParams["font.size"] == 30
    for name in PICTURES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "curves.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "a" / "curves.svg").read_text("utf-8")
    assert svg.count("<svg ") == 1
    assert "<dc:date>" not in svg
    write_curves(tmp_path / "b", run_of(61), title="a run", best=30)
    assert (tmp_path / "b" / "curves.svg").read_text("utf-8") != svg


@pytest.mark.parametrize(
    "lines",
    [[], run_of(1), [{"step": 1.0, "loss": math.nan, "learning_rate": 0.0}], [{"step": 0.0, "eval_loss": 0.7}]],
    ids=["nothing", "one step", "not a number", "evaluation alone"],
)
def test_short_and_strange_runs_are_drawn(lines: list[Record], tmp_path: Path) -> None:
    assert write_curves(tmp_path, lines, title="$x_1 & <b>", best=7)


def test_a_resumed_run_is_drawn_as_a_whole(world: World) -> None:
    whole = train(world.config(out=out_of(world, "whole"), run_name="one run", epochs=2.0))
    config = world.config(out=out_of(world, "parts"), run_name="one run", epochs=2.0)
    with pytest.raises(Interrupted):
        train(config, StopAt("training", 6))
    parts = train(config)
    assert records(parts.out) == records(whole.out)
    assert (parts.out / "curves.svg").read_bytes() == (whole.out / "curves.svg").read_bytes()
    assert "](curves.png)" in (parts.out / "README.md").read_text("utf-8")


def test_without_matplotlib_a_note_says_how_to_get_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Notes(TrainProgress):
        def __init__(self) -> None:
            self.texts: list[str] = []

        def note(self, text: str) -> None:
            self.texts.append(text)

    find = importlib.util.find_spec
    monkeypatch.setattr(plotting.importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))  # type: ignore[attr-defined]
    notes = Notes()
    result = train(world.config(max_steps=1), notes)
    assert INSTALL in notes.texts
    assert not list(result.out.glob("curves.*"))
    assert "curves.png" not in (result.out / "README.md").read_text("utf-8")
