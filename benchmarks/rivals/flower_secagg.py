"""Worker: the mask code of Flower's SecAgg+ client, as its own mod runs it.

Runs in the environment "flower". A client of Flower agrees on a key with each
neighbour (ECDH on P-384, HKDF), draws a mask from it with ``pseudo_rand_gen`` (NumPy's
Mersenne Twister, seeded with 32 bits), adds or subtracts it, and reduces once. Every
client does so for itself: a pair's mask is drawn at both ends.
"""

from __future__ import annotations

import argparse
from importlib import metadata

from benchmarks import timing

MOD_RANGE = 2**32


def build(clients: int, size: int):
    import numpy as np
    from flwr.common.secure_aggregation.crypto.symmetric_encryption import (
        generate_shared_key,
    )
    from flwr.common.secure_aggregation.ndarrays_arithmetic import (
        parameters_addition,
        parameters_mod,
        parameters_subtraction,
    )
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
    from flwr.supercore.primitives.asymmetric import generate_key_pairs

    vectors = np.random.default_rng(0).integers(0, 2**20, (clients, size))
    pairs = [generate_key_pairs() for _ in range(clients)]
    keys = [generate_shared_key(pairs[0][0], public) for _, public in pairs[1:]] or [
        b""
    ]

    def masked(u: int, *, agree: bool):
        """What client u sends; the keys it has with others are those of client 0."""
        made = [vectors[u]]
        made = parameters_addition(
            made, pseudo_rand_gen(bytes([u % 256]) * 32, MOD_RANGE, [(size,)])
        )
        for place, v in enumerate(v for v in range(clients) if v != u):
            key = keys[place]
            if agree:
                key = generate_shared_key(pairs[u][0], pairs[v][1])
            mask = pseudo_rand_gen(key, MOD_RANGE, [(size,)])
            combine = parameters_addition if u > v else parameters_subtraction
            made = combine(made, mask)
        return parameters_mod(made, MOD_RANGE)

    def round_of_masks():
        return [masked(u, agree=False) for u in range(clients)]

    calls = {
        "client": timing.Call(lambda: masked(clients // 2, agree=False)),
        "client with keys": timing.Call(lambda: masked(clients // 2, agree=True)),
        "round": timing.Call(round_of_masks),
    }
    return calls, {name: metadata.version(name) for name in ("flwr", "numpy")}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clients", type=int)
    parser.add_argument("size", type=int)
    args = parser.parse_args()
    timing.serve(lambda: build(args.clients, args.size))
