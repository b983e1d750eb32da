"""Several processes on this machine: the same result, one line when something fails, nothing that hangs."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.train.conftest import World
from tests.pipeline.train.processes import ROOT, complaints, environment, run, running
from tests.pipeline.train.runs import out_of, records, same_weights
from twdpo.cli import main
from twdpo.errors import UsageError
from twdpo.pipeline.train import TrainConfig, TrainProgress, TrainResult, launch, train
from twdpo.pipeline.train.worker import Course, read_result, replay, write_result

#: Uneven shares, and a last step of every epoch with a single pair, which leaves one process without any.
UNEVEN: dict[str, Any] = {"batch_size": 17, "epochs": 5.0, "learning_rate": 1e-3}


class Heard(TrainProgress):
    """Keeps what a run tells."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.steps = 0

    def start(self, task: str, total: int | None) -> None:
        """Keep."""
        self.calls.append(("start", task, total))

    def advance(self, task: str, items: int = 1) -> None:
        """Count."""
        self.steps += items * (task == "training")

    def finish(self, task: str) -> None:
        """Keep."""
        self.calls.append(("finish", task))

    def record(self, metrics: Mapping[str, float]) -> None:
        """Keep."""
        self.calls.append(("record", metrics["step"]))

    def note(self, text: str) -> None:
        """Keep."""
        self.calls.append(("note", text))


def assert_same_course(here: Path, there: Path, steps: int) -> None:
    """Losses to 1e-5, and all other metrics to rounding.

    Before anything is learnt, policy and reference differ by rounding alone, which decides the accuracies then.
    """
    assert [r["step"] for r in records(here) if "loss" in r] == list(range(1, steps + 1))
    for one, other in zip(records(here), records(there), strict=True):
        for name in ("loss", "eval_loss"):
            assert one.get(name, 0.0) == pytest.approx(other.get(name, 0.0), abs=1e-5)
        settled = {name: value for name, value in one.items() if one["step"] > 1 or "accuracies" not in name}
        assert settled == pytest.approx({name: other[name] for name in settled}, rel=1e-3, abs=1e-4)


@pytest.fixture(autouse=True)
def workers_of_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the tests themselves, since threads decide the order of sums."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def alone(world: World) -> TrainResult:
    """The run that others are compared with, in this process."""
    return train(world.config(out=out_of(world, "alone"), **UNEVEN))


def test_two_processes_give_the_losses_of_one(world: World, alone: TrainResult) -> None:
    """From Python: the result, the progress and the files are those of a run in one process."""
    heard = Heard()
    both = train(
        world.config(out=out_of(world, "both"), num_processes=2, reference_cache=out_of(world, "r"), **UNEVEN), heard
    )
    assert_same_course(alone.out, both.out, 20)
    assert (both.steps, both.pairs, both.heldout, both.resumed_at) == (20, 52, 8, None)
    assert both.after["eval_loss"] == pytest.approx(alone.after["eval_loss"], abs=1e-5)
    assert heard.steps == 20
    assert next(call for call in heard.calls if call[0] == "start") == ("start", "pairs", None)
    assert [call[1] for call in heard.calls if call[0] == "record"] == [r["step"] for r in records(both.out)]
    assert "num_processes: 2" in (both.out / "train.yaml").read_text("utf-8")


@pytest.mark.slow
def test_killed_in_one_process_and_resumed_exactly(world: World, tmp_path: Path) -> None:
    """SIGKILL of a process: the others end, one line says what happened, and the same command goes on to the bit."""
    # One held-out pair, so that in evaluations one process is alone with the model.
    whole = world.config(out=out_of(world, "whole"), num_processes=2, eval_every=0, eval_split="1", limit=53)
    parts = replace(whole, out=out_of(world, "parts"))
    assert run(whole, tmp_path / "none").returncode == 0
    kill = """
def step(self):
    if rank == "1" and self._step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    train_step(self)
Loop._train_step = step
"""
    started = time.monotonic()
    killed = run(parts, tmp_path / "kill", kill)
    assert time.monotonic() - started < 150
    assert killed.returncode == 1
    assert complaints(killed.stderr) == [
        "twdpo: the process of rank 1 (of 2) was ended by SIGKILL (is memory short?); the others were stopped; "
        f"{parts.out}/checkpoints/step-00000004 is kept: run the same command again to go on"
    ]
    again = run(parts, tmp_path / "none")
    assert again.returncode == 0, again.stderr
    assert "going on after step 4 of 7" in again.stderr
    assert same_weights(Path(whole.out), Path(parts.out))
    assert records(Path(whole.out)) == records(Path(parts.out))


