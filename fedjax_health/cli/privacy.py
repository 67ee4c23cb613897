"""What a run protects: epsilon over rounds, noise for a target, and it all in words."""

import argparse
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

from fedjax_health import records
from fedjax_health.cli import show
from fedjax_health.cli.example_privacy import asks_for_examples, of_examples
from fedjax_health.config import AdaptiveClip, Config, ConfigError, load
from fedjax_health.privacy.accounting import (
    Guarantee,
    PrivacyError,
    Relation,
    Settings,
    calibrate,
    epsilon_curve,
    epsilon_of,
    usable_accountant,
)
from fedjax_health.privacy.ledger import NOT_COVERED, describe, describe_relation

# Epsilons for which the noise is told where none was asked for.
TARGETS = (1.0, 3.0, 8.0)


class Question(NamedTuple):
    """What is asked for, wherever it comes from.

    Attributes:
      told: the guarantee in words and numbers.
      make_event: (noise multiplier or None for the run's own, rounds) -> event.
      rounds: to account for.
      settings: delta and accountant.
      relation: which data sets are neighbours.
      target: an epsilon that was asked for, or None.
      scalable: whether the noise may be varied.
    """

    told: dict[str, Any]
    make_event: Any
    rounds: int
    settings: Settings
    relation: Relation
    target: float | None
    scalable: bool


def answer(options: argparse.Namespace) -> dict[str, Any]:
    """Accounts for a run, a configuration, or bare numbers.

    Args:
      options: folder, config, overrides, seed, population, the numbers and plot.

    Returns:
      The guarantee, its course over rounds and noise for targets, as JSON holds them.
    """
    plot = None if options.plot is None else _check_plot(options.plot)
    if options.folder is not None and options.config is not None:
        raise PrivacyError("give a run folder or --config, not both")
    if options.folder is not None:
        question = _of_folder(options)
    elif options.config is not None:
        question = _of_config(options)
    else:
        question = _of_numbers(options)
    result = _result(question)
    if plot is not None:
        from fedjax_health.report.plots.privacy import write_epsilon

        course = [(row["round"], row["epsilon"]) for row in result["epsilon_by_round"]]
        write_epsilon(
            plot,
            course,
            delta=result["delta"],
            unit=result["unit"],
            target=question.target,
        )
        result["plot"] = str(plot)
    return result


def _check_plot(name: str) -> Path:
    path = Path(name)
    if path.suffix not in (".svg", ".png"):
        raise PrivacyError(f"--plot {name}: give a file ending in .svg or .png")
    if not path.parent.is_dir():
        raise PrivacyError(f"--plot {name}: there is no folder {path.parent}")
    return path


def _result(question: Question) -> dict[str, Any]:
    settings, rounds = question.settings, question.rounds
    course: list[dict[str, Any]] = []
    if rounds:
        course = [
            {"round": n, "epsilon": epsilon}
            for n, epsilon in epsilon_curve(
                lambda n: question.make_event(None, n),
                rounds,
                settings.delta,
                accountant=settings.accountant,
                relation=question.relation,
            )
        ]
    targets = TARGETS if question.target is None else (question.target,)
    noise = []
    for target in targets if question.scalable and rounds else ():
        try:
            multiplier = calibrate(
                target,
                settings.delta,
                lambda z: question.make_event(z, rounds),
                accountant=settings.accountant,
                relation=question.relation,
                tolerance=1e-4 if question.target is not None else 1e-3,
            )
        except PrivacyError:
            if question.target is not None:
                raise
            multiplier = None
        noise.append({"epsilon": target, "noise_multiplier": multiplier})
    return {
        **question.told,
        "epsilon_by_round": course,
        "noise_for_epsilon": noise,
    }


