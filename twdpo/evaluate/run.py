"""`twdpo eval` from end to end: the pairs, both models, the figures, the file.

Not for: measuring (`heldout.py`), which pairs there are (`pairs.py`), reward models (`reward.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from twdpo.errors import ModelError, UsageError
from twdpo.evaluate.against import read_evaluation
from twdpo.evaluate.config import MAX_NEW_TOKENS, EvalConfig
from twdpo.evaluate.figures import PairFigures, differences, summarize
from twdpo.evaluate.generation import GenerationSettings, answer_all
from twdpo.evaluate.heldout import ReferenceStates, logps_of, measure
from twdpo.evaluate.pairs import HeldoutPairs, heldout_pairs, plain_example
from twdpo.evaluate.result import FILE, EvalResult, RewardResult
from twdpo.evaluate.reward import Answers, RewardModel, answers_plain, win_rates
from twdpo.evaluate.statistics import Bootstrap, Estimate, ratio
from twdpo.evaluate.trained import Run, origin, run_of
from twdpo.pipeline.models import LoadedModel, context_length, load_model, pick_device
from twdpo.pipeline.train.data import Example
from twdpo.pipeline.train.layouts import Logps
from twdpo.pipeline.train.logps import TokenLogps
from twdpo.pipeline.train.progress import TrainProgress
from twdpo.pipeline.train.reference import open_store, read_reference
from twdpo.pipeline.train.render import Renderer, RenderError
from twdpo.preferences import Message, Pair
from twdpo.weights_cache.durable import make_folder, write_file

_MAX_LENGTH = 2048
#: Pairs whose reference states are in memory at a time.
_WINDOW = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """A model and its log-probs."""

    loaded: LoadedModel
    logps: TokenLogps


def run(config: EvalConfig, progress: TrainProgress) -> EvalResult:
    """Evaluate as `config` says. Raises what its parts raise."""
    out = _out(config)
    trained = run_of(config.model)
    name, revision = (
        (config.reference, config.reference_revision) if config.reference else origin(config.model, trained)
    )
    other = read_evaluation(config.against) if config.against else None
    device = pick_device(config.device)
    # A name that is misspelt, or a template that refuses the prompts, is to be known before hours of measuring.
    judge = _judge(config, device)
    policy = _load(config, config.model, config.revision, device)
    renderer = Renderer(policy.loaded.tokenizer, max_length=_max_length(config, trained, policy.loaded))
    progress.start("pairs", None)
    pairs = heldout_pairs(config, trained, renderer)
    progress.advance("pairs", len(pairs.examples))
    progress.finish("pairs")
    if other is not None:
        other.check(pairs.examples, renderer.max_length)
    if judge is not None:
        judge.check(_prompts(pairs))
    reference = _load(config, name, revision, device)
    _refuse_unlike(policy.loaded, reference.loaded)
    figures = _figures(config, trained, policy, reference, renderer, pairs, progress)
    bootstrap = Bootstrap(resamples=config.resamples, level=config.level, seed=config.seed)
    beta = config.beta if config.beta is not None else _beta(trained)
    result = EvalResult(
        model=config.model,
        reference=name,
        data=pairs.what,
        figures=figures,
        metrics=summarize(figures, beta=beta, bootstrap=bootstrap),
        bootstrap=bootstrap,
        beta=beta,
        weights=_weights(config, trained) if pairs.weighted else None,
        weight_rules=pairs.rules,
        max_length=renderer.max_length,
        dtype=config.dtype,
        trained_pairs=pairs.overlap.pairs,
        trained_prompts=pairs.overlap.prompts,
        truncated=sum(example.cut for example in pairs.examples),
        skipped=dict(pairs.skipped),
        against=config.against,
        rewards=_rewards(config, judge, policy, reference, renderer, _prompts(pairs), bootstrap, progress),
        out=out,
    )
    if other is not None:
        result = replace(
            result,
            differences=differences(
                figures, other.comparable(pairs.rules), beta=(beta, other.beta), bootstrap=bootstrap
            ),
            unlike=other.unlike(result),
        )
    if result.out is not None:
        text = json.dumps(result.plain(), ensure_ascii=False, indent=1, allow_nan=False)
        write_file(result.out, f"{text}\n".encode("utf-8", "surrogatepass"))
    return result


def _beta(trained: Run | None) -> float | None:
    """The run's beta, where it multiplied ratios; SimPO's multiplies something else."""
    return trained.config.beta if trained is not None and trained.config.objective.reference else None


def _load(config: EvalConfig, name: str, revision: str | None, device: str) -> _Model:
    """A model with float32 parameters: in bfloat16 most of what training changes would be rounded away."""
    loaded = load_model(
        name, dtype="float32", device=device, revision=revision, trust_remote_code=config.trust_remote_code
    )
    autocast = torch.bfloat16 if config.dtype == "bfloat16" else None
    return _Model(loaded=loaded, logps=TokenLogps(loaded.model, autocast=autocast, layout=config.layout))


def _max_length(config: EvalConfig, trained: Run | None, policy: LoadedModel) -> int:
    context = context_length(policy.model.config)
    if config.max_length is not None:
        if context is not None and context < config.max_length:
            raise UsageError(
                f"--max-length {config.max_length} is more than the policy's context of {context} tokens; "
                f"use --max-length {context}"
            )
        return config.max_length
    wanted = trained.config.max_length if trained is not None else _MAX_LENGTH
    return wanted if context is None else min(wanted, context)


def _refuse_unlike(policy: LoadedModel, reference: LoadedModel) -> None:
    """KL and ratios need the same tokens in the same places."""
    sizes = [int(model.model.config.get_text_config().vocab_size) for model in (policy, reference)]
    if sizes[0] != sizes[1] or policy.tokenizer.get_vocab() != reference.tokenizer.get_vocab():
        raise ModelError(
            f"{reference.name} has another vocabulary than {policy.name}; pass the --reference it was trained from"
        )


def _figures(
    config: EvalConfig,
    trained: Run | None,
    policy: _Model,
    reference: _Model,
    renderer: Renderer,
    pairs: HeldoutPairs,
    progress: TrainProgress,
) -> PairFigures:
    """The figures of all pairs, some at a time: their reference states need not fit into memory all together."""
    progress.start("evaluation", len(pairs.examples))
    parts = []
    for start in range(0, len(pairs.examples), _WINDOW):
        window = pairs.examples[start : start + _WINDOW]
        known: ReferenceStates | Mapping[str, Logps]
        if config.kl:
            known = ReferenceStates.of(reference.logps, window, pairs=config.batch_size, copy_head=False)
        else:
            known = _stored(config, trained, reference, renderer, window)
        parts.append(measure(policy.logps, window, known, weighted=pairs.weighted, pairs=config.batch_size))
        if parts[-1].broken:
            raise ModelError(_not_numbers(config, reference, parts[-1]))
        progress.advance("evaluation", len(window))
    progress.finish("evaluation")
    characters = np.array([(len(pair.chosen), len(pair.rejected)) for pair in pairs.pairs], np.int64)
    return replace(
        PairFigures.concatenate(parts), chosen_characters=characters[:, 0], rejected_characters=characters[:, 1]
    )


def _not_numbers(config: EvalConfig, reference: _Model, figures: PairFigures) -> str:
    """Whose log-probs are none, and what to do."""
    if np.isfinite(figures.margins).all():
        return (
            f"the KL of {figures.broken} pairs is not finite, as where a model excludes tokens altogether; "
            "--no-kl leaves it out"
        )
    theirs = np.isfinite(figures.chosen_logps + figures.rejected_logps).all()
    name = reference.loaded.name if theirs else config.model
    more = ", or try --dtype float32" if config.dtype != "float32" else ""
    return f"log-probs of {figures.broken} pairs are not numbers; check the weights of {name}{more}"


def _stored(
    config: EvalConfig, trained: Run | None, reference: _Model, renderer: Renderer, examples: Sequence[Example]
) -> Mapping[str, Logps]:
    """Reference log-probs from their store, which gets those that it lacks; without a store, computed."""
    folder = config.reference_cache or (str(trained.config.reference_folder) if trained is not None else None)
    if folder is None:
        return logps_of(reference.logps, examples, pairs=config.batch_size)
    with open_store(Path(folder), reference.loaded, renderer, config.dtype) as store:
        lacking = [example for example in examples if example.example_hash not in store]
        for key, sides in logps_of(reference.logps, lacking, pairs=config.batch_size).items():
            store.add(key, *sides)
        return read_reference(examples, store)


def _judge(config: EvalConfig, device: str) -> RewardModel | None:
    if config.reward_model is None:
        return None
    return RewardModel.load(config.reward_model, device=device, trust_remote_code=config.trust_remote_code)


def _prompts(pairs: HeldoutPairs) -> list[tuple[Message, ...]]:
    """Each prompt once."""
    return list(dict.fromkeys(pair.prompt for pair in pairs.pairs))


def _rewards(
    config: EvalConfig,
    judge: RewardModel | None,
    policy: _Model,
    reference: _Model,
    renderer: Renderer,
    prompts: Sequence[tuple[Message, ...]],
    bootstrap: Bootstrap,
    progress: TrainProgress,
) -> RewardResult | None:
    """Win rates over the held-out prompts."""
    if judge is None:
        return None
    settings = GenerationSettings(
        max_new_tokens=config.max_new_tokens if config.max_new_tokens is not None else MAX_NEW_TOKENS,
        temperature=config.temperature or 0.0,
        seed=config.seed,
        batch_size=config.batch_size,
    )
    progress.start("answers", 2 * len(prompts))
    found = []
    for model in (policy, reference):
        given = answer_all(model.loaded, prompts, settings, lambda items: progress.advance("answers", items))
        texts = [answer.text for answer in given]
        rewards = judge.score(prompts, texts)
        found.append(Answers(texts=texts, rewards=rewards, cut=[answer.cut for answer in given]))
    progress.finish("answers")
    metrics = win_rates(found[0], found[1], bootstrap)
    if config.kl:
        metrics |= _sampled_kl(policy, reference, renderer, prompts, found[0].texts, bootstrap)
    return RewardResult(
        model=judge.name,
        metrics=metrics,
        answers=answers_plain(prompts, *found),
        cut=(sum(found[0].cut), sum(found[1].cut)),
        empty=(found[0].empty, found[1].empty),
    )


def _sampled_kl(
    policy: _Model,
    reference: _Model,
    renderer: Renderer,
    prompts: Sequence[tuple[Message, ...]],
    answers: Sequence[str],
    bootstrap: Bootstrap,
) -> dict[str, Estimate]:
    """The KL at the prefixes of the policy's own answers that are not empty; its count says how many these are."""
    examples = []
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        try:
            # A pair of the answer with itself: what another one is must not decide whether this one counts.
            examples.append(plain_example(Pair(prompt=prompt, chosen=answer, rejected=answer, row=row), renderer))
        except RenderError:
            continue
    parts = []
    for start in range(0, len(examples), _WINDOW):
        window = examples[start : start + _WINDOW]
        parts.append(measure(policy.logps, window, ReferenceStates.of(reference.logps, window, copy_head=False)))
    if not parts:
        return {}
    figures = PairFigures.concatenate(parts)
    if figures.chosen_kl is None:
        return {}
    return {"kl_per_token_sampled": bootstrap.estimate(ratio, figures.chosen_kl, figures.chosen_tokens)}


def _weights(config: EvalConfig, trained: Run | None) -> str | None:
    return config.weights or (trained.config.weights if trained is not None else None)


def _out(config: EvalConfig) -> Path | None:
    """Where the result goes, known to be possible before anything is computed; None for a model that is no folder."""
    if config.out is None:
        folder = Path(config.model).expanduser()
        return folder / FILE if folder.is_dir() and os.access(folder, os.W_OK) else None
    out = Path(config.out)
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; name a file in it, such as {out / FILE}")
    make_folder(out.parent)
    return out
