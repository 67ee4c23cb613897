"""Device, hospital, server: the devices of a client train, and average in it.

HierFAVG (Liu, Zhang, Song and Letaief, 2020, "Client-Edge-Cloud Hierarchical Federated
Learning", arXiv:1905.06641) with the client as the edge: each of its devices takes a
few local steps on its own examples, the client averages them by their examples, and so
on until its part of the round is done; the server sees the client's message alone.
"""

import dataclasses

import jax
import jax.numpy as jnp

from fedjax_health.client import ClientData, Correction, Train, visited_examples
from fedjax_health.core import trees
from fedjax_health.core.types import Metrics, Params

# Odd, and no multiple of the one that tells epochs apart.
_OTHER_DEVICE = 0x85EBCA77


@dataclasses.dataclass(frozen=True)
class DeviceAveraging:
    """How the devices of one client are averaged before the client's message.

    Every device takes the client's local steps of the round, on batches of its own
    examples and with a local optimiser that starts afresh after each average. Passes
    over the data are passes over the largest device's; smaller ones go on with theirs.

    Attributes:
      every: local steps from one average to the next; traced. The last average of a
        round comes after the steps that are left.
    """

    every: int

    def __post_init__(self):
        if self.every < 1:
            raise ValueError(
                f"DeviceAveraging: every must be 1 or more, not {self.every}"
            )


def by_device(
    train: Train, sizes: jax.Array, every: jax.Array, batch_size: int
) -> Train:
    """Returns a ``train`` that trains the devices of a client and averages them.

    Args:
      train: local training, see ``build_train``.
      sizes: int32 ``[devices]``, examples of each device, which follow one another in
        the client's; 0 in empty places.
      every: int32 ``[]``, see ``DeviceAveraging``.
      batch_size: of a device's local step.
    """
    starts = jnp.cumsum(sizes) - sizes
    numbers = jnp.arange(1, len(sizes) + 1)
    count = jnp.max(jnp.where(sizes > 0, numbers, 0))
    shares = sizes / jnp.maximum(jnp.sum(sizes), 1)

    def train_devices(
        data: ClientData, params: Params, correction: Correction | None = None
    ) -> tuple[Params, Metrics]:
        def device(number: jax.Array, done: jax.Array, end: jax.Array, params: Params):
            own = device_data(data, number, starts[number], sizes[number])
            end = jnp.where(sizes[number] > 0, end, done)
            return train(
                own._replace(first_step=done, num_steps=end), params, correction
            )

        zero = jnp.int32(0)
        _, shapes = jax.eval_shape(device, zero, zero, zero, params)
        nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def average(carry):
            done, params, sums, seen = carry
            end = jnp.minimum(done + every, data.num_steps)

            def add(number: jax.Array, carry):
                mean, sums, seen = carry
                trained, metrics = device(number, done, end, params)
                size = sizes[number]
                visits = visited_examples(size, end, batch_size) - visited_examples(
                    size, done, batch_size
                )
                mean = jax.tree.map(
                    lambda m, p: m + shares[number].astype(p.dtype) * p, mean, trained
                )
                return (
                    mean,
                    trees.add(sums, trees.scale(metrics, visits)),
                    seen + visits,
                )

            start = (trees.zeros_like(params), sums, seen)
            params, sums, seen = jax.lax.fori_loop(0, count, add, start)
            return end, params, sums, seen

        _, params, sums, seen = jax.lax.while_loop(
            lambda carry: carry[0] < data.num_steps,
            average,
            (zero, params, nothing, jnp.float32(0)),
        )
        return params, trees.scale(sums, 1.0 / jnp.maximum(seen, 1.0))

    return train_devices


def device_data(
    data: ClientData, number: jax.Array, start: jax.Array, size: jax.Array
) -> ClientData:
    """Returns one device's part of a client's examples, with randomness of its own.

    Args:
      data: of the client.
      number: int32 ``[]``, of the device.
      start: int32 ``[]``, its first example among the client's.
      size: int32 ``[]``, its examples.
    """
    return data._replace(
        origin=start,
        num_examples=size,
        words=data.words + number.astype(jnp.uint32) * jnp.uint32(_OTHER_DEVICE),
        train_key=jax.random.fold_in(data.train_key, number),
        attack=data.attack._replace(key=jax.random.fold_in(data.attack.key, number)),
    )
