"""Training end to end in a tiny world: it learns, resumes to the bit, counts right, and stops with one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.fixtures.tiny_models import save_tiny
from tests.pipeline.train.conftest import World
from tests.pipeline.train.runs import TIMES, StopAt, out_of, records, same_weights, weights_of
from twdpo.cli import _terminate
from twdpo.errors import Interrupted, MissingRows, TrainingError, UsageError
from twdpo.pipeline.train import TrainProgress, train
from twdpo.pipeline.train.ctrl_c import CtrlC
from twdpo.pipeline.train.metrics import NAMES
from twdpo.pipeline.train.ranks import Ranks


def test_it_learns_and_can_be_loaded(world: World) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = train(world.config(epochs=2.0, eval_every=5))
    assert (result.steps, result.pairs, result.heldout) == (14, 52, 8)
    assert result.before["eval_loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert result.after["eval_loss"] < 0.5
    assert result.after["eval_rewards/weighted_accuracies"] > 0.8
    lines = records(result.out)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 15))
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 5, 10, 14]
    assert set(NAMES) | {"step", "epoch", "learning_rate", "grad_norm"} == set(lines[-2])
    assert lines[-2]["epoch"] == 2.0
    assert lines[1]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    model = AutoModelForCausalLM.from_pretrained(result.out)
    before = AutoModelForCausalLM.from_pretrained(world.model)
    assert not torch.equal(model.lm_head.weight, before.lm_head.weight)
    assert AutoTokenizer.from_pretrained(result.out).chat_template
    names = {path.name for path in result.out.iterdir()}
    assert {"config.json", "train.yaml", "README.md", "metrics.jsonl"} <= names
    assert "checkpoints" not in names
    card = (result.out / "README.md").read_text("utf-8")
    assert card.startswith("---\n")
    assert "52 pairs trained on, 8 held out" in card


def test_interrupted_and_resumed_is_uninterrupted(world: World) -> None:
    """To the bit in float32 on a CPU, however often and wherever it stops."""
    whole = train(world.config(out=out_of(world, "whole"), epochs=2.0, log_every=3, micro_batch_size=2))
    config = world.config(out=out_of(world, "parts"), epochs=2.0, log_every=3, micro_batch_size=2)
    for stop in (StopAt("training", 5), StopAt("training", 3), StopAt("evaluation", 2)):
        with pytest.raises(Interrupted, match="run the same command again to go on"):
            train(config, stop)
        assert any("saving a checkpoint" in note for note in stop.notes)
    last = train(config)
    assert last.resumed_at is not None
    assert 0 < last.resumed_at < last.steps
    assert same_weights(whole.out, last.out)
    assert records(whole.out) == records(last.out)
    assert {k: v for k, v in whole.before.items() if k not in TIMES} == {
        k: v for k, v in last.before.items() if k not in TIMES
    }


def test_killed_and_resumed_is_uninterrupted(world: World) -> None:
    """The same after a SIGKILL, from the last regular checkpoint."""
    whole = train(world.config(out=out_of(world, "whole"), epochs=2.0))
    config = world.config(out=out_of(world, "killed"), epochs=2.0)
    code = (
        "import json, os, signal, sys\n"
        "from twdpo.pipeline.train import TrainConfig, TrainProgress, train\n"
        "class Kill(TrainProgress):\n"
        "    def record(self, metrics):\n"
        "        if metrics.get('step') == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
        "train(TrainConfig(**json.loads(sys.argv[1])), Kill())\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, json.dumps(asdict(config))],
        check=False,
        capture_output=True,
        # As many threads as here, since they decide the order of sums.
        env=os.environ | {"PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"},
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    result = train(config)
    assert result.resumed_at == 6
    assert same_weights(whole.out, result.out)
    assert records(whole.out) == records(result.out)


def test_micro_batches_do_not_matter(world: World) -> None:
    """The loss of a step is the mean over its pairs, also where they fall into uneven micro-batches."""
    losses = []
    for size in (None, 8, 3, 1):
        result = train(world.config(out=out_of(world, f"micro{size}"), micro_batch_size=size, batch_size=7))
        losses.append([(r["loss"], r["grad_norm"]) for r in records(result.out) if "loss" in r])
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("changes", [{"gradient_checkpointing": True}, {"activation_tokens": 60}])
def test_recomputing_changes_nothing(world: World, changes: dict[str, Any]) -> None:
    plain = train(world.config(out=out_of(world, "plain"), max_steps=3, micro_batch_size=1))
    recomputed = train(world.config(out=out_of(world, "recomputed"), max_steps=3, micro_batch_size=1, **changes))
    for here, there in zip(records(plain.out), records(recomputed.out), strict=True):
        assert here == pytest.approx(there, rel=1e-4, abs=1e-6)


def test_bfloat16_keeps_float32_parameters(world: World) -> None:
    result = train(world.config(dtype="bfloat16", epochs=2.0))
    assert result.after["eval_loss"] < 0.6
    assert {tensor.dtype for tensor in weights_of(result.out).values()} == {torch.float32}


def test_max_steps_and_limit_and_no_evaluation(world: World) -> None:
    result = train(world.config(max_steps=3, limit=20, eval_split="none"))
    assert (result.steps, result.pairs, result.heldout, dict(result.after)) == (3, 20, 0, {})


def test_beta_and_layer_need_no_new_reference(world: World) -> None:
    class Reference(TrainProgress):
        computed = 0

        def advance(self, task: str, items: int = 1) -> None:
            self.computed += items * (task == "reference")

    first, second = Reference(), Reference()
    train(world.config(out=out_of(world, "a"), max_steps=1), first)
    train(world.config(out=out_of(world, "b"), max_steps=1, beta=0.5, attn_source="mean", sink_fix=False), second)
    assert (first.computed, second.computed) == (60, 0)


def test_all_settings_of_the_weights_matter(world: World) -> None:
    """Each of them changes what is learnt."""
    seen = []
    changes: list[dict[str, Any]] = [
        {},
        {"attn_source": "0"},
        {"attn_source": "mean"},
        {"sink_fix": False},
        {"uniform_mix": 0.5},
        {"uncovered": "one"},
        {"label_smoothing": 0.1},
    ]
    for number, change in enumerate(changes):
        result = train(world.config(out=out_of(world, str(number)), max_steps=3, eval_split="none", **change))
        seen.append(records(result.out)[-1]["loss"])
    assert len(set(seen)) == len(changes)


def test_another_configuration_is_refused(world: World) -> None:
    with pytest.raises(Interrupted):
        train(world.config(), StopAt("training", 4))
    before = (world.folder / "trained" / "train.yaml").read_text("utf-8")
    with pytest.raises(TrainingError, match=r"--beta 0\.1 there, 0\.2 asked for.*--no-resume"):
        train(world.config(beta=0.2))
    assert (world.folder / "trained" / "train.yaml").read_text("utf-8") == before
    assert train(world.config(beta=0.2, resume=False)).resumed_at is None


def test_what_a_checkpoint_refuses_is_told_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes fail over a checkpoint in accord, so that one of them speaks for all."""
    with pytest.raises(Interrupted):
        train(world.config(), StopAt("training", 4))
    heard: list[str] = []

    @contextmanager
    def accord(_ranks: Ranks) -> Iterator[None]:
        try:
            yield
        except TrainingError as error:
            heard.append(str(error))
            raise

    monkeypatch.setattr(Ranks, "accord", accord)
    with pytest.raises(TrainingError, match="--beta"):
        train(world.config(beta=0.2))
    for file in (world.folder / "trained" / "checkpoints").glob("*/state.json"):
        file.write_text("{", "utf-8")
    with pytest.raises(TrainingError, match="is damaged"):
        train(world.config())
    assert len(heard) == 2


