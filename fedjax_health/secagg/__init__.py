"""Secure aggregation: sums of integers that hide what each client sent.

``secure_mean`` and ``grouped_secure`` fill the aggregator's place of a round.
``run_protocol`` sums vectors of integers by the protocol itself, without a round.
"""

from fedjax_health.secagg.fixed_point import fixed_point
from fedjax_health.secagg.graph import plan_graph
from fedjax_health.secagg.grouped_secure import grouped_secure, largest_group
from fedjax_health.secagg.protocol import ProtocolError, Transcript, run_protocol
from fedjax_health.secagg.secure_mean import secure_mean
from fedjax_health.secagg.view import server_view

__all__ = [
    "ProtocolError",
    "Transcript",
    "fixed_point",
    "grouped_secure",
    "largest_group",
    "plan_graph",
    "run_protocol",
    "secure_mean",
    "server_view",
]
