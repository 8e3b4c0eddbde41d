"""torch's own layers, and torchmetrics' metrics, given as arguments: the call that makes such a one again.

A layer that torch made has no record of its call. Its arguments are read off its attributes, the call is made on the
meta device, and what comes out is compared with the layer: its text, its attributes, its parameters and buffers with
shapes and dtypes, its mode. Only when all agree is the call the layer's data form. A metric is treated alike; what it
has seen so far is its state, as the values of weights are, and no part of the call.

Invariants:
    * A layer that differs from a new one in anything but the values of its weights is refused, with the difference.
    * No weight is allocated, and no random number is drawn.
    * Only the exact classes of the tables of ``torch.nn`` and torchmetrics are called.
"""

from __future__ import annotations

import inspect
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from replayml.core.tape import CallRecord
from replayml.recipe.faults import Flaw
from replayml.recipe.text.torch_names import LAYERS, torchmetrics_classes

__all__ = ["call_of", "check_sizes", "is_container", "is_layer"]

_LAYER_TYPES = frozenset(LAYERS.values())
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

# What a call of the layer is not about: state, or what is compared on its own.
_APART = frozenset({"_parameters", "_buffers", "_modules", "training", "_flat_weights", "_flat_weight_refs"})

# What a metric has seen, and where it is; `update` and `compute` are wrapped for each instance.
_METRIC_STATE = frozenset(
    {
        "_cache",
        "_computed",
        "_defaults",
        "_device",
        "_enable_grad",
        "_forward_cache",
        "_is_synced",
        "_should_unsync",
        "_to_sync",
        "_update_count",
        "_update_signature",
        "compute",
        "update",
    }
)

# Arguments that every metric takes and that no signature shows.
_METRIC_OPTIONS: Mapping[str, object] = MappingProxyType(
    {
        "compute_on_cpu": False,
        "compute_with_cache": True,
        "dist_sync_fn": None,
        "dist_sync_on_step": False,
        "process_group": None,
        "sync_on_compute": True,
    }
)

_MISSING = object()


def is_layer(module: nn.Module) -> bool:
    """Tell whether a module is an instance of exactly one of torch's own layers, or of torchmetrics' metrics.

    Example:
        >>> is_layer(nn.Linear(1, 2)), is_layer(nn.Module())
        (True, False)
    """
    return type(module) in _LAYER_TYPES or _is_metric(module)


def _is_metric(module: nn.Module) -> bool:
    return any(type(module) is cls for cls in torchmetrics_classes().values())


def is_container(module: nn.Module) -> bool:
    """Tell whether a module is exactly one of torch's containers of modules."""
    return type(module) in _CONTAINERS


def call_of(module: nn.Module, built: bool = False) -> CallRecord:
    """Return the call that makes a layer of torch, or a container of modules, again.

    Args:
        module: The layer; the children of a container stand in the call as they are.
        built: The model has been built and used, so that mode and gradients belong to its life; they are not
            compared.

    Raises:
        Flaw: When no such call is known.

    Example:
        >>> call = call_of(nn.Linear(2, 3, bias=False))
        >>> call.kwargs
        {'in_features': 2, 'out_features': 3, 'bias': False}
    """
    if is_container(module):
        call = _container_call(module)
        _compare(module, type(module)(), built, is_container=True)
        return call
    if _is_metric(module):
        return _metric_call(module)
    kwargs = _arguments(module)
    try:
        with torch.device("meta"):
            remade = type(module)(**kwargs)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise _refusal(module, f"{type(module).__name__} cannot be made from its attributes ({error})") from error
    _compare(module, remade, built)
    return CallRecord(type(module), (), kwargs)


def check_sizes(module: nn.Module) -> None:
    """Refuse a lazy layer.

    Raises:
        Flaw: When a tensor of the layer has no size yet.
    """
    if any(is_lazy(parameter) for parameter in module.parameters(recurse=False)):
        raise _refusal(module, "its sizes are not known before the first input")


def _refusal(module: nn.Module, difference: str) -> Flaw:
    name = type(module).__name__
    text, wrapper = (name, "External") if _is_metric(module) else (f"nn.{name}", "Layer")
    return Flaw(
        "bare-module",
        f"this {text} cannot be made again: {difference}. Use replayml.{wrapper}({text}, ...), which records its "
        "call, register a codec for it, codecs=[Codec(...)], or keep it as a pickle: allow_pickle=True.",
    )


