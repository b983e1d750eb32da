"""Low-rank adapters (LoRA, QLoRA): laid over a frozen model, switched off for the reference, written at the end.

peft changes the model in place, so that whoever holds it sees the class it was before; peft's wrapper is kept for what
only it can do, saving and merging. Adapters are float32, whatever the base is held in. Not for: the loop (`loop.py`)
or checkpoints (`checkpoint.py`).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twdpo.errors import ModelError, UsageError
from twdpo.pipeline.extras import import_bitsandbytes, import_peft, quiet_peft
from twdpo.pipeline.model_files import DEFAULT_MODEL, holds_adapter, quiet_progress
from twdpo.pipeline.models import LoadedModel
from twdpo.pipeline.train.config import TrainConfig

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The model that is trained, and peft's wrapper around it where that is by adapters."""

    loaded: LoadedModel
    wrapper: Any = None

    def save(self, folder: Path, *, merge: bool, last: bool = True, whole: Mapping[str, Tensor] | None = None) -> None:
        """Write what `from_pretrained` loads: the adapter, the model with the adapter merged in, or the model.

        Merging changes the model in place and ends the policy's life, unless more is to come of it (`last=False`): then
        a copy is merged. whole: the parameters, where the model's own are divided among processes.
        """
        with quiet_progress(), quiet_peft():
            if self.wrapper is None:
                self.loaded.model.save_pretrained(folder, state_dict=whole)
            elif merge:
                policy = self if last else replace(self, wrapper=copy.deepcopy(self.wrapper))
                _merged(policy).save_pretrained(folder)
            else:
                self.wrapper.save_pretrained(folder, save_embedding_layers=False)
        self.loaded.tokenizer.save_pretrained(folder)


def refuse_early(config: TrainConfig, *, divided: bool = False) -> None:
    """Raise UsageError where the model or a missing package rules an option out, before anything is written.

    divided: whether parameters are divided among processes.
    """
    if divided:
        refuse_divided(config)
    if config.lora_rank is not None and holds_adapter(str(config.model)):
        if config.load_in_4bit:
            raise UsageError(
                f"--load-in-4bit cannot hold {config.model}, which is an adapter; merge it and pass the merged model"
            )
        if not config.merge_adapter:
            raise UsageError(
                f"{config.model} is an adapter itself, and one over another cannot be saved alone; add --merge-adapter"
            )
    if config.lora_rank is not None:
        import_peft()
    if config.load_in_4bit:
        import_bitsandbytes("--load-in-4bit", "leave it out")
    if config.optimizer == "adamw_8bit":
        import_bitsandbytes("--optimizer adamw_8bit", "use --optimizer adamw")


def refuse_divided(config: TrainConfig) -> None:
    """Raise UsageError for what parameters that are divided among processes rule out."""
    if config.lora_rank is not None:
        raise UsageError("--lora-rank does not go with fsdp2 or zero3 yet; use --accelerate-config ddp")
    if config.optimizer == "adamw_8bit":
        raise UsageError("--optimizer adamw_8bit cannot be divided among processes; use --optimizer adamw")


def add_adapters(config: TrainConfig, loaded: LoadedModel) -> Policy:
    """Freeze a model and lay new adapters over it: the same seed gives the same bits, and B = 0 changes no number yet.

    Raises UsageError where the targets do not fit the model, and ModelError where peft does not know it.
    """
    peft, model, rank = import_peft(), loaded.model, config.lora_rank
    if config.merge_adapter and getattr(model, "is_quantized", False) and loaded.quantization is None:
        raise UsageError("--merge-adapter needs a base that is not quantized, or --load-in-4bit over such a base")
    settings = peft.LoraConfig(
        r=rank,
        lora_alpha=config.lora_alpha if config.lora_alpha is not None else 2 * int(rank or 0),
        target_modules=_targets(config.lora_targets, model),
        task_type="CAUSAL_LM",
        revision=getattr(model.config, "_commit_hash", None),
    )
    try:
        # Random numbers come from the CPU whatever the device, and are drawn for nothing else.
        with torch.random.fork_rng(devices=[]), quiet_peft():
            torch.manual_seed(config.seed)
            wrapper = peft.get_peft_model(model, settings)
    except ValueError as error:
        raise ModelError(f"cannot lay adapters over {loaded.name}: {str(error).splitlines()[0][:300]}") from None
    wrapper.peft_config["default"].base_model_name_or_path = _base_name(loaded)
    if loaded.quantization is not None:
        # In evaluation mode bitsandbytes repacks weights for inference on some CPUs: other numbers, and no gradient.
        model.train()
    return Policy(loaded=loaded, wrapper=wrapper)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Let a model compute as its base for the length of a `with` block; nothing to do for one without adapters."""
    layers: list[Any] = []
    if "peft" in sys.modules:  # else no module of it can be in there
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def _targets(text: str, model: Any) -> str | list[str]:
    """peft's `target_modules`. Raises UsageError for a name that the model has no module of."""
    if text == ALL_LINEAR:
        return text
    head = model.get_output_embeddings()
    known = {name: module for name, module in model.named_modules() if name}
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        found = [module for path, module in known.items() if path == name or path.endswith(f".{name}")]
        if not found:
            linear = sorted({p.rpartition(".")[2] for p, m in known.items() if hasattr(m, "in_features")})
            raise UsageError(f"--lora-targets {name}: the model has no such module; it has {', '.join(linear)}")
        tied = {id(head), id(model.get_input_embeddings())} & set(map(id, found))
        if tied and head.weight is model.get_input_embeddings().weight:
            raise UsageError(f"--lora-targets {name}: the model uses this matrix twice; leave it out")
    return names


def _base_name(loaded: LoadedModel) -> str:
    """The base as the adapter names it: where peft finds it again, from any folder."""
    for name in (loaded.name, loaded.model.name_or_path):
        path = Path(name).expanduser()
        if name and name != DEFAULT_MODEL and path.exists():
            return str(path.resolve())
    return str(loaded.model.name_or_path or loaded.name)


def _merged(policy: Policy) -> Any:
    """The model with its adapters merged in, in the base's type.

    A base in 4 bits becomes what its 4 bits stand for first: adding to it in 4 bits would round the adapter away.
    """
    wrapper = policy.wrapper
    if policy.loaded.quantization is not None:
        peft = import_peft()
        learnt = {name: tensor.clone() for name, tensor in peft.get_peft_model_state_dict(wrapper).items()}
        settings = copy.deepcopy(wrapper.peft_config["default"])
        settings.base_model_name_or_path = None
        with _quiet_transformers():
            base = wrapper.unload().dequantize(getattr(torch, policy.loaded.dtype))
        wrapper = peft.get_peft_model(base, settings)
        peft.set_peft_model_state_dict(wrapper, learnt)
    return wrapper.merge_and_unload()


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging as library

    logging: Any = library  # its functions are not annotated
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
