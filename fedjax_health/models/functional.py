"""The one join between flax nnx modules and the pure functions of a ``Model``."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from fedjax_health.core.types import Batch, Key, Model, Outputs, Params


def build_model(build: Callable[[nnx.Rngs], nnx.Module]) -> Model:
    """Returns a module as two pure functions.

    Compiled programs are kept by function identity: a constructor that wants equal
    settings to share them caches the model on those settings.

    Args:
      build: ``rngs -> module``. The module is called as ``module(batch, key=key)``; its
        dropout is built without rngs and takes that key, or is switched off by None.

    Returns:
      The model; its parameters are nested dicts of arrays with string keys.

    Raises:
      ValueError: if the module keeps variables other than parameters, such as the
        running statistics of BatchNorm.
    """
    abstract = nnx.eval_shape(lambda: build(nnx.Rngs(jax.random.key(0))))
    structure, _, others = nnx.split(abstract, nnx.Param, ...)
    refused = sorted(
        ".".join(str(part) for part in path) for path, _ in nnx.to_flat_state(others)
    )
    if refused:
        raise ValueError(
            f"{type(abstract).__name__} keeps mutable state in {', '.join(refused)}: "
            "use LayerNorm or GroupNorm for BatchNorm, and build Dropout without rngs"
        )

    def init(key: Key) -> Params:
        module = build(nnx.Rngs(key))
        return _with_string_keys(nnx.to_pure_dict(nnx.state(module, nnx.Param)))

    def apply(params: Params, batch: Batch, *, key: Key | None = None) -> Outputs:
        module: Any = nnx.merge(structure, params)
        return module(batch, key=key)

    return Model(init, apply)


def _with_string_keys(tree: Any) -> Any:
    """Returns nested dicts whose keys are text, also those of list items."""
    if isinstance(tree, dict):
        return {str(name): _with_string_keys(part) for name, part in tree.items()}
    return tree
