"""From a dataset and a configuration to parts, store and what losses need."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.build import (
    build_dataset,
    build_evaluation_dataset,
    build_sampling,
    prepare,
)
from fedjax_health.build import prepared as prepared_module
from fedjax_health.config import ConfigError, parse
from fedjax_health.data.schema import Dataset, check_dataset
from fedjax_health.data.splits import Part
from fedjax_health.data.store import from_dataset
from fedjax_health.losses.contrast import same_patient

WARDS = ("north", "east", "south", "west")


def stays(*, rows=4, each=30, seed=0):
    """Four wards of stays with one label each; two stays a patient."""
    generator = np.random.default_rng(seed)
    total = len(WARDS) * each
    label = np.repeat(generator.random(total) < 0.3, rows).astype(np.float32)
    features = generator.normal(size=(total * rows, 2)).astype(np.float32)
    features[generator.random(features.shape) < 0.2] = np.nan
    kind = np.stack([np.arange(total) % 3, generator.normal(size=total)], axis=1)
    data = Dataset(
        features={
            "vitals": features,
            "admission": np.repeat(kind, rows, axis=0).astype(np.float32),
        },
        feature_names={"vitals": ("pulse", "spo2"), "admission": ("unit", "age")},
        label=label,
        attack=label.astype(np.int32),
        attack_names=("normal", "died"),
        client=np.repeat(np.arange(len(WARDS)), each * rows).astype(np.int32),
        client_names=WARDS,
        entity=np.repeat(np.arange(total), rows).astype(np.int64),
        time=np.tile(np.arange(rows, dtype=np.float64), total),
        masked=frozenset({"vitals"}),
        target="entity",
        categories={"admission": {"unit": ("icu", "ward", "er")}},
        patient=np.repeat(np.arange(total) // 2, rows).astype(np.int64),
    )
    check_dataset(data)
    return data


def settings(*changes):
    return parse('split = "stratified"\n[window]\nlength = 4', changes)


def test_categories_are_columns_and_the_layout_says_where():
    prepared = prepare(settings(), stays())
    vitals, admission = prepared.layout
    assert (vitals.name, vitals.values, vitals.observed) == ("vitals", (0, 2), (2, 4))
    assert (admission.name, admission.values) == ("admission", (4, 8))
    names = prepared.parts.test.feature_names["admission"]
    assert names == ("unit=er", "unit=icu", "unit=ward", "age")
    assert prepared.store.rows["x"].shape[1] == 8
    assert set(prepared.store.rows) == {"x", "label", "valid"}
    assert prepared.preprocessing.feature_names["admission"] == ("unit", "age")


def test_patients_are_kept_whole_and_the_split_is_told():
    data = stays()
    prepared = prepare(settings(), data)
    for patient in np.unique(data.patient):
        assert len(set(prepared.split[data.patient == patient])) == 1
    for wanted, part in zip(
        Part.__members__.values(), (None, *prepared.parts), strict=True
    ):
        if part is not None:
            assert part.num_rows == (prepared.split == wanted).sum()


def test_class_weights_and_patients_are_packed_for_the_losses():
    prepared = prepare(settings("balance=client"), stays())
    train, store = prepared.parts.train, prepared.store
    assert store.rows["class_weight"].dtype == np.float32
    for client in range(4):
        first, end = store.offsets[client : client + 2]
        starts = store.starts[first:end]
        label = store.rows["label"][starts]
        positives = label.sum()
        expected = np.where(label, end - first, 0) / (2 * positives)
        expected += np.where(label, 0, end - first) / (2 * (end - first - positives))
        np.testing.assert_allclose(
            store.rows["class_weight"][starts], expected, rtol=1e-6
        )
    assert train.num_clients == store.num_clients == 4


@pytest.mark.parametrize(
    ("changes", "held_out"),
    [
        (("split=leave_one_out", "split.client=north"), {"north"}),
        (
            (
                "split=by_client",
                'split.test_clients=["east"]',
                'split.validation_clients=["north"]',
            ),
            {"east", "north"},
        ),
    ],
)
def test_clients_that_are_held_out_are_no_part_of_the_federation(changes, held_out):
    data = stays()
    prepared = prepare(settings(*changes), data)
    population = prepared.store.num_clients
    assert population == 4 - len(held_out)
    for part in prepared.parts:
        assert part.client_names == prepared.parts.train.client_names
        assert set(part.client_names[population:]) == held_out
    assert prepared.store.client_names == part.client_names[:population]
    assert prepared.parts.train.client.max() == population - 1
    tested = {part.client_names[c] for c in prepared.parts.test.client}
    assert tested <= held_out
    assert build_sampling(settings(*changes), population).population == population
    # Scaled by the average over the hospitals that trained.
    scaler = prepared.preprocessing.scaler
    age = scaler.mean["admission"][:, 3]
    np.testing.assert_allclose(age[population:], age[:population].mean())


@pytest.mark.parametrize("asked", ["alignment", "temporal"])
def test_patients_and_times_are_packed_where_examples_are_told_apart(asked):
    data = stays()
    change = "alignment.step=last" if asked == "alignment" else "temporal=window"
    extra = prepared_module._extra(settings("model=fusion", change), data)
    assert set(extra) == {"patient", "position"}
    assert {values.dtype for values in extra.values()} == {np.dtype(np.int32)}
    np.testing.assert_array_equal(extra["patient"], data.patient)
    # Two stays of a patient at the same times; times of others lie elsewhere.
    for patient in (0, 1):
        own = extra["position"][data.patient == patient].reshape(2, 4)
        np.testing.assert_array_equal(own[0], own[0, 0] + np.arange(4))
        np.testing.assert_array_equal(own[0], own[1])
    assert len(set(extra["position"])) == 4 * len(set(data.patient))


def test_windows_that_overlap_in_time_are_never_negatives():
    """Devices of one patient by clocks of their own: offset, slow, and with a gap."""
    clocks = [
        np.arange(60.0),
        np.arange(60) + 0.5,
        3.0 * np.arange(20) + 0.1,
        np.append(np.arange(20), np.arange(70, 90)),
        # Shorter than a window, which is filled up in front.
        np.arange(40, 45) + 0.25,
        # Another patient's.
        np.arange(60.0),
    ]
    rows = np.array([len(clock) for clock in clocks])
    device = np.repeat(np.arange(len(clocks)), rows)
    values = np.zeros((rows.sum(), 1), np.float32)
    data = Dataset(
        features={"vitals": values},
        feature_names={"vitals": ("pulse",)},
        label=values[:, 0],
        attack=np.zeros(rows.sum(), np.int32),
        attack_names=("normal",),
        client=np.zeros(rows.sum(), np.int32),
        client_names=("north",),
        entity=device.astype(np.int64),
        time=np.concatenate(clocks).astype(np.float64),
        patient=(device == 5).astype(np.int64),
    )
    check_dataset(data, one_class=True)
    extra = prepared_module._extra(settings("model=fusion", "temporal=window"), data)
    extra |= {"time": data.time, "device": data.entity}
    store = from_dataset(data, window=20, stride=5, extra=extra)
    batch = {
        name: rows[store.starts[:, None] + np.arange(20)]
        for name, rows in store.rows.items()
    }
    count = store.num_examples
    alike = np.asarray(same_patient(jax.tree.map(jnp.asarray, batch), count))
    valid = batch["valid"] > 0
    begin = [
        window[there].min() for window, there in zip(batch["time"], valid, strict=True)
    ]
    end = [
        window[there].max() for window, there in zip(batch["time"], valid, strict=True)
    ]
    pairs = 0
    for i in range(count):
        for j in range(count):
            same = batch["patient"][i, -1] == batch["patient"][j, -1]
            overlap = begin[i] <= end[j] and begin[j] <= end[i]
            assert alike[i, j] == (same and overlap)
            pairs += overlap and batch["device"][i, -1] != batch["device"][j, -1]
    assert pairs > 100
    assert (~alike[batch["patient"][:, -1] == 0][:, :5]).any()


def test_a_split_may_have_a_seed_of_its_own():
    data = stays()
    fixed = [prepare(settings(f"seed={s}", "split.seed=5"), data).split for s in (1, 2)]
    np.testing.assert_array_equal(*fixed)
    free = [prepare(settings(f"seed={s}"), data).split for s in (1, 5)]
    assert (free[0] != free[1]).any()
    np.testing.assert_array_equal(free[1], fixed[0])


@pytest.mark.parametrize("split", ["by_client", "leave_one_out"])
def test_what_clients_that_never_train_cannot_have_is_refused(split):
    name = ["split.client=north"] if split == "leave_one_out" else []
    with pytest.raises(ConfigError, match=r"partition: split .* partition=natural"):
        settings(f"split={split}", *name, "partition=iid")
    with pytest.raises(ConfigError, match="algorithm: clients that split"):
        settings(f"split={split}", *name, "algorithm=ditto")
    with pytest.raises(ConfigError, match="personal: clients that split"):
        settings(f"split={split}", *name, "personal=head")


def test_a_client_to_leave_out_is_named():
    with pytest.raises(ConfigError, match=r"split\.client: names no client"):
        settings("split=leave_one_out")


def test_components_and_outliers_reach_the_data():
    data = stays()
    prepared = prepare(settings("pca.admission=2", "outliers.width=1"), data)
    assert prepared.parts.test.feature_names["admission"] == ("pc1", "pc2")
    assert prepared.preprocessing.fences is not None
    with pytest.raises(ConfigError, match="pca: "):
        settings("pca.admission=0")


def write_events(folder, *, stays=40):
    """Stays of which "rare" is observed in few, and in most that came last."""
    rng = np.random.default_rng(0)
    label = rng.random(stays) < 0.4
    lines = ["entity,time,variable,value"]
    for stay in range(stays):
        for hour in range(2):
            lines.append(f"s{stay},{3600 * hour},hr,{60 + 20 * label[stay]}")
        if stay % 4 == 0 or stay >= 28:
            lines.append(f"s{stay},0,rare,{stay}")
    lines.append(f"s{stays - 1},0,once,1")
    (folder / "events.csv").write_text("\n".join(lines) + "\n")
    rows = [f"s{stay},{int(label[stay])},A" for stay in range(stays)]
    (folder / "entities.csv").write_text("\n".join(["entity,label,ward", *rows]) + "\n")
    return folder / "events.csv"


@pytest.mark.filterwarnings("ignore:.*varied at no client:UserWarning")
@pytest.mark.parametrize("summarised", [False, True])
def test_variables_are_chosen_by_the_training_part_alone(tmp_path, summarised):
    path = write_events(tmp_path)
    changes = [
        "data=events",
        f'data.path="{path}"',
        f'data.entities="{tmp_path}/entities.csv"',
        "data.length=2",
        "split=stratified",
        "window.length=" + ("1" if summarised else "2"),
    ]
    changes += [
        *(["model=mlp", 'summarise.statistics=["last","count"]'] if summarised else [])
    ]
    config = parse("", changes)
    data = build_dataset(config)
    prepared = prepare(config, data)
    trained = data.features["series"][prepared.split == Part.TRAIN]
    starts = np.arange(0, len(trained), 1 if summarised else 2)
    names = data.feature_names["series"]
    column = names.index("rare last" if summarised else "rare")
    found = ~np.isnan(trained[:, column])
    share = np.logical_or.reduceat(found, starts).mean()
    assert 0 < share < np.mean([n % 4 == 0 or n >= 28 for n in range(40)]) + 0.2

    def variables(least):
        settings = parse("", [*changes, f"data.least_share={least}"])
        fitted = prepare(settings, data).preprocessing.feature_names["series"]
        return settings, fitted, {name.partition(" ")[0] for name in fitted}

    assert "rare" in variables(share)[2]
    settings, fitted, chosen = variables(min(share + 1e-6, 1.0))
    assert chosen == {"hr"}
    assert len(fitted) == (2 if summarised else 1)
    # What was left out then is left out of new data too.
    again = build_evaluation_dataset(
        settings, path, feature_names={"series": fitted}
    ).dataset
    assert again.feature_names["series"] == fitted
    # "once" is chosen only where the only stay that has it trains.
    here = prepared.split[data.entity == data.entity_names.index("s39")]
    assert ("once" in variables(0.0)[2]) == bool((here == Part.TRAIN).all())
