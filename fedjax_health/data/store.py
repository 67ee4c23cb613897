"""The packed ragged store: the examples of all clients, one after the other.

Flat arrays and offsets; no padding to the largest client and no Python object per
client. In memory the whole store is resident on the devices and batches are gathered
by index inside the jitted round; memory-mapped, a cohort's examples are gathered on
the host, and a population of a million clients costs its offsets and the cohort.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_health.core.types import Examples, InputLayout, ModalityColumns
from fedjax_health.data.schema import (
    DataError,
    Dataset,
    device_starts,
    segment_starts,
)

_FORMAT = "fedjax_health store 1"
_HEADER = "store.json"


class ClientStore(NamedTuple):
    """Examples of many clients.

    Attributes:
      rows: name -> ``[rows, ...]``, in memory or memory-mapped.
      starts: int32 ``[examples]``, the first row of each windowed example, or None
        where example i is row i.
      window: rows that make one example; None where an example is one row.
      offsets: int64 ``[clients + 1]``; client c has examples ``offsets[c]`` up to
        ``offsets[c + 1]``.
      client_names: names of the clients, or None where they have none.
      mapped: whether ``rows`` stay on disk.
      devices: int64 ``[devices + 1]``, where the examples of each device begin: those
        of one device follow one another, and a client's devices too. None where
        examples belong to no device.
    """

    rows: dict[str, np.ndarray]
    starts: np.ndarray | None
    window: int | None
    offsets: np.ndarray
    client_names: tuple[str, ...] | None = None
    mapped: bool = False
    devices: np.ndarray | None = None

    @property
    def num_clients(self) -> int:
        """Clients, those without examples included."""
        return len(self.offsets) - 1

    @property
    def num_examples(self) -> int:
        """Examples of all clients."""
        return int(self.offsets[-1])


def from_arrays(
    rows: Mapping[str, np.ndarray],
    offsets: np.ndarray,
    *,
    client_names: tuple[str, ...] | None = None,
    devices: np.ndarray | None = None,
) -> ClientStore:
    """Returns a store whose examples are the rows of the given arrays.

    Args:
      rows: name -> ``[rows, ...]``, the rows of each client standing together.
      offsets: int ``[clients + 1]``, where each client's rows begin; the last is the
        number of rows.
      client_names: names of the clients.
      devices: int ``[devices + 1]``, where each device's rows begin, as ``offsets``
        has it for clients; or None.

    Raises:
      DataError: if lengths and offsets do not fit.
    """
    offsets = np.asarray(offsets, np.int64)
    if offsets.ndim != 1 or len(offsets) < 2 or offsets[0] != 0:
        raise DataError("offsets must be a vector that begins with 0: [clients + 1]")
    if np.any(np.diff(offsets) < 0):
        client = int(np.flatnonzero(np.diff(offsets) < 0)[0])
        raise DataError(f"offsets fall at client {client}: they must not decrease")
    if not rows:
        raise DataError("a store needs at least one array")
    for name, values in rows.items():
        if len(values) != offsets[-1]:
            raise DataError(
                f"array {name!r} has {len(values):,} rows, but the offsets end at "
                f"{offsets[-1]:,}"
            )
    if client_names is not None and len(client_names) != len(offsets) - 1:
        raise DataError(
            f"{len(client_names)} client names for {len(offsets) - 1} clients"
        )
    if devices is not None:
        devices = np.asarray(devices, np.int64)
        if np.any(np.diff(devices) < 0) or not np.all(np.isin(offsets, devices)):
            raise DataError(
                "devices must not decrease, and hold every client's first row and the "
                "number of rows: no device has rows of two clients"
            )
    kept = {name: np.asarray(values) for name, values in rows.items()}
    return ClientStore(kept, None, None, offsets, client_names, devices=devices)


def from_dataset(
    dataset: Dataset,
    *,
    window: int | None = None,
    stride: int = 1,
    pad: bool = False,
    extra: Mapping[str, np.ndarray] | None = None,
) -> ClientStore:
    """Packs a prepared dataset into rows ``x``, ``label`` and, windowed, ``valid``.

    ``x`` holds what ``input_layout`` says: the modalities' features side by side, a
    missing value as 0 (the mean, after scaling) or, in a carried modality, as the last
    observed one; a modality with missing values brings one more column per feature
    that says 1 where the value was observed.

    Where the label belongs to the entity, each entity is one example: its last
    ``window`` rows, filled up in front where it has fewer.

    Args:
      dataset: scaled features; NaN marks a missing value.
      window: time steps of one example, or None for one row.
      stride: rows between the starts of two windows of one stream.
      pad: whether every row ends a window, those at the start of a stream being
        filled up with rows of ``valid`` 0 in front (for scoring). Without it a stream
        shorter than the window is filled up to one window, so that no row is lost.
      extra: further arrays ``[rows, ...]`` to pack, 0 where a window is filled up.

    Returns:
      A store; windows never cross two streams. Its devices are the entities of each
      client, where labels belong to rows.

    Raises:
      DataError: for sizes out of range.
    """
    if window is not None and window < 1:
        raise DataError(f"window must be 1 step or more, not {window}")
    if stride < 1:
        raise DataError(f"stride must be 1 row or more, not {stride}")
    if window is None and dataset.target == "entity":
        window = 1
    x = assemble(dataset)
    label = dataset.label.astype(np.float32)
    clients = np.arange(dataset.num_clients + 1)
    if window is None:
        offsets = np.searchsorted(dataset.client, clients).astype(np.int64)
        rows = {"x": x, "label": label, **(extra or {})}
        return ClientStore(
            rows,
            None,
            None,
            offsets,
            dataset.client_names,
            devices=np.append(device_starts(dataset), dataset.num_rows),
        )
    begins = segment_starts(dataset)
    lengths = np.diff(np.append(begins, dataset.num_rows))
    every_row = pad and dataset.target == "row"
    fill = (
        np.full(len(begins), window - 1)
        if every_row
        else np.maximum(window - lengths, 0)
    )
    packed_begins = np.cumsum(fill + lengths) - (fill + lengths)
    position = np.repeat(packed_begins + fill - begins, lengths)
    position = position + np.arange(dataset.num_rows)
    total = int(np.sum(fill + lengths))
    if total >= 2**31:
        raise DataError(
            f"{total:,} rows are more than an int32 index reaches: split the data"
        )
    rows = {}
    for name, values in {
        "x": x,
        "label": label,
        "valid": np.ones(dataset.num_rows, np.float32),
        **(extra or {}),
    }.items():
        packed = np.zeros((total, *values.shape[1:]), values.dtype)
        packed[position] = values
        rows[name] = packed
    per_segment = (
        (fill + lengths - window) // stride + 1
        if dataset.target == "row"
        else np.ones(len(begins), np.int64)
    )
    segment = np.repeat(np.arange(len(begins)), per_segment)
    within = np.arange(len(segment)) - np.repeat(
        np.cumsum(per_segment) - per_segment, per_segment
    )
    # Windows are laid from the end of a stream, so that its last row is never lost.
    last = packed_begins + fill + lengths - window
    step = per_segment[segment] - 1 - within
    starts = (last[segment] - stride * step).astype(np.int32)
    client = dataset.client[begins][segment] if len(begins) else np.zeros(0, np.int32)
    offsets = np.searchsorted(client, clients).astype(np.int64)
    devices = None
    if dataset.target == "row":
        examples = np.append(0, np.cumsum(per_segment))
        first = np.searchsorted(begins, device_starts(dataset))
        devices = np.append(examples[first], examples[-1])
    return ClientStore(
        rows, starts, window, offsets, dataset.client_names, devices=devices
    )


def assemble(dataset: Dataset) -> np.ndarray:
    """Returns the model's input ``[rows, features]``, float32, without NaN.

    The columns depend on the modalities' declared missingness alone: see
    ``input_layout``.

    Raises:
      DataError: for a missing value in a modality that was declared complete.
    """
    layout = input_layout(dataset)
    x = np.empty((dataset.num_rows, input_width(layout)), np.float32)
    for columns in layout:
        name = columns.name
        part = x[:, slice(*columns.values)]
        part[:] = dataset.features[name]
        missing = np.isnan(part)
        if columns.observed is not None:
            x[:, slice(*columns.observed)] = ~missing
        elif missing.any():
            row, feature = np.argwhere(missing)[0]
            raise DataError(
                f"modality {name!r} was declared complete, but "
                f"{dataset.feature_names[name][feature]} is missing in row {row}"
            )
        if columns.elapsed is not None:
            x[:, slice(*columns.elapsed)] = _carry(part, missing, dataset)
        part[np.isnan(part)] = 0
    return x


def _carry(values: np.ndarray, missing: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Puts last observed values into gaps, in place; returns log(1 + steps) since."""
    starts = segment_starts(dataset)
    lengths = np.diff(np.append(starts, dataset.num_rows))
    start = np.repeat(starts, lengths)[:, None]
    row = np.arange(dataset.num_rows)[:, None]
    latest = np.maximum.accumulate(np.where(missing, -1, row), axis=0)
    seen = latest >= start
    source = np.where(seen, latest, start)
    values[:] = np.where(seen, np.take_along_axis(values, source, axis=0), np.nan)
    return np.log1p(row - source)