def _container_call(module: nn.Module) -> CallRecord:
    children = dict(module._modules)
    is_numbered = list(children) == [str(index) for index in range(len(children))]
    if isinstance(module, nn.ModuleDict):
        return CallRecord(nn.ModuleDict, (children,) if children else ())
    if isinstance(module, nn.ModuleList):
        if not is_numbered:
            raise _refusal(module, "its elements have no consecutive numbers")
        return CallRecord(nn.ModuleList, (list(children.values()),) if children else ())
    return CallRecord(
        type(module), tuple(children.values()) if is_numbered else (CallRecord(OrderedDict, (list(children.items()),)),)
    )


# Metrics ------------------------------------------------------------------------------------------------------------


def _metric_call(metric: Any) -> CallRecord:
    """Return the call that makes a metric again."""
    kwargs = _arguments(metric)
    kwargs |= {
        name: getattr(metric, name)
        for name, default in _METRIC_OPTIONS.items()
        if not _same(getattr(metric, name, default), default)
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the user has seen them when the metric was made
            remade = type(metric)(**kwargs)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _refusal(metric, f"it cannot be made from its attributes ({error})") from error
    difference = next(_metric_differences(metric, remade), None)
    if difference is not None:
        raise _refusal(metric, difference)
    return CallRecord(type(metric), (), kwargs)


def _metric_differences(metric: Any, remade: Any) -> Iterator[str]:
    if type(metric) is not type(remade):
        yield f"its class makes a {type(remade).__name__}"
        return
    old, new = vars(metric), vars(remade)
    states = metric._defaults.keys() | remade._defaults.keys()
    for name in sorted((old.keys() | new.keys()) - _APART - _METRIC_STATE - states):
        if not _same_value(old.get(name, _MISSING), new.get(name, _MISSING)):
            yield f"it has hooks ({name})" if name.endswith("_hooks") else f"its {name!r} is not that of a new one"
    if metric._modules:
        yield f"it has children: {', '.join(metric._modules)}"
    for place, other in ((metric._defaults, remade._defaults), (metric._buffers, remade._buffers)):
        if list(place) != list(other):
            yield f"its states are {', '.join(place)}, those of a new one {', '.join(other)}"
            return
        for name, value in place.items():
            if not _same_value(value, other[name]):
                yield f"its state {name!r} does not start like that of a new one"


def _same_value(one: object, other: object) -> bool:
    """Tell whether two attributes of metrics are equal, tensors by their values."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype is other.dtype and one.shape == other.shape and torch.equal(one.cpu(), other.cpu())
    return _same(one, other)


# Arguments ----------------------------------------------------------------------------------------------------------


def _arguments(module: nn.Module) -> dict[str, Any]:
    """Return the keyword arguments that can be read off a layer, without those that have their default."""
    special = _SPECIAL.get(type(module))
    if special is not None:
        found = special(module)
    else:
        found = {name: _attribute(module, name) for name in _parameters(type(module))}
    dtype = _dtype(module)
    if dtype is not None and "dtype" in _parameters(_signed(type(module))):
        found["dtype"] = dtype
    defaults = {name: p.default for name, p in _parameters(_signed(type(module))).items()}
    return {
        name: value
        for name, value in found.items()
        if value is not _MISSING and not _same(value, defaults.get(name, _MISSING))
    }


def _signed(cls: type) -> type:
    """Return the class whose ``__init__`` tells the arguments; that of a recurrent layer hides them."""
    return nn.RNNBase if issubclass(cls, nn.RNNBase) else cls


def _parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    return {name: p for name, p in list(parameters.items())[1:] if p.kind in kinds and name != "device"}


def _attribute(module: nn.Module, name: str) -> object:
    """Return the argument that an attribute of the same name tells."""
    if name == "dtype" or name.startswith("_"):
        return _MISSING
    if name in module._parameters:
        return module._parameters[name] is not None
    return vars(module).get(name, module._buffers.get(name, _MISSING))


def _dtype(module: nn.Module) -> torch.dtype | None:
    """Return the one dtype of the parameters, or None when it is the usual one."""
    dtypes = {p.dtype for p in module.parameters() if p.dtype.is_floating_point or p.dtype.is_complex}
    if len(dtypes) != 1:
        return None
    (dtype,) = dtypes
    return None if dtype is torch.get_default_dtype() is torch.float32 else dtype


def _recurrent(module: Any) -> dict[str, Any]:
    found = {
        "input_size": module.input_size,
        "hidden_size": module.hidden_size,
        "num_layers": module.num_layers,
        "bias": module.bias,
        "batch_first": module.batch_first,
        "dropout": module.dropout,
        "bidirectional": module.bidirectional,
        "proj_size": module.proj_size,
    }
    if isinstance(module, nn.RNN) and module.nonlinearity != "tanh":
        found["nonlinearity"] = module.nonlinearity
    return found


def _attention(module: Any) -> dict[str, Any]:
    return {
        "embed_dim": module.embed_dim,
        "num_heads": module.num_heads,
        "dropout": module.dropout,
        "bias": module.in_proj_bias is not None,
        "add_bias_kv": module.bias_k is not None,
        "add_zero_attn": module.add_zero_attn,
        "kdim": None if module.kdim == module.embed_dim else module.kdim,
        "vdim": None if module.vdim == module.embed_dim else module.vdim,
        "batch_first": module.batch_first,
    }


def _transformer_layer(module: Any) -> dict[str, Any]:
    return {
        "d_model": module.self_attn.embed_dim,
        "nhead": module.self_attn.num_heads,
        "dim_feedforward": module.linear1.out_features,
        "dropout": module.dropout.p,
        "activation": module.activation,
        "layer_norm_eps": module.norm1.eps,
        "batch_first": module.self_attn.batch_first,
        "norm_first": module.norm_first,
        "bias": module.linear1.bias is not None,
    }


def _adaptive_softmax(module: Any) -> dict[str, Any]:
    return {
        "in_features": module.in_features,
        "n_classes": module.n_classes,
        "cutoffs": list(module.cutoffs[:-1]),  # torch appends the number of classes
        "div_value": module.div_value,
        "head_bias": module.head_bias,
    }


_SPECIAL: Mapping[type, Callable[[Any], dict[str, Any]]] = MappingProxyType(
    {
        nn.AdaptiveLogSoftmaxWithLoss: _adaptive_softmax,
        nn.GRU: _recurrent,
        nn.LSTM: _recurrent,
        nn.MultiheadAttention: _attention,
        nn.RNN: _recurrent,
        nn.TransformerDecoderLayer: _transformer_layer,
        nn.TransformerEncoderLayer: _transformer_layer,
    }
)


# Comparison ---------------------------------------------------------------------------------------------------------


def _compare(module: nn.Module, remade: nn.Module, built: bool, is_container: bool = False) -> None:
    """Refuse a layer that is not what its call makes."""
    difference = next(_differences(module, remade, built, is_container), None)
    if difference is not None:
        raise _refusal(module, difference)


def _differences(module: nn.Module, remade: nn.Module, built: bool, is_container: bool) -> Iterator[str]:
    if module.training != remade.training and not built:
        yield "it is in evaluation mode; a new one is in training mode"
    old, new = vars(module), vars(remade)
    for name in sorted((old.keys() | new.keys()) - _APART):
        if not _same(old.get(name, _MISSING), new.get(name, _MISSING)):
            yield f"it has hooks ({name})" if name.endswith("_hooks") else f"its {name!r} is not that of a new one"
    yield from _tensor_differences(module._parameters, remade._parameters, built)
    yield from _tensor_differences(module._buffers, remade._buffers, built)
    if is_container:
        return
    if module._modules.keys() != remade._modules.keys():
        yield f"its children are {', '.join(module._modules)}"
    for name, child in module._modules.items():
        other = remade._modules.get(name)
        if type(child) is not type(other):
            yield f"its {name!r} is a {type(child).__name__}"
        elif child is not None and other is not None:
            yield from _differences(child, other, built, is_container=False)
    if len(list(module.parameters())) != len(list(remade.parameters())):
        yield "some of its parameters are one and the same"
    if str(module) != str(remade):
        yield f"it is {module}, a new one is {remade}"


def _tensor_differences(old: Mapping[str, Any], new: Mapping[str, Any], built: bool) -> Iterator[str]:
    if list(old) != list(new):
        yield f"its tensors are {', '.join(old) or 'none'}, those of a new one {', '.join(new) or 'none'}"
        return
    for name, tensor in old.items():
        other = new[name]
        if (tensor is None) != (other is None) or type(tensor) is not type(other):
            yield f"{name!r} is not what it is in a new one"
        elif tensor is not None:
            if (tensor.shape, tensor.dtype) != (other.shape, other.dtype):
                yield f"{name!r} is {tensor.dtype} of shape {tuple(tensor.shape)}, not as in a new one"
            if tensor.requires_grad != other.requires_grad and not built:
                yield f"{name!r} has requires_grad={tensor.requires_grad}"
            if tensor._backward_hooks:
                yield f"{name!r} has hooks"


def _same(one: object, other: object) -> bool:
    """Tell whether two attributes are equal, in type as well; what cannot be compared is not."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return isinstance(one, (bool, int, float, str, set, frozenset, torch.dtype, torch.device)) and one == other
