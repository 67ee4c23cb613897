"""A variable whose unit changes between clients or half way: said, never repaired.

Glucose in mg/dL at one hospital and in mmol/L at another, or Fahrenheit until a monitor
was replaced: every value is plausible by itself and a model trained on them is wrong. A
change of unit moves the whole distribution by a factor, so that hardly any value of one
side lies among those of the other; a change of the patients does not.
"""

import warnings

import numpy as np

from fedjax_health.data.schema import Dataset, DataWarning

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
    sizes = np.bincount(dataset.client, minlength=dataset.num_clients)
    chosen = np.sort(np.argsort(-sizes, kind="stable")[:_MOST_CLIENTS])
    rows = np.flatnonzero(np.isin(dataset.client, chosen))
    rows = rows[:: len(rows) // _MOST_ROWS + 1]
    client = np.searchsorted(chosen, dataset.client[rows])
    block = client * _BLOCKS + _blocks(dataset, client, rows)
    names = [dataset.client_names[number] for number in chosen]
    for modality, values in dataset.features.items():
        hits = []
        for column, name in enumerate(dataset.feature_names[modality]):
            if name in dataset.categories.get(modality, {}):
                continue
            counts = _counts(values[rows, column], block, len(chosen))
            places = [
                f"at client {names[number]!r}"
                for number in np.flatnonzero(_between_clients(counts.sum(axis=1)))
            ]
            if in_time:
                places += [
                    f"half way in time at client {names[number]!r}"
                    for number in np.flatnonzero(_in_time(counts))
                ]
            hits += [(name, place) for place in places]
        if hits:
            name, place = hits[0]
            more = f" ({len(hits) - 1} more such places)" if len(hits) > 1 else ""
            warnings.warn(
                f"{source}: {name!r} of modality {modality!r} looks as if its unit "
                f"changed {place}{more}; give it in one unit, or drop it",
                DataWarning,
                stacklevel=3,
            )


def _blocks(dataset: Dataset, client: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns int64 [rows], which eighth of its client's time a row lies in."""
    order = np.lexsort((dataset.time[rows], client))
    sizes = np.bincount(client)
    starts = np.cumsum(sizes) - sizes
    rank = np.empty(len(rows), np.int64)
    rank[order] = np.arange(len(rows)) - starts[client[order]]
    return rank * _BLOCKS // sizes[client]


def _counts(values: np.ndarray, block: np.ndarray, num_clients: int) -> np.ndarray:
    """Returns int64 [clients, blocks, steps], observed values on the grid."""
    seen = ~np.isnan(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        exponent = np.where(values > 0, np.log10(np.abs(values)), -np.inf)
    step = np.clip((exponent - _LOWEST) * _PER_DECADE, 0, _STEPS - 1)
    code = block * _STEPS + np.where(seen, step, 0).astype(np.int64)
    size = num_clients * _BLOCKS * _STEPS
    return np.bincount(code[seen], minlength=size).reshape(num_clients, _BLOCKS, -1)


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
