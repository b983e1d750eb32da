"""Ray, started or joined quietly, and what of its cluster a run takes. Not for: what runs there (`ray.py`)."""

from __future__ import annotations

import importlib
import importlib.util
import io
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

from twdpo.errors import UsageError, first_line
from twdpo.pipeline.annotate.config import AnnotateConfig
from twdpo.pipeline.annotate.sources import runs_model

#: Nothing phones home; Ray leaves the devices alone that it was not asked for, and its core keeps to its log files.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """How many workers a run has, and how many CPUs and GPUs Ray is to set aside for each, and for the reader."""

    workers: int
    cpus: int
    gpus: int
    reader_cpus: float


def import_ray() -> Any:
    """The package ray, its data part included. Raises UsageError where it is missing."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError("--runner ray needs the package ray; install it with: pip install 'twdpo[ray]'")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("ray.data")
        return importlib.import_module("ray")


@contextmanager
def session(ray: Any) -> Iterator[None]:
    """A cluster to run on: the one this process is in already, else the one that Ray finds, else one of its own.

    Raises UsageError where there can be none.
    """
    begun = not ray.is_initialized()
    if begun:
        on_terminate = signal.getsignal(signal.SIGTERM)
        with warnings.catch_warnings(), _core_is_silent():
            warnings.simplefilter("ignore")
            try:
                ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                raise UsageError(
                    f"no Ray cluster can be joined or started ({first_line(error)}); look at RAY_ADDRESS and ray status"
                ) from None
        if threading.current_thread() is threading.main_thread():
            # Ray would end the process; a run ends as on Ctrl-C.
            signal.signal(signal.SIGTERM, on_terminate)
    try:
        with warnings.catch_warnings():
            # Ray Data warns of its own deprecated parts, from whatever of it is used.
            warnings.simplefilter("ignore")
            with _quiet(ray):
                yield
    finally:
        if begun:
            # A thread of Ray's tells of tasks that end with it, on whatever stands for the terminal.
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                ray.shutdown()


@contextmanager
def _core_is_silent() -> Iterator[None]:
    """Ray's core writes to descriptor 2 that it was told to keep quiet. What goes wrong is raised."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Ray Data without bars and remarks of its own, and one block of pairs a block of its."""
    context = ray.data.DataContext.get_current()
    wanted = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        # Bytes. Whatever is handed over is a block by itself, of which each is a task.
        "target_max_block_size": 1,
    }
    before = {name: getattr(context, name) for name in wanted if hasattr(context, name)}
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        for name in before:
            setattr(context, name, wanted[name])
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        logger.setLevel(level)


def fleet_of(ray: Any, config: AnnotateConfig) -> Fleet:
    """The workers of a run: one a GPU where there are any, else as many as asked for. Raises UsageError."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = int(sum(node.get("CPU", 0) for node in nodes))
    gpus = 0 if config.device == "cpu" or not runs_model(config) else int(sum(node.get("GPU", 0) for node in nodes))
    if ":" in config.device:
        raise UsageError(f"--device {config.device} names one device; with --runner ray every worker has its own")
    if gpus:
        # A judge that is spread takes what a machine has.
        spread = config.device_map is not None
        workers = config.workers or (sum(node.get("GPU", 0) > 0 for node in nodes) if spread else gpus)
        if workers > gpus:
            raise UsageError(f"--workers {workers}: each wants a GPU, and the Ray cluster has {gpus}")
        return Fleet(workers=workers, cpus=1, gpus=gpus // workers if spread else 1, reader_cpus=0.5)
    workers = config.workers or 1
    if workers > cpus:
        raise UsageError(f"--workers {workers}: each wants a CPU, and the Ray cluster has {cpus}")
    # Ray lets a worker's torch use as many threads as it has CPUs.
    each = cpus // workers if len(nodes) == 1 else 1
    return Fleet(workers=workers, cpus=each, gpus=0, reader_cpus=0)
