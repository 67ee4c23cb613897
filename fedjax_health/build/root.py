"""The server's own data: held out of one site, and warned of where it cannot help."""

import difflib
import warnings

import numpy as np

from fedjax_health.config import Config, ConfigError
from fedjax_health.core.types import ClientBatches
from fedjax_health.data.sampling import NO_LIMIT
from fedjax_health.data.schema import DataError, Dataset, DataWarning
from fedjax_health.data.splits import HeldOut, hold_out
from fedjax_health.data.store import ClientStore, to_examples


def take_root(settings: Config, train: Dataset, population: int) -> HeldOut | None:
    """Takes the server's rows out of the training part, where it is to have any.

    Args:
      settings: the configuration.
      train: the training part, dealt out to clients, before preprocessing.
      population: clients that train; they come first in ``client_names``.

    Raises:
      ConfigError: for a client that is not there, or a share that leaves the server or
        the client without what it needs.
    """
    root = settings.root
    if root is None:
        return None
    client = _number(root.client, train.client_names[:population])
    window = settings.window.length if settings.window.length > 1 else None
    try:
        cut = hold_out(
            train, client, share=root.share, window=window, seed=settings.seed
        )
    except DataError as error:
        way = "lower" if "comes to all" in str(error) else "raise"
        raise ConfigError(f"config: root.share: {error}: {way} it") from error
    if cut.kept.label.min() == cut.kept.label.max():
        raise ConfigError(
            f"config: root.share: {root.share:g}: leaves the clients rows of label "
            f"{cut.kept.label[0]:g} alone to train on: lower it, or name another client"
        )
    if cut.held.label.min() == cut.held.label.max():
        warnings.warn(
            f"root: all {cut.held.num_rows:,} rows that the server takes from "
            f"{root.client!r} have label {cut.held.label[0]:g}: its update says "
            "nothing of the other class; raise root.share, or name another client",
            DataWarning,
            stacklevel=2,
        )
    return cut


def check_root(settings: Config, names: tuple[str, ...], malicious: np.ndarray) -> None:
    """Refuses root data of a site that is malicious by its id; warns of a drawn one.

    The rows are taken before anything is poisoned, and so are clean in either case; but
    a server that trusts an attacker by name is no experiment about trust. Who attacks
    by a share is drawn without regard to the root data, so that defences with and
    without it meet the same attackers.

    Args:
      settings: the configuration.
      names: of the clients that train.
      malicious: bool ``[population]``.

    Raises:
      ConfigError: if ``malicious`` names the site.
    """
    if settings.root is None:
        return
    client = names.index(settings.root.client)
    if not malicious[client]:
        return
    if isinstance(settings.malicious, tuple):
        raise ConfigError(
            f"config: root.client: {names[client]!r} is client {client}, which "
            "malicious names: the server would trust an attacker; name another site"
        )
    warnings.warn(
        f"root: {names[client]!r} gives the server its data and was drawn as "
        "malicious: the rows are clean, for they are taken before the attack; name "
        "another site where that is not what you mean",
        DataWarning,
        stacklevel=2,
    )


def root_batches(store: ClientStore) -> ClientBatches:
    """Returns the server's examples as the batches of one client."""
    return ClientBatches(
        num_examples=np.array(store.num_examples, np.int32),
        num_steps=np.array(NO_LIMIT),
        index=np.array(0, np.int32),
        arrays=to_examples(store),
    )


def _number(name: str, names: tuple[str, ...]) -> int:
    if name in names:
        return names.index(name)
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {_listed(names)}"
    raise ConfigError(f"config: root.client: no client {name!r} trains; {hint}")


def _listed(names: tuple[str, ...]) -> str:
    shown, more = ", ".join(names[:12]), len(names) - 12
    return shown + (f" and {more} more" if more > 0 else "")
