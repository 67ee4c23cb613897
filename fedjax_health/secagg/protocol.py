"""The protocol itself: a sum of integers that shows the server nothing else.

Bonawitz et al., "Practical secure aggregation for privacy-preserving machine
learning", CCS 2017 (https://eprint.iacr.org/2017/281), on the complete graph or on the
ring of Bell et al., CCS 2020 (https://eprint.iacr.org/2020/704), for a server that is
curious and keeps to the protocol. Four phases:

1. *advertise keys*: every client has two X25519 key pairs, one to seal what it sends to
   a neighbour through the server, one to agree on masks.
2. *share keys*: every client shares its mask key and the seed of its own mask among
   its neighbours and itself (Shamir), sealed with ChaCha20-Poly1305; both ends' keys of
   both kinds are authenticated with them, so a key that was changed on the way is
   found.
3. *masked input*: every client sends its integers plus its own mask, plus the mask that
   it has with each later neighbour, minus that with each earlier one.
4. *unmasking*: for every client whose input arrived, neighbours release the shares of
   its seed; for every other one, those of its mask key; never both.

All is computed here, on one machine, by parties that are kept apart in their data. It
is a simulation in two respects: every client's randomness is derived from one key that
is given, so that a run can be repeated, and what two clients compute alike (their
agreed keys, the expansion of their mask) is computed once.
"""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fedjax_health.secagg import graph, masks, shamir

PHASES = ("advertise_keys", "share_keys", "masked_input", "unmasking")

ID_BYTES = 4
_SEAL = b"fedjax_health secagg seal"
_MASK = b"fedjax_health secagg mask"
_SHARE = shamir.SHARE_BYTES

# (phase, sender, receiver or owner, what is sent) -> what arrives
Tamper = Callable[[str, int, int, bytes], bytes]


class ProtocolError(RuntimeError):
    """A message that was changed on the way, or must not be sent; names the client."""


class Transcript(NamedTuple):
    """What came of a round of the protocol.

    Attributes:
      total: int32 ``[size]``, the sum of the inputs that arrived, modulo
        ``2**modulus_bits`` and centred; None where it is not released.
      released: whether it is.
      reason: why it is not, in words; "" where it is.
      survivors: ids of the clients whose input arrived.
      degree: neighbours of a client.
      threshold: shares that give a secret back.
      messages: phase -> messages of clients to the server.
      bytes_up: phase -> bytes that clients sent.
      bytes_down: phase -> bytes that the server sent.
      seconds: phase -> time of all parties together; not the same twice, therefore in
        no metrics.
      masked: uint32 ``[clients, size]``, the inputs as the server saw them; zeros where
        none arrived.
    """

    total: np.ndarray | None
    released: bool
    reason: str
    survivors: tuple[int, ...]
    degree: int
    threshold: int
    messages: dict[str, int]
    bytes_up: dict[str, int]
    bytes_down: dict[str, int]
    seconds: dict[str, float]
    masked: np.ndarray


@dataclasses.dataclass
class Client:
    """What one client knows.

    Attributes:
      name: its id, for messages to the user.
      channel: key that seals shares.
      mask: key that masks are agreed with.
      mask_secret: the bytes of ``mask``, which are shared.
      seed: of its own mask.
      stream: makes the random coefficients of its shares.
      seen: neighbour -> its two public keys as they arrived, 64 bytes.
      held: owner -> the shares of its mask key and of its seed.
      released: owner -> which of the two was released.
    """

    name: int
    channel: X25519PrivateKey
    mask: X25519PrivateKey
    mask_secret: bytes
    seed: bytes
    stream: bytes
    seen: dict[int, bytes] = dataclasses.field(default_factory=dict)
    held: dict[int, tuple[int, int]] = dataclasses.field(default_factory=dict)
    released: dict[int, str] = dataclasses.field(default_factory=dict)

    def release(self, owner: int, kind: str) -> int:
        """Returns a share that it holds, of one kind for one owner for ever.

        Args:
          owner: position of the client whose secret it is.
          kind: "key" for the mask key, "seed" for the seed of the own mask.

        Raises:
          ProtocolError: if the other kind was released before: with both, the server
            would read the owner's input.
        """
        if self.released.setdefault(owner, kind) != kind:
            raise ProtocolError(
                f"client {self.name} was asked for both the key share and the "
                "self-mask share of one client, which together unmask its input: the "
                "round is aborted"
            )
        return self.held[owner][0 if kind == "key" else 1]


