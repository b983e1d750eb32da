"""What an import can be told. The field names are the flags' names."""

from __future__ import annotations

from dataclasses import dataclass

from twdpo.errors import UsageError

FORMATS = ("auto", "attentionpo", "tis")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportConfig:
    """The configuration of an import.

    dataset: a local file or folder, or a hub id, with the weights in columns of its own. tokenizer: of the tokens that
    the weights belong to; None for the judge's, or the known one of a published data set. judge_model: recorded in the
    recipe, and the default policy of stage two. layers: numbers separated by commas, or `attention_rollout`; None for
    every layer there is. log_ratios: TIS-DPO's values are raw log-ratios, to be transformed as published.
    Raises UsageError where a value is out of range.
    """

    dataset: str
    out: str = "weights_cache"
    split: str | None = None
    format: str = "auto"
    tokenizer: str | None = None
    judge_model: str | None = None
    layers: str | None = None
    log_ratios: bool = False
    include_text: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UsageError(f"--format {self.format} is not known; choose one of {', '.join(FORMATS)}")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit {self.limit} is too small; the least is 1")


HELP = {
    "dataset": "Data set with weights: a file or folder (parquet, jsonl, json, arrow, save_to_disk), or a hub id such "
    "as AttentionPO/llama-3-8b-dataset.",
    "out": "Folder of the weights cache; one that is there is gone on with.",
    "split": "Split of the data set.",
    "format": "attentionpo (token ids beside weights that sum to 1), tis (one weight for each token of an answer), or "
    "auto, by the columns.",
    "tokenizer": "Tokenizer of the tokens that were weighted, a folder or a hub id; the judge's, and known for "
    "AttentionPO's own data sets, unless given.",
    "judge_model": "Judge to record in the recipe, also stage two's default policy; known for AttentionPO's own data "
    "sets.",
    "layers": "Layers to take, such as 7,15,31, or attention_rollout; all unless given.",
    "log_ratios": "The weights are TIS-DPO's raw log-ratios: negate those of chosen answers, clamp to -1.5 to 1.5, map "
    "to 0.7 to 1.3.",
    "include_text": "Store prompt and answers beside the weights.",
    "limit": "Import the first so many rows only.",
}
