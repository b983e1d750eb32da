"""The preference pairs that are embedded in the package (``pairs.jsonl``)."""
