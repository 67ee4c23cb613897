"""Gradient inversion: what one client's message shows of the rows it was made from.

Two attacks on the update of a single local step, by who knows the model, the labels and
which values were observed:

* analytic (Phong et al., 2018; Geiping et al., 2020, arXiv:2003.14053, prop. 3.1):
  the gradient of a linear layer's weights over that of its bias is the layer's input,
  exactly, where the batch is one example and the layer reads the input itself;
* matching (Geiping et al., 2020): invented inputs are moved by Adam until their
  gradient points where the message does (cosine).

Reconstructions are compared with the true, standardised values, each with the example
of the batch that it fits best (assignment problem). The control puts other examples of
the same labels in place of the reconstructions, matched the same way: what is known of
such data before any message is seen.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import linear_sum_assignment

from fedjax_health import build
from fedjax_health.client import gather
from fedjax_health.config import Config
from fedjax_health.core import trees
from fedjax_health.core.types import (
    Batch,
    ClientContext,
    InputLayout,
    Key,
    LossFn,
    Model,
    Params,
    Updates,
)
from fedjax_health.data.store import to_examples
from fedjax_health.engine.cohort import message_like
from fedjax_health.engine.places import leaves_without
from fedjax_health.engine.plan import CheckedPlan, check_plan
from fedjax_health.transforms.compose import bound_leaf

BATCHES = (1, 4, 16)
# Batches attacked of each size: enough examples for an interval.
VICTIMS = {1: 12, 4: 4, 16: 2}
STEPS = 300
RESTARTS = 2
LEARNING_RATE = 0.1
# Of the largest difference that still counts as reading the input itself.
_EXACT = 1e-3


class Inversion(NamedTuple):
    """How well an attack reconstructs.

    Attributes:
      attack: "analytic" or "matching".
      message: "bare", "sent" or "released".
      batch: examples of the local step.
      correlation: mean over examples of the correlation of true and reconstructed.
      interval: its 95 % interval, by resampling examples.
      control: the same of other examples in place of reconstructions.
      error: squared error over that of guessing every feature's mean.
      examples: how many.
    """

    attack: str
    message: str
    batch: int
    correlation: float
    interval: tuple[float, float]
    control: float
    error: float
    examples: int


Message = Callable[[Params, Updates, Key], Updates]


def bare_gradient(loss_fn: LossFn, params: Params, batch: Batch) -> Updates:
    """Returns the gradient of a loss that draws nothing."""
    return jax.grad(lambda p: loss_fn(p, batch, jax.random.key(0))[0])(params)


def without_dropout(model: Model) -> Model:
    """Returns a detector that ignores keys: it is the same whenever it is asked."""
    return model._replace(apply=_quiet(model.apply))


@functools.cache
def _quiet(apply: Callable[..., Any]) -> Callable[..., Any]:
    def silent(params: Params, batch: Batch, *, key: Key | None = None) -> Any:
        del key
        return apply(params, batch)

    return silent


def messages(
    built: build.Built, params: Params, *, released: bool
) -> Callable[[Updates, Key], Updates]:
    """Returns ``(updates, key) -> what is seen of them``, by the run's own stages.

    Args:
      built: of the run.
      params: the global model.
      released: whether the mechanism's noise on sums is in it: what is seen of one
        client where everybody else's messages are known. Without it, what the client
        itself sends.
    """
    plan = built.plan
    checked: CheckedPlan = check_plan(
        plan,
        abstract_params=built.abstract_params,
        cohort_size=built.sampling.cohort_size,
        sampling=built.sampling,
    )
    shared_params = leaves_without(plan.unsent, params)
    transform, mechanism = checked.transform, checked.mechanism
    shared = transform.init_server(shared_params)
    memory = transform.init(shared_params)
    like = message_like(
        transform.update, shared_params, jax.eval_shape(lambda: memory), shared
    )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    bound = None if checked.bound is None else bound_leaf(shared, checked.bound)
    noise = () if mechanism is None else mechanism.init(zeros)
    owner = noise
    if checked.codec is not None and checked.codec_owner == "aggregator":
        owner = plan.aggregator.init(zeros)

    def seen(updates: Updates, key: Key) -> Updates:
        keys = jax.random.split(key, 4)
        context = ClientContext(
            keys[0], jnp.int32(0), jnp.float32(1), shared_params, shared
        )
        value, _, _ = transform.update(updates, memory, context)
        if mechanism is not None and mechanism.client is not None:
            value = mechanism.client(value, noise, keys[1], bound)
        if checked.codec is not None:
            value, _ = checked.codec.encode(
                value, jnp.float32(1), owner, keys[2], bound
            )
        if released and mechanism is not None:
            if mechanism.server is not None:
                value, _ = mechanism.server(value, noise, keys[3], bound)
            elif mechanism.group is not None:
                rows = jax.tree.map(lambda x: x[None], value)
                rows = mechanism.group(rows, noise, keys[3], bound)
                value = jax.tree.map(lambda x: x[0], rows)
        if checked.codec is not None:
            value = checked.codec.decode(value, owner, bound, like)
        if transform.restore is not None:
            value, _ = transform.restore(value, shared, shared_params)
        return value

    return seen


class InputLayer(NamedTuple):
    """A linear layer that reads the input itself.

    Attributes:
      kernel: number of its weights' leaf.
      bias: number of its bias's leaf.
      rows: int ``[columns]``, the row of the weights that reads each column.
    """

    kernel: int
    bias: int
    rows: np.ndarray


def find_input_layer(
    loss_fn: LossFn, params: Params, batch: Batch, columns: np.ndarray
) -> InputLayer | None:
    """Returns a layer that reads columns of ``batch["x"]`` as they are, or None.

    It is found by trying: on invented inputs the ratio of its gradients is the input.

    Args:
      loss_fn: without dropout.
      params: the model.
      batch: one example.
      columns: int ``[columns]``, those that it has to read.
    """
    if batch["x"].ndim != 2:
        return None
    names = trees.path_names(params)
    pairs = [
        (names.index(name.removesuffix("kernel") + "bias"), i)
        for i, name in enumerate(names)
        if name.endswith("kernel") and name.removesuffix("kernel") + "bias" in names
    ]
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
    rng = np.random.default_rng(0)
    tries = np.repeat(np.asarray(batch["x"])[None], 6, axis=0)
    drawn = rng.normal(size=(6, 1, len(columns)))
    tries[:, :, columns] = drawn.astype(np.float32)

    @jax.jit
    def gradients(x):
        return jax.tree.leaves(bare_gradient(loss_fn, params, {**batch, "x": x}))

    found = [gradients(x) for x in tries]
    for bias, kernel in pairs:
        if len(shapes[kernel]) != 2:
            continue
        ratios = np.stack([_input_of(g[kernel], g[bias]) for g in found])
        # [columns, inputs of the layer], the largest difference over all tries.
        apart = np.abs(tries[:, 0, columns][:, :, None] - ratios[:, None, :]).max(0)
        if apart.size and np.all(apart.min(axis=1) < _EXACT):
            return InputLayer(kernel, bias, apart.argmin(axis=1))
    return None


def _input_of(kernel: Any, bias: Any) -> np.ndarray:
    """Returns the input by weights and bias, least squares over units."""
    kernel, bias = np.asarray(kernel, float), np.asarray(bias, float)
    return kernel @ bias / max(float(bias @ bias), 1e-300)


def match(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    seen: list[Any],
    hidden: jax.Array,
    key: Key,
    *,
    personal: Any = None,
    steps: int = STEPS,
) -> tuple[jax.Array, jax.Array]:
    """Returns inputs whose gradient points where a message does, and the distance.

    Args:
      loss_fn: without dropout.
      params: the model.
      batch: labels and whatever is known; of ``x`` what ``hidden`` does not hide.
      seen: leaves of the message.
      hidden: bool ``[columns]``, what is to be found.
      key: of the first guess.
      personal: which leaves do not travel; see ``RoundPlan``.
      steps: of Adam.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps, 0.01))
    length = jnp.sqrt(trees.squared_norm(seen))

    def distance(x):
        full = {**batch, "x": jnp.where(hidden, x, batch["x"])}
        gradient = bare_gradient(loss_fn, params, full)
        leaves = jax.tree.leaves(leaves_without(personal, gradient))
        inner = sum(jnp.vdot(a, b) for a, b in zip(leaves, seen, strict=True))
        norm = jnp.sqrt(trees.squared_norm(leaves) + 1e-20)
        return 1 - inner / (norm * jnp.maximum(length, 1e-20))

    def body(carry, _):
        x, state, best, least = carry
        value, slope = jax.value_and_grad(distance)(x)
        change, state = optimizer.update(slope, state, x)
        better = value < least
        best, least = jnp.where(better, x, best), jnp.where(better, value, least)
        return (x + change, state, best, least), None

    first = jax.random.normal(key, batch["x"].shape)
    start = (first, optimizer.init(first), first, jnp.float32(jnp.inf))
    (_, _, best, least), _ = jax.lax.scan(body, start, length=steps)
    return best, least


