"""How training goes: algorithms, optimisers and schedules."""

import msgspec

from fedjax_health.config.common import (
    AboveZero,
    BelowOne,
    Custom,
    NonNegative,
    Positive,
    Record,
    Share,
)


class FedAvg(Record, frozen=True, tag_field="kind", tag="fedavg"):
    """Local training from the global model (McMahan et al. 2017)."""


class FedProx(Record, frozen=True, tag_field="kind", tag="fedprox"):
    """FedAvg with a proximal term (Li et al. 2020).

    Attributes:
      mu: strength of the pull towards the global model.
    """

    mu: NonNegative = 0.01


class Scaffold(Record, frozen=True, tag_field="kind", tag="scaffold"):
    """Control variates against client drift (Karimireddy et al. 2020)."""


class Ditto(Record, frozen=True, tag_field="kind", tag="ditto"):
    """A personal model beside the global one (Li et al. 2021).

    Attributes:
      strength: strength of the personal model's pull towards the global one.
    """

    strength: NonNegative = 0.1


Algorithm = FedAvg | FedProx | Scaffold | Ditto | Custom


class Sgd(Record, frozen=True, tag_field="kind", tag="sgd"):
    """Stochastic gradient descent on the client.

    Attributes:
      learning_rate: step size.
      momentum: heavy-ball momentum, started anew in every round.
    """

    learning_rate: AboveZero = 0.1
    momentum: BelowOne = 0.0


class Adam(Record, frozen=True, tag_field="kind", tag="adam"):
    """Adam on the client, its moments started anew in every round.

    Attributes:
      learning_rate: step size.
      beta1: decay of the first moment.
      beta2: decay of the second moment.
      epsilon: added to the root of the second moment.
      weight_decay: pull of the weights towards 0, decoupled from the gradient (AdamW).
    """

    learning_rate: AboveZero = 0.001
    beta1: BelowOne = 0.9
    beta2: BelowOne = 0.999
    epsilon: AboveZero = 1e-8
    weight_decay: NonNegative = 0.0


Optimizer = Sgd | Adam | Custom


class Constant(Record, frozen=True, tag_field="kind", tag="constant"):
    """The same client learning rate in every round."""


class Cosine(Record, frozen=True, tag_field="kind", tag="cosine"):
    """Half a cosine from the learning rate down to a share of it, over all rounds.

    Attributes:
      final: share of the learning rate that is left in the last round.
    """

    final: Share = 0.0


class Exponential(Record, frozen=True, tag_field="kind", tag="exponential"):
    """The learning rate times a factor for every round done.

    Attributes:
      decay: factor of one round, in (0, 1].
    """

    decay: AboveZero = 0.99

    def __post_init__(self):
        if self.decay > 1:
            raise ValueError(f"decay={self.decay}: must lie in (0, 1]")


class WarmupCosine(Record, frozen=True, tag_field="kind", tag="warmup_cosine"):
    """A linear rise to the learning rate, then half a cosine down.

    Attributes:
      warmup: rounds of the rise.
      final: share of the learning rate that is left in the last round.
    """

    warmup: Positive = 5
    final: Share = 0.0


Schedule = Constant | Cosine | Exponential | WarmupCosine | Custom


class DpSgd(Record, frozen=True):
    """Private gradients: one example's influence on a client's message is bounded.

    Attributes:
      clip_norm: bound on the gradient of one example.
      noise_multiplier: standard deviation of the noise over that bound.
      microbatch: examples that are gone through at a time; where it is left out, as
        many as nine batches in ten hold.
    """

    clip_norm: AboveZero = 1.0
    noise_multiplier: AboveZero = 1.0
    microbatch: Positive | None = None


class Local(Record, frozen=True):
    """Training on the client.

    Attributes:
      optimizer: the client's optimiser.
      schedule: its learning rate over the rounds.
      epochs: passes over the client's examples; 1 where steps is not given.
      steps: batches, in place of epochs.
      batch_size: examples of a batch.
      example_privacy: DP-SGD, which protects single examples; none where it is left
        out.
      device_steps: local steps after which the devices of a client, each training on
        its own examples, are averaged in it (HierFAVG); a client's examples are one
        heap where it is left out.
    """

    optimizer: Optimizer = Sgd()
    schedule: Schedule = Constant()
    epochs: Positive | None = None
    steps: Positive | None = None
    batch_size: Positive = 32
    example_privacy: DpSgd | None = None
    device_steps: Positive | None = None

    def __post_init__(self):
        if self.device_steps is not None and self.example_privacy is not None:
            raise ValueError(
                f"device_steps={self.device_steps} and example_privacy exclude each "
                "other: DP-SGD is accounted for a client that draws from all its "
                "examples; drop one (--set local.device_steps=none)"
            )
        if self.epochs is not None and self.steps is not None:
            raise ValueError(
                f"epochs={self.epochs} and steps={self.steps} exclude each other: "
                "drop one (--set local.epochs=none or --set local.steps=none)"
            )
        if self.epochs is None and self.steps is None:
            msgspec.structs.force_setattr(self, "epochs", 1)


class ServerSgd(Record, frozen=True, tag_field="kind", tag="sgd"):
    """The aggregate as a step: FedAvg, or FedAvgM with momentum.

    Attributes:
      learning_rate: server step size; 1 for FedAvg.
      momentum: server momentum.
    """

    learning_rate: AboveZero = 1.0
    momentum: BelowOne = 0.0


class ServerAdam(Record, frozen=True, tag_field="kind", tag="adam"):
    """FedAdam (Reddi et al. 2021).

    Attributes:
      learning_rate: server step size.
      beta1: decay of the first moment.
      beta2: decay of the second moment.
      epsilon: degree of adaptivity (tau in the paper).
    """

    learning_rate: AboveZero = 0.01
    beta1: BelowOne = 0.9
    beta2: BelowOne = 0.99
    epsilon: AboveZero = 0.001


class ServerYogi(Record, frozen=True, tag_field="kind", tag="yogi"):
    """FedYogi (Reddi et al. 2021).

    Attributes:
      learning_rate: server step size.
      beta1: decay of the first moment.
      beta2: decay of the second moment.
      epsilon: degree of adaptivity (tau in the paper).
    """

    learning_rate: AboveZero = 0.01
    beta1: BelowOne = 0.9
    beta2: BelowOne = 0.99
    epsilon: AboveZero = 0.001


Server = ServerSgd | ServerAdam | ServerYogi | Custom
