"""Worker: the masks of our protocol, beside ``rivals.flower_secagg``.

``client`` is what one client does, all masks of its own; ``round`` is what the
simulation does for all clients, which draws the mask of a pair once.
"""

from __future__ import annotations

import argparse
from importlib import metadata

import numpy as np

from benchmarks import timing


def build(clients: int, size: int):
    from fedjax_health.secagg import graph, masks, protocol

    vectors = np.random.default_rng(0).integers(0, 2**20, (clients, size))
    parties = {u: protocol._make_client(bytes(32), u) for u in range(clients)}
    neighbours = graph.ring(clients, clients - 1, seed=b"")
    ledger = protocol._Ledger()
    public = protocol._advertise(parties, neighbours, None, ledger)
    agreements = protocol._Agreements(parties, public)
    everyone = set(range(clients))
    for u in range(clients):
        for v in neighbours[u]:
            agreements.of(u, v, protocol._MASK)

    def masked(u: int, *, agree: bool):
        made = vectors[u].astype(np.uint32)
        made += masks.expand(parties[u].seed, size)
        for v in neighbours[u]:
            if agree:
                key = masks.agree(parties[u].mask, public[v][32:], protocol._MASK)
            else:
                key = agreements.of(u, v, protocol._MASK)
            mask = masks.expand(key, size)
            if u < v:
                made += mask
            else:
                made -= mask
        return made

    def round_of_masks():
        return protocol._mask(
            vectors,
            parties,
            neighbours,
            everyone,
            everyone,
            agreements,
            32,
            protocol._Ledger(),
        )

    calls = {
        "client": timing.Call(lambda: masked(clients // 2, agree=False)),
        "client with keys": timing.Call(lambda: masked(clients // 2, agree=True)),
        "round": timing.Call(round_of_masks),
    }
    return calls, {name: metadata.version(name) for name in ("cryptography", "numpy")}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clients", type=int)
    parser.add_argument("size", type=int)
    args = parser.parse_args()
    timing.serve(lambda: build(args.clients, args.size))
