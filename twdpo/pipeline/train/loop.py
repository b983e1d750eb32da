"""Stage two from end to end: load, join, reference log-probs, train, evaluate, save.

Reads from top to bottom: `run` sets up, `_Loop` trains. What is trained is float32; with bfloat16 the forward passes
compute in it and the trained parameters stay as they are, since steps of 1e-6 would vanish in a bfloat16 parameter.
Dropout is off. Not for: the objective (`loss.py`), log-probs (`logps.py`) or the order of pairs (`batches.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from accelerate.tracking import GeneralTracker  # type: ignore[import-untyped,unused-ignore]

from twdpo.errors import Interrupted, UsageError
from twdpo.pipeline.models import context_length, load_model, pick_device, resolve_dtype
from twdpo.pipeline.train.adapters import Policy, add_adapters, refuse_early
from twdpo.pipeline.train.batches import micro_batches
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
from twdpo.pipeline.train.failures import not_finite, unlearnable
from twdpo.pipeline.train.feed import Feed, open_feed
from twdpo.pipeline.train.finish import finish
from twdpo.pipeline.train.layouts import Logps, collate
from twdpo.pipeline.train.logps import TokenLogps, disable_dropout
from twdpo.pipeline.train.loss import PairLosses, SideLogps
from twdpo.pipeline.train.losses import loss_of
from twdpo.pipeline.train.metrics import NAMES, MetricsFile, Record, Window, means, metric_sums
from twdpo.pipeline.train.objectives import unusual
from twdpo.pipeline.train.optim import learning_rate, make_optimizer
from twdpo.pipeline.train.output import METRICS, claim, save_configuration
from twdpo.pipeline.train.processes import together
from twdpo.pipeline.train.progress import TrainProgress
from twdpo.pipeline.train.publish import open_repository
from twdpo.pipeline.train.ranks import Ranks
from twdpo.pipeline.train.reference import Reference, prepare_reference
from twdpo.pipeline.train.render import Renderer
from twdpo.pipeline.train.result import Clock, TrainResult
from twdpo.pipeline.train.retention import Best, best_before, drop_old
from twdpo.pipeline.train.sharding import plain
from twdpo.pipeline.train.trackers import Trackers, parse_trackers
from twdpo.weights_cache import Manifest
from twdpo.weights_cache.transforms import parse_attn_source


def run(config: TrainConfig, progress: TrainProgress, more_trackers: Sequence[GeneralTracker] = ()) -> TrainResult:
    """Train as `config` says. Raises what its parts raise, TrainingError, and Interrupted on Ctrl-C."""
    clock = Clock()
    ranks = Ranks.join(config.device)
    with ranks.accord():
        manifest = Manifest.load(Path(config.weights))
        config = replace(
            config.settled(),
            model=config.model or manifest.defaults.get("policy_model") or manifest.recipe.judge_model,
            dtype=resolve_dtype(config.dtype, pick_device(config.device)),
        )
        if not config.model:
            raise UsageError(f"--model is missing: {config.weights} names no judge that could be trained instead")
        refuse_early(config, divided=ranks.sharding is not None)
        if ranks.main and (warning := unusual(config.loss, float(config.beta or 0))):
            progress.note(warning)
        layers = parse_attn_source(config.attn_source, manifest.recipe.layers)
        trackers = parse_trackers(config.tracker)
        checkpoint = claim(config) if ranks.main else None
        if config.push and ranks.main:
            open_repository(config.push, private=config.private)
    checkpoint = checkpoint or (last_checkpoint(Path(config.out)) if config.resume else None)

    with ranks.accord():
        policy = _load_policy(config, ranks.load_on)
        autocast = torch.bfloat16 if config.dtype == "bfloat16" else None
        model = TokenLogps(policy.loaded.model, autocast=autocast, layout=config.layout)
        model.recompute_above(
            0 if config.gradient_checkpointing else config.activation_tokens or ranks.activation_tokens
        )
        renderer = Renderer(policy.loaded.tokenizer, max_length=config.max_length)
    with open_feed(config, layers, renderer, ranks, progress) as feed:
        clock.lap("pairs")
        ranks.shard(model)
        store = prepare_reference(config, ranks, policy.loaded, model, renderer, feed, progress)
        clock.lap("reference")
        tracking = Trackers(
            trackers, out=Path(config.out), run_name=config.name, note=progress.note, more=more_trackers
        )
        loop = _Loop(config, ranks, model, feed, store, progress, tracking)
        before, after = loop.run(checkpoint)
        clock.lap("training")
    best, pushed = loop.best(), None
    whole = ranks.gather_parameters(policy.loaded.model)
    ranks.wait()
    # The others are done: sending a model may take longer than they would wait.
    if ranks.main:
        facts = RunFacts(
            config=config,
            manifest=manifest,
            model_revision=policy.loaded.revision,
            pairs=feed.counts.pairs,
            heldout=feed.counts.heldout,
            evaluations=loop.evaluations,
            last=loop.last_record,
            steps=loop.plan.steps,
            best=best,
            processes=ranks.count,
        )
        pushed = finish(facts, policy, progress, whole)
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
        loss=config.loss,
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
    return policy


class _Stop(Exception):
    """Ctrl-C was pressed; the step in progress is dropped."""


class _Loop:
    """The training loop over one feed of pairs."""

    def __init__(
        self,
        config: TrainConfig,
        ranks: Ranks,
        model: TokenLogps,
        feed: Feed,
        store: Reference,
        progress: TrainProgress,
        trackers: Trackers,
    ) -> None:
        self._config, self._ranks, self._progress = config, ranks, progress
        self._device = ranks.accelerator.device
        self._feed, self._store, self.plan = feed, store, feed.plan
        self._loss = loss_of(config)
        optimizer = make_optimizer(config.optimizer, model, config.weight_decay)
        self._policy, self._layout = model.model, model.layout
        self._bare = model
        self._model, self._optimizer = ranks.prepare(model, optimizer)
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
        position = None
        with self._ranks.accord():
            if checkpoint is not None:
                position = read_position(checkpoint)
                refuse_changes(checkpoint, position, asdict(self._config), self._feed.digest)
        if checkpoint is not None and position is not None:
            load_checkpoint(checkpoint, self._policy, self._optimizer)
            self._step = self.resumed_at = position.step
            self._window = Window.from_state(position.window)
        self._feed.begin(self._store, self._step, position.feed if position else None)
        with self._ranks.accord():
            if self._ranks.main:
                save_configuration(self._config)
                settings = asdict(self._config) | {"pairs": self.plan.pairs, "heldout": self._feed.heldout.count}
                self._trackers.start(settings, None if checkpoint is None else self._metrics.read())
                self._metrics.begin(self._step)
        for record in self._metrics.read():
            if "eval_loss" in record:
                self.evaluations[int(record["step"])] = record
            else:
                self.last_record = record
        if checkpoint is not None:
            self._progress.note(f"going on after step {self._step} of {self.plan.steps}")

    def _train_step(self) -> None:
        """One optimizer step: the mean loss over its pairs, however they fall into micro-batches and processes."""
        started = time.perf_counter()
        ranks, config = self._ranks, self._config
        portion = self._feed.step(self._step)
        if portion.count == 0:  # of a stream, where no row of the step can be used
            self._count_step()
            return
        # Every process must take part in the gradients' exchange, also one without a pair of its own.
        evened = list(ranks.evened(self._groups(portion.mine), portion.spare, least=1))
        # The exchange averages over processes; the loss is the mean over pairs.
        scale = ranks.count / portion.count
        sums, bad = torch.zeros(len(NAMES), device=self._device), list[Example]()
        for number, (group, counts) in enumerate(evened):
            with ranks.gradients(self._model, last=number == len(evened) - 1):
                pairs = self._losses(group, portion.reference)
                ranks.accelerator.backward(pairs.losses.sum() * (scale if counts else 0.0))
            if counts:
                sums += metric_sums(pairs)
                bad += not_finite(pairs.losses, group)
            self._check_stop()
        sums = self._agree(sums, bad)
        norm = float(plain(ranks.accelerator.clip_grad_norm_(self._model.parameters(), config.max_grad_norm)))
        if not math.isfinite(norm):
            what = f"the gradient of step {self._step + 1} is not finite"
            raise together(unlearnable(what, ranks.collect(portion.mine), config.out))
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

    def _groups(self, examples: list[Example]) -> Iterator[list[Example]]:
        """What fits into a forward pass."""
        return micro_batches(examples, self._config.micro_batch_size, self._ranks.token_budget, self._layout)

    def _losses(self, group: list[Example], reference: Mapping[str, Logps]) -> PairLosses:
        """Policy log-probs of a micro-batch, and its losses."""
        batch = collate(group, reference, self._device, self._layout)
        # DDP exchanges buffers on the way forward; in an evaluation a process may have no pass to take part with.
        model = self._model if torch.is_grad_enabled() else self._bare
        policy = batch.spread(model(**batch.inputs))
        parts = (policy, batch.reference, batch.weights, batch.filled.sum(-1))
        sides = zip(*(part.chunk(2) for part in parts), strict=True)
        chosen, rejected = (SideLogps(policy=p, reference=r, weights=w, tokens=n) for p, r, w, n in sides)
        return self._loss(chosen, rejected)

    def _evaluation_is_due(self) -> bool:
        every = self._config.eval_every
        regular = self._step in (0, self.plan.steps) or (every > 0 and self._step % every == 0)
        wanted = self._config.evaluate and bool(self._feed.heldout.count)
        return wanted and regular and self._step not in self.evaluations

    @torch.no_grad()
    def _evaluate(self) -> None:
        """The same metrics over the held-out pairs."""
        started = time.perf_counter()
        heldout = self._feed.heldout
        self._progress.start("evaluation", len(heldout.mine))
        sums = torch.zeros(len(NAMES), device=self._device)
        for group, counts in self._ranks.evened(self._groups(heldout.mine), heldout.spare):
            pairs = self._losses(group, heldout.reference)
            if counts:
                sums += metric_sums(pairs)
                self._progress.advance("evaluation", len(group))
            self._check_stop()
        record = self._stamp() | means(self._ranks.total(sums), heldout.count, "eval_")
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
        if self._ranks.main:
            self._metrics.add(record)
            self._trackers.log(record)
            self._progress.record(record)

    def _stamp(self) -> Record:
        return {"step": self._step, "epoch": round(self.plan.epoch_after(self._step), 4)}

    def _save(self) -> None:
        whole = self._ranks.gather(self._policy, self._optimizer)
        with self._ranks.accord():
            if self._ranks.main:
                position = Position(
                    step=self._step,
                    window=self._window.state(),
                    config=asdict(self._config),
                    data=self._feed.digest,
                    feed=self._feed.state(self._step),
                )
                out = Path(self._config.out)
                save_checkpoint(out, self._policy, self._optimizer, position, whole)
                drop_old(out, self._config.keep_checkpoints, self.evaluations)

    def _agree(self, sums: torch.Tensor, bad: list[Example]) -> torch.Tensor:
        """The step's sums over all processes; all stop if one was asked to, and all fail over any one's bad pairs."""
        marks = torch.tensor([float(len(bad)), float(self._ctrl_c.pressed)], device=self._device)
        *_, failed, pressed = totals = self._ranks.total(torch.cat([sums, marks]))
        if pressed:
            raise _Stop
        if failed:
            what = f"the loss of step {self._step + 1} is not finite"
            raise together(unlearnable(what, self._ranks.collect(bad), self._config.out))
        return totals[: len(NAMES)]

    def _check_stop(self) -> None:
        """Leave the step after Ctrl-C; several processes leave it together, at its end."""
        if self._ranks.count == 1 and self._ctrl_c.pressed:
            raise _Stop

    def _interrupt(self) -> None:
        """Keep what the finished steps gave."""
        self._optimizer.zero_grad(set_to_none=True)
        if self._step:
            self._save()
        where = f"after step {self._step} of {self.plan.steps}; a checkpoint is saved" if self._step else "at the start"
        raise together(Interrupted(f"stopped {where}; run the same command again to go on"))
