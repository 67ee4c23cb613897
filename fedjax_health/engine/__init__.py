"""The engine: a plan becomes one jitted round; rounds become a run."""
