"""README.md of a trained model: a hub model card with all that it takes to judge the run and to repeat it.

Not for: drawing the curves (`curves.py`) or writing the files (`output.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from twdpo import __version__
from twdpo.pipeline.model_files import DEFAULT_MODEL, DEFAULT_REPOSITORY
from twdpo.pipeline.train.config import TrainConfig
from twdpo.pipeline.train.metrics import NAMES, Record
from twdpo.pipeline.train.retention import Best
from twdpo.preferences import NAMED
from twdpo.weights_cache import Manifest

PAPER = "https://arxiv.org/abs/2605.21883"
#: The embedded model's, whose card does not come with it.
_DEFAULT_LICENCE = "apache-2.0"
_LIBRARIES = ("torch", "transformers", "accelerate", "peft")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What a card tells of a run.

    model_revision: what identifies the policy's content, where that is known. pairs, heldout: trained on, and held out.
    evaluations: step → its figures. last: the last line of training metrics. best: the checkpoint with a lower held-out
    loss than the last model, if any. has_curves: whether the picture lies beside the card. processes: that trained
    together.
    """

    config: TrainConfig
    manifest: Manifest
    model_revision: str | None
    pairs: int
    heldout: int
    steps: int
    evaluations: Mapping[int, Record]
    last: Record
    best: Best | None = None
    has_curves: bool = False
    processes: int = 1


