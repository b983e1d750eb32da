"""Adapters: the base is the reference, seeds decide, runs resume to the bit, and what is written loads anywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.fixtures.tiny_models import FAMILIES, save_tiny, tiny_model, tiny_tokenizer
from tests.pipeline.train.conftest import World
from tests.pipeline.train.runs import records, same_tensors
from tests.pipeline.train.test_reference import Counting, compute
from twdpo.errors import Interrupted, ModelError, TrainingError, UsageError
from twdpo.pipeline.extras import quiet_peft
from twdpo.pipeline.models import LoadedModel, four_bit, load_model
from twdpo.pipeline.train import TrainConfig, TrainProgress, train
from twdpo.pipeline.train.adapters import Policy, adapters_off, add_adapters, refuse_early
from twdpo.pipeline.train.logps import TokenLogps
from twdpo.pipeline.train.processes import Alone
from twdpo.pipeline.train.render import Renderer
from twdpo.pipeline.train.resident import ResidentFeed
from twdpo.weights_cache import WeightsCache

IDS = torch.tensor([[1, 17, 250, 33, 99, 4, 320]])
LORA: dict[str, Any] = {"lora_rank": 4, "learning_rate": 1e-2}


def policy_of(loaded: LoadedModel, **changes: Any) -> Policy:
    """A model with fresh adapters."""
    return add_adapters(TrainConfig(**({"lora_rank": 4} | changes)), loaded)


def tiny_loaded(family: str = "llama", **options: Any) -> LoadedModel:
    """A tiny model as if it had been loaded from the hub."""
    model = tiny_model(family, **options)
    return LoadedModel(model=model, tokenizer=tiny_tokenizer(), name="org/tiny", revision="r", dtype="float32")


def disturb(model: Any) -> None:
    """Give the adapters something to say."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.2, generator=generator)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """The logits of a few tokens."""
    result: Tensor = model(input_ids=IDS).logits.float()
    return result


def ways(model: Any) -> tuple[str, str]:
    """How log-probs are computed: the layout, and how the head is reached."""
    logps = TokenLogps(model)
    return logps.layout, logps.head


def adapter_of(out: Path) -> Mapping[str, Tensor]:
    """The tensors of a saved adapter."""
    return load_file(out / "adapter_model.safetensors")


class Reference(TrainProgress):
    """Counts pairs that the reference computed; presses Ctrl-C at a step."""

    def __init__(self, stop_at: int = 0) -> None:
        self.computed, self._left = 0, stop_at

    def advance(self, task: str, items: int = 1) -> None:
        """Count."""
        self.computed += items * (task == "reference")
        if task == "training" and items:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGINT)


@contextmanager
def from_folder(out: Path) -> Iterator[Any]:
    """A saved adapter, loaded as peft's documentation says."""
    from peft import AutoPeftModelForCausalLM

    with quiet_peft():
        yield AutoPeftModelForCausalLM.from_pretrained(out)


# the model


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_adapters(family: str) -> None:
    """Layout and head stay the fast ones, before and after training; neither embedding is touched; off is the base."""
    base = logits(tiny_model(family))
    policy = policy_of(tiny_loaded(family))
    model = policy.loaded.model
    torch.testing.assert_close(logits(model), base)
    assert ways(model) == ways(tiny_model(family)) == (*ways(model)[:1], "fused")
    disturb(model)
    assert ways(model) == ways(tiny_model(family))
    assert not torch.allclose(logits(model), base, atol=1e-3)
    with adapters_off(model):
        torch.testing.assert_close(logits(model), base)
    assert not torch.allclose(logits(model), base, atol=1e-3)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name and "head" not in name and "embed" not in name for name in trained)


def test_adapters_are_trainable_again_after_the_reference() -> None:
    model = policy_of(tiny_loaded()).loaded.model
    before = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with adapters_off(model):
        pass
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == before != set()


def test_the_seed_decides_the_bits() -> None:
    torch.manual_seed(1)
    one = policy_of(tiny_loaded(), seed=3).loaded.model.state_dict()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two = policy_of(tiny_loaded(), seed=3).loaded.model.state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    other = policy_of(tiny_loaded(), seed=4).loaded.model.state_dict()
    name = "model.layers.0.mlp.up_proj.lora_A.default.weight"
    assert same_tensors(one, two)
    assert not torch.equal(one[name], other[name])


