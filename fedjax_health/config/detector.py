"""The detector and the loss that it is trained with."""

from typing import Literal

import msgspec

from fedjax_health.config.common import (
    AboveZero,
    BelowOne,
    Count,
    Custom,
    NonNegative,
    OpenShare,
    Positive,
    Record,
)

Pooling = Literal["last", "mean", "attention"]


class Gru(Record, frozen=True, tag_field="kind", tag="gru"):
    """A causal GRU over windows, one logit per time step.

    Attributes:
      hidden: units of the recurrent layer.
      dropout: share of hidden states dropped before the head during training.
      norm: whether a linear layer with a LayerNorm comes first.
      pooling: where a label belongs to the whole window, what the head sees: the last
        state, the mean, or a mean weighted by a learned attention.
      statistics: whether mean, least and greatest value and count of each feature in
        the window so far are joined.
    """

    hidden: Positive = 48
    dropout: BelowOne = 0.0
    norm: bool = False
    pooling: Pooling = "last"
    statistics: bool = False


class Mlp(Record, frozen=True, tag_field="kind", tag="mlp"):
    """A multilayer perceptron on single rows, or on each step of a window.

    Attributes:
      hidden: units of each hidden layer; empty for logistic regression.
      dropout: share of hidden units dropped during training.
      norm: whether each hidden layer has a LayerNorm.
      statistics: whether, with windows, mean, least and greatest value and count of
        each feature so far are joined; else it sees the last row alone.
    """

    hidden: tuple[Positive, ...] = (128, 64)
    dropout: BelowOne = 0.0
    norm: bool = False
    statistics: bool = True


Encoder = Gru | Mlp


class Fusion(Record, frozen=True, tag_field="kind", tag="fusion"):
    """An encoder for each modality, a gate over their logits and a joint logit.

    Attributes:
      encoders: modality -> its encoder, such as {flow = {kind = "gru"}}; one that is
        not named has a gru, or for single rows an mlp of one layer of 64.
      joint: units of the joint layer.
      aligned: width of the space in which modalities are compared; 0 for none.
      modality_dropout: probability that a training example loses a modality.
      dropout: share of the joint layer's units dropped during training.
    """

    encoders: dict[str, Encoder] = msgspec.field(default_factory=dict)
    joint: Positive = 32
    aligned: Count = 32
    modality_dropout: BelowOne = 0.2
    dropout: BelowOne = 0.0


class WideDeep(Record, frozen=True, tag_field="kind", tag="wide_deep"):
    """A linear path beside a perceptron on values and squares, for single records.

    Attributes:
      hidden: units of each hidden layer; empty for the linear path alone.
      input_dropout: share of the inputs dropped during training.
      dropout: share of hidden units dropped during training.
    """

    hidden: tuple[Positive, ...] = (64,)
    input_dropout: BelowOne = 0.3
    dropout: BelowOne = 0.5


Model = Gru | Mlp | Fusion | WideDeep | Custom


class Bce(Record, frozen=True, tag_field="kind", tag="bce"):
    """Binary cross-entropy, masked where there is no label.

    Attributes:
      positive_weight: weight of a positive example; 1 for none.
      burn_in: first steps of each window that are not scored, so that a recurrent
        model has seen some context.
    """

    positive_weight: AboveZero = 1.0
    burn_in: Count = 0


class Focal(Record, frozen=True, tag_field="kind", tag="focal"):
    """The focal loss (Lin et al. 2017), masked where there is no label.

    Attributes:
      gamma: how much less an example counts that is already right.
      alpha: weight of a positive example, of a normal one 1 - alpha; the same for both
        where it is left out.
      burn_in: first steps of each window that are not scored.
    """

    gamma: NonNegative = 2.0
    alpha: OpenShare | None = None
    burn_in: Count = 0


Loss = Bce | Focal | Custom
