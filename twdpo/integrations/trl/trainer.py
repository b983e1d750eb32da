"""DPOTrainer of TRL with the token-weighted objective: its loop, its losses, our weights.

TRL sums each response's log-probs over its tokens and does everything else with the sums. Here every log-prob is
multiplied by its token's weight before, for policy and reference alike, on the fly and precomputed. So with all weights
1 nothing differs. Not for: rows without TRL (`twdpo.pipeline.train`).
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import trl
from datasets import Dataset, Features, Sequence, Value
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase
from trl.trainer.dpo_trainer import DPOTrainer

from twdpo.errors import DataError, UsageError
from twdpo.integrations.trl.pairs import KEY, ProcessCache, Selection, pair_columns
from twdpo.integrations.trl.rows import RowWeights
from twdpo.integrations.trl.settings import WeightSettings, check_arguments, check_row
from twdpo.integrations.trl.weighting import CHOSEN_WEIGHTS, REJECTED_WEIGHTS, LogProbWeighting, WeightsCollator
from twdpo.weights_cache import Manifest
from twdpo.weights_cache.manifest import DATA
from twdpo.weights_cache.shards import list_shards

if tuple(map(int, trl.__version__.split(".")[:2])) < (1, 16):
    raise ImportError(f"this is trl {trl.__version__}")

logger = logging.getLogger(__name__)

#: Rows that get their weights together: as many as lie in few row groups of the cache.
_WINDOW = 256
_FEATURES = Features(
    {name: Sequence(Value("int64")) for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
    | {name: Sequence(Value("float32")) for name in (CHOSEN_WEIGHTS, REJECTED_WEIGHTS)}
)


class TwDPOTrainer(DPOTrainer):
    """TRL's DPOTrainer, in which each token of an answer counts as much as its weight in a cache.

    weights: the folder of the cache. attn_source, sink_fix, uncovered, uniform_mix, missing: as in `TrainConfig`. All
    other arguments are those of DPOTrainer. With `uniform_mix=1.0, uncovered="one"` it is DPOTrainer. Rewards and
    log-probs that it logs are the weighted ones.

    Raises UsageError where a setting or the data set leaves no meaning to weights, CacheError or MissingRows where the
    cache lacks what is asked for, DataError where no pair is left.
    """

    data_collator: Any
    _signature_columns: Any
    _tag_names: ClassVar[list[str]] = ["trl", "dpo", "twdpo"]

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: Any = None,
        *,
        weights: str | Path,
        attn_source: str = "last",
        sink_fix: bool = True,
        uncovered: str = "zero",
        uniform_mix: float = 0.0,
        missing: str = "error",
        **options: Any,
    ) -> None:
        self._settings = WeightSettings.of(
            weights,
            attn_source=attn_source,
            sink_fix=sink_fix,
            uncovered=uncovered,
            uniform_mix=uniform_mix,
            missing=missing,
        )
        if args is not None:
            check_arguments(args)
        if options.get("data_collator") is not None:
            raise UsageError("a data_collator of your own would leave the weights behind; leave it out")
        self._weighting = LogProbWeighting()
        super().__init__(model, ref_model, args, **options)
        self._attach_weights()

    def _attach_weights(self) -> None:
        """Put the weights between TRL's collator and its loss; may be called again."""
        if not isinstance(self.data_collator, WeightsCollator):
            self.data_collator = WeightsCollator(self.data_collator)
        self._weighting.attach(self.model)
        self._weighting.attach(self.ref_model)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        """TRL's token columns, and a weight for each token of the completions."""
        if not isinstance(processing_class, PreTrainedTokenizerBase):
            raise UsageError("weights need a tokenizer; pass processor.tokenizer as processing_class")
        first = next(iter(dataset), None)
        if first is None:
            raise DataError(f"the {dataset_name} data set is empty")
        check_row(first, dataset_name)
        cache = ProcessCache(self._settings)
        row_weights = RowWeights(processing_class, cache, self._settings.rules)
        selection = Selection(cache, self._settings.missing)
        streamed = not isinstance(dataset, Dataset)
        with args.main_process_first():
            described = {} if streamed else {"desc": f"Hashing the pairs of {dataset_name} dataset"}
            dataset = dataset.map(pair_columns, with_indices=True, **described)
            dataset = dataset.filter(selection.wants) if streamed else selection.of(dataset)
        dataset = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        first = next(iter(dataset), None)
        if first is None:
            raise DataError(f"no pair is left to train on: every prompt fills max_length={args.max_length}")
        options = {"batched": True, "batch_size": _WINDOW, "remove_columns": list(first), "features": _FEATURES}
        if streamed:
            return dataset.map(row_weights, **options)
        cache.here.prepare_for(dataset[KEY][:], _WINDOW)
        with args.main_process_first():
            weighted = dataset.map(
                row_weights,
                desc=f"Weighting {dataset_name} dataset",
                new_fingerprint=self._fingerprint(dataset, args),
                **options,
            )
        if not len(weighted):
            raise DataError(f"no pair is left to train on: {_listed(row_weights.skipped)}")
        left_out = selection.left_out + row_weights.skipped
        if left_out and args.process_index == 0:
            logger.warning(f"{left_out.total()} rows of the {dataset_name} data set are left out: {_listed(left_out)}")
        return weighted

    def _fingerprint(self, dataset: Any, args: Any) -> str:
        """Of the tokens with these weights, cut like this: TRL finds the reference sums that it keeps by it."""
        shards = [path.name for path in list_shards(self._settings.folder / DATA)]
        manifest = Manifest.load(self._settings.folder).fingerprint
        cut = (args.max_length, args.truncation_mode)
        return str(Hasher.hash([dataset._fingerprint, manifest, shards, repr(self._settings.rules), cut]))

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if CHOSEN_WEIGHTS not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, CHOSEN_WEIGHTS, REJECTED_WEIGHTS]

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Called within `__init__`, after the models and the collator are there."""
        self._attach_weights()
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
        """The reference's weighted sums of a batch."""
        with self._weighting.of(inputs, passes=1) as batch:
            return super().compute_ref_log_probs(model, batch)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss of weighted sums."""
        with self._weighting.of(inputs, passes=1 if self.precompute_ref_logps else 2) as batch:
            return super().compute_loss(model, batch, return_outputs, num_items_in_batch)


def _listed(reasons: Counter[str]) -> str:
    return "; ".join(f"{count} {reason}" for reason, count in reasons.items())
