"""A variable whose unit changes between clients or half way: said, never repaired.

Glucose in mg/dL at one hospital and in mmol/L at another, or Fahrenheit until a monitor
was replaced: every value is plausible by itself and a model trained on them is wrong. A
change of unit moves the whole distribution by a factor, so that hardly any value of one
side lies among those of the other; a change of the patients does not.
"""

import warnings
from collections.abc import Sequence

import numpy as np

from fedjax_health.data.schema import Dataset, DataWarning, examples_of

# Kilograms to pounds is 2.2, inches to centimetres 2.5, Celsius to Fahrenheit about 2.7
# at body temperature; all usual units of laboratories are further apart.
SMALLEST_FACTOR = 1.8
_LEAST_VALUES = 20
_BLOCKS = 8
_MOST_CLIENTS = 256
_MOST_ROWS = 500_000

# Values are counted on a logarithmic grid from 1e-6 to 1e9, 6 % a step; in step 0 lie
# all below, those that are not positive included.
_STEPS = 601
_LOWEST, _PER_DECADE = -6.0, 40


def warn_of_unit_changes(
    dataset: Dataset, *, source: str, in_time: bool = True
) -> None:
    """Warns of columns that look as if their unit changed, at most once a modality.

    Two sets of at least 20 values of a column are taken to be in different units if
    their medians differ by a factor of 1.8 or more and nine tenths of the one lie
    above nine tenths of the other. Compared are each client with the client of the
    middle median, and inside each client the time before and after every eighth.

    Args:
      dataset: as a loader returns it; the largest 256 clients are compared, and of
        more than half a million rows a part.
      source: what the warning calls it.
      in_time: whether ``time`` orders the rows of different entities of a client.
    """
    # What holds for a stay is repeated in its rows but was observed once.
    whole = dataset.target == "entity"
    once = [n for n in dataset.features if whole and n not in dataset.carried]
    parts = [(dataset, [n for n in dataset.features if n not in once])]
    if once:
        parts.append((examples_of(dataset), once))
    for part, modalities in parts:
        chosen, rows = _largest(part.client, part.num_clients)
        block = _blocks(np.searchsorted(chosen, part.client[rows]), part.time[rows])
        names = [part.client_names[int(number)] for number in chosen]
        for modality in modalities:
            values = part.features[modality]
            kinds = part.categories.get(modality, {})
            hits = [
                (name, place)
                for column, name in enumerate(part.feature_names[modality])
                if name not in kinds
                for place in _places(values[rows, column], block, names, in_time)
            ]
            _say(hits, modality, source)


def warn_of_unit_changes_in_events(
    variable: np.ndarray,
    value: np.ndarray,
    client: np.ndarray,
    time: np.ndarray,
    *,
    names: Sequence[str],
    client_names: Sequence[str],
    modality: str,
    source: str,
) -> None:
    """Warns of variables that look as if their unit changed; see above.

    Args:
      variable: int ``[events]``, an index into ``names``.
      value: float ``[events]``.
      client: int ``[events]``, an index into ``client_names``.
      time: float ``[events]`` that orders the events of a client.
      names: of the variables.
      client_names: of the clients.
      modality: what the variables belong to.
      source: what the warning calls them.
    """
    hits = []
    for number, name in enumerate(names):
        own = np.flatnonzero(variable == number)
        chosen, rows = _largest(client[own], len(client_names))
        rows = own[rows]
        block = _blocks(np.searchsorted(chosen, client[rows]), time[rows])
        clients = [str(client_names[int(number)]) for number in chosen]
        hits += [(name, p) for p in _places(value[rows], block, clients, True)]
    _say(hits, modality, source)


