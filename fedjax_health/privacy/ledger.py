"""The account of a run: epsilon so far, and the guarantee in words."""

from typing import Any

from fedjax_health.privacy.accounting import (
    Guarantee,
    Settings,
    delta_warning,
    epsilon_curve,
    epsilon_of,
    usable_accountant,
)

NOT_COVERED = (
    "the metrics of the simulation (losses, norms, clip fractions): they are unnoised",
    "what is chosen on the validation part: thresholds, the best round, settings",
    "what goes over the wire of split training: it is accounted by the example",
    "a run with a seed that is known: whoever has it can take the noise off again; a "
    "simulation's noise protects nobody",
)


def guarantee(mechanism: Any, message: Any, sampling: Any, rounds: int) -> Guarantee:
    """Returns the guarantee of a mechanism after that many rounds.

    Args:
      mechanism: see ``Mechanism``; one of the user's own says no more than its event.
      message: what the mechanism was bound to.
      sampling: how cohorts are drawn.
      rounds: 1 or more.
    """
    if hasattr(mechanism.event, "guarantee"):
        return mechanism.event.guarantee(message, sampling, rounds)
    return Guarantee(
        unit="client",
        relation="add_or_remove",
        sampler="as the mechanism's own event says",
        noise="a mechanism of one's own",
        adversary="as the mechanism's author claims",
        event=mechanism.event(message, sampling, rounds),
    )


def epsilon_after(
    mechanism: Any, message: Any, sampling: Any, rounds: int, settings: Any = None
) -> float:
    """Returns the epsilon of the first rounds of a run; cheap to ask again.

    Args:
      mechanism: see ``Mechanism``.
      message: what the mechanism was bound to.
      sampling: how cohorts are drawn.
      rounds: done so far, those before a resume included.
      settings: ``delta`` and ``accountant``; see ``Settings``. Fixed-size cohorts are
        accounted by RDP whatever it says.
    """
    if rounds < 1:
        return 0.0
    stated = Settings() if settings is None else settings
    given = guarantee(mechanism, message, sampling, rounds)
    return epsilon_of(
        given.event,
        stated.delta,
        accountant=usable_accountant(given.event, stated.accountant),
        relation=given.relation,
    )


def curve(
    mechanism: Any, message: Any, sampling: Any, rounds: int, settings: Any = None
) -> list[tuple[int, float]]:
    """Returns (round, epsilon so far) along a run; see ``epsilon_after``."""
    stated = Settings() if settings is None else settings
    given = guarantee(mechanism, message, sampling, rounds)
    return epsilon_curve(
        lambda n: mechanism.event(message, sampling, n),
        rounds,
        stated.delta,
        accountant=usable_accountant(given.event, stated.accountant),
        relation=given.relation,
    )


def describe(
    mechanism: Any, message: Any, sampling: Any, rounds: int, settings: Any = None
) -> dict[str, Any]:
    """Returns what is protected, against whom, how much and over how long.

    Args:
      mechanism: see ``Mechanism``.
      message: what the mechanism was bound to.
      sampling: how cohorts are drawn.
      rounds: done so far.
      settings: ``delta`` and ``accountant``; see ``Settings``.

    Returns:
      Names and values as JSON holds them.
    """
    stated = Settings() if settings is None else settings
    given = guarantee(mechanism, message, sampling, max(rounds, 1))
    multiplier = getattr(mechanism.event, "multiplier", None)
    told = delta_warning(stated.delta, sampling.population)
    return {
        "unit": given.unit,
        "relation": describe_relation(given),
        "sampler": given.sampler,
        "rounds": rounds,
        "epsilon": epsilon_after(mechanism, message, sampling, rounds, stated),
        "delta": stated.delta,
        "accountant": usable_accountant(given.event, stated.accountant),
        "noise": given.noise,
        "noise_multiplier": None if multiplier is None else multiplier(sampling),
        "protected_against": given.adversary,
        "not_covered": list(NOT_COVERED),
        "warnings": [] if told is None else [told],
    }


def describe_relation(given: Guarantee) -> str:
    """Returns the neighbouring relation in words."""
    if given.relation == "replace":
        return f"replace one: one {given.unit}'s data are exchanged for any others"
    return f"add or remove one: a {given.unit} is there or is not"
