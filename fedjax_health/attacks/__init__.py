"""Attacks of malicious clients, on what they send and on what they train with.

Each function returns a record of pure functions and says in its docstring what its
threat model lets it see. docs/attacks.md lists them all with formula and source.
"""

from fedjax_health.attacks.crafted import fang
from fedjax_health.attacks.distances import min_max, min_sum
from fedjax_health.attacks.imitation import mimic
from fedjax_health.attacks.labels import label_flip, label_noise, targeted_label_flip
from fedjax_health.attacks.own import (
    free_rider,
    model_replacement,
    neurotoxin,
    nonfinite,
)
from fedjax_health.attacks.schedule import during
from fedjax_health.attacks.search import optimized
from fedjax_health.attacks.statistical import alie, gaussian, ipm, sign_flip, sybil
from fedjax_health.attacks.success import attack_success_rate
from fedjax_health.attacks.trigger import (
    Trigger,
    affected_steps,
    apply_trigger,
    backdoor,
    distributed_backdoor,
)

__all__ = [
    "Trigger",
    "affected_steps",
    "alie",
    "apply_trigger",
    "attack_success_rate",
    "backdoor",
    "distributed_backdoor",
    "during",
    "fang",
    "free_rider",
    "gaussian",
    "ipm",
    "label_flip",
    "label_noise",
    "mimic",
    "min_max",
    "min_sum",
    "model_replacement",
    "neurotoxin",
    "nonfinite",
    "optimized",
    "sign_flip",
    "sybil",
    "targeted_label_flip",
]
