"""The packed store: windows, offsets, files, and batches gathered from both kinds."""

import json
import shutil

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_health.client import gather
from fedjax_health.data.sampling import cohort_of
from fedjax_health.data.schema import DataError, Dataset
from fedjax_health.data.store import (
    ClientStore,
    assemble,
    from_arrays,
    from_dataset,
    input_layout,
    input_names,
    input_width,
    open_store,
    room_for,
    to_examples,
    write_store,
)


def make_dataset(streams, *, num_clients=None, masked=False, seed=0):
    """A dataset of the given (client, length) streams; feature 0 counts its rows."""
    rng = np.random.default_rng(seed)
    lengths = [length for _, length in streams]
    rows = sum(lengths)
    flow = rng.normal(size=(rows, 2)).astype(np.float32)
    flow[:, 0] = np.arange(1, rows + 1)
    vitals = rng.normal(size=(rows, 3)).astype(np.float32)
    if masked:
        vitals[rng.random(vitals.shape) < 0.3] = np.nan
    client = np.repeat([c for c, _ in streams], lengths).astype(np.int32)
    names = (max(client, default=-1) + 1) if num_clients is None else num_clients
    return Dataset(
        features={"flow": flow, "vitals": vitals},
        feature_names={"flow": ("row", "size"), "vitals": ("hr", "bp", "o2")},
        label=(rng.random(rows) < 0.4).astype(np.float32),
        attack=np.zeros(rows, np.int32),
        attack_names=("normal",),
        client=client,
        client_names=tuple(f"client {i}" for i in range(names)),
        entity=np.repeat(np.arange(len(streams)), lengths).astype(np.int64),
        time=np.concatenate([np.arange(n) for n in lengths] or [[]]).astype(float),
        masked=frozenset({"vitals"}) if masked else frozenset(),
    )


def np_windows(dataset, window, stride, pad):
    """The windows as lists of source rows, None for filler, client by client."""
    per_client = [[] for _ in range(dataset.num_clients)]
    row = 0
    while row < dataset.num_rows:
        end = row
        while (
            end < dataset.num_rows
            and dataset.client[end] == dataset.client[row]
            and dataset.entity[end] == dataset.entity[row]
        ):
            end += 1
        stream = list(range(row, end))
        fill = window - 1 if pad else max(window - len(stream), 0)
        padded = [None] * fill + stream
        ends = range(len(padded), window - 1, -stride)
        found = [padded[e - window : e] for e in ends]
        per_client[dataset.client[row]] += found[::-1]
        row = end
    return per_client


def read_windows(store: ClientStore, client):
    index = np.arange(store.offsets[client], store.offsets[client + 1])
    return jax.device_get(gather(to_examples(store), index.astype(np.int32)))


# Streams of clients in order: the client of each stream does not decrease.
stream_lists = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=6
).map(lambda streams: sorted(streams, key=lambda s: s[0]))


@settings(max_examples=40, deadline=None)
@given(
    streams=stream_lists,
    window=st.integers(1, 6),
    stride=st.integers(1, 4),
    pad=st.booleans(),
)
def test_windows_equal_an_oracle_that_walks_row_by_row(streams, window, stride, pad):
    dataset = make_dataset(streams, num_clients=5, masked=True)
    store = from_dataset(dataset, window=window, stride=stride, pad=pad)
    x, label = assemble(dataset), dataset.label
    assert store.starts.dtype == np.int32
    assert store.num_examples == len(store.starts)
    for client, windows in enumerate(np_windows(dataset, window, stride, pad)):
        first, end = store.offsets[client], store.offsets[client + 1]
        rows = store.starts[first:end, None] + np.arange(window)
        assert len(rows) == len(windows)
        for got, wanted in zip(rows, windows, strict=True):
            for place, source in zip(got, wanted, strict=True):
                valid = source is not None
                assert store.rows["valid"][place] == valid
                expected = x[source] if valid else np.zeros(x.shape[1])
                np.testing.assert_array_equal(store.rows["x"][place], expected)
                assert store.rows["label"][place] == (label[source] if valid else 0)


@settings(max_examples=40, deadline=None)
@given(streams=stream_lists, window=st.integers(1, 6), stride=st.integers(1, 4))
def test_the_last_row_of_a_stream_is_never_lost(streams, window, stride):
    dataset = make_dataset(streams)
    store = from_dataset(dataset, window=window, stride=stride)
    ends = store.rows["x"][store.starts + window - 1, 0]
    lengths = [length for _, length in streams]
    assert set(np.cumsum(lengths)) <= set(ends.astype(int))
    if stride == 1:
        covered = store.starts[:, None] + np.arange(window)
        seen = set(store.rows["x"][covered, 0].ravel().astype(int)) - {0}
        assert seen == set(range(1, dataset.num_rows + 1))


