"""Damage to a cache and what is noticed of it: a program, so that a hang, a crash or a huge allocation does no harm.

    for finding in damage(cache, count=100, seed=1): ...

damages copies of a cache in 100 ways. Not for: what must be noticed (`test_corruption.py`).
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.preferences.processes import environment
from tests.weights_cache.states import exact
from twdpo.errors import TwdpoError
from twdpo.weights_cache import CacheWriter, Manifest, WeightRow, WeightsCache, read_rejects, verify
from twdpo.weights_cache.shards import list_shards

ROOT = Path(__file__).resolve().parents[2]
#: Kinds of damage: one bit or byte of a file, a range of zeros, its tail cut off, garbage behind it; two shards that
#: change names; a shard of the cache `other`, added or in the place of one.
KINDS = ("bit", "byte", "zeros", "cut", "append", "swap", "foreign")
#: Files that hold data: of the cache, and derived from it.
DATA = (".parquet", "manifest.json", "rejects.jsonl", ".bin")
_SECONDS = 60
#: Bytes of address space beyond what importing takes.
_MEMORY = 4 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was noticed of one damage; `position` is -1 where it is to no one place.

    `found`: what verify says, empty where nothing. `same`: whether rows, rejects and manifest are still those that were
    written. `readings`: for each way of reading "right", "refused: ..." (by name, in one line), "wrong: ..." or
    "odd: ..." (an exception that is no TwdpoError). `peak`: the most memory used so far, in MiB.
    """

    file: str
    kind: str
    position: int
    found: str
    same: bool
    readings: dict[str, str]
    peak: int