def _of_numbers(options: argparse.Namespace) -> Question:
    if options.overrides or options.population is not None:
        raise PrivacyError(
            "--set and --population go with --config: name one, or leave them out"
        )
    if (options.noise_multiplier is None) == (options.target_epsilon is None):
        raise PrivacyError(
            "give a run folder, --config, or exactly one of --noise-multiplier and "
            "--target-epsilon"
        )
    import dp_accounting as dp

    rate = 1.0 if options.sampling_rate is None else options.sampling_rate
    if not 0 < rate <= 1:
        raise PrivacyError(f"--sampling-rate {rate}: must lie in (0, 1]")
    rounds = options.rounds or 1
    settings = Settings(
        1e-5 if options.delta is None else options.delta, options.accountant or "pld"
    )
    relation: Relation = "replace" if options.relation == "replace" else "add_or_remove"

    def make_event(z: float, n: int) -> Any:
        one = dp.GaussianDpEvent(z)
        if rate < 1:
            one = dp.PoissonSampledDpEvent(rate, one)
        return dp.SelfComposedDpEvent(one, n)

    own = options.noise_multiplier
    if own is None:
        own = calibrate(
            options.target_epsilon,
            settings.delta,
            lambda z: make_event(z, rounds),
            accountant=settings.accountant,
            relation=relation,
        )
    elif not 0 < own < float("inf"):
        raise PrivacyError(f"--noise-multiplier {own}: must be finite and above 0")
    sampler = f"Poisson at rate {rate:g}, without a cap"
    if rate == 1:
        sampler = "everybody in every round: no amplification by sampling"
    noise = "Gaussian; whether it is release grade depends on how it is drawn"
    unit: Literal["client", "example"] = "client"
    against = "whoever sees the noised sums"
    if options.unit == "example":
        unit, against = "example", "whoever sees the messages of its client"
        sampler = f"in each of {rounds:,} local steps: {sampler}"
    given = Guarantee(unit, relation, sampler, noise, against, None)
    told = {
        "unit": given.unit,
        "relation": describe_relation(given),
        "sampler": given.sampler,
        "rounds": rounds,
        "epsilon": epsilon_of(
            make_event(own, rounds),
            settings.delta,
            accountant=settings.accountant,
            relation=relation,
        ),
        "delta": settings.delta,
        "accountant": settings.accountant,
        "noise": given.noise,
        "noise_multiplier": own,
        "protected_against": given.adversary,
        "not_covered": list(NOT_COVERED),
        "warnings": [],
    }
    return Question(
        told,
        lambda z, n: make_event(own if z is None else z, n),
        rounds,
        settings,
        relation,
        options.target_epsilon,
        True,
    )


def _of_config(options: argparse.Namespace) -> Question:
    try:
        config = load(options.config, options.overrides, seed=options.seed)
        examples = asks_for_examples(config, options.unit)
    except ConfigError:
        # It may lack a noise that the command line gives.
        examples = options.unit == "example"
    changes = _changes(options, examples)
    config = load(options.config, [*options.overrides, *changes], seed=options.seed)
    if asks_for_examples(config, options.unit):
        return _of_examples(config, config.rounds, options.target_epsilon)
    population = options.population or _population(config)
    return _of_run(config, population, config.rounds, options.target_epsilon)


def _of_examples(config: Config, rounds: int, target: float | None) -> Question:
    found = of_examples(config, rounds)
    return Question(
        found.told,
        found.make_event,
        rounds,
        found.settings,
        "add_or_remove",
        target,
        True,
    )


def _changes(options: argparse.Namespace, examples: bool = False) -> list[str]:
    """Returns the numbers of the command line as changes of a configuration."""
    for name in ("sampling_rate", "relation"):
        if getattr(options, name) is not None:
            flag = name.replace("_", "-")
            raise PrivacyError(
                f"--{flag} goes with bare numbers; a configuration brings its own"
            )
    changes = []
    if options.rounds is not None:
        changes.append(f"rounds={options.rounds}")
    if options.delta is not None:
        changes.append(f"privacy.delta={options.delta!r}")
    if options.accountant is not None:
        changes.append(f"privacy.accountant={json.dumps(options.accountant)}")
    if options.noise_multiplier is not None:
        where = "local.example_privacy" if examples else "mechanism"
        changes.append(f"{where}.noise_multiplier={options.noise_multiplier!r}")
    if options.target_epsilon is not None and not examples:
        changes += [
            "mechanism.noise_multiplier=none",
            f"privacy.target_epsilon={options.target_epsilon!r}",
        ]
    return changes


