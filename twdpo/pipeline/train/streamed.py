"""Pairs as they come: the feed for data sets that do not fit.

Rows are read in order, a block at a time, joined with their weights, and shuffled within the block by a generator that
seed, epoch and block decide; another thread makes the next block ready meanwhile. A step is a fixed number of rows, so
that its number alone says where it reads; rows that cannot be used make it smaller. In memory are two blocks, the
held-out pairs, and the indices of weights and reference log-probs. Of several processes each reads all rows, but
hashes, joins, renders and holds only those that fall to it: a step's rows are dealt out by their number of characters.
Not for: which rows there are (`slots.py`), or what becomes of one (`sorting.py`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from twdpo.pipeline.train.batches import Plan
from twdpo.pipeline.train.config import TrainConfig
from twdpo.pipeline.train.data import WINDOW, Example
from twdpo.pipeline.train.feed import Counts, Portion, no_reference, none_held_out, nothing_left
from twdpo.pipeline.train.layouts import Logps
from twdpo.pipeline.train.parts import parts_of
from twdpo.pipeline.train.processes import Processes, in_accord
from twdpo.pipeline.train.progress import TrainProgress
from twdpo.pipeline.train.reference import Reference, read_reference
from twdpo.pipeline.train.render import Renderer
from twdpo.pipeline.train.slots import Slots
from twdpo.pipeline.train.sorting import Row, Sorted, Sorter, first_pairs
from twdpo.pipeline.train.survey import NOT_ANNOTATED
from twdpo.preferences import Pair, Reject
from twdpo.weights_cache import WeightsCache


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tally:
    """What became of the rows of a step."""

    step: int
    counts: Counts
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """Steps made ready, by their number: this process's examples, and what became of its rows."""

    examples: Mapping[int, list[Example]]
    tallies: list[_Tally]
    reference: Mapping[str, Logps]


