"""What each difference from the published code does to weights, loss and gradient, on a few real pairs.

    python benchmarks/differences.py ultrafeedback.parquet [--pairs 12] [--judge-template FILE ...]

The base is `twdpo`'s default: float32 judge, last layer, both orders, sink fix, no weight on the end of turn. Each row
changes one thing. Weights: total variation from the base's, as distributions over the completion, median over the
answers. Gradient: that of the first step, where policy and reference are one, summed over the pairs and all parameters.
Loss: of a policy after a few steps of plain DPO on other pairs. Not for: whether any of it trains a better model.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from machine import describe
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from twdpo.pipeline.annotate.config import AnnotateConfig
from twdpo.pipeline.annotate.engines.base import Reading
from twdpo.pipeline.annotate.judge import Judge
from twdpo.pipeline.annotate.prompt import JudgePrompt, load_template
from twdpo.pipeline.annotate.rows import order_weights
from twdpo.pipeline.models import load_model
from twdpo.pipeline.train.data import Example, Side
from twdpo.pipeline.train.layouts import collate
from twdpo.pipeline.train.logps import TokenLogps
from twdpo.pipeline.train.render import RenderedPair, Renderer
from twdpo.pipeline.train.weights import WeightRules, training_weights, uniform_weights
from twdpo.preferences import Message, Pair, load, resolve
from twdpo.weights_cache import SideWeights, round_mantissa

Floats = NDArray[np.float32]
Stored = Mapping[str, SideWeights]
Orders = Mapping[str, tuple[SideWeights, SideWeights]]
Sides = tuple[Floats, Floats]
#: For the loss, and for the policy it is of: that of the recipe `laptop`.
BETA, RATE, STEPS = 0.1, 2e-5, 8
SIDES = ("chosen", "rejected")
#: Tokens of a completion, at the least.
SHORTEST = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One difference. weights: of both completions, from the pair's number; system: a system turn put before each
    prompt; autocast: what the policy computes in."""

    name: str
    weights: Callable[[int], Sides]
    system: str | None = None
    autocast: torch.dtype | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a change does. variation: of the weights. cosine, ratio: of the gradients. loss: mean. flips: margins with
    another sign than the base's."""

    name: str
    variation: float
    cosine: float
    ratio: float
    loss: float
    flips: int


