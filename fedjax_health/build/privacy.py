"""The entry ``mechanism`` becomes a differential privacy mechanism."""

from fedjax_health.build.custom import optional_entry
from fedjax_health.config import Config
from fedjax_health.core.types import Mechanism


def build_mechanism(settings: Config) -> Mechanism | None:
    """Returns the mechanism of a configuration, or None."""
    return optional_entry(settings.mechanism, Mechanism, path="mechanism")
