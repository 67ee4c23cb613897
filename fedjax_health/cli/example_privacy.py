"""What DP-SGD inside the clients protects: the question of one example."""

from typing import Any, NamedTuple

from fedjax_health.config import Config, ConfigError
from fedjax_health.privacy.accounting import Settings, epsilon_of, usable_accountant
from fedjax_health.privacy.events import example_level_event


class Examples(NamedTuple):
    """The guarantee of one example of the client that is protected least.

    Attributes:
      told: in words and numbers, as ``training.account.example_privacy`` has them.
      make_event: (noise multiplier or None for the run's own, rounds) -> event.
      settings: delta and accountant.
    """

    told: dict[str, Any]
    make_event: Any
    settings: Settings


def asks_for_examples(config: Config, unit: str | None) -> bool:
    """Returns whether the question is of examples and not of clients.

    Args:
      config: the configuration.
      unit: what was asked for; None for what the configuration protects, the client
        where it protects both.

    Raises:
      ConfigError: for examples that nothing protects.
    """
    private = config.local.example_privacy is not None
    if unit == "example" and not private:
        raise ConfigError(
            "config: local.example_privacy: none: no example is protected: add "
            "--set local.example_privacy.noise_multiplier=1.0"
        )
    return unit == "example" or (unit is None and private and config.mechanism is None)


def of_examples(config: Config, rounds: int) -> Examples:
    """Accounts for DP-SGD; the data is prepared to count each client's examples.

    Args:
      config: with ``local.example_privacy``.
      rounds: to account for, as if the client took part in all of them.
    """
    from fedjax_health import build
    from fedjax_health.training.account import example_privacy

    store = build.prepare(config, build.build_dataset(config)).store
    told = example_privacy(config, store, max(rounds, 1))
    assert told is not None
    local, stated = config.local, config.privacy or Settings()
    size, own = told["examples_of_least_protected"], told["noise_multiplier"]
    steps = local.steps or -(-size // local.batch_size) * (local.epochs or 0)

    def make_event(z: float | None, n: int) -> Any:
        noise = own if z is None else z
        return example_level_event(noise, local.batch_size, size, steps, n)

    accountant = usable_accountant(make_event(None, 1), stated.accountant)
    settings = Settings(stated.delta, accountant)
    epsilon = epsilon_of(make_event(None, rounds), stated.delta, accountant=accountant)
    shown = {"clients": store.num_clients, **told, "rounds": rounds, "epsilon": epsilon}
    return Examples(shown, make_event, settings)
