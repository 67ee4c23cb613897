"""Attacks that change the labels of a malicious client's records.

Labels are class numbers from 0, ``[batch]`` or, for streams, ``[batch, time]``, of any
dtype; a detector's are 0 (normal) and 1 (attack).
"""

import jax
import jax.numpy as jnp

from fedjax_health.attacks.records import draw
from fedjax_health.attacks.rows import check_number
from fedjax_health.core.types import (
    Batch,
    DataAttack,
    DataAttackContext,
    Key,
    State,
)


def _attack(poison, **numbers: float) -> DataAttack:
    def init() -> State:
        return {name: jnp.float32(value) for name, value in numbers.items()}

    return DataAttack(poison, init)


def _check_classes(attack: str, num_classes: int) -> None:
    if num_classes < 2:
        raise ValueError(f"{attack}: num_classes must be 2 or more, not {num_classes}")


def _check_class(name: str, value: int) -> None:
    if value < 0:
        raise ValueError(f"{name} must be the number of a class, 0 or more: {value}")


def _flip(batch: Batch, context: DataAttackContext) -> Batch:
    label = batch["label"]
    top = context.numbers["top"].astype(label.dtype)
    return {**batch, "label": top - label}


def label_flip(*, num_classes: int = 2) -> DataAttack:
    """Trains on the label ``num_classes - 1 - y`` in place of y.

    Tolpegin et al., 2020, "Data Poisoning Attacks Against Federated Learning Systems"
    (arXiv:2007.08432), in the form of ByzFL and Fang et al. (arXiv:1911.11815): a
    detector's clients call attacks normal and normal records attacks.

    Threat model: own data alone.

    Args:
      num_classes: classes of the task, 2 or more; traced.

    Raises:
      ValueError: for fewer.
    """
    _check_classes("label_flip", num_classes)
    return _attack(_flip, top=num_classes - 1)


def _flip_target(batch: Batch, context: DataAttackContext) -> Batch:
    label, numbers = batch["label"], context.numbers
    chosen = draw(context, label.shape[0], jax.random.uniform) < numbers["share"]
    chosen = chosen.reshape(-1, *[1] * (label.ndim - 1))
    hit = chosen & (label == numbers["source"].astype(label.dtype))
    target = numbers["target"].astype(label.dtype)
    return {**batch, "label": jnp.where(hit, target, label)}


def targeted_label_flip(
    *, source: int = 1, target: int = 0, share: float = 1.0
) -> DataAttack:
    """Trains on records of one class as if they were of another.

    Tolpegin et al., 2020 (arXiv:2007.08432), source-to-target flipping. By default
    attacks are called normal and normal records are left alone.

    Threat model: own data alone.

    Args:
      source: class whose label is changed; traced.
      target: class that it is changed to; traced.
      share: share of the client's examples that are changed, in [0, 1], the same ones
        in every epoch and round; traced.

    Raises:
      ValueError: for equal classes or numbers out of range.
    """
    _check_class("targeted_label_flip: source", source)
    _check_class("targeted_label_flip: target", target)
    if source == target:
        raise ValueError(f"targeted_label_flip: source and target are both {source}")
    check_number("targeted_label_flip: share", share, low=0, high=1)
    return _attack(_flip_target, source=source, target=target, share=share)


def _noise(batch: Batch, context: DataAttackContext) -> Batch:
    label, numbers = batch["label"], context.numbers
    shape = label.shape[1:]

    def one(key: Key) -> jax.Array:
        hit, step = jax.random.split(key)
        changed = jax.random.uniform(hit, shape) < numbers["rate"]
        others = numbers["num_classes"] - 1.0
        step = jnp.floor(jax.random.uniform(step, shape) * others) + 1.0
        return jnp.where(changed, jnp.minimum(step, others), 0.0)

    moved = label.astype(jnp.float32) + draw(context, label.shape[0], one)
    return {
        **batch,
        "label": jnp.mod(moved, numbers["num_classes"]).astype(label.dtype),
    }


def label_noise(*, rate: float = 0.5, num_classes: int = 2) -> DataAttack:
    """Trains on labels of which a share is replaced by another class at random.

    Symmetric noise (van Rooyen et al., 2015, arXiv:1505.07634): with probability
    ``rate`` a label becomes one of the other classes, each as likely. A record keeps
    its wrong label in every epoch and round; a row of a stream that lies in two windows
    has a draw in each.

    Threat model: own data alone.

    Args:
      rate: share of wrong labels, in [0, 1]; traced.
      num_classes: classes of the task, 2 or more; traced.

    Raises:
      ValueError: for numbers out of range.
    """
    check_number("label_noise: rate", rate, low=0, high=1)
    _check_classes("label_noise", num_classes)
    return _attack(_noise, rate=rate, num_classes=num_classes)