def test_a_finished_run_is_not_overwritten_unasked(world: World) -> None:
    train(world.config(max_steps=1))
    with pytest.raises(UsageError, match=r"holds a finished run; choose another folder, or pass --no-resume"):
        train(world.config(max_steps=1))
    assert train(world.config(max_steps=2, resume=False)).steps == 2


def test_a_folder_of_something_else_is_left_alone(world: World) -> None:
    with pytest.raises(UsageError, match="is not empty and holds no training run"):
        train(world.config(out=str(world.weights)))


def test_nan_names_the_pairs_and_keeps_the_checkpoint(world: World) -> None:
    with pytest.raises(TrainingError) as caught:
        train(world.config(learning_rate=1e30, epochs=2.0, save_every=1, max_grad_norm=1e30))
    message = str(caught.value)
    assert "is not finite" in message
    assert "row " in message
    assert "is kept" in message
    assert "\n" not in message
    assert list((world.folder / "trained" / "checkpoints").iterdir())


def test_ctrl_c_before_the_first_step(world: World) -> None:
    with pytest.raises(Interrupted, match="stopped at the start"):
        train(world.config(), StopAt("evaluation", 1))
    with pytest.raises(Interrupted, match="stopped; run the same command again"):
        train(world.config(), StopAt("pairs", 1))
    assert train(world.config(max_steps=1)).resumed_at is None


@pytest.fixture
def sigterm() -> Iterator[Any]:
    """The handler that the command line installs, for the length of a test."""
    before = signal.signal(signal.SIGTERM, _terminate)
    yield _terminate
    signal.signal(signal.SIGTERM, before)


def test_a_scheduler_stops_it_as_ctrl_c_does(world: World, sigterm: Any) -> None:
    """SIGTERM, where the program handles it: the steps so far are kept, and the same command goes on."""
    whole = train(world.config(out=out_of(world, "whole"), save_every=0))
    config, stop = world.config(out=out_of(world, "parts"), save_every=0), StopAt("training", 4, signal.SIGTERM)
    with pytest.raises(Interrupted, match="stopped after step 4 of 7; a checkpoint is saved"):
        train(config, stop)
    assert [note.split(":")[0] for note in stop.notes] == ["stopping"]
    assert signal.getsignal(signal.SIGTERM) is sigterm
    assert train(config).resumed_at == 4
    assert same_weights(whole.out, Path(config.out))


