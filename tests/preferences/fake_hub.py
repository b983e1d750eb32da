"""Data sets for the small hub of `test_hub.py`. Not for: how it answers (`tests/fixtures/hub.py`)."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from tests.fixtures.hub import Hub

COMMIT = "a" * 40


def parquet(rows: int, answer: str) -> bytes:
    table = pa.table(
        {
            "prompt": [f"question {i}" for i in range(rows)],
            "chosen": [[{"role": "assistant", "content": f"{answer} {i}"}] for i in range(rows)],
            "rejected": [[{"role": "assistant", "content": "no"}] for _ in range(rows)],
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def card(configs: Mapping[str, list[str]]) -> bytes:
    lines = ["---", "license: mit", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split in splits:
            lines += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    return "\n".join([*lines, "---", ""]).encode()


REPOSITORIES: dict[str, dict[str, bytes]] = {
    "org/pairs": {
        "README.md": card({"default": ["train_prefs", "test_prefs"]}),
        "default/train_prefs-00000-of-00001.parquet": parquet(5, "train"),
        "default/test_prefs-00000-of-00001.parquet": parquet(2, "test"),
    },
    "org/two-configs": {
        "README.md": card({"helpful": ["train"], "harmless": ["train"]}),
        "helpful/train-00000-of-00001.parquet": parquet(3, "helpful"),
        "harmless/train-00000-of-00001.parquet": parquet(4, "harmless"),
    },
    "org/no-pairs": {"train.jsonl": b'{"text": "only text"}\n'},
}


@contextmanager
def serve() -> Iterator[str]:
    """Run the hub; gives its address."""
    hub = Hub()
    for name, files in REPOSITORIES.items():
        hub.add(name, files, commit=COMMIT)
    hub.add("org/gated", {}, commit=COMMIT, gated=True)
    hub.add("org/busy", {}, commit=COMMIT, status=503)
    with hub.serve() as endpoint:
        yield endpoint