@settings(max_examples=40, deadline=None)
@given(streams=stream_lists, window=st.integers(1, 6))
def test_padded_windows_are_one_per_row_in_row_order(streams, window):
    dataset = make_dataset(streams)
    store = from_dataset(dataset, window=window, pad=True)
    ends = store.rows["x"][store.starts + window - 1, 0]
    np.testing.assert_array_equal(ends, np.arange(1, dataset.num_rows + 1))
    bounds = np.searchsorted(dataset.client, np.arange(dataset.num_clients + 1))
    np.testing.assert_array_equal(store.offsets, bounds)


def test_a_short_stream_is_filled_in_front():
    dataset = make_dataset([(0, 2), (0, 5)])
    store = from_dataset(dataset, window=4)
    batch = read_windows(store, 0)
    np.testing.assert_array_equal(batch["valid"][0], [0, 0, 1, 1])
    np.testing.assert_array_equal(batch["x"][0, :, 0], [0, 0, 1, 2])
    np.testing.assert_array_equal(batch["valid"][1:], 1)
    np.testing.assert_array_equal(batch["x"][1:, :, 0], [[3, 4, 5, 6], [4, 5, 6, 7]])


def test_the_same_entity_number_in_two_clients_is_two_streams():
    dataset = make_dataset([(0, 3), (1, 3)])
    dataset = dataset._replace(entity=np.zeros(6, np.int64))
    store = from_dataset(dataset, window=2)
    np.testing.assert_array_equal(np.diff(store.offsets), [2, 2])
    np.testing.assert_array_equal(
        read_windows(store, 1)["x"][:, :, 0], [[4, 5], [5, 6]]
    )


def test_without_a_window_an_example_is_a_row():
    dataset = make_dataset([(0, 3), (2, 4)], num_clients=4)
    store = from_dataset(dataset)
    assert store.starts is None
    assert set(store.rows) == {"x", "label"}
    np.testing.assert_array_equal(store.offsets, [0, 3, 3, 7, 7])
    assert store.num_clients == 4
    assert store.client_names == dataset.client_names
    np.testing.assert_array_equal(store.rows["x"], assemble(dataset))


@pytest.mark.parametrize("window", [None, 3])
def test_data_without_rows_packs_into_an_empty_store(window):
    dataset = make_dataset([], num_clients=2)
    store = from_dataset(dataset, window=window)
    assert store.num_examples == 0
    np.testing.assert_array_equal(store.offsets, [0, 0, 0])


def test_masked_modalities_say_what_was_observed():
    dataset = make_dataset([(0, 30)], masked=True)
    x = assemble(dataset)
    vitals = dataset.features["vitals"]
    missing = np.isnan(vitals)
    assert missing.any()
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x[:, :2], dataset.features["flow"])
    np.testing.assert_array_equal(x[:, 2:5], np.where(missing, 0, vitals))
    np.testing.assert_array_equal(x[:, 5:], ~missing)
    # The dataset itself is left as it was.
    np.testing.assert_array_equal(np.isnan(dataset.features["vitals"]), missing)
    assert input_names(dataset) == (
        "flow.row",
        "flow.size",
        "vitals.hr",
        "vitals.bp",
        "vitals.o2",
        "vitals.hr observed",
        "vitals.bp observed",
        "vitals.o2 observed",
    )
    assert input_width(input_layout(dataset)) == x.shape[1]


def test_columns_depend_on_declared_missingness_alone():
    complete = make_dataset([(0, 4)])
    declared = complete._replace(masked=frozenset({"flow"}))
    x = assemble(declared)
    assert x.shape[1] == input_width(input_layout(declared)) == 7
    np.testing.assert_array_equal(x[:, 2:4], 1)


@pytest.mark.parametrize("window", [None, 2])
def test_a_missing_value_in_a_complete_modality_is_refused(window):
    dataset = make_dataset([(0, 4)])
    dataset.features["vitals"][2, 1] = np.nan
    with pytest.raises(DataError, match=r"'vitals' was declared complete.*bp.*row 2"):
        from_dataset(dataset, window=window)


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({"window": 0}, "window must be 1 step or more, not 0"),
        ({"window": 3, "stride": 0}, "stride must be 1 row or more, not 0"),
    ],
)
def test_sizes_out_of_range_are_refused(sizes, text):
    with pytest.raises(DataError, match=text):
        from_dataset(make_dataset([(0, 4)]), **sizes)


