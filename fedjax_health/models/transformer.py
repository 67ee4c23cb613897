"""FT-transformer: each feature of a row is a token (Gorishniy et al. 2021).

"Revisiting Deep Learning Models for Tabular Data" (arXiv:2106.11959). Pre-norm blocks,
no LayerNorm before the first attention, ReGLU; what the last block makes of the [CLS]
token is the embedding. A feature that was not observed is a learned token of its own.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_health.core.types import InputLayout, Key
from fedjax_health.models.inputs import Part, num_values

_TOKEN = nnx.initializers.normal(0.1)


class FTTransformer(nnx.Module):
    """The encoder of rows ``[..., features]``.

    The token of feature j is ``x_j w_j + b_j``, plus ``d_j u_j`` where d is the time
    since it was last observed; where it was not observed in a modality that is not
    carried, a learned ``m_j``; in a carried one ``m_j`` is added.

    Args:
      layout: the modalities that it reads.
      width: of a token.
      blocks: attention blocks, 1 or more.
      heads: of an attention; must divide the width.
      dropout: share of attention weights and of feed-forward units dropped while a key
        is given.
      rngs: where initial weights come from.
    """

    def __init__(
        self,
        layout: InputLayout,
        width: int,
        blocks: int,
        heads: int,
        dropout: float,
        *,
        rngs: nnx.Rngs,
    ):
        features = sum(num_values(columns) for columns in layout)
        self.blocks = blocks

        def tokens(rows: int) -> nnx.Param:
            return nnx.Param(_TOKEN(rngs.params(), (rows, width)))

        self.weight, self.bias = tokens(features), tokens(features)
        self.cls = tokens(1)
        if any(columns.observed is not None for columns in layout):
            self.missing = tokens(features)
        if any(columns.elapsed is not None for columns in layout):
            self.elapsed = tokens(features)
        for block in range(blocks):
            layer = _Block(
                width,
                heads,
                dropout,
                first=block == 0,
                last=block == blocks - 1,
                rngs=rngs,
            )
            setattr(self, f"block_{block}", layer)
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(
        self,
        parts: tuple[Part, ...],
        *,
        key: Key | None = None,
        cut: tuple[int, Callable[[jax.Array], jax.Array]] | None = None,
    ) -> jax.Array:
        """Returns ``[..., width]`` of parts ``[..., features]``.

        Args:
          parts: the modalities.
          key: of the dropout.
          cut: blocks before a cut, and what all tokens ``[..., tokens width]`` go
            through there; or None.
        """
        tokens = jnp.concatenate(self._tokens(parts), axis=-2)
        cls = jnp.broadcast_to(self.cls[...], (*tokens.shape[:-2], 1, tokens.shape[-1]))
        tokens = jnp.concatenate([cls, tokens], axis=-2)
        for block in range(self.blocks):
            block_key = None if key is None else jax.random.fold_in(key, block)
            tokens = getattr(self, f"block_{block}")(tokens, key=block_key)
            if cut is not None and cut[0] == block + 1:
                crossed = cut[1](tokens.reshape(*tokens.shape[:-2], -1))
                tokens = crossed.reshape(tokens.shape)
        return self.norm(tokens[..., 0, :])

    def _tokens(self, parts: tuple[Part, ...]) -> list[jax.Array]:
        found, first = [], 0
        for part in parts:
            rows = slice(first, first + part.values.shape[-1])
            first = rows.stop
            token = part.values[..., None] * self.weight[rows] + self.bias[rows]
            if part.elapsed is not None:
                token += part.elapsed[..., None] * self.elapsed[rows]
            if part.observed is not None:
                gone = (part.observed == 0)[..., None]
                kept = token if part.elapsed is not None else 0
                token = jnp.where(gone, kept + self.missing[rows], token)
            found.append(token)
        return found


class _Block(nnx.Module):
    """Attention and a gated feed-forward layer, each with a residual connection.

    The last block follows the [CLS] token alone, as nothing reads the others.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float,
        *,
        first: bool,
        last: bool,
        rngs: nnx.Rngs,
    ):
        self.heads = heads
        self.last = last
        self.attention_norm = None if first else nnx.LayerNorm(width, rngs=rngs)
        self.query = nnx.Linear(width, width, rngs=rngs)
        self.key_value = nnx.Linear(width, 2 * width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.dense_norm = nnx.LayerNorm(width, rngs=rngs)
        self.dense_in = nnx.Linear(width, 4 * width, rngs=rngs)
        self.dense_out = nnx.Linear(2 * width, width, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, tokens: jax.Array, *, key: Key | None = None) -> jax.Array:
        still = key is None
        keys = (None, None) if key is None else jax.random.split(key)
        read = tokens if self.attention_norm is None else self.attention_norm(tokens)
        follow = slice(0, 1) if self.last else slice(None)
        tokens = tokens[..., follow, :]
        query = self._heads(self.query(read[..., follow, :]))
        key_heads, values = (
            self._heads(x) for x in jnp.split(self.key_value(read), 2, axis=-1)
        )
        scores = jnp.einsum("...qhw,...khw->...hqk", query, key_heads)
        weights = jax.nn.softmax(scores * query.shape[-1] ** -0.5, axis=-1)
        weights = self.dropout(weights, deterministic=still, rngs=keys[0])
        found = jnp.einsum("...hqk,...khw->...qhw", weights, values)
        tokens += self.out(found.reshape(*found.shape[:-2], -1))
        gate, value = jnp.split(self.dense_in(self.dense_norm(tokens)), 2, axis=-1)
        hidden = jax.nn.relu(gate) * value
        return tokens + self.dense_out(
            self.dropout(hidden, deterministic=still, rngs=keys[1])
        )

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.heads, -1)
