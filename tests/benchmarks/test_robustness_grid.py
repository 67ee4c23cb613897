"""The robustness grid is dealt whole, trained as written, and compared fairly."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import digits, ours_grid, protocol, robustness_grid


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 17, (digits.TEST_EXAMPLES + 203, digits.FEATURES))
    label = rng.integers(0, digits.CLASSES, len(pixels))
    return digits.build(pixels.astype(float), label, hidden=6)


def test_every_example_belongs_to_one_client_or_to_the_test(data):
    sizes = np.diff(data.offsets)
    assert len(sizes) == digits.HONEST
    assert sizes.sum() == len(data.x) == len(data.label) == 203
    assert sizes.max() - sizes.min() <= 2
    assert len(data.test_label) == digits.TEST_EXAMPLES
    rows = {row.tobytes() for row in np.concatenate([data.x, data.test_x])}
    assert len(rows) == 203 + digits.TEST_EXAMPLES
    assert abs(data.x.mean()) < 1e-4
    assert abs(data.x.std() - 1) < 1e-4


def test_clients_differ_in_their_labels_as_far_as_they_are_to():
    label = np.repeat(np.arange(10), 100)
    dealt = digits.split(label, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(np.concatenate(dealt)), np.arange(1000))
    for client, places in enumerate(dealt):
        counts = np.bincount(label[places], minlength=10)
        # A third in the order of labels, of which a client sees one or two.
        assert counts.argmax() == client
        assert 30 <= counts.max() <= 60


def test_data_comes_back_from_its_file(data, tmp_path):
    digits.write(tmp_path / "digits.npz", hidden=5)
    read = digits.read(tmp_path / "digits.npz")
    assert len(read.label) + len(read.test_label) == 1797
    assert read.params["w1"].shape == (2, 64, 5)
    assert np.bincount(read.label).min() > 100


def test_blocks_make_up_the_grid_and_hold_every_attack_on_every_defence():
    blocks = digits.blocks(0)
    assert sorted(cell for block in blocks for cell in block) == sorted(digits.cells())
    for block in blocks:
        kinds = {(cell.attack, cell.defence) for cell in block}
        assert len(block) == len(kinds) == 20
    assert blocks != digits.blocks(1)
    assert digits.cell_of(digits.cells()[7].name) == digits.cells()[7]


def np_gradient(params, x, label):
    hidden = np.maximum(x @ params["w1"] + params["b1"], 0)
    logits = hidden @ params["w2"] + params["b2"]
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    shares[np.arange(len(label)), label] -= 1
    shares /= len(label)
    back = (shares @ params["w2"].T) * (hidden > 0)
    made = {"w1": x.T @ back, "b1": back.sum(0), "w2": hidden.T @ shares}
    return {**made, "b2": shares.sum(0)}


def np_train(cell, data, steps):
    """ByzFL's loop on whole clients, parameter by parameter."""
    params = {k: v[cell.seed].astype(float) for k, v in data.params.items()}
    bounds = list(zip(data.offsets[:-1], data.offsets[1:], strict=True))
    for _ in range(steps):
        gradients = [
            np_gradient(params, data.x[a:b].astype(float), data.label[a:b])
            for a, b in bounds
        ]
        for name in params:
            honest = np.stack([g[name] for g in gradients])
            mean = honest.mean(axis=0)
            forged = {
                "sign_flip": -mean,
                "ipm": -2.0 * mean,
                "alie": mean + 1.5 * honest.std(axis=0, ddof=1),
                "mimic": honest[0],
            }[cell.attack]
            rows = np.concatenate([honest, np.stack([forged] * cell.malicious)])
            if cell.defence == "trimmed_mean":
                f = cell.malicious
                rows = np.sort(rows, axis=0)[f : len(rows) - f]
            params[name] = params[name] - 0.1 * rows.mean(axis=0)
    return params


def test_cells_train_as_a_slow_loop_does(data):
    cells = [
        digits.Cell("ipm", "trimmed_mean", 4, 0),
        digits.Cell("alie", "trimmed_mean", 2, 1),
        digits.Cell("sign_flip", "mean", 2, 0),
        digits.Cell("mimic", "mean", 4, 1),
    ]
    size = int(np.diff(data.offsets).max())
    trained, phases = ours_grid.train(data, cells, steps=4, batch_size=size)
    for cell, params in zip(cells, trained, strict=True):
        expected = np_train(cell, data, 4)
        for name, value in params.items():
            np.testing.assert_allclose(value, expected[name], atol=2e-6)
    assert list(phases) == ["import", "trace", "compile", "run"]


def test_agreement_takes_the_seed_as_its_unit():
    cells = digits.cells()
    ours = {cell.name: 0.9 + 0.02 * cell.seed for cell in cells}
    theirs = {cell.name: 0.88 + 0.02 * cell.seed for cell in cells}
    odd = digits.Cell("alie", "median", 2, 0)
    theirs[odd.name] = theirs[odd._replace(seed=1).name] = 0.1
    made = robustness_grid.agreement(ours, theirs)
    assert len(made["cells"]) == 60
    assert made["within"] == pytest.approx(59 / 60)
    assert made["largest"]["difference"] == pytest.approx(0.81)
    assert made["largest"]["malicious"] == 2
    assert made["mean_difference"] == pytest.approx((59 * 0.02 + 0.81) / 60)
    low, high = made["interval"]
    spread = 0.02**2 / 2 + (0.02 * 59 / 60) ** 2 / 2
    assert high - low == pytest.approx(2 * 4.303 * (spread / 2) ** 0.5)
    del theirs[odd.name]
    assert len(robustness_grid.agreement(ours, theirs)["cells"]) == 59
    assert robustness_grid.agreement(ours, {}) == {"cells": []}


def test_a_process_that_fails_is_heard():
    with pytest.raises(protocol.WorkerError, match="no-such-file"):
        robustness_grid.run_ours(Path("no-such-file.npz"), steps=1)


def test_the_grid_itself_needs_numpy_alone():
    program = (
        "import sys; import benchmarks.digits, benchmarks.rivals.byzfl_grid; "
        "heavy = {'jax', 'sklearn', 'torch', 'fedjax_health'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
