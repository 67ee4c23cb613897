"""Bytes and epsilon of a run: by round, in the result, and after a kill."""

from types import SimpleNamespace

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant

from fedjax_health import records, training
from fedjax_health.core.message import Message
from fedjax_health.training import account
from fedjax_health.training.account import Traffic
from fedjax_health.training.setup import prepare_run
from tests import tiny

NOISE, DELTA = 0.8, 1e-3
PRIVATE = (
    'transforms=[{kind="clip_l2",max_norm=0.3}]',
    "mechanism=central_gaussian",
    f"mechanism.noise_multiplier={NOISE}",
    f"privacy.delta={DELTA}",
    'weighting="uniform"',
)
SECURE = ("aggregator=secure_mean", "aggregator.threshold=2", "dropout=0.3")
# All that remembers: a client's error feedback, the server's clip norm and index set.
REMEMBERING = (
    'transforms=[{kind="error_feedback",inner={kind="random_k",keep=0.5}},'
    '{kind="adaptive_clip",initial=0.3,bit_noise=4.0}]',
)
SAMPLED = ("rounds=6", "sampling=poisson", "sampling.cohort_size=2")


def private(table, *overrides):
    return tiny.config(table, *PRIVATE, *overrides)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return tiny.write_table(tmp_path_factory.mktemp("table") / "ward.csv")


@pytest.fixture(scope="module")
def whole(table, tmp_path_factory):
    config = private(table, *SAMPLED, *SECURE, *REMEMBERING)
    return tiny.Run(config, tmp_path_factory.mktemp("whole") / "run")


def direct_epsilon(rounds):
    """Asks dp-accounting itself: half of the clients in a round, no cap."""
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    event = dp.PoissonSampledDpEvent(0.5, dp.GaussianDpEvent(NOISE))
    return accountant.compose(event, rounds).get_epsilon(DELTA)


def test_epsilon_is_that_of_the_accountant_at_the_end_of_each_segment(whole):
    told = {line["round"]: line.get("epsilon") for line in whole.lines}
    assert [told[n] for n in (1, 3, 5)] == [None] * 3
    for n in (2, 4, 6):
        assert told[n] == pytest.approx(direct_epsilon(n), rel=1e-3)


def test_bytes_of_a_round_are_those_of_its_clients(whole):
    model = 4 * whole.result["num_params"]
    message = whole.result["uplink_bytes_per_client"]
    assert message < model
    up = down = 0
    for line in whole.lines:
        sent = line["num_clients"] + line["non_finite"]
        assert line["uplink_bytes"] == message * sent
        assert line["downlink_bytes"] == model * (sent + line["dropped"])
        up, down = up + line["uplink_bytes"], down + line["downlink_bytes"]
        assert (line["uplink_bytes_total"], line["downlink_bytes_total"]) == (up, down)
    assert {line["num_clients"] for line in whole.lines} != {2}
    assert sum(line["dropped"] for line in whole.lines) > 0
    assert whole.result["communication"] == {
        "uplink_bytes_total": up,
        "downlink_bytes_total": down,
        "uplink_bytes_per_client_round": message,
        "dense_bytes": model,
        "share_of_dense": message / model,
    }


def test_aborted_rounds_are_told_and_count_as_spent(whole):
    aborted = [line["round"] for line in whole.lines if line["aborted"]]
    assert aborted
    assert len(aborted) < 6
    said = [text for text in whole.messages if "the next cohort goes on" in text]
    assert [text.split(":")[0] for text in said] == [f"round {n}" for n in aborted]
    assert "fewer than the threshold 2" in said[0]
    # All six rounds, as the accountant has them.
    assert whole.lines[-1]["epsilon"] == pytest.approx(direct_epsilon(6), rel=1e-3)


