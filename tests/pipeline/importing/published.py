"""Data sets in the published layouts, made of pairs that this project judged itself, and tokenizers to make them with.

Not for: real published data; see the parity test in `test_attentionpo.py` for that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.fixtures.tiny_models import tiny_tokenizer
from twdpo.pipeline.annotate.engines.fake import FakeEngine
from twdpo.pipeline.annotate.prompt import PromptBuilder, load_template
from twdpo.pipeline.annotate.rows import make_row
from twdpo.preferences import Message, Pair
from twdpo.weights_cache import WeightRow, WeightsCache

LAYERS = (0, 3)
#: Answers whose characters and tokens do not go together, white space at both ends, and text that means something to a
#: template or a tokenizer.
ANSWERS = (
    "Four.",
    "  It is four \n",
    "It is 👩‍👩‍👧 and 🇩🇪, or é and e\u0301; or ﬁ.",
    "二加二等于四。\n\n  これは四です!",
    "<|im_end|>\n<|im_start|>assistant\n<|endoftext|> and <0x0A>, ▁ too",
    "\t\u3000\u00a0مرحبا، 2 + 2 = 4\r\n",
    "def f(x):\n    return x + 2\n\n\n# done",
    "x",
)


def pairs() -> list[Pair]:
    """Every answer against the next one."""
    return [
        Pair(prompt=(Message(role="user", content=f"Question {i}?"),), chosen=chosen, rejected=rejected, row=i)
        for i, (chosen, rejected) in enumerate(zip(ANSWERS, (*ANSWERS[1:], ANSWERS[0]), strict=True))
    ]


def judged(
    tokenizer: Any, some: Sequence[Pair] | None = None, max_length: int = 2048
) -> tuple[list[dict[str, Any]], list[WeightRow]]:
    """Rows in AttentionPO's layout, as stage one with the fake engine judges the pairs, and its own cache rows."""
    builder = PromptBuilder(tokenizer, template=load_template(None), max_length=max_length)
    engine, rows, own = FakeEngine(), [], []
    for pair in some or pairs():
        prompts = (builder.build(pair, "cr"), builder.build(pair, "rc"))
        readings = engine.read(prompts, LAYERS, builder.verdict_ids())
        made = make_row(pair, prompts, (readings[0], readings[1]), LAYERS)
        own.append(made)
        row = as_row(pair)
        for side, span in (("chosen", prompts[0].answer_a), ("rejected", prompts[0].answer_b)):
            row[f"{side}_tokens"] = prompts[0].ids[span.first : span.last].tolist()
            for layer, weights in made.side(side).weights.items():
                row[f"{side}_weights_{layer}"] = (weights.astype(np.float64) / weights.sum(dtype=np.float64)).tolist()
        rows.append(row)
    return rows, own


def as_row(pair: Pair) -> dict[str, Any]:
    """A pair as AttentionPO's data sets write it."""
    question = pair.prompt[-1].content
    turns = [{"role": message.role, "content": message.content} for message in pair.prompt]
    return {
        "prompt": question,
        "prompt_id": "0",
        "chosen": [*turns, {"role": "assistant", "content": pair.chosen}],
        "rejected": [*turns, {"role": "assistant", "content": pair.rejected}],
    }


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """The rows as JSON lines, or as Parquet where the name says so."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def stored(folder: Path) -> dict[str, WeightRow]:
    """The rows of a cache by their hashes."""
    with WeightsCache.open(folder) as cache_:
        return {row.example_hash: row for row in cache_.rows()}


def assert_same(imported: WeightRow, own: WeightRow, layers: Sequence[int] = LAYERS) -> None:
    """Offsets are equal, and weights as far as a cache keeps them."""
    for name in ("chosen", "rejected"):
        got, expected = imported.side(name), own.side(name)
        np.testing.assert_array_equal(got.starts, expected.starts)
        np.testing.assert_array_equal(got.ends, expected.ends)
        assert set(got.weights) == set(layers)
        for layer in layers:
            np.testing.assert_allclose(got.weights[layer], expected.weights[layer], rtol=2**-11)


def save_tokenizer(folder: Path) -> Path:
    """The tiny tokenizer in a folder that looks like a model's."""
    tiny_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@cache
def _sentencepiece_json() -> str:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    alphabet = [chr(i) for i in range(33, 127)] + ["▁"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>", "<s>", *byte_tokens], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["The answer is four and the other is five", "It is four, return x + 2"], trainer)
    state = json.loads(backend.to_str())
    # They had to be special for the trainer; in a real vocabulary they are tokens like any other.
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    return json.dumps(state)


def sentencepiece_tokenizer() -> Any:
    """A tokenizer such as Llama 2's: ▁ for a space, one put before the text, and tokens for the bytes of the rest."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=Tokenizer.from_str(_sentencepiece_json()), bos_token="<s>", unk_token="<unk>")


def letters_tokenizer(decoder: Any) -> Any:
    """A tokenizer of single letters, whose vocabulary says nothing of bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [chr(i) for i in range(32, 127)] + ["é", "四"]
    words = {letter: number for number, letter in enumerate(["<unk>", *letters])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoder
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=backend, unk_token="<unk>")
