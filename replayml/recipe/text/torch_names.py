"""The names of torch's, torchmetrics' and our own classes and functions that a recipe may use: pinned tables.

Every name stands here, letter by letter; a table holds what the installed library has of it. A test fails when a
name is gone from the library.

Left out on purpose: what calls its arguments or opens a path (``DataParallel``, ``CyclicLR``, ``LambdaLR``,
``MultiplicativeLR``, ``TripletMarginWithDistanceLoss``, metrics that load models), base classes (``Module``,
``Optimizer``, ``Metric``) and deprecated aliases. Functions are those that models hold as a choice: activations,
losses, ways to merge tensors, initialisers. Each takes tensors and numbers only.

Invariants:
    * A table is a dict from a name to an object; a name in a file is only ever a key to look up.
    * No object has two names.
    * torchmetrics is never imported here: its classes are there when the program has imported it. The same holds for
      our own initializers, which stand further down the flow of the data.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType, ModuleType

import torch
from torch import nn, optim
from torch.nn import functional as F
from torch.optim import lr_scheduler

__all__ = ["BUILTINS", "CLASSES", "FUNCTIONS", "LAYERS", "own_classes", "torchmetrics_classes"]

_LAYERS = """
AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveLogSoftmaxWithLoss AdaptiveMaxPool1d AdaptiveMaxPool2d
AdaptiveMaxPool3d AlphaDropout AvgPool1d AvgPool2d AvgPool3d BCELoss BCEWithLogitsLoss BatchNorm1d BatchNorm2d
BatchNorm3d Bilinear CELU CTCLoss ChannelShuffle CircularPad1d CircularPad2d CircularPad3d ConstantPad1d ConstantPad2d
ConstantPad3d Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d CosineEmbeddingLoss CosineSimilarity
CrossEntropyLoss CrossMapLRN2d Dropout Dropout1d Dropout2d Dropout3d ELU Embedding EmbeddingBag FeatureAlphaDropout
Flatten Fold FractionalMaxPool2d FractionalMaxPool3d GELU GLU GRU GRUCell GaussianNLLLoss GroupNorm Hardshrink
Hardsigmoid Hardswish Hardtanh HingeEmbeddingLoss HuberLoss Identity InstanceNorm1d InstanceNorm2d InstanceNorm3d
KLDivLoss L1Loss LPPool1d LPPool2d LPPool3d LSTM LSTMCell LayerNorm LazyBatchNorm1d LazyBatchNorm2d LazyBatchNorm3d
LazyConv1d LazyConv2d LazyConv3d LazyConvTranspose1d LazyConvTranspose2d LazyConvTranspose3d LazyInstanceNorm1d
LazyInstanceNorm2d LazyInstanceNorm3d LazyLinear LeakyReLU Linear LocalResponseNorm LogSigmoid LogSoftmax MSELoss
MarginRankingLoss MaxPool1d MaxPool2d MaxPool3d MaxUnpool1d MaxUnpool2d MaxUnpool3d Mish ModuleDict ModuleList
MultiLabelMarginLoss MultiLabelSoftMarginLoss MultiMarginLoss MultiheadAttention NLLLoss PReLU PairwiseDistance
ParameterDict ParameterList PixelShuffle PixelUnshuffle PoissonNLLLoss RMSNorm RNN RNNCell RReLU ReLU ReLU6
ReflectionPad1d ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d ReplicationPad3d SELU Sequential SiLU
Sigmoid SmoothL1Loss SoftMarginLoss Softmax Softmax2d Softmin Softplus Softshrink Softsign SyncBatchNorm Tanh
Tanhshrink Threshold Transformer TransformerDecoder TransformerDecoderLayer TransformerEncoder TransformerEncoderLayer
TripletMarginLoss Unflatten Unfold Upsample UpsamplingBilinear2d UpsamplingNearest2d ZeroPad1d ZeroPad2d ZeroPad3d
"""

_OPTIMIZERS = """
ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax LBFGS NAdam RAdam RMSprop Rprop SGD SparseAdam
"""

_SCHEDULERS = """
ChainedScheduler ConstantLR CosineAnnealingLR CosineAnnealingWarmRestarts ExponentialLR LinearLR MultiStepLR
OneCycleLR PolynomialLR ReduceLROnPlateau SequentialLR StepLR
"""

_FUNCTIONAL = """
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d avg_pool1d avg_pool2d avg_pool3d binary_cross_entropy
binary_cross_entropy_with_logits celu cosine_embedding_loss cosine_similarity cross_entropy ctc_loss elu
gaussian_nll_loss gelu glu gumbel_softmax hardshrink hardsigmoid hardswish hardtanh hinge_embedding_loss huber_loss
kl_div l1_loss leaky_relu log_softmax logsigmoid margin_ranking_loss mish mse_loss multi_margin_loss
multilabel_margin_loss multilabel_soft_margin_loss nll_loss normalize one_hot pairwise_distance poisson_nll_loss relu
relu6 rrelu selu sigmoid silu smooth_l1_loss soft_margin_loss softmax softmin softplus softshrink softsign tanh
tanhshrink threshold triplet_margin_loss
"""

_TENSOR_FUNCTIONS = """
abs add cat concat cos div erf exp flatten log log1p log_softmax logsumexp matmul max maximum mean min minimum mul prod
relu rsqrt sigmoid sin softmax sqrt square stack sub sum tanh
"""

_INITIALIZERS = """
constant_ dirac_ eye_ kaiming_normal_ kaiming_uniform_ normal_ ones_ orthogonal_ sparse_ trunc_normal_ uniform_
xavier_normal_ xavier_uniform_ zeros_
"""

_METRICS = """
CatMetric MaxMetric MeanMetric MinMetric RunningMean RunningSum SumMetric
"""

_CLASSIFICATION = """
AUROC Accuracy AveragePrecision BinaryAUROC BinaryAccuracy BinaryAveragePrecision BinaryCalibrationError
BinaryCohenKappa BinaryConfusionMatrix BinaryF1Score BinaryFBetaScore BinaryHammingDistance BinaryHingeLoss
BinaryJaccardIndex BinaryMatthewsCorrCoef BinaryPrecision BinaryPrecisionRecallCurve BinaryROC BinaryRecall
BinarySpecificity BinaryStatScores CalibrationError CohenKappa ConfusionMatrix ExactMatch F1Score FBetaScore
HammingDistance HingeLoss JaccardIndex MatthewsCorrCoef MulticlassAUROC MulticlassAccuracy MulticlassAveragePrecision
MulticlassCalibrationError MulticlassCohenKappa MulticlassConfusionMatrix MulticlassExactMatch MulticlassF1Score
MulticlassFBetaScore MulticlassHammingDistance MulticlassHingeLoss MulticlassJaccardIndex MulticlassMatthewsCorrCoef
MulticlassPrecision MulticlassPrecisionRecallCurve MulticlassROC MulticlassRecall MulticlassSpecificity
MulticlassStatScores MultilabelAUROC MultilabelAccuracy MultilabelAveragePrecision MultilabelConfusionMatrix
MultilabelCoverageError MultilabelExactMatch MultilabelF1Score MultilabelFBetaScore MultilabelHammingDistance
MultilabelJaccardIndex MultilabelMatthewsCorrCoef MultilabelPrecision MultilabelPrecisionRecallCurve MultilabelROC
MultilabelRankingAveragePrecision MultilabelRankingLoss MultilabelRecall MultilabelSpecificity MultilabelStatScores
Precision PrecisionRecallCurve ROC Recall Specificity StatScores
"""

_REGRESSION = """
ConcordanceCorrCoef CosineSimilarity ExplainedVariance KLDivergence KendallRankCorrCoef LogCoshError MeanAbsoluteError
MeanAbsolutePercentageError MeanSquaredError MeanSquaredLogError MinkowskiDistance PearsonCorrCoef R2Score
RelativeSquaredError SpearmanCorrCoef SymmetricMeanAbsolutePercentageError TweedieDevianceScore
WeightedMeanAbsolutePercentageError
"""

_OWN = """
Constant Kaiming Normal Orthogonal Uniform Xavier
"""

PINNED: Mapping[str, str] = MappingProxyType(
    {
        "torch.nn": _LAYERS,
        "torch.optim": _OPTIMIZERS,
        "torch.optim.lr_scheduler": _SCHEDULERS,
        "torch.nn.functional": _FUNCTIONAL,
        "torch": _TENSOR_FUNCTIONS,
        "torch.nn.init": _INITIALIZERS,
        "torchmetrics": _METRICS,
        "torchmetrics.classification": _CLASSIFICATION,
        "torchmetrics.regression": _REGRESSION,
        "replayml.layers.initializers": _OWN,
    }
)
"""Every list of names, by the module that has them."""

_OWN_MODULES = ("replayml.layers.initializers",)
_METRIC_MODULES = ("torchmetrics", "torchmetrics.classification", "torchmetrics.regression")


def _table(*modules: ModuleType) -> Mapping[str, object]:
    """Return the names of these modules with the objects that they stand for."""
    return MappingProxyType(
        {
            f"{module.__name__}.{name}": vars(module)[name]
            for module in modules
            for name in PINNED[module.__name__].split()
            if name in vars(module)
        }
    )


LAYERS = _table(nn)
CLASSES = _table(optim, lr_scheduler)
FUNCTIONS = _table(F, torch, nn.init)
BUILTINS: Mapping[str, object] = MappingProxyType(
    {
        f"{kind.__module__}.{kind.__name__}": kind
        for kind in (OrderedDict, bool, bytes, complex, dict, float, frozenset, int, list, set, str, tuple)
    }
)


def torchmetrics_classes() -> Mapping[str, object]:
    """Return the table of torchmetrics; it is empty in a program that has not imported torchmetrics.

    Example:
        >>> all(name.startswith("torchmetrics.") for name in torchmetrics_classes())
        True
    """
    return _table(*(sys.modules[name] for name in _METRIC_MODULES if name in sys.modules))


def own_classes() -> Mapping[str, object]:
    """Return the table of our own dataclasses that models are given; the program has imported them, or it is empty.

    Example:
        >>> import replayml
        >>> "replayml.layers.initializers.Kaiming" in own_classes()
        True
    """
    return _table(*(sys.modules[name] for name in _OWN_MODULES if name in sys.modules))
