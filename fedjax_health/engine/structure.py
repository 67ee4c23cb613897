"""What of a plan is compiled: equal structures share one program."""

import dataclasses
from collections.abc import Callable
from typing import Any

from fedjax_health.core.types import Codec, DataAttack, LossFn, Secure
from fedjax_health.engine.parallel import Mapping
from fedjax_health.engine.places import Parts, Predicate
from fedjax_health.engine.plan import OptimizerStructure


@dataclasses.dataclass(frozen=True)
class Structure:
    """All that is compiled into a step; equal structures share one program.

    Attributes of which the name does not say all:
      microbatch: examples whose private gradients are held at a time; None where
        gradients are not private.
      bound: name of the leaf that carries the bound of a message; or None.
      keeps_stack: whether the messages of a cohort are held side by side.
      codec: how messages become integers; None where floats are sent.
      codec_owner: the field of ``RoundState`` with the codec's state.
      secure: of an aggregator that sees sums of integers alone; or None.
      relayed: path -> whether the leaf passes from client to client; or None.
      unsent: path -> whether the leaf is in no message; or None.
      hosted: share of a message that crosses no wire.
      has_devices: whether the devices of a client train and are averaged in it.
      wire: bytes that cross a cut for one example and visit, up and down; or None.
    """

    loss_fn: LossFn
    run: Callable[..., Any]
    reduce_algorithm: Callable[..., Any]
    optimizer: OptimizerStructure
    by_epochs: bool
    batch_size: int
    microbatch: int | None
    data_attack: DataAttack | None
    transform: Callable[..., Any]
    reduce_transform: Callable[..., Any]
    restore: Callable[..., Any] | None
    measure: Callable[..., Any] | None
    forge: Callable[..., Any] | None
    aggregate: Callable[..., Any]
    linear: bool
    keeps_stack: bool
    depends_on: str
    mechanism: tuple[Callable[..., Any] | None, ...] | None
    bound: str | None
    codec: Codec | None
    codec_owner: str
    secure: Secure | None
    server_optimizer: OptimizerStructure
    weighting: str
    personal: Predicate | None
    relayed: Predicate | None
    unsent: Predicate | None
    parts: Parts | None
    hosted: float
    wire: tuple[int, int] | None
    has_root: bool
    has_dropout: bool
    has_devices: bool
    mapping: Mapping
