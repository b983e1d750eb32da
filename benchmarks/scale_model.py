"""A model of stage one's cost: what each part of a run needs by itself, and what decides. `scale.py` prints it.

What it takes for given stands in `TOKENS` and `RATES`, which were measured, and in `ASSUMED`. No GPU was at hand: what
a judge reaches of a GPU's peak is an assumption, given as a range. Not for: measuring (`scale_rates.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from scale_failures import Losses, Machines, expected

from twdpo.pipeline.flops import DecoderShape, peak_flops

DAY = 86_400.0
Way = Literal["parts", "files", "ray"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Tokens of a prompt, of the template's head, of what a pair's two prompts begin with alike, of its two answers."""

    prompt: float
    head: float
    shared: float
    answers: float

    @property
    def computed(self) -> float:
        """Tokens a pair that go through the judge: the head once a run, question and head once a pair."""
        return 2 * self.prompt - self.head - self.shared


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What one core of a processor does, and what a row takes; `measure` prints these.

    prompts: pairs/s rendered and tokenized in both orders. read: rows/s read, hashed and passed over. made, written:
    rows/s. compacted: rows/s. merged: bytes/s. listed, counted: seconds for a shard's keys,
    as a run begins with, and for keys and flags, as it ends with. row, source: bytes a row
    of the cache and of the data set. hash_set, index_peak, index: bytes a row in memory.
    """

    prompts: float
    read: float
    made: float
    written: float
    compacted: float
    merged: float
    listed: float
    counted: float
    row: float
    source: float
    hash_set: float
    index_peak: float
    index: float = 40.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What nobody measured here.

    mfu: of a GPU's peak, low, middle and high. disk: bytes/s that a shared file system reads for all together.
    interruptions: for each GPU and day: 419 unexpected ones in 54 days on 16,384 GPUs (Llama 3, arXiv:2407.21783).
    machine: GPUs that one interruption takes. restart: seconds until a worker judges again.
    """

    gpu: str = "NVIDIA H100 80GB HBM3"
    mfu: tuple[float, float, float] = (0.3, 0.4, 0.5)
    disk: float = 20e9
    interruptions: float = 419 / 54 / 16_384
    machine: int = 8
    restart: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """A judge in bfloat16; `gpus` hold one copy of it together. tied: whether embedding and head are one matrix."""

    name: str
    shape: DecoderShape
    hidden: int
    mlp: int
    gpus: int
    tied: bool

    def pair_flops(self, tokens: Tokens) -> float:
        """Operations for a pair whose prompts are as long as the mean one; what begins alike is computed once."""
        prompt, shared, head = (round(n) for n in (tokens.prompt, tokens.shared, tokens.head))
        whole = 2 * self.shape.prompt_flops(prompt)
        return whole - self.shape.prompt_flops(shared) - self.shape.prompt_flops(head) + 4.0 * self.shape.head

    def memory(self, tokens: int) -> float:
        """Bytes a GPU: weights, and activations of a pass of so many tokens: three of the MLP's width, four hidden."""
        parameters = sum(self.shape.linear) + self.shape.head * (1 if self.tied else 2)
        return 2.0 * (parameters + tokens * 3 * self.mlp) / self.gpus + 2.0 * tokens * 4 * self.hidden


def decoder(
    *, hidden: int, layers: int, heads: int, kv_heads: int, head_dim: int, mlp: int, words: int
) -> DecoderShape:
    """The shape of a Llama-like decoder."""
    linear = 2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim + 3 * hidden * mlp
    return DecoderShape(
        linear=(linear,) * layers, width=heads * head_dim, windows=(None,) * layers, head=hidden * words
    )


