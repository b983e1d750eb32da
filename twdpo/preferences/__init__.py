"""Pairs come in: named sources, local files and the hub, in every common preference format.

    for item in load(resolve("ultrafeedback"), limit=100):
        ...  # a Pair, or a Reject that says why the row cannot be used

Not for: judging or training on pairs. Importing this package imports neither pyarrow nor datasets.
"""

from twdpo.preferences.formats import Reject, check_columns, parse_row
from twdpo.preferences.pair import Message, Pair, example_hash
from twdpo.preferences.sources import NAMED, Source, resolve
from twdpo.preferences.stream import PairStream, draw_rows, load

__all__ = [
    "NAMED",
    "Message",
    "Pair",
    "PairStream",
    "Reject",
    "Source",
    "check_columns",
    "draw_rows",
    "example_hash",
    "load",
    "parse_row",
    "resolve",
]
