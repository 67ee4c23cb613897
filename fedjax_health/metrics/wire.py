"""What the wire of split learning shows of labels and of records, measured.

Three attacks by who receives what crosses a cut, on values as they arrive:

* labels by cotangents: their norm, and their direction (Li et al., 2022,
  arXiv:2102.08504, section 3, here with the difference of the classes' means);
* inputs by a decoder: a receiver who has some records beside their smashed data learns
  to turn the one back into the other (Vepakomma et al., 2020, arXiv:2008.09161);
* how much smashed data depend on inputs: distance correlation.

What an attack does not find may still be there for a better one.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import linalg

from fedjax_health.core.correlation import distance_correlation
from fedjax_health.core.types import Key
from fedjax_health.metrics import host

# Records of a distance correlation: it takes the square of their number.
MOST_RECORDS = 1000
# Of an interval.
RESAMPLES = 200
LEARNING_RATE = 0.01
_BATCH = 256
# Of the mean square of a standardised column.
_PENALTIES = (1e-6, 1e-4, 1e-2, 1e-1, 1.0, 10.0)
# A column whose deviation is below this share of its largest value does not vary.
_CONSTANT = 1e-6
# Standardised values beyond are cut off: of a column that hardly varied where the
# decoder learned, one record could make any error.
_FARTHEST = 10.0
_LEAST_KNOWN = 4
_LEAST_HELD_OUT = 2


class LabelLeak(NamedTuple):
    """How well cotangents tell positives from negatives; guessing reaches 0.5.

    Attributes:
      norm: area under the ROC curve of their norms, 0.5 or more.
      direction: of their projection on the difference of the classes' means.
    """

    norm: float
    direction: float


def label_leak(
    cotangents: np.ndarray, labels: np.ndarray, *, seed: int = 0
) -> LabelLeak:
    """Returns how well cotangents tell their examples' labels.

    The norm needs no knowledge but which class has the longer ones, and is given the
    better guess: with few examples it lies somewhat above 0.5 by chance. For the
    direction the receiver knows the labels of half of the examples of each class, takes
    the difference of the means, and is scored on the others; it may lie below 0.5.

    Args:
      cotangents: ``[n, ...]``, one example's a row.
      labels: ``[n]``, positive above 0.5.
      seed: of the halves.

    Returns:
      Both figures. The norm is NaN unless there are both classes, the direction unless
      there are two examples of each.

    Raises:
      ValueError: for shapes that do not fit, or values that are not finite.
    """
    flat = _flat("cotangents", cotangents)
    labels = np.asarray(labels)
    if labels.shape != flat.shape[:1]:
        raise ValueError(
            f"labels {labels.shape} must be one for each of {len(flat)} cotangents"
        )
    positive = labels > 0.5
    area = _area(np.linalg.norm(flat, axis=1), positive)
    return LabelLeak(max(area, 1 - area), _area(*_projected(flat, positive, seed)[:2]))


def label_leak_intervals(
    cotangents: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, seed: int = 0
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Returns 95 % intervals of ``label_leak``, the norm's and the direction's.

    Groups of rows are resampled; which class has the longer cotangents, and the
    direction, stay as all rows have them.

    Args:
      cotangents: as in ``label_leak``.
      labels: as in ``label_leak``.
      groups: int ``[n]``, rows that are resampled together.
      seed: of the halves and the resamples.

    Returns:
      (low, high) of both; NaN where the figure is, or no resample has both classes.
    """
    flat, positive = _flat("cotangents", cotangents), np.asarray(labels) > 0.5
    norms = np.linalg.norm(flat, axis=1)
    if _area(norms, positive) < 0.5:
        norms = -norms
    scores, flags, rows = _projected(flat, positive, seed)
    groups = np.asarray(groups)
    return (
        _resampled(norms, positive, groups, seed),
        _resampled(scores, flags, groups[rows], seed),
    )