def _make_client(root: bytes, name: int) -> Client:
    own = masks.derive(root, b"client %d" % name)
    mask_secret = masks.derive(own, b"mask key")
    return Client(
        name=name,
        channel=X25519PrivateKey.from_private_bytes(masks.derive(own, b"channel key")),
        mask=X25519PrivateKey.from_private_bytes(mask_secret),
        mask_secret=mask_secret,
        seed=masks.derive(own, b"self mask"),
        stream=masks.derive(own, b"shares"),
    )


class _TooFewError(Exception):
    """Too few clients are left; the text says of what."""


class _Ledger:
    """Counts messages, bytes and seconds of the phases."""

    def __init__(self):
        self.messages: dict[str, int] = dict.fromkeys(PHASES, 0)
        self.up: dict[str, int] = dict.fromkeys(PHASES, 0)
        self.down: dict[str, int] = dict.fromkeys(PHASES, 0)
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._since = time.perf_counter()

    def sent(self, phase: str, messages: int, up: int, down: int) -> None:
        self.messages[phase] += messages
        self.up[phase] += up
        self.down[phase] += down

    def done(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] += now - self._since
        self._since = now


def run_protocol(
    vectors: np.ndarray,
    key: int | np.ndarray | bytes,
    *,
    modulus_bits: int = 32,
    threshold: int | None = None,
    degree: int | None = None,
    corrupt: float = 0.1,
    dropout: float = 0.1,
    min_messages: int = 1,
    drop_out: Mapping[str, Collection[int]] | None = None,
    client_ids: Sequence[int] | None = None,
    tamper: Tamper | None = None,
) -> Transcript:
    """Sums the clients' integers without showing any of them to the server.

    Formal guarantees: against a server that keeps to the protocol and fewer than
    ``threshold`` clients (of the neighbours of any one) that tell it all they know, it
    learns the sum over the clients whose input arrived and who they are, if the
    randomness is secret. Here it is derived from ``key``: a simulation protects nobody.

    Args:
      vectors: integers ``[clients, size]``, taken modulo ``2**modulus_bits``.
      key: a non-negative int, bytes, or an array of words, from which all randomness is
        derived.
      modulus_bits: of the sum, 1 to 32.
      threshold: shares that give a secret back; None takes more than half of the
        clients on the complete graph, and what the rates ask for on any other.
      degree: neighbours of a client; None joins every pair up to 100 clients, and
        beyond that takes the least that the rates ask for.
      corrupt: share of clients that work with the server.
      dropout: share of clients that drop out.
      min_messages: fewest inputs whose sum is released.
      drop_out: phase -> positions of the clients that leave before it.
      client_ids: for what is said about clients; None numbers them.
      tamper: ``(phase, sender, receiver, payload) -> payload``, what is changed on the
        way, for tests. Payloads are a client's public keys, sealed shares, and (with
        the owner for the receiver) released shares.

    Returns:
      The sum, unless too few clients were left; and what it took.

    Raises:
      ValueError: for arguments that do not fit one another.
      ProtocolError: if a key or share was changed on the way.
    """
    vectors, root, names = _checked(vectors, key, modulus_bits, client_ids)
    n, size = vectors.shape
    degree, threshold = _graph(n, degree, threshold, corrupt, dropout)
    leaving = _leaving(drop_out, n)
    neighbours = graph.ring(n, degree, seed=masks.derive(root, b"graph"))
    ledger = _Ledger()
    masked = np.zeros((n, size), np.uint32)
    arrived: set[int] = set()
    total, reason = None, ""
    try:
        alive = set(range(n)) - leaving["advertise_keys"]
        clients = {u: _make_client(root, names[u]) for u in sorted(alive)}
        public = _advertise(clients, neighbours, tamper, ledger)

        sharing = alive - leaving["share_keys"]
        _enough(sharing, threshold, "shared their keys")
        agreements = _Agreements(clients, public)
        commitments = _share(
            clients, public, neighbours, sharing, threshold, agreements, tamper, ledger
        )

        arrived = sharing - leaving["masked_input"]
        masked = _mask(
            vectors,
            clients,
            neighbours,
            sharing,
            arrived,
            agreements,
            modulus_bits,
            ledger,
        )

        helping = arrived - leaving["unmasking"]
        _enough(arrived, min_messages, "sent their input")
        _enough(helping, threshold, "stayed to unmask the sum")
        total = _unmask(
            masked,
            clients,
            public,
            commitments,
            neighbours,
            (sharing, arrived, helping),
            threshold,
            tamper,
            ledger,
        )
        total = _centred(total, modulus_bits)
    except _TooFewError as error:
        reason = str(error)
    return Transcript(
        total=total,
        released=total is not None,
        reason=reason,
        survivors=tuple(names[u] for u in sorted(arrived)),
        degree=degree,
        threshold=threshold,
        messages=ledger.messages,
        bytes_up=ledger.up,
        bytes_down=ledger.down,
        seconds=ledger.seconds,
        masked=masked,
    )


