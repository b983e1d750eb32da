"""The whole method in one go, on embedded pairs and a real 135M model: annotate, look, train, evaluate.

Everything it does is what the commands do, with other defaults. Not for: anything but showing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from rich.console import Console
from rich.rule import Rule

from twdpo import console as show
from twdpo import results
from twdpo.pipeline.annotate import AnnotateConfig, AnnotateProgress, annotate
from twdpo.pipeline.model_files import DEFAULT_MODEL
from twdpo.pipeline.models import load_model
from twdpo.pipeline.train import TrainConfig, train
from twdpo.preferences import Message, example_hash
from twdpo.weights_cache import WeightsCache

#: Pairs that are shown: short ones with a plain error.
_SHOWN = ("fact-09", "arith-03")


@dataclass(frozen=True, slots=True, kw_only=True)
class FlawWeight:
    """How much weight the places of recognisable errors get, means over pairs.

    text_share: the flaw's share of the rejected answer's characters. weight_share: its share of the weight.
    heavier: how often the second is the larger.
    """

    pairs: int
    text_share: float
    weight_share: float
    heavier: float


def run(out: str, *, steps: int = 12) -> None:
    """Run the demo into the folder `out`; a second run uses the weights that are there and trains anew."""
    started = time.monotonic()
    folder = Path(out)
    cache, model = folder / "weights_cache", folder / "trained"
    console = show.stdout()
    console.print(
        "twdpo demo: 108 preference pairs, judged by SmolLM2-135M-Instruct, which is then trained on them "
        "with the token weights that its own attention gave."
    )
    with _stage(console, "1  annotate: judge every pair in both orders, cache token weights"):
        _prepare_model(console)
        _annotate(cache, console)
    with _stage(console, "2  inspect: where the judge looked"):
        _look(cache, console)
    with _stage(
        console, f"3  train: {steps} steps of token-weighted DPO from the cache, evaluated on 24 held-out pairs"
    ):
        config = TrainConfig(
            weights=str(cache),
            dataset="demo",
            split="train",
            eval_split="test",
            out=str(model),
            max_steps=steps,
            batch_size=4,
            learning_rate=2e-5,
            beta=0.1,
            max_length=512,
            eval_every=0,
            save_every=0,
            resume=False,
        )
        with show.train_progress() as progress:
            result = train(config, progress)
        console.print(results.table(results.train_rows(result)))
    console.print(Rule(style="dim"))
    console.print(f"done in {time.monotonic() - started:.0f} s. What it made:")
    console.print(
        results.table(
            {
                f"{cache}/": "the weights: Parquet shards, a manifest, a data-set card",
                f"{model}/": "the trained model, for AutoModelForCausalLM.from_pretrained",
                f"{model}/metrics.jsonl": "loss, rewards, margins and log-probs of every step",
            }
        )
    )
    console.print("\nNext, on your own data:", style="bold")
    console.print("  twdpo annotate --dataset ultrafeedback\n  twdpo train --weights weights_cache/", soft_wrap=True)


@contextmanager
def _stage(console: Console, title: str) -> Iterator[None]:
    console.print()
    console.print(Rule(title, align="left", style="dim"))
    yield


def _prepare_model(console: Console) -> None:
    """Convert the embedded model the first time, which takes a moment that should not look like a hang."""
    with show.stderr().status("loading the judge (the first time it is converted, about 20 s)"):
        loaded = load_model(DEFAULT_MODEL)
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    console.print(
        f"judge: {DEFAULT_MODEL}, {parameters / 1e6:.0f}M parameters, {loaded.dtype} on {loaded.model.device}"
    )


def _annotate(cache: Path, console: Console) -> None:
    """Both splits into one cache, shown as one run."""
    total = 108
    with show.annotate_progress() as bar:
        done = AnnotateProgress(total=total)
        for split in ("train", "test"):
            config = AnnotateConfig(dataset="demo", split=split, out=str(cache), include_text=True)
            before = done

            def combined(progress: AnnotateProgress, before: AnnotateProgress = before) -> None:
                bar(before.plus(progress))

            result = annotate(config, on_progress=combined)
            done = done.plus(result.counts)
    console.print(results.table(results.annotate_rows(replace(result, counts=done, judge_accuracy=None))))


def _look(cache: Path, console: Console) -> None:
    from twdpo.inspect.examples import find_example
    from twdpo.inspect.views import example_view
    from twdpo.weights_cache.statistics import summarize

    pairs = _demo_pairs()
    with WeightsCache.open(cache) as opened:
        layer = opened.layers[-1]
        for name in _SHOWN:
            pair = next(pair for pair in pairs if pair["id"] == name)
            view = example_view(find_example(opened, _hash(pair)), layer, color=show.has_color(console))
            console.print(view)
            console.print(f"what is wrong with the rejected answer: {pair['note']}\n", style="italic", soft_wrap=True)
        console.print(results.table(results.summary_rows(summarize(opened))))
        flaws = flaw_weight(opened, layer)
    console.print(
        f"\nThe errors marked in the {flaws.pairs} rejected answers are {flaws.text_share:.1%} of their text and get "
        f"{flaws.weight_share:.1%} of the weight; in {flaws.heavier:.0%} of the answers more than their share. "
        "A judge of this size sees little: try a larger one with twdpo annotate --model.",
        soft_wrap=True,
    )


def flaw_weight(cache: WeightsCache, layer: int) -> FlawWeight:
    """How much of the rejected answers' weight lies on the places that the demo pairs mark as wrong."""
    text, weight = [], []
    for pair in _demo_pairs():
        side = cache.get(_hash(pair)).rejected
        start = pair["rejected"].index(pair["flaw"])
        end = start + len(pair["flaw"])
        overlap = (side.ends.clip(max=end) - side.starts.clip(min=start)).clip(min=0)
        widths = (side.ends - side.starts).clip(min=1)
        text.append(len(pair["flaw"]) / len(pair["rejected"]))
        weight.append(float((side.weights[layer] * overlap / widths).sum() / side.weights[layer].sum()))
    return FlawWeight(
        pairs=len(text),
        text_share=sum(text) / len(text),
        weight_share=sum(weight) / len(weight),
        heavier=sum(w > t for w, t in zip(weight, text, strict=True)) / len(text),
    )


def _demo_pairs() -> list[dict[str, str]]:
    text = resources.files("twdpo.preferences.demo").joinpath("pairs.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def _hash(pair: dict[str, str]) -> str:
    prompt = tuple(Message(role=m["role"], content=m["content"]) for m in pair["prompt"])  # type: ignore[index]
    return example_hash(prompt, pair["chosen"], pair["rejected"])
