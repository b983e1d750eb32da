"""Load a causal language model and its tokenizer by name: folder, hub repository, GGUF file, or the embedded default.

A folder that holds an adapter is loaded as its base with the adapter merged in. Both stages use this. Not for: making
adapters (`train/adapters.py`), or what is done with the model (`annotate/engines`, `train`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twdpo.errors import ModelError, UsageError, first_line
from twdpo.pipeline.extras import import_bitsandbytes, import_peft, quiet_peft
from twdpo.pipeline.model_files import (
    adapted,
    base_of,
    forget_quantization,
    holds_adapter,
    loading,
    locate,
    quiet_progress,
)

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model ready to run, its tokenizer, and what identifies them in a recipe.

    dtype: of the parameters. quantization: `nf4` where the linear layers are held in 4 bits.
    """

    model: Any
    tokenizer: Any
    name: str
    revision: str | None
    dtype: str
    quantization: str | None = None


def pick_device(device: str = "auto") -> str:
    """The device to run on: the one named, else CUDA, Apple's MPS or the CPU, whichever is there first."""
    import torch

    if device != "auto":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise UsageError(f"--device {device} cannot be used here ({first_line(error)}); try --device cpu") from None
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_dtype(dtype: str, device: str) -> str:
    """`auto` is bfloat16 on an accelerator and float32 on a CPU."""
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype} is not known; choose one of {', '.join(DTYPES)}")
    if dtype != "auto":
        return dtype
    return "float32" if device == "cpu" else "bfloat16"


def load_tokenizer(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model. Raises ModelError or HubUnavailable."""
    from transformers import AutoTokenizer

    path = Path(name).expanduser()
    if (path / "tokenizer_config.json").is_file() and not (path / "config.json").is_file():
        # A tokenizer alone is enough here.
        folder, arguments = str(path), {"trust_remote_code": trust_remote_code}
    else:
        folder, _, arguments = locate(name, revision, trust_remote_code)
    with loading(name, "tokenizer"):
        return AutoTokenizer.from_pretrained(folder, **arguments)


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    load_in_4bit: bool = False,
    device_map: str | dict[str, str] | None = None,
) -> LoadedModel:
    """Load a model in evaluation mode onto a device, with its tokenizer.

    `name` is a folder, a GGUF file, a hub repository or `smollm2-135m`. attn_implementation: None for the fastest that
    the model supports, as transformers knows it. load_in_4bit: hold linear layers in NF4 with double quantization and
    compute in `dtype`. device_map: place the parts as accelerate does, over several devices, memory and disk; `device`
    then only decides what `dtype` auto is. Raises ModelError, UsageError or HubUnavailable.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = pick_device(device)
    dtype = resolve_dtype(dtype, device)
    if load_in_4bit:
        import_bitsandbytes("--load-in-4bit", "leave it out")
    if holds_adapter(name):
        if load_in_4bit or device_map:
            cannot = "4 bits cannot hold" if load_in_4bit else "--device-map cannot place"
            raise ModelError(f"{name} is an adapter, which {cannot}; merge it and pass the merged model")
        return _load_merged(
            Path(name).expanduser(),
            name,
            dtype=dtype,
            device=device,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
        )
    folder, identity, arguments = locate(name, revision, trust_remote_code)
    with loading(name, "model"), quiet_progress():
        placed: dict[str, Any] = {"device_map": device_map} if device_map else {}
        if load_in_4bit:
            placed = {"quantization_config": four_bit(dtype), "device_map": {"": device}}
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation=attn_implementation, **arguments, **placed
        )
        if getattr(model, "peft_config", None):  # transformers lays a hub repository's adapter over its base unasked
            raise ModelError(
                f"{name} is an adapter; run hf download {name} --local-dir adapter, and pass that folder with --model"
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, **arguments)
    if "gguf_file" in arguments:
        forget_quantization(model)
    model = (model if placed else model.to(device)).eval()
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        name=name,
        revision=identity or getattr(model.config, "_commit_hash", None),
        dtype=dtype,
        quantization="nf4" if load_in_4bit else None,
    )


def input_device(model: Any) -> Any:
    """The torch device that a model wants its token ids on, also where its parts are spread or not in memory."""
    import torch

    embedding = model.get_input_embeddings()
    executes_on = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    return embedding.weight.device if executes_on is None else torch.device(executes_on)


def four_bit(dtype: str) -> Any:
    """How transformers is told to hold a model in 4 bits, as QLoRA does."""
    import torch
    from transformers import BitsAndBytesConfig

    make: Any = BitsAndBytesConfig
    return make(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


def _load_merged(folder: Path, name: str, **options: Any) -> LoadedModel:
    """An adapter's base with the adapter merged in."""
    from transformers import AutoTokenizer

    peft = import_peft()
    base_name, revision = base_of(folder)
    base = load_model(base_name, revision=revision, **options)
    with loading(name, "adapter"), quiet_progress(), quiet_peft():
        model = peft.PeftModel.from_pretrained(base.model, str(folder)).merge_and_unload().eval()
        model.requires_grad_(True)  # peft froze it
        own = (folder / "tokenizer_config.json").is_file()
        tokenizer = AutoTokenizer.from_pretrained(folder) if own else base.tokenizer
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        name=name,
        revision=adapted(base.revision or base.name, folder),
        dtype=base.dtype,
    )


def context_length(config: Any) -> int | None:
    """How many positions the model can attend over, or None where the configuration does not say."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    length = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    return int(length) if length else None
