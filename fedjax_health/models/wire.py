"""The wire of split learning: what happens to values where a model is cut.

Activations cross in one direction, their cotangents in the other. Some steps protect
what is on the way, some make it shorter; a list of steps is applied in its order.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from fedjax_health.core.types import Key
from fedjax_health.models import marvell, wire_steps

# Keys of the steps of the way back are folded from here on.
_BACKWARD = 2**16


@dataclasses.dataclass(frozen=True)
class ClipExample:
    """Scales an example's message down to an L2 norm, over all its times and numbers.

    Attributes:
      max_norm: above 0.
    """

    max_norm: float

    def __post_init__(self):
        if not (math.isfinite(self.max_norm) and self.max_norm > 0):
            raise ValueError(
                f"ClipExample: max_norm must be finite and above 0, not {self.max_norm}"
            )


@dataclasses.dataclass(frozen=True)
class Noise:
    """Adds Gaussian noise, for a guarantee for each example (see ``privacy.wire``).

    Attributes:
      multiplier: standard deviation over the max_norm of the clip before it, 0 or more.
    """

    multiplier: float

    def __post_init__(self):
        if not (math.isfinite(self.multiplier) and self.multiplier >= 0):
            raise ValueError(
                f"Noise: multiplier must be finite and 0 or more, not {self.multiplier}"
            )


@dataclasses.dataclass(frozen=True)
class Quantise:
    """Rounds to a grid of ``2**bits - 1`` levels with one float32 scale an example.

    Attributes:
      bits: from 2 to 16.
    """

    bits: int

    def __post_init__(self):
        if isinstance(self.bits, bool) or self.bits not in range(2, 17):
            raise ValueError(
                f"Quantise: bits must be a whole number from 2 to 16, not {self.bits}"
            )


@dataclasses.dataclass(frozen=True)
class TopK:
    """Keeps an example's numbers of largest magnitude; the others become 0.

    ``round(keep * numbers)`` of them, one at least; of equal magnitudes the first.

    Attributes:
      keep: their share, in (0, 1].
    """

    keep: float

    def __post_init__(self):
        if not 0 < self.keep <= 1:
            raise ValueError(f"TopK: keep must lie in (0, 1], not {self.keep}")


@dataclasses.dataclass(frozen=True)
class DropActivations:
    """Sets numbers to 0 at random and scales the others up (inverted dropout).

    Attributes:
      rate: share that is dropped, in [0, 1).
    """

    rate: float

    def __post_init__(self):
        if not 0 <= self.rate < 1:
            raise ValueError(
                f"DropActivations: rate must lie in [0, 1), not {self.rate}"
            )


@dataclasses.dataclass(frozen=True)
class MaxNorm:
    """Hides labels: noise along each cotangent that evens out the norms of a batch.

    Li et al., 2022 (arXiv:2102.08504), section 4.1. For cotangents alone.
    """


@dataclasses.dataclass(frozen=True)
class Marvell:
    """Hides labels: the noise of least divergence between the classes' cotangents.

    Li et al., 2022, section 4.2; see ``marvell``. For cotangents alone.

    Attributes:
      power: expected squared norm of the noise over the squared distance of the
        classes' mean cotangents, above 0.
    """

    power: float

    def __post_init__(self):
        if not (math.isfinite(self.power) and self.power > 0):
            raise ValueError(
                f"Marvell: power must be finite and above 0, not {self.power}"
            )


Step = ClipExample | Noise | Quantise | TopK | DropActivations | MaxNorm | Marvell
_PROTECTIVE = (ClipExample, Noise, DropActivations, MaxNorm, Marvell)
_COMPRESSIVE = (Quantise, TopK)
_OF_LABELS = (MaxNorm, Marvell)


def protective(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Returns the steps that protect what is sent, in their order."""
    return tuple(step for step in steps if isinstance(step, _PROTECTIVE))


