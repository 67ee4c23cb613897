"""A configuration's split and partition; imports no jax, so that checks start fast."""

import numpy as np

from fedjax_health import config
from fedjax_health.config import Config
from fedjax_health.data import partition, splits
from fedjax_health.data.schema import Dataset, separate_rows
from fedjax_health.data.splits import Parts


def split_of(settings: Config, dataset: Dataset) -> np.ndarray:
    """Returns the part of every row, int8 ``[rows]`` of ``Part``.

    Raises:
      DataError: if a part is left without what it needs.
    """
    split = settings.split
    match split:
        case config.Chronological():
            return splits.chronological(
                dataset,
                train=split.train,
                validation=split.validation,
                test=split.test,
                embargo=_embargo(settings, split.embargo),
                scope=split.scope,
            )
        case config.EpisodeBlocks():
            return splits.episode_blocks(
                dataset,
                block=split.block,
                fractions=split.fractions,
                embargo=_embargo(settings, split.embargo),
                seed=_seed(settings, split.seed),
            )
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


def _embargo(settings: Config, embargo: int | None) -> int:
    if embargo is not None:
        return embargo
    return settings.window.length if settings.window.length > 1 else 0


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
