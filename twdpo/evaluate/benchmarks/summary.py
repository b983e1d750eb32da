"""What `twdpo generate` prints of its result. No logic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twdpo.evaluate.benchmarks.run import GenerateResult


def rate(tokens: int, seconds: float) -> str:
    """Tokens a second; nothing where none were generated."""
    return f"{tokens / seconds:,.0f} tokens/s" if tokens and seconds > 0 else ""


def generate_rows(result: GenerateResult) -> dict[str, Any]:
    """The summary of a run."""
    before = f" ({result.resumed:,} were there before)" if result.resumed else ""
    rows: dict[str, Any] = {"answered": f"{result.answered:,} of {result.official:,} of {result.title}{before}"}
    if result.cut:
        rows["cut"] = f"{result.cut:,} reached the most tokens that an answer may have"
    if result.empty:
        rows["empty"] = f"{result.empty:,} have an answer without a character"
    if result.tokens:
        rows["speed"] = rate(result.tokens, result.seconds)
    if result.note:
        rows["note"] = result.note
    return rows | {"file": result.path}


def next_lines(result: GenerateResult) -> list[str]:
    """What to do with the file."""
    if result.trial:
        return [
            f"\na trial: {result.answered:,} of {result.official:,} questions cannot be judged officially; "
            "run without --limit, or compare two such files with twdpo judge"
        ]
    return ["\nto judge it, with the judge's API key in the environment:", *(f"  {line}" for line in result.commands)]