@pytest.mark.parametrize(
    ("changes", "rank", "scaling"),
    [({}, 4, 2.0), ({"lora_alpha": 2.0}, 4, 0.5), ({"lora_rank": 3, "lora_alpha": 3}, 3, 1.0)],
)
def test_rank_and_alpha(changes: dict[str, Any], rank: int, scaling: float) -> None:
    layer = policy_of(tiny_loaded(), **changes).loaded.model.model.layers[0].self_attn.q_proj
    assert layer.lora_A["default"].weight.shape == (rank, 32)
    assert layer.scaling["default"] == scaling


def test_named_targets_only() -> None:
    model = policy_of(tiny_loaded(), lora_targets="q_proj, v_proj").loaded.model
    trained = {name.split(".")[-4] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    ("targets", "tied", "error", "words"),
    [
        ("q_proj,query", False, UsageError, "--lora-targets query: the model has no such module; it has .*down_proj"),
        ("input_layernorm", False, ModelError, "cannot lay adapters over org/tiny"),
        ("lm_head", True, UsageError, "--lora-targets lm_head: the model uses this matrix twice"),
        ("embed_tokens", True, UsageError, "--lora-targets embed_tokens: the model uses this matrix twice"),
    ],
)
def test_targets_that_do_not_fit(targets: str, tied: bool, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        policy_of(tiny_loaded(tie_word_embeddings=tied), lora_targets=targets)
    assert "\n" not in str(caught.value)


def test_another_quantization_is_not_merged_into() -> None:
    loaded = tiny_loaded()
    loaded.model.is_quantized = True
    with pytest.raises(UsageError, match="--merge-adapter needs a base that is not quantized"):
        policy_of(loaded, merge_adapter=True)


def test_the_base_is_named_as_it_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path from anywhere, a hub id as it is, and the embedded model by the folder that it was unpacked into."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").touch()
    (tmp_path / "unpacked").mkdir()
    for name, known_as, expected in [
        ("model.gguf", ".", tmp_path / "model.gguf"),
        ("org/tiny", "org/tiny", "org/tiny"),
        ("smollm2-135m", "unpacked", tmp_path / "unpacked"),
    ]:
        loaded = replace(tiny_loaded(), name=name)
        loaded.model.name_or_path = known_as
        assert policy_of(loaded).wrapper.peft_config["default"].base_model_name_or_path == str(expected)


def test_a_head_with_an_adapter_is_chunked_too() -> None:
    model = policy_of(tiny_loaded(), lora_targets="lm_head,q_proj").loaded.model
    disturb(model)
    assert ways(model) == ("tree", "chunked")


def gradients(model: Any, autocast: torch.dtype | None = None, recompute: bool = False) -> dict[str, Tensor]:
    """Of the adapters, after one backward pass."""
    logps = TokenLogps(model, autocast=autocast, layout="padded")
    logps.recompute_above(0 if recompute else 1 << 20)
    logps(IDS, None, None, torch.arange(IDS.shape[1] - 1), IDS[0, 1:]).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_gradient_checkpointing_gives_the_same_gradients(family: str) -> None:
    """Also in the first layer, whose input, the frozen embedding's output, wants no gradient."""
    found = []
    for recompute in (False, True):
        model = policy_of(tiny_loaded(family)).loaded.model
        disturb(model)
        found.append(gradients(model, recompute=recompute))
    plain, recomputed = found
    assert plain.keys() == {n for n, p in model.named_parameters() if p.requires_grad} == recomputed.keys()
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-6)


# the run


