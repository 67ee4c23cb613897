"""Worker: cells of the robustness grid by ByzFL's own pipeline, one after the other.

The training loop is that of ByzFL's documentation: every step each honest ``Client``
gets the server's parameters and computes one gradient, a ``ByzantineClient`` makes the
malicious ones from them, and the ``Server`` aggregates them all and takes a step. The
test accuracy is computed once, at the end. Runs in the environment "byzfl", on PyTorch
with one thread, which is its fastest for a model of this size.

======================  ============================================================
request                 reply, one JSON object
======================  ============================================================
(after the start)       ``setup_seconds``
``cell NAME STEPS``     ``seconds``, ``cpu_seconds``, ``accuracy``
``exact NAME STEPS``    ``params``: trained on whole clients in place of batches
``quit``                ``versions``
======================  ============================================================
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
import time
import types
import warnings
from importlib import metadata
from pathlib import Path

from benchmarks import digits

NAMES = {"w1": "_f1.weight", "b1": "_f1.bias", "w2": "_f2.weight", "b2": "_f2.bias"}
"""Parameters here -> in the network, where weights are transposed."""


def build(data: digits.Data):
    """Returns ``(cell, steps, batch_size) -> (parameters, accuracy)``."""
    import numpy as np
    import torch

    # ByzFL's __init__ imports its plots, which want packages that training does not.
    spec = importlib.util.find_spec("byzfl")
    assert spec is not None
    package = types.ModuleType("byzfl")
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["byzfl"] = package
    from byzfl.fed_framework import ByzantineClient, Client, Server, models
    from byzfl.utils.misc import set_random_seed
    from torch.utils.data import DataLoader, Subset, TensorDataset

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    hidden = data.params["w1"].shape[-1]

    class Network(torch.nn.Module):
        """ByzFL's fc_mnist with the sizes of the digits."""

        def __init__(self):
            super().__init__()
            self._f1 = torch.nn.Linear(digits.FEATURES, hidden)
            self._f2 = torch.nn.Linear(hidden, digits.CLASSES)

        def forward(self, x):
            x = torch.nn.functional.relu(self._f1(x))
            return torch.nn.functional.log_softmax(self._f2(x), dim=1)

    # Client and Server look a model up by its name in this module.
    models.digits_mlp = Network
    examples = TensorDataset(
        torch.from_numpy(data.x), torch.from_numpy(data.label.astype(np.int64))
    )
    test = TensorDataset(
        torch.from_numpy(data.test_x),
        torch.from_numpy(data.test_label.astype(np.int64)),
    )

    def train(cell: digits.Cell, steps: int, batch_size: int):
        set_random_seed(cell.seed)
        aggregator, mixings = _defence(cell)
        clients = [
            Client(
                {
                    "model_name": "digits_mlp",
                    "device": "cpu",
                    "loss_name": "NLLLoss",
                    "LabelFlipping": False,
                    "training_dataloader": DataLoader(
                        Subset(examples, range(first, last)),
                        batch_size=batch_size,
                        shuffle=True,
                    ),
                    "momentum": 0.0,
                    "nb_labels": digits.CLASSES,
                    "store_per_client_metrics": False,
                }
            )
            for first, last in zip(data.offsets[:-1], data.offsets[1:], strict=True)
        ]
        server = Server(
            {
                "device": "cpu",
                "model_name": "digits_mlp",
                "test_loader": DataLoader(test, batch_size=len(test)),
                "optimizer_name": "SGD",
                "learning_rate": digits.LEARNING_RATE,
                "weight_decay": 0.0,
                "milestones": [steps + 1],
                "learning_rate_decay": 1.0,
                "aggregator_info": aggregator,
                "pre_agg_list": mixings,
            }
        )
        name, parameters = _attack(cell)
        attacker = ByzantineClient(
            {"name": name, "f": cell.malicious, "parameters": parameters}
        )
        server.model.load_state_dict(
            {
                NAMES[ours]: torch.from_numpy(value[cell.seed].T.copy())
                for ours, value in data.params.items()
            }
        )
        for _ in range(steps):
            model = server.get_dict_parameters()
            for client in clients:
                client.set_model_state(model)
            for client in clients:
                client.compute_gradients()
            honest = [client.get_flat_gradients_with_momentum() for client in clients]
            server.update_model_with_gradients(honest + attacker.apply_attack(honest))
        theirs = server.get_dict_parameters()
        params = {ours: theirs[name].numpy().T for ours, name in NAMES.items()}
        return params, server.compute_test_accuracy()

    return train


def _attack(cell: digits.Cell):
    return {
        "sign_flip": ("SignFlipping", {}),
        "ipm": ("InnerProductManipulation", {"tau": digits.IPM_SCALE}),
        "alie": ("ALittleIsEnough", {"tau": digits.ALIE_Z}),
        "mimic": ("Mimic", {"epsilon": 0}),
    }[cell.attack]


def _defence(cell: digits.Cell):
    f = {"f": cell.malicious}
    weiszfeld = {"nu": digits.SMOOTHING, "T": digits.WEISZFELD_STEPS}
    name, parameters = {
        "mean": ("Average", {}),
        "median": ("Median", {}),
        "trimmed_mean": ("TrMean", f),
        "geometric_median": ("GeometricMedian", weiszfeld),
        "nnm_trimmed_mean": ("TrMean", f),
    }[cell.defence]
    mixings = [{"name": "NNM", "parameters": f}] if "nnm" in cell.defence else []
    return {"name": name, "parameters": parameters}, mixings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    args = parser.parse_args()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(record) -> None:
        replies.write(json.dumps(record) + "\n")
        replies.flush()

    start = time.perf_counter()
    data = digits.read(args.data)
    train = build(data)
    whole = int((data.offsets[1:] - data.offsets[:-1]).max())
    reply({"setup_seconds": time.perf_counter() - start})
    for line in sys.stdin:
        request, *rest = line.split()
        if request == "quit":
            names = ("byzfl", "torch", "numpy")
            versions = {name: metadata.version(name) for name in names}
            reply({"versions": {"python": platform.python_version(), **versions}})
            return
        cell, steps = digits.cell_of(rest[0]), int(rest[1])
        begun = time.perf_counter(), time.process_time()
        batch_size = whole if request == "exact" else digits.BATCH_SIZE
        params, accuracy = train(cell, steps, batch_size)
        record = {
            "seconds": time.perf_counter() - begun[0],
            "cpu_seconds": time.process_time() - begun[1],
            "accuracy": accuracy,
        }
        if request == "exact":
            record["params"] = {name: x.tolist() for name, x in params.items()}
        reply(record)


if __name__ == "__main__":
    main()
