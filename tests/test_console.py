"""What is shown of a training run: lines in a log, bars on a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from twdpo.console import _TrainBars, _TrainLog, duration, progress_bar


class Clock:
    """A clock that stands unless it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def record(step: int, prefix: str = "", **more: float) -> dict[str, float]:
    figures = {"loss": 0.5, "rewards/weighted_margins": 0.25, "rewards/weighted_accuracies": 0.75}
    return {"step": step, **{f"{prefix}{name}": value for name, value in figures.items()}, **more}


def test_lines_of_a_log_tell_all_that_a_bar_does() -> None:
    out, clock = io.StringIO(), Clock()
    log = _TrainLog(Console(file=out, width=40), clock)
    log.start("pairs", None)
    log.start("training", 300)
    log.advance("training", 100)  # what was done before the interruption
    clock.now += 500  # an evaluation, and all that happens once
    for step in range(101, 121):
        clock.now += 4
        log.advance("training")
        log.record(record(step, tokens_per_second=310.4))
    log.record(record(120, "eval_"))
    clock.now += 40
    log.advance("training", 180)
    log.record(record(300, tokens_per_second=310.4))
    figures = "loss 0.5000  margin +0.2500  accuracy 75%  310 tokens/s"
    assert out.getvalue().split("\n") == [
        "reading pairs",
        "training: 300",
        f"step 101/300  {figures}",
        f"step 109/300  {figures}  13 min left",
        f"step 117/300  {figures}  12 min left",
        "step 120/300  eval_loss 0.5000  margin +0.2500  accuracy 75%",
        f"step 300/300  {figures}",
        "",
    ]


def test_spans_of_time() -> None:
    spans = (3.2, 89.0, 91.0, 720.0, 7140.0, 12_000.0)
    assert list(map(duration, spans)) == ["3 s", "89 s", "2 min", "12 min", "119 min", "3 h 20 min"]


def test_the_bar_shows_the_latest_figures_and_the_time_left() -> None:
    out = io.StringIO()
    with progress_bar(Console(file=out, width=140, force_terminal=True, color_system=None)) as bar:
        # Steps of a minute, by the bar's own clock.
        clock = Clock()
        bar.get_time = clock
        bars = _TrainBars(bar)
        bars.start("training", 300)
        bars.advance("training", 100)
        for _ in range(20):
            clock.now += 60
            bars.advance("training")
        bars.record(record(120, tokens_per_second=310.4))
        task = bar.tasks[-1]
        assert task.time_remaining == 180 * 60
        bar.refresh()
    shown = out.getvalue()
    assert "120/300" in shown
    assert "3:00:00" in shown
    assert "loss 0.5000  margin +0.2500  accuracy 75%  310 tokens/s" in shown
