"""Rounds in a row."""

from collections.abc import Callable

import jax
import numpy as np

from fedjax_health.core.types import Cohort, FederatedAlgorithm, RoundState

OnSegment = Callable[[RoundState, dict[str, np.ndarray]], bool | None]


class NonFiniteLossError(FloatingPointError):
    """Training has diverged; the text names the round and the clients."""


def run_rounds(
    algorithm: FederatedAlgorithm,
    state: RoundState,
    cohort_fn: Callable[[int], Cohort],
    num_rounds: int,
    *,
    on_segment: OnSegment | None = None,
    segment: int | None = None,
) -> tuple[RoundState, dict[str, np.ndarray]]:
    """Runs rounds one after the other.

    The cohort of the next round is prepared while the devices train this one.

    Args:
      algorithm: from ``build_algorithm``.
      state: where to start; donated, so not to be used afterwards.
      cohort_fn: round -> cohort.
      num_rounds: how many rounds to run from here.
      on_segment: called with the state and the segment's metrics (NumPy, ``[rounds]``)
        after every ``segment`` rounds and after the last; True ends the run early. The
        place for evaluation, logging and checkpoints. It must not keep the state.
      segment: rounds between two calls; None for all at once.

    Returns:
      The last state, and all metrics stacked ``[rounds, ...]``, NumPy.

    Raises:
      ValueError: for a negative number of rounds or an empty segment.
      NonFiniteLossError: when a round's loss is not finite. ``on_segment`` is not
        called for that segment, so a checkpoint it wrote before is the last good one.
    """
    if num_rounds < 0:
        raise ValueError(f"num_rounds must be 0 or more, not {num_rounds}")
    segment = max(num_rounds, 1) if segment is None else segment
    if segment < 1:
        raise ValueError(f"segment must be 1 round or more, not {segment}")
    first = int(state.round)
    end = first + num_rounds
    history: list[dict[str, np.ndarray]] = []
    while first < end:
        # Segments end on multiples, so that a resumed run has the same ones.
        last = min(end, (first // segment + 1) * segment)
        pending = []
        for round in range(first, last):
            state, metrics = algorithm.step(state, cohort_fn(round))
            pending.append(metrics)
        rounds = jax.device_get(pending)
        stacked = {name: np.stack([m[name] for m in rounds]) for name in rounds[0]}
        _refuse_non_finite(stacked, first)
        history.append(stacked)
        first = last
        if on_segment is not None and on_segment(state, stacked):
            break
    if not history:
        return state, {}
    names = history[0]
    return state, {n: np.concatenate([part[n] for part in history]) for n in names}


def _refuse_non_finite(metrics: dict[str, np.ndarray], first: int) -> None:
    some = (metrics["num_clients"] > 0) | (metrics["non_finite"] > 0)
    bad = np.flatnonzero(some & ~np.isfinite(metrics["loss"]))
    if not len(bad):
        return
    row = int(bad[0])
    clients = metrics["bad_clients"][row]
    named = ", ".join(str(c) for c in clients[clients >= 0])
    raise NonFiniteLossError(
        f"the training loss of round {first + row + 1} is not finite (clients {named}"
        f"{', ...' if np.all(clients >= 0) else ''}): lower the local learning rate "
        "or clip the updates; the last checkpoint is the last good state"
    )
