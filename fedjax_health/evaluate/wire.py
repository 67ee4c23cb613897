"""What crosses the cut of a split detector, and what can be read back of it.

The trained detector is asked as it was in training, in batches of one client with the
wire's noise and its protection of labels; beside that stands the same cut with a bare
wire. Whoever reads learns from training records and is tried on held-out ones.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from fedjax_health import build, config
from fedjax_health.build.prepared import pack
from fedjax_health.config import Config
from fedjax_health.core.rng import root_key
from fedjax_health.core.types import Batch, Detection, Key, LossFn, Model, Params
from fedjax_health.data.store import ClientStore
from fedjax_health.evaluate.scoring import Weights, weights_of_client
from fedjax_health.metrics import wire as measures
from fedjax_health.models import wire as steps_of
from fedjax_health.models.split import Border

# Examples that the receiver learns from, and that it is tried on.
MOST_KNOWN = 2000
MOST_HELD_OUT = 1000
# Steps of a window that a decoder learns or is tried on.
STEPS_OF_EXAMPLE = 5
# Rows of cotangents that labels are guessed of.
MOST_ROWS = 20_000
# Apart from every other use of a seed.
_STREAM = 103


class Crossed(NamedTuple):
    """What some examples sent.

    Attributes:
      batch: their columns ``[examples, ...]``.
      sent: modality -> what arrived at the server, ``[examples, ...]``.
      bare: the same over a wire without steps.
      cotangents: ``[2, examples, ...]``, sent and bare; None where none go up.
      client: int ``[examples]``.
    """

    batch: dict[str, np.ndarray]
    sent: dict[str, np.ndarray]
    bare: dict[str, np.ndarray]
    cotangents: np.ndarray | None
    client: np.ndarray


def wire_leakage(
    settings: Config,
    prepared: build.Prepared,
    built: build.Built,
    weights: Weights,
    *,
    took_part: Sequence[bool] = (),
    seed: int,
) -> dict[str, Any] | None:
    """Returns what crosses each border of a split detector and what that shows.

    Args:
      settings: the configuration.
      prepared: its data.
      built: what was built from it.
      weights: of the trained detector.
      took_part: see ``weights_of_client``.
      seed: of the samples, the wire's noise and the decoders.

    Returns:
      Names and values, as ``result.json`` has them; None without split learning. A
      figure is None where there are too few records.
    """
    chosen = settings.split_learning
    cut = build.build_cut(settings, prepared)
    if chosen is None or cut is None:
        return None
    rng = np.random.default_rng([seed, _STREAM])
    ask = _asker(settings, prepared, built, weights, took_part, seed)
    training = ask(prepared.store, MOST_KNOWN, rng)
    test = pack(settings, prepared.parts.test, stride=settings.window.length)
    held_out = ask(test, MOST_HELD_OUT, rng)
    columns = {one.name: one.layout for one in cut.readers}
    borders = []
    for border in cut.borders:
        told = _told(border)
        if border.up and border.carries in ("activations", "embedding"):
            told["read"] = {
                name: _inputs_read(
                    columns[border.of],
                    training,
                    held_out,
                    [getattr(part, name)[border.of] for part in (training, held_out)],
                    seed,
                )
                for name in ("sent", "bare")
            }
        if border.up and border.carries.startswith("cotangents"):
            told["read"] = _labels_read(columns[border.of], held_out, seed)
        borders.append(told)
    return {
        "labels": chosen.labels,
        "mode": chosen.mode,
        "client": chosen.client,
        "cut": chosen.cut,
        "modality": cut.cut.name,
        "known": len(training.client),
        "held_out": len(held_out.client),
        "contrast_left_out": _contrasts(settings),
        "borders": borders,
    }


def _told(border: Border) -> dict[str, Any]:
    bits = 32
    for step in border.steps:
        match step:
            case steps_of.Quantise(bits=chosen):
                bits = chosen
            case steps_of.Noise() | steps_of.MaxNorm() | steps_of.Marvell():
                bits = 32
    return {
        "carries": border.carries,
        "of": border.of,
        "up": border.up,
        "numbers": border.numbers,
        "bits": 8 if border.carries == "labels" else bits,
        "bytes": border.num_bytes,
        "steps": [_step(step) for step in border.steps],
    }


def _step(step: steps_of.Step) -> str:
    match step:
        case steps_of.ClipExample(max_norm=norm):
            return f"clipped to norm {norm:g}"
        case steps_of.Noise(multiplier=multiplier):
            return f"noise of {multiplier:g} times the clip"
        case steps_of.Quantise(bits=bits):
            return f"rounded to {bits} bits"
        case steps_of.TopK(keep=keep):
            return f"the largest {100 * keep:g} %"
        case steps_of.DropActivations(rate=rate):
            return f"{100 * rate:g} % dropped at random"
        case steps_of.MaxNorm():
            return "norms evened out (max norm)"
        case steps_of.Marvell(power=power):
            return f"labels hidden (Marvell, power {power:g})"


def _contrasts(settings: Config) -> bool:
    return isinstance(settings.alignment, config.Comm) or isinstance(
        settings.temporal, config.WindowContrast
    )


def _asker(
    settings: Config,
    prepared: build.Prepared,
    built: build.Built,
    weights: Weights,
    took_part: Sequence[bool],
    seed: int,
) -> Callable[[ClientStore, int, np.random.Generator], Crossed]:
    """Returns ``(store, most examples, rng) -> Crossed``."""
    chosen = settings.split_learning
    assert chosen is not None
    without = msgspec.structs.replace(chosen, activations=(), cotangents=())
    bare = build.build_model(
        msgspec.structs.replace(settings, split_learning=without), prepared
    )
    loss_fn = built.loss_fn
    if _contrasts(settings):
        # Their views cross by themselves; what is read here is an example's own.
        alone = msgspec.structs.replace(settings, alignment=None, temporal=None)
        loss_fn = build.build_loss(alone, built.model, prepared)
    cut = build.build_cut(settings, prepared)
    assert cut is not None
    each_step = prepared.window is not None and prepared.parts.train.target == "row"
    width = cut.width if chosen.labels == "client" else None
    run = _compiled(built.model, bare, loss_fn, width, each_step)
    key = jax.random.fold_in(root_key(seed % 2**32), _STREAM)
    population = prepared.store.num_clients
    most_of_client = int(np.diff(prepared.store.offsets).max())
    size = min(settings.local.batch_size, most_of_client)

    def of_client(client: int) -> Params:
        own = client if client < population else -1
        return weights_of_client(weights, own, took_part=took_part)

    def ask(store: ClientStore, most: int, rng: np.random.Generator) -> Crossed:
        found, clients, params, last = [], [], None, None
        for number, (client, index) in enumerate(_batches(store, most, size, rng)):
            if client != last:
                params, last = of_client(client), client
            filled = np.resize(index, size)
            batch = {
                **_gathered(store, filled),
                "weight": (np.arange(size) < len(index)).astype(np.float32),
            }
            own = jax.random.fold_in(jax.random.fold_in(key, most), number)
            answer = (batch, *run(params, batch, own))
            found.append([_first(tree, len(index)) for tree in answer])
            clients += [client] * len(index)
        batch, sent, without, cotangents = jax.tree.map(
            lambda *parts: np.concatenate(parts), *found
        )
        return Crossed(
            batch,
            sent,
            without,
            None if cotangents is None else np.moveaxis(cotangents, 1, 0),
            np.array(clients),
        )

    return ask


def _first(tree: Any, count: int) -> Any:
    return jax.tree.map(lambda x: np.asarray(x)[:count], tree)


def _gathered(store: ClientStore, index: np.ndarray) -> dict[str, np.ndarray]:
    """Returns a batch on the host, so that all stores share one program."""
    rows = index
    if store.window is not None:
        assert store.starts is not None
        rows = store.starts[index][:, None] + np.arange(store.window)
    return {name: np.asarray(values[rows]) for name, values in store.rows.items()}


def _batches(
    store: ClientStore, most: int, size: int, rng: np.random.Generator
) -> list[tuple[int, np.ndarray]]:
    """Returns clients and examples of each of their batches.

    As many of each client as its part of the whole, in full batches; a client with
    fewer gives one batch of what it has.
    """
    counts = np.diff(store.offsets)
    share = min(1.0, most / max(int(counts.sum()), 1))
    found = []
    for client, count in enumerate(counts):
        batches = max(1, int(share * count) // size)
        drawn = store.offsets[client] + rng.permutation(int(count))[: batches * size]
        whole = drawn[: max(len(drawn) // size, 1) * size]
        found += [
            (client, whole[first : first + size])
            for first in range(0, len(whole), size)
        ]
    return found


@functools.lru_cache(maxsize=8)
def _compiled(
    model: Model, bare: Model, loss_fn: LossFn, width: int | None, each_step: bool
) -> Callable[..., Any]:
    def run(params: Params, batch: Batch, key: Key) -> Any:
        shape = (2,)
        if width is not None:
            steps = batch["x"].shape[1:2] if each_step else ()
            shape = (2, *steps, len(batch["x"]), width)
        probe = jnp.zeros(shape)

        def outputs(of: Model) -> dict[str, jax.Array]:
            found = of.apply(params, {**batch, "probe": probe}, key=key)
            assert isinstance(found, Detection)
            assert found.smashed is not None
            return found.smashed

        cotangents = None
        if width is not None:
            cotangents = jax.grad(
                lambda probe: loss_fn(params, {**batch, "probe": probe}, key)[0]
            )(probe)
            # Examples first.
            cotangents = jnp.moveaxis(cotangents, 2 if each_step else 1, 0)
        return outputs(model), outputs(bare), cotangents

    return jax.jit(run)


def _values(layout: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Returns what modalities say, ``[examples, ..., features]``."""
    spans = [batch["x"][..., slice(*columns.values)] for columns in layout]
    return np.concatenate(spans, axis=-1)


