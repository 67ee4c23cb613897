"""Each combination of stages runs a round or is refused before it is traced."""

import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tests import composition
from tests.engine.workload import make_store, run

PAGE = Path(__file__).parents[1] / "docs" / "composition.md"

# For the default suite: a private, compressed, hidden sum, and one of groups.
FEW = (
    ("error_feedback(random_k), clip_l2", "secure_mean", "central_gaussian"),
    ("adaptive_clip", "grouped_secure(median)", "central_gaussian"),
)


def one_round(chain, rule, mechanism):
    sampling = composition.sampling_of(mechanism)
    sizes = [3 + i % 4 for i in range(sampling.population)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, state, metrics = run(
            composition.build(chain, rule, mechanism),
            rounds=1,
            sampling=sampling,
            store=make_store(sizes),
        )
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(state.params))
    assert metrics[0]["accepted"]


@pytest.mark.parametrize("cell", FEW, ids=" + ".join)
def test_stages_that_compose_run_a_round(cell):
    assert composition.verdict(*cell)[0] is None
    one_round(*cell)


@pytest.mark.slow
@pytest.mark.parametrize("cell", list(composition.cells()), ids=" + ".join)
def test_each_cell_runs_a_round_or_says_why_not(cell):
    refusal, _ = composition.verdict(*cell)
    if refusal is None:
        one_round(*cell)
    else:
        assert len(refusal) > 20


def test_the_page_shows_the_whole_product():
    """``python -m tests.test_composition`` writes the tables anew."""
    assert composition.page() in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (("no transform", "mean", "central_gaussian"), "bounded message"),
        (("clip_l2", "median", "central_gaussian"), "non-linear rule"),
        (("clip_l2, error_feedback(random_k)", "mean", "central_gaussian"), "clip"),
        (("qsgd", "secure_mean", "none"), "secure"),
        (("clip_l2", "mean", "distributed_skellam"), "secure"),
    ],
)
def test_refusals_name_the_way_out(cell, words):
    refusal, _ = composition.verdict(*cell)
    assert refusal is not None
    assert words in refusal
    assert ":" in refusal


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    head = text.partition("### mechanism: none")[0]
    PAGE.write_text(head + composition.page() + "\n", encoding="utf-8")
