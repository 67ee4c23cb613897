"""Data: sources, roles, splits, preprocessing, the packed store and cohorts."""
