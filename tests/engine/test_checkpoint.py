"""Checkpoints: whole or not used."""

import errno
import logging
import shutil
import warnings

import chex
import jax
import jax.numpy as jnp
import pytest

from fedjax_health.client import scaffold
from fedjax_health.core.rng import root_key
from fedjax_health.core.types import Sampling
from fedjax_health.data.sampling import build_cohort_fn
from fedjax_health.engine import checkpoint
from fedjax_health.engine.algorithm import build_algorithm
from tests.engine.workload import loss_fn, make_params, make_store, plan


def make_tree(offset=0.0):
    # Names out of order on purpose: a tree keeps its own order, a dict may not.
    return {
        "state": (jnp.int32(7), {"zeta": jnp.arange(3.0) + offset}, None, ()),
        "alpha": jnp.arange(4, dtype=jnp.int32),
        "key": jax.random.key(3),
    }


def same(a, b):
    def plain(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(x) if is_key else x

    chex.assert_trees_all_equal(
        jax.tree.map(plain, a), jax.tree.map(plain, b), strict=True
    )


@pytest.fixture
def saved(tmp_path):
    """A folder with steps 2 and 3 of three saved ones."""
    checkpoints = checkpoint.open_checkpoints(tmp_path / "c", keep=2)
    for step in (1, 2, 3):
        checkpoint.save(checkpoints, step, make_tree(step), {"config": "x"})
    return tmp_path / "c"


def test_the_newest_step_comes_back_with_its_context(saved):
    restored = checkpoint.restore_latest(saved, make_tree())
    assert restored is not None
    assert restored.step == 3
    assert restored.context == {"config": "x"}
    same(restored.tree, make_tree(3.0))
    assert jax.tree.structure(restored.tree) == jax.tree.structure(make_tree())


def test_only_the_newest_steps_are_kept(saved):
    assert sorted(p.name for p in saved.iterdir()) == ["2", "3"]


def files_of(step):
    return [p for p in sorted(step.rglob("*")) if p.is_file() and p.stat().st_size]


def test_a_changed_byte_in_any_file_is_found_out(saved, tmp_path):
    for file in files_of(saved / "3"):
        copy = tmp_path / "copy"
        shutil.copytree(saved, copy)
        target = copy / file.relative_to(saved)
        content = bytearray(target.read_bytes())
        content[len(content) // 2] ^= 1
        target.write_bytes(content)
        with pytest.warns(checkpoint.DamagedCheckpointWarning, match="checkpoint 3"):
            restored = checkpoint.restore_latest(copy, make_tree())
        assert restored is not None
        assert restored.step == 2, file
        same(restored.tree, make_tree(2.0))
        shutil.rmtree(copy)


def test_a_missing_or_shortened_file_is_found_out(saved, tmp_path):
    for file in files_of(saved / "3"):
        if file.name == checkpoint.MANIFEST:
            continue
        for cut in (None, -1):
            copy = tmp_path / "copy"
            shutil.copytree(saved, copy)
            target = copy / file.relative_to(saved)
            if cut is None:
                target.unlink()
            else:
                target.write_bytes(target.read_bytes()[:cut])
            with pytest.warns(checkpoint.DamagedCheckpointWarning):
                restored = checkpoint.restore_latest(copy, make_tree())
            assert restored is not None
            assert restored.step == 2
            shutil.rmtree(copy)


def test_a_step_without_a_manifest_was_never_finished(saved):
    (saved / "3" / checkpoint.MANIFEST).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restored = checkpoint.restore_latest(saved, make_tree())
    assert restored is not None
    assert restored.step == 2
    again = checkpoint.open_checkpoints(saved, keep=2)
    assert not (saved / "3").exists()
    checkpoint.save(again, 3, make_tree(9.0), {})
    restored = checkpoint.restore_latest(saved, make_tree())
    assert restored is not None
    same(restored.tree, make_tree(9.0))


def test_a_damaged_step_can_be_saved_again(saved):
    target = files_of(saved / "3")[0]
    target.write_bytes(b"")
    with pytest.warns(checkpoint.DamagedCheckpointWarning):
        checkpoint.restore_latest(saved, make_tree())
    checkpoint.save(checkpoint.open_checkpoints(saved, keep=2), 3, make_tree(9.0), {})
    restored = checkpoint.restore_latest(saved, make_tree())
    assert restored is not None
    assert restored.step == 3


def test_nothing_but_damaged_steps_is_an_error(saved):
    for step in ("2", "3"):
        (saved / step / checkpoint.MANIFEST).write_text("{}")
    with (
        pytest.warns(checkpoint.DamagedCheckpointWarning),
        pytest.raises(checkpoint.CheckpointError, match="every checkpoint"),
    ):
        checkpoint.restore_latest(saved, make_tree())


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert checkpoint.restore_latest(tmp_path / "none", make_tree()) is None


def test_another_shape_is_refused(saved):
    other = {**make_tree(), "alpha": jnp.zeros(5, jnp.int32)}
    with pytest.raises(checkpoint.CheckpointError, match=r"alpha.*wanted"):
        checkpoint.restore_latest(saved, other)
    with pytest.raises(checkpoint.CheckpointError, match="extra"):
        checkpoint.restore_latest(saved, {**make_tree(), "extra": jnp.zeros(1)})


def test_one_kept_checkpoint_is_too_few(tmp_path):
    with pytest.raises(ValueError, match="2 or more"):
        checkpoint.open_checkpoints(tmp_path, keep=1)


def test_nothing_is_pickled(saved):
    for file in files_of(saved / "3"):
        assert not file.read_bytes().startswith(b"\x80\x04"), file


@pytest.mark.parametrize("devices", [1, 2])
def test_a_restored_state_goes_on_with_the_same_bits(tmp_path, meshes, devices):
    sampling = Sampling("fixed", population=10, expected=4)
    algorithm = build_algorithm(
        loss_fn,
        plan(algorithm=scaffold()),
        abstract_params=make_params(),
        population=10,
        cohort_size=4,
        mesh=meshes[devices],
    )
    cohorts = build_cohort_fn(make_store(), sampling, 0)
    checkpoints = checkpoint.open_checkpoints(tmp_path / "c", keep=2)

    def go(state, first, last):
        for r in range(first, last):
            state, _ = algorithm.step(state, cohorts(r))
            if r == 2:
                checkpoint.save(checkpoints, 3, state, {})
        return state

    whole = go(algorithm.init(root_key(0), make_params()), 0, 6)
    fresh = algorithm.init(root_key(9), make_params())
    restored = checkpoint.restore_latest(tmp_path / "c", fresh)
    assert restored is not None
    same(go(restored.tree, 3, 6), whole)


class FakeManager:
    """Fails as orbax does, logs included."""

    def __init__(self, error):
        self.error = error

    def save(self, step, args):
        logging.getLogger("absl").error("Traceback (most recent call last)")
        raise self.error

    def wait_until_finished(self):
        raise AssertionError("nothing was saved")


def chained(cause):
    error = RuntimeError("writing failed")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (ValueError("RESOURCE_EXHAUSTED: [os_error_code='28']"), errno.ENOSPC),
        (ValueError("RESOURCE_EXHAUSTED: [os_error_code='122']"), errno.EDQUOT),
        (chained(OSError(errno.ENOSPC, "No space left on device")), errno.ENOSPC),
    ],
)
def test_a_full_disk_is_an_error_of_the_system(saved, caplog, error, number):
    opened = checkpoint.open_checkpoints(saved, keep=2)
    full = opened._replace(manager=FakeManager(error))
    with pytest.raises(OSError, match="4") as caught:
        checkpoint.save(full, 4, make_tree(), {})
    assert caught.value.errno == number
    assert caught.value.filename == str(saved / "4")
    assert caplog.records == []
    assert logging.getLogger("absl").level != logging.CRITICAL
    restored = checkpoint.restore_latest(saved, make_tree())
    assert restored is not None
    assert restored.step == 3


def test_any_other_error_of_saving_stays_as_it_is(saved):
    opened = checkpoint.open_checkpoints(saved, keep=2)
    error = ValueError("INVALID_ARGUMENT: [os_error_code='5']")
    with pytest.raises(ValueError, match="INVALID_ARGUMENT"):
        checkpoint.save(opened._replace(manager=FakeManager(error)), 4, make_tree(), {})
