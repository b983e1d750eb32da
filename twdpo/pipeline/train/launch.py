"""Several processes on this machine: how many, with what settings of accelerate, and one line when one of them fails.

Each is a `worker.py` in a session of its own, so that Ctrl-C reaches them once, through here. Not for: what they do
(`loop.py`, `ranks.py`), or several machines, where `accelerate launch -m twdpo train` starts the processes.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twdpo import errors
from twdpo.config import to_yaml
from twdpo.errors import Interrupted, TrainingError, TwdpoError, UsageError
from twdpo.pipeline.train.config import TrainConfig
from twdpo.pipeline.train.progress import TrainProgress
from twdpo.pipeline.train.result import TrainResult

#: Accelerate configurations in this package.
SHIPPED = ("ddp", "fsdp2", "zero3")
_FOLDER = Path(__file__).parent / "accelerate_configs"

#: How long the others may take to end when one has failed: they may be writing.
GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.05
_KINDS = ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP", "DEEPSPEED")


class WorkerBug(Exception):
    """A process of the run failed with an error that is none of the user's; holds its traceback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """What to start: so many processes, with these additions to the environment, on the CPU or on one GPU each.

    unused: what of an accelerate configuration says something that is not gone by.
    """

    processes: int
    environment: Mapping[str, str]
    unused: str | None = None


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_main() -> bool:
    """Whether this process speaks for the others that a launcher started beside it."""
    return not launched() or os.environ.get("RANK", "0") == "0"


def reports(error: TwdpoError) -> bool:
    """Whether this process must report `error`: the main one does, and any that met it alone."""
    if is_main():
        return True
    torch = sys.modules.get("torch")
    met_others = torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()
    # Before processes meet, each reads the same command line and the same files.
    return met_others and not error.together


def needed(config: TrainConfig) -> Workers | None:
    """The processes that `config` asks for, None where this one will do. Raises UsageError."""
    if launched():
        _refuse_another_launcher(config)
        return None
    if config.accelerate_config is None and config.num_processes in (None, 1):
        return None
    name = config.accelerate_config or "ddp"
    file = _FOLDER / f"{name}.yaml" if name in SHIPPED else Path(name)
    settings = _read(name, file)
    kind = str(settings["distributed_type"])
    gpus = _gpus(config.device)
    processes = config.num_processes or settings.get("num_processes") or gpus
    if not processes:
        raise UsageError(f"--accelerate-config {name} needs --num-processes on a machine without GPUs")
    if gpus is not None and processes > gpus:
        raise UsageError(
            f"--num-processes {processes} is more than the GPUs of this machine ({gpus}); "
            f"use --num-processes {gpus} or --device cpu"
        )
    if processes == 1:
        return None
    if kind in ("FSDP", "DEEPSPEED"):
        from twdpo.pipeline.train.adapters import refuse_divided

        refuse_divided(config)
    precision = settings.get("mixed_precision")
    return Workers(
        processes=processes,
        environment=_environment(name, file, processes, gpus is None),
        unused=f"mixed_precision {precision} of {name}" if precision and str(precision).lower() != "no" else None,
    )


def launch(workers: Workers, config: TrainConfig, progress: TrainProgress) -> TrainResult:
    """Train in so many processes; `progress` hears of the first.

    Raises what they raise, TrainingError where one dies, and WorkerBug.
    """
    from twdpo.pipeline.train.worker import COURSE, RESULT, read_result, replay

    if workers.unused:
        progress.note(f"{workers.unused} is not used: --dtype decides")
    with tempfile.TemporaryDirectory(prefix="twdpo-") as name:
        folder = Path(name)
        (folder / COURSE).touch()
        with (folder / COURSE).open(encoding="utf-8") as course, _started(workers, config, folder) as processes:
            codes, interrupted = _watch(processes, lambda: replay(course, progress))
        # The first process writes it when all is saved; how the others end after that does not matter.
        if not (folder / RESULT).exists():
            raise _failure(codes, folder, config, interrupted)
        return read_result(folder / RESULT)


@contextmanager
def _started(workers: Workers, config: TrainConfig, folder: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes; none is left when the block ends."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    from twdpo.pipeline.train.worker import CONFIGURATION, OUTPUT

    (folder / CONFIGURATION).write_text(to_yaml(config), "utf-8")
    # Held here, as torchrun does, so that the port is free for certain.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {
        **os.environ,
        **workers.environment,
        "WORLD_SIZE": str(workers.processes),
        "LOCAL_WORLD_SIZE": str(workers.processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    common.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(workers.processes):
            with (folder / OUTPUT.format(rank=rank)).open("wb") as output:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "twdpo.pipeline.train.worker", str(folder)],
                        env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=None if rank == 0 else output,
                        start_new_session=True,
                    )
                )
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def _watch(processes: list[subprocess.Popen[bytes]], listen: Callable[[], None]) -> tuple[list[int | None], bool]:
    """Until all have ended, or one has failed or the first is done, and the others had time to end too.

    Their exit codes by then (None: still running), and whether Ctrl-C was pressed.
    """
    interrupted, deadline = False, math.inf
    while True:
        try:
            listen()
            codes = [process.poll() for process in processes]
            if None not in codes or time.monotonic() > deadline:
                return codes, interrupted
            if any(codes) or codes[0] is not None:
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
            time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            if interrupted:
                raise Interrupted(
                    "stopped at once; run the same command again to go on from the last checkpoint"
                ) from None
            interrupted = True
            for process in processes:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)


def _failure(codes: list[int | None], folder: Path, config: TrainConfig, interrupted: bool) -> Exception:
    """Why the run failed: what a process says that a user can act on, else how one died, else the first bug."""
    from twdpo.pipeline.train.worker import FAILURE, OUTPUT

    paths = [folder / FAILURE.format(rank=rank) for rank in range(len(codes))]
    written = sorted((path for path in paths if path.exists()), key=lambda path: path.stat().st_mtime_ns)
    failures = [json.loads(path.read_text("utf-8")) for path in written]
    for failure in failures:
        if "error" in failure:
            error: TwdpoError = getattr(errors, failure["error"])(failure["message"])
            return error
    if interrupted:
        return Interrupted("stopped; run the same command again, and what is finished is used")
    # One that dies takes the others along: they fail in what they exchanged with it.
    dead = [rank for rank, code in enumerate(codes) if code is not None and code < 0]
    if failures and not dead:
        return WorkerBug(f"in one of {len(codes)} processes:\n{failures[0]['bug']}")
    rank = dead[0] if dead else next(rank for rank, code in enumerate(codes) if code)
    return TrainingError(
        f"the process of rank {rank} (of {len(codes)}) {_end(codes[rank] or 0, folder / OUTPUT.format(rank=rank))}; "
        f"the others were stopped; {_kept(Path(config.out))}: run the same command again to go on"
    )


def _end(code: int, output: Path) -> str:
    if code >= 0:
        lines = output.read_text("utf-8", "replace").split("\n") if output.exists() else []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        return f"ended with exit code {code} ({last[:200]})"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was ended by {name}" + (" (is memory short?)" if name == "SIGKILL" else "")


def _kept(out: Path) -> str:
    from twdpo.pipeline.train.checkpoint import last_checkpoint

    last = last_checkpoint(out)
    return f"{last} is kept" if last else "no checkpoint was written yet"


def _refuse_another_launcher(config: TrainConfig) -> None:
    processes = int(os.environ["WORLD_SIZE"])
    if config.accelerate_config is not None:
        raise UsageError(
            "--accelerate-config is for runs that twdpo starts itself; this one was started by a launcher: "
            "give the file to that (accelerate launch --config_file)"
        )
    if config.num_processes not in (None, processes):
        raise UsageError(
            f"--num-processes {config.num_processes}, but the launcher started {processes}; leave the option out"
        )


def _gpus(device: str) -> int | None:
    """How many GPUs there are, None where the CPU is to be used. Raises UsageError."""
    from twdpo.pipeline.models import pick_device

    picked = pick_device(device)
    if picked == "mps":
        raise UsageError("several processes cannot share an Apple GPU; leave --num-processes out, or use --device cpu")
    if picked == "cpu":
        return None
    import torch

    return torch.cuda.device_count()


def _read(name: str, file: Path) -> dict[str, Any]:
    """An accelerate configuration. Raises UsageError where it is none, or for what cannot be started from here."""
    import yaml

    where = f"--accelerate-config {name}"
    if not file.is_file():
        raise UsageError(f"{where}: no such file, and none of {', '.join(SHIPPED)}")
    try:
        settings = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{where} cannot be read ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(settings, dict) or "distributed_type" not in settings:
        raise UsageError(f"{where} is no accelerate configuration; make one with accelerate config")
    if settings["distributed_type"] is False:  # an unquoted NO
        settings["distributed_type"] = "NO"
    if settings["distributed_type"] not in _KINDS:
        raise UsageError(f"{where}: distributed_type {settings['distributed_type']} is not supported")
    if (settings.get("num_machines") or 1) > 1:
        raise UsageError(
            f"{where} is for {settings['num_machines']} machines; on each of them run "
            f"accelerate launch --config_file {name} -m twdpo train … instead"
        )
    processes = settings.get("num_processes")
    if processes is not None and (not isinstance(processes, int) or processes < 1):
        raise UsageError(f"{where}: num_processes must be a whole number above 0, not {processes!r}")
    return settings


def _environment(name: str, file: Path, processes: int, cpu: bool) -> dict[str, str]:
    """What `accelerate launch` would add to the environment of the processes. Raises UsageError."""
    from accelerate.commands import launch as accelerate_launch  # type: ignore[import-untyped,unused-ignore]
    from accelerate.utils.launch import (  # type: ignore[import-untyped,unused-ignore]
        prepare_deepspeed_cmd_env,
        prepare_multi_gpu_env,
    )

    arguments = [
        "--config_file",
        str(file),
        "--num_processes",
        str(processes),
        "--main_process_port",
        "0",
        "-m",
        "twdpo",
    ]
    try:
        parsed = accelerate_launch.launch_command_parser().parse_args(arguments)
        parsed, defaults, _ = accelerate_launch._validate_launch_command(parsed)
        if parsed.use_deepspeed:
            parsed.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
            _, environment = prepare_deepspeed_cmd_env(parsed)
        else:
            environment = prepare_multi_gpu_env(parsed)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as error:
        raise UsageError(f"--accelerate-config {name}: {' '.join(str(error).split())[:200]}") from None
    added = {key: value for key, value in environment.items() if os.environ.get(key) != value}
    added.pop("PYTHONPATH", None)
    if cpu:
        threads = max(1, (os.cpu_count() or 1) // processes)
        added |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    return added