def test_ctrl_c_saves_and_stops_all(world: World, tmp_path: Path) -> None:
    slow = """
def step(self):
    time.sleep(0.2)
    train_step(self)
Loop._train_step = step
"""
    config = world.config(num_processes=2, epochs=20.0, save_every=0, eval_every=0, log_every=2)
    with running(config, tmp_path / "slow", slow) as process:
        metrics = Path(config.out) / "metrics.jsonl"
        while not (metrics.exists() and '"loss"' in metrics.read_text("utf-8")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.count("stopping: saving a checkpoint") == 1
    [line] = complaints(stderr)
    assert line.startswith("twdpo: stopped after step ")
    assert line.endswith("a checkpoint is saved; run the same command again to go on")
    assert len(list((Path(config.out) / "checkpoints").iterdir())) == 1


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(world: World, tmp_path: Path) -> None:
    """Also where a process does not come to the end of its step."""
    stuck = """
def step(self):
    train_step(self)
    if self._step == 2:
        loop.Path(self._config.out, "stuck").touch()
        time.sleep(600)
Loop._train_step = step
"""
    config = world.config(num_processes=2)
    with running(config, tmp_path / "stuck", stuck) as process:
        while not (Path(config.out) / "stuck").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        time.sleep(1.0)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert complaints(stderr) == [
        "twdpo: stopped at once; run the same command again to go on from the last checkpoint"
    ]


NAN_IN_ONE = """
def spoilt(self, group, reference):
    from dataclasses import replace
    pairs = losses(self, group, reference)
    if rank == "1" and self._step == 3:
        pairs = replace(pairs, losses=pairs.losses * float("nan"))
    return pairs
Loop._losses = spoilt
"""
NO_SPACE_IN_ONE = """
def full(*arguments):
    from twdpo.errors import StorageError
    raise StorageError("cannot write there: the disk is full")
loop.save_checkpoint = full
"""
BUG_IN_ONE = """
def wrong(self):
    if rank == "1":
        raise ZeroDivisionError("a bug")
    train_step(self)
Loop._train_step = wrong
"""
BUG_IN_ALL = BUG_IN_ONE.replace('rank == "1"', "True")


@pytest.mark.parametrize(
    ("fault", "changes", "expected"),
    [
        (NAN_IN_ONE, {"micro_batch_size": 2}, "twdpo: the loss of step 4 is not finite with row "),
        pytest.param(NO_SPACE_IN_ONE, {}, "twdpo: cannot write there: the disk is full", marks=pytest.mark.slow),
    ],
    ids=["nan", "disk"],
)
def test_what_fails_in_one_process_stops_all_with_one_line(
    world: World, tmp_path: Path, fault: str, changes: dict[str, Any], expected: str
) -> None:
    failed = run(world.config(num_processes=2, **changes), tmp_path / "fault", fault)
    assert failed.returncode == 1
    [line] = complaints(failed.stderr)
    assert line.startswith(expected)
    assert failed.stdout == ""


@pytest.mark.slow
@pytest.mark.parametrize("fault", [BUG_IN_ONE, BUG_IN_ALL], ids=["one", "all"])
def test_a_bug_shows_its_traceback_once(world: World, tmp_path: Path, fault: str) -> None:
    failed = run(world.config(num_processes=2), tmp_path / "fault", fault)
    assert failed.returncode == 1
    assert failed.stderr.count("ZeroDivisionError: a bug") == 1
    assert "in wrong" in failed.stderr


def test_a_mistake_that_all_processes_meet_is_told_once(world: World, tmp_path: Path) -> None:
    (world.folder / "trained").mkdir()
    (world.folder / "trained" / "something").touch()
    failed = run(world.config(num_processes=2), tmp_path)
    assert failed.returncode == 2
    [line] = complaints(failed.stderr)
    assert line.endswith("trained is not empty and holds no training run; choose another folder")


def test_the_first_cause_is_named(tmp_path: Path) -> None:
    """What a user can act on, else how a process died, else the first bug; what follows from these is not told."""
    bug, late, error = (tmp_path / name for name in ("failure-1.json", "failure-0.json", "failure-2.json"))

    def cause(codes: list[int | None], interrupted: bool = False) -> str:
        found = launch._failure(codes, tmp_path, TrainConfig(out=str(tmp_path / "out")), interrupted)
        return f"{type(found).__name__}: {found}"

    assert cause([None, -11]).startswith("TrainingError: the process of rank 1 (of 2) was ended by SIGSEGV; the others")
    assert "(it said nothing); the others were stopped; no checkpoint was written yet: run" in cause([3, None])
    bug.write_text('{"bug": "Traceback\\nBug: 1"}', "utf-8")
    time.sleep(0.01)
    late.write_text('{"bug": "Traceback\\nBug: 0"}', "utf-8")
    assert cause([1, 1, None]) == "WorkerBug: in one of 3 processes:\nTraceback\nBug: 1"
    assert "rank 2 (of 3) was ended by SIGKILL" in cause([1, 1, -9])
    assert cause([1, 1, -9], interrupted=True).startswith("Interrupted: stopped; run the same command again")
    error.write_text('{"error": "StorageError", "message": "the disk is full"}', "utf-8")
    assert cause([1, 1, 1], interrupted=True) == "StorageError: the disk is full"


@pytest.mark.slow
def test_a_process_that_ends_without_a_word(world: World, tmp_path: Path) -> None:
    fault = """
def gone(self):
    if rank == "1":
        print("no room", flush=True)
        os._exit(7)
    time.sleep(600)
Loop._train_step = gone
"""
    failed = run(world.config(num_processes=2), tmp_path / "fault", fault)
    assert failed.returncode == 1
    [line] = complaints(failed.stderr)
    assert line.startswith(
        "twdpo: the process of rank 1 (of 2) ended with exit code 7 (no room); the others were stopped"
    )


@pytest.mark.slow
def test_workers_stop_when_the_launcher_is_gone(world: World, tmp_path: Path) -> None:
    """They press Ctrl-C themselves, save and end."""
    slow = """
def step(self):
    time.sleep(0.2)
    train_step(self)
Loop._train_step = step
"""
    config = world.config(num_processes=2, epochs=100.0, save_every=0, eval_every=0)
    with running(config, tmp_path / "slow", slow) as process:
        metrics = Path(config.out) / "metrics.jsonl"
        while not (metrics.exists() and '"loss"' in metrics.read_text("utf-8")):
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
        checkpoints, deadline = Path(config.out) / "checkpoints", time.monotonic() + 60
        while not list(checkpoints.glob("step-*")) and time.monotonic() < deadline:
            time.sleep(0.1)
    assert len(list(checkpoints.glob("step-*"))) == 1


@pytest.mark.slow
def test_torchrun_and_accelerate_launch_start_the_same_command(
    world: World, alone: TrainResult, tmp_path: Path
) -> None:
    """Progress, result and errors are told by the main process alone."""
    config = tmp_path / "run.yaml"
    names = ("weights", "out", "max_length", "batch_size", "learning_rate", "beta", "epochs", "eval_every")
    launchers = {
        "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"],
        "accelerate": ["-m", "accelerate.commands.launch", "--cpu", "-m"],
    }
    for name, launcher in launchers.items():
        run_config = world.config(out=out_of(world, name), **UNEVEN)
        config.write_text("".join(f"{n}: {getattr(run_config, n)!r}\n" for n in names) + 'eval_split: "8"\n', "utf-8")
        launched = [sys.executable, *launcher, "twdpo", "train", "--config", str(config), "--device", "cpu"]
        env = environment(tmp_path)
        done = subprocess.run(launched, check=False, capture_output=True, text=True, env=env, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("trained on") == 1
        assert done.stderr.count("training: 20") == 1
        assert_same_course(alone.out, Path(run_config.out), 20)
        again = subprocess.run(launched, check=False, capture_output=True, text=True, env=env, timeout=300)
        assert again.returncode != 0
        assert again.stderr.count("holds a finished run") == 1


def write(path: Path, text: str) -> str:
    path.write_text(text, "utf-8")
    return str(path)


MACHINES = "distributed_type: MULTI_GPU\nnum_machines: 2\nnum_processes: 16\n"


@pytest.mark.parametrize(
    ("flags", "file", "expected"),
    [
        ("--num-processes 0", None, "--num-processes 0 is too small; the least is 1"),
        ("--accelerate-config ddp", None, "--accelerate-config ddp needs --num-processes on a machine without GPUs"),
        ("--accelerate-config dpd", None, "--accelerate-config dpd: no such file, and none of ddp, fsdp2, zero3"),
        ("--accelerate-config FILE", "- 1\n", "is no accelerate configuration; make one with accelerate config"),
        ("--accelerate-config FILE", "a: [", "cannot be read (while parsing"),
        (
            "--accelerate-config FILE",
            MACHINES,
            "is for 2 machines; on each of them run accelerate launch --config_file",
        ),
        ("--accelerate-config FILE", "distributed_type: XLA\n", "distributed_type XLA is not supported"),
        (
            "--accelerate-config FILE",
            "distributed_type: MULTI_GPU\nnum_processes: many\n",
            "num_processes must be a whole number above 0, not 'many'",
        ),
        (
            "--accelerate-config fsdp2 --num-processes 2 --optimizer adamw_8bit",
            None,
            "--optimizer adamw_8bit cannot be divided among processes; use --optimizer adamw",
        ),
        (
            "--accelerate-config zero3 --num-processes 2 --lora-rank 4",
            None,
            "--lora-rank does not go with fsdp2 or zero3 yet; use --accelerate-config ddp",
        ),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: str,
    file: str | None,
    expected: str,
) -> None:
    """Before a process is started; on the CPU, whatever else the machine has."""
    if file is not None:
        flags = flags.replace("FILE", write(tmp_path / "accelerate.yaml", file))
    assert main(["train", "--device", "cpu", *flags.split()]) == 2
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert expected in stderr


def test_inside_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for twice, and differently, is refused."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert launch.needed(TrainConfig()) is None
    assert launch.needed(TrainConfig(num_processes=4)) is None
    assert not launch.is_main()
    with pytest.raises(UsageError, match="--num-processes 2, but the launcher started 4; leave the option out"):
        launch.needed(TrainConfig(num_processes=2))
    with pytest.raises(UsageError, match=r"give the file to that \(accelerate launch --config_file\)"):
        launch.needed(TrainConfig(accelerate_config="fsdp2", num_processes=4))


def test_how_many_processes(tmp_path: Path) -> None:
    """One needs no launcher; a file may say how many; a flag says it better."""
    assert launch.needed(TrainConfig(device="cpu")) is None
    assert launch.needed(TrainConfig(device="cpu", num_processes=1)) is None
    one = TrainConfig(device="cpu", num_processes=1, accelerate_config="fsdp2", optimizer="adamw_8bit")
    assert launch.needed(one) is None  # nothing is divided
    file = write(
        tmp_path / "a.yaml", "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nnum_processes: 3\n"
    )
    for asked, expected in ((None, 3), (2, 2)):
        workers = launch.needed(TrainConfig(device="cpu", accelerate_config=file, num_processes=asked))
        assert workers is not None
        assert workers.processes == expected
        assert workers.environment["ACCELERATE_USE_CPU"] == "true"
        assert "ACCELERATE_USE_FSDP" not in workers.environment
        assert workers.unused is None
    file = write(tmp_path / "b.yaml", "distributed_type: MULTI_GPU\nnum_processes: 2\nmixed_precision: bf16\n")
    workers = launch.needed(TrainConfig(device="cpu", accelerate_config=file))
    assert workers is not None
    assert workers.unused == f"mixed_precision bf16 of {file}"
    workers = launch.needed(TrainConfig(device="cpu", accelerate_config="fsdp2", num_processes=2))
    assert workers is not None
    assert workers.environment["ACCELERATE_USE_FSDP"] == "true"
    assert workers.environment["FSDP_VERSION"] == "2"
    workers = launch.needed(TrainConfig(device="cpu", accelerate_config="zero3", num_processes=2))
    assert workers is not None
    assert workers.environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert workers.environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"


def test_gpus_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them unless told otherwise, and never more than there are."""
    monkeypatch.setattr(launch, "_gpus", lambda _device: 4)
    for asked, expected in ((None, 4), (2, 2)):
        workers = launch.needed(TrainConfig(accelerate_config="ddp", num_processes=asked))
        assert workers is not None
        assert workers.processes == expected
        assert "ACCELERATE_USE_CPU" not in workers.environment
    with pytest.raises(UsageError, match=r"--num-processes 8 is more than the GPUs of this machine \(4\)"):
        launch.needed(TrainConfig(num_processes=8))


def test_course_and_result_survive_the_way(tmp_path: Path) -> None:
    """What a worker tells arrives as it was told, also where a line is half written yet."""
    path = tmp_path / "course.jsonl"
    path.touch()
    told, heard = Course(path), Heard()
    with path.open(encoding="utf-8") as stream:
        told.start("training", 3)
        for _ in range(3):
            told.advance("training")
        told.record({"step": 3.0})
        told.note("a note\nof two lines")
        told.finish("training")
        replay(stream, heard)
        with path.open("a", encoding="utf-8") as half:
            half.write('["note", "ha')
            half.flush()
            replay(stream, heard)
            half.write('lf"]\n')
        replay(stream, heard)
    assert heard.steps == 3
    assert heard.calls == [
        ("start", "training", 3),
        ("record", 3.0),
        ("note", "a note\nof two lines"),
        ("finish", "training"),
        ("note", "half"),
    ]
    result = TrainResult(out=tmp_path, model="m", steps=3, pairs=2, heldout=1, before={"eval_loss": 0.1})
    write_result(tmp_path / "result.json", result)
    assert read_result(tmp_path / "result.json") == result