_135M = decoder(hidden=576, layers=30, heads=9, kv_heads=3, head_dim=64, mlp=1536, words=49_152)
_8B = decoder(hidden=4096, layers=32, heads=32, kv_heads=8, head_dim=128, mlp=14_336, words=128_256)
_70B = decoder(hidden=8192, layers=80, heads=64, kv_heads=8, head_dim=128, mlp=28_672, words=128_256)
#: SmolLM2-135M, and the shapes of Llama 3's 8B and 70B.
JUDGES = (
    Judge(name="135M", shape=_135M, hidden=576, mlp=1536, gpus=1, tied=True),
    Judge(name="8B", shape=_8B, hidden=4096, mlp=14_336, gpus=1, tied=False),
    Judge(name="70B", shape=_70B, hidden=8192, mlp=28_672, gpus=4, tied=False),
)
PAIRS = (60_000, 10_000_000, 1_000_000_000)
GPUS = (1, 8, 1000)
#: Of 2,177 UltraFeedback pairs, with SmolLM2's tokenizer.
TOKENS = Tokens(prompt=966, head=157, shared=349, answers=548)
#: AMD EPYC (Zen 5), 25 November 2026; CPU seconds, all files in memory. A row is what docs/caches.md has: 2.07 bytes a
#: weight, five layers.
RATES = Rates(
    prompts=296,
    read=20_757,
    made=6_734,
    written=953,
    compacted=1_254,
    merged=429e6,
    listed=0.43e-3,
    counted=0.69e-3,
    row=2.07 * 5 * 548,
    source=2_096,
    hash_set=130,
    index_peak=123,
)
ASSUMED = Assumed()
#: A shard is written when it has so many rows, or after so many seconds (`CacheWriter`); tokens of a pass on a GPU.
SHARD_ROWS, SHARD_SECONDS, PASS_TOKENS = 512, 60.0, 32_768


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Stage one once. Times are seconds of the whole run, failures left out.

    way: "parts" is `--shard i/n`, all into one folder; "files" gives each worker a file and a folder of its own; "ray"
    is `--runner ray`. a_gpu: workers that share a GPU. GPU, the thread that reads ahead, the one that writes behind and
    the file system work at the same time; counting comes last.
    """

    judge: Judge
    pairs: int
    gpus: int
    mfu: float
    way: Way = "parts"
    a_gpu: int = 1

    @property
    def workers(self) -> int:
        """Copies of the judge."""
        return self.gpus * self.a_gpu // self.judge.gpus

    @property
    def share(self) -> float:
        """Pairs a worker."""
        return self.pairs / self.workers

    @property
    def judging(self) -> float:
        """What the GPUs need."""
        peak = peak_flops(ASSUMED.gpu, "bfloat16")
        assert peak is not None
        return (
            self.pairs * self.judge.pair_flops(TOKENS) / (self.workers * self.judge.gpus * peak * self.mfu / self.a_gpu)
        )

    @property
    def prompts(self) -> float:
        """Rendering and tokenizing a worker's pairs, on one core."""
        return self.share / RATES.prompts

    @property
    def reading(self) -> float:
        """Reading and hashing: all rows of the data set, or those of a worker's own file. With Ray one task does it."""
        return (self.share if self.way == "files" else self.pairs) / RATES.read

    @property
    def ahead(self) -> float:
        """The core that reads ahead of a worker's engine, and tokenizes; Ray's reader is a core of its own."""
        return max(self.prompts, self.reading) if self.way == "ray" else self.prompts + self.reading

    @property
    def writing(self) -> float:
        """Making and storing a worker's rows, on one core."""
        return self.share * (1 / RATES.made + 1 / RATES.written)

    @property
    def disk(self) -> float:
        """The shared file system's part in reading."""
        return self.pairs * RATES.source * (self.workers if self.way == "parts" else 1) / ASSUMED.disk

    @property
    def counting(self) -> float:
        """At its end a run counts its whole folder, under the folder's lock: parts in one folder take turns."""
        turns = self.workers if self.way == "parts" else 1
        return turns * self._files_a_folder * RATES.counted

    @property
    def stream(self) -> float:
        """From the first pair to the last."""
        return max(self.judging, self.ahead, self.writing, self.disk)

    @property
    def wall(self) -> float:
        """All of it."""
        return self.stream + self.counting

    @property
    def limit(self) -> str:
        """What takes the longest."""
        ahead = "prompts" if self.prompts >= self.reading else "reading"
        parts = {
            "GPU": self.judging,
            ahead: self.ahead,
            "writing": self.writing,
            "file system": self.disk,
            "counting": self.counting,
        }
        return max(parts, key=parts.__getitem__)

    @property
    def shard_rows(self) -> int:
        """Rows of a shard at the most; with Ray those of a block."""
        return max(64, min(self.pairs // (self.workers * 32), SHARD_ROWS)) if self.way == "ray" else SHARD_ROWS

    @property
    def every(self) -> float:
        """Seconds from one shard of a worker to its next."""
        return min(SHARD_SECONDS, self.shard_rows * self.stream / self.share, self.stream)

    @property
    def files(self) -> int:
        """Shards of all workers together."""
        # A quotient of floats that should be whole may be a last bit above it.
        return self.workers * math.ceil(self.stream / self.every * (1 - 1e-12))

    @property
    def _files_a_folder(self) -> float:
        return self.files / self.workers if self.way == "files" else self.files

    @property
    def machines(self) -> Machines:
        """The machines, as they fail. One that is back lists what is done, and reads up to its place again."""
        gpus = min(ASSUMED.machine, self.gpus)
        return Machines(
            count=self.gpus // gpus,
            work=self.stream,
            every=self.every,
            rate=ASSUMED.interruptions * gpus / DAY,
            restart=ASSUMED.restart + (self.reading + self._files_a_folder * RATES.listed) / 2,
        )

    @property
    def losses(self) -> Losses:
        """What lost machines cost."""
        return expected(self.machines)

    def pairs_of(self, seconds: float) -> float:
        """Pairs that a machine's workers judge in so many seconds."""
        return seconds * self.pairs / self.stream / self.machines.count