def test_the_result_states_epsilon_for_all_rounds_and_beside_it_that_of_the_model(
    whole,
):
    told = whole.result["privacy"]
    assert told["rounds"] == 6
    assert told["epsilon"] == whole.lines[-1]["epsilon"]
    best = told["best_round"]
    assert best == whole.result["best_round"]
    assert told["epsilon_at_best_round"] == whole.lines[best - 1]["epsilon"]
    assert (told["unit"], told["clients"], told["delta"]) == ("client", 4, DELTA)
    assert told["noise_multiplier"] == NOISE
    assert told["not_covered"]
    assert told["warnings"] == []


def test_a_run_says_at_its_start_what_it_protects(whole):
    said = [text for text in whole.messages if text.startswith("privacy: ")]
    assert len(said) == 2
    assert f"epsilon {whole.result['privacy']['epsilon']:.3g} at delta 0.001" in said[0]
    assert "protects nobody" in said[1]
    assert not any("simulation-grade" in text for text in whole.messages)


def test_a_resumed_run_accounts_for_the_rounds_before(table, whole, tmp_path):
    seen = []
    paths = tiny.interrupt(whole.config, tmp_path / "run", after=4)
    assert not paths.result.exists()

    def on_round(**told):
        seen.append((told["round"], told["epsilon"], told["uplink_bytes"]))

    training.resume(paths.root, records.SILENT._replace(on_round=on_round))
    assert tiny.kept_bytes(paths) == whole.bytes()
    last = whole.lines[-1]
    assert seen[-1] == (6, last["epsilon"], last["uplink_bytes_total"])


def test_weak_settings_are_warned_of_once(table):
    said = []
    config = private(table, 'mechanism.noise="float"', "privacy.delta=0.3")
    prepare_run(config, records.SILENT._replace(on_message=said.append))
    assert len([text for text in said if "simulation-grade noise" in text]) == 1
    (delta,) = (text for text in said if "1/n or more" in text)
    assert delta.startswith("warning: delta=0.3")


def test_examples_that_dp_sgd_protects_are_accounted_at_the_worst_client(table):
    said = []
    config = tiny.config(
        table,
        "local.epochs=2",
        "local.example_privacy.clip_norm=1.0",
        "local.example_privacy.noise_multiplier=1.1",
        "privacy.delta=0.1",
    )
    run = prepare_run(config, records.SILENT._replace(on_message=said.append))
    told = account.example_privacy(config, run.prepared.store, 4)
    # 26 windows in batches of 16: two steps an epoch.
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    event = dp.PoissonSampledDpEvent(16 / 26, dp.GaussianDpEvent(1.1))
    direct = accountant.compose(event, 2 * 2 * 4).get_epsilon(0.1)
    assert told["epsilon"] == pytest.approx(direct, rel=1e-3)
    assert told["least_protected"] == "s0"
    assert (told["unit"], told["examples_of_least_protected"]) == ("example", 26)
    assert any(f"epsilon {told['epsilon']:.3g} at delta 0.1 for one" in t for t in said)
    assert any("1/n or more for 26 examples" in text for text in said)
    assert account.example_privacy(tiny.config(table), run.prepared.store, 4) is None


def test_the_plan_tells_epsilon_and_both_directions(table):
    told = training.describe(private(table, *SAMPLED))
    assert told["privacy"]["rounds"] == 6
    assert told["privacy"]["epsilon"] == pytest.approx(direct_epsilon(6), rel=1e-3)
    message = told["message"]
    assert message["downlink_bytes_per_client"] == 4 * message["parameters"]
    assert message["downlink_bytes_per_round"] == 2 * 4 * message["parameters"]
    assert "threshold" not in message


def test_a_plan_without_a_mechanism_says_nothing_of_privacy(table):
    said = []
    config = tiny.config(table)
    run = prepare_run(config, records.SILENT._replace(on_message=said.append))
    assert account.epsilon_after(config, run.built, 3) is None
    assert not any("privacy" in text for text in said)
    assert not account.works_on_messages(config, run.built)


# By hand


