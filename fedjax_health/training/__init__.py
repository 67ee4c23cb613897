"""From a configuration to a run folder: train, resume, describe."""

from fedjax_health.training.describe import describe
from fedjax_health.training.run import resume, train

__all__ = ["describe", "resume", "train"]
