"""The detector and the loss that it is trained with."""

from fedjax_health.config.common import (
    AboveZero,
    BelowOne,
    Count,
    Custom,
    Positive,
    Record,
)


class Gru(Record, frozen=True, tag_field="kind", tag="gru"):
    """A causal GRU over windows, one logit per time step.

    Attributes:
      hidden: units of the recurrent layer.
      dropout: share of hidden states dropped before the head during training.
      norm: whether a linear layer with a LayerNorm comes first.
    """

    hidden: Positive = 48
    dropout: BelowOne = 0.0
    norm: bool = False


class Mlp(Record, frozen=True, tag_field="kind", tag="mlp"):
    """A multilayer perceptron on single rows, or on each step of a window.

    Attributes:
      hidden: units of each hidden layer; empty for logistic regression.
      dropout: share of hidden units dropped during training.
      norm: whether each hidden layer has a LayerNorm.
    """

    hidden: tuple[Positive, ...] = (128, 64)
    dropout: BelowOne = 0.0
    norm: bool = False


Model = Gru | Mlp | Custom


class Bce(Record, frozen=True, tag_field="kind", tag="bce"):
    """Binary cross-entropy, masked where there is no label.

    Attributes:
      positive_weight: weight of a positive example; 1 for none.
      burn_in: first steps of each window that are not scored, so that a recurrent
        model has seen some context.
    """

    positive_weight: AboveZero = 1.0
    burn_in: Count = 0


Loss = Bce | Custom
