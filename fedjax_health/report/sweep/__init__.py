"""The report of a sweep: which candidate to choose in which circumstances."""
