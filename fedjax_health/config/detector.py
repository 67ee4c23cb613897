"""The detector and the loss that it is trained with."""

from typing import Annotated, ClassVar, Literal

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
      dense: units of further layers on what the recurrent one hands on.
    """

    hidden: Positive = 48
    dropout: BelowOne = 0.0
    norm: bool = False
    pooling: Pooling = "last"
    statistics: bool = False
    dense: tuple[Positive, ...] = ()


class Mlp(Record, frozen=True, tag_field="kind", tag="mlp"):
    """A multilayer perceptron on single rows, or on each step of a window.

    Attributes:
      hidden: units of each hidden layer; empty for logistic regression.
      dropout: share of hidden units dropped during training.
      norm: whether each hidden layer has a LayerNorm.
      statistics: whether, with windows, mean, least and greatest value and count of
        each feature so far are joined; else it sees the last row alone.
      input_dropout: share of the inputs dropped during training.
      skip: whether the head sees the inputs beside the last hidden layer.
    """

    hidden: tuple[Positive, ...] = (128, 64)
    dropout: BelowOne = 0.0
    norm: bool = False
    statistics: bool = True
    input_dropout: BelowOne = 0.0
    skip: bool = False


class Tcn(Record, frozen=True, tag_field="kind", tag="tcn"):
    """A dilated causal convolution over windows (Bai et al. 2018), with LayerNorm.

    Attributes:
      hidden: units of every layer.
      levels: residual blocks; the dilation doubles from block to block.
      kernel: steps that a convolution reads; a step sees (kernel - 1)(2^levels - 1)
        steps before it.
      dropout: share of units dropped in each block during training.
      pooling: as for gru.
      statistics: as for gru.
      dense: as for gru.
    """

    hidden: Positive = 48
    levels: Annotated[int, msgspec.Meta(ge=1, le=16)] = 4
    kernel: Annotated[int, msgspec.Meta(ge=2)] = 3
    dropout: BelowOne = 0.0
    pooling: Pooling = "last"
    statistics: bool = False
    dense: tuple[Positive, ...] = ()


class Grud(Record, frozen=True, tag_field="kind", tag="grud"):
    """A GRU whose missing values and state decay (GRU-D, Che et al. 2018).

    For windows in which values are carried forward where they were not observed.

    Attributes:
      hidden: units of the recurrent layer.
      hidden_decay: whether the state decays as well as the values.
      dropout: share of hidden states dropped before the head during training.
      pooling: as for gru.
      statistics: as for gru.
      dense: as for gru.
    """

    hidden: Positive = 48
    hidden_decay: bool = True
    dropout: BelowOne = 0.0
    pooling: Pooling = "last"
    statistics: bool = False
    dense: tuple[Positive, ...] = ()


class FtTransformer(Record, frozen=True, tag_field="kind", tag="ft_transformer"):
    """A transformer over the features of a row (Gorishniy et al. 2021).

    With windows it reads each step by itself, or the last one where a label belongs to
    the whole window.

    Attributes:
      width: of the token of a feature.
      blocks: attention blocks.
      heads: heads of an attention; must divide width.
      dropout: share of attention weights and of feed-forward units dropped during
        training.
      dense: as for gru.
    """

    width: Positive = 32
    blocks: Positive = 2
    heads: Positive = 4
    dropout: BelowOne = 0.0
    dense: tuple[Positive, ...] = ()

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(
                f"width={self.width} must be a multiple of heads={self.heads}"
            )


Encoder = Gru | Mlp | Tcn | Grud | FtTransformer


class Fusion(Record, frozen=True, tag_field="kind", tag="fusion"):
    """An encoder for each modality, and one answer of what they find.

    Attributes:
      encoders: modality -> its encoder, such as {flow = {kind = "gru"}}; one that is
        not named has a gru, a grud where values are carried forward, or for single
        rows an mlp of one layer of 64.
      fuse: how what the encoders find becomes one answer: a gate over the modalities'
        own logits and a joint logit ("gated"), the joint logit alone ("concatenation"),
        that of embeddings that attend to one another ("cross_attention"), or the mean
        of the modalities' own logits ("late").
      joint: units of the joint layer, which late does not have.
      aligned: width of the space in which modalities are compared; 0 for none.
      disagreement: whether the joint layer sees how far modalities disagree in that
        space.
      heads: of the attention of cross_attention; must divide joint.
      modality_dropout: probability that a training example loses a modality.
      dropout: share of the joint layer's units dropped during training.
    """

    encoders: dict[str, Encoder] = msgspec.field(default_factory=dict)
    fuse: Literal["gated", "concatenation", "cross_attention", "late"] = "gated"
    joint: Positive = 32
    aligned: Count = 32
    disagreement: bool = True
    heads: Positive = 4
    modality_dropout: BelowOne = 0.2
    dropout: BelowOne = 0.0

    def __post_init__(self):
        if self.fuse == "cross_attention" and self.joint % self.heads:
            raise ValueError(
                f"joint={self.joint} must be a multiple of heads={self.heads}"
            )
        if self.fuse == "late" and self.dropout:
            raise ValueError(
                f"dropout={self.dropout} acts on the joint layer, which fuse=late does "
                "not have: set it to 0"
            )


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


Model = Gru | Mlp | Tcn | Grud | FtTransformer | Fusion | WideDeep | Custom


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


class LogitSmoothness(Record, frozen=True, tag_field="kind", tag="logit"):
    """Squared step of the probability between neighbouring steps.

    Attributes:
      weight: weight of the term.
      masked: whether steps at which the label changes are left out; without it onsets
        are detected later.
    """

    weight: NonNegative = 0.1
    masked: bool = True


class EmbeddingSmoothness(Record, frozen=True, tag_field="kind", tag="embedding"):
    """Squared step of a fusion model's embedding, less where the input changes.

    Attributes:
      weight: weight of the term.
      sigma: root mean square step of the input, in standard deviations, at which a pair
        of steps counts 1/e.
    """

    weight: NonNegative = 0.1
    sigma: AboveZero = 1.0


class WindowContrast(Record, frozen=True, tag_field="kind", tag="window"):
    """Contrast of two noisy views of a window (TS-TCC, Eldele et al. 2021).

    Attributes:
      weight: weight of the term.
      temperature: of the cosines between embeddings.
      jitter: deviation of the noise on each value, in standard deviations.
      scaling: deviation of the factor of each feature.
    """

    weight: NonNegative = 0.1
    temperature: AboveZero = 0.2
    jitter: NonNegative = 0.1
    scaling: NonNegative = 0.1


Temporal = LogitSmoothness | EmbeddingSmoothness | WindowContrast


class InfoNce(Record, frozen=True, tag_field="kind", tag="infonce"):
    """Agreement of the first two modalities on normal data, by masked InfoNCE.

    Attributes:
      weight: weight of the term.
      temperature: of the cosines between embeddings.
      step: which step of a window makes its pair: the last, or one drawn at random.
    """

    assumed: ClassVar[bool] = True

    weight: NonNegative = 0.1
    temperature: AboveZero = 0.1
    step: Literal["last", "random"] = "last"


class Comm(Record, frozen=True, tag_field="kind", tag="comm"):
    """Contrast of fused embeddings, whole and of single modalities (CoMM, 2025).

    Attributes:
      weight: weight of the term.
      temperature: of the cosines between embeddings.
      jitter: deviation of the noise on each value, in standard deviations.
      scaling: deviation of the factor of each feature.
    """

    weight: NonNegative = 0.1
    temperature: AboveZero = 0.1
    jitter: NonNegative = 0.1
    scaling: NonNegative = 0.1


Alignment = InfoNce | Comm
