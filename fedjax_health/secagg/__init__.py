"""Secure aggregation: sums of integers that hide what each client sent."""
