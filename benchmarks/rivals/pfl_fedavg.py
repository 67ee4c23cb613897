"""Worker: pfl-research's federated averaging, PyTorch back-end, one process.

Run in the environment ``pfl``; ``--threads`` sets PyTorch's threads. The time of a
request is that of ``FederatedAveraging.run``, the building of its records included.
One thread is its best here: with two the same step takes longer and more of both cores.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import tempfile
import types
from pathlib import Path

import numpy as np

from benchmarks import protocol, workloads


def _build_network(workload, params):
    """Returns the model with the given initial parameters."""
    import torch

    def transposed(name):
        return torch.from_numpy(np.ascontiguousarray(params[name].T))

    class Gru(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = torch.nn.GRU(16, workloads.HIDDEN, batch_first=True)
            self.out = torch.nn.Linear(workloads.HIDDEN, 1)

        def forward(self, x):
            return self.out(self.gru(x)[0][:, -1])[:, 0]

    class Mlp(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(64, 128),
                torch.nn.ReLU(),
                torch.nn.Linear(128, 64),
                torch.nn.ReLU(),
                torch.nn.Linear(64, 1),
            )

        def forward(self, x):
            return self.layers(x)[:, 0]

    network = Mlp() if workload == "mlp" else Gru()
    network.load_state_dict(
        {theirs: transposed(ours) for ours, theirs in PARAMETER_NAMES[workload].items()}
    )
    return network


PARAMETER_NAMES = {
    "mlp": {
        "w1": "layers.0.weight",
        "b1": "layers.0.bias",
        "w2": "layers.2.weight",
        "b2": "layers.2.bias",
        "w3": "layers.4.weight",
        "b3": "layers.4.bias",
    },
    "gru": {
        "wi": "gru.weight_ih_l0",
        "bi": "gru.bias_ih_l0",
        "wh": "gru.weight_hh_l0",
        "bh": "gru.bias_hh_l0",
        "wo": "out.weight",
        "bo": "out.bias",
    },
}
"""Names of the parameters here -> names in PyTorch, where weights are transposed."""


def build(workload: str, threads: int) -> protocol.Trainer:
    """Sets pfl up for one workload."""
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.model.pytorch import PyTorchModel

    # pfl logs every round; at the level that a user would turn off first.
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(threads)
    clients = workloads.client_data(workload)
    tensors = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in clients]
    rng = np.random.default_rng(3)

    def visit(client):
        features, label = tensors[client]
        order = torch.from_numpy(rng.permutation(len(label)))
        return Dataset(raw_data=[features[order], label[order]], user_id=str(client))

    def loss(self, x, y, eval=False):
        self.eval() if eval else self.train()
        return torch.nn.functional.binary_cross_entropy_with_logits(self(x), y)

    def metrics(self, x, y):
        return {"loss": self.loss(x, y, eval=True).item()}

    # pfl evaluates every client of iteration 0 before and after training, however rare
    # evaluation is to be. A request resumes at iteration 1 and is spared that.
    resume = tempfile.TemporaryDirectory()
    Path(resume.name, "algorithm_checkpoint.json").write_text(
        json.dumps({"current_central_iteration": 1})
    )

    def start():
        network = _build_network(workload, workloads.initial_params(workload))
        network.loss = types.MethodType(loss, network)
        network.metrics = types.MethodType(metrics, network)
        return network

    network = start()

    def reset():
        nonlocal network
        network = start()

    def train(rounds):
        cohorts = workloads.schedule(max(rounds) + 1)
        visits = iter([int(c) for number in rounds for c in cohorts[number]])
        users = FederatedDataset(visit, lambda: next(visits))
        algorithm = FederatedAveraging()
        algorithm.load(resume.name)
        algorithm.run(
            algorithm_params=NNAlgorithmParams(
                central_num_iterations=1 + len(rounds),
                evaluation_frequency=10**9,
                train_cohort_size=workloads.COHORT_SIZE,
                val_cohort_size=0,
            ),
            backend=SimulatedBackend(
                training_data=users,
                val_data=users,
                postprocessors=[WeightByDatapoints()],
            ),
            model=PyTorchModel(
                network,
                local_optimizer_create=torch.optim.SGD,
                central_optimizer=torch.optim.SGD(network.parameters(), 1.0),
            ),
            model_train_params=NNTrainHyperParams(
                local_num_epochs=workloads.EPOCHS,
                local_learning_rate=workloads.LEARNING_RATE,
                local_batch_size=workloads.BATCH_SIZE,
            ),
            model_eval_params=NNEvalHyperParams(local_batch_size=None),
            callbacks=[],
            send_metrics_to_platform=False,
        )
        return len(rounds)

    def loss_now():
        theirs = network.state_dict()
        params = {
            ours: theirs[name].numpy().T
            for ours, name in PARAMETER_NAMES[workload].items()
        }
        return workloads.mean_loss(workload, params, clients)

    return protocol.Trainer(
        train=train,
        reset=reset,
        loss=loss_now,
        versions={
            "pfl": importlib.metadata.version("pfl"),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        details={"threads": torch.get_num_threads()},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", choices=workloads.NAMES)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    protocol.serve(
        lambda: build(args.workload, args.threads),
        warm_rounds=list(range(workloads.WARM_ROUNDS)),
    )


if __name__ == "__main__":
    main()
