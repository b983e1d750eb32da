"""Both commands on real pairs, as a user types them: time, memory, size, and how the training went.

    python benchmarks/real_run.py PAIRS.parquet --limit 300 --out runs/real

Prints a Markdown table with date and machine. Not for: comparing with anything (see annotate.py).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from machine import describe


def run(arguments: list[str]) -> tuple[float, float]:
    """Run `twdpo` with `arguments`; wall seconds and the peak resident memory of any child so far, in MiB."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "twdpo", *arguments], check=True)
    seconds = time.perf_counter() - started
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def size(folder: Path) -> int:
    """Bytes of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Annotate, train, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs")
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    parser.add_argument("--train", nargs=argparse.REMAINDER, default=[], help="further options of twdpo train")
    options = parser.parse_args()
    cache, model = options.out / "weights_cache", options.out / "trained"
    if model.exists() or cache.exists():
        sys.exit(f"{options.out} holds an earlier run; choose another --out, or its figures would be those of a resume")

    annotate = ["annotate", "--dataset", options.pairs, "--limit", str(options.limit), "--out", str(cache)]
    seconds, memory = run(annotate)
    manifest = json.loads((cache / "manifest.json").read_text())
    pairs = manifest["counts"]["pairs"]
    tokens = json.loads(
        subprocess.run(
            [sys.executable, "-m", "twdpo", "inspect", str(cache), "--json"], check=True, capture_output=True, text=True
        ).stdout
    )["tokens"]
    layers = len(manifest["recipe"]["layers"])
    train_seconds, train_memory = run(["train", "--weights", str(cache), "--out", str(model), *options.train])
    lines = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "eval_loss" in line]

    print(f"\n{describe()}\n")
    print("| what | figure |\n|---|---|")
    print(
        f"| annotate: {pairs} pairs ({manifest['counts']['truncated']} truncated), model loading included | "
        f"{seconds:.0f} s, {pairs / seconds:.2f} pairs/s |"
    )
    print(f"| peak memory of annotate | {memory:,.0f} MiB |")
    print(
        f"| cache, {layers} layers, {tokens:,} judged tokens | {size(cache) / 1e6:.2f} MB, "
        f"{size(cache) / tokens / layers:.2f} bytes a weight |"
    )
    print(f"| train {' '.join(options.train)}: {len(steps)} steps | {train_seconds:.0f} s |")
    print(f"| peak memory of either | {train_memory:,.0f} MiB |")
    for name, rows in (("first quarter", steps[: len(steps) // 4]), ("last quarter", steps[-(len(steps) // 4) :])):
        loss, margin, accuracy = (
            sum(row[key] for row in rows) / len(rows)
            for key in ("loss", "rewards/weighted_margins", "rewards/weighted_accuracies")
        )
        print(
            f"| mean of the {name} of the steps | loss {loss:.4f}, weighted margin {margin:+.4f}, "
            f"accuracy {accuracy:.1%} |"
        )
    for row in evaluations:
        print(
            f"| held out, after step {row['step']} | loss {row['eval_loss']:.4f}, weighted margin "
            f"{row['eval_rewards/weighted_margins']:+.4f}, accuracy {row['eval_rewards/weighted_accuracies']:.1%} |"
        )


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
