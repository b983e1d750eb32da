"""Stage one against the published procedure: same pairs, same model, alternating in one run.

    python benchmarks/annotate.py PAIRS.parquet [--device cuda] [--model random-8b] [--engines transformers,vllm]

(a) published: one prompt at a time, eager attention, every attention map kept, logits at every position; (b) the
transformers engine as `twdpo annotate` runs it; (c) the same without reading attention; (d) vLLM, where that is there.
Prints pairs/s, ratios as medians over the rounds, the largest difference of p from (a) in float32, which part of the
machine's own matrix rate is reached, and each one's peak memory at two numbers of pairs in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe

from twdpo.pipeline.annotate.config import default_layers
from twdpo.pipeline.annotate.engines.base import Engine, Reading
from twdpo.pipeline.annotate.engines.transformers import TransformersEngine
from twdpo.pipeline.annotate.prompt import JudgePrompt, PromptBuilder, load_template
from twdpo.pipeline.annotate.weights import distribution
from twdpo.pipeline.cpu_linear import _multiply, onednn_is_faster
from twdpo.pipeline.flops import peak_flops, shape_of
from twdpo.pipeline.models import load_model, load_tokenizer
from twdpo.preferences import Pair, load, resolve

Rows = list[Mapping[int, tuple[Any, Any]]]
Run = Callable[[Sequence[JudgePrompt]], Rows]
#: A randomly initialised model of Llama 3 8B's shape, but for the vocabulary, which is the tokenizer's.
LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}


def model_of(options: argparse.Namespace, dtype: str, attention: str | None = None) -> Any:
    """The model that is measured."""
    if options.model != "random-8b":
        return load_model(options.model, dtype=dtype, device=options.device, attn_implementation=attention).model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    with torch.device(options.device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, dtype))
        model = LlamaForCausalLM(LlamaConfig(vocab_size=49152, **LLAMA_8B)).eval()
        torch.set_default_dtype(before)
    if attention:
        model.set_attn_implementation(attention)
    return model


def published(model: Any, layers: Sequence[int]) -> Run:
    """The published procedure's forward passes."""

    def run(prompts: Sequence[JudgePrompt]) -> Rows:
        rows: Rows = []
        for prompt in prompts:
            ids = torch.from_numpy(prompt.ids[None].astype(np.int64)).to(model.device)
            with torch.no_grad():
                maps = model(input_ids=ids, output_attentions=True).attentions
            last = {layer: maps[layer][0, :, -1].float().mean(dim=0).cpu().numpy() for layer in layers}
            spans = (prompt.answer_a, prompt.answer_b)
            rows.append({layer: tuple(row[s.first : s.last] for s in spans) for layer, row in last.items()})  # type: ignore[misc]
        return rows

    return run


def engine_run(engine: Engine, layers: Sequence[int], verdict_ids: tuple[int, int] | None) -> Run:
    """An engine as stage one calls it: windows of 32 pairs, or what the engine asks for."""

    def run(prompts: Sequence[JudgePrompt]) -> Rows:
        readings: list[Reading] = []
        start = 0
        while start < len(prompts):
            stop = start + 64
            while stop < len(prompts) and sum(len(p.ids) for p in prompts[start:stop]) < engine.window_tokens:
                stop += 2
            readings += engine.read(prompts[start:stop], layers, verdict_ids)
            start = stop
        return [reading.attention for reading in readings]

    return run


class Bench:
    """Prompts, and the ways to run them, made when they are asked for."""

    def __init__(self, options: argparse.Namespace, pairs: int) -> None:
        self.options = options
        tokenizer = load_tokenizer("smollm2-135m" if options.model == "random-8b" else options.model)
        builder = PromptBuilder(tokenizer, template=load_template(None), max_length=options.max_length)
        items = (item for item in load(resolve(options.dataset)) if isinstance(item, Pair))
        self.pairs = [pair for pair, _ in zip(items, range(pairs), strict=False)]
        self.prompts = [builder.build(pair, order) for pair in self.pairs for order in ("cr", "rc")]
        self.verdict_ids = builder.verdict_ids()
        self.layers: tuple[int, ...] = ()
        self.shape: Any = None
        self._models: dict[str, Any] = {}

    def engine(self, dtype: str) -> Any:
        """The model inside our engine."""
        return self._models[f"transformers {dtype}"]._model

    def make(self, name: str) -> Run:
        """One of NAMES."""
        kind, dtype, *_ = name.split()
        if kind == "vllm":
            from twdpo.pipeline.annotate.config import AnnotateConfig
            from twdpo.pipeline.annotate.judge import Judge

            config = AnnotateConfig(
                dataset=self.options.dataset,
                model=self.options.model,
                engine="vllm",
                dtype=dtype,
                max_length=self.options.max_length,
            )
            engine: Any = Judge.load(config, load_template(None), None, None).engine
            once = engine_run(engine, self.layers, self.verdict_ids)

            def anew(prompts: Sequence[JudgePrompt]) -> Rows:
                engine._llm.reset_prefix_cache()  # or it would know all prompts from the round before
                return once(prompts)

            return anew
        key = f"{kind} {dtype}"
        if key not in self._models:
            model = model_of(self.options, dtype, "eager" if kind == "published" else None)
            self.shape = shape_of(model)
            count = model.config.num_hidden_layers
            self.layers = default_layers(count, tuple(range(count)))
            self._models[key] = model if kind == "published" else TransformersEngine(model)
        if kind == "published":
            return published(self._models[key], self.layers)
        layers = () if "capture" in name else self.layers
        return engine_run(self._models[key], layers, None if "verdict" in name else self.verdict_ids)


