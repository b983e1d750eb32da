"""One run of a comparison: an arm trained at a beta and a seed, and measured on the held-out pairs.

A finished run is a file, `run.json`, which holds what was measured of every pair: a comparison that was stopped goes on
with the next. Not for: what follows from the runs (`frontier.py`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from twdpo.config import to_yaml
from twdpo.errors import CacheCorrupt, ModelError
from twdpo.evaluate.compare.config import CompareConfig
from twdpo.evaluate.compare.prepared import Prepared
from twdpo.evaluate.compare.rewarding import Rewarded, Rewarding
from twdpo.evaluate.figures import PairFigures
from twdpo.evaluate.heldout import ReferenceStates, measure
from twdpo.pipeline.model_files import ADAPTER_CONFIGURATION, content_identity
from twdpo.pipeline.models import LoadedModel, load_model, pick_device, resolve_dtype
from twdpo.pipeline.train import TrainConfig, TrainProgress, train
from twdpo.pipeline.train.config import FREE_ON_RESUME
from twdpo.pipeline.train.logps import TokenLogps
from twdpo.pipeline.train.metrics import MetricsFile
from twdpo.pipeline.train.output import METRICS
from twdpo.weights_cache.durable import make_folder, write_file

#: How runs are measured: of what was measured otherwise, nothing is taken over.
MEASURED = "float32"
#: Settings that say where something lies whose content is in the fingerprint.
_KNOWN_BY_CONTENT = frozenset({"weights", "dataset", "split", "model", "revision"})
#: Fields of a result that a file holds as they are.
_STORED = ("arm", "beta", "trained_beta", "seed", "fingerprint", "steps", "seconds")
FOLDER, RESULT, ASKED, REFERENCE = "runs", "run.json", "asked.txt", "reference_cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run that a comparison asks for; beta: as the comparison names it, before the arm's scale."""

    arm: str
    beta: float
    seed: int
    folder: Path
    training: TrainConfig
    fingerprint: str

    @property
    def asked(self) -> str:
        """What a model that is not finished was begun with: training goes on only with all of it, names included."""
        return f"{self.fingerprint}\n{to_yaml(self.training)}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunResult:
    """What a run gave; figures have one entry a held-out pair.

    trained_beta: after the arm's scale. seconds: of each part. rewarded: the policy's own answers to the prompts, None
    without a reward model.
    """

    arm: str
    beta: float
    trained_beta: float
    seed: int
    fingerprint: str
    steps: int
    seconds: Mapping[str, float]
    figures: PairFigures
    rewarded: Rewarded | None = None

    def save(self, path: Path) -> None:
        """Write it durably; raises StorageError."""
        content = {name: getattr(self, name) for name in _STORED} | {"pairs": self.figures.plain()}
        content["rewarded"] = None if self.rewarded is None else asdict(self.rewarded)
        write_file(path, json.dumps(content).encode())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote. Raises CacheCorrupt."""
        try:
            content = json.loads(path.read_text("utf-8"))
            rewarded = content.get("rewarded")
            return cls(
                figures=PairFigures.from_plain(content["pairs"]),
                rewarded=None if rewarded is None else Rewarded(**rewarded),
                **{name: content[name] for name in _STORED},
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CacheCorrupt(f"{path} is damaged; delete it and run the same command again") from error


def plan(config: CompareConfig, arms: list[Prepared], scale: Mapping[str, float]) -> list[Run]:
    """All runs: one seed after another, so that what is finished early is a whole comparison of fewer seeds."""
    revision = config.train.get("revision")
    models = {"model": content_identity(config.model, revision) or [config.model, revision]}
    if config.reward_model is not None:
        models["reward_model"] = content_identity(config.reward_model) or config.reward_model
    runs = []
    for seed in config.seeds:
        # Neighbours are runs of one place in the arms' own lists of betas.
        for place in range(max(len(config.betas_of(arm.arm)) for arm in arms)):
            for arm in arms:
                betas = config.betas_of(arm.arm)
                if place < len(betas):
                    runs.append(_planned(config, arm, betas[place], scale[arm.arm.name], seed, models))
    return runs


def _planned(
    config: CompareConfig, arm: Prepared, beta: float, scale: float, seed: int, models: Mapping[str, Any]
) -> Run:
    """One run; models: what identifies those that take part."""
    name = arm.arm.name
    folder = Path(config.out) / FOLDER / name / f"beta-{beta:g}" / f"seed-{seed}"
    training = config.train_config(
        arm.arm, weights=str(arm.weights), out=str(folder / "model"), beta=beta * scale, seed=seed
    )
    deciding = dict(_deciding(training))
    deciding["dtype"] = resolve_dtype(training.dtype, pick_device(training.device))
    if config.reward_model is not None:
        deciding["reward"] = [config.max_new_tokens, config.temperature]
    content = json.dumps([MEASURED, dict(models), deciding, arm.digest], sort_keys=True)
    fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]
    return Run(arm=name, beta=beta, seed=seed, folder=folder, training=training, fingerprint=fingerprint)


def finished(run: Run) -> RunResult | None:
    """The result of a run that ended before, if it was of the same settings, pairs and weights."""
    path = run.folder / RESULT
    if not path.is_file():
        return None
    found = RunResult.load(path)
    return found if found.fingerprint == run.fingerprint else None


def execute(
    run: Run,
    arm: Prepared,
    reference: ReferenceStates,
    config: CompareConfig,
    progress: TrainProgress,
    rewarding: Rewarding | None = None,
) -> RunResult:
    """Train, measure and write down one run; the model is deleted unless it is to be kept.

    A model that was trained to its end before, and not measured, is not trained again. Raises what training raises.
    """
    model = Path(run.training.out)
    seconds: dict[str, float] = {}
    if not is_trained(run):
        seconds |= train(replace(run.training, reference_cache=str(Path(config.out) / REFERENCE)), progress).seconds
    started = time.perf_counter()
    loaded, policy = open_policy(str(model), run.training)
    figures = measure(policy, arm.heldout, reference)
    if figures.broken:
        raise ModelError(f"log-probs of {figures.broken} held-out pairs are not numbers")
    rewarded = None if rewarding is None else rewarding.of(loaded)
    del loaded, policy
    seconds["measuring"] = time.perf_counter() - started
    done = RunResult(
        arm=run.arm,
        beta=run.beta,
        trained_beta=float(run.training.settled().beta or 0.0),
        seed=run.seed,
        fingerprint=run.fingerprint,
        steps=int(max(record["step"] for record in MetricsFile(model / METRICS).read())),
        seconds=seconds,
        figures=figures,
        rewarded=rewarded,
    )
    done.save(run.folder / RESULT)
    if not config.keep_models:
        shutil.rmtree(model, ignore_errors=True)
    return done


def is_trained(run: Run) -> bool:
    """Whether the run's model is there, finished; what is there of other settings is deleted."""
    mark, model = run.folder / ASKED, Path(run.training.out)
    make_folder(run.folder)
    asked = mark.read_text("utf-8") if mark.is_file() else ""
    if asked.partition("\n")[0] == run.fingerprint:
        if any((model / name).is_file() for name in ("config.json", ADAPTER_CONFIGURATION)):
            return True
        if asked == run.asked:
            return False
    shutil.rmtree(model, ignore_errors=True)
    write_file(mark, run.asked.encode())
    return False


def open_policy(model: str, training: TrainConfig) -> tuple[LoadedModel, TokenLogps]:
    """A model, and the same as a function to log-probs.

    In float32, whatever it was trained in: bfloat16's rounding adds to figures as small as those of short runs.
    """
    loaded = load_model(
        model,
        dtype=MEASURED,
        device=training.device,
        trust_remote_code=training.trust_remote_code,
        revision=training.revision if model == training.model else None,
    )
    return loaded, TokenLogps(loaded.model, layout=training.layout)


def _deciding(training: TrainConfig) -> Iterator[tuple[str, Any]]:
    """The settings that decide a run's numbers. Defaults are left out: new ones change none."""
    for field in fields(training):
        value = getattr(training, field.name)
        if field.name not in FREE_ON_RESUME | _KNOWN_BY_CONTENT and value != field.default:
            yield field.name, value
