"""Ways in which the embeddings of modalities become one answer.

Cross-attention is that of Vaswani et al. 2017 (arXiv:1706.03762) between modalities, as
in MulT (Tsai et al. 2019, arXiv:1906.00295), but over the modalities of one step in
place of the steps of another modality, so that it is causal and its cost does not grow
with the window.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

Fuse = Literal["gated", "concatenation", "cross_attention", "late"]
KINDS: tuple[Fuse, ...] = ("gated", "concatenation", "cross_attention", "late")

# Instead of infinity, whose differences are not numbers.
_NONE = -1e30


class CrossAttention(nnx.Module):
    """Each modality's token takes what it asks for from the others that are present.

    ``c_m = t_m + O [sum_{n != m, present} w_mn V r_n]`` in each head, with
    ``w_mn = exp(s_mn) / (1 + sum_n exp(s_mn))``, ``s_mn = Q r_m . K r_n / sqrt(width of
    a head)`` and ``r = t`` scaled to a root mean square of 1. The 1 stands for a key
    and a value of zeros: a token may take nothing, and takes nothing where no other
    modality is present. Without it a second modality would always weigh 1.

    Args:
      width: of a token.
      heads: of the attention; must divide the width.
      rngs: where initial weights come from.
    """

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.query = nnx.Linear(width, width, rngs=rngs)
        self.key_value = nnx.Linear(width, 2 * width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, tokens: jax.Array, present: jax.Array) -> jax.Array:
        """Returns ``[..., modalities, width]`` of tokens of that shape.

        Args:
          tokens: of the modalities.
          present: bool ``[..., modalities]``.
        """
        read = unit_scale(tokens)
        query = self._split(self.query(read))
        keys, values = (
            self._split(x) for x in jnp.split(self.key_value(read), 2, axis=-1)
        )
        scores = jnp.einsum("...qhw,...khw->...hqk", query, keys)
        others = present[..., None, :] & ~jnp.eye(tokens.shape[-2], dtype=bool)
        scores = jnp.where(
            others[..., None, :, :], scores * query.shape[-1] ** -0.5, _NONE
        )
        scores = jnp.concatenate([scores, jnp.zeros_like(scores[..., :1])], axis=-1)
        weights = jax.nn.softmax(scores, axis=-1)[..., :-1]
        taken = jnp.einsum("...hqk,...khw->...qhw", weights, values)
        return tokens + self.out(taken.reshape(tokens.shape))

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.heads, -1)


def gate_shares(scores: jax.Array, present: jax.Array) -> jax.Array:
    """Returns the softmax over what is present, float32; 0 where nothing is.

    Args:
      scores: ``[..., modalities]``.
      present: bool, of the same shape.
    """
    masked = jnp.where(present, scores, _NONE).astype(jnp.float32)
    return jax.nn.softmax(masked, axis=-1) * present


def equal_shares(present: jax.Array) -> jax.Array:
    """Returns the same share for each that is present, float32; 0 where nothing is.

    Args:
      present: bool ``[..., modalities]``.
    """
    count = jnp.sum(present, axis=-1, keepdims=True)
    return present.astype(jnp.float32) / jnp.maximum(count, 1)


def unit_scale(x: jax.Array) -> jax.Array:
    """Scales to a root mean square of 1 over the last axis; zeros stay zeros."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
