"""Experiments: each a configuration and a call of the library."""