def _present(layout: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Returns whether any value was observed (so far), bool ``[examples(, time)]``."""
    shape = batch["x"].shape[:-1]
    seen = np.zeros(shape, bool)
    for columns in layout:
        if columns.observed is None:
            return np.ones(shape, bool)
        seen |= np.any(batch["x"][..., slice(*columns.observed)] > 0, axis=-1)
    return np.logical_or.accumulate(seen, axis=1) if len(shape) == 2 else seen


def _pairs(
    layout: Any, crossed: Crossed, values: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns records, what was sent of each, and the example that each is of.

    Where a message has time steps, a record is a step, sought in its own activations
    and those of the step before.
    """
    inputs = _values(layout, crossed.batch)
    present = _present(layout, crossed.batch)
    if inputs.ndim == 2 or values.ndim == 2:
        whole = present if present.ndim == 1 else present[:, -1]
        rows = np.flatnonzero(whole)
        return inputs[rows], values[rows], rows
    if "valid" in crossed.batch:
        present = present & (crossed.batch["valid"] > 0)
    before = np.concatenate([np.zeros_like(values[:, :1]), values[:, :-1]], axis=1)
    both = np.concatenate([values, before], axis=-1)
    draw = np.where(present, rng.random(present.shape), 2.0)
    steps = np.argsort(draw, axis=1)[:, :STEPS_OF_EXAMPLE]
    example = np.repeat(np.arange(len(steps)), steps.shape[1])
    step = steps.reshape(-1)
    kept = present[example, step]
    example, step = example[kept], step[kept]
    return inputs[example, step], both[example, step], example


def _inputs_read(
    layout: Any,
    training: Crossed,
    held_out: Crossed,
    values: list[np.ndarray],
    seed: int,
) -> dict[str, Any]:
    """Returns how far inputs can be read from what was sent of them."""
    rng = np.random.default_rng([seed, _STREAM, 1])
    found = [
        _pairs(layout, part, sent, rng)
        for part, sent in zip((training, held_out), values, strict=True)
    ]
    count = len(found[0][0])
    inputs, sent = (np.concatenate([part[i] for part in found]) for i in range(2))
    example = np.concatenate(
        [found[0][2], found[1][2] + 1 + found[0][2].max(initial=0)]
    )
    decoded = measures.decoder_inversion(
        inputs, sent, known=np.arange(len(inputs)) < count, groups=example, seed=seed
    )
    inputs, sent = inputs[count:], sent[count:]
    shuffled = np.random.default_rng([seed, _STREAM, 2]).permutation(len(sent))
    return {
        "correlation": _known(measures.input_correlation(inputs, sent, seed=seed)),
        "correlation_by_chance": _known(
            measures.input_correlation(inputs, sent[shuffled], seed=seed)
        ),
        "decoder_error": _known(decoded.error),
        "decoder_error_interval": [_known(end) for end in decoded.interval],
        "records": len(inputs),
    }


def _labels_read(layout: Any, held_out: Crossed, seed: int) -> dict[str, Any]:
    """Returns how far labels can be guessed of the cotangents that go up."""
    assert held_out.cotangents is not None
    present = _present(layout, held_out.batch)
    labels = held_out.batch["label"]
    by_step = held_out.cotangents.ndim == 4
    if not by_step:
        present = present if present.ndim == 1 else present[:, -1]
        labels = labels if labels.ndim == 1 else labels[:, -1]
    elif "valid" in held_out.batch:
        present = present & (held_out.batch["valid"] > 0)
    rows = np.flatnonzero(present)
    rng = np.random.default_rng([seed, _STREAM, 3])
    if len(rows) > MOST_ROWS:
        rows = np.sort(rng.choice(rows, MOST_ROWS, replace=False))
    width = held_out.cotangents.shape[-1]
    labels = labels.reshape(-1)[rows]
    example = rows // present[0].size
    told = {}
    for name, cotangents in zip(("sent", "bare"), held_out.cotangents, strict=True):
        flat = cotangents.reshape(-1, width)[rows]
        leak = measures.label_leak(flat, labels, seed=seed)
        intervals = measures.label_leak_intervals(flat, labels, example, seed=seed)
        told[name] = {
            "norm": _known(leak.norm),
            "norm_interval": [_known(end) for end in intervals[0]],
            "direction": _known(leak.direction),
            "direction_interval": [_known(end) for end in intervals[1]],
            "rows": len(rows),
        }
    return told


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
