"""What of a plan is compiled: equal structures share one program."""

import dataclasses
from collections.abc import Callable
from typing import Any

from fedjax_health.core.types import DataAttack, LossFn
from fedjax_health.engine.parallel import Mapping
from fedjax_health.engine.plan import OptimizerStructure


@dataclasses.dataclass(frozen=True)
class Structure:
    """All that is compiled into a step; equal structures share one program."""

    loss_fn: LossFn
    run: Callable[..., Any]
    reduce_algorithm: Callable[..., Any]
    optimizer: OptimizerStructure
    by_epochs: bool
    batch_size: int
    data_attack: DataAttack | None
    transform: Callable[..., Any]
    reduce_transform: Callable[..., Any]
    forge: Callable[..., Any] | None
    aggregate: Callable[..., Any]
    linear: bool
    depends_on: str
    mechanism: tuple[Callable[..., Any] | None, ...] | None
    bound: str | None
    server_optimizer: OptimizerStructure
    weighting: str
    personal: Callable[[str], bool] | None
    has_root: bool
    has_dropout: bool
    mapping: Mapping
