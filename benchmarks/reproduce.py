"""What the paper's two set-ups cost in GPU hours: operations counted, rates assumed.

    python benchmarks/reproduce.py                         the table of docs/reproduce.md
    python benchmarks/reproduce.py measure PAIRS.parquet   the tokens that it takes for given

Operations follow from the model's shape and from token counts measured on UltraFeedback; what a GPU reaches of its
peak is `scale_model.ASSUMED`, since no GPU was at hand. Not for: the speed of anything (annotate.py, train.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from scale_model import ASSUMED, JUDGES, TOKENS

from twdpo.pipeline.flops import DecoderShape, peak_flops

HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A set-up of the paper: its data, and how often the test split is evaluated."""

    name: str
    pairs: int
    heldout: int
    evaluations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Mean tokens of a pair in training: the prompt, and each completion."""

    prompt: float
    chosen: float
    rejected: float

    @property
    def completions(self) -> float:
        """Tokens whose log-probs are wanted."""
        return self.chosen + self.rejected


#: Pairs to train on are those of the published scripts' file names, held-out ones those that the hub shows. Steps of 32
#: pairs; an evaluation at the beginning, every 500, and at the end.
SETUPS = (
    Setup(name="llama3-8b-base", pairs=61_135, heldout=2_000, evaluations=5),
    Setup(name="llama3-8b-instruct", pairs=59_876, heldout=1_960, evaluations=5),
)
#: Of 2,177 UltraFeedback pairs, with SmolLM2's tokenizer and chat template.
LENGTHS = Lengths(prompt=205, chosen=307, rejected=253)
SHAPE = next(judge for judge in JUDGES if judge.name == "8B").shape


def forward(shape: DecoderShape, lengths: Lengths) -> float:
    """Operations of one forward pass over a pair of mean length: the prompt once, the head on completions only."""
    prompt, chosen, rejected = (round(n) for n in (lengths.prompt, lengths.chosen, lengths.rejected))
    decoder = shape.prompt_flops(prompt + chosen) + shape.prompt_flops(prompt + rejected) - shape.prompt_flops(prompt)
    return decoder + 2.0 * shape.head * lengths.completions


def parts(setup: Setup) -> Iterator[tuple[str, int, float]]:
    """What is computed, for how many pairs, and operations a pair. A backward pass is two forward ones, and gradient
    checkpointing computes one more."""
    judge = next(judge for judge in JUDGES if judge.name == "8B")
    once = forward(SHAPE, LENGTHS)
    yield "judging, both orders", setup.pairs + setup.heldout, judge.pair_flops(TOKENS)
    yield "reference log-probs", setup.pairs + setup.heldout, once
    yield "training, activations computed again", setup.pairs, 4 * once
    yield f"evaluations, {setup.evaluations}", setup.heldout * setup.evaluations, once


def hours(operations: float, share: float) -> float:
    """GPU hours at a share of the peak."""
    peak = peak_flops(ASSUMED.gpu, "bfloat16")
    assert peak is not None
    return operations / (peak * share) / HOUR


def table() -> str:
    """Markdown: a row a part and set-up, and their sums."""
    shares = " | ".join(f"GPU hours at {share:.0%}".replace("%", " %") for share in ASSUMED.mfu)
    lines = [f"| recipe | what | pairs | TFLOP a pair | {shares} |", "|---|---|---|---|---|---|---|"]
    for setup in SETUPS:
        total = 0.0
        for name, pairs, operations in parts(setup):
            total += pairs * operations
            cells = " | ".join(f"{hours(pairs * operations, share):.2f}" for share in ASSUMED.mfu)
            lines.append(f"| `{setup.name}` | {name} | {pairs:,} | {operations / 1e12:.1f} | {cells} |")
        cells = " | ".join(f"**{hours(total, share):.1f}**" for share in ASSUMED.mfu)
        lines.append(f"| `{setup.name}` | all of it | | | {cells} |")
    return "\n".join(lines)


def measure(dataset: str) -> Lengths:
    """Mean tokens of the pairs of `dataset`, with the default model's tokenizer and chat template."""
    from twdpo.pipeline.models import load_tokenizer
    from twdpo.pipeline.train.render import Renderer
    from twdpo.preferences import Pair, load, resolve

    renderer = Renderer(load_tokenizer("smollm2-135m"), max_length=1 << 20)
    rendered = [renderer.render(pair) for pair in load(resolve(dataset)) if isinstance(pair, Pair)]
    count = len(rendered)
    return Lengths(
        prompt=sum(r.chosen.prompt_length for r in rendered) / count,
        chosen=sum(r.chosen.completion_length for r in rendered) / count,
        rejected=sum(r.rejected.completion_length for r in rendered) / count,
    )


def main() -> None:
    """Print the table, or the tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["table", "measure"], default="table")
    parser.add_argument("dataset", nargs="?", default="ultrafeedback")
    options = parser.parse_args()
    print(table() if options.what == "table" else measure(options.dataset))


if __name__ == "__main__":
    main()
