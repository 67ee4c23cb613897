"""The full product of stages: what composes, and what is refused with which words."""

import itertools
import warnings

import jax

from fedjax_health import aggregators, privacy, secagg, transforms
from fedjax_health.core.message import CompositionError
from fedjax_health.core.types import Sampling
from fedjax_health.engine.plan import check_plan
from tests.engine.workload import make_params, plan

POPULATION, COHORT = 10, 8
FIXED = Sampling("fixed", population=POPULATION, expected=COHORT)
CYCLIC = Sampling("cyclic", population=20, expected=8, cap=10, cycle=2)


def clip():
    return transforms.clip_l2(0.5)


def feedback(keep=0.5):
    return transforms.error_feedback(transforms.random_k(keep))


CHAINS = {
    "no transform": lambda: (),
    "clip_l2": lambda: (clip(),),
    "clip_per_leaf": lambda: (transforms.clip_per_leaf(0.5),),
    "adaptive_clip": lambda: (transforms.adaptive_clip(bit_noise=4.0, cohort=COHORT),),
    "local_momentum": lambda: (transforms.local_momentum(),),
    "local_momentum, clip_l2": lambda: (transforms.local_momentum(), clip()),
    "clip_l2, local_momentum": lambda: (clip(), transforms.local_momentum()),
    "top_k": lambda: (transforms.top_k(0.5),),
    "top_k, clip_l2": lambda: (transforms.top_k(0.5), clip()),
    "random_k": lambda: (transforms.random_k(0.5),),
    "random_k, clip_l2": lambda: (transforms.random_k(0.5), clip()),
    "error_feedback(random_k)": lambda: (feedback(),),
    "error_feedback(random_k), clip_l2": lambda: (feedback(), clip()),
    "clip_l2, error_feedback(random_k)": lambda: (clip(), feedback()),
    "ef21(top_k)": lambda: (transforms.ef21(transforms.top_k(0.5)),),
    "ef21(top_k), clip_l2": lambda: (transforms.ef21(transforms.top_k(0.5)), clip()),
    "qsgd": lambda: (transforms.qsgd(15),),
    "clip_l2, qsgd": lambda: (clip(), transforms.qsgd(15)),
    "sign": lambda: (transforms.sign(),),
    "eden, clip_l2": lambda: (transforms.eden(2), clip()),
}
RULES = {
    "mean": aggregators.mean,
    "median": aggregators.median,
    "krum": lambda: aggregators.krum(1),
    "secure_mean": lambda: secagg.secure_mean(threshold=2),
    "grouped_secure(median)": lambda: secagg.grouped_secure(2, aggregators.median()),
}
MECHANISMS = {
    "none": lambda: None,
    "central_gaussian": lambda: privacy.central_gaussian(1.0),
    "local_gaussian": lambda: privacy.local_gaussian(noise_multiplier=1.0),
    "tree_aggregation": lambda: privacy.tree_aggregation(1.0, restart_every=2),
    "distributed_skellam": lambda: privacy.distributed_skellam(1.0),
}


def cells():
    """Every combination of a chain, a rule and a mechanism, by name."""
    return itertools.product(CHAINS, RULES, MECHANISMS)


def sampling_of(mechanism):
    """Trees need cohorts whose clients come back only after the tree."""
    return CYCLIC if mechanism == "tree_aggregation" else FIXED


def build(chain, rule, mechanism):
    """The plan of a cell; a constructor may refuse too."""
    return plan(
        transforms=CHAINS[chain](),
        aggregator=RULES[rule](),
        mechanism=MECHANISMS[mechanism](),
        weighting="uniform",
    )


def verdict(chain, rule, mechanism):
    """``(refusal or None, warnings)`` of one cell, before anything is traced."""
    sampling = sampling_of(mechanism)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            check_plan(
                build(chain, rule, mechanism),
                abstract_params=jax.eval_shape(make_params),
                cohort_size=sampling.cohort_size,
                sampling=sampling,
            )
        except CompositionError as refusal:
            return str(refusal), []
    return None, [str(w.message) for w in caught]


def page():
    """The tables of docs/composition.md: one for each mechanism."""
    notes, lines = {}, []

    def note(text):
        return notes.setdefault(text, len(notes) + 1)

    for mechanism in MECHANISMS:
        lines += [f"### mechanism: {mechanism}", ""]
        lines += ["| transforms | " + " | ".join(RULES) + " |", "|---" * 6 + "|"]
        for chain in CHAINS:
            row = []
            for rule in RULES:
                refusal, said = verdict(chain, rule, mechanism)
                if refusal is not None:
                    row.append(f"no {note(refusal)}")
                else:
                    row.append("yes" + "".join(f", warned {note(w)}" for w in said))
            lines.append(f"| {chain} | " + " | ".join(row) + " |")
        lines.append("")
    lines += ["### What is said", ""]
    lines += [f"{number}. {text}" for text, number in notes.items()]
    return "\n".join(lines)
