"""Training, validation and test part that do not leak into each other."""

from fedjax_health.data.splits.groups import by_client, leave_one_out, stratified
from fedjax_health.data.splits.holdout import HeldOut, hold_out
from fedjax_health.data.splits.parts import Part, Parts, split_dataset, take_runs
from fedjax_health.data.splits.streams import chronological, episode_blocks

__all__ = [
    "HeldOut",
    "Part",
    "Parts",
    "by_client",
    "chronological",
    "episode_blocks",
    "hold_out",
    "leave_one_out",
    "split_dataset",
    "stratified",
    "take_runs",
]