def model_card(facts: RunFacts, *, is_best: bool = False) -> str:
    """The card of the last model of a run, or of its best one, which lies in `best/`."""
    config = facts.config
    name = Path(config.out).absolute().name
    # The best model lies one folder below what it links to.
    up = "../" if is_best else ""
    title = f"{name}, after step {facts.best.step} of {facts.steps}" if is_best and facts.best else name
    parts = [
        f"---\n{_header(facts)}\n---",
        f"# {title}",
        f"{_model_name(config)}, trained by [{config.objective.title}]({PAPER}) with twdpo: every token of an answer "
        "counts by the weight that a judge's attention gave it.",
        _which(facts, is_best),
        f"## How to load it\n\n{_loading(facts, is_best)}",
        f"## Figures\n\n{_table(facts)}",
        f"The figures of every step are in [metrics.jsonl]({up}metrics.jsonl).",
    ]
    if facts.has_curves:
        parts.append(f"![Loss, weighted margin, weighted accuracy and learning rate over the steps]({up}curves.png)")
    parts += [
        f"## Data and weights\n\n{_bullets(_data(facts))}",
        f"## Settings\n\n{_bullets(_settings(facts))}",
        f"All of them are in [train.yaml]({up}train.yaml); `twdpo train --config train.yaml` takes it as it is.",
        f"## Versions\n\n{_versions()}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(facts: RunFacts) -> str:
    from huggingface_hub import ModelCardData

    config = facts.config
    data = ModelCardData(
        base_model=_hub_id(config),
        datasets=_hub_datasets(config, facts.manifest) or None,
        library_name="peft" if _is_adapter(config) else "transformers",
        license=_licence(config),
        pipeline_tag="text-generation",
        tags=["twdpo", "dpo", "preference-optimization", "attentionpo"],
    )
    if data.base_model is not None:
        data["base_model_relation"] = "adapter" if _is_adapter(config) else "finetune"
    return str(data.to_yaml())


def _is_adapter(config: TrainConfig) -> bool:
    return config.lora_rank is not None and not config.merge_adapter


def _hub_id(config: TrainConfig) -> str | None:
    """The policy's repository on the hub, None for files on this machine."""
    name = str(config.model)
    if name == DEFAULT_MODEL:
        return DEFAULT_REPOSITORY
    is_local = name.count("/") > 1 or name.startswith((".", "/", "~")) or Path(name).exists()
    return None if is_local else name


def _model_name(config: TrainConfig) -> str:
    """The policy as a reader elsewhere can know it: a repository, or the last part of a path."""
    return _hub_id(config) or Path(str(config.model)).name


def _licence(config: TrainConfig) -> str | None:
    """The base model's licence, where its card is at hand."""
    import yaml
    from huggingface_hub import ModelCard

    if config.model == DEFAULT_MODEL:
        return _DEFAULT_LICENCE
    card = Path(str(config.model)) / "README.md"
    try:
        licence = ModelCard.load(card, ignore_metadata_errors=True).data.license if card.is_file() else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return licence if isinstance(licence, str) else None


def _sources(config: TrainConfig, manifest: Manifest) -> list[Mapping[str, object]]:
    if config.dataset is None:
        return list(manifest.sources)
    known = NAMED.get(config.dataset)
    found = [source for source in manifest.sources if config.dataset in (source.get("name"), source.get("location"))]
    if found:
        return found
    split = config.split or (known.split if known else None)
    return [{"name": config.dataset, "location": known.location if known else config.dataset, "split": split}]


def _hub_datasets(config: TrainConfig, manifest: Manifest) -> list[str]:
    found = (str(s.get("location")) for s in _sources(config, manifest) if s.get("kind") == "hub")
    return list(dict.fromkeys(found))


def _which(facts: RunFacts, is_best: bool) -> str:
    if facts.steps not in facts.evaluations:
        return ""
    last = f"{facts.evaluations[facts.steps]['eval_loss']:.4f} after the last step, {facts.steps}"
    if facts.best is None:
        return f"The held-out loss is {last}: no checkpoint of the run has a lower one."
    best = f"{facts.evaluations[facts.best.step]['eval_loss']:.4f} after step {facts.best.step}"
    if is_best:
        return f"The held-out loss is {best}, the lowest of the run's checkpoints, and {last}."
    return f"The held-out loss is {last}. It was lowest, {best}: that model is in `best/`."


def _loading(facts: RunFacts, is_best: bool) -> str:
    config = facts.config
    place = f'"{config.push or Path(config.out).absolute().name}"' + (', subfolder="best"' if is_best else "")
    text = (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained({place}, dtype="auto")\n'
        f"tokenizer = AutoTokenizer.from_pretrained({place})\n```"
    )
    if facts.best is not None and not is_best:
        text += '\n\nThe model with the lowest held-out loss: the same with `subfolder="best"`.'
    if _is_adapter(config):
        text += "\n\nIt is an adapter: the base model is loaded with it, for which peft has to be installed."
    return text


def _table(facts: RunFacts) -> str:
    columns = {"last training step": facts.last}
    if 0 in facts.evaluations:
        # Before training the policy is the reference: all rewards are zero, and none is right or wrong.
        before = _plain(facts.evaluations[0])
        hidden = "accuracies" if facts.config.objective.reference else None
        columns["held out, before"] = {k: v for k, v in before.items() if hidden is None or hidden not in k}
    if facts.best is not None:
        columns[f"held out, step {facts.best.step}"] = _plain(facts.evaluations[facts.best.step])
    if facts.steps in facts.evaluations:
        columns["held out, after"] = _plain(facts.evaluations[facts.steps])
    rows = [f"| metric | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in NAMES:
        cells = (column.get(name) for column in columns.values())
        rows.append(f"| {name} | " + " | ".join("–" if cell is None else f"{cell:.4g}" for cell in cells) + " |")
    return "\n".join(rows)


def _plain(evaluation: Mapping[str, float]) -> Record:
    return {name.removeprefix("eval_"): value for name, value in evaluation.items()}


def _data(facts: RunFacts) -> Iterable[str]:
    config, manifest = facts.config, facts.manifest
    recipe = manifest.recipe
    for source in _sources(config, manifest):
        name = str(source.get("location") or source.get("name"))
        about = [f"{key} {source[key]}" for key in ("config", "split", "revision", "licence") if source.get(key)]
        shown = Path(name).name if source.get("kind") == "file" else name
        yield f"data: {shown}" + (f" ({', '.join(about)})" if about else "")
    yield f"{facts.pairs:,} pairs trained on, {facts.heldout:,} held out (`{config.eval_split}`)"
    judge = Path(recipe.judge_model).name if recipe.judge_model.startswith((".", "/", "~")) else recipe.judge_model
    revision = f", revision {recipe.judge_revision}" if recipe.judge_revision else ""
    by = "judge" if recipe.has_model or not judge else "on the tokens of"
    yield f"token weights: {recipe.source}, {by} {judge or 'unknown'}{revision}"
    yield f"fingerprint of the weights' recipe: `{manifest.fingerprint}`"
    fixed = config.sink_fix and manifest.has_sink
    yield (
        f"read with attention source {config.attn_source}, sink fix {'on' if fixed else 'off'}, "
        f"uncovered tokens {config.uncovered}, uniform mix {config.uniform_mix:g}, missing pairs {config.missing}"
    )


def _settings(facts: RunFacts) -> Iterable[str]:
    config = facts.config
    revision = config.revision or facts.model_revision
    what = "policy and reference" if config.objective.reference else "policy"
    yield f"{what}: {_model_name(config)}" + (f", revision {revision}" if revision else "")
    yield (
        f"{facts.steps:,} steps of {config.batch_size} pairs; {config.epochs:g} epochs asked for"
        if (config.max_steps is None)
        else f"{facts.steps:,} steps of {config.batch_size} pairs"
    )
    smoothing = f", label smoothing {config.label_smoothing:g}" if config.label_smoothing else ""
    gamma = f", gamma {config.simpo_gamma:g}" if config.simpo_gamma is not None else ""
    means = ", means over tokens" if config.ipo_mean else ""
    yield f"loss {config.loss}, beta {config.settled().beta:g}{gamma}{means}{smoothing}"
    yield (
        f"learning rate {config.learning_rate:g}, {config.scheduler}, warm-up {config.warmup_ratio:g}; "
        f"{config.optimizer}, weight decay {config.weight_decay:g}, gradients clipped at {config.max_grad_norm:g}"
    )
    yield f"{config.dtype}, max length {config.max_length}, seed {config.seed}, {facts.processes} process" + (
        "es" if facts.processes > 1 else ""
    )
    if config.lora_rank is not None:
        alpha = config.lora_alpha if config.lora_alpha is not None else 2 * config.lora_rank
        how = ", merged into the model" if config.merge_adapter else ""
        base = ", base in 4 bits" if config.load_in_4bit else ""
        yield f"LoRA of rank {config.lora_rank}, alpha {alpha:g}, on {config.lora_targets}{base}{how}"


def _versions() -> str:
    found = [f"twdpo {__version__}"]
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except ModuleNotFoundError:
            continue
    return ", ".join(found)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