class StreamedFeed:
    """The feed of a run whose pairs need not fit; see `Feed`."""

    def __init__(
        self,
        config: TrainConfig,
        cache: WeightsCache,
        renderer: Renderer,
        processes: Processes,
        progress: TrainProgress,
    ) -> None:
        self._config, self._cache, self._processes, self._progress = config, cache, processes, progress
        progress.start("pairs", None)
        with in_accord(processes):
            self._sorter = Sorter(config, cache, renderer)
            parts = parts_of(config, cache)
            self._slots = Slots.of(config, cache, [part for part in parts if not part.heldout])
            named = [part for part in parts if part.heldout]
            apart = Slots.of(config, cache, named) if named else None
            wanted = first_pairs(config, len(self._slots)) if apart is None else None
        self.counts = Counts()
        if self._slots.not_annotated:
            self.counts.skipped[NOT_ANNOTATED] = self._slots.not_annotated
        # Steps begin after the first pairs, where these are held out, so that none is the smaller for them.
        self._held_out, end = self._hold_out(self._slots if apart is None else apart, wanted)
        if apart is not None and not self.counts.heldout:
            raise none_held_out(config)
        self._first = end if apart is None else 0
        with in_accord(processes):
            self.spare = self._find_spare()
        progress.finish("pairs")
        rows = len(self._slots) - self._first
        self.plan = Plan.of(rows, config.batch_size, config.epochs, config.max_steps)
        self._block_steps = math.ceil(config.shuffle_block / config.batch_size)
        self._digest = ""
        self._handed, self._before = -1, self.counts.copy()
        self._reference: Mapping[str, Logps] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._next: tuple[range, Future[_Block]] | None = None
        self._block: _Block | None = None
        self._totals: dict[int, tuple[Counts, int]] = {}

    def lacking(self, store: Container[str]) -> Iterator[list[Example]]:
        """Go through the rows that the run will see, block by block; see `Feed`.

        Raises MissingRows where pairs have no weights, and DataError where no pair can be used.
        """
        steps = min(self.plan.steps, self.plan.steps_per_epoch)
        rows = math.ceil(min(steps * self.plan.batch_size, self.plan.pairs) / self._processes.count)
        self._progress.start("reference", rows + len(self._held_out))
        yield self._lacking([e for e in self._held_out if e.example_hash not in store], len(self._held_out))
        slots, digest, seen = self._slots.again(), 0, Counts()
        for first in range(0, steps, self._block_steps):
            with in_accord(self._processes):
                mine = _rows_of(self._deal(slots, range(first, min(first + self._block_steps, steps))))
                if first == 0:
                    self._cache.prepare_for([item.example_hash or "" for _, item in mine], WINDOW, of=rows)
                examples, known = self._sorter.unreferenced(mine, store)
            digest += sum(_fate_digest(number, item, known) for number, item in mine)
            seen.add(Counts(pairs=len(mine) - len(known.reasons)))
            seen.skipped.update(known.reasons.values())
            yield self._lacking(examples, len(mine))
        digests, total = 0, Counts()
        for part, counts in self._processes.collect([(digest, seen)]):
            digests += part
            total.add(counts)
        if not total.pairs:
            total.skipped.update(self.counts.skipped)
            raise nothing_left(total)
        # A sum, so that it is the same however the rows fall to processes. What the weights are, the recipe says.
        seal = f"{digests % (1 << 64):016x} {self._cache.manifest.fingerprint}"
        self._digest = hashlib.sha256(seal.encode()).hexdigest()[:16]
        self._progress.finish("reference")

    def _lacking(self, examples: list[Example], rows: int) -> list[Example]:
        # What is computed is counted by whoever computes it.
        self._progress.advance("reference", rows - len(examples))
        return examples

    @property
    def digest(self) -> str:
        """16 hex digits over the pairs that the run comes to, what becomes of them, and the weights' recipe."""
        return self._digest

    def begin(self, store: Reference, step: int = 0, state: Mapping[str, Any] | None = None) -> None:
        """Be ready for `step`: the block that it lies in is read again."""
        self._store = store
        if state:
            self.counts = Counts.of(state["counts"])
        self._handed, self._before = step - 1, self.counts.copy()
        with in_accord(self._processes):
            self._reference = no_reference(self.spare) | read_reference(self._held_out, store)
        self._prefetch(step)

    def state(self, step: int) -> dict[str, Any]:
        """Where the feed stands before `step`: the epoch, the block and the row it begins with; counts so far."""
        epoch, position = divmod(step, self.plan.steps_per_epoch)
        block = position // self._block_steps
        row = self._first + block * self._block_steps * self.plan.batch_size
        counts = self._before if self._handed >= step else self.counts
        return {"epoch": epoch, "block": block, "row": row, "counts": counts.plain()}

    @property
    def heldout(self) -> Portion:
        """The held-out pairs, which are kept in memory."""
        count = self.counts.heldout
        return Portion(mine=self._held_out, spare=self.spare, reference=self._reference, count=count)

    def step(self, number: int) -> Portion:
        """The pairs of a step."""
        if number not in self._totals:
            self._turn_to(number)
        counts, tokens = self._totals[number]
        if number > self._handed:
            self._handed, self._before = number, self.counts.copy()
            # Later epochs see the same pairs again.
            if number < self.plan.steps_per_epoch:
                self.counts.add(counts)
        assert self._block is not None
        return Portion(
            mine=self._block.examples[number],
            spare=self.spare,
            reference=self._block.reference,
            count=counts.pairs,
            tokens=tokens,
        )

    def close(self) -> None:
        """Stop the other thread, which takes no longer than a window of pairs."""
        self._sorter.closing.set()
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _turn_to(self, step: int) -> None:
        """Take the block that begins with `step`, and have the next one made ready."""
        if self._next is None or self._next[0].start != step:
            self._prefetch(step)
        assert self._next is not None
        steps, ready = self._next
        self._block, self._next = None, None
        with in_accord(self._processes):
            self._block = ready.result()
        self._totals = {step: (Counts(), 0) for step in steps}
        for tally in self._processes.collect(self._block.tallies if self._block else []):
            counts, tokens = self._totals[tally.step]
            counts.add(tally.counts)
            self._totals[tally.step] = (counts, tokens + tally.tokens)
        self._prefetch(steps.stop)

    def _prefetch(self, step: int) -> None:
        """Have the steps from `step` to the end of its block made ready by the other thread."""
        if step >= self.plan.steps:
            return
        epoch, position = divmod(step, self.plan.steps_per_epoch)
        end = (position // self._block_steps + 1) * self._block_steps
        stop = epoch * self.plan.steps_per_epoch + min(end, self.plan.steps_per_epoch)
        steps = range(step, min(stop, self.plan.steps))
        self._next = (steps, self._worker.submit(self._make, steps))

    def _make(self, steps: range) -> _Block:
        """Steps of one block; in the other thread."""
        dealt = self._deal(self._slots, steps)
        known = self._sorter.examples(_rows_of(dealt))
        examples, tallies = {}, []
        for step, rows in dealt.items():
            numbers = [number for number, _ in rows]
            examples[step] = [known.examples[number] for number in numbers if number in known.examples]
            tokens = sum(example.tokens for example in examples[step])
            tallies.append(_Tally(step=step, counts=self._sorter.counts(known, numbers), tokens=tokens))
        reference = no_reference(self.spare) | read_reference(list(known.examples.values()), self._store)
        return _Block(examples=examples, tallies=tallies, reference=reference)

    def _deal(self, slots: Slots, steps: range) -> dict[int, list[Row]]:
        """This process's rows of some steps of one block."""
        epoch, position = divmod(steps.start, self.plan.steps_per_epoch)
        block, size = position // self._block_steps, self.plan.batch_size
        start = self._first + block * self._block_steps * size
        items = slots.read(start, min(start + self._block_steps * size, len(slots)))
        order = np.random.default_rng([self._config.seed, epoch, block]).permutation(len(items))
        dealt = {}
        for step in steps:
            place = (step % self.plan.steps_per_epoch - block * self._block_steps) * size
            by_length = sorted(order[place : place + size].tolist(), key=lambda i: (_characters(items[i]), i))
            dealt[step] = [(start + i, items[i]) for i in by_length[self._processes.rank :: self._processes.count]]
        return dealt

    def _hold_out(self, slots: Slots, wanted: int | None) -> tuple[list[Example], int]:
        """This process's part of the first `wanted` usable pairs, or of all, and the number of the row after them."""
        rank, count = self._processes.rank, self._processes.count
        kept: list[Example] = []
        prompts, counts = set[bytes](), Counts()
        at = found = 0
        while at < len(slots) and (wanted is None or found < wanted):
            rows = list(enumerate(slots.read(at, min(at + WINDOW * count, len(slots))), at))
            with in_accord(self._processes):
                known = self._sorter.examples(rows[rank::count])
            usable = sorted(self._processes.collect(list(known.examples)))
            usable = usable if wanted is None else usable[: wanted - found]
            found += len(usable)
            at = usable[-1] + 1 if found == wanted else at + len(rows)
            mine = [(number, item) for number, item in rows[rank::count] if number < at]
            counts.add(self._sorter.counts(known, [number for number, _ in mine]))
            for number, item in mine:
                if isinstance(item, Pair) and number in known.examples:
                    kept.append(known.examples[number])
                    prompts.add(self._sorter.prompt_key(item))
        counts.pairs, counts.heldout = 0, counts.pairs
        hashes: list[str] = self._processes.collect([example.example_hash for example in kept])
        # A split of its own says which pairs are apart; of the first pairs, all that share a prompt are.
        self._sorter.hold_out(hashes, self._processes.collect(list(prompts)) if wanted is not None else ())
        for part in self._processes.collect([counts]):
            self.counts.add(part)
        return kept, at

    def _find_spare(self) -> Example:
        """The first example to train on, which every process has. Raises DataError where there is none."""
        passed = self.counts.copy()
        for at in range(self._first, len(self._slots), WINDOW):
            rows = list(enumerate(self._slots.read(at, min(at + WINDOW, len(self._slots))), at))
            known = self._sorter.examples(rows)
            if known.examples:
                return next(iter(known.examples.values()))
            passed.skipped.update(known.reasons.values())
        raise nothing_left(passed)


def _rows_of(dealt: Mapping[int, list[Row]]) -> list[Row]:
    """The rows of all steps, in the order of the data set, which is about that of the weights."""
    return sorted((row for rows in dealt.values() for row in rows), key=lambda row: row[0])


def _characters(item: Pair | Reject) -> int:
    """About as long as an example of it."""
    if isinstance(item, Reject):
        return 0
    return 2 * sum(len(message.content) for message in item.prompt) + len(item.chosen) + len(item.rejected)


def _fate_digest(number: int, item: Pair | Reject, known: Sorted) -> int:
    fate = known.reasons.get(number) or ("even" if number in known.even else "")
    return int.from_bytes(hashlib.sha256(f"{number} {item.example_hash} {fate}".encode()).digest()[:8])
