"""Differential privacy: mechanisms, and what they cost."""
