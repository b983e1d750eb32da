"""Stage two against TRL's DPOTrainer: same model, pairs, order, optimizer and precision, all weights 1.

    python benchmarks/train.py PAIRS.parquet --pairs 12 --batch 2 --rounds 3

Each round runs both, each in a process of its own, alternating. Both have their reference log-probs before the clock
starts. Prints the losses' largest difference, pairs/s, tokens/s, peak resident memory while training (on a GPU: peak
allocated), medians and ratios. `--ablate` instead switches our own parts off, one in turn. Not for: whether training
helps.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BETA, RATE, SEED = 0.1, 1e-6, 42
#: What is switched off, and the arguments of our own worker for it.
ABLATIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no shared prompt (packed)": {"layout": "packed"},
    "no packing (bucketed, padded)": {"layout": "padded"},
    "log-probs: the head called in chunks": {"head": "chunked"},
    "log-probs: all logits of a pass at once": {"head": "chunked", "chunk_logits": 1 << 40},
    "float32 through torch's own matrix product": {"plain_linear": True},
    "no reference cache (a second model in memory)": {"live_reference": True},
    "activations of long pairs kept": {"activation_tokens": 1 << 20},
    "no activations kept (gradient checkpointing)": {"gradient_checkpointing": True},
    "norms and MLPs as transformers has them": {"plain_layers": True},
    "all of these but recomputation": {
        "layout": "padded",
        "head": "chunked",
        "chunk_logits": 1 << 40,
        "plain_linear": True,
        "plain_layers": True,
        "live_reference": True,
        "activation_tokens": 1 << 20,
    },
}


#: What operations of torch belong to; the first that fits.
KINDS = {
    "attention, back": ("scaled_dot_product", "backward"),
    "attention": ("scaled_dot_product",),
    "matrix products": ("mkldnn::_linear",),
    "matrix products ": ("aten::mm",),
    "optimizer": ("adamw",),
    "clipping": ("norm",),
}


class Memory:
    """The peak of this process since `reset`, in MiB: resident, or allocated on the GPU."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"

    def reset(self) -> None:
        """Start over."""
        gc.collect()
        if self._cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> float:
        """MiB."""
        if self._cuda:
            import torch

            return torch.cuda.max_memory_allocated() / 2**20
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024


def ours(task: dict[str, Any]) -> dict[str, Any]:
    """`twdpo.train`, its parts as the task says."""
    from twdpo.pipeline import cpu_linear
    from twdpo.pipeline.train import TrainConfig, TrainProgress, logps, loop, train

    memory = Memory(task["device"])
    switches = task["switches"]

    class Watch(TrainProgress):
        losses: list[float] = []  # noqa: RUF012

        def start(self, name: str, total: int | None) -> None:
            if name == "training":
                memory.reset()

        def record(self, metrics: Any) -> None:
            if "loss" in metrics:
                self.losses.append(metrics["loss"])

    if switches.get("plain_linear"):
        cpu_linear.onednn_is_faster = lambda: False  # type: ignore[assignment]
    if switches.get("plain_layers"):
        logps.keep_less = lambda _model: 0  # type: ignore[assignment]
    head, chunk = switches.get("head"), switches.get("chunk_logits", logps.CHUNK_LOGITS)
    plain = logps.TokenLogps.__init__

    def prepared(self: Any, model: Any, **options: Any) -> None:
        plain(self, model, **(options | {"head": head, "chunk_logits": chunk}))

    logps.TokenLogps.__init__ = prepared  # type: ignore[method-assign]
    if switches.get("live_reference"):
        _keep_a_second_model(loop)
    shares: dict[str, float] = {}
    if switches.get("profile"):
        _profile(loop, shares)
    out = Path(task["folder"]) / f"ours-{time.monotonic_ns()}"
    config = TrainConfig(
        weights=task["weights"],
        dataset=task["data"],
        model=task["model"],
        out=str(out),
        missing="uniform",
        uncovered="one",
        beta=BETA,
        learning_rate=RATE,
        scheduler="constant",
        warmup_ratio=0.0,
        max_steps=task["steps"],
        batch_size=task["batch"],
        max_length=task["max_length"],
        dtype=task["dtype"],
        device=task["device"],
        eval_split="none",
        eval_every=0,
        save_every=0,
        seed=SEED,
        layout=switches.get("layout", "auto"),
        gradient_checkpointing=switches.get("gradient_checkpointing", False),
        activation_tokens=switches.get("activation_tokens"),
        reference_cache=str(Path(task["folder"]) / "reference_cache"),
    )
    watch = Watch()
    result = train(config, watch)
    return {"losses": watch.losses, "seconds": result.seconds["training"], "peak": memory.peak(), "shares": shares}


