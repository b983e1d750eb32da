"""Stage two from end to end: load, join, reference log-probs, train, evaluate, save.

Reads from top to bottom: `run` sets up, `_Loop` trains. What is trained is float32; with bfloat16 the forward passes
compute in it and the trained parameters stay as they are, since steps of 1e-6 would vanish in a bfloat16 parameter.
Dropout is off. Not for: the objective (`loss.py`), log-probs (`logps.py`) or the order of pairs (`batches.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch
from accelerate import Accelerator  # type: ignore[import-untyped,unused-ignore]
from accelerate.tracking import GeneralTracker  # type: ignore[import-untyped,unused-ignore]

from twdpo.errors import Interrupted, TrainingError, UsageError
from twdpo.pipeline.models import LoadedModel, context_length, load_model, pick_device, resolve_dtype
from twdpo.pipeline.train.adapters import Policy, add_adapters, refuse_early
from twdpo.pipeline.train.batches import TOKEN_BUDGET, micro_batches
from twdpo.pipeline.train.card import RunFacts
from twdpo.pipeline.train.checkpoint import (
    Position,
    last_checkpoint,
    load_checkpoint,
    read_position,
    refuse_changes,
    save_checkpoint,
)
from twdpo.pipeline.train.config import TrainConfig
from twdpo.pipeline.train.ctrl_c import CtrlC
from twdpo.pipeline.train.data import Example
from twdpo.pipeline.train.feed import Feed, open_feed
from twdpo.pipeline.train.finish import finish
from twdpo.pipeline.train.layouts import Logps, collate
from twdpo.pipeline.train.logps import TokenLogps, checkpoint_activations, disable_dropout
from twdpo.pipeline.train.loss import PairLosses, SideLogps, twdpo_loss
from twdpo.pipeline.train.metrics import NAMES, MetricsFile, Record, Window, means, metric_sums
from twdpo.pipeline.train.optim import learning_rate, make_optimizer
from twdpo.pipeline.train.output import METRICS, claim, save_configuration
from twdpo.pipeline.train.processes import Accelerated
from twdpo.pipeline.train.progress import TrainProgress
from twdpo.pipeline.train.publish import open_repository
from twdpo.pipeline.train.reference import open_store, reference_logps
from twdpo.pipeline.train.render import Renderer
from twdpo.pipeline.train.result import Clock, TrainResult
from twdpo.pipeline.train.retention import Best, best_before, drop_old
from twdpo.pipeline.train.trackers import Trackers, parse_trackers
from twdpo.weights_cache import Manifest, ReferenceStore
from twdpo.weights_cache.transforms import parse_attn_source


def run(config: TrainConfig, progress: TrainProgress, more_trackers: Sequence[GeneralTracker] = ()) -> TrainResult:
    """Train as `config` says. Raises what its parts raise, TrainingError, and Interrupted on Ctrl-C."""
    clock = Clock()
    manifest = Manifest.load(Path(config.weights))
    config = replace(
        config,
        model=config.model or manifest.defaults.get("policy_model") or manifest.recipe.judge_model,
        dtype=resolve_dtype(config.dtype, pick_device(config.device)),
    )
    if not config.model:
        raise UsageError(f"--model is missing: {config.weights} names no judge that could be trained instead")
    refuse_early(config)
    layers = parse_attn_source(config.attn_source, manifest.recipe.layers)
    trackers = parse_trackers(config.tracker)
    accelerator = Accelerator(cpu=config.device == "cpu", mixed_precision="no")
    checkpoint = claim(config) if accelerator.is_main_process else None
    if config.push and accelerator.is_main_process:
        open_repository(config.push, private=config.private)
    accelerator.wait_for_everyone()
    checkpoint = checkpoint or (last_checkpoint(Path(config.out)) if config.resume else None)

    policy = _load_policy(config, str(accelerator.device))
    loaded = policy.loaded
    autocast = torch.bfloat16 if config.dtype == "bfloat16" else None
    model = TokenLogps(loaded.model, autocast=autocast, layout=config.layout)
    renderer = Renderer(loaded.tokenizer, max_length=config.max_length)
    with open_feed(config, layers, renderer, Accelerated(accelerator), progress) as feed:
        clock.lap("pairs")
        store = _reference(config, accelerator, loaded, model, renderer, feed, progress)
        clock.lap("reference")
        tracking = Trackers(
            trackers, out=Path(config.out), run_name=config.name, note=progress.note, more=more_trackers
        )
        loop = _Loop(config, accelerator, model, feed, store, progress, tracking)
        before, after = loop.run(checkpoint)
        clock.lap("training")
    best, pushed = loop.best(), None
    if accelerator.is_main_process:
        facts = RunFacts(
            config=config,
            manifest=manifest,
            model_revision=loaded.revision,
            pairs=feed.counts.pairs,
            heldout=feed.counts.heldout,
            evaluations=loop.evaluations,
            last=loop.last_record,
            steps=loop.plan.steps,
            best=best,
            processes=accelerator.num_processes,
        )
        pushed = finish(facts, policy, progress)
    accelerator.wait_for_everyone()
    clock.lap("saving")
    return TrainResult(
        out=Path(config.out),
        model=str(config.model),
        steps=loop.plan.steps,
        resumed_at=loop.resumed_at,
        best_step=best.step if best else None,
        pushed=pushed,
        pairs=feed.counts.pairs,
        heldout=feed.counts.heldout,
        truncated=feed.counts.truncated,
        uniform=feed.counts.uniform,
        skipped=dict(feed.counts.skipped),
        before=before,
        after=after,
        seconds=clock.laps,
    )


def _load_policy(config: TrainConfig, device: str) -> Policy:
    loaded = load_model(
        str(config.model),
        # What is frozen takes no steps, and may be held as it is computed with.
        dtype="float32" if config.lora_rank is None else config.dtype,
        device=device,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        load_in_4bit=config.load_in_4bit,
    )
    context = context_length(loaded.model.config)
    if context is not None and context < config.max_length:
        raise UsageError(
            f"--max-length {config.max_length} is more than the policy's context of {context} tokens; "
            f"use --max-length {context}"
        )
    policy = Policy(loaded=loaded) if config.lora_rank is None else add_adapters(config, loaded)
    disable_dropout(loaded.model)
    if config.gradient_checkpointing:
        checkpoint_activations(loaded.model)
    return policy


def _reference(
    config: TrainConfig,
    accelerator: Accelerator,
    loaded: LoadedModel,
    model: TokenLogps,
    renderer: Renderer,
    feed: Feed,
    progress: TrainProgress,
) -> ReferenceStore:
    """The store of reference log-probs with those of all pairs; each process computes a part of what it lacks."""
    store = open_store(config.reference_folder, loaded, renderer, config.dtype)
    budget = _token_budget(accelerator)
    reference_logps(feed.lacking(store), model, store, progress, pairs=config.micro_batch_size, tokens=budget)
    accelerator.wait_for_everyone()
    return open_store(config.reference_folder, loaded, renderer, config.dtype)


class _Stop(Exception):
    """Ctrl-C was pressed; the step in progress is dropped."""


class _Loop:
    """The training loop over one feed of pairs."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        model: TokenLogps,
        feed: Feed,
        store: ReferenceStore,
        progress: TrainProgress,
        trackers: Trackers,
    ) -> None:
        self._config, self._accelerator, self._progress = config, accelerator, progress
        self._feed, self._store, self.plan = feed, store, feed.plan
        optimizer = make_optimizer(config.optimizer, model, config.weight_decay)
        self._policy, self._layout = model.model, model.layout
        self._model, self._optimizer = accelerator.prepare(model, optimizer)
        self._metrics, self._trackers = MetricsFile(Path(config.out) / METRICS), trackers
        self._ctrl_c = CtrlC(lambda: progress.note("stopping: saving a checkpoint (Ctrl-C again to stop at once)"))
        self._step = 0
        self._window = Window.empty()
        self.evaluations: dict[int, Record] = {}
        self.resumed_at: int | None = None
        self.last_record: Record = {}

    def run(self, checkpoint: Path | None) -> tuple[Record, Record]:
        """Train to the end; the evaluations before and after, empty without held-out pairs."""
        with self._ctrl_c, self._trackers:
            self._begin(checkpoint)
            self._progress.start("training", self.plan.steps)
            self._progress.advance("training", self._step)
            try:
                while True:
                    if self._evaluation_is_due():
                        self._evaluate()
                    if self._step == self.plan.steps:
                        break
                    self._train_step()
                    if self._step % self._config.log_every == 0 or self._step == self.plan.steps:
                        self._log()
                    if self._config.save_every and self._step % self._config.save_every == 0:
                        self._save()
            except _Stop:
                self._interrupt()
        self._progress.finish("training")
        return self.evaluations.get(0, {}), self.evaluations.get(self.plan.steps, {})

    def best(self) -> Best | None:
        """The checkpoint with the best held-out loss; None where that is the last model."""
        return best_before(Path(self._config.out), self.plan.steps, self.evaluations)

    def _begin(self, checkpoint: Path | None) -> None:
        """Start at step 0, or where a checkpoint of this very run stands."""
        position = None if checkpoint is None else read_position(checkpoint)
        if checkpoint is not None and position is not None:
            refuse_changes(checkpoint, position, asdict(self._config), self._feed.digest)
            load_checkpoint(checkpoint, self._policy, self._optimizer)
            self._step = self.resumed_at = position.step
            self._window = Window.from_state(position.window)
        self._feed.begin(self._store, self._step, position.feed if position else None)
        if self._accelerator.is_main_process:
            save_configuration(self._config)
            settings = asdict(self._config) | {"pairs": self.plan.pairs, "heldout": self._feed.heldout.count}
            self._trackers.start(settings, None if checkpoint is None else self._metrics.read())
            for record in self._metrics.begin(self._step):
                if "eval_loss" in record:
                    self.evaluations[int(record["step"])] = record
                else:
                    self.last_record = record
        if checkpoint is not None:
            self._progress.note(f"going on after step {self._step} of {self.plan.steps}")

    def _train_step(self) -> None:
        """One optimizer step: the mean loss over its pairs, however they fall into micro-batches and processes."""
        started = time.perf_counter()
        accelerator, config = self._accelerator, self._config
        portion = self._feed.step(self._step)
        if portion.count == 0:  # of a stream, where no row of the step can be used
            self._count_step()
            return
        mine = portion.mine
        # Every process must take part in the gradients' exchange, also one without a pair of its own.
        budget = _token_budget(accelerator)
        groups = list(micro_batches(mine or [portion.spare], config.micro_batch_size, budget, self._layout))
        # The exchange averages over processes; the loss is the mean over pairs.
        scale = accelerator.num_processes / portion.count if mine else 0.0
        sums = torch.zeros(len(NAMES), device=accelerator.device)
        for number, group in enumerate(groups):
            last = number == len(groups) - 1
            with nullcontext() if last else accelerator.no_sync(self._model):
                pairs = self._losses(group, portion.reference)
                accelerator.backward(pairs.losses.sum() * scale)
            sums += metric_sums(pairs) if mine else 0.0
            self._refuse_nan(pairs.losses, group)
            self._check_stop(last)
        sums = accelerator.reduce(sums, "sum")
        norm = float(accelerator.clip_grad_norm_(self._model.parameters(), config.max_grad_norm))
        if not math.isfinite(norm):
            raise self._failure(f"the gradient of step {self._step + 1} is not finite", mine)
        rate = learning_rate(config.learning_rate, self._step, self.plan.steps, config.warmup_ratio, config.scheduler)
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._window.add(sums, portion.count, portion.tokens, time.perf_counter() - started, rate, norm)
        self._count_step()

    def _count_step(self) -> None:
        self._step += 1
        self._progress.advance("training")

    def _losses(self, group: list[Example], reference: Mapping[str, Logps]) -> PairLosses:
        """Policy log-probs of a micro-batch, and its losses."""
        batch = collate(group, reference, self._accelerator.device, self._layout)
        policy = batch.spread(self._model(**batch.inputs))
        sides = zip(policy.chunk(2), batch.reference.chunk(2), batch.weights.chunk(2), strict=True)
        chosen, rejected = (SideLogps(policy=p, reference=r, weights=w) for p, r, w in sides)
        return twdpo_loss(chosen, rejected, beta=self._config.beta, label_smoothing=self._config.label_smoothing)

    def _evaluation_is_due(self) -> bool:
        every = self._config.eval_every
        regular = self._step in (0, self.plan.steps) or (every > 0 and self._step % every == 0)
        return bool(self._feed.heldout.count) and regular and self._step not in self.evaluations

    @torch.no_grad()
    def _evaluate(self) -> None:
        """The same metrics over the held-out pairs."""
        started = time.perf_counter()
        accelerator = self._accelerator
        heldout = self._feed.heldout
        self._progress.start("evaluation", len(heldout.mine))
        sums = torch.zeros(len(NAMES), device=accelerator.device)
        budget = _token_budget(accelerator)
        for group in micro_batches(heldout.mine, self._config.micro_batch_size, budget, self._layout):
            sums += metric_sums(self._losses(group, heldout.reference))
            self._progress.advance("evaluation", len(group))
            self._check_stop(False)
        record = self._stamp() | means(accelerator.reduce(sums, "sum"), heldout.count, "eval_")
        record["eval_seconds"] = time.perf_counter() - started
        self.evaluations[self._step] = record
        self._progress.finish("evaluation")
        self._write(record)

    def _log(self) -> None:
        """Write the means since the last line, if there was any pair."""
        if not self._window.pairs:
            return
        self.last_record = self._stamp() | self._window.record()
        self._window = Window.empty()
        self._write(self.last_record)

    def _write(self, record: Record) -> None:
        if self._accelerator.is_main_process:
            self._metrics.add(record)
            self._trackers.log(record)
            self._progress.record(record)

    def _stamp(self) -> Record:
        return {"step": self._step, "epoch": round(self.plan.epoch_after(self._step), 4)}

    def _save(self) -> None:
        if self._accelerator.is_main_process:
            position = Position(
                step=self._step,
                window=self._window.state(),
                config=asdict(self._config),
                data=self._feed.digest,
                feed=self._feed.state(self._step),
            )
            out = Path(self._config.out)
            save_checkpoint(out, self._policy, self._optimizer, position)
            drop_old(out, self._config.keep_checkpoints, self.evaluations)
        self._accelerator.wait_for_everyone()

    def _refuse_nan(self, losses: torch.Tensor, group: list[Example]) -> None:
        finite = torch.isfinite(losses.detach())
        if not bool(finite.all()):
            bad = [example for example, good in zip(group, finite.tolist(), strict=True) if not good]
            raise self._failure(f"the loss of step {self._step + 1} is not finite", bad)

    def _failure(self, what: str, examples: list[Example]) -> TrainingError:
        rows = ", ".join(f"row {e.row} ({e.example_hash})" for e in examples[:3])
        more = f" and {len(examples) - 3} more" if len(examples) > 3 else ""
        last = last_checkpoint(Path(self._config.out))
        kept = f"{last} is kept" if last else "no checkpoint was written yet"
        return TrainingError(f"{what} with {rows}{more}; {kept}; try a smaller --learning-rate or --dtype float32")

    def _check_stop(self, last: bool) -> None:
        """Leave the step where Ctrl-C was pressed; several processes do so together, before the step counts."""
        if self._accelerator.num_processes == 1:
            if self._ctrl_c.pressed:
                raise _Stop
        elif last:
            asked = torch.tensor(float(self._ctrl_c.pressed), device=self._accelerator.device)
            if float(self._accelerator.reduce(asked, "sum")):
                raise _Stop

    def _interrupt(self) -> None:
        """Keep what the finished steps gave."""
        self._optimizer.zero_grad(set_to_none=True)
        if self._step:
            self._save()
        where = f"after step {self._step} of {self.plan.steps}; a checkpoint is saved" if self._step else "at the start"
        raise Interrupted(f"stopped {where}; run the same command again to go on")


def _token_budget(accelerator: Accelerator) -> int:
    return TOKEN_BUDGET["cpu" if accelerator.device.type == "cpu" else "accelerator"]