def matrix_rate(dtype: str, device: str) -> float:
    """FLOP/s of one large matrix product in `dtype`, the best of what torch carries; median of ten."""
    size = 8192 if device == "cuda" else 1536
    a, b = (torch.randn(size, size, dtype=getattr(torch, dtype), device=device) for _ in range(2))
    onednn = device == "cpu" and dtype == "float32" and onednn_is_faster()
    seconds = []
    for _ in range(13):
        started = time.perf_counter()
        _multiply(a, b, None) if onednn else a @ b.t()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(seconds[3:])


def worst(rows: Rows, expected: Rows) -> float:
    """The largest difference of p over all prompts, layers and answers."""
    return max(
        float(np.abs(distribution(a) - distribution(b)).max())
        for one, other in zip(rows, expected, strict=True)
        for layer in one
        for a, b in zip(one[layer], other[layer], strict=True)
    )


def peak_memory(options: argparse.Namespace, name: str, pairs: int) -> float:
    """GiB that a process of its own takes at the most to run `pairs` pairs once, model included."""
    command = [sys.executable, __file__, options.dataset, "--model", options.model, "--device", options.device]
    command += ["--max-length", str(options.max_length), "--pairs", str(pairs), "--only", name]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(output.splitlines()[-1]))


def where_time_goes(bench: Bench, dtype: str) -> None:
    """The parts of our forward passes on a CPU, by clocks around them; one pass over all prompts after a first one."""
    from torch import nn

    from twdpo.pipeline.annotate.engines.packed import PackedPass

    run = bench.make(f"transformers {dtype}")
    model = bench.engine(dtype)
    spent: dict[str, float] = {}
    started: dict[int, float] = {}

    def clock(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **keywords: Any) -> Any:
            begin = time.perf_counter()
            try:
                return method(*arguments, **keywords)
            finally:
                spent[name] = spent.get(name, 0.0) + time.perf_counter() - begin

        return timed

    for module in model.modules():
        kind = "linear layers" if isinstance(module, nn.Linear) else "norms" if "Norm" in type(module).__name__ else ""
        if kind:
            module.register_forward_pre_hook(lambda m, _a: started.__setitem__(id(m), time.perf_counter()))

            def stop(m: nn.Module, _a: Any, _o: Any, kind: str = kind) -> None:
                spent[kind] = spent.get(kind, 0.0) + time.perf_counter() - started[id(m)]

            module.register_forward_hook(stop)
    before = PackedPass._everywhere, PackedPass._read
    PackedPass._everywhere, PackedPass._read = clock("attention", before[0]), clock("the rows read", before[1])  # type: ignore[method-assign]
    try:
        run(bench.prompts[:4])
        spent.clear()
        begin = time.perf_counter()
        run(bench.prompts)
        total = time.perf_counter() - begin
    finally:
        PackedPass._everywhere, PackedPass._read = before  # type: ignore[method-assign]
    spent["everything else"] = total - sum(spent.values())
    print(f"\n| {dtype}, {total:.1f} s | of the time |\n|---|---|")
    for name, part in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"| {name} | {part / total:.1%} |")