def correlations(
    true: np.ndarray, guess: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the correlation of each true example with the guess that it is dealt.

    Args:
      true: ``[batch, ...]``.
      guess: ``[batch, ...]``.
      counts: bool ``[batch, ...]``, values that there are.

    Returns:
      Correlations ``[batch]``, 0 where an example does not vary, and the number of the
      guess dealt to each.
    """
    size = len(true)
    table = np.array(
        [
            [_correlation(true[i], guess[j], counts[i]) for j in range(size)]
            for i in range(size)
        ]
    )
    rows, dealt = linear_sum_assignment(-table)
    return table[rows, dealt], dealt


def _correlation(a: np.ndarray, b: np.ndarray, counts: np.ndarray) -> float:
    a, b = a[counts].astype(float), b[counts].astype(float)
    if len(a) < 2:
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else 0.0


def invert(
    config: Config,
    prepared: build.Prepared,
    built: build.Built,
    *,
    seed: int,
    batches: tuple[int, ...] = BATCHES,
    victims: dict[int, int] | None = None,
    steps: int = STEPS,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Inversion]:
    """Attacks messages of the first round.

    Args:
      config: of the run.
      prepared: its data.
      built: its detector and plan.
      seed: of the victims and of all that is random.
      batches: sizes of a local step; those above the training examples are left out.
      victims: batches of each size.
      steps: of the matching.
      tell: told what is done.
    """
    victims = VICTIMS if victims is None else victims
    rng = np.random.default_rng([seed, 103])
    params = build.initial_params(config, built.model)
    quiet = build.build_loss(config, without_dropout(built.model), prepared)
    attack = _Attack(prepared, built, params, quiet, steps)
    kinds = ["bare", "sent"]
    if built.plan.mechanism is not None:
        kinds.append("released")
    found = []
    for size in batches:
        if 2 * size > prepared.store.num_examples:
            continue
        chosen = [
            rng.choice(prepared.store.num_examples, size, replace=False)
            for _ in range(victims[size])
        ]
        for kind in kinds:
            tell(f"inverting messages of {size} example(s), {kind}")
            for name in ("analytic", "matching"):
                if name == "analytic" and (size > 1 or attack.layer is None):
                    continue
                found.append(attack(name, kind, chosen, rng))
    return found


class _Attack:
    """What all attacks on one run share."""

    def __init__(self, prepared, built, params, quiet, steps):
        self.examples = to_examples(prepared.store)
        self.count = prepared.store.num_examples
        self.labels = self._labels(prepared)
        self.built, self.params, self.quiet = built, params, quiet
        self.hidden = value_columns(prepared.layout)
        self.layout = prepared.layout
        columns = np.flatnonzero(self.hidden)
        probe = self.batch(np.arange(1))
        for modality in prepared.layout:
            if modality.observed is not None:
                # What was not observed is read as 0, whatever stands there.
                flags = slice(*modality.observed)
                probe["x"] = probe["x"].at[..., flags].set(1)
        self.layer = find_input_layer(quiet, params, probe, columns)
        if self.layer is not None and built.plan.unsent is not None:
            names = trees.path_names(params)
            if built.plan.unsent(names[self.layer.kernel]):
                self.layer = None
        self.views = {
            kind: jax.jit(messages(built, params, released=kind == "released"))
            for kind in ("sent", "released")
        }
        personal = built.plan.unsent
        search = functools.partial(match, quiet, personal=personal, steps=steps)
        # [victims] then [restarts].
        over_restarts = jax.vmap(
            lambda p, b, s, h, k: search(p, b, s, h, k), (None, None, None, None, 0)
        )
        self.search = jax.jit(jax.vmap(over_restarts, (None, 0, 0, None, 0)))
        self.bare = jax.jit(functools.partial(bare_gradient, quiet))
        self.step = jax.jit(self._step)

    def _labels(self, prepared) -> np.ndarray:
        label = np.asarray(prepared.store.rows["label"])
        if prepared.store.window is None:
            return label
        return label[prepared.store.starts + prepared.store.window - 1]

    def batch(self, index: np.ndarray) -> Batch:
        found = gather(self.examples, jnp.asarray(index, jnp.int32))
        return {**found, "weight": jnp.ones(len(index), jnp.float32)}

    def _step(self, batch: Batch, key: Key) -> Updates:
        """Returns the update of one local step by the run's own optimiser."""
        local = self.built.plan.local.optimizer
        optimizer = local.structure.build(local.leaves(), jnp.int32(0))
        gradient = jax.grad(lambda p: self.built.loss_fn(p, batch, key)[0])(self.params)
        change, _ = optimizer.update(gradient, optimizer.init(self.params), self.params)
        return leaves_without(
            self.built.plan.unsent, jax.tree.map(jnp.negative, change)
        )

    def seen(self, kind: str, batch: Batch, key: Key) -> Updates:
        if kind == "bare":
            gradient = self.bare(self.params, batch)
            return leaves_without(self.built.plan.unsent, gradient)
        keys = jax.random.split(key)
        return self.views[kind](self.step(batch, keys[0]), keys[1])

    def __call__(self, name: str, kind: str, chosen, rng) -> Inversion:
        root = jax.random.key(int(rng.integers(2**32)), impl="threefry2x32")
        batches = [self.batch(index) for index in chosen]
        size = len(chosen[0])
        seen = [
            self.seen(kind, batch, jax.random.fold_in(root, i))
            for i, batch in enumerate(batches)
        ]
        if name == "analytic":
            guesses = [self._analytic(s, b) for s, b in zip(seen, batches, strict=True)]
        else:
            guesses = self._matching(seen, batches, root)
        found, control, error, base = [], [], 0.0, 0.0
        for index, batch, guess in zip(chosen, batches, guesses, strict=True):
            true, counts = np.asarray(batch["x"]), self._counts(batch)
            values, dealt = correlations(true, guess, counts)
            found += list(values)
            error += float(np.sum((guess[dealt] - true)[counts] ** 2))
            base += float(np.sum(true[counts] ** 2))
            others = np.array([self._other(i, index, rng) for i in index])
            control += list(
                correlations(true, np.asarray(self.batch(others)["x"]), counts)[0]
            )
        draws = rng.choice(found, (500, len(found))).mean(axis=1)
        low, high = np.quantile(draws, (0.025, 0.975))
        return Inversion(
            name,
            kind,
            size,
            float(np.mean(found)),
            (float(low), float(high)),
            float(np.mean(control)),
            error / max(base, 1e-30),
            len(found),
        )

    def _other(self, example: int, batch: np.ndarray, rng) -> int:
        same = np.flatnonzero(self.labels == self.labels[example])
        same = same[~np.isin(same, batch)]
        if not len(same):
            same = np.setdiff1d(np.arange(self.count), batch)
        return int(rng.choice(same))

    def _counts(self, batch: Batch) -> np.ndarray:
        """Returns which values of a batch there are to be found."""
        x = np.asarray(batch["x"])
        counts = np.broadcast_to(self.hidden, x.shape).copy()
        for columns in self.layout:
            if columns.observed is not None:
                first, end = columns.values
                counts[..., first:end] &= x[..., slice(*columns.observed)] > 0
        if "valid" in batch:
            counts &= np.asarray(batch["valid"])[..., None] > 0
        return counts

    def _analytic(self, seen: Updates, batch: Batch) -> np.ndarray:
        assert self.layer is not None
        # None stands where a leaf does not travel.
        leaves = jax.tree.leaves(seen, is_leaf=lambda leaf: leaf is None)
        found = _input_of(leaves[self.layer.kernel], leaves[self.layer.bias])
        guess = np.array(batch["x"])
        guess[0, self.hidden] = found[self.layer.rows]
        return guess

    def _matching(self, seen, batches, root: Key) -> list[np.ndarray]:
        leaves = [jax.tree.leaves(s) for s in seen]
        stacked = [jnp.stack(rows) for rows in zip(*leaves, strict=True)]
        together = jax.tree.map(lambda *x: jnp.stack(x), *batches)
        keys = jax.random.split(
            jax.random.fold_in(root, 1 << 20), (len(batches), RESTARTS)
        )
        found, distance = self.search(
            self.params, together, stacked, jnp.asarray(self.hidden), keys
        )
        best = np.asarray(jnp.argmin(distance, axis=1))
        return [np.asarray(found[i, j]) for i, j in enumerate(best)]


def value_columns(layout: InputLayout) -> np.ndarray:
    """Returns which columns of ``x`` hold values, not flags, bool ``[columns]``."""
    spans = [c for m in layout for c in (m.values, m.observed, m.elapsed) if c]
    hidden = np.zeros(max(end for _, end in spans), bool)
    for columns in layout:
        hidden[slice(*columns.values)] = True
    return hidden
