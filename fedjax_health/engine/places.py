"""Where the leaves of a model live: with the client, at the server, on the way."""

import dataclasses
import fnmatch
import functools
import re
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax

from fedjax_health.core import trees
from fedjax_health.core.types import Params

Predicate = Callable[[str], bool]

# Names of modalities in paths, of a fusion's and of GRU-D's leaves; they may hold
# anything, a slash too.
_MODALITY = re.compile(
    r"^modality_.*?/(?=(encoder|head|aligned|missing)(/|$))|(?<=/)(decay|onset)_.*$"
)


class Parts(NamedTuple):
    """Parts of a model of which each is trained on data that not every client has.

    Such a part is averaged over the clients that have its data, as much as each has of
    it; a rule that drops or ranks messages does so among them, part by part.

    Attributes:
      names: of the parts, in the order of ``Cohort.part_shares``.
      of: path -> number of the leaf's part, or None for a leaf that all clients train;
        the same function object for the same parts.
    """

    names: tuple[str, ...]
    of: Callable[[str], int | None]


@dataclasses.dataclass(frozen=True)
class SplitTraining:
    """How a model that is cut in two is trained; the cut itself is in the loss.

    "parallel" is SplitFed V1 and "sequential" its V2 (Thapa et al., 2022,
    arXiv:2004.12088): the clients of a round train side by side, each beside a copy of
    the server's half, and both halves are averaged; or the server has one half that
    learns from one client after the other, in a drawn order, and the clients' halves
    are averaged. With "relay" (SplitNN; Gupta and Raskar, 2018, arXiv:1810.06060) both
    halves pass from client to client.

    What passes on is no message: neither transforms nor rules nor noise touch it.

    Attributes:
      server: path -> whether the leaf is the server's; the same function object for
        the same cut.
      client: path -> whether the leaf belongs to the clients' half of what is cut.
      mode: see above.
      up_bytes: what crosses the cut towards the server for one example and visit.
      down_bytes: what comes back for it.
    """

    server: Predicate
    client: Predicate
    mode: Literal["parallel", "sequential", "relay"] = "parallel"
    up_bytes: int = 0
    down_bytes: int = 0

    def __post_init__(self):
        if self.mode not in ("parallel", "sequential", "relay"):
            raise ValueError(
                f"SplitTraining: mode={self.mode!r}: parallel, sequential or relay"
            )

    @property
    def relayed(self) -> Predicate | None:
        """Path -> whether the leaf passes from client to client; None where none."""
        match self.mode:
            case "parallel":
                return None
            case "sequential":
                return self.server
            case "relay":
                return either(self.server, self.client)


@functools.cache
def _either(first: Predicate, second: Predicate) -> Predicate:
    return lambda path: first(path) or second(path)


def either(first: Predicate | None, second: Predicate | None) -> Predicate | None:
    """Returns the predicate that holds where one of two does; None where none can."""
    if first is None or second is None:
        return first or second
    return _either(first, second)


def leaves_without(chosen: Predicate | None, params: Params) -> Params:
    """Returns the leaves that are not chosen; the others are None."""
    if chosen is None:
        return params
    return trees.split_by_path(params, chosen)[0]


def leaves_with(chosen: Predicate | None, params: Params) -> Params:
    """Returns the leaves that are chosen; the others are None."""
    if chosen is None:
        return jax.tree.map(lambda _: None, params)
    return trees.split_by_path(params, chosen)[1]


@functools.cache
def paths_matching(*patterns: str) -> Predicate:
    """Returns a predicate on paths: FedPer-style personal layers.

    Arivazhagan et al., 2019, "Federated Learning with Personalization Layers"
    (arXiv:1912.00818).

    Args:
      *patterns: shell-style patterns such as ``"head/*"``; one that matches is enough.
    """

    def chosen(path: str) -> bool:
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)

    return chosen


def normalization_leaves(path: str) -> bool:
    """Whether a leaf belongs to a normalisation layer: FedBN-style personal layers.

    Li et al., 2021, "FedBN" (arXiv:2102.07623), with LayerNorm or GroupNorm for
    BatchNorm: a layer counts as one when its name holds "norm". The name of a modality,
    which paths may hold, does not count.
    """
    return "norm" in _MODALITY.sub("", path).lower()
