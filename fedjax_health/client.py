"""Local training: one client's part of a round, as a pure function.

A ``LocalAlgorithm`` says how a client turns the broadcast model into updates. It is
handed ``train``, which runs the client's local steps, and decides what to correct in
the gradients and what to remember. Updates are ``server - client`` parameters, so
that the server steps *down* them with any optax optimiser.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_health.core import trees
from fedjax_health.core.binomial import BinomialLaw, binomial_law, draw_count
from fedjax_health.core.outer import example_gradients
from fedjax_health.core.permutation import permute
from fedjax_health.core.rng import normal, words
from fedjax_health.core.types import (
    Batch,
    DataAttack,
    DataAttackContext,
    Examples,
    Key,
    LossFn,
    Metrics,
    Params,
    Report,
    Shared,
    State,
    Updates,
)

Correction = Callable[[Updates, Params], Updates]
# (data, params, correction=None) -> (params, averages over the examples seen).
Train = Callable[..., tuple[Params, Metrics]]

# Private gradients are held where one has at most one number in so many parameters that
# is not in factors.
_MOST_HELD = 8


class LocalContext(NamedTuple):
    """What a local algorithm may know beside the model and its memory.

    Attributes:
      shared: what the algorithm's server half broadcasts.
      num_steps: int32 ``[]``, the client's local steps of this round.
      learning_rate: float32 ``[]``, the local learning rate of this round.
    """

    shared: Shared
    num_steps: jax.Array
    learning_rate: jax.Array


class LocalResult(NamedTuple):
    """What one client hands back.

    Attributes:
      params: the client's parameters after training.
      memory: what it remembers until it is drawn again.
      report: a tree of arrays that the engine sums over the cohort.
      metrics: averages over the examples seen.
    """

    params: Params
    memory: State
    report: Report
    metrics: Metrics


class LocalAlgorithm(NamedTuple):
    """A client's side of a federated algorithm, with what its server half shares.

    Attributes:
      init: params -> one client's memory.
      init_server: params -> the value that is broadcast; holds the algorithm's numbers.
      run: ``(train, params, memory, LocalContext) -> LocalResult`` where
        ``train(params, correction=None) -> (params, metrics)`` runs the local steps and
        ``correction(gradients, params) -> gradients``.
      reduce: ``(shared, summed_report, population) -> shared``.
      reports_model: whether the report is as large as the model and travels beside the
        message, outside clipping, noise and robust rules.
      plain_sgd_only: whether the rule holds for local SGD without momentum alone.
      personal_model: memory -> the client's own model, or None where it has none.
    """

    init: Callable[[Params], State]
    init_server: Callable[[Params], Shared]
    run: Callable[..., LocalResult]
    reduce: Callable[[Shared, Report, jax.Array], Shared]
    reports_model: bool = False
    plain_sgd_only: bool = False
    personal_model: Callable[[State], Params] | None = None


def _no_memory(params: Params) -> State:
    del params
    return ()


def _keep_shared(shared: Shared, report: Report, population: jax.Array) -> Shared:
    del report, population
    return shared


def _run_fedavg(train, params, memory, context: LocalContext) -> LocalResult:
    del context
    trained, metrics = train(params)
    return LocalResult(trained, memory, (), metrics)


def fedavg() -> LocalAlgorithm:
    """Plain local training (McMahan et al., 2017, arXiv:1602.05629)."""
    return LocalAlgorithm(_no_memory, _no_memory, _run_fedavg, _keep_shared)


def _proximal(anchor: Params, strength: jax.Array) -> Correction:
    def correction(gradients: Updates, params: Params) -> Updates:
        return jax.tree.map(
            lambda g, p, a: g + strength.astype(g.dtype) * (p - a),
            gradients,
            params,
            anchor,
        )

    return correction


def _run_fedprox(train, params, memory, context: LocalContext) -> LocalResult:
    trained, metrics = train(params, _proximal(params, context.shared["mu"]))
    return LocalResult(trained, memory, (), metrics)


def fedprox(mu: float) -> LocalAlgorithm:
    """Local training with a proximal term (Li et al., 2020, arXiv:1812.06127).

    Args:
      mu: the strength; the local objective is ``loss + mu / 2 * |params - server|^2``.

    Raises:
      ValueError: if ``mu`` is negative.
    """
    if not mu >= 0:
        raise ValueError(f"fedprox: mu must be 0 or more, not {mu}")
    return LocalAlgorithm(
        _no_memory, lambda params: {"mu": jnp.float32(mu)}, _run_fedprox, _keep_shared
    )


def _init_scaffold_server(params: Params) -> Shared:
    return {"control": trees.zeros_like(params)}


def _run_scaffold(train, params, memory, context: LocalContext) -> LocalResult:
    control = context.shared["control"]
    drift = trees.subtract(control, memory)
    trained, metrics = train(params, lambda gradients, _: trees.add(gradients, drift))
    steps = jnp.maximum(context.num_steps, 1).astype(jnp.float32)
    moved = context.learning_rate > 0
    factor = 1.0 / (steps * jnp.where(moved, context.learning_rate, 1.0))
    # Option II of the paper: c_i+ = c_i - c + (x - y_i) / (K eta). A client that does
    # not move learns nothing about its gradient.
    change = jax.tree.map(
        lambda start, end, c: jnp.where(
            moved, (start - end) * factor.astype(start.dtype) - c, 0
        ),
        params,
        trained,
        control,
    )
    return LocalResult(trained, trees.add(memory, change), change, metrics)


def _reduce_scaffold(shared: Shared, report: Report, population: jax.Array) -> Shared:
    control = jax.tree.map(
        lambda c, total: c + total / population.astype(c.dtype),
        shared["control"],
        report,
    )
    return {"control": control}


def scaffold() -> LocalAlgorithm:
    """Local SGD with control variates (Karimireddy et al., 2020, arXiv:1910.06378).

    Option II of the paper. Every client keeps one control variate of the model's size.
    """
    return LocalAlgorithm(
        trees.zeros_like,
        _init_scaffold_server,
        _run_scaffold,
        _reduce_scaffold,
        reports_model=True,
        plain_sgd_only=True,
    )


def _run_ditto(train, params, memory, context: LocalContext) -> LocalResult:
    trained, metrics = train(params)
    own, own_metrics = train(
        memory["model"], _proximal(params, context.shared["strength"])
    )
    metrics = {**metrics, "personal_loss": own_metrics["loss"]}
    return LocalResult(trained, {"model": own}, (), metrics)


def _ditto_model(memory: State) -> Params:
    return memory["model"]


def _init_ditto(params: Params) -> State:
    return {"model": params}


def ditto(strength: float) -> LocalAlgorithm:
    """FedAvg beside a personal model that is pulled to the global one.

    Li et al., 2021, "Ditto: Fair and Robust Federated Learning Through
    Personalization" (arXiv:2012.04221); one pass over the personal model a round.

    Args:
      strength: lambda of the paper, the weight of ``1/2 |personal - server|^2``.

    Raises:
      ValueError: if ``strength`` is negative.
    """
    if not strength >= 0:
        raise ValueError(f"ditto: strength must be 0 or more, not {strength}")
    return LocalAlgorithm(
        _init_ditto,
        lambda params: {"strength": jnp.float32(strength)},
        _run_ditto,
        _keep_shared,
        personal_model=_ditto_model,
    )


def gather(examples: Examples, index: jax.Array) -> dict[str, jax.Array]:
    """Returns a batch: name -> ``[batch, ...]``, or ``[batch, window, ...]``.

    Args:
      examples: the packed rows.
      index: int32 ``[batch]``, positions of examples; out of range is clipped.
    """
    if examples.window is None:
        rows = index
    else:
        assert examples.starts is not None
        starts = jnp.take(examples.starts, index, mode="clip")
        rows = starts[:, None] + jnp.arange(examples.window, dtype=starts.dtype)
    return {
        name: jnp.take(values, rows, axis=0, mode="clip")
        for name, values in examples.rows.items()
    }


class ClientData(NamedTuple):
    """One client's examples in a round, and the randomness of its training.

    Attributes:
      examples: the packed rows of all clients.
      first: int32 ``[]``, position of the client's first example.
      num_examples: int32 ``[]``.
      num_steps: int32 ``[]``.
      words: uint32 words that fix the order of its examples.
      train_key: key of its model's randomness.
      attack: what its data attack may know.
      example_key: key of private gradients; None where they are not private.
      origin: int32 ``[]``, the first example to train on among the client's; None for
        its first.
      first_step: int32 ``[]``, where the steps up to ``num_steps`` begin; None for 0.
    """

    examples: Examples
    first: jax.Array
    num_examples: jax.Array
    num_steps: jax.Array
    words: jax.Array
    train_key: Key
    attack: DataAttackContext
    example_key: Key | None = None
    origin: jax.Array | None = None
    first_step: jax.Array | None = None


class ExamplePrivacy(NamedTuple):
    """Numbers of DP-SGD, all traced.

    Attributes:
      clip_norm: float32 ``[]``, bound on the gradient of one example.
      noise_multiplier: float32 ``[]``, standard deviation of the noise over that bound.
    """

    clip_norm: jax.Array
    noise_multiplier: jax.Array


class Visit(NamedTuple):
    """Which examples one local step trains on.

    Attributes:
      index: int32 ``[batch]``, numbers of the client's examples.
      weight: float32 ``[batch]``, 0 for what only fills a short batch up.
    """

    index: jax.Array
    weight: jax.Array


def visit(data: ClientData, step: jax.Array, batch_size: int) -> Visit:
    """Returns the examples of one local step.

    An epoch visits every example once in a fresh random order; its last batch is
    short when the batch size does not divide the number of examples.
    """
    steps_per_epoch = jnp.maximum(-(-data.num_examples // batch_size), 1)
    epoch = step // steps_per_epoch
    start = (step - epoch * steps_per_epoch) * batch_size
    positions = start + jnp.arange(batch_size, dtype=jnp.int32)
    index = permute(data.words, epoch, positions, jnp.maximum(data.num_examples, 1))
    if data.origin is not None:
        index = index + data.origin
    return Visit(index, (positions < data.num_examples).astype(jnp.float32))


def visited_examples(
    num_examples: jax.Array, num_steps: jax.Array, batch_size: int
) -> jax.Array:
    """Returns how often an example is trained on in so many steps, float32.

    Args:
      num_examples: int32, of a client; any shape.
      num_steps: int32, of its local steps; of a shape that goes with it.
      batch_size: examples of a batch.
    """
    per_epoch = jnp.maximum(-(-num_examples // batch_size), 1)
    epochs = num_steps // per_epoch
    rest = jnp.minimum((num_steps - epochs * per_epoch) * batch_size, num_examples)
    return (epochs * num_examples + rest).astype(jnp.float32)


def local_batch(
    data: ClientData, step: jax.Array, visited: Visit, data_attack: DataAttack | None
) -> Batch:
    """Returns the batch of one local step; filler rows carry ``weight`` 0."""
    index = visited.index
    batch = gather(data.examples, data.first + index)
    if data_attack is not None:
        key = jax.random.fold_in(data.attack.key, step)
        poisoned = data_attack.poison(batch, data.attack._replace(key=key, index=index))
        batch = trees.select(data.attack.malicious, poisoned, batch)
    return {**batch, "weight": visited.weight}


def private_gradient(
    loss_fn: LossFn, batch_size: int, microbatch: int, data_attack: DataAttack | None
) -> Callable[..., tuple[Updates, Metrics, jax.Array]]:
    """Returns ``(data, params, step, numbers, law) -> (gradients, sums, examples)``.

    Of these ``numbers`` are an ``ExamplePrivacy``, and ``law`` is that of the examples
    in a batch, ``binomial_law(data.num_examples, batch_size)``: the same in all steps.

    DP-SGD (Abadi et al., 2016, arXiv:1607.00133, Algorithm 1) inside one client: a
    Poisson batch, in which every example lies by itself at rate ``batch_size /
    num_examples``; the gradient of each example clipped; Gaussian noise on their sum;
    the whole divided by the expected batch size, which no example can move.

    Args:
      loss_fn: see ``LossFn``; it is given one example at a time.
      batch_size: expected examples of a batch.
      microbatch: examples that are gone through at a time. A batch of any size takes
        as many parts as it needs: none is cut.
      data_attack: what a malicious client does to its batches; or None.
    """

    def loss_of(params: Params, example: tuple[Batch, Key]):
        batch, key = example
        return loss_fn(params, jax.tree.map(lambda x: x[None], batch), key)

    def visited(data: ClientData, step: jax.Array, part: jax.Array, count: jax.Array):
        positions = part * microbatch + jnp.arange(microbatch, dtype=jnp.int32)
        # The first positions of a random order are a random subset of that size.
        index = permute(data.words, step, positions, jnp.maximum(data.num_examples, 1))
        return Visit(index, (positions < count).astype(jnp.float32))

    def evaluate(
        data: ClientData,
        params: Params,
        step: jax.Array,
        numbers: ExamplePrivacy,
        law: BinomialLaw,
    ):
        assert data.example_key is not None
        word = words(data.example_key, jnp.uint32(0), 2 * step)
        count = draw_count(law, word)
        # At rate 1 every example lies in every batch.
        count = jnp.where(data.num_examples <= batch_size, data.num_examples, count)
        train_key = jax.random.fold_in(data.train_key, step)

        def part_of(part: jax.Array, seen: Visit):
            batch = local_batch(data, step, seen, data_attack)
            batch = {**batch, "weight": jnp.ones_like(seen.weight)}
            numbers_of = part * microbatch + jnp.arange(microbatch)
            keys = jax.vmap(lambda i: jax.random.fold_in(train_key, i))(numbers_of)
            keep = seen.weight > 0
            found = example_gradients(loss_of, params, (batch, keys))
            norms = jnp.sqrt(found.squared_norms)
            factors = numbers.clip_norm / jnp.maximum(norms, numbers.clip_norm)
            factors = jnp.where(keep, factors, 0.0)

            def weighted(params: Params):
                losses, _ = jax.vmap(loss_of, (None, 0))(params, (batch, keys))
                # A filler's factor of 0 must not meet a loss that is not finite.
                return jnp.sum(jnp.where(keep, factors * losses, 0.0))

            if found.held * _MOST_HELD <= trees.num_params(params):
                gradients = found.weighted_sum(factors)
            else:
                # A second pass is cheaper than gradients that must be held.
                gradients = jax.grad(weighted)(params)
            clipped = (norms > numbers.clip_norm).astype(jnp.float32)
            figures = {
                **found.extra,
                "loss": found.values,
                "examples_clipped": clipped,
            }
            return gradients, jax.tree.map(
                lambda x: jnp.sum(jnp.where(keep, x, 0)), figures
            )

        def body(carry):
            part, seen, sums = carry
            new = part_of(part, seen)
            # Made one part ahead, as in ``build_train``.
            ahead = visited(data, step, part + 1, count)
            return part + 1, ahead, trees.add(sums, new)

        first = visited(data, step, jnp.int32(0), count)
        shapes = jax.eval_shape(part_of, jnp.int32(0), first)
        start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        _, _, (gradients, sums) = jax.lax.while_loop(
            lambda carry: carry[0] * microbatch < count,
            body,
            (jnp.int32(0), first, start),
        )
        deviation = numbers.clip_norm * numbers.noise_multiplier
        noise = normal(data.example_key, trees.num_params(params), 2 * step + 1)
        noised = _add_flat(gradients, deviation * noise)
        return trees.scale(noised, 1.0 / batch_size), sums, count.astype(jnp.float32)

    return evaluate


def _add_flat(tree: Updates, numbers: jax.Array) -> Updates:
    """Adds one number after the other to the leaves, in their order."""
    leaves, structure = jax.tree.flatten(tree)
    sums, start = [], 0
    for x in leaves:
        own = numbers[start : start + x.size].reshape(x.shape)
        sums.append(x + own.astype(x.dtype))
        start += x.size
    return structure.unflatten(sums)


def build_train(
    loss_fn: LossFn,
    optimizer: Any,
    batch_size: int,
    data_attack: DataAttack | None,
    *,
    microbatch: int | None = None,
    numbers: ExamplePrivacy | None = None,
) -> Train:
    """Returns ``train(data, params, correction=None) -> (params, metrics)``.

    The loop is a ``while`` to the client's own number of steps: under ``scan`` a small
    client costs its own steps alone, under ``vmap`` a chunk runs to its longest.

    Args:
      loss_fn: the loss of a batch.
      optimizer: the local optimiser.
      batch_size: examples of a batch.
      data_attack: what a malicious client does to its batches; or None.
      microbatch: see ``private_gradient``; None where gradients are not private.
      numbers: of private gradients.
    """
    if microbatch is not None:
        private = private_gradient(loss_fn, batch_size, microbatch, data_attack)
    gradient = jax.value_and_grad(loss_fn, has_aux=True)

    def evaluate(
        data: ClientData, params: Params, step: jax.Array, visited: Visit, law: Any
    ):
        if microbatch is not None:
            return private(data, params, step, numbers, law)
        batch = local_batch(data, step, visited, data_attack)
        key = jax.random.fold_in(data.train_key, step)
        (loss, extra), gradients = gradient(params, batch, key)
        examples = jnp.sum(batch["weight"])
        sums = {name: value * examples for name, value in extra.items()}
        return gradients, {**sums, "loss": loss * examples}, examples

    def train(
        data: ClientData, params: Params, correction: Correction | None = None
    ) -> tuple[Params, Metrics]:
        start = jnp.int32(0) if data.first_step is None else data.first_step
        first = visit(data, start, batch_size)
        law = ()
        if microbatch is not None:
            law = binomial_law(data.num_examples, batch_size)
        _, shapes, _ = jax.eval_shape(evaluate, data, params, jnp.int32(0), first, law)
        sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def body(carry):
            step, visited, params, state, sums, seen = carry
            gradients, new, examples = evaluate(data, params, step, visited, law)
            if correction is not None:
                gradients = correction(gradients, params)
            change, state = optimizer.update(gradients, state, params)
            params = jax.tree.map(lambda p, c: p + c.astype(p.dtype), params, change)
            # Made one step ahead and carried: fused into the gather, XLA would walk the
            # permutation again for every feature, at ten times the cost of the step.
            ahead = visit(data, step + 1, batch_size)
            sums = trees.add(sums, new)
            return step + 1, ahead, params, state, sums, seen + examples

        state = optimizer.init(params)
        carry = (start, first, params, state, sums, jnp.float32(0))
        _, _, params, _, sums, seen = jax.lax.while_loop(
            lambda carry: carry[0] < data.num_steps, body, carry
        )
        return params, trees.scale(sums, 1.0 / jnp.maximum(seen, 1.0))

    return train
