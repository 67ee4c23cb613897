"""The audit of a finished run: every attack, its threat model and what it found."""

import os
from typing import Any, NamedTuple

import numpy as np

from fedjax_health import build, records
from fedjax_health.audit import membership, population, rates, shadows
from fedjax_health.audit.bound import epsilon_bound
from fedjax_health.audit.canary import FAR_ABOVE, Canaries, run_canaries
from fedjax_health.audit.inversion import Inversion, invert
from fedjax_health.audit.words import (
    Defences,
    canary_row,
    control_row,
    defences_of,
    inversion_row,
    membership_row,
    wire_rows,
)
from fedjax_health.config import Config, HospitalSim, load
from fedjax_health.core import trees
from fedjax_health.core.message import CompositionError
from fedjax_health.data.store import ClientStore, from_dataset
from fedjax_health.engine.places import leaves_without
from fedjax_health.engine.plan import check_plan
from fedjax_health.evaluate.detector import DetectorFile, load_weights, read_detector
from fedjax_health.evaluate.scoring import Weights
from fedjax_health.evaluate.wire import wire_leakage
from fedjax_health.privacy.accounting import Settings
from fedjax_health.privacy.ledger import epsilon_after
from fedjax_health.records import Progress, RunFolder, RunFolderError
from fedjax_health.transforms.compose import bound_leaf

FORMAT = 1
# Rounds of a training that is repeated, where nothing else is asked for.
ROUNDS = 60
# Examples that membership is asked of.
EXAMPLES = 4096
# The likelihood ratio needs two models with and two without an example beside the one
# that is attacked.
LEAST_SHADOWS = 6


class Options(NamedTuple):
    """What an audit is to spend.

    Attributes:
      shadows: models trained on random halves.
      canaries: clients whose message is known.
      rounds: at most so many of a training that is repeated; None for ``ROUNDS``.
      seed: of the audit; None for one apart from the run's.
    """

    shadows: int = 16
    canaries: int = 100
    rounds: int | None = None
    seed: int | None = None


def audit(
    folder: str | os.PathLike[str], progress: Progress, options: Options | None = None
) -> dict[str, Any]:
    """Attacks a finished run and writes ``audit.json`` into its folder.

    Args:
      folder: of the run.
      progress: told what happens.
      options: what to spend.

    Returns:
      What ``audit.json`` holds, and its path.

    Raises:
      RunFolderError: if the run is not finished, damaged or of other data than now.
      DataError: if its data cannot be read.
      ValueError: for options out of range.
    """
    options = Options() if options is None else options
    _check(options)
    paths = records.open_folder(folder)
    about = read_detector(paths)
    config = load(str(paths.config))
    _refuse_other_data(config, paths)
    with records.locked(paths):
        return _audit(paths, config, about, progress, options)


def _check(options: Options) -> None:
    if options.shadows < LEAST_SHADOWS:
        raise ValueError(
            f"--shadows {options.shadows}: {LEAST_SHADOWS} or more are needed"
        )
    if options.canaries < 10:
        raise ValueError(f"--canaries {options.canaries}: 10 or more are needed")
    if options.rounds is not None and options.rounds < 1:
        raise ValueError(f"--rounds {options.rounds}: 1 or more")
    if options.seed is not None and not 0 <= options.seed < 2**32:
        raise ValueError(f"--seed {options.seed}: must lie in [0, 2**32)")


def _refuse_other_data(config: Config, paths: RunFolder) -> None:
    """Refuses files that are not those that the run was trained on."""
    if isinstance(config.data, HospitalSim) or not hasattr(config.data, "path"):
        return
    build.check_files(config)
    then = records.read_json(paths.environment).get("context", {}).get("data")
    if then not in (None, records.files_sha256(build.data_files(config))):
        raise RunFolderError(
            f"{paths.root}: the data has changed since the run was started: who was a "
            "member is not known any more; put it back, or train again"
        )


