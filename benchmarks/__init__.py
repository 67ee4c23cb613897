"""Benchmarks of the engine against rivals; every figure is JSON with versions."""
