"""Aggregators: how the messages of a cohort become one.

``docs/robustness.md`` lists every rule and mixing with its formula, source, variant and
breakdown point. ``__all__`` names the constructors; ``pipeline`` and ``mix`` join and
apply what they make.
"""

from fedjax_health.aggregators.bucketing import bucketing
from fedjax_health.aggregators.bulyan import bulyan
from fedjax_health.aggregators.caf import caf
from fedjax_health.aggregators.centered_clip import centered_clip
from fedjax_health.aggregators.cge import cge
from fedjax_health.aggregators.clipping import arc, clip_norms
from fedjax_health.aggregators.dnc import dnc
from fedjax_health.aggregators.flame import flame
from fedjax_health.aggregators.fltrust import fltrust
from fedjax_health.aggregators.foolsgold import foolsgold
from fedjax_health.aggregators.geometric_median import geometric_median
from fedjax_health.aggregators.krum import krum, multi_krum
from fedjax_health.aggregators.linear import mean
from fedjax_health.aggregators.mean_around_median import mean_around_median
from fedjax_health.aggregators.median import median
from fedjax_health.aggregators.mixing import mix as mix
from fedjax_health.aggregators.mixing import pipeline as pipeline
from fedjax_health.aggregators.monna import monna
from fedjax_health.aggregators.nnm import nnm
from fedjax_health.aggregators.signguard import signguard
from fedjax_health.aggregators.signs import robust_learning_rate, sign_majority
from fedjax_health.aggregators.subsets import mda, smea
from fedjax_health.aggregators.trimmed_mean import trimmed_mean

__all__ = [
    "arc",
    "bucketing",
    "bulyan",
    "caf",
    "centered_clip",
    "cge",
    "clip_norms",
    "dnc",
    "flame",
    "fltrust",
    "foolsgold",
    "geometric_median",
    "krum",
    "mda",
    "mean",
    "mean_around_median",
    "median",
    "monna",
    "multi_krum",
    "nnm",
    "robust_learning_rate",
    "sign_majority",
    "signguard",
    "smea",
    "trimmed_mean",
]