def _resampled(
    scores: np.ndarray, positive: np.ndarray, groups: np.ndarray, seed: int
) -> tuple[float, float]:
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    rng = np.random.default_rng([seed, 2])
    found = []
    for _ in range(RESAMPLES if len(scores) else 0):
        drawn = rng.integers(len(members), size=len(members))
        rows = np.concatenate([members[i] for i in drawn])
        found.append(_area(scores[rows], positive[rows]))
    known = [area for area in found if not math.isnan(area)]
    if not known:
        return math.nan, math.nan
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)


def _area(scores: np.ndarray, positive: np.ndarray) -> float:
    """Returns the area under the ROC curve; NaN with one class."""
    if len(np.unique(positive)) < 2:
        return math.nan
    return host.auroc(scores, positive)


def _projected(
    flat: np.ndarray, positive: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns scores, classes and numbers of the rows whose labels are not known."""
    classes = [np.flatnonzero(positive), np.flatnonzero(~positive)]
    if min(len(rows) for rows in classes) < 2:
        nothing = np.zeros(0, np.int64)
        return np.zeros(0), nothing.astype(bool), nothing
    rng = np.random.default_rng(seed)
    # Without what all share: rounding must not rank rows that are alike.
    flat = flat - flat[0]
    means, others = [], []
    for rows in classes:
        rows = rng.permutation(rows)
        half = len(rows) // 2
        means.append(flat[rows[:half]].mean(axis=0))
        others.append(rows[half:])
    scored = np.concatenate(others)
    return flat[scored] @ (means[0] - means[1]), positive[scored], scored


class Decoded(NamedTuple):
    """How far a decoder is off.

    Attributes:
      error: squared error over that of guessing each column's mean.
      interval: its 95 % interval, by resampling groups of held-out records.
    """

    error: float
    interval: tuple[float, float]


def decoder_inversion(
    inputs: np.ndarray,
    smashed: np.ndarray,
    *,
    known: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    seed: int = 0,
    share: float = 0.5,
    steps: int = 500,
    hidden: int = 64,
) -> Decoded:
    """Returns the error with which a decoder turns smashed data back into inputs.

    The receiver knows a share of the records and learns from these pairs alone: ridge
    regression of several penalties, and a perceptron with one hidden layer (Adam, kept
    where it is best on a fifth of the known records). Whichever does best on that fifth
    is scored once on the records held out, as squared error over that of guessing each
    column's mean: 0 for exact, 1 where nothing was learned, above 1 for worse than
    that. Columns count alike, in units of their deviation; those that do not vary
    are left out.

    Which records are known is drawn at random unless it is given: where neighbours are
    much alike (overlapping windows, one patient's rows), give each only once, or the
    decoder has seen what it is asked.

    Args:
      inputs: ``[n, ...]``, one record a row.
      smashed: ``[n, ...]``, of the same records.
      known: bool ``[n]``, which records the receiver knows; None draws a share.
      groups: int ``[n]``, records that are resampled together; None for each alone.
      seed: of the draw, the perceptron and the resamples.
      share: of the records that are known, in (0, 1).
      steps: of Adam, 1 or more, on 256 records each.
      hidden: width of the perceptron, 1 or more.

    Returns:
      The relative mean squared error: 1 where no input varies; NaN with fewer than
      four known records or two held out.

    Raises:
      ValueError: for numbers out of range, shapes that do not fit, or values that are
        not finite.
    """
    if not 0 < share < 1:
        raise ValueError(f"share={share}: must lie in (0, 1)")
    if steps < 1 or hidden < 1:
        raise ValueError(f"steps={steps}, hidden={hidden}: each must be 1 or more")
    x, z = _pair(inputs, smashed)
    if known is not None and np.shape(known) != (len(x),):
        raise ValueError(f"known {np.shape(known)} must be one for each of {len(x)}")
    order = np.random.default_rng(seed).permutation(len(x))
    if known is None:
        count = round(share * len(x))
    else:
        flags = np.asarray(known, bool)
        count = int(flags.sum())
        order = np.concatenate([order[flags[order]], order[~flags[order]]])
    if count < _LEAST_KNOWN or len(x) - count < _LEAST_HELD_OUT:
        return Decoded(math.nan, (math.nan, math.nan))
    x, z = (_standardised(rows[order], count) for rows in (x, z))
    truth = x[count:]
    if not np.any(truth):
        return Decoded(1.0, (1.0, 1.0))
    guess = _best_guess(x, z, count, seed=seed, steps=steps, hidden=hidden)
    of = np.arange(len(x)) if groups is None else np.asarray(groups)
    return _ratio(
        np.sum((guess - truth) ** 2, axis=1),
        np.sum(truth**2, axis=1),
        of[order[count:]],
        seed,
    )


def _ratio(
    errors: np.ndarray, squares: np.ndarray, groups: np.ndarray, seed: int
) -> Decoded:
    """Returns the ratio of two sums, and how far it moves with the groups."""
    number = np.unique(groups, return_inverse=True)[1].reshape(-1)
    top, bottom = (np.bincount(number, weights=rows) for rows in (errors, squares))
    rng = np.random.default_rng([seed, 1])
    drawn = rng.integers(len(top), size=(RESAMPLES, len(top)))
    below = bottom[drawn].sum(axis=1)
    found = top[drawn].sum(axis=1)[below > 0] / below[below > 0]
    low, high = np.quantile(found, (0.025, 0.975))
    return Decoded(float(top.sum() / bottom.sum()), (float(low), float(high)))


def _best_guess(
    x: np.ndarray, z: np.ndarray, known: int, *, seed: int, steps: int, hidden: int
) -> np.ndarray:
    """Returns what the better decoder makes of the rows after the known ones."""
    fit = known - max(1, known // 5)
    penalty, ridge_error = _best_penalty(x[:known], z[:known], fit)
    weights, error = _perceptron(
        *(jnp.asarray(part, jnp.float32) for part in (z[:fit], x[:fit])),
        *(jnp.asarray(part, jnp.float32) for part in (z[fit:known], x[fit:known])),
        jax.random.key(seed),
        steps=steps,
        hidden=hidden,
    )
    if float(error) < ridge_error:
        return np.asarray(_decode(weights, jnp.asarray(z[known:], jnp.float32)))
    return z[known:] @ _ridge(z[:known], x[:known], penalty)


def input_correlation(
    inputs: np.ndarray, smashed: np.ndarray, *, seed: int = 0
) -> float:
    """Returns the distance correlation of smashed data and inputs, in [0, 1].

    The root of ``core.correlation.distance_correlation``, of 1,000 records drawn at
    random where there are more. It is biased: independent data of few records in many
    dimensions come out far above 0, so compare figures of as many records only.

    Args:
      inputs: ``[n, ...]``, one record a row.
      smashed: ``[n, ...]``, of the same records.
      seed: of the draw.

    Returns:
      The correlation; 0 where either does not vary; NaN with fewer than two records.

    Raises:
      ValueError: for shapes that do not fit, or values that are not finite.
    """
    x, z = _pair(inputs, smashed)
    if len(x) < 2:
        return math.nan
    if len(x) > MOST_RECORDS:
        rng = np.random.default_rng(seed)
        rows = np.sort(rng.choice(len(x), MOST_RECORDS, replace=False))
        x, z = x[rows], z[rows]
    # Centred in double precision first: large offsets would cost digits.
    x, z = (jnp.asarray(rows - rows.mean(axis=0), jnp.float32) for rows in (x, z))
    return min(math.sqrt(float(_correlation(x, z))), 1.0)


_correlation = jax.jit(distance_correlation)


def _flat(name: str, rows: Any) -> np.ndarray:
    """Returns float64 ``[n, numbers]``."""
    rows = np.asarray(rows, np.float64)
    if rows.ndim == 0:
        raise ValueError(f"{name} must be [n, ...], one example a row, not one number")
    if not np.all(np.isfinite(rows)):
        raise ValueError(f"{name} must be finite: leave other rows out")
    return rows.reshape(len(rows), math.prod(rows.shape[1:]))


def _pair(inputs: Any, smashed: Any) -> tuple[np.ndarray, np.ndarray]:
    x, z = _flat("inputs", inputs), _flat("smashed", smashed)
    if len(x) != len(z):
        raise ValueError(
            f"inputs ({len(x)} rows) and smashed ({len(z)}) must be of the same records"
        )
    return x, z


def _standardised(rows: np.ndarray, known: int) -> np.ndarray:
    """Returns columns in deviations of the known rows from their mean, or zeros."""
    first = rows[:known]
    deviation = first.std(axis=0)
    varies = deviation > _CONSTANT * np.max(np.abs(first), axis=0)
    scaled = (rows - first.mean(axis=0)) / np.where(varies, deviation, 1)
    return np.where(varies, np.clip(scaled, -_FARTHEST, _FARTHEST), 0)


def _ridge(z: np.ndarray, x: np.ndarray, penalty: float) -> np.ndarray:
    """Returns weights ``[of z, of x]``, by the smaller of two systems."""
    count, width = z.shape
    if width <= count:
        gram = z.T @ z + penalty * count * np.eye(width)
        return linalg.solve(gram, z.T @ x, assume_a="pos")
    gram = z @ z.T + penalty * count * np.eye(count)
    return z.T @ linalg.solve(gram, x, assume_a="pos")


def _best_penalty(x: np.ndarray, z: np.ndarray, fit: int) -> tuple[float, float]:
    """Returns the penalty of least error after ``fit`` rows, and that error."""
    errors = [
        float(np.mean((z[fit:] @ _ridge(z[:fit], x[:fit], penalty) - x[fit:]) ** 2))
        for penalty in _PENALTIES
    ]
    best = int(np.argmin(errors))
    return _PENALTIES[best], errors[best]


def _decode(weights: tuple[jax.Array, ...], z: jax.Array) -> jax.Array:
    into, bias, out, end = weights
    return jax.nn.relu(z @ into + bias) @ out + end


@functools.partial(jax.jit, static_argnames=("steps", "hidden"))
def _perceptron(
    z: jax.Array,
    x: jax.Array,
    z_kept: jax.Array,
    x_kept: jax.Array,
    key: Key,
    *,
    steps: int,
    hidden: int,
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """Returns the weights of least error on the kept pairs, and that error."""
    first, draws = jax.random.split(key)
    into = jax.random.normal(first, (z.shape[1], hidden))
    into *= math.sqrt(2 / max(z.shape[1], 1))
    # Zeros at the end: it starts from the columns' means.
    start = (
        into,
        jnp.zeros(hidden),
        jnp.zeros((hidden, x.shape[1])),
        jnp.zeros(x.shape[1]),
    )
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps, 0.01))

    def error(weights, z, x):
        return jnp.mean((_decode(weights, z) - x) ** 2)

    def body(carry, key):
        weights, state, best, least = carry
        rows = jax.random.randint(key, (min(_BATCH, len(z)),), 0, len(z))
        slope = jax.grad(error)(weights, z[rows], x[rows])
        change, state = optimizer.update(slope, state, weights)
        weights = optax.apply_updates(weights, change)
        value = error(weights, z_kept, x_kept)
        better = value < least
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), weights, best)
        return (weights, state, best, jnp.where(better, value, least)), None

    least = error(start, z_kept, x_kept)
    carry = (start, optimizer.init(start), start, least)
    (_, _, best, least), _ = jax.lax.scan(body, carry, jax.random.split(draws, steps))
    return best, least