def _audit(
    paths: RunFolder,
    config: Config,
    about: DetectorFile,
    progress: Progress,
    options: Options,
) -> dict[str, Any]:
    seed = options.seed
    if seed is None:
        # Apart from the run's: equal seeds would give equal noise.
        seed = (config.seed + 0x9E3779B9) % 2**32
    settings = shadows.without_host(config)
    prepared = build.prepare(settings, build.build_dataset(settings))
    built = build.build(settings, prepared)
    weights = load_weights(paths, built.abstract_params)
    most = options.rounds or ROUNDS
    defences = defences_of(config)
    rows: list[dict[str, Any]] = []
    absent: list[dict[str, str]] = []
    notes = _notes(config, about, most)
    canaries = _places(built, options.canaries)
    if canaries < options.canaries:
        notes.append(
            f"The model has {canaries:,} parameters, so there were {canaries:,} "
            f"canaries, not {options.canaries:,}: each needs a place of its own."
        )
    found, said = _membership(
        settings, prepared, built, weights, about, defences, progress, options, seed
    )
    rows += found
    absent += said
    epsilon, found, said = _canaries(
        paths, settings, prepared, built, defences, progress, options, seed
    )
    rows += found
    absent += said
    found, said = _inversions(settings, prepared, built, defences, progress, seed)
    rows += found
    absent += said
    if config.split_learning is not None:
        progress.on_message("reading what crosses the cut")
    leakage = wire_leakage(
        settings, prepared, built, weights, took_part=about.took_part, seed=seed
    )
    if leakage is not None:
        rows += wire_rows(leakage)
    result = {
        "format": FORMAT,
        "seed": seed,
        "shadows": options.shadows,
        "canaries": canaries,
        "round": about.round,
        "defences": defences._asdict(),
        "epsilon": epsilon,
        "rows": rows,
        "absent": absent,
        "wire": leakage,
        "notes": notes,
    }
    records.write_json(paths.audit, result)
    return {**result, "audit": str(paths.audit)}


def _notes(config: Config, about: DetectorFile, most: int) -> list[str]:
    notes = []
    if about.round > most:
        notes.append(
            f"Shadow models were trained for {most:,} rounds, the run's model for "
            f"{about.round:,}: longer training leaks more (--rounds)."
        )
    if config.rounds > most:
        notes.append(
            f"Canaries ran for {most:,} of {config.rounds:,} rounds: more rounds leak "
            "more (--rounds)."
        )
    return notes


def _places(built: build.Built, canaries: int) -> int:
    """Returns how many canaries find a place among the parameters that are sent."""
    sent = leaves_without(built.plan.unsent, built.abstract_params)
    return min(canaries, trees.num_params(sent))