def _largest(client: np.ndarray, num_clients: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (the largest clients, sorted; rows of theirs, not too many)."""
    sizes = np.bincount(client, minlength=num_clients)
    chosen = np.sort(np.argsort(-sizes, kind="stable")[:_MOST_CLIENTS])
    rows = np.flatnonzero(np.isin(client, chosen))
    return chosen, rows[:: len(rows) // _MOST_ROWS + 1]


def _blocks(client: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Returns int64 [rows], the client and which eighth of its rows in time it is."""
    order = np.lexsort((time, client))
    sizes = np.bincount(client)
    starts = np.cumsum(sizes) - sizes
    rank = np.empty(len(client), np.int64)
    rank[order] = np.arange(len(client)) - starts[client[order]]
    return client * _BLOCKS + rank * _BLOCKS // sizes[client]


def _places(
    values: np.ndarray, block: np.ndarray, names: Sequence[str], in_time: bool
) -> list[str]:
    counts = _counts(values, block, len(names))
    places = [
        f"at client {names[number]!r}"
        for number in np.flatnonzero(_between_clients(counts.sum(axis=1))).tolist()
    ]
    if in_time:
        places += [
            f"half way in time at client {names[number]!r}"
            for number in np.flatnonzero(_in_time(counts)).tolist()
        ]
    return places


def _say(hits: list[tuple[str, str]], modality: str, source: str) -> None:
    if hits:
        name, place = hits[0]
        more = f" ({len(hits) - 1} more such places)" if len(hits) > 1 else ""
        warnings.warn(
            f"{source}: {name!r} of modality {modality!r} looks as if its unit changed "
            f"{place}{more}; give it in one unit, or drop it",
            DataWarning,
            stacklevel=4,
        )


def _counts(values: np.ndarray, block: np.ndarray, num_clients: int) -> np.ndarray:
    """Returns int64 [clients, blocks, steps], observed values on the grid."""
    seen = np.flatnonzero(~np.isnan(values))
    with np.errstate(divide="ignore", invalid="ignore"):
        exponent = np.log10(values[seen])
    # The logarithm of what is not positive is NaN or minus infinity: step 0.
    exponent = np.nan_to_num(exponent, nan=_LOWEST, neginf=_LOWEST)
    step = np.clip((exponent - _LOWEST) * _PER_DECADE, 0, _STEPS - 1).astype(np.int64)
    size = num_clients * _BLOCKS * _STEPS
    code = block[seen] * _STEPS + step
    return np.bincount(code, minlength=size).reshape(num_clients, _BLOCKS, -1)


def _quantiles(counts: np.ndarray) -> np.ndarray:
    """Returns int64 [..., 3], the steps of tenth, median and nine tenths."""
    reached = np.cumsum(counts, axis=-1)
    wanted = np.array([0.1, 0.5, 0.9]) * reached[..., -1:]
    return np.sum(reached[..., None, :] < np.maximum(wanted, 1)[..., None], axis=-1)


def _apart(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether two sets of quantiles [..., 3] are those of different units."""
    factor = np.log10(SMALLEST_FACTOR) * _PER_DECADE
    up = (first[..., 2] < second[..., 0]) & (second[..., 1] - first[..., 1] >= factor)
    down = (second[..., 2] < first[..., 0]) & (first[..., 1] - second[..., 1] >= factor)
    return (up | down) & (first[..., 1] > 0) & (second[..., 1] > 0)


def _between_clients(counts: np.ndarray) -> np.ndarray:
    """Returns bool [clients]: those apart from the client of the middle median."""
    enough = counts.sum(axis=1) >= _LEAST_VALUES
    if not enough.any():
        return enough
    quantiles = _quantiles(counts)
    known = np.flatnonzero(enough)
    order = known[np.argsort(quantiles[known, 1], kind="stable")]
    return _apart(quantiles[order[(len(order) - 1) // 2]], quantiles) & enough


def _in_time(counts: np.ndarray) -> np.ndarray:
    """Returns bool [clients]: those whose values move from one range to another."""
    moved = np.zeros(len(counts), bool)
    total = np.cumsum(counts, axis=1)
    for cut in range(1, _BLOCKS):
        before = total[:, cut - 1]
        # The change may lie inside a block: what follows may begin one block later.
        for skipped in (cut - 1, cut):
            after = total[:, -1] - total[:, skipped]
            enough = np.minimum(before.sum(axis=1), after.sum(axis=1)) >= _LEAST_VALUES
            moved |= _apart(_quantiles(before), _quantiles(after)) & enough
    return moved
