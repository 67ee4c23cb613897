"""Who shares a mask with whom, and how many must come together to undo one.

Bell, Bonawitz, Gascon, Lepoint and Raykova, "Secure single-server aggregation with
(poly)logarithmic overhead", CCS 2020 (https://eprint.iacr.org/2020/704): a ring of
clients in random order, each joined to its nearest ones, is enough. Degree and
threshold follow from the share of clients that are corrupt and that drop out, with
hypergeometric tails and a union bound over the clients.
"""

import functools
import hashlib
import math

PRIVACY_BITS = 40
CORRECTNESS_BITS = 30
COMPLETE_UP_TO = 100
"""Clients up to which every pair shares a mask unless a degree is given."""


def tail(population: int, marked: int, draws: int, least: int) -> float:
    """Returns the chance that ``least`` or more of the clients drawn are marked.

    Args:
      population: clients, drawn from without replacement.
      marked: of them.
      draws: clients that are drawn.
      least: marked ones among those drawn.
    """
    low = max(least, draws - (population - marked), 0)
    whole = _log_choose(population, draws)
    terms = (
        math.exp(
            _log_choose(marked, i) + _log_choose(population - marked, draws - i) - whole
        )
        for i in range(low, min(marked, draws) + 1)
    )
    return math.fsum(terms)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


@functools.cache
def plan_graph(
    num_clients: int,
    degree: int | None = None,
    *,
    corrupt: float,
    dropout: float,
    privacy_bits: float = PRIVACY_BITS,
    correctness_bits: float = CORRECTNESS_BITS,
    connectivity_bits: float = PRIVACY_BITS,
) -> tuple[int, int]:
    """Returns the degree of a random regular graph and the threshold of its shares.

    For any client, threshold or more corrupt neighbours have a chance below
    ``2**-privacy_bits``, fewer than threshold neighbours that stay one below
    ``2**-correctness_bits``; and clients that are honest and stay fall apart into
    groups, whose sums would show, with a chance below ``2**-connectivity_bits``.

    Args:
      num_clients: of the round.
      degree: neighbours of a client; None takes the fewest that will do.
      corrupt: share of clients that work with the server, below 1.
      dropout: share of clients that drop out, below 1.
      privacy_bits: see above.
      correctness_bits: see above.
      connectivity_bits: see above; 0 asks for nothing.

    Raises:
      ValueError: if no degree will do, or the given one will not; the text says which
        one does.
    """
    num_corrupt = math.floor(corrupt * num_clients)
    num_dropped = math.floor(dropout * num_clients)
    others = num_clients - 1

    def threshold_of(k: int) -> int | None:
        # A ring is cut by two runs of absent clients, each as long as its reach.
        reach = 2 * (k // 2)
        gone = num_corrupt + num_dropped
        cut = math.comb(num_clients, 2) * tail(num_clients, gone, reach, reach)
        if k < others and cut > 2.0**-connectivity_bits:
            return None
        for t in range(2, k + 1):
            if num_clients * tail(others, num_corrupt, k, t) <= 2.0**-privacy_bits:
                late = num_clients * tail(others, num_dropped, k, k - t + 1)
                return t if late <= 2.0**-correctness_bits else None
        return None

    def fits(k: int) -> bool:
        return not (k * num_clients) % 2 or k == others

    asked = range(2, num_clients) if degree is None else [degree]
    for k in asked:
        if not 2 <= k < num_clients or not fits(k):
            raise_even = "an even number" if num_clients % 2 else "a number"
            if degree is not None:
                raise ValueError(
                    f"degree={k} among {num_clients} clients: choose {raise_even} "
                    f"from 2 to {others}"
                )
            continue
        t = threshold_of(k)
        if t is not None:
            return k, t
    said = f"{corrupt:.0%} of clients corrupt and {dropout:.0%} dropping out"
    if degree is None:
        raise ValueError(
            f"no degree keeps {num_clients} clients private with {said}: expect fewer "
            "corrupt clients or drop-outs, or draw more clients"
        )
    least, _ = plan_graph(
        num_clients,
        corrupt=corrupt,
        dropout=dropout,
        privacy_bits=privacy_bits,
        correctness_bits=correctness_bits,
        connectivity_bits=connectivity_bits,
    )
    raise ValueError(
        f"degree={degree} does not keep {num_clients} clients private and the sum "
        f"recoverable with {said}: use {least} or more"
    )


def ring(num_clients: int, degree: int, *, seed: bytes) -> list[tuple[int, ...]]:
    """Returns the neighbours of each client: a Harary graph in random order.

    Args:
      num_clients: of the round.
      degree: neighbours of each; ``num_clients - 1`` is the complete graph.
      seed: from which the order is drawn.
    """
    everyone = range(num_clients)
    if degree >= num_clients - 1:
        return [tuple(v for v in everyone if v != u) for u in everyone]
    order = sorted(
        everyone, key=lambda i: hashlib.sha256(seed + i.to_bytes(4, "big")).digest()
    )
    steps = [*range(1, degree // 2 + 1)]
    steps += [-s for s in steps]
    if degree % 2:
        steps.append(num_clients // 2)
    found: list[tuple[int, ...]] = [()] * num_clients
    for place, client in enumerate(order):
        found[client] = tuple(sorted(order[(place + s) % num_clients] for s in steps))
    return found