def _of_folder(options: argparse.Namespace) -> Question:
    if options.overrides or options.noise_multiplier is not None:
        raise PrivacyError(
            "a run folder is accounted as it ran: leave --set and "
            "--noise-multiplier out, or give --config"
        )
    folder = records.open_folder(options.folder)
    asked = argparse.Namespace(**{**vars(options), "rounds": None})
    asked.target_epsilon = None
    config = load(folder.config, _changes(asked))
    lines = records.read_jsonl(folder.metrics)
    done = lines[-1]["round"] if lines else 0
    if asks_for_examples(config, options.unit):
        return _of_examples(config, options.rounds or done, options.target_epsilon)
    population = options.population
    if population is None and folder.detector.is_file():
        population = len(records.read_json(folder.detector)["client_names"])
    return _of_run(
        config,
        population or _population(config),
        options.rounds or done,
        options.target_epsilon,
    )


def _population(config: Config) -> int:
    """Returns the number of clients, which only the prepared data tells."""
    from fedjax_health import build

    return build.prepare(config, build.build_dataset(config)).store.num_clients


def _of_run(
    config: Config, population: int, rounds: int, target: float | None
) -> Question:
    if config.mechanism is None:
        raise ConfigError(
            "config: mechanism: none: nothing is private, so epsilon is infinite: add "
            "--set mechanism=central_gaussian --set mechanism.noise_multiplier=1.0, a "
            'clipping transform, and --set weighting="uniform"'
        )
    from fedjax_health import build
    from fedjax_health.build.privacy import build_mechanism
    from fedjax_health.core.message import Message

    sampling = build.build_sampling(config, population)
    # The size of a message and how it is summed do not change what it costs.
    message = Message(num_params=1, side_multiplier=_side(config, sampling.expected))
    mechanism = build_mechanism(config)
    assert mechanism is not None
    stated = config.privacy or Settings()
    told = describe(mechanism, message, sampling, rounds, stated)
    settings = Settings(
        stated.delta,
        usable_accountant(
            mechanism.event(message, sampling, max(rounds, 1)), stated.accountant
        ),
    )
    event: Any = mechanism.event
    scalable = hasattr(event, "make_event")

    def make_event(z: float | None, n: int) -> Any:
        if z is None:
            return event(message, sampling, n)
        return event.make_event(z, sampling, n)

    relation = event.relation(sampling) if scalable else "add_or_remove"
    shown = {"clients": population, **told}
    return Question(shown, make_event, rounds, settings, relation, target, scalable)


def _side(config: Config, expected: int) -> float | None:
    for entry in config.transforms:
        if isinstance(entry, AdaptiveClip):
            return 2 * (entry.bit_noise or 0.05 * expected)
    return None


def present(result: dict[str, Any], stream: TextIO):
    """Writes the answers to a reviewer's four questions, then the tables.

    Args:
      result: what ``answer`` returned.
      stream: where it goes.
    """
    stream.write(
        f"what     one {result['unit']} ({result['relation']})\n"
        f"against  {result['protected_against']}\n"
        f"how much epsilon {show.number(float(result['epsilon']))} at delta "
        f"{result['delta']:g}, by {result['accountant']}\n"
        f"how long {result['rounds']:,} rounds, all of them together\n"
    )
    for warning in result["warnings"]:
        stream.write(f"WARNING {warning}\n")
    names = (
        *("clients", "least_protected", "examples_of_least_protected"),
        *("sampler", "noise", "noise_multiplier"),
    )
    show.tree({name: result[name] for name in names if name in result}, stream)
    course = result["epsilon_by_round"]
    if course:
        # Eight lines or so; --json has them all.
        some = [*course[: -1 : max(len(course) // 8, 1)], course[-1]]
        show.rows(some, ("round", "epsilon"), stream)
    if result["noise_for_epsilon"]:
        rows = [
            {
                "epsilon": row["epsilon"],
                "noise multiplier": row["noise_multiplier"] or "none reaches it",
            }
            for row in result["noise_for_epsilon"]
        ]
        show.rows(rows, ("epsilon", "noise multiplier"), stream)
    show.tree({"not_covered": result["not_covered"]}, stream)
    if "plot" in result:
        show.tree({"plot": result["plot"]}, stream)
