"""A configuration's split and partition; imports no jax, so that checks start fast."""

import numpy as np

from fedjax_health import config
from fedjax_health.config import Config
from fedjax_health.data import partition, splits
from fedjax_health.data.schema import (
    DataError,
    Dataset,
    segment_starts,
    separate_rows,
)
from fedjax_health.data.splits import Parts


def split_of(settings: Config, dataset: Dataset) -> np.ndarray:
    """Returns the part of every row, int8 ``[rows]`` of ``Part``.

    Raises:
      DataError: if a part is left without what it needs.
    """
    split = settings.split
    match split:
        case config.Chronological() | config.EpisodeBlocks():
            return _split_streams(settings, dataset, split)
        case config.Stratified():
            return splits.stratified(
                dataset,
                train=split.train,
                validation=split.validation,
                test=split.test,
                unit=split.unit,
                seed=_seed(settings, split.seed),
            )
        case config.ByClient():
            return splits.by_client(
                dataset,
                train=split.train,
                validation=split.validation,
                test=split.test,
                validation_clients=split.validation_clients,
                test_clients=split.test_clients,
                seed=_seed(settings, split.seed),
            )
        case config.LeaveOneOut():
            return splits.leave_one_out(
                dataset,
                client=split.client,
                validation=split.validation,
                unit=split.unit,
                seed=_seed(settings, split.seed),
            )


def _split_streams(
    settings: Config,
    dataset: Dataset,
    split: config.Chronological | config.EpisodeBlocks,
) -> np.ndarray:
    """Cuts streams by time, a window apart unless the embargo says otherwise.

    Raises:
      DataError: as the splits do; of the window, where no one asked for an embargo.
    """
    length = settings.window.length if settings.window.length > 1 else 0
    if split.embargo is not None:
        return _cut_streams(settings, dataset, split, split.embargo)
    try:
        return _cut_streams(settings, dataset, split, length)
    except DataError:
        # Where it fails without an embargo too, the window is not to blame.
        _cut_streams(settings, dataset, split, 0)
    longest = int(np.diff(np.append(segment_starts(dataset), dataset.num_rows)).max())
    raise DataError(
        f"window.length is {length:,} and the longest stream has {longest:,} rows: a "
        "window's rows are left out where parts meet, and too few are left; use a "
        "shorter window (--set window.length=N), or set split.embargo"
    )


def _cut_streams(
    settings: Config,
    dataset: Dataset,
    split: config.Chronological | config.EpisodeBlocks,
    embargo: int,
) -> np.ndarray:
    if isinstance(split, config.Chronological):
        return splits.chronological(
            dataset,
            train=split.train,
            validation=split.validation,
            test=split.test,
            embargo=embargo,
            scope=split.scope,
        )
    return splits.episode_blocks(
        dataset,
        block=split.block,
        fractions=split.fractions,
        embargo=embargo,
        seed=_seed(settings, split.seed),
    )


def _seed(settings: Config, seed: int | None) -> int:
    return settings.seed if seed is None else seed


def records_apart(settings: Config, dataset: Dataset) -> Dataset:
    """Returns the rows of a part, or of new data, as what the split takes them for.

    Where it deals single rows, they are records that do not depend on each other: each
    is an entity of its own, whatever column names entities, so that none has a stream
    before it and no alarm a delay.
    """
    match settings.split:
        case config.Stratified(unit="row") | config.LeaveOneOut(unit="row"):
            return separate_rows(dataset)
    return dataset


def deal_out(settings: Config, parts: Parts) -> Parts:
    """Returns the parts with the clients that the configuration asks for.

    Raises:
      DataError: if a client is left without training rows.
    """
    chosen, seed = settings.partition, settings.seed
    parts = Parts(*(records_apart(settings, part) for part in parts))
    match chosen:
        case config.Natural():
            held_out = isinstance(settings.split, config.ByClient | config.LeaveOneOut)
            return partition.natural(parts, held_out=held_out)
        case config.Contiguous():
            return partition.contiguous(parts, num_clients=chosen.num_clients)
        case config.Iid():
            return partition.iid(
                parts, num_clients=chosen.num_clients, seed=seed, unit=chosen.unit
            )
        case config.DirichletLabels():
            return partition.dirichlet_labels(
                parts,
                num_clients=chosen.num_clients,
                alpha=chosen.alpha,
                seed=seed,
                unit=chosen.unit,
                by=chosen.by,
            )
        case config.QuantitySkew():
            return partition.quantity_skew(
                parts,
                num_clients=chosen.num_clients,
                exponent=chosen.exponent,
                seed=seed,
                unit=chosen.unit,
            )
