"""GRU-D: a recurrent encoder whose missing values decay (Che et al. 2018).

"Recurrent Neural Networks for Multivariate Time Series with Missing Values"
(arXiv:1606.01865). A value that was last observed a while ago is worth less the longer
ago that was: it decays to the mean, 0 after scaling, and with ``hidden_decay`` the
state does, too. This variant measures time as log(1 + steps), which is what the input
holds, and runs on the recurrent kernel with the hand-written gradient.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_health.core.types import InputLayout
from fedjax_health.models.inputs import Part, num_inputs, num_values
from fedjax_health.models.streams import GRU


class GRUD(nnx.Module):
    """The encoder.

    With m the flag, x the last observed value and d the time since then, the layer
    reads ``(m + (1 - m) exp(-relu(w d + b))) x``, m and d. With ``hidden_decay`` the
    state before each step is multiplied by ``exp(-relu(d W + c))``. Modalities that are
    not carried are read as they are. ``w`` and ``W`` start at 0 and ``b`` and ``c`` at
    a little above 0, where the gradient is not: nearly no decay.

    Args:
      layout: the modalities that it reads.
      hidden: recurrent units.
      hidden_decay: whether the state decays as well.
      rngs: where initial weights come from.

    Raises:
      ValueError: if no modality is carried.
    """

    def __init__(
        self, layout: InputLayout, hidden: int, hidden_decay: bool, *, rngs: nnx.Rngs
    ):
        carried = [columns for columns in layout if columns.elapsed is not None]
        if not carried:
            raise ValueError(
                f"grud: modality {layout[0].name!r} does not tell the time since its "
                "last observation: declare it carried, or use a gru"
            )
        self.hidden_decay = hidden_decay
        for columns in carried:
            width = num_values(columns)
            setattr(self, f"decay_{columns.name}", nnx.Param(jnp.zeros(width)))
            setattr(self, f"onset_{columns.name}", nnx.Param(jnp.full(width, _START)))
        self.names = tuple(
            None if columns.elapsed is None else columns.name for columns in layout
        )
        self.recurrent = GRU(num_inputs(layout), hidden, rngs=rngs)
        if hidden_decay:
            width = sum(num_values(columns) for columns in carried)
            zeros = nnx.initializers.zeros_init()
            start = nnx.initializers.constant(_START)
            self.state_decay = nnx.Linear(
                width, hidden, kernel_init=zeros, bias_init=start, rngs=rngs
            )

    def __call__(self, parts: tuple[Part, ...]) -> jax.Array:
        """Returns states ``[time, examples, hidden]``."""
        inputs, elapsed = [], []
        for name, part in zip(self.names, parts, strict=True):
            values = part.values
            if name is not None:
                assert part.observed is not None
                assert part.elapsed is not None
                rate = getattr(self, f"decay_{name}")[...] * part.elapsed
                factor = _decay(rate + getattr(self, f"onset_{name}")[...])
                seen = part.observed
                values = (seen + (1 - seen) * factor) * values
                elapsed.append(part.elapsed)
            inputs += [values, *(a for a in part[1:3] if a is not None)]
        decay = None
        if self.hidden_decay:
            decay = _decay(self.state_decay(jnp.concatenate(elapsed, axis=-1)))
        return self.recurrent(jnp.concatenate(inputs, axis=-1), decay=decay)


_START = 0.01


def _decay(rate: jax.Array) -> jax.Array:
    return jnp.exp(-jax.nn.relu(rate))
