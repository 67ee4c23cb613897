"""fedjax_health: federated learning for healthcare cyber-security, simulated in JAX."""

__version__ = "0.1.0"