def built(*, uplink=100, downlink=70, **message):
    """What was trained, as far as bytes are concerned."""
    sent = Message(num_params=uplink // 4, **message)
    return SimpleNamespace(
        algorithm=SimpleNamespace(message=sent, downlink_bytes=downlink)
    )


def line(number, **values):
    counts = {"num_clients": 3, "non_finite": 1, "dropped": 2}
    return {"round": number, **counts, **values}


def test_measured_bytes_stand_in_place_of_the_static_ones():
    lines = [line(1, uplink_bytes=np.float32(41.0).item()), line(2)]
    assert account.add_bytes(lines, built(), Traffic(1000, 1)) == (1441, 841)
    assert [row["uplink_bytes"] for row in lines] == [41, 400]
    assert [row["uplink_bytes_total"] for row in lines] == [1041, 1441]
    assert [row["downlink_bytes"] for row in lines] == [420, 420]
    assert all(isinstance(row["uplink_bytes"], int) for row in lines)


@pytest.mark.parametrize(
    ("rounds", "segment", "told"),
    [(6, 2, 2), (100, 1, 1), (101, 1, 2), (1000, 5, 10), (1, 7, 7), (1001, 5, 15)],
)
def test_epsilon_is_stated_a_hundred_times_at_most(rounds, segment, told):
    assert account.rounds_between_epsilons(rounds, segment) == told
    assert rounds // told <= account.MOST_EPSILONS


def test_the_phases_of_a_protocol_are_counted_whole():
    phases = {
        "secagg_bytes_up_share_keys": 30.0,
        "secagg_bytes_up_masked_input": 200.0,
        "secagg_bytes_down_share_keys": 9.0,
        "secagg_messages_share_keys": 4.0,
    }
    lines = [line(1, uplink_bytes=41.0, **phases)]
    assert account.add_bytes(lines, built(), Traffic()) == (230, 429)


def test_bytes_that_are_no_number_are_not_measured():
    lines = [line(1, uplink_bytes=float("nan"))]
    assert account.add_bytes(lines, built(), Traffic()).uplink == 400


def test_totals_are_exact_where_float32_would_round():
    lines = [line(n) for n in range(1, 4)]
    large = built(uplink=4 * (2**24 + 1))
    assert account.add_bytes(lines, large, Traffic()).uplink == 48 * (2**24 + 1)


def test_lines_of_an_earlier_version_are_counted_again():
    old = [line(1), line(2)]
    assert account.traffic_of(old, built()) == (800, 840)
    assert "uplink_bytes" not in old[0]
    account.add_bytes(old, built(), Traffic())
    assert account.traffic_of(old, built()) == (800, 840)
    assert account.traffic_of([], built()) == (0, 0)


def test_compressed_messages_are_compared_with_the_model():
    lines = [line(1, uplink_bytes=70.0), line(2, uplink_bytes=70.0)]
    small = built()
    account.add_bytes(lines, small, Traffic())
    told = account.communication(lines, small)
    assert told["uplink_bytes_per_client_round"] == 17.5
    assert told["share_of_dense"] == 0.25
    nobody = [line(1, num_clients=0, non_finite=0)]
    assert account.communication(nobody, small)["share_of_dense"] == 0.0


def test_an_aborted_round_is_told_with_its_threshold():
    metrics = {
        "aborted": np.array([0, 1, 1]),
        "num_clients": np.array([5, 2, 1]),
    }
    secure = built(modulus_bits=32, min_messages=3)
    assert account.aborted_rounds(metrics, 5, secure) == [
        "round 7: 2 messages, fewer than the threshold 3: the sum was not released; "
        "the next cohort goes on",
        "round 8: 1 message, fewer than the threshold 3: the sum was not released; "
        "the next cohort goes on",
    ]
    groups = built(modulus_bits=32, min_messages=3, groups=2)
    first, _ = account.aborted_rounds(metrics, 0, groups)
    assert "in each of the 2 groups fewer than the threshold 3" in first
    assert account.aborted_rounds({"num_clients": metrics["aborted"]}, 0, secure) == []