def test_signals_are_handed_back(sigterm: Any) -> None:
    """After the first of either; what is ignored, or ends the process, stays that way."""
    before = signal.getsignal(signal.SIGINT)
    with CtrlC(lambda: None) as ctrl_c:
        signal.raise_signal(signal.SIGTERM)
        assert ctrl_c.pressed
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == (before, sigterm)
    for handler in (signal.SIG_IGN, signal.SIG_DFL):
        signal.signal(signal.SIGTERM, handler)
        with CtrlC(lambda: None):
            assert signal.getsignal(signal.SIGTERM) == handler
            assert signal.getsignal(signal.SIGINT) != before
        assert signal.getsignal(signal.SIGTERM) == handler


def test_outside_the_main_thread(world: World) -> None:
    """No signals there; training works all the same."""
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(train(world.config(max_steps=2)).steps))
    thread.start()
    thread.join()
    assert done == [2]


def test_a_context_too_short(world: World) -> None:
    with pytest.raises(UsageError, match=r"--max-length 2048 is more than the policy's context of 512 tokens"):
        train(world.config(max_length=2048))


def test_another_policy_of_another_family(world: World, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "gemma", "gemma2")
    result = train(world.config(model=str(other), max_steps=2))
    assert result.model == str(other)


def test_missing_rows_stop_before_training(empty_world: World) -> None:
    empty_world.annotate(empty_world.write_pairs(60), take=lambda pair: pair.row > 2)
    with pytest.raises(MissingRows, match="3 of 60 pairs have no weights"):
        train(empty_world.config())
    assert train(empty_world.config(missing="drop", max_steps=1)).pairs == 49


@pytest.mark.parametrize("options", [(), ("--streaming",)], ids=["resident", "streamed"])
def test_weights_for_another_data_set(world: World, options: tuple[str, ...]) -> None:
    """One line that says so, and which data set the weights are for."""
    other = world.folder / "other.jsonl"
    rows = [{"prompt": f"Why {i}?", "chosen": "Because.", "rejected": "No."} for i in range(20)]
    other.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    command = ["train", "--weights", str(world.weights), "--dataset", str(other), "--max-length", "256", *options]
    found = subprocess.run(
        [sys.executable, "-m", "twdpo", *command, "--out", out_of(world, "none"), "--device", "cpu"],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path.cwd()), "COLUMNS": "1000"},
    )
    assert found.returncode == 1
    assert "20 of 20 pairs have no weights" in found.stderr
    assert f"the cache seems to be of another data set (its manifest names: {world.pairs})" in found.stderr
    assert "Traceback" not in found.stderr
    assert len([line for line in found.stderr.splitlines() if "weights" in line]) == 1


def test_two_runs_do_not_write_to_one_folder(world: World) -> None:
    """While one is at it the other is refused, and it comes to its end undisturbed."""
    config = world.config(max_steps=4)

    class Intruder(TrainProgress):
        message = ""

        def start(self, task: str, total: int | None) -> None:
            """A second process tries the same folder."""
            if task == "training":
                code = "import sys; from tests.pipeline.train.test_loop import intrude; intrude(sys.argv[1])"
                found = subprocess.run(
                    [sys.executable, "-c", code, json.dumps(asdict(config))],
                    check=False,
                    capture_output=True,
                    text=True,
                    env=os.environ | {"PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"},
                )
                self.message = found.stdout + found.stderr

    watch = Intruder()
    assert train(config, watch).steps == 4
    assert watch.message.startswith(f"another run is writing to --out {config.out}"), watch.message
    assert [r["step"] for r in records(Path(config.out)) if "loss" in r] == [1, 2, 3, 4]
    # It is let go of at the end, also after a failure.
    for _ in range(2):
        with pytest.raises(UsageError, match="holds a finished run"):
            train(config)


def intrude(config: str) -> None:
    """Train, and print why not."""
    from twdpo.pipeline.train import TrainConfig

    try:
        train(TrainConfig(**json.loads(config)))
    except UsageError as error:
        print(error)


def test_a_step_without_pairs_counts_and_changes_nothing(empty_world: World) -> None:
    """Of a stream: its learning rate passes, its update does not happen, and there is no line for it."""
    empty_world.annotate(empty_world.write_pairs(8))
    with empty_world.pairs.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"prompt": "?", "chosen": " ", "rejected": "no"}) + "\n" for _ in range(8))
    changes: dict[str, Any] = {"streaming": True, "shuffle_block": 8, "eval_split": "none"}
    result = train(empty_world.config(epochs=2.0, **changes))
    assert (result.steps, result.pairs, sum(result.skipped.values())) == (4, 8, 8)
    assert [line["step"] for line in records(result.out)] == [1, 3]