def _checked(
    vectors: Any, key: Any, modulus_bits: int, client_ids: Sequence[int] | None
) -> tuple[np.ndarray, bytes, list[int]]:
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.integer):
        raise ValueError(
            f"vectors must be integers [clients, size], not {vectors.dtype} "
            f"{list(vectors.shape)}: encode them first"
        )
    if len(vectors) < 2:
        raise ValueError(
            f"the sum of {len(vectors)} clients hides nothing: bring 2 or more"
        )
    if not 1 <= modulus_bits <= 32:
        raise ValueError(f"modulus_bits={modulus_bits}: choose 1 to 32")
    names = [
        int(i) for i in (range(len(vectors)) if client_ids is None else client_ids)
    ]
    if len(names) != len(vectors) or len(set(names)) < len(names):
        raise ValueError(
            f"client_ids must be {len(vectors)} distinct ids, not {len(names)} of "
            f"which {len(set(names))} differ"
        )
    if isinstance(key, int):
        if key < 0:
            raise ValueError(f"key must not be negative, it is {key}")
        secret = key.to_bytes(max(1, (key.bit_length() + 7) // 8), "big")
    else:
        secret = key if isinstance(key, bytes) else np.asarray(key).tobytes()
    return vectors, masks.derive(secret, b"fedjax_health secagg"), names


def _graph(
    n: int, degree: int | None, threshold: int | None, corrupt: float, dropout: float
) -> tuple[int, int]:
    """Returns the degree and the threshold of a round of n clients."""
    if degree is None and n <= graph.COMPLETE_UP_TO:
        degree = n - 1
    if degree is None or degree != n - 1:
        degree, planned = graph.plan_graph(n, degree, corrupt=corrupt, dropout=dropout)
    else:
        planned = n // 2 + 1
    threshold = planned if threshold is None else threshold
    if not 2 <= threshold <= degree + 1:
        raise ValueError(
            f"threshold={threshold}: a secret is shared among {degree + 1} clients; "
            f"choose 2 to {degree + 1}"
        )
    return degree, threshold


def _leaving(
    drop_out: Mapping[str, Collection[int]] | None, n: int
) -> dict[str, set[int]]:
    given = {} if drop_out is None else drop_out
    for phase, who in given.items():
        if phase not in PHASES:
            raise ValueError(f"drop_out: no phase {phase!r}: {', '.join(PHASES)}")
        if any(not 0 <= u < n for u in who):
            raise ValueError(f"drop_out[{phase!r}]: positions lie in [0, {n})")
    return {phase: set(given.get(phase, ())) for phase in PHASES}


def _enough(clients: Collection[int], least: int, did: str) -> None:
    if len(clients) < least:
        raise _TooFewError(f"{len(clients)} clients {did}, and {least} are needed")


def _send(
    tamper: Tamper | None, phase: str, sender: int, to: int, data: bytes
) -> bytes:
    return data if tamper is None else tamper(phase, sender, to, data)


def _advertise(
    clients: dict[int, Client],
    neighbours: list[tuple[int, ...]],
    tamper: Tamper | None,
    ledger: _Ledger,
) -> dict[int, bytes]:
    """Phase 1; returns the public keys of each client, 64 bytes."""
    public = {
        u: masks.public_of(c.channel) + masks.public_of(c.mask)
        for u, c in clients.items()
    }
    for u, keys in public.items():
        known = [v for v in neighbours[u] if v in clients]
        for v in known:
            clients[v].seen[u] = _send(tamper, "advertise_keys", u, v, keys)
        ledger.sent("advertise_keys", 1, len(keys), len(known) * (ID_BYTES + len(keys)))
    ledger.done("advertise_keys")
    return public


class _Agreements:
    """The keys that two clients have in common.

    Where both know each other's true keys, both come to the same one, and it is
    computed once.
    """

    def __init__(self, clients: dict[int, Client], public: dict[int, bytes]):
        self._clients = clients
        self._public = public
        self._known: dict[tuple[int, int, bytes], bytes] = {}

    def of(self, u: int, v: int, purpose: bytes) -> bytes:
        """Returns the key that client u has with client v.

        Raises:
          ProtocolError: if what arrived as v's key is no key.
        """
        pair = (min(u, v), max(u, v), purpose)
        client = self._clients[u]
        if client.seen[v] == self._public[v] and pair in self._known:
            return self._known[pair]
        seen = client.seen[v]
        sealing = purpose == _SEAL
        try:
            made = masks.agree(
                client.channel if sealing else client.mask,
                seen[:32] if sealing else seen[32:],
                purpose,
            )
        except ValueError as error:
            raise ProtocolError(
                f"client {client.name}: the public key that came from client "
                f"{self._clients[v].name} is not a valid one: it was changed on the way"
            ) from error
        if seen == self._public[v]:
            self._known[pair] = made
        return made


def _share(
    clients: dict[int, Client],
    public: dict[int, bytes],
    neighbours: list[tuple[int, ...]],
    sharing: set[int],
    threshold: int,
    agreements: _Agreements,
    tamper: Tamper | None,
    ledger: _Ledger,
) -> dict[int, bytes]:
    """Phase 2; returns the commitment of each client to the seed of its own mask."""
    phase = "share_keys"
    commitments = {}
    for u in sorted(sharing):
        client = clients[u]
        holders = _holders(u, neighbours)
        secrets = [int.from_bytes(x, "big") for x in (client.mask_secret, client.seed)]
        needed = 2 * (threshold - 1) * _SHARE
        stream = bytes(masks.key_stream(client.stream, needed))
        shares = shamir.share(secrets, threshold, len(holders), stream=stream)
        commitments[u] = hashlib.sha256(client.seed).digest()
        sealed_bytes = 0
        for v, (of_key, of_seed) in zip(holders, shares, strict=True):
            if v == u:
                client.held[u] = (of_key, of_seed)
            elif v in sharing:
                nonce, context = _sealing(u, v, public[u], client.seen[v])
                plain = of_key.to_bytes(_SHARE, "big") + of_seed.to_bytes(_SHARE, "big")
                seal = ChaCha20Poly1305(agreements.of(u, v, _SEAL))
                sealed = seal.encrypt(nonce, plain, context)
                sealed_bytes += ID_BYTES + len(sealed)
                _receive(
                    clients,
                    (u, v),
                    _send(tamper, phase, u, v, sealed),
                    _sealing(u, v, clients[v].seen[u], public[v]),
                    agreements.of(v, u, _SEAL),
                )
        ledger.sent(phase, 1, len(commitments[u]) + sealed_bytes, sealed_bytes)
    ledger.done(phase)
    return commitments


def _holders(owner: int, neighbours: list[tuple[int, ...]]) -> list[int]:
    """Returns who holds shares of a client's secrets, itself included, in order."""
    return sorted((*neighbours[owner], owner))


def _sealing(u: int, v: int, keys_u: bytes, keys_v: bytes) -> tuple[bytes, bytes]:
    """Returns nonce and authenticated context of what u sends to v.

    A pair's key seals one message in each direction, which the nonce tells apart.
    """
    ends = u.to_bytes(ID_BYTES, "big") + v.to_bytes(ID_BYTES, "big")
    return ends + bytes(4), ends + keys_u + keys_v


def _receive(
    clients: dict[int, Client],
    ends: tuple[int, int],
    sealed: bytes,
    sealing: tuple[bytes, bytes],
    key: bytes,
) -> None:
    """Opens what client u shared with client v, who keeps it."""
    u, v = ends
    nonce, context = sealing
    try:
        plain = ChaCha20Poly1305(key).decrypt(nonce, sealed, context)
    except InvalidTag as error:
        raise ProtocolError(
            f"client {clients[v].name}: the share that came from client "
            f"{clients[u].name} does not open: it, or a public key of one of the two, "
            "was changed on the way"
        ) from error
    clients[v].held[u] = (
        int.from_bytes(plain[:_SHARE], "big"),
        int.from_bytes(plain[_SHARE:], "big"),
    )


def _mask(
    vectors: np.ndarray,
    clients: dict[int, Client],
    neighbours: list[tuple[int, ...]],
    sharing: set[int],
    arrived: set[int],
    agreements: _Agreements,
    modulus_bits: int,
    ledger: _Ledger,
) -> np.ndarray:
    """Phase 3; returns what the server sees, uint32 ``[clients, size]``."""
    n, size = vectors.shape
    masked = np.zeros((n, size), np.uint32)
    for u in sorted(arrived):
        np.add(
            vectors[u].astype(np.int64).astype(np.uint32),
            masks.expand(clients[u].seed, size),
            out=masked[u],
        )
    for u in sorted(sharing):
        for v in neighbours[u]:
            if v > u and v in sharing and (u in arrived or v in arrived):
                mask = masks.expand(agreements.of(u, v, _MASK), size)
                if u in arrived:
                    masked[u] += mask
                if v in arrived:
                    masked[v] -= mask
    if modulus_bits < 32:
        masked &= np.uint32(2**modulus_bits - 1)
    sent = len(arrived) * -(-size * modulus_bits // 8)
    ledger.sent("masked_input", len(arrived), sent, 0)
    ledger.done("masked_input")
    return masked


def _unmask(
    masked: np.ndarray,
    clients: dict[int, Client],
    public: dict[int, bytes],
    commitments: dict[int, bytes],
    neighbours: list[tuple[int, ...]],
    present: tuple[set[int], set[int], set[int]],
    threshold: int,
    tamper: Tamper | None,
    ledger: _Ledger,
) -> np.ndarray:
    """Phase 4; returns the sum of the inputs that arrived, uint32 ``[size]``."""
    sharing, arrived, helping = present
    phase = "unmasking"
    size = masked.shape[1]
    total = np.add.reduce(masked[sorted(arrived)], axis=0, dtype=np.uint32)
    asked = 0
    for owner in sorted(sharing):
        seed_wanted = owner in arrived
        # A client that is gone may have neighbours none of whom sent an input.
        if not seed_wanted and not arrived.intersection(neighbours[owner]):
            continue
        points, shares, holders = [], [], []
        for point, holder in enumerate(_holders(owner, neighbours), start=1):
            if holder in helping:
                part = clients[holder].release(owner, "seed" if seed_wanted else "key")
                data = part.to_bytes(_SHARE, "big")
                data = _send(tamper, phase, holder, owner, data)
                points.append(point)
                shares.append(int.from_bytes(data, "big"))
                holders.append(clients[holder].name)
        asked += len(points)
        name = clients[owner].name
        if len(points) < threshold:
            raise _TooFewError(
                f"{len(points)} clients stayed that hold a share of client {name}'s "
                f"{'seed' if seed_wanted else 'key'}, and {threshold} are needed"
            )
        if seed_wanted:
            seed = _recover(
                points,
                shares,
                holders,
                threshold,
                lambda x, u=owner: hashlib.sha256(x).digest() == commitments[u],
                owner=f"client {name}'s self mask",
            )
            total -= masks.expand(seed, size)
            continue
        secret = _recover(
            points,
            shares,
            holders,
            threshold,
            lambda x, u=owner: (
                masks.public_of(X25519PrivateKey.from_private_bytes(x))
                == public[u][32:]
            ),
            owner=f"client {name}'s key",
        )
        private = X25519PrivateKey.from_private_bytes(secret)
        for v in neighbours[owner]:
            if v in arrived:
                mask = masks.expand(masks.agree(private, public[v][32:], _MASK), size)
                # The missing client would have added it where its place is the lower.
                total = total + mask if owner < v else total - mask
    down = len(helping) * ID_BYTES + asked * ID_BYTES
    ledger.sent(phase, len(helping), asked * (ID_BYTES + _SHARE), down)
    ledger.done(phase)
    return total


def _recover(
    points: list[int],
    shares: list[int],
    holders: list[int],
    threshold: int,
    right: Callable[[bytes], bool],
    *,
    owner: str,
) -> bytes:
    """Returns the 32 bytes of a secret.

    Raises:
      ProtocolError: if a share is not what its holder was given: the holder is named
        where one alone is at fault and a share can be spared to find it.
    """

    def secret_of(chosen: list[int]) -> bytes | None:
        found = shamir.reconstruct(
            [points[i] for i in chosen], [shares[i] for i in chosen]
        )
        data = found.to_bytes(_SHARE, "big")
        if any(data[: _SHARE - masks.KEY_BYTES]):
            return None
        secret = data[-masks.KEY_BYTES :]
        return secret if right(secret) else None

    first = list(range(threshold))
    secret = secret_of(first)
    if secret is not None:
        return secret
    if len(points) > threshold:
        for i in first:
            if secret_of([j for j in first if j != i] + [threshold]) is not None:
                raise ProtocolError(
                    f"client {holders[i]} released a share of {owner} that is not the "
                    "one it was given: the round is aborted"
                )
    raise ProtocolError(
        f"the shares of {owner} do not give it back: one of clients "
        f"{', '.join(map(str, holders))} changed its share; the round is aborted"
    )


def _centred(total: np.ndarray, modulus_bits: int) -> np.ndarray:
    """Returns a sum modulo ``2**modulus_bits`` as the signed numbers nearest 0."""
    shift = np.uint32(32 - modulus_bits)
    return (total << shift).view(np.int32) >> shift.astype(np.int32)