def compressive(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Returns the steps that save bytes, in their order."""
    return tuple(step for step in steps if isinstance(step, _COMPRESSIVE))


def check_steps(steps: Sequence[Step], *, cotangents: bool = False) -> None:
    """Refuses a list of steps that has no meaning or not the one that it seems to have.

    Noise is accounted as that of a Gaussian mechanism whose sensitivity is the clip, so
    nothing that lengthens a message or mixes examples may stand between the two.

    Args:
      steps: in their order.
      cotangents: whether they are for the way back.

    Raises:
      ValueError: for what is no step, a kind that comes twice, a step for labels on
        activations, or noise without a clip that bounds what it is added to.
    """
    kinds = [type(step) for step in steps]
    names = [kind.__name__ for kind in kinds]
    for kind, name in zip(kinds, names, strict=True):
        if kind not in (*_PROTECTIVE, *_COMPRESSIVE):
            raise ValueError(
                f"{name} is no step of a wire: give records of models.wire"
            )
        if kinds.count(kind) > 1:
            raise ValueError(f"{name} comes twice on one wire: give one")
        if kind in _OF_LABELS and not cotangents:
            raise ValueError(
                f"{name} hides labels in cotangents: activations have none; move it to "
                "the cotangents"
            )
    if Noise not in kinds:
        return
    at = kinds.index(Noise)
    if ClipExample not in kinds[:at]:
        raise ValueError("Noise is measured by a clip: put a ClipExample before it")
    clip = kinds.index(ClipExample)
    for name, kind in zip(names[clip + 1 : at], kinds[clip + 1 : at], strict=True):
        if kind is not TopK:
            raise ValueError(
                f"{name} between ClipExample and Noise may lengthen a message beyond "
                "the clip: put it before the clip or after the noise"
            )
    if MaxNorm in kinds[:at] or Marvell in kinds:
        raise ValueError(
            "Noise beside a step that makes an example's message depend on labels or "
            "on other examples has no guarantee: take Noise or Marvell, not both; "
            "MaxNorm may stand after Noise"
        )


def crossing(
    activations: Sequence[Step], cotangents: Sequence[Step]
) -> Callable[..., jax.Array]:
    """Returns what carries values over a cut.

    ``(values, *, key, examples_axis, labels=None, counts=None) -> values``. Activation
    steps are applied to the values; whoever differentiates pulls back through them, as
    the sender would: through the clip with its factor, past the noise and the rounding
    (straight through), and through the masks. Cotangent steps are applied to the
    cotangent of what arrived, before that.

    * values: float ``[..., width]``, examples along ``examples_axis``; the other axes
      together are one example's message.
    * key: typed threefry key. None for evaluation: neither noise nor dropout, values
      are rounded to the nearest, and cotangents pass as they are.
    * labels: ``values.shape[:-1]``, of each row of the last axis; Marvell needs them.
    * counts: ``[examples]`` or ``values.shape[:-1]``. Rows with 0 fill something up:
      nobody's message depends on them, and their cotangents are 0 after the steps (no
      noise is pulled back through them). What they hold on the way forward has no
      meaning.

    Without steps the values are the same object. Equal steps give the same function.
    With cotangent steps there is no forward-mode differentiation.

    Raises:
      ValueError: see ``check_steps``; when traced, for axes, labels or counts that do
        not fit.
    """
    check_steps(activations)
    check_steps(cotangents, cotangents=True)
    return _crossing(tuple(activations), tuple(cotangents))


@functools.cache
def _crossing(activations: tuple[Step, ...], cotangents: tuple[Step, ...]):
    def cross(
        values: jax.Array,
        *,
        key: Key | None,
        examples_axis: int,
        labels: jax.Array | None = None,
        counts: jax.Array | None = None,
    ) -> jax.Array:
        axis = _check_shapes(values, examples_axis, labels, counts)
        if activations:
            values = _send(activations, values, axis, key, None, None)
        if cotangents and key is not None:
            if labels is None and any(isinstance(s, Marvell) for s in cotangents):
                raise ValueError("Marvell hides labels: give the labels of the rows")
            back = jax.random.fold_in(key, _BACKWARD)
            values = _way_back(cotangents, axis)(values, back, labels, counts)
        return values

    return cross


def _check_shapes(values, examples_axis: int, labels, counts) -> int:
    axis = examples_axis + values.ndim if examples_axis < 0 else examples_axis
    if values.ndim < 2 or not 0 <= axis < values.ndim - 1:
        raise ValueError(
            f"examples_axis={examples_axis} must be an axis of {values.shape} before "
            "the last, which is the width of a row"
        )
    rows = values.shape[:-1]
    if labels is not None and labels.shape != rows:
        raise ValueError(
            f"labels {labels.shape} must have the shape of the rows {rows}"
        )
    if counts is not None and counts.shape not in (rows, (rows[axis],)):
        raise ValueError(
            f"counts {counts.shape} must have the shape of the rows {rows} or of the "
            f"examples ({rows[axis]},)"
        )
    return axis


def _rows_first(array: jax.Array, axis: int) -> jax.Array:
    """Returns one value for each row, the rows of an example one after another."""
    return jnp.moveaxis(array, axis, 0).reshape(-1)


def _counted(counts, shape: tuple[int, ...], axis: int) -> jax.Array:
    """Returns which rows count, bool of the shape of the rows."""
    if counts is None:
        return jnp.ones(shape, bool)
    if counts.shape != shape:
        spread = [1] * len(shape)
        spread[axis] = -1
        counts = jnp.broadcast_to(counts.reshape(spread), shape)
    return counts > 0


@functools.cache
def _way_back(steps: tuple[Step, ...], axis: int) -> Callable[..., jax.Array]:
    @jax.custom_vjp
    def identity(values, key, labels, counts):
        del key, labels, counts
        return values

    def forward(values, key, labels, counts):
        return values, (key, labels, counts)

    def backward(kept, cotangent):
        key, labels, counts = kept
        sent = _send(steps, cotangent, axis, key, labels, counts)
        if counts is not None:
            there = _counted(counts, cotangent.shape[:-1], axis)
            sent = jnp.where(there[..., None], sent, 0)
        return sent, None, None, None

    identity.defvjp(forward, backward)
    return identity


def _send(
    steps: tuple[Step, ...],
    values: jax.Array,
    axis: int,
    key: Key | None,
    labels: jax.Array | None,
    counts: jax.Array | None,
) -> jax.Array:
    """Returns what arrives of values that are sent through these steps."""
    first = jnp.moveaxis(values, axis, 0)
    sent = first.reshape(first.shape[0], -1)
    max_norm = math.nan
    for number, step in enumerate(steps):
        own = None if key is None else jax.random.fold_in(key, number)
        match step:
            case ClipExample():
                max_norm = step.max_norm
                sent = wire_steps.clip(sent, max_norm)
            case Noise():
                if own is not None and step.multiplier > 0:
                    deviation = step.multiplier * max_norm
                    sent = wire_steps.add_noise(sent, deviation, own)
            case Quantise():
                sent = wire_steps.quantise(sent, step.bits, own)
            case TopK():
                count = wire_steps.kept(step.keep, sent.shape[1])
                if count < sent.shape[1]:
                    sent = wire_steps.keep_largest(sent, count)
            case DropActivations():
                if own is not None and step.rate > 0:
                    sent = wire_steps.drop(sent, step.rate, own)
            case MaxNorm() | Marvell():
                if own is None:
                    continue
                rows = sent.reshape(-1, values.shape[-1])
                there = _rows_first(_counted(counts, values.shape[:-1], axis), axis)
                if isinstance(step, MaxNorm):
                    rows = wire_steps.align_norms(rows, there, own)
                else:
                    assert labels is not None
                    positive = _rows_first(labels, axis) > 0.5
                    rows = marvell.hide_labels(
                        rows, positive, there, own, power=step.power
                    )
                sent = rows.reshape(sent.shape)
    return jnp.moveaxis(sent.reshape(first.shape), 0, axis)


def wire_bytes(steps: Sequence[Step], numbers: int) -> int:
    """Returns the bytes of one example's message.

    Float32 numbers take 4 bytes each. Quantised, they take their bits, packed, and 4
    bytes for the scale. Of top-k the kept numbers are sent, and which ones: a bit for
    each number or an index for each kept one, whichever is shorter, in whole bytes. Of
    compression before a noise nothing is left: every number differs from 0 after it.

    Args:
      steps: of the direction, in their order.
      numbers: of a message, 1 or more.

    Raises:
      ValueError: for a message without numbers.
    """
    if numbers < 1:
        raise ValueError(f"numbers={numbers}: a message has one or more")
    bits, count = None, numbers
    for step in steps:
        match step:
            case Noise() if step.multiplier > 0:
                bits, count = None, numbers
            case MaxNorm():
                bits = None
            case Marvell():
                bits, count = None, numbers
            case Quantise():
                bits = step.bits
            case TopK():
                count = wire_steps.kept(step.keep, numbers)
    size = 4 * count if bits is None else 4 + -(-count * bits // 8)
    if count < numbers:
        indices = count * (numbers - 1).bit_length()
        size += -(-min(indices, numbers) // 8)
    return size