def test_it_learns_and_peft_can_load_it(world: World) -> None:
    result = train(world.config(epochs=2.0, **LORA))
    assert result.before["eval_loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert result.after["eval_loss"] < 0.5
    names = {path.name for path in result.out.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md", "train.yaml"} <= names
    assert not {"config.json", "model.safetensors", "checkpoints"} & names
    settings = json.loads((result.out / "adapter_config.json").read_text("utf-8"))
    assert settings["base_model_name_or_path"] == str(world.model.resolve())
    assert (settings["r"], settings["lora_alpha"], settings["inference_mode"]) == (4, 8, True)
    card = (result.out / "README.md").read_text("utf-8")
    assert "library_name: peft" in card
    assert str(world.model) not in card.split("## How to load it")[0]
    with from_folder(result.out) as loaded:
        tuned = logits(loaded)
    assert not torch.allclose(tuned, logits(load_model(str(world.model), device="cpu").model), atol=1e-2)


def test_the_best_adapter_is_beside_the_last(world: World) -> None:
    """Merged and apart: the same two models."""
    changes = LORA | {
        "learning_rate": 0.1,
        "warmup_ratio": 0.9,
        "max_grad_norm": 100.0,
        "label_smoothing": 0.45,
        "epochs": 3.0,
        "eval_every": 2,
        "keep_checkpoints": 1,
    }
    apart = train(world.config(out=str(world.folder / "apart"), **changes))
    whole = train(world.config(out=str(world.folder / "whole"), merge_adapter=True, **changes))
    assert apart.best_step == whole.best_step is not None
    folders = (apart.out, apart.out / "best", whole.out, whole.out / "best")
    found = [logits(load_model(str(out), dtype="float32", device="cpu").model) for out in folders]
    torch.testing.assert_close(found[0], found[2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], found[3], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[0], found[1], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_and_unmerged_are_one_model(world: World, dtype: str) -> None:
    """Written twice, and as this program loads the adapter's folder: the same logits; bfloat16 rounds once."""
    changes = LORA | {"dtype": dtype, "max_steps": 5}
    apart = train(world.config(out=str(world.folder / "apart"), **changes))
    whole = train(world.config(out=str(world.folder / "whole"), merge_adapter=True, **changes))
    assert (whole.out / "config.json").is_file()
    assert not (whole.out / "adapter_config.json").is_file()
    assert {t.dtype for t in load_file(whole.out / "model.safetensors").values()} == {getattr(torch, dtype)}
    tolerance = 1e-4 if dtype == "float32" else 0.15
    merged = logits(load_model(str(whole.out), device="cpu", dtype="float32").model)
    by_us = load_model(str(apart.out), device="cpu", dtype="float32")
    with from_folder(apart.out) as loaded:
        expected = logits(loaded)
    assert expected.std() > 1
    torch.testing.assert_close(merged, expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(logits(by_us.model), expected, rtol=0, atol=1e-4)
    assert by_us.tokenizer.chat_template
    assert not any("lora" in name for name in by_us.model.state_dict())


def test_the_frozen_base_is_held_as_it_computes(world: World) -> None:
    """bfloat16 halves the base; the adapters stay float32, in the model, the checkpoint and the file."""
    loaded = load_model(str(world.model), dtype="bfloat16", device="cpu")
    kinds = {(p.requires_grad, p.dtype) for p in policy_of(loaded).loaded.model.parameters()}
    assert kinds == {(False, torch.bfloat16), (True, torch.float32)}
    result = train(world.config(dtype="bfloat16", epochs=2.0, **LORA))
    assert result.after["eval_loss"] < 0.5
    assert {tensor.dtype for tensor in adapter_of(result.out).values()} == {torch.float32}


def test_a_reference_is_shared_where_its_numbers_are_equal(world: World) -> None:
    """In float32, LoRA and full training have one reference to the bit; a base held in bfloat16 has its own."""
    runs: list[tuple[dict[str, Any], int]] = [
        ({}, 60),
        (LORA, 0),
        (LORA | {"lora_rank": 2, "lora_targets": "q_proj"}, 0),
        ({"dtype": "bfloat16"}, 60),
        (LORA | {"dtype": "bfloat16"}, 60),
        (LORA | {"load_in_4bit": True}, 60),
        (LORA | {"load_in_4bit": True, "lora_rank": 2}, 0),
    ]
    for number, (changes, computed) in enumerate(runs):
        progress = Reference()
        train(world.config(out=str(world.folder / str(number)), max_steps=1, **changes), progress)
        assert progress.computed == computed, changes
    one = train(world.config(out=str(world.folder / "own"), reference_cache=str(world.folder / "own_cache"), **LORA))
    two = train(world.config(out=str(world.folder / "shared"), **LORA))
    assert same_tensors(adapter_of(one.out), adapter_of(two.out))


CHANGES: list[dict[str, Any]] = [
    {},
    {"optimizer": "adamw_8bit", "lora_rank": 128},  # matrices of 4,096 values and more have moments of 8 bits
    {"load_in_4bit": True},
    {"gradient_checkpointing": True},
]


@pytest.mark.parametrize("changes", CHANGES, ids=["lora", "8-bit AdamW", "4 bits", "recomputed"])
def test_interrupted_and_resumed_is_uninterrupted(world: World, changes: dict[str, Any]) -> None:
    """To the bit, also where the reference has to be computed again after the adapters have learnt."""
    changes = LORA | changes
    whole = train(world.config(out=str(world.folder / "whole"), **changes))
    config = world.config(out=str(world.folder / "parts"), **changes)
    with pytest.raises(Interrupted):
        train(config, Reference(stop_at=3))
    checkpoint = max((world.folder / "parts" / "checkpoints").iterdir())
    kept = load_file(checkpoint / "model.safetensors")
    assert all("lora_" in name for name in kept)
    assert any(bool(tensor.any()) for name, tensor in kept.items() if "lora_B" in name)
    moments = load_file(checkpoint / "optimizer.safetensors")
    in_8_bits = any(t.dtype == torch.uint8 for name, t in moments.items() if name.startswith("optimizer/"))
    assert in_8_bits == ("optimizer" in changes)
    fresh = str(world.folder / "elsewhere")
    progress = Reference()
    rest = train(TrainConfig(**(asdict(config) | {"reference_cache": fresh})), progress)
    assert (rest.resumed_at, progress.computed) == (3, 60)
    assert same_tensors(adapter_of(whole.out), adapter_of(rest.out))
    assert records(whole.out) == records(rest.out)


def test_killed_and_resumed_is_uninterrupted(world: World) -> None:
    whole = train(world.config(out=str(world.folder / "whole"), epochs=2.0, **LORA))
    config = world.config(out=str(world.folder / "killed"), epochs=2.0, **LORA)
    code = (
        "import json, os, signal, sys\n"
        "from twdpo.pipeline.train import TrainConfig, TrainProgress, train\n"
        "class Kill(TrainProgress):\n"
        "    def record(self, metrics):\n"
        "        if metrics.get('step') == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
        "train(TrainConfig(**json.loads(sys.argv[1])), Kill())\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, json.dumps(asdict(config))],
        check=False,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"},
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    result = train(config)
    assert result.resumed_at == 6
    assert same_tensors(adapter_of(whole.out), adapter_of(result.out))
    assert records(whole.out) == records(result.out)


def test_whether_to_merge_may_be_decided_later(world: World) -> None:
    with pytest.raises(Interrupted):
        train(world.config(**LORA), Reference(stop_at=2))
    result = train(world.config(merge_adapter=True, **LORA))
    assert result.resumed_at == 2
    assert (result.out / "model.safetensors").is_file()


@pytest.mark.slow
def test_two_processes_train_the_adapter_of_one(world: World) -> None:
    """Uneven shares; the gradients of the adapters alone are exchanged."""
    changes = LORA | {"batch_size": 17, "gradient_checkpointing": True}
    alone = train(world.config(out=str(world.folder / "alone"), **changes))
    config = world.config(out=str(world.folder / "both"), **changes)
    script = world.folder / "run.py"
    script.write_text(
        "import json, sys\nfrom twdpo.pipeline.train import TrainConfig, train\n"
        "train(TrainConfig(**json.loads(sys.argv[1])))\n",
        "utf-8",
    )
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", str(script), json.dumps(asdict(config))]
    launched = subprocess.run(
        [sys.executable, *command],
        check=False,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert launched.returncode == 0, launched.stderr.decode()[-2000:]
    here, there = adapter_of(alone.out), adapter_of(Path(config.out))
    assert here.keys() == there.keys()
    for name, tensor in here.items():
        torch.testing.assert_close(there[name], tensor, rtol=1e-3, atol=1e-3)


def test_the_reference_of_a_trained_policy_is_its_base(world: World) -> None:
    """Whoever asks for it, and whenever: trained adapters do not reach it."""
    found = []
    for learnt in (False, True):
        loaded = load_model(str(world.model), device="cpu")
        renderer = Renderer(loaded.tokenizer, max_length=256)
        config = world.config(limit=12, eval_split="none")
        with WeightsCache.open(world.weights, layers=(1,)) as cache:
            examples = ResidentFeed(config, cache, renderer, Alone(), TrainProgress()).train
        policy_of(loaded)
        if learnt:
            disturb(loaded.model)
        found.append(compute(world.folder / f"reference-{learnt}", loaded, examples, Counting()))
    base, trained = found
    assert base.keys() == trained.keys()
    assert all(np.array_equal(base[key][side], trained[key][side]) for key in base for side in (0, 1))


def test_a_finished_adapter_is_finished(world: World) -> None:
    """And --no-resume leaves none of its files to a full run in its place, nor the other way round."""
    train(world.config(max_steps=1, **LORA))
    with pytest.raises(UsageError, match="holds a finished run"):
        train(world.config(max_steps=1, **LORA))
    out = train(world.config(max_steps=1, resume=False)).out
    assert not list(out.glob("adapter*"))
    train(world.config(max_steps=1, resume=False, **LORA))
    assert not (out / "config.json").exists()
    assert not list(out.glob("model*"))


def test_a_run_that_fails_at_its_start_leaves_a_folder_for_the_next(world: World) -> None:
    train(world.config(max_steps=1))
    with pytest.raises(UsageError, match="--lora-targets query"):
        train(world.config(resume=False, lora_targets="query", **LORA))
    assert train(world.config(max_steps=1, **LORA)).steps == 1


def test_a_checkpoint_of_another_rank_is_refused(world: World) -> None:
    with pytest.raises(Interrupted):
        train(world.config(**LORA), Reference(stop_at=2))
    with pytest.raises(TrainingError, match=r"--lora-rank 4 there, 8 asked for"):
        train(world.config(**(LORA | {"lora_rank": 8})))
    checkpoint = max((world.folder / "trained" / "checkpoints").iterdir())
    kept = load_file(checkpoint / "model.safetensors")
    save_file(dict(list(kept.items())[1:]), checkpoint / "model.safetensors")
    with pytest.raises(TrainingError, match="is damaged .other parameters are trained."):
        train(world.config(**LORA))


# an adapter's folder as a model


def test_training_goes_on_from_an_adapter(world: World) -> None:
    """An adapter's folder is a policy: trained whole, or with another adapter that is merged in; not left over it."""
    first = train(world.config(out=str(world.folder / "first"), max_steps=3, **LORA))
    base = logits(load_model(str(first.out), device="cpu").model)
    second = world.config(out=str(world.folder / "second"), model=str(first.out), max_steps=1)
    whole = train(second)
    # The first step has rate 0: nothing is learnt yet.
    torch.testing.assert_close(logits(load_model(str(whole.out), device="cpu").model), base)
    arguments = asdict(second) | LORA | {"resume": False}
    with pytest.raises(UsageError, match="is an adapter itself.*add --merge-adapter"):
        train(TrainConfig(**arguments))
    merged = train(TrainConfig(**(arguments | {"merge_adapter": True})))
    torch.testing.assert_close(logits(load_model(str(merged.out), device="cpu").model), base)
    with pytest.raises(UsageError, match="--load-in-4bit cannot hold .*first, which is an adapter"):
        train(TrainConfig(**(arguments | {"load_in_4bit": True, "merge_adapter": True})))
    with pytest.raises(ModelError, match="is an adapter, which 4 bits cannot hold"):
        load_model(str(first.out), device="cpu", load_in_4bit=True)


def test_an_adapter_is_what_it_and_its_base_are(world: World) -> None:
    """Its identity, by which references are kept, changes with either."""
    out = train(world.config(max_steps=3, **LORA)).out
    one = load_model(str(out), device="cpu").revision
    assert one == load_model(str(out), device="cpu").revision != load_model(str(world.model), device="cpu").revision
    save_file({name: tensor + 1 for name, tensor in adapter_of(out).items()}, out / "adapter_model.safetensors")
    assert load_model(str(out), device="cpu").revision != one


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is damaged, or names no base"),
        ('{"peft_type": "LORA"}', "is damaged, or names no base"),
        ('{"base_model_name_or_path": "/nowhere/model"}', "'/nowhere/model' does not exist"),
    ],
)
def test_an_adapter_without_its_base(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "adapter_config.json").write_text(content, "utf-8")
    with pytest.raises(ModelError, match=words):
        load_model(str(tmp_path), device="cpu")


def test_an_adapter_without_its_tensors(world: World) -> None:
    out = train(world.config(max_steps=1, **LORA)).out
    (out / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match="cannot load the adapter") as caught:
        load_model(str(out), device="cpu")
    assert "\n" not in str(caught.value)


def test_an_adapter_on_the_hub_is_said_to_be_one(world: World) -> None:
    """transformers would lay it over its base, unmerged, and training would not know."""
    from peft import LoraConfig, get_peft_model

    hub = world.folder / "home" / "hub" / "models--org--adapter"
    commit = "a" * 40
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text(commit)
    with quiet_peft():
        wrapper = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    wrapper.peft_config["default"].base_model_name_or_path = str(world.model)
    wrapper.save_pretrained(hub / "snapshots" / commit)
    code = "from twdpo.pipeline.models import load_model; load_model('org/adapter', device='cpu')"
    loading = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path.cwd()), "HF_HOME": str(world.folder / "home"), "HF_HUB_OFFLINE": "1"},
    )
    assert "ModelError: org/adapter is an adapter; run hf download org/adapter --local-dir adapter" in loading.stderr


# four bits


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A model whose matrices fill blocks of 64 with more than zeros."""
    return save_tiny(tmp_path / "wide", hidden_size=64, intermediate_size=128)


def test_what_transformers_is_told() -> None:
    told = four_bit("bfloat16").to_dict()
    assert told["load_in_4bit"]
    assert (told["bnb_4bit_quant_type"], told["bnb_4bit_use_double_quant"]) == ("nf4", True)
    assert told["bnb_4bit_compute_dtype"] == "bfloat16"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_four_bits_give_what_they_stand_for(wide: Path, dtype: str) -> None:
    """Log-probs and gradients of a base in NF4 are those of its dequantized matrices, with and without gradients."""
    held = policy_of(load_model(str(wide), dtype=dtype, device="cpu", load_in_4bit=True))
    model = held.loaded.model
    assert held.loaded.quantization == "nf4"
    assert model.model.layers[0].mlp.up_proj.base_layer.weight.dtype == torch.uint8
    assert model.lm_head.weight.dtype == getattr(torch, dtype)
    plain = load_model(str(wide), dtype=dtype, device="cpu", load_in_4bit=True).model.train()
    plain = plain.dequantize(getattr(torch, dtype))
    loaded = LoadedModel(model=plain, tokenizer=None, name="org/tiny", revision=None, dtype=dtype)
    reference = policy_of(loaded).loaded.model
    disturb(model)
    disturb(reference)
    autocast = torch.bfloat16 if dtype == "bfloat16" else None
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == "float32" else {"rtol": 0.1, "atol": 0.3}
    here, there = gradients(model, autocast), gradients(reference, autocast)
    assert here.keys() == there.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    for name in here:
        torch.testing.assert_close(here[name], there[name], **tolerance)
    torch.testing.assert_close(logits(model), logits(reference), **tolerance)


def test_qlora_learns_and_merges_without_rounding(world: World, wide: Path) -> None:
    """The merged model is the policy as it was trained, over the 4 bits' own values."""
    changes = LORA | {"model": str(wide), "load_in_4bit": True}
    apart = train(world.config(out=str(world.folder / "apart"), **changes))
    assert apart.before["eval_loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert apart.after["eval_loss"] < 0.3
    whole = train(world.config(out=str(world.folder / "whole"), merge_adapter=True, **changes))
    assert "quantization_config" not in json.loads((whole.out / "config.json").read_text("utf-8"))
    from peft import PeftModel

    base = load_model(str(wide), dtype="float32", device="cpu", load_in_4bit=True).model
    with quiet_peft():
        expected = logits(PeftModel.from_pretrained(base, str(apart.out)).train())
    merged = logits(load_model(str(whole.out), device="cpu").model)
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    full = logits(load_model(str(apart.out), device="cpu").model)
    assert not torch.allclose(full, expected, atol=1e-2)  # over the unquantized base it is another model


# what is missing


@pytest.mark.parametrize(
    ("package", "changes", "words"),
    [
        ("peft", {"lora_rank": 4}, "pip install 'twdpo[peft]'"),
        ("bitsandbytes", {"lora_rank": 4, "load_in_4bit": True}, "--load-in-4bit needs bitsandbytes"),
        ("bitsandbytes", {"optimizer": "adamw_8bit"}, "--optimizer adamw_8bit needs bitsandbytes"),
    ],
)
def test_missing_packages(
    world: World, monkeypatch: pytest.MonkeyPatch, package: str, changes: dict[str, Any], words: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError) as caught:
        train(world.config(**changes))
    assert words in str(caught.value)
    assert not (world.folder / "trained").exists()
    assert not (world.folder / "reference_cache").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora_rank": 4}, "--lora-rank does not go with fsdp2 or zero3 yet; use --accelerate-config ddp"),
        ({"optimizer": "adamw_8bit"}, "--optimizer adamw_8bit cannot be divided among processes"),
    ],
)
def test_what_cannot_be_divided(changes: dict[str, Any], words: str) -> None:
    """Whoever started the processes."""
    config = TrainConfig(model="tiny", **changes)
    refuse_early(config)
    with pytest.raises(UsageError) as caught:
        refuse_early(config, divided=True)
    assert words in str(caught.value)


def test_an_adapter_needs_peft(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    out = train(world.config(max_steps=1, **LORA)).out
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match="pip install 'twdpo.peft.'"):
        load_model(str(out), device="cpu")