@pytest.mark.parametrize(
    ("rows", "offsets", "names", "text"),
    [
        ({"x": np.zeros(3)}, [1, 3], None, "begins with 0"),
        ({"x": np.zeros(3)}, [0], None, "begins with 0"),
        ({"x": np.zeros(3)}, [[0, 3]], None, "begins with 0"),
        ({"x": np.zeros(3)}, [0, 2, 1, 3], None, "offsets fall at client 1"),
        ({"x": np.zeros(3)}, [0, 2], None, "'x' has 3 rows.*end at 2"),
        ({"x": np.zeros(2), "y": np.zeros(3)}, [0, 2], None, "'y' has 3 rows"),
        ({}, [0, 2], None, "at least one array"),
        ({"x": np.zeros(2)}, [0, 2], ("a", "b"), "2 client names for 1 clients"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(rows, offsets, names, text):
    with pytest.raises(DataError, match=text):
        from_arrays(rows, np.array(offsets), client_names=names)


def test_more_examples_than_an_index_reaches_are_refused():
    rows = {"x": np.broadcast_to(np.float32(0), (2**31,))}
    store = from_arrays(rows, np.array([0, 2**31]))
    with pytest.raises(DataError, match="more than an int32 index reaches"):
        to_examples(store)


def stores():
    dataset = make_dataset([(0, 7), (0, 2), (1, 1), (3, 12)], num_clients=4)
    arrays = from_arrays(
        {"x": np.arange(40, dtype=np.float32).reshape(10, 2, 2), "id": np.arange(10)},
        np.array([0, 3, 3, 9, 10]),
    )
    return {
        "arrays": arrays,
        "rows": from_dataset(dataset),
        "windows": from_dataset(dataset, window=3),
        "padded": from_dataset(dataset, window=4, pad=True),
    }


@pytest.mark.parametrize("kind", stores())
def test_a_written_store_opens_as_it_was(kind, tmp_path):
    store = stores()[kind]
    write_store(store, tmp_path / "deep" / "store")
    opened = open_store(tmp_path / "deep" / "store")
    assert opened.mapped
    assert opened.window == store.window
    assert opened.client_names == store.client_names
    np.testing.assert_array_equal(opened.offsets, store.offsets)
    assert set(opened.rows) == set(store.rows)
    for name, values in store.rows.items():
        assert isinstance(opened.rows[name], np.memmap)
        assert opened.rows[name].dtype == values.dtype
        np.testing.assert_array_equal(opened.rows[name], values)
    if store.starts is None:
        assert opened.starts is None
    else:
        np.testing.assert_array_equal(opened.starts, store.starts)


@pytest.mark.parametrize("kind", stores())
def test_a_mapped_cohort_gathers_what_the_resident_store_does(kind, tmp_path):
    store = stores()[kind]
    write_store(store, tmp_path / "store")
    opened = open_store(tmp_path / "store")
    ids = np.array([3, 0, 2] if kind == "arrays" else [3, 0])
    common = {"slots": 5, "capacity": 64}
    resident = cohort_of(store, ids, resident=to_examples(store), **common)
    mapped = cohort_of(opened, ids, **common)
    assert mapped.batches.arrays.rows["x"].shape[0] == 64
    np.testing.assert_array_equal(resident.weights, mapped.weights)
    np.testing.assert_array_equal(
        resident.batches.num_examples, mapped.batches.num_examples
    )
    for slot in range(len(ids)):
        count = np.arange(resident.batches.num_examples[slot], dtype=np.int32)
        a = gather(resident.batches.arrays, resident.batches.index[slot] + count)
        b = gather(mapped.batches.arrays, mapped.batches.index[slot] + count)
        assert set(a) == set(b) == set(store.rows)
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name])


def test_rows_lie_one_after_the_other_on_disk(tmp_path):
    x = np.asfortranarray(np.arange(12.0).reshape(4, 3))
    write_store(from_arrays({"x": x}, np.array([0, 4])), tmp_path / "store")
    opened = open_store(tmp_path / "store").rows["x"]
    assert opened.flags.c_contiguous
    np.testing.assert_array_equal(opened, x)


def test_a_folder_that_exists_is_not_overwritten(tmp_path):
    with pytest.raises(DataError, match="exists already"):
        write_store(stores()["rows"], tmp_path)


@pytest.mark.parametrize("name", ["a/b", "", "..\\x"])
def test_names_that_are_no_files_are_refused_before_anything_is_written(name, tmp_path):
    store = from_arrays({name: np.zeros(2)}, np.array([0, 2]))
    with pytest.raises(DataError, match="cannot be a file name"):
        write_store(store, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_python_objects_are_not_written(tmp_path):
    store = from_arrays({"x": np.array([{}, []], object)}, np.array([0, 2]))
    with pytest.raises(DataError, match="'x' holds Python objects"):
        write_store(store, tmp_path / "store")


def edit_header(folder, **changes):
    path = folder / "store.json"
    header = json.loads(path.read_text()) | changes
    header = {name: value for name, value in header.items() if value != "drop"}
    path.write_text(json.dumps(header))


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


DAMAGES = {
    "no folder": lambda f: shutil.rmtree(f),
    "no header": lambda f: (f / "store.json").unlink(),
    "half a header": lambda f: cut(f / "store.json", 0.5),
    "another format": lambda f: edit_header(f, format="store 99"),
    "a list for a header": lambda f: (f / "store.json").write_text("[1]"),
    "no window entry": lambda f: edit_header(f, window="drop"),
    "no names entry": lambda f: edit_header(f, client_names="drop"),
    "no rows entry": lambda f: edit_header(f, rows="drop"),
    "no rows": lambda f: edit_header(f, rows=[]),
    "rows as a number": lambda f: edit_header(f, rows=3),
    "too few names": lambda f: edit_header(f, client_names=["a"]),
    "window too long": lambda f: edit_header(f, window=30),
    "a file is missing": lambda f: (f / "rows-x.npy").unlink(),
    "starts are missing": lambda f: (f / "starts.npy").unlink(),
    "cut rows": lambda f: cut(f / "rows-x.npy", 0.7),
    "cut offsets": lambda f: cut(f / "offsets.npy", 0.9),
    "an empty file": lambda f: (f / "rows-x.npy").write_bytes(b""),
    "empty offsets": lambda f: (f / "offsets.npy").write_bytes(b""),
    "no array": lambda f: (f / "rows-x.npy").write_bytes(b"hello, world" * 20),
    "shorter rows": lambda f: np.save(f / "rows-x.npy", np.zeros((4, 5), np.float32)),
    "all rows shorter": lambda f: [
        np.save(f / f"rows-{name}.npy", np.zeros(9, np.float32))
        for name in ("x", "label", "valid")
    ],
    "fewer starts": lambda f: np.save(f / "starts.npy", np.zeros(3, np.int32)),
    "falling offsets": lambda f: np.save(
        f / "offsets.npy", np.array([0, 9, 6, 7, 17], np.int64)
    ),
    "flat offsets": lambda f: np.save(f / "offsets.npy", np.int64(17)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders_are_refused(damage, tmp_path):
    folder = tmp_path / "store"
    store = stores()["windows"]
    write_store(store, folder)
    assert open_store(folder).num_examples == store.num_examples == 17
    DAMAGES[damage](folder)
    with pytest.raises(DataError, match=r"write (it|the store)|unknown store format"):
        open_store(folder)


@pytest.mark.parametrize("count", [*range(20), 63, 64, 65, 1000, 169_344])
def test_room_is_enough_and_not_much_more(count):
    room = room_for(count)
    assert count <= room <= max(count * 1.25, 8)
    assert room_for(room) == room


def test_sizes_that_are_alike_share_one_room():
    assert room_for(169_344) == room_for(163_872) == 196_608
    counts = range(100_000, 200_000)
    assert len({room_for(count) for count in counts}) <= 5


def test_devices_are_the_entities_of_each_client():
    # A long stream, one shorter than a window, one of another client.
    dataset = make_dataset([(0, 9), (0, 2), (1, 5)])
    np.testing.assert_array_equal(from_dataset(dataset).devices, [0, 9, 11, 16])
    windows = from_dataset(dataset, window=4, stride=2)
    np.testing.assert_array_equal(np.diff(windows.offsets), [4, 1])
    np.testing.assert_array_equal(windows.devices, [0, 3, 4, 5])
    stays = dataset._replace(target="entity")
    assert from_dataset(stays, window=4).devices is None


def test_a_stream_that_was_cut_is_one_device():
    dataset = make_dataset([(0, 4), (0, 3), (0, 5), (1, 4)])
    named = dataset._replace(entity_names=("pump", "pump", "bed", "pump"))
    np.testing.assert_array_equal(from_dataset(named).devices, [0, 7, 12, 16])
    np.testing.assert_array_equal(
        from_dataset(named, window=3, stride=1).devices, [0, 3, 6, 8]
    )