def input_layout(dataset: Dataset) -> InputLayout:
    """Returns where each modality lies in what ``assemble`` makes."""
    layout, column = [], 0
    for name in dataset.features:
        width = len(dataset.feature_names[name])
        spans: list[tuple[int, int] | None] = []
        for wanted in (True, name in dataset.masked, name in dataset.carried):
            spans.append((column, column + width) if wanted else None)
            column += width if wanted else 0
        assert spans[0] is not None
        layout.append(ModalityColumns(name, spans[0], spans[1], spans[2]))
    return tuple(layout)


def input_width(layout: InputLayout) -> int:
    """Returns how many columns ``assemble`` makes."""
    return max(
        span[1]
        for columns in layout
        for span in (columns.values, columns.observed, columns.elapsed)
        if span is not None
    )


def input_names(dataset: Dataset) -> tuple[str, ...]:
    """Returns the names of the columns that ``assemble`` makes."""
    names: list[str] = []
    for columns in input_layout(dataset):
        named = [f"{columns.name}.{n}" for n in dataset.feature_names[columns.name]]
        names += named
        if columns.observed is not None:
            names += [f"{name} observed" for name in named]
        if columns.elapsed is not None:
            names += [f"{name} elapsed" for name in named]
    return tuple(names)


def room_for(count: int) -> int:
    """Returns the least of 4, 5, 6 or 7 times a power of two that is not below a count.

    Arrays of that length let data of like size share compiled programs, and cost at
    most a quarter more.

    Args:
      count: 0 or more.
    """
    step = 1 << max(0, (count - 1).bit_length() - 3)
    return -(-count // step) * step


def to_examples(store: ClientStore) -> Examples:
    """Returns the whole store as device arrays, for gathering inside jit.

    They are filled up with zeros, which no index of an example reaches.

    Raises:
      DataError: if there are more examples than an int32 index reaches.
    """
    if store.num_examples >= 2**31:
        raise DataError(
            f"{store.num_examples:,} examples are more than an int32 index reaches: "
            "split the data, or train from a mapped store"
        )
    starts = None if store.starts is None else _with_room(store.starts)
    rows = {name: _with_room(values) for name, values in store.rows.items()}
    return jax.block_until_ready(Examples(rows, starts, store.window))


def _with_room(values: np.ndarray) -> jax.Array:
    held = np.zeros((room_for(len(values)), *values.shape[1:]), values.dtype)
    held[: len(values)] = values
    return jnp.asarray(held)


def write_store(store: ClientStore, folder: str | Path) -> None:
    """Writes a store as plain ``.npy`` files that ``open_store`` maps.

    Raises:
      DataError: if the folder exists already, or an array cannot be a plain file.
    """
    folder = Path(folder)
    if folder.exists():
        raise DataError(f"{folder} exists already: choose another folder")
    for name, values in store.rows.items():
        if not name or "/" in name or "\\" in name:
            raise DataError(f"array name {name!r} cannot be a file name: rename it")
        if values.dtype.hasobject:
            raise DataError(f"array {name!r} holds Python objects: make it numeric")
    folder.mkdir(parents=True)
    for name, values in store.rows.items():
        # Row by row on disk, so that gathering a client reads its own pages alone.
        values = np.ascontiguousarray(values)
        np.save(folder / f"rows-{name}.npy", values, allow_pickle=False)
    np.save(folder / "offsets.npy", store.offsets, allow_pickle=False)
    if store.starts is not None:
        np.save(folder / "starts.npy", store.starts, allow_pickle=False)
    if store.devices is not None:
        np.save(folder / "devices.npy", store.devices, allow_pickle=False)
    header = {
        "format": _FORMAT,
        "rows": sorted(store.rows),
        "window": store.window,
        "client_names": store.client_names,
        "devices": store.devices is not None,
    }
    # Last: a folder without its header was not finished.
    (folder / _HEADER).write_text(json.dumps(header), encoding="utf-8")


def open_store(folder: str | Path) -> ClientStore:
    """Opens a written store memory-mapped; offsets alone are read.

    Raises:
      DataError: if the folder is not a finished store or its files do not fit.
    """
    folder = Path(folder)
    try:
        header = json.loads((folder / _HEADER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder} holds no finished store ({error}): write it with write_store"
        ) from None
    found = header.get("format") if isinstance(header, dict) else None
    if found != _FORMAT:
        raise DataError(f"{folder}: unknown store format {found!r}, not {_FORMAT!r}")
    try:
        window, names = header["window"], header["client_names"]
        rows = {
            name: np.load(folder / f"rows-{name}.npy", mmap_mode="r")
            for name in header["rows"]
        }
        offsets = np.load(folder / "offsets.npy")
        starts = (
            None if window is None else np.load(folder / "starts.npy", mmap_mode="r")
        )
        devices = (
            np.load(folder / "devices.npy", mmap_mode="r")
            if header.get("devices")
            else None
        )
    except KeyError as error:
        raise DataError(
            f"{folder}: {_HEADER} has no {error}: write the store again"
        ) from None
    except (OSError, EOFError, TypeError, ValueError) as error:
        raise DataError(f"{folder}: {error}: write the store again") from None
    _check_fit(folder, rows, starts, window, offsets, names, devices)
    return ClientStore(
        rows,
        starts,
        window,
        offsets,
        tuple(names) if names is not None else None,
        mapped=True,
        devices=devices,
    )


def _check_fit(folder: Path, rows, starts, window, offsets, names, devices) -> None:
    """Refuses files that do not belong together, without reading the rows."""
    lengths = {len(values) for values in rows.values()}
    fits = len(lengths) == 1 and offsets.ndim == 1 and len(offsets) > 1
    if fits:
        num_rows = lengths.pop()
        examples = num_rows if starts is None else len(starts)
        fits = offsets[0] == 0 and offsets[-1] == examples
        fits = fits and bool(np.all(np.diff(offsets) >= 0))
        fits = fits and (names is None or len(names) == len(offsets) - 1)
        fits = fits and (devices is None or int(devices[-1]) == examples)
        # Starts rise, so the last window tells whether rows are missing.
        if fits and starts is not None and examples:
            fits = starts[0] >= 0 and int(starts[-1]) + window <= num_rows
    if not fits:
        raise DataError(f"{folder}: lengths of the arrays do not fit: write it again")