def total_variation(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Between two weightings of the same tokens, each as a distribution."""
    p, q = (w.astype(np.float64) / w.sum(dtype=np.float64) for w in (first, second))
    return float(np.abs(p - q).sum() / 2)


def cosine_and_ratio(gradient: Tensor, base: Tensor) -> tuple[float, float]:
    """The cosine between two vectors, and the length of the first over that of the second."""
    dot = length = base_length = 0.0
    # In pieces, so that float64 holds a piece at a time.
    for a, b in zip(gradient.split(1 << 22), base.split(1 << 22), strict=True):  # type: ignore[no-untyped-call]
        a, b = a.double(), b.double()
        dot, length, base_length = dot + float(a @ b), length + float(a @ a), base_length + float(b @ b)
    return dot / (length * base_length) ** 0.5, (length / base_length) ** 0.5


def margin(ratios: tuple[NDArray[Any], NDArray[Any]], weights: Sides) -> float:
    """Σ w⁺ ℓ⁺ − Σ w⁻ ℓ⁻ in nats."""
    return float(ratios[0].astype(np.float64) @ weights[0] - ratios[1].astype(np.float64) @ weights[1])


def mean_loss(margins: Sequence[float], beta: float) -> float:
    """−log σ(β · margin), mean."""
    return float(np.logaddexp(0.0, -beta * np.asarray(margins)).mean())


def without_last(stored: SideWeights, answer: str) -> SideWeights:
    """Without the last judged token, and the one before where the answer ends in neither letter nor digit."""
    n = max(1, len(stored.starts) - (1 if answer.rstrip()[-1:].isalnum() else 2))
    kept = {}
    for layer, weights in stored.weights.items():
        total = weights[:n].sum()
        kept[layer] = weights[:n] * np.float32(n / total) if total > 0 else np.ones(n, np.float32)
    return SideWeights(starts=stored.starts[:n], ends=stored.ends[:n], weights=kept)


def read_orders(judge: Judge, pairs: Sequence[Pair]) -> list[Orders]:
    """The weights of each order by itself, and so of both."""
    found: list[Orders] = []
    for pair in pairs:
        prompts = judge.builder.build(pair, "cr"), judge.builder.build(pair, "rc")
        cr, rc = judge.engine.read(prompts, judge.layers, None)
        found.append(order_weights(prompts, (cr, rc), judge.layers))
    return found


def published_in_bfloat16(judge: Judge, pairs: Sequence[Pair], model: Any) -> list[Orders]:
    """As the published procedure rounds: maps, their mean over heads and p are bfloat16."""

    def read(prompt: JudgePrompt) -> Reading:
        with torch.no_grad():
            maps = model(torch.from_numpy(prompt.ids[None].astype(np.int64)), output_attentions=True).attentions
        attention = {}
        for layer in judge.layers:
            row = maps[layer][0].mean(dim=0)[-1]
            parts = [row[span.first : span.last] for span in (prompt.answer_a, prompt.answer_b)]
            a, b = ((part / part.sum()).float().numpy() for part in parts)
            attention[layer] = (a, b)
        return Reading(attention=attention, verdict_logits=None)

    found: list[Orders] = []
    for pair in pairs:
        prompts = judge.builder.build(pair, "cr"), judge.builder.build(pair, "rc")
        found.append(order_weights(prompts, (read(prompts[0]), read(prompts[1])), judge.layers))
    return found


def shuffled(stored: Stored) -> Stored:
    """The same weights at other places of their answer, the first token's kept where the sink fix will look for it."""
    rng = np.random.default_rng(0)
    moved = {}
    for side, row in stored.items():
        order = np.concatenate([[0], 1 + rng.permutation(len(row.starts) - 1)])
        moved[side] = replace(row, weights={layer: w[order] for layer, w in row.weights.items()})
    return moved


def both(orders: Orders) -> Stored:
    """The mean of the two orders, which a cache keeps."""
    return {
        side: replace(cr, weights={k: ((w + rc.weights[k]) / 2).astype(np.float32) for k, w in cr.weights.items()})
        for side, (cr, rc) in orders.items()
    }


class Policy:
    """The 135M model as it is, and as it is after some steps of plain DPO on other pairs."""

    def __init__(self, model: str) -> None:
        loaded = load_model(model, dtype="float32", device="cpu")
        # Nothing is cut here: the pairs are short, and long ones are only counted.
        self.renderer = Renderer(loaded.tokenizer, max_length=1 << 20)
        self.logps = TokenLogps(loaded.model)
        self.parameters = [p for p in self.logps.parameters() if p.requires_grad]
        self._moved: dict[str, Tensor] | None = None

    def examples(self, pairs: Sequence[Pair], system: str | None = None) -> list[RenderedPair]:
        """Rendered, with a system turn where one is given."""
        turn = () if system is None else (Message(role="system", content=system),)
        return [self.renderer.render(replace(pair, prompt=(*turn, *pair.prompt))) for pair in pairs]

    def objective(self, rendered: RenderedPair, weights: Sides) -> Tensor:
        """−½ (Σ w⁺ log π⁺ − Σ w⁻ log π⁻): its gradient is the first step's, over β."""
        chosen, rejected = self.token_logps(rendered)
        return -0.5 * ((chosen * torch.from_numpy(weights[0])).sum() - (rejected * torch.from_numpy(weights[1])).sum())

    def token_logps(self, rendered: RenderedPair) -> tuple[Tensor, Tensor]:
        """Of both completions."""
        sides = [
            Side(ids=s.ids, prompt_length=s.prompt_length, weights=np.ones(s.completion_length, np.float32))
            for s in (rendered.chosen, rendered.rejected)
        ]
        example = Example(example_hash="", row=0, chosen=sides[0], rejected=sides[1])
        batch = collate([example], None, "cpu", self.logps.layout)
        both_sides = batch.spread(self.logps(**batch.inputs))
        return both_sides[0, : len(sides[0].weights)], both_sides[1, : len(sides[1].weights)]

    def gradient(self, rendered: Sequence[RenderedPair], weights: Sequence[Sides]) -> Tensor:
        """Summed over the pairs, all parameters in one vector."""
        self.logps.zero_grad(set_to_none=True)
        for pair, sides in zip(rendered, weights, strict=True):
            self.objective(pair, sides).backward()  # type: ignore[no-untyped-call]
        whole = torch.cat([p.grad.flatten() for p in self.parameters if p.grad is not None])
        self.logps.zero_grad(set_to_none=True)
        return whole

    def move(self, pairs: Sequence[RenderedPair]) -> None:
        """A step of plain DPO on each pair, and back again; `ratios` is then of where they led."""
        start = copy.deepcopy(self.logps.state_dict())
        with torch.no_grad():
            before = [sum(t.sum() * sign for t, sign in zip(self.token_logps(p), (1, -1), strict=True)) for p in pairs]
        optimizer = torch.optim.AdamW(self.parameters, lr=RATE, weight_decay=0.0)
        for rendered, reference in zip(pairs, before, strict=True):
            chosen, rejected = self.token_logps(rendered)
            optimizer.zero_grad()
            (-logsigmoid(BETA * (chosen.sum() - rejected.sum() - reference))).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        self._moved = copy.deepcopy(self.logps.state_dict())
        self.logps.load_state_dict(start)

    @torch.no_grad()
    def ratios(self, rendered: Sequence[RenderedPair]) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        """log π − log π_ref of each token, π the moved policy."""
        assert self._moved is not None
        reference = [self.token_logps(pair) for pair in rendered]
        start = copy.deepcopy(self.logps.state_dict())
        self.logps.load_state_dict(self._moved)
        moved = [self.token_logps(pair) for pair in rendered]
        self.logps.load_state_dict(start)
        pairs = zip(moved, reference, strict=True)
        return [((m[0] - r[0]).float().numpy(), (m[1] - r[1]).float().numpy()) for m, r in pairs]


def changes(
    base: Sequence[Orders],
    more: Mapping[str, Sequence[Orders]],
    pairs: Sequence[Pair],
    rendered: Sequence[RenderedPair],
) -> Iterator[Change]:
    """The base first, then one thing after the other."""
    deepest = max(base[0]["chosen"][0].weights)
    every = tuple(base[0]["chosen"][0].weights)
    rules = WeightRules(layers=(deepest,))
    stored = [both(orders) for orders in base]

    def of(stored: Sequence[Stored], rules: WeightRules = rules) -> Callable[[int], Sides]:
        def weights(number: int) -> Sides:
            sides = (rendered[number].chosen, rendered[number].rejected)
            chosen, rejected = (
                training_weights(stored[number][name], side, rules) for name, side in zip(SIDES, sides, strict=True)
            )
            return chosen, rejected

        return weights

    def even(uncovered: str) -> Callable[[int], Sides]:
        rule = replace(rules, uncovered=uncovered)
        return lambda n: (uniform_weights(rendered[n].chosen, rule), uniform_weights(rendered[n].rejected, rule))

    mean = of(stored, replace(rules, layers=every))
    yield Change(name="base", weights=of(stored))
    yield Change(name="control: weights shuffled within an answer", weights=of([shuffled(row) for row in stored]))
    yield Change(name="end of turn weighs 1 (`--uncovered one`)", weights=of(stored, replace(rules, uncovered="one")))
    yield Change(name="even weights, end of turn 0", weights=even("zero"))
    yield Change(name="plain DPO: even weights, end of turn 1", weights=even("one"))
    yield Change(name="no sink fix (`--no-sink-fix`)", weights=of(stored, replace(rules, sink_fix=False)))
    yield Change(name="mean of the five layers", weights=mean)
    five = np.float32(len(every))
    yield Change(name="sum of the five layers", weights=lambda n: (mean(n)[0] * five, mean(n)[1] * five))
    first = [{side: orders[side][0] for side in SIDES} for orders in base]
    yield Change(name="one order alone, chosen first", weights=of(first))
    rounded = [
        {s: replace(w, weights={k: round_mantissa(v) for k, v in w.weights.items()}) for s, w in row.items()}
        for row in stored
    ]
    yield Change(name="weights rounded as a cache stores them", weights=of(rounded))
    cut = [
        {name: without_last(row[name], getattr(pair, name)) for name in SIDES}
        for row, pair in zip(stored, pairs, strict=True)
    ]
    yield Change(name="last one or two tokens not judged", weights=of(cut))
    for name, orders in more.items():
        yield Change(name=name, weights=of([both(each) for each in orders]))
    yield Change(name="an empty system turn in training", weights=of(stored), system="")
    yield Change(name="policy computes in bfloat16", weights=of(stored), autocast=torch.bfloat16)


def measure(policy: Policy, pairs: Sequence[Pair], todo: Iterator[Change]) -> Iterator[Row]:
    """One row a change."""
    plain = policy.examples(pairs)
    before: tuple[Tensor, list[Sides], list[float]] | None = None
    ratios = policy.ratios(plain)
    for change in todo:
        weights = [change.weights(n) for n in range(len(pairs))]
        rendered = plain if change.system is None else policy.examples(pairs, change.system)
        policy.logps.autocast = change.autocast
        gradient = policy.gradient(rendered, weights)
        own = change.system is not None or change.autocast is not None
        margins = [margin(r, w) for r, w in zip(policy.ratios(rendered) if own else ratios, weights, strict=True)]
        policy.logps.autocast = None
        before = before or (gradient, weights, margins)
        cosine, ratio = cosine_and_ratio(gradient, before[0])
        variations = [
            total_variation(a, b)
            for new, old in zip(weights, before[1], strict=True)
            for a, b in zip(new, old, strict=True)
        ]
        yield Row(
            name=change.name,
            variation=float(np.median(variations)),
            cosine=cosine,
            ratio=ratio,
            loss=mean_loss(margins, BETA),
            flips=sum((a > 0) != (b > 0) for a, b in zip(margins, before[2], strict=True)),
        )


def suits(rendered: RenderedPair, longest: int) -> bool:
    """Short enough to be quick, and not so short that one token is much of an answer."""
    sides = (rendered.chosen, rendered.rejected)
    return all(len(s.ids) <= longest and s.completion_length >= SHORTEST for s in sides)


def long_pairs(pairs: Sequence[Pair], judge: Judge, policy: Policy) -> str:
    """How many pairs the rules for long ones touch at all; nothing is run."""
    judged = trained = prompts = turns = 0
    for pair in pairs:
        judged += any(judge.builder.build(pair, order).truncated for order in ("cr", "rc"))
        rendered = policy.renderer.render(pair)
        trained += max(len(rendered.chosen.ids), len(rendered.rejected.ids)) > 2048
        prompts += rendered.chosen.prompt_length > 1800
        turns += len(pair.prompt) > 1
    return (
        f"of {len(pairs):,} pairs: {judged} cut for the judge (2,048 tokens or more), {trained} longer than 2,048 "
        f"tokens in training, {prompts} with a prompt of more than 1,800, {turns} with several turns"
    )


def other_judges(
    options: argparse.Namespace, judge: Judge, pairs: Sequence[Pair]
) -> Iterator[tuple[str, Sequence[Orders]]]:
    """The weights of each judge that differs in precision or template; only of those that are asked for."""
    config = AnnotateConfig(dataset=options.dataset, model=options.model, dtype="float32")
    name = "judge in bfloat16 (`--dtype bfloat16`)"
    if options.only in name:
        half = Judge.load(replace(config, dtype="bfloat16"), load_template(None), None, None)
        yield name, read_orders(half, pairs)
        del half
    name = "judge in bfloat16, maps and p rounded too"
    if options.only in name:
        eager = load_model(options.model, dtype="bfloat16", device="cpu", attn_implementation="eager").model
        yield name, published_in_bfloat16(judge, pairs, eager)
        del eager
    for file in options.judge_template:
        name = f"judge template {file.rsplit('/', 1)[-1]}"
        if options.only in name:
            yield name, read_orders(Judge.load(config, load_template(file), None, None), pairs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--longest", type=int, default=360, help="tokens of the longer response in training")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--judge-template", action="append", default=[], help="measure this template too")
    parser.add_argument("--only", default="", help="the base and what has this in its name")
    options = parser.parse_args()
    every = [item for item in load(resolve(options.dataset)) if isinstance(item, Pair)]
    config = AnnotateConfig(dataset=options.dataset, model=options.model, dtype="float32")
    judge = Judge.load(config, load_template(None), None, None)
    policy = Policy(options.model)
    print(describe())
    print(long_pairs(every, judge, policy), end="\n\n", flush=True)

    order = np.random.default_rng(0).permutation(len(every))
    sizes = ((every[i], policy.renderer.render(every[i])) for i in order)
    short = (p for p, r in sizes if suits(r, options.longest))
    pairs = [next(short) for _ in range(options.pairs)]
    policy.move(policy.examples([next(short) for _ in range(STEPS)]))

    more = dict(other_judges(options, judge, pairs))
    every_change = changes(read_orders(judge, pairs), more, pairs, policy.examples(pairs))
    todo = (change for change in every_change if change.name == "base" or options.only in change.name)
    print(f"{len(pairs)} pairs, loss at β = {BETA}\n")
    print("| what is changed | weights | gradient: cosine | length | loss | margins of another sign |")
    print("|---|---|---|---|---|---|", flush=True)
    for row in measure(policy, pairs, todo):
        print(
            f"| {row.name} | {row.variation:.2g} | {row.cosine:.3f} | {row.ratio:.2f} | {row.loss:.3f} | {row.flips} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
