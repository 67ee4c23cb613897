"""The protocol beside a plain sum, under drop-outs and changed messages."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_health.secagg import ProtocolError, protocol, run_protocol
from fedjax_health.secagg.protocol import PHASES


def inputs(clients, size=5, seed=0):
    return np.random.default_rng(seed).integers(-1000, 1000, (clients, size))


def changed(data, at=0):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_the_sum_is_that_of_whoever_sent_an_input(data):
    n = data.draw(st.integers(2, 9))
    size = data.draw(st.integers(0, 4))
    bits = data.draw(st.integers(1, 32))
    values = st.integers(-(2**31), 2**31 - 1)
    x = np.array(
        data.draw(
            st.lists(
                st.lists(values, min_size=size, max_size=size), min_size=n, max_size=n
            )
        ),
        np.int64,
    ).reshape(n, size)
    leaving = {phase: data.draw(st.sets(st.integers(0, n - 1))) for phase in PHASES}
    done = run_protocol(
        x, data.draw(st.integers(0, 5)), modulus_bits=bits, drop_out=leaving
    )
    gone: set[int] = set()
    left = {}
    for phase in PHASES:
        gone |= leaving[phase]
        left[phase] = n - len(gone)
    enough = n // 2 + 1
    assert done.threshold == enough
    assert done.released == (left["unmasking"] >= enough)
    if not done.released:
        assert done.total is None
        assert "are needed" in done.reason
        return
    present = sorted(
        set(range(n)) - set().union(*(leaving[phase] for phase in PHASES[:3]))
    )
    assert done.survivors == tuple(present)
    total = x[present].sum(axis=0)
    expected = (total + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
    np.testing.assert_array_equal(done.total, expected)
    assert done.total.dtype == np.int32


@pytest.mark.parametrize("gone", [(), (3, 17, 40)])
def test_a_regular_graph_gives_the_same_sum(gone):
    x = inputs(60)
    done = run_protocol(
        x,
        1,
        degree=20,
        threshold=9,
        corrupt=0.05,
        dropout=0.05,
        drop_out={"masked_input": gone},
    )
    assert (done.degree, done.threshold, done.released) == (20, 9, True)
    np.testing.assert_array_equal(done.total, np.delete(x, gone, 0).sum(0))


def test_beyond_100_clients_the_degree_is_computed():
    x = inputs(120, 2)
    done = run_protocol(x, 1, corrupt=0.05, dropout=0.05)
    assert done.degree < 119
    np.testing.assert_array_equal(done.total, x.sum(0))


def test_a_client_all_of_whose_neighbours_are_gone_is_named():
    x = inputs(30)
    whole = protocol.graph.ring(
        30,
        8,
        seed=protocol.masks.derive(
            protocol.masks.derive(bytes([1]), b"fedjax_health secagg"), b"graph"
        ),
    )
    done = run_protocol(
        x,
        1,
        degree=8,
        corrupt=0.0,
        dropout=0.1,
        threshold=5,
        drop_out={"unmasking": whole[4][:5]},
    )
    assert not done.released
    assert "client 4's seed" in done.reason or "hold a share" in done.reason


def test_the_same_key_gives_the_same_bits():
    x = inputs(6)
    one, same, other = (run_protocol(x, key) for key in (3, 3, 4))
    np.testing.assert_array_equal(one.masked, same.masked)
    assert np.mean(one.masked == other.masked) < 0.1
    np.testing.assert_array_equal(one.total, other.total)
    assert one.bytes_up == same.bytes_up


def test_what_the_server_sees_is_uniform():
    x = np.zeros((4, 20_000), np.int64)
    seen = run_protocol(x, 7).masked
    counts = np.bincount((seen >> 24).reshape(-1), minlength=256)
    assert np.sum((counts - counts.mean()) ** 2 / counts.mean()) < 255 + 5 * 22.6
    for u in range(4):
        assert np.unique(seen[u]).size > 19_900
        for v in range(u):
            assert np.mean(seen[u] == seen[v]) < 0.01


def test_messages_and_bytes_by_hand():
    n, size, bits = 4, 10, 27
    done = run_protocol(inputs(n, size), 0, modulus_bits=bits)
    assert done.messages == dict.fromkeys(PHASES, n)
    sealed = 4 + 2 * 66 + 16
    assert done.bytes_up == {
        "advertise_keys": n * 64,
        "share_keys": n * (32 + 3 * sealed),
        "masked_input": n * 34,
        "unmasking": n * n * (4 + 66),
    }
    assert done.bytes_down["advertise_keys"] == n * 3 * (4 + 64)
    assert done.bytes_down["share_keys"] == n * 3 * sealed
    assert done.masked.max() < 2**bits
    assert set(done.seconds) == set(PHASES)


def test_the_two_shares_of_one_client_are_never_both_released():
    client = protocol._make_client(b"r" * 32, 5)
    client.held[2] = (11, 12)
    assert client.release(2, "seed") == 12
    assert client.release(2, "seed") == 12
    with pytest.raises(ProtocolError, match="client 5 was asked for both"):
        client.release(2, "key")
    client.held[3] = (13, 14)
    assert client.release(3, "key") == 13
    with pytest.raises(ProtocolError, match="both"):
        client.release(3, "seed")


@pytest.mark.parametrize("at", [0, 40])
def test_a_changed_public_key_is_found(at):
    def tamper(phase, sender, receiver, data):
        hit = (phase, sender, receiver) == ("advertise_keys", 2, 0)
        return changed(data, at) if hit else data

    with pytest.raises(ProtocolError, match=r"client 1[02].*client 1[02]"):
        run_protocol(inputs(4), 0, client_ids=[10, 11, 12, 13], tamper=tamper)


def test_a_key_that_is_none_is_found():
    def tamper(phase, sender, receiver, data):
        hit = (phase, sender, receiver) == ("advertise_keys", 2, 0)
        return bytes(64) if hit else data

    with pytest.raises(ProtocolError, match=r"client 0: the public key .* client 2"):
        run_protocol(inputs(4), 0, tamper=tamper)


def test_a_changed_sealed_share_is_found():
    def tamper(phase, sender, receiver, data):
        hit = (phase, sender, receiver) == ("share_keys", 1, 3)
        return changed(data, 9) if hit else data

    with pytest.raises(
        ProtocolError, match=r"client 3: the share .* client 1 does not"
    ):
        run_protocol(inputs(4), 0, tamper=tamper)


@pytest.mark.parametrize(("gone", "what"), [((), "self mask"), ((2,), "key")])
def test_a_changed_released_share_names_its_holder(gone, what):
    def tamper(phase, sender, owner, data):
        hit = (phase, sender, owner) == ("unmasking", 1, 2)
        return changed(data, 65) if hit else data

    with pytest.raises(ProtocolError, match=f"client 1 released .* client 2's {what}"):
        run_protocol(inputs(6), 0, drop_out={"masked_input": gone}, tamper=tamper)


def test_without_a_share_to_spare_the_holders_are_named():
    def tamper(phase, sender, owner, data):
        hit = (phase, sender, owner) == ("unmasking", 1, 2)
        return changed(data, 65) if hit else data

    with pytest.raises(ProtocolError, match="one of clients 0, 1, 2"):
        run_protocol(inputs(3), 0, threshold=3, tamper=tamper)


def test_too_few_inputs_are_not_released():
    done = run_protocol(inputs(6), 0, min_messages=6, drop_out={"masked_input": [0]})
    assert not done.released
    assert done.reason == "5 clients sent their input, and 6 are needed"
    assert done.survivors == (1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"vectors": np.zeros((3, 2))}, "encode them first"),
        ({"vectors": np.zeros(3, int)}, "clients, size"),
        ({"vectors": np.zeros((1, 2), int)}, "hides nothing"),
        ({"modulus_bits": 33}, "modulus_bits=33"),
        ({"threshold": 1}, "choose 2 to 4"),
        ({"threshold": 5}, "choose 2 to 4"),
        ({"client_ids": [1, 1, 2, 3]}, "3 differ"),
        ({"drop_out": {"later": [1]}}, "no phase 'later'"),
        ({"drop_out": {"unmasking": [4]}}, r"\[0, 4\)"),
        ({"key": -1}, "negative"),
        ({"degree": 9}, "degree=9"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, text):
    arguments = {"vectors": inputs(4), "key": 0, **change}
    vectors, key = arguments.pop("vectors"), arguments.pop("key")
    with pytest.raises(ValueError, match=text):
        run_protocol(vectors, key, **arguments)
