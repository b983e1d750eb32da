"""Does weighting help? DPO, attention in three forms and three controls, at four betas, on short real pairs.

    python benchmarks/does_weighting_help.py ultrafeedback.parquet [--out weighting]

Picks the pairs that are short enough and whose scores differ, writes them and a `compare.yaml` into --out, and runs
`twdpo compare` on it. Run the same command again to go on, or `twdpo compare weighting/compare.yaml` beside it to share
the runs. On a GPU: --max-tokens 1024 --heldout 500 --batch 32 --dtype bfloat16.
Not for: what the figures mean (docs/experiments/does-weighting-help.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from machine import describe

from twdpo import cli
from twdpo.pipeline.models import load_tokenizer

#: Least tokens of an answer.
_LEAST = 8

ARMS: dict[str, dict[str, Any]] = {
    "dpo": {"source": "uniform", "uncovered": "one"},
    "attention": {"uncovered": "zero"},
    "attention-eot": {"uncovered": "one"},
    "mean": {"attn_source": "mean", "uncovered": "one"},
    "shuffled": {"source": "shuffled", "uncovered": "one"},
    "random": {"source": "random", "uncovered": "one"},
    "position": {"source": "position", "source_options": "gamma=0.98", "uncovered": "one"},
}


def short_pairs(file: Path, model: str, prompt_tokens: int, answer_tokens: int) -> Any:
    """The rows of a table of messages whose prompt and answers have so few tokens, and whose scores differ."""
    tokenizer = load_tokenizer(model)
    table = pq.read_table(file)

    def tokens(text: str) -> int:
        return len(tokenizer(text).input_ids)

    kept = []
    for number, row in enumerate(table.to_pylist()):
        answers = [tokens(row[side][-1]["content"]) for side in ("chosen", "rejected")]
        prompt = sum(tokens(message["content"]) for message in row["chosen"][:-1])
        is_short = prompt <= prompt_tokens and all(_LEAST <= each <= answer_tokens for each in answers)
        if is_short and row["score_chosen"] > row["score_rejected"]:
            kept.append(number)
    return table.take(kept)


def settings(options: argparse.Namespace, pairs: Path) -> dict[str, Any]:
    """The comparison's file."""
    return {
        "dataset": str(pairs),
        "model": options.model,
        "out": str(Path(options.out) / "comparison"),
        "betas": options.betas,
        "seeds": options.seeds,
        "arms": ARMS,
        "annotate": {"dtype": options.dtype},
        "train": {
            "learning_rate": 2e-5,
            "batch_size": options.batch,
            "max_length": 512 if options.max_tokens <= 132 else 2048,
            "dtype": options.dtype,
            "eval_split": str(options.heldout),
        },
    }


def main() -> int:
    """Pick the pairs and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path, help="parquet file with chosen, rejected, score_chosen, score_rejected")
    parser.add_argument("--out", default="weighting")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--max-tokens", type=int, default=132, help="of an answer; of the prompt five sixths of it")
    parser.add_argument("--heldout", type=int, default=90)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", default="float32", help="of judging and training; measuring is in float32")
    parser.add_argument("--betas", type=float, nargs="+", default=[0.01, 0.2, 0.8, 3.2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    table = short_pairs(options.pairs, options.model, options.max_tokens * 5 // 6, options.max_tokens)
    pq.write_table(table, out / "pairs.parquet.new")
    (out / "pairs.parquet.new").replace(out / "pairs.parquet")  # another process may be reading it
    print(f"{describe()}\n{table.num_rows} pairs")
    (out / "compare.yaml").write_text(yaml.safe_dump(settings(options, out / "pairs.parquet"), sort_keys=False))
    return cli.main(["compare", str(out / "compare.yaml")])


if __name__ == "__main__":
    raise SystemExit(main())
