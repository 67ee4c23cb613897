"""What a run would do, without running it."""

from typing import Any

import numpy as np

from fedjax_health import build, records
from fedjax_health.config import Config
from fedjax_health.core import trees
from fedjax_health.core.message import Message
from fedjax_health.data.preprocess import summary
from fedjax_health.data.presence import present_modalities
from fedjax_health.data.schema import Dataset
from fedjax_health.data.store import ClientStore
from fedjax_health.engine.devices import available_memory
from fedjax_health.metrics.groups import patterns
from fedjax_health.training.account import example_privacy, guarantee
from fedjax_health.training.setup import disk_bytes, prepare_run, state_bytes

# What the interpreter and its libraries take before any data is there; measured.
BASE_MEMORY = 450 << 20


def describe(config: Config) -> dict[str, Any]:
    """Describes a run without training: stages, message, bytes, memory, mapping.

    Args:
      config: the configuration.

    Returns:
      Nested names and values, for a person or as JSON.
    """
    run = prepare_run(config, records.SILENT)
    built, plan, store = run.built, run.built.plan, run.prepared.store
    message = built.algorithm.message
    slots = built.sampling.cohort_size
    model_bytes = trees.num_bytes(built.abstract_params)
    root = run.prepared.root
    store_bytes = sum(_bytes(one) for one in (store, root) if one is not None)
    devices = build.build_mesh(config.devices).size
    parts = run.prepared.parts
    table = {
        "interpreter and libraries": BASE_MEMORY,
        "data": 2 * sum(sum(v.nbytes for v in p.features.values()) for p in parts),
        "training examples": store_bytes * (1 + devices),
        "state": (state_bytes(run) + 2 * model_bytes) * (devices + 1),
        "stacked messages": 3 * model_bytes * slots * devices
        if plan.keeps_stack
        else 0,
    }
    summaries = {
        name: summary(part) for name, part in zip(parts._fields, parts, strict=True)
    }
    return {
        "data": {
            name: {
                "rows": part.num_rows,
                "prevalence": part.prevalence,
                "single_class_clients": len(part.single_class_clients),
                **_modalities(getattr(parts, name), run.prepared.window),
            }
            for name, part in summaries.items()
        },
        "clients": {
            "population": store.num_clients,
            "cohort": built.sampling.expected,
            "slots": slots,
            "sampling": built.sampling.scheme,
            "malicious": int(built.malicious.sum()),
            "examples": store.num_examples,
            "largest": int(np.diff(store.offsets).max()),
            "smallest": int(np.diff(store.offsets).min()),
        },
        **({"root": _root(root)} if root is not None else {}),
        "stages": _stages(config),
        "message": {
            "parameters": message.num_params,
            "bits": message.bits,
            "density": message.density,
            "bound": message.bound or "none",
            "uplink_bytes_per_client": message.uplink_bytes(),
            "uplink_bytes_per_round": message.uplink_bytes() * built.sampling.expected,
            "downlink_bytes_per_client": built.algorithm.downlink_bytes,
            "downlink_bytes_per_round": (
                built.algorithm.downlink_bytes * built.sampling.expected
            ),
            **_secure_sum(message),
        },
        **_privacy(config, built, store),
        "memory": {
            **{f"{name} (bytes)": int(value) for name, value in table.items()},
            "predicted_bytes": int(sum(table.values())),
            "free_bytes": available_memory(),
        },
        "disk_bytes": disk_bytes(run),
        "parallelism": built.algorithm.parallelism,
        "rounds": config.rounds,
    }


def _modalities(part: Dataset, window: int | None) -> dict[str, Any]:
    """Returns the share of examples by the modalities they have; empty for one kind."""
    present = present_modalities(part, window=window)
    number, names = patterns(present, tuple(part.features))
    if len(names) < 2:
        return {}
    shares = np.bincount(number) / len(number)
    return {"modalities": dict(zip(names, shares.tolist(), strict=True))}


def _secure_sum(message: Message) -> dict[str, Any]:
    """Returns how messages are hidden in sums; empty where the server sees each."""
    if message.modulus_bits is None:
        return {}
    return {
        "secure_sum": f"modulo 2**{message.modulus_bits}",
        "threshold": message.min_messages,
        "groups": message.groups,
    }


def _privacy(config: Config, built: build.Built, store: ClientStore) -> dict[str, Any]:
    """Returns what the whole plan guarantees; empty where it is nothing."""
    found = {
        "privacy": guarantee(config, built, config.rounds),
        "example_privacy": example_privacy(config, store, config.rounds),
    }
    return {name: told for name, told in found.items() if told is not None}


def _bytes(store: ClientStore) -> int:
    return sum(values.nbytes for values in store.rows.values())


def _root(root: ClientStore) -> dict[str, Any]:
    """Returns what the server's own data are, rows that fill up windows left out."""
    assert root.client_names is not None
    label = root.rows["label"]
    if "valid" in root.rows:
        label = label[root.rows["valid"] > 0]
    return {
        "client": root.client_names[0],
        "rows": len(label),
        "prevalence": float(np.mean(label)),
        "examples": root.num_examples,
    }


def _stages(config: Config) -> dict[str, str]:
    """Returns what fills each stage, in the order of a round."""
    chain = " -> ".join(_kind(entry) for entry in config.transforms) or "identity"
    return {
        "0 poison data": _kind(config.data_attack),
        "1 train locally": (
            f"{_kind(config.algorithm)}, {_kind(config.local.optimizer)}, "
            f"{config.local.epochs or config.local.steps} "
            f"{'epochs' if config.local.epochs else 'steps'}, "
            f"batches of {config.local.batch_size}" + _devices(config)
        ),
        "2 shape the message": chain,
        "3 forge messages": _kind(config.attack),
        "4 aggregate": (
            ", ".join(_kind(part) for part in (*config.mixings, config.aggregator))
            + f", weighted by {config.weighting}"
        ),
        "5 privatise": _kind(config.mechanism),
        "6 step the server": _kind(config.server),
    }


def _devices(config: Config) -> str:
    every = config.local.device_steps
    return "" if every is None else f", devices averaged every {every} steps"


def _kind(entry: Any) -> str:
    if entry is None:
        return "none"
    name = str(type(entry).__struct_config__.tag)
    return f"{name} {entry.target}" if name == "custom" else name