def capture_cost(bench: Bench, dtype: str, rounds: int) -> None:
    """(b) and (c) alone, pair by pair in turns, each of them first every other time."""
    runs = [bench.make(f"transformers {dtype}{end}") for end in ("", " capture off")]
    seconds: tuple[list[float], list[float]] = ([], [])
    runs[0](bench.prompts)
    for turn in range(rounds * len(bench.pairs)):
        at = 2 * (turn % len(bench.pairs))
        for which in (0, 1) if (turn + turn // len(bench.pairs)) % 2 else (1, 0):
            started = time.perf_counter()
            runs[which](bench.prompts[at : at + 2])
            seconds[which].append(time.perf_counter() - started)
    costs = [a / b - 1 for a, b in zip(*seconds, strict=True)]
    low, middle, high = statistics.quantiles(costs, n=4)
    print(f"\n{dtype}: capture costs {middle:+.1%} (median of {len(costs)}; quartiles {low:+.1%} and {high:+.1%})")


def only(options: argparse.Namespace) -> None:
    """Run one way once and print the peak."""
    bench = Bench(options, options.pairs)
    bench.make(options.only)(bench.prompts)
    on_gpu = torch.cuda.max_memory_allocated() if options.device == "cuda" else 0
    peak = on_gpu or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(peak / 2**30))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", default="demo")
    parser.add_argument("--model", default="smollm2-135m", help="a name or folder, or random-8b")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtypes", default="float32,bfloat16", help="of our engine")
    parser.add_argument("--published-dtype", default=None, help="of the published procedure; the first of --dtypes")
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--engines", default="transformers", help="transformers, or transformers,vllm")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--no-verdict", action="store_true", help="also without the verdict, to the deepest layer only")
    parser.add_argument("--capture", action="store_true", help="compare with capture off only")
    parser.add_argument("--profile", action="store_true", help="say where our engine's time goes instead, on a CPU")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        only(options)
        return

    dtypes = options.dtypes.split(",")
    if "vllm" in options.engines and len(dtypes) > 1:
        parser.error("a process runs one judge in vLLM at a time: name one of --dtypes, and --published-dtype float32")
    if options.profile or options.capture:
        bench = Bench(options, options.pairs)
        print(f"\n{describe()}\n{len(bench.pairs)} pairs, {sum(len(p.ids) for p in bench.prompts):,} tokens")
        for dtype in dtypes:
            if options.capture:
                capture_cost(bench, dtype, options.rounds)
            else:
                where_time_goes(bench, dtype)
        return
    first = options.published_dtype or dtypes[0]
    names = [f"published {first}"]
    for dtype in dtypes:
        names += [f"transformers {dtype}", f"transformers {dtype} capture off"]
        names += [f"transformers {dtype} no verdict"] if options.no_verdict else []
        names += [f"vllm {dtype}"] if "vllm" in options.engines else []
    bench = Bench(options, options.pairs)
    runs = {name: bench.make(name) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    rows: dict[str, Rows] = {}
    for name in names[1:]:
        runs[name](bench.prompts[:4])
    for turn in range(options.rounds):
        # The other way round every other time: what comes after (a) finds memory in disorder.
        for name in reversed(names) if turn % 2 else names:
            started = time.perf_counter()
            rows[name] = runs[name](bench.prompts)
            seconds[name].append(time.perf_counter() - started)
    rates = {dtype: matrix_rate(dtype, options.device) for dtype in {first, *dtypes}}

    ids = [prompt.ids for prompt in bench.prompts]
    total = sum(map(len, ids))
    print(
        f"\n{describe()}\n{options.model}: {len(bench.pairs)} pairs of {Path(options.dataset).name}, {total:,} tokens,"
    )
    print(f"layers {', '.join(map(str, bench.layers))}, {options.rounds} alternating rounds\n")
    memory_head = "" if options.no_memory else f" peak GiB, {max(options.pairs // 4, 1)} / {options.pairs} pairs |"
    print(f"| | pairs/s | tokens/s | times (a) | largest difference of p | of the matrix rate |{memory_head}")
    print("|---|---|---|---|---|---|" + ("" if options.no_memory else "---|"))
    base = seconds[names[0]]
    for name in names:
        median = statistics.median(seconds[name])
        ratio = statistics.median(a / b for a, b in zip(base, seconds[name], strict=True))
        dtype = name.split()[1]
        shared = "published" not in name
        needed = bench.shape.flops(ids, heads=True) if shared else sum(bench.shape.prompt_flops(len(x)) for x in ids)
        part = needed / median / rates[dtype]
        difference = f"{worst(rows[name], rows[names[0]]):.1e}" if shared and "capture" not in name else ""
        memory = ""
        if not options.no_memory:
            peaks = [peak_memory(options, name, n) for n in (max(options.pairs // 4, 1), options.pairs)]
            memory = f" {peaks[0]:.2f} / {peaks[1]:.2f} |"
        print(
            f"| {name} | {len(bench.pairs) / median:.2f} | {total / median:,.0f} | {ratio:.2f} | {difference} | "
            f"{part:.0%} |{memory}",
            flush=True,
        )
    for dtype in dtypes:
        on, off = (seconds[f"transformers {dtype}{end}"] for end in ("", " capture off"))
        cost = statistics.median(a / b for a, b in zip(on, off, strict=True)) - 1
        rate = rates[dtype]
        ceiling = statistics.median(base) / (bench.shape.flops(ids, heads=True) / rate)
        print(f"\n{dtype}: capture costs {cost:+.1%}; matrix products run at {rate / 1e9:,.0f} GFLOP/s here, with")
        print(f"which nothing but the model's own operations would be {ceiling:.1f} times as fast as (a)", end="")
        peak = peak_flops(torch.cuda.get_device_name(), dtype) if options.device == "cuda" else None
        if peak:
            flops = bench.shape.flops(ids, heads=True)
            print(f"; MFU {flops / statistics.median(seconds[f'transformers {dtype}']) / peak:.0%}", end="")
        print()


if __name__ == "__main__":
    main()
