"""The figures behind every plot of a cache: one pass over its pairs, in memory that does not grow with their number.

Not for: drawing them (`plots.py`, `charts.py`), or the summary of a cache (`twdpo.weights_cache.statistics`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
import numpy.typing as npt

from twdpo.errors import CacheError
from twdpo.inspect.examples import Example
from twdpo.inspect.token_classes import CLASSES, classify
from twdpo.weights_cache.transforms import SINK_FIX_MIN_TOKENS

#: Pairs added at a time.
_BATCH = 128

#: Bins of the relative position in the answer, and tokens from its beginning that are shown one by one.
POSITIONS, FIRST_TOKENS = 20, 32
#: Borders of the bins of weights, two to an octave; what is below the first or not below the last has a bin of its own.
WEIGHT_EDGES = 2.0 ** (np.arange(39) / 2 - 10)
AGREEMENT_EDGES = np.linspace(-1, 1, 81)
VERDICT_EDGES = np.linspace(0, 1, 21)
#: Pairs that are shown as points: those of the lowest hashes, so that order and chance play no part.
SAMPLE = 1000
#: Groups of pairs by margin, each of about as many; cut at the borders of fine bins, since a judge may use little of
#: the scale. Bins of the effective share, from which its quartiles are read.
MARGIN_GROUPS = 10
_MARGIN_EDGES = np.linspace(-0.5, 0.5, 501)
_FINE = 500

Doubles = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Figures:
    """Figures over some pairs of a cache; L layers, C token classes. NaN where there is nothing to take a mean of.

    tokens: judged tokens of both sides. with_text: pairs whose texts were there. judged: pairs with the judge's
    probability in both orders.

    position: [2, L, 20], mean weight by twentieth of the answer, before and after the sink fix, over the
    position_tokens [20] in each. first_tokens: [2, L, 32], the same by number of the token, over the first_counts [32]
    answers that are so long.

    weight_tokens, weight_mass: [L, 40], share of the tokens and of the weight in each bin of weights: below
    `WEIGHT_EDGES`, between them, and above; before the sink fix. effective: [L], mean over the answers of the
    exponential of the entropy as a share of the length.

    class_tokens: [C], tokens of each of `CLASSES`, and class_mass, class_weights: [2, L, C], their share of the weight
    and their mean weight, before and after the sink fix; over the pairs with text.

    agreement: [2, 80], answers (chosen, rejected) by how well the two orders agree; agreement_means: [2].

    margins, margin_effective: [at most 1000], judge's mean probability of the chosen answer less one half, and the
    effective share of the pair (mean of its answers, default layer), of a sample of the judged pairs.
    margin_edges: [G + 1], borders of at most 10 groups of all judged pairs by margin, about equally many in each;
    margin_counts, margin_means: [G], the pairs and their mean margin; margin_effects: [G, 4], mean, first quartile,
    median and third quartile of their effective share, quartiles to within 0.002.

    verdicts: [20, 20], judged pairs by probability of the chosen answer when first (rows) and when second (columns).
    """

    layers: tuple[int, ...]
    default_layer: int
    pairs: int
    tokens: int
    with_text: int
    judged: int
    position: Doubles
    position_tokens: Counts
    first_tokens: Doubles
    first_counts: Counts
    weight_tokens: Doubles
    weight_mass: Doubles
    effective: Doubles
    class_tokens: Counts
    class_mass: Doubles
    class_weights: Doubles
    agreement: Counts
    agreement_means: Doubles
    margins: Doubles
    margin_effective: Doubles
    margin_edges: Doubles
    margin_counts: Counts
    margin_means: Doubles
    margin_effects: Doubles
    verdicts: Counts


def gather_figures(examples: Iterable[Example], layers: Sequence[int], default_layer: int) -> Figures:
    """The figures over `examples`, whose rows hold weights of `layers`. Raises CacheError where there are none."""
    sums = _Sums(tuple(layers), default_layer)
    rest = iter(examples)
    while batch := list(islice(rest, _BATCH)):
        sums.add(batch)
    if not sums.pairs:
        raise CacheError("the cache holds no pairs yet; run twdpo annotate first")
    return sums.figures()


class _Sums:
    """What adds up over the pairs. Axes of sums of weight: [before and after the sink fix, layer, bin]."""

    def __init__(self, layers: tuple[int, ...], default_layer: int) -> None:
        self.layers, self.default = layers, layers.index(default_layer)
        self.pairs = self.answers = self.with_text = 0
        several = len(layers)
        self.position, self.first = np.zeros((2, several, POSITIONS)), np.zeros((2, several, FIRST_TOKENS))
        self.position_tokens = np.zeros(POSITIONS, np.int64)
        self.first_counts = np.zeros(FIRST_TOKENS, np.int64)
        self.weights = np.zeros((2, several, len(WEIGHT_EDGES) + 1))
        self.effective = np.zeros(several)
        self.class_tokens = np.zeros(len(CLASSES), np.int64)
        self.class_mass = np.zeros((2, several, len(CLASSES)))
        self.agreement = np.zeros((2, len(AGREEMENT_EDGES) - 1), np.int64)
        self.agreement_sums = np.zeros(2)
        self.sample = np.zeros((3, 0))
        self.margin_fine = np.zeros((len(_MARGIN_EDGES) - 1, _FINE), np.int64)
        self.margin_sums = np.zeros((2, len(_MARGIN_EDGES) - 1))
        self.verdicts = np.zeros((len(VERDICT_EDGES) - 1,) * 2, np.int64)

    def add(self, batch: Sequence[Example]) -> None:
        sides = [side for example in batch for side in (example.row.chosen, example.row.rejected)]
        lengths = np.array([len(side) for side in sides])
        starts = np.cumsum(lengths) - lengths
        numbers = np.arange(lengths.sum()) - np.repeat(starts, lengths)
        bins = numbers * POSITIONS // np.repeat(lengths, lengths)
        early = np.flatnonzero(numbers < FIRST_TOKENS)
        kinds = _classes(batch, lengths)
        self.pairs += len(batch)
        self.with_text += sum(example.pair is not None for example in batch)
        self.position_tokens += np.bincount(bins, minlength=POSITIONS)
        self.first_counts += np.bincount(numbers[early], minlength=FIRST_TOKENS)
        # Tokens without a text are counted behind the last class.
        self.class_tokens += np.bincount(kinds, minlength=len(CLASSES) + 1)[:-1]
        for place, layer in enumerate(self.layers):
            raw = np.concatenate([side.weights[layer] for side in sides]).astype(np.float64)
            for fixed, flat in enumerate((raw, _sink_fixed(raw, starts, lengths))):
                self.position[fixed, place] += np.bincount(bins, weights=flat, minlength=POSITIONS)
                self.first[fixed, place] += np.bincount(numbers[early], weights=flat[early], minlength=FIRST_TOKENS)
                self.class_mass[fixed, place] += np.bincount(kinds, weights=flat, minlength=len(CLASSES) + 1)[:-1]
            sizes = _weight_bins(raw)
            self.weights[0, place] += np.bincount(sizes, minlength=len(WEIGHT_EDGES) + 1)
            self.weights[1, place] += np.bincount(sizes, weights=raw, minlength=len(WEIGHT_EDGES) + 1)
            shares = _effective_shares(raw, starts, lengths)
            self.effective[place] += shares.sum()
            if place == self.default:
                self._add_verdicts(batch, shares.reshape(-1, 2).mean(axis=1))

    def _add_verdicts(self, batch: Sequence[Example], effective: Doubles) -> None:
        """What the judge thought of each pair; effective: [pairs]."""
        rows = [example.row for example in batch]
        for side in range(2):
            agreement = np.array([(row.order_agreement_chosen, row.order_agreement_rejected)[side] for row in rows])
            known = agreement[~np.isnan(agreement)]
            self.agreement[side] += np.bincount(_binned(known, AGREEMENT_EDGES), minlength=len(AGREEMENT_EDGES) - 1)
            self.agreement_sums[side] += known.sum()
        both = np.array([(row.judge_prob_cr, row.judge_prob_rc) for row in rows])
        known_pairs = np.flatnonzero(~np.isnan(both).any(axis=1))
        both, effective = both[known_pairs], effective[known_pairs]
        np.add.at(self.verdicts, tuple(_binned(column, VERDICT_EDGES) for column in both.T), 1)
        margins = both.mean(axis=1) - 0.5
        bins = _binned(margins, _MARGIN_EDGES)
        np.add.at(self.margin_fine, (bins, np.minimum(effective * _FINE, _FINE - 1).astype(np.int64)), 1)
        for place, values in enumerate((margins, effective)):
            self.margin_sums[place] += np.bincount(bins, weights=values, minlength=len(_MARGIN_EDGES) - 1)
        # 52 bits of each hash, which are exact as a double.
        keys = [int(rows[index].example_hash[:13], 16) for index in known_pairs]
        points = np.concatenate([self.sample, np.array([keys, margins, effective], np.float64)], axis=1)
        self.sample = points[:, np.lexsort(points[::-1])[:SAMPLE]]

    def figures(self) -> Figures:
        tokens = int(self.position_tokens.sum())
        cuts = _equal_groups(self.margin_fine.sum(axis=1), MARGIN_GROUPS)
        groups = [self.margin_fine[a:b].sum(axis=0) for a, b in pairwise(cuts)]
        counts = np.array([group.sum() for group in groups], np.int64)
        sums = np.array([self.margin_sums[:, a:b].sum(axis=1) for a, b in pairwise(cuts)]).reshape(-1, 2)
        margins, means = _ratio(sums.T, counts)
        quartiles = np.array([_quartiles(group) for group in groups]).reshape(-1, 3)
        return Figures(
            layers=self.layers,
            default_layer=self.layers[self.default],
            pairs=self.pairs,
            tokens=tokens,
            with_text=self.with_text,
            judged=int(self.verdicts.sum()),
            position=_ratio(self.position, self.position_tokens),
            position_tokens=self.position_tokens,
            first_tokens=_ratio(self.first, self.first_counts),
            first_counts=self.first_counts,
            weight_tokens=self.weights[0] / tokens,
            weight_mass=self.weights[1] / self.weights[1].sum(axis=1, keepdims=True),
            effective=self.effective / (2 * self.pairs),
            class_tokens=self.class_tokens,
            class_mass=_ratio(self.class_mass, self.class_mass.sum(axis=2, keepdims=True)),
            class_weights=_ratio(self.class_mass, self.class_tokens),
            agreement=self.agreement,
            agreement_means=_ratio(self.agreement_sums, self.agreement.sum(axis=1)),
            margins=self.sample[1],
            margin_effective=self.sample[2],
            margin_edges=_MARGIN_EDGES[cuts],
            margin_counts=counts,
            margin_means=margins,
            margin_effects=np.column_stack([means, quartiles]),
            verdicts=self.verdicts,
        )


def _classes(batch: Sequence[Example], lengths: Counts) -> Counts:
    """The class of every token of a batch, one answer after another; as many as there are classes without a text."""
    kinds: list[npt.NDArray[np.uint8]] = []
    for example, of_chosen, of_rejected in zip(batch, lengths[::2].tolist(), lengths[1::2].tolist(), strict=True):
        if example.pair is None:
            kinds.append(np.full(of_chosen + of_rejected, len(CLASSES), np.uint8))
        else:
            row, pair = example.row, example.pair
            kinds.append(classify(pair.chosen, row.chosen.starts, row.chosen.ends))
            kinds.append(classify(pair.rejected, row.rejected.starts, row.rejected.ends))
    return np.concatenate(kinds).astype(np.int64)


def _sink_fixed(flat: Doubles, starts: Counts, lengths: Counts) -> Doubles:
    """`twdpo.weights_cache.transforms.sink_fix` for many answers at a time, each from its entry in `starts` on."""
    first = flat[starts]
    others = flat.copy()
    others[starts] = 0.0
    rest = np.add.reduceat(others, starts)
    mean = (first + rest) / lengths
    scale = np.divide(first + rest - mean, rest, out=np.zeros_like(rest), where=rest > 0)
    short = lengths < SINK_FIX_MIN_TOKENS
    scale[short] = 1.0
    fixed: Doubles = others * np.repeat(scale, lengths)
    # All the weight on the first token: every token gets the mean.
    fixed += np.repeat(np.where((rest > 0) | short, 0.0, mean), lengths)
    fixed[starts] = np.where(short, first, mean)
    return fixed


def _effective_shares(flat: Doubles, starts: Counts, lengths: Counts) -> Doubles:
    p = flat / np.repeat(np.add.reduceat(flat, starts), lengths)
    terms = p * np.log(p, out=np.zeros_like(p), where=p > 0)
    # Rounding may lift it over the whole by a hair.
    shares: Doubles = np.minimum(np.exp(-np.add.reduceat(terms, starts)) / lengths, 1.0)
    return shares


def _weight_bins(flat: Doubles) -> Counts:
    """How many of `WEIGHT_EDGES` each weight reaches, read off its exponent, since they halve octaves."""
    mantissa, exponent = np.frexp(flat)
    halves = 2 * (exponent.astype(np.int64) - 1) + (mantissa >= math.sqrt(0.5))
    lowest = round(2 * math.log2(WEIGHT_EDGES[0]))
    bins: Counts = np.where(flat > 0, np.clip(halves - lowest + 1, 0, len(WEIGHT_EDGES)), 0)
    return bins


def _binned(values: Doubles, edges: Doubles) -> Counts:
    """The bin of each value; what lies outside by rounding falls into the outermost."""
    bins: Counts = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    return bins


def _equal_groups(counts: Counts, groups: int) -> list[int]:
    """Where to cut bins into at most so many groups of about as many; no group is empty, nor are the outermost bins."""
    used = np.flatnonzero(counts)
    if not len(used):
        return [0]
    reached = np.cumsum(counts)
    wanted = reached[-1] * np.arange(1, groups) / groups
    inner = np.searchsorted(reached, wanted, side="left") + 1
    return sorted({int(used[0]), *(int(cut) for cut in inner if cut <= used[-1]), int(used[-1]) + 1})


def _quartiles(counts: Counts) -> Doubles:
    """The quartiles of values of 0 to 1 in even bins, each value taken to lie anywhere in its bin."""
    reached = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
    borders = np.linspace(0, 1, len(counts) + 1)
    quartiles = np.zeros(3)
    for index, part in enumerate((0.25, 0.5, 0.75)):
        place = int(np.searchsorted(reached, part, side="left"))
        quartiles[index] = np.interp(part, reached[place - 1 : place + 1], borders[place - 1 : place + 1])
    return quartiles


def _ratio(sums: npt.NDArray[np.generic], counts: npt.ArrayLike) -> Doubles:
    """Sums by counts; NaN where the count is 0."""
    whole = np.asarray(sums, dtype=np.float64)
    by = np.broadcast_to(np.asarray(counts, dtype=np.float64), whole.shape)
    ratio: Doubles = np.divide(whole, by, out=np.full(whole.shape, np.nan), where=by != 0)
    return ratio
