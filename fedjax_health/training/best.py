"""The best model so far, by the validation part."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_health.config import Config


class Best(NamedTuple):
    """The best model so far by the validation part.

    Attributes:
      view: what is needed to score with it.
      value: float32 ``[]``, its validation metric.
      round: int32 ``[]``, rounds it had been trained for.
      waited: int32 ``[]``, evaluations since.
    """

    view: Any
    value: jax.Array
    round: jax.Array
    waited: jax.Array


def no_best(view: Any) -> Best:
    """Returns where a run starts: any evaluation is better."""
    return Best(_copy(view), jnp.float32(-jnp.inf), jnp.int32(0), jnp.int32(0))


def better(
    best: Best, view: Any, figures: dict[str, float], done: int, config: Config
) -> Best:
    """Returns the better of the best so far and the model of round ``done``."""
    value = figures[f"validation_{config.evaluation.metric}"]
    # Compared as float32, so that a restored value compares like the one that was.
    if np.float32(value) > np.float32(best.value):
        return Best(_copy(view), jnp.float32(value), jnp.int32(done), jnp.int32(0))
    return best._replace(waited=best.waited + 1)


def out_of_patience(best: Best, config: Config) -> bool:
    """Returns whether there have been too many evaluations without a better one."""
    patience = config.evaluation.patience
    return patience is not None and int(best.waited) >= patience


def _copy(view: Any) -> Any:
    # The state that a view looks into is donated to the next round.
    return jax.tree.map(lambda x: jnp.array(x, copy=True), view)
