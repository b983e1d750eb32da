"""The columns of a shard, how each is encoded, and what stands in a shard's own metadata.

Not for: checking rows (`rows.py`) or writing files (`shards.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from twdpo import __version__
from twdpo.weights_cache.mantissa import MANTISSA_BITS

#: Raised when a program of the old format would misread the new one, or write into it what breaks its invariants.
#: 2: weights have 11 explicit mantissa bits, and a shard says how many; 1: they have 12.
SCHEMA_VERSION = 2

SIDES = ("chosen", "rejected")
KEY = "example_hash"
#: One float32 a row; NaN where the weight source has no such figure.
FLOATS = (
    "judge_prob_cr",
    "judge_prob_rc",
    "attention_share_chosen",
    "attention_share_rejected",
    "order_agreement_chosen",
    "order_agreement_rejected",
)
TEXTS = ("prompt", "chosen", "rejected")

_PREFIX = "twdpo."
#: Of shards that do not say it: those of schema 1.
_MANTISSA_BITS_1 = 12


def weights_column(side: str, layer: int) -> str:
    """The column that holds one side's weights of one layer."""
    return f"{side}_weights_{layer}"


def offset_columns(side: str) -> tuple[str, str]:
    """The columns of first characters and of ends (one past the last character) of one side's judge tokens."""
    return f"{side}_starts", f"{side}_ends"


def weights_schema(layers: Sequence[int], *, include_text: bool) -> pa.Schema:
    """The Arrow schema of a weights shard; nothing in it is nullable."""
    fields = [_field(KEY, pa.string())]
    for side in SIDES:
        fields += [_list(name, pa.int32()) for name in offset_columns(side)]
        fields += [_list(weights_column(side, layer), pa.float32()) for layer in layers]
    fields += [_field(name, pa.float32()) for name in FLOATS]
    fields.append(_field("truncated", pa.bool_()))
    if include_text:
        message = pa.struct([_field("role", pa.string()), _field("content", pa.string())])
        fields += [_list("prompt", message), _field("chosen", pa.string()), _field("rejected", pa.string())]
    return pa.schema(fields)


def reference_schema() -> pa.Schema:
    """The Arrow schema of a shard of reference log-probs."""
    return pa.schema([_field(KEY, pa.string()), *(_list(f"{side}_logps", pa.float32()) for side in SIDES)])


def encodings(schema: pa.Schema) -> dict[str, str]:
    """The Parquet encoding of each leaf column: byte-stream split for floats, delta for integers, plain for the rest.

    Only leaves that are not plain are named.
    """
    found = {}
    for column in schema:
        is_list = pa.types.is_list(column.type)
        value = column.type.value_type if is_list else column.type
        path = f"{column.name}.list.element" if is_list else column.name
        if pa.types.is_floating(value):
            found[path] = "BYTE_STREAM_SPLIT"
        elif pa.types.is_integer(value):
            found[path] = "DELTA_BINARY_PACKED"
    return found


def shard_metadata(*, kind: str, fingerprint: str, mantissa_bits: int = MANTISSA_BITS) -> dict[str, str]:
    """What a shard says of itself, so that a shard moved to a wrong folder is noticed."""
    metadata = {"kind": kind, "fingerprint": fingerprint, "schema_version": str(SCHEMA_VERSION), "version": __version__}
    if kind == "weights":
        metadata["mantissa_bits"] = str(mantissa_bits)
    return {f"{_PREFIX}{key}": value for key, value in metadata.items()}


def stored_mantissa_bits(said: Mapping[str, str]) -> int:
    """How many explicit mantissa bits a shard's weights may use, by what `read_shard_metadata` found in it.

    Raises ValueError where that is no such number.
    """
    bits = int(said.get("mantissa_bits", _MANTISSA_BITS_1))
    if bits not in range(24):
        raise ValueError(f"it says that its weights use {bits} bits of their mantissa")
    return bits


def same_type(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a column of another tool's making serves as one of the type `wanted`.

    Tools that rewrite a shard lose `not null` and the name of the lists' items, and may count in 64 bits.
    """
    lost = ((" not null", ""), ("item:", "element:"), ("large_", ""))
    one, other = str(found), str(wanted)
    for old, new in lost:
        one, other = one.replace(old, new), other.replace(old, new)
    return one == other


def read_shard_metadata(metadata: dict[bytes, bytes] | None) -> dict[str, str]:
    """The part of a Parquet file's key-value metadata that `shard_metadata` wrote, without the common prefix."""
    decoded = {
        key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, value in (metadata or {}).items()
    }
    return {key.removeprefix(_PREFIX): value for key, value in decoded.items() if key.startswith(_PREFIX)}


def _field(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


def _list(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, pa.list_(pa.field("element", kind, nullable=False)), nullable=False)