def _membership(
    config: Config,
    prepared: build.Prepared,
    built: build.Built,
    weights: Weights,
    about: DetectorFile,
    defences: Defences,
    progress: Progress,
    options: Options,
    seed: int,
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    rng = np.random.default_rng([seed, 100])
    inside = population.choose(prepared.store, EXAMPLES, rng)
    outside = _test_store(config, prepared, rng)
    member = shadows.halves(inside, options.shadows, seed)
    try:
        trained = shadows.train_shadows(
            config,
            prepared,
            inside,
            member,
            rounds=min(about.round, options.rounds or ROUNDS),
            seed=seed,
            progress=progress,
        )
    except CompositionError as error:
        return [], [{"title": "Membership inference", "reason": str(error)}]
    progress.on_message("asking the models about their examples")
    ask = population.build_confidence(built.model, inside, about.took_part)
    answers = [ask(one) for one in trained.weights]
    logit = np.stack([one.logit for one in answers])
    loss = np.stack([one.loss for one in answers])
    own = ask(weights)
    rows = []
    if outside is not None:
        ask_test = population.build_confidence(built.model, outside, about.took_part)
        test = ask_test(weights)
        test_shadows = [ask_test(one) for one in trained.weights]
        flags = np.repeat([True, False], [len(own.loss), len(test.loss)])
        scores = np.mean(own.loss) - np.concatenate([own.loss, test.loss])
        found = rates.resampled([(scores, flags)], seed, threshold=0.0)
        rows.append(membership_row("loss, own", found, defences, options.shadows))
        near, usable = membership.offline_scores(own.logit, logit, member)
        far, _ = membership.offline_scores(
            test.logit,
            np.stack([one.logit for one in test_shadows]),
            np.zeros((options.shadows, len(test.logit)), bool),
        )
        scores = np.concatenate([near[usable], far])
        flags = np.repeat([True, False], [int(usable.sum()), len(far)])
        found = rates.resampled([(scores, flags)], seed)
        rows.append(membership_row("lira, own", found, defences, options.shadows))
        groups = [
            (
                -np.concatenate([one[~m], there.loss]),
                np.repeat([True, False], [int((~m).sum()), len(there.loss)]),
            )
            for one, m, there in zip(loss, member, test_shadows, strict=True)
            if (~m).any()
        ]
        rows.append(control_row(rates.resampled(groups, seed), options.shadows))
    groups = [
        (membership.loss_scores(one, m), m) for one, m in zip(loss, member, strict=True)
    ]
    groups = [(s, m) for s, m in groups if (~m).any()]
    if not groups:
        reason = "no client has two examples, of which one could be left out."
        return rows, [{"title": "Membership on random halves", "reason": reason}]
    found = rates.resampled(groups, seed, threshold=0.0)
    rows.append(membership_row("loss, halves", found, defences, options.shadows))
    groups = []
    for target in range(options.shadows):
        score, usable = membership.online_scores(logit, member, target)
        flags = member[target][usable]
        if flags.any() and not flags.all():
            groups.append((score[usable], flags))
    if groups:
        found = rates.resampled(groups, seed, threshold=0.0)
        rows.append(membership_row("lira, halves", found, defences, options.shadows))
    return rows, []


def _test_store(
    config: Config, prepared: build.Prepared, rng: np.random.Generator
) -> ClientStore | None:
    """Returns test examples of the clients that train, or None where there are none."""
    part = prepared.parts.test
    store = from_dataset(part, window=prepared.window, stride=config.window.stride)
    population_size = prepared.store.num_clients
    end = int(store.offsets[min(population_size, store.num_clients)])
    if not end:
        return None
    kept = population.take(store, np.arange(end))
    offsets = kept.offsets[: population_size + 1]
    return population.choose(kept._replace(offsets=offsets), EXAMPLES, rng)


def _canaries(
    paths: RunFolder,
    config: Config,
    prepared: build.Prepared,
    built: build.Built,
    defences: Defences,
    progress: Progress,
    options: Options,
    seed: int,
) -> tuple[dict[str, Any] | None, list[dict[str, Any]], list[dict[str, str]]]:
    title = "Canaries and epsilon"
    if built.plan.unsent is not None:
        reason = "a part of the model is in no message, and canaries are messages."
        return None, [], [{"title": title, "reason": reason}]
    rounds = min(config.rounds, options.rounds or ROUNDS)
    size, clipped = _canary_size(paths, config, built)
    try:
        found: Canaries = run_canaries(
            config,
            prepared,
            canaries=_places(built, options.canaries),
            size=size,
            rounds=rounds,
            seed=seed,
            progress=progress,
        )
    except CompositionError as error:
        return None, [], [{"title": title, "reason": str(error)}]
    settings = config.privacy or Settings()
    bound = epsilon_bound(found.scores, found.is_in, settings.delta)
    upper = own = None
    if found.mechanism is not None:
        upper = epsilon_after(
            found.mechanism, found.message, found.sampling, rounds, settings
        )
        own = epsilon_after(
            built.plan.mechanism,
            built.algorithm.message,
            built.sampling,
            config.rounds,
            settings,
        )
    epsilon = {
        "lower": bound.epsilon,
        "most": bound.most,
        "confidence": bound.confidence,
        "guesses": bound.guesses,
        "correct": bound.correct,
        "canaries": bound.canaries,
        "in": int(found.is_in.sum()),
        "rounds": rounds,
        "delta": settings.delta,
        "upper": upper,
        "upper_of_run": own,
        "run_rounds": config.rounds,
        "auroc": _auroc(found),
        "clipped": clipped,
        "size": None if clipped else size,
    }
    return epsilon, [canary_row(epsilon, defences)], []


def _auroc(found: Canaries) -> float | None:
    if found.is_in.all() or not found.is_in.any():
        return None
    return rates.rates(found.scores, found.is_in).auroc


def _canary_size(
    paths: RunFolder, config: Config, built: build.Built
) -> tuple[float, bool]:
    """Returns the norm of what a canary sends, and whether it is clipped to a bound."""
    checked = check_plan(
        built.plan,
        abstract_params=built.abstract_params,
        cohort_size=built.sampling.cohort_size,
        sampling=built.sampling,
    )
    if checked.bound is not None:
        params = build.initial_params(config, built.model)
        shared = checked.transform.init_server(
            leaves_without(built.plan.unsent, params)
        )
        return FAR_ABOVE * float(bound_leaf(shared, checked.bound)), True
    norms = [line.get("update_norm") for line in records.read_jsonl(paths.metrics)]
    norms = [norm for norm in norms if isinstance(norm, float) and norm > 0]
    return (float(np.median(norms)) if norms else 1.0), False


def _inversions(
    config: Config,
    prepared: build.Prepared,
    built: build.Built,
    defences: Defences,
    progress: Progress,
    seed: int,
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    try:
        found: list[Inversion] = invert(
            config, prepared, built, seed=seed, tell=progress.on_message
        )
    except CompositionError as error:
        return [], [{"title": "Gradient inversion", "reason": str(error)}]
    windows = prepared.window is not None
    return [inversion_row(one, defences, windows=windows) for one in found], []