def _profile(loop: Any, shares: dict[str, float]) -> None:
    """Sum the time of torch's operations over all steps but the first, by kind."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    step = loop._Loop._train_step
    cuda = torch.cuda.is_available()

    def profiled(self: Any) -> None:
        if self._step == 0:
            step(self)
            return
        with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as found:
            step(self)
        for event in found.key_averages():
            name = event.key.lower()
            kind = next((k for k, parts in KINDS.items() if all(part in name for part in parts)), "all else").strip()
            seconds = (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6
            shares[kind] = shares.get(kind, 0.0) + seconds

    loop._Loop._train_step = profiled


def _keep_a_second_model(loop: Any) -> None:
    """Compute reference log-probs at every step with a frozen copy of the model, as trainers without a cache do."""
    import copy

    import torch

    losses = loop._Loop._losses

    def live(self: Any, group: Any, reference: Any) -> Any:
        if not hasattr(self, "_frozen"):
            self._frozen = copy.deepcopy(self._model).requires_grad_(False)
        batch = loop.collate(group, None, self._device, self._layout)
        with torch.no_grad():
            found = batch.spread(self._frozen(**batch.inputs)).cpu().numpy()
        computed = {}
        for i, example in enumerate(group):
            sides = (found[i, : len(example.chosen.weights)], found[i + len(group), : len(example.rejected.weights)])
            computed[example.example_hash] = sides
        return losses(self, group, computed)

    loop._Loop._losses = live


def theirs(task: dict[str, Any]) -> dict[str, Any]:
    """TRL's DPOTrainer on the same pairs in the same order."""
    import warnings

    import torch
    import trl
    from datasets import Dataset

    from twdpo.pipeline.models import load_model
    from twdpo.pipeline.train.batches import Plan, step_indices

    warnings.filterwarnings("ignore")
    rows = [json.loads(line) for line in Path(task["data"]).read_text("utf-8").split("\n") if line]
    plan = Plan.of(len(rows), task["batch"], 1.0, task["steps"])
    order = [int(i) for step in range(task["steps"]) for i in step_indices(plan, SEED, step)]
    loaded = load_model(task["model"], dtype="float32", device=task["device"])
    arguments = trl.DPOConfig(
        output_dir=task["folder"],
        beta=BETA,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        weight_decay=0.0,
        per_device_train_batch_size=task["batch"],
        max_steps=task["steps"],
        max_length=task["max_length"],
        train_sampling_strategy="sequential",
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=1,
        gradient_checkpointing=task["switches"].get("gradient_checkpointing", False),
        bf16=task["dtype"] == "bfloat16",
        use_cpu=task["device"] == "cpu",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = trl.DPOTrainer(
        model=loaded.model,
        args=arguments,
        train_dataset=Dataset.from_list([rows[i] for i in order]),
        processing_class=loaded.tokenizer,
    )
    memory = Memory(task["device"])
    memory.reset()
    started = time.perf_counter()
    trainer.train()
    if task["device"] == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    return {"losses": losses, "seconds": seconds, "peak": memory.peak()}


def prepare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Draw the pairs, and write them and a cache without rows, so that all weights are 1."""
    from twdpo.pipeline.models import load_tokenizer
    from twdpo.pipeline.train.render import Renderer, RenderError
    from twdpo.preferences import Pair, load, resolve
    from twdpo.weights_cache import CacheWriter, Recipe

    pairs = [item for item in load(resolve(options.dataset)) if isinstance(item, Pair)]
    random.Random(options.seed).shuffle(pairs)
    renderer = Renderer(load_tokenizer(options.model), max_length=options.max_length)
    rows, tokens = [], 0
    for pair in pairs:
        try:
            rendered = renderer.render(pair)
        except RenderError:
            continue
        tokens += len(rendered.chosen.ids) + len(rendered.rejected.ids)
        rows.append(
            {
                "prompt": [{"role": m.role, "content": m.content} for m in pair.prompt],
                "chosen": [{"role": "assistant", "content": pair.chosen}],
                "rejected": [{"role": "assistant", "content": pair.rejected}],
            }
        )
        if len(rows) == options.pairs:
            break
    data = folder / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    recipe = Recipe(
        judge_model=options.model,
        judge_revision=None,
        dtype="float32",
        judge_template="{question} {answer_a} {answer_b}",
        chat_template_hash=None,
        max_length=options.max_length,
        layers=(0,),
    )
    weights = folder / "weights_cache"
    with CacheWriter.open(weights, recipe, dataset={"name": str(data), "kind": "file", "location": str(data)}):
        pass
    return {
        "folder": str(folder),
        "data": str(data),
        "weights": str(weights),
        "model": options.model,
        "batch": options.batch,
        "steps": len(rows) // options.batch,
        "max_length": options.max_length,
        "dtype": options.dtype,
        "device": options.device,
        "tokens": tokens,
        "pairs": len(rows),
        "switches": {},
    }


def random_model(folder: Path) -> str:
    """A Llama of 1.2 billion random parameters with the embedded model's tokenizer, saved in `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from twdpo.pipeline.models import load_tokenizer

    tokenizer = load_tokenizer("smollm2-135m")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def measure(kind: str, task: dict[str, Any], **switches: Any) -> dict[str, Any]:
    """One run in a process of its own."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TWDPO_BENCHMARK": json.dumps(task | {"switches": switches})}
    done = subprocess.run(
        [sys.executable, __file__, "--worker", kind], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{kind} failed:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"  {kind:7} {switches or ''} {result['seconds']:.1f} s, {result['peak']:,.0f} MiB", file=sys.stderr)
    return result


def compare(task: dict[str, Any], rounds: int, trl_checkpointing: bool) -> None:
    """Both, alternating; print a table."""
    results: dict[str, list[dict[str, Any]]] = {"theirs": [], "ours": []}
    for _ in range(rounds):
        results["theirs"].append(measure("theirs", task))
        results["ours"].append(measure("ours", task))
    pairs = task["steps"] * task["batch"]
    print("| | pairs/s | tokens/s | peak memory, MiB |\n|---|---|---|---|")
    for kind, name in (("theirs", "TRL DPOTrainer"), ("ours", "twdpo train")):
        seconds, peak = (statistics.median(r[key] for r in results[kind]) for key in ("seconds", "peak"))
        print(f"| {name} | {pairs / seconds:.3f} | {task['tokens'] / seconds:,.0f} | {peak:,.0f} |")
    both = list(zip(results["theirs"], results["ours"], strict=True))
    speed = [a["seconds"] / b["seconds"] for a, b in both]
    memory = [b["peak"] / a["peak"] for a, b in both]
    worst = max(abs(x - y) for a, b in both for x, y in zip(a["losses"], b["losses"], strict=True))
    print(f"\nspeed, twdpo / TRL: median {statistics.median(speed):.2f} ({min(speed):.2f} to {max(speed):.2f})")
    print(f"peak memory, twdpo / TRL: median {statistics.median(memory):.1%} ({min(memory):.1%} to {max(memory):.1%})")
    print(f"largest difference of a step's loss: {worst:.1e}; losses {[round(x, 4) for x in both[0][1]['losses']]}")
    if trl_checkpointing:
        light = measure("theirs", task, gradient_checkpointing=True)
        print(
            f"TRL with gradient checkpointing, once: {pairs / light['seconds']:.3f} pairs/s, {light['peak']:,.0f} MiB"
        )


def where_time_goes(task: dict[str, Any]) -> None:
    """Shares of torch's operations in our own steps; print a table."""
    shares = measure("ours", task, profile=True)["shares"]
    total = sum(shares.values())
    print("| operations | share of the time |\n|---|---|")
    for kind, seconds in sorted(shares.items(), key=lambda item: -item[1]):
        print(f"| {kind} | {seconds / total:.1%} |")


def ablate(task: dict[str, Any], rounds: int, only: list[str]) -> None:
    """Each of our parts switched off in turn; print a table."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ABLATIONS if not only or name in ("as it is", *only)}
    for _ in range(rounds):
        for name, runs in found.items():
            runs.append(measure("ours", task, **ABLATIONS[name]))
    base = found["as it is"]
    print("| switched off | pairs/s | of the speed | peak memory, MiB | of the memory |\n|---|---|---|---|---|")
    for name, runs in found.items():
        seconds, peak = (statistics.median(run[key] for run in runs) for key in ("seconds", "peak"))
        speed, memory = (
            statistics.median(b[key] / a[key] for a, b in zip(first, second, strict=True))
            for key, first, second in (("seconds", runs, base), ("peak", base, runs))
        )
        rate = task["steps"] * task["batch"] / seconds
        print(f"| {name} | {rate:.3f} | {speed:.0%} | {peak:,.0f} | {memory:.0%} |")
    losses = [run["losses"] for runs in found.values() for run in runs]
    print(f"\nlargest difference of a step's loss: {max(max(x) - min(x) for x in zip(*losses, strict=True)):.1e}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", nargs="?", default="demo")
    parser.add_argument("--model", default="smollm2-135m", help="a name or folder, or random-1b")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ablate", action="store_true", help="switch our own parts off, one in turn")
    parser.add_argument(
        "--only", action="append", default=[], metavar="ROW", help="with --ablate: this row of it alone"
    )
    parser.add_argument("--profile", action="store_true", help="say where the time of our own steps goes")
    parser.add_argument("--trl-checkpointing", action="store_true", help="once more TRL with gradient checkpointing")
    parser.add_argument("--worker", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        task = json.loads(os.environ["TWDPO_BENCHMARK"])
        print("\n" + json.dumps((ours if options.worker == "ours" else theirs)(task)))
        return
    from machine import describe

    with tempfile.TemporaryDirectory() as folder:
        name = options.model
        if name == "random-1b":
            options.model = random_model(Path(folder) / name)
        task = prepare(options, Path(folder))
        drawn = f"{task['pairs']} pairs of {Path(options.dataset).name}, {task['tokens']:,} tokens"
        print(f"\n{describe()}\n{name}, {options.dtype}, {drawn},")
        print(f"batch {options.batch}, max length {options.max_length}, {options.rounds} rounds\n")
        if options.profile:
            where_time_goes(task)
        elif options.ablate:
            ablate(task, options.rounds, options.only)
        else:
            compare(task, options.rounds, options.trl_checkpointing)


if __name__ == "__main__":
    main()
