"""Stacked messages as trees, and the oracles' view of them as a matrix."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_health import attacks
from fedjax_health.core.rng import root_key
from fedjax_health.core.types import AttackContext

N, D = 8, 10
MALICIOUS = np.array([False, True, False, False, True, False, False, False])
MASK = np.array([True, True, True, True, True, True, True, False])
WEIGHTS = np.array([3, 1, 4, 1, 5, 2, 6, 0], np.float32)
IDS = np.array([11, 40, 2, 7, 23, 5, 31, 99], np.int32)
HONEST = ~MALICIOUS & MASK


def messages(seed=0, n=N, d=D, offset=0.3):
    rng = np.random.default_rng(seed)
    return (offset + rng.normal(size=(n, d))).astype(np.float32)


def tree(x):
    """``[..., D]`` as leaves of several shapes."""
    x = jnp.asarray(x)
    lead = x.shape[:-1]
    return {"w": x[..., :6].reshape(*lead, 2, 3), "b": [x[..., 6:9], x[..., 9]]}


def matrix(stacked):
    leaves = [stacked["w"], *stacked["b"]]
    n = leaves[0].shape[0]
    return np.concatenate([np.asarray(x).reshape(n, -1) for x in leaves], axis=1)


def vector(message):
    return matrix(jax.tree.map(lambda x: x[None], message))[0]


def forbidden(stacked, key):
    raise AssertionError("this attack does not know the defence")


def context(
    *,
    mask=MASK,
    weights=WEIGHTS,
    ids=IDS,
    round=0,
    previous=None,
    defence=forbidden,
    seed=0,
):
    previous = np.zeros(D, np.float32) if previous is None else previous
    return AttackContext(
        key=jax.random.fold_in(root_key(seed), round),
        round=jnp.int32(round),
        params=tree(np.zeros(D, np.float32)),
        previous_aggregate=tree(previous),
        defence=defence,
        client_ids=jnp.asarray(ids),
        client_keys=jax.vmap(lambda i: jax.random.fold_in(root_key(seed), i))(
            jnp.asarray(ids)
        ),
        mask=jnp.asarray(mask),
        weights=jnp.asarray(weights),
    )


def forge(attack, x, malicious=MALICIOUS, *, state=None, jit=True, **known):
    """Returns the forged rows ``[n, d]`` and the new state."""
    state = attack.init(tree(np.zeros(D, np.float32))) if state is None else state
    run = jax.jit(attack.forge) if jit else attack.forge
    # A defence is a function here, and so no argument of a jitted one.
    if "defence" in known:

        def run(*arguments):
            return jax.jit(
                lambda stacked, flags, held: attack.forge(
                    stacked, flags, held, context(**known)
                )
            )(*arguments[:3])

        forged, state = run(tree(x), jnp.asarray(malicious), state)
        return matrix(forged), state
    seen = context(**known)._replace(defence=None)
    forged, state = run(tree(x), jnp.asarray(malicious), state, seen)
    return matrix(forged), state


# One of every kind and variant: whose rows change what it sends, and whether the
# previous aggregate does.
KNOWS = {
    "sign_flip": (attacks.sign_flip(scale=1.5), "honest"),
    "sign_flip own": (attacks.sign_flip(of="own"), "own"),
    "sign_flip colluders": (attacks.sign_flip(knowledge="colluders"), "colluders"),
    "ipm": (attacks.ipm(scale=0.5), "honest"),
    "ipm colluders": (attacks.ipm(knowledge="colluders"), "colluders"),
    "alie": (attacks.alie(z=1.5), "honest"),
    "alie of the paper": (attacks.alie(sign=-1), "honest"),
    "alie colluders": (attacks.alie(knowledge="colluders"), "colluders"),
    "mimic": (attacks.mimic(warmup=2), "honest"),
    "min_max": (attacks.min_max(), "honest"),
    "min_max std": (attacks.min_max(deviation="std"), "honest"),
    "min_sum sign": (attacks.min_sum(deviation="sign"), "honest"),
    "min_sum colluders": (attacks.min_sum(knowledge="colluders"), "colluders"),
    "fang krum": (attacks.fang(), "honest"),
    "fang trimmed_mean": (attacks.fang(form="trimmed_mean"), "honest"),
    "fang partial": (
        attacks.fang(form="trimmed_mean", knowledge="colluders"),
        "colluders",
    ),
    "gaussian": (attacks.gaussian(), "honest"),
    "gaussian zero": (attacks.gaussian(center="zero"), "nothing"),
    "gaussian own": (attacks.gaussian(center="own", std=0.1), "own"),
    "nonfinite": (attacks.nonfinite(), "nothing"),
    "free_rider": (attacks.free_rider(noise=0.1), "nothing"),
    "sybil": (attacks.sybil(scale=2.0, jitter=0.1), "colluders"),
    "model_replacement": (attacks.model_replacement(max_norm=50.0), "own"),
    "neurotoxin": (attacks.neurotoxin(masked=0.3, scale=1.5), "own"),
    "during": (attacks.during(attacks.ipm(), end=5), "honest"),
}