class Original:
    """What a sound cache says, and how it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with WeightsCache.open(folder) as cache:
            self.rows = {row.example_hash: exact(row) for row in cache.rows()}
        self.rejects = read_rejects(folder)
        self.manifest = Manifest.load(folder)

    def readings(self, folder: Path) -> dict[str, str]:
        """How each way of reading `folder` ends; going on writing comes last."""
        ways = {
            "rows": self._all,
            "fetch": self._fetched,
            "get": self._one_by_one,
            "layer": self._one_layer,
            "shuffled": self._shuffled,
            "write": self._go_on,
        }
        return {name: _reading(way, folder) for name, way in ways.items()}

    def same_beside_rows(self, folder: Path) -> bool:
        """Whether rejects and manifest can be read and are as they were."""
        try:
            return (read_rejects(folder), Manifest.load(folder)) == (self.rejects, self.manifest)
        except TwdpoError:
            return False

    def _compare(self, found: Iterator[WeightRow] | Sequence[WeightRow]) -> str:
        met = set()
        for row in found:
            if exact(row) != self.rows.get(row.example_hash):
                return f"wrong: row {row.example_hash!r}"
            met.add(row.example_hash)
        return "right" if met == self.rows.keys() else f"wrong: {len(self.rows) - len(met)} rows are not there"

    def _all(self, folder: Path) -> str:
        with WeightsCache.open(folder) as cache:
            return self._compare(cache.rows())

    def _fetched(self, folder: Path) -> str:
        with WeightsCache.open(folder) as cache:
            return self._compare(cache.fetch(list(self.rows)))

    def _one_by_one(self, folder: Path) -> str:
        """Each row by itself: one that cannot be read must not keep the others of its cache from being right."""
        refused = ""
        with WeightsCache.open(folder) as cache:
            for key, expected in list(self.rows.items())[::3]:
                try:
                    if exact(cache.get(key)) != expected:
                        return f"wrong: row {key}"
                except TwdpoError as error:
                    refused = f"refused: {type(error).__name__}: {error}"
        return refused or "right"

    def _shuffled(self, folder: Path) -> str:
        """By a row file: the one that was there, or one made of the damaged shards."""
        with WeightsCache.open(folder) as cache:
            cache.prepare_shuffled()
            return self._compare(cache.fetch(list(self.rows)))

    def _one_layer(self, folder: Path) -> str:
        layer = self.manifest.recipe.layers[-1]
        with WeightsCache.open(folder, layers=[layer], text=False) as cache:
            for row in cache.rows():
                for side in (row.chosen, row.rejected):
                    stored = (side.weights[layer].dtype.str, side.weights[layer].tobytes())
                    if row.example_hash not in self.rows or stored not in self.rows[row.example_hash][1]:  # type: ignore[operator]
                        return f"wrong: row {row.example_hash!r}"
            return "right" if len(cache) == len(self.rows) else "wrong: rows are not there"

    def _go_on(self, folder: Path) -> str:
        with CacheWriter.open(folder, self.manifest.recipe, include_text=self.manifest.include_text):
            pass
        return "right"


def _reading(way: Callable[[Path], str], folder: Path) -> str:
    try:
        return way(folder)
    except TwdpoError as error:
        kind = "refused" if "\n" not in str(error) else "odd: several lines"
        return f"{kind}: {type(error).__name__}: {error}"
    except Exception as error:
        return f"odd: {type(error).__name__}: {error}"


class Damager:
    """Draws one damage after another."""

    def __init__(self, folder: Path, other: Path, kinds: Sequence[str], files: Sequence[str], seed: int) -> None:
        self._folder, self._other, self._kinds, self._files = folder, other, kinds, files
        self._rng = random.Random(seed)

    def strike(self) -> tuple[str, str, int]:
        """Damage the folder: the file's name, the kind and the position, -1 where there is none."""
        rng = self._rng
        kind = rng.choice(self._kinds)
        shards = list_shards(self._folder / "data")
        if kind == "swap":
            (first, second), spare = rng.sample(shards, 2), self._folder / "spare"
            for source, target in ((first, spare), (second, first), (spare, second)):
                source.rename(target)
            return first.name, kind, -1
        if kind == "foreign":
            source = rng.choice(list_shards(self._other / "data"))
            target = rng.choice([self._folder / "data" / source.name, *shards])
            shutil.copy(source, target)
            return target.name, kind, -1
        path = rng.choice([path for path in sorted(self._folder.rglob("*")) if path.name.endswith(tuple(self._files))])
        content = bytearray(path.read_bytes())
        before = bytes(content)
        while content == before:
            position = self._change(content, kind)
        path.write_bytes(content)
        return path.name, kind, position

    def _change(self, content: bytearray, kind: str) -> int:
        rng, size = self._rng, len(content)
        # Footers decide how everything else is read.
        position = rng.randrange(size * 2 // 3 if rng.random() < 0.4 else 0, size)
        if kind == "bit":
            content[position] ^= 1 << rng.randrange(8)
        elif kind == "byte":
            content[position] = rng.randrange(256)
        elif kind == "zeros":
            end = min(position + rng.randint(1, 64), size)
            content[position:end] = bytes(end - position)
        elif kind == "cut":
            del content[position:]
        else:
            position = size
            content += rng.randbytes(rng.randint(1, 200)) + rng.choice([b"", b"\n"])
        return position


def damage(
    cache: Path,
    *,
    count: int,
    seed: int,
    other: Path | None = None,
    kinds: Sequence[str] = KINDS,
    files: Sequence[str] = DATA,
) -> list[Finding]:
    """What is noticed of `count` damages to the cache, one at a time, of `kinds`, to files whose names end in `files`.

    Raises AssertionError with the damage under which the program hung, crashed or wanted too much memory.
    """
    options = {"cache": str(cache), "other": str(other), "kinds": kinds, "files": files, "seed": seed, "count": count}
    done = subprocess.run(
        [sys.executable, "-m", "tests.weights_cache.damage", json.dumps(options)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment(),
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, (done.returncode, lines[-1:], done.stderr[-2000:])
    return [Finding(**json.loads(line)) for line in lines[1::2]]


def main() -> None:
    """Damage, read, report, and again: a line with the damage, so that it is known under which one this ends; then one
    with the finding.
    """
    options = json.loads(sys.argv[1])
    sound = Path(options["cache"])
    original = Original(sound)
    # What is written here need not outlive anything.
    os.fsync = lambda _: None
    if sys.platform == "linux":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "cache"
        damager = Damager(folder, Path(options["other"]), options["kinds"], options["files"], options["seed"])
        for _ in range(options["count"]):
            shutil.copytree(sound, folder)
            file, kind, position = damager.strike()
            print(json.dumps([file, kind, position]), flush=True)
            signal.alarm(_SECONDS)
            print(json.dumps(asdict(_finding(original, folder, file, kind, position))), flush=True)
            signal.alarm(0)
            shutil.rmtree(folder)


def _finding(original: Original, folder: Path, file: str, kind: str, position: int) -> Finding:
    try:
        found = "; ".join(verify(folder).problems)
    except TwdpoError as error:
        found = str(error)
    except Exception as error:
        found = f"odd: {type(error).__name__}: {error}"
    same = original.same_beside_rows(folder)
    readings = original.readings(folder)
    return Finding(
        file=file,
        kind=kind,
        position=position,
        found=found,
        same=same and readings["rows"] == "right",
        readings=readings,
        peak=_peak(),
    )


def _peak() -> int:
    """Megabytes; getrusage also counts what the process held that started this one."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) >> 10


if __name__ == "__main__":
    main()
