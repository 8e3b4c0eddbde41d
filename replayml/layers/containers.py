"""Containers: `LayerList`, `Sequential`, `Parallel`.

Invariants:
    * What is done to a list after it was made (``append``, ``insert``, ``pop``, ...) is recorded and done again when
      the list is constructed again.
    * A setting follows its element when the element's index changes.
    * A built list iterates and runs by torch's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, Self, TypeVar, overload

from torch import nn

from replayml.core.errors import AlreadyBuiltError, ConfigurationError
from replayml.core.hooks import after_init, edit, stateful
from replayml.core.journal import note, refill
from replayml.core.meta import scope
from replayml.core.record import Slots
from replayml.module.module import Module
from replayml.module.selection import select

__all__ = ["LayerList", "LayerView", "Parallel", "Sequential"]

T = TypeVar("T", bound=nn.Module)


class LayerView(Sequence[Any]):
    """The attributes of that name of several modules; a call reaches each of them.

    Example:
        >>> import replayml
        >>> from torch import nn
        >>> layers = replayml.LayerList(replayml.Layer(nn.Linear, 2, 3), replayml.Layer(nn.Linear, 3, 4))
        >>> list(layers.out_features)
        [3, 4]
    """

    def __init__(self, items: Iterable[Any], name: str) -> None:
        self._items = tuple(items)
        self._name = name

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> LayerView: ...
    def __getitem__(self, index: int | slice) -> Any:
        return LayerView(self._items[index], self._name) if isinstance(index, slice) else self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __add__(self, other: Iterable[Any]) -> LayerView:
        return LayerView((*self._items, *other), self._name)

    def __getattr__(self, name: str) -> LayerView:
        if name.startswith("__"):
            raise AttributeError(name)
        return LayerView([getattr(item, name) for item in self._items], f"{self._name}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> LayerView:
        """Call each of them with the same arguments."""
        return LayerView([item(*args, **kwargs) for item in self._items], f"{self._name}()")

    def __repr__(self) -> str:
        return f"LayerView({self._name}: {list(self._items)!r})"


class LayerList(Module, nn.ModuleList, Generic[T]):
    """A list of modules, like ``torch.nn.ModuleList``.

    ``layers.activation`` is what every element calls ``activation``; ``layers.configure(...)`` configures every
    element, ``layers.configure(0, ...)`` or ``layers.configure(slice(1, 3), ...)`` some.

    Args:
        *layers: The elements, or one list of them.

    Example:
        >>> import replayml
        >>> layers = replayml.LayerList(replayml.Layer(nn.Linear, 2, 3))
        >>> layers.append(replayml.Layer(nn.ReLU)).configure(0, bias=False)
        LayerList(
          (0): Layer(Linear, in_features=2, out_features=3, bias=False)
          (1): Layer(ReLU)
        )
    """

    _is_network_part: ClassVar[bool] = True

    def __init__(self, *layers: T | Iterable[T]) -> None:
        super().__init__()
        elements: Any = layers
        if len(layers) == 1 and (type(layers[0]) is nn.ModuleList or not isinstance(layers[0], (nn.Module, type))):
            elements = layers[0]
        for index, layer in enumerate(elements):
            self._put(str(index), layer)

    def _put(self, name: str, layer: Any) -> None:
        self._check_element(layer)
        self._modules[name] = layer
        self._take_child(name, layer)

    # Reading --------------------------------------------------------------------------------------------------

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int):
            return nn.ModuleList.__getitem__(self, index)
        if isinstance(index, slice):
            return LayerView(list(self)[index], f"layers[{index.start}:{index.stop}]")
        return select(self, index)

    def __getattr__(self, name: str) -> Any:
        modules: dict[str, Any] = self.__dict__.get("_modules", {})
        if name in modules:
            return modules[name]
        elements = [element for element in modules.values() if element is not None]
        if elements and not name.startswith("_"):
            missing = [index for index, element in enumerate(elements) if not hasattr(element, name)]
            if not missing:
                return LayerView([getattr(element, name) for element in elements], name)
            if len(missing) < len(elements):
                return LayerView([getattr(element, name) for element in elements if hasattr(element, name)], name)
        return super().__getattr__(name)

    # Changing -------------------------------------------------------------------------------------------------

    @edit
    def append(self, module: nn.Module) -> Self:
        """Add an element at the end."""
        self._insert(len(self), module)
        return self

    @edit
    def prepend(self, module: nn.Module) -> Self:
        """Add an element at the start."""
        self._insert(0, module)
        return self

    @edit
    def insert(self, index: int, module: nn.Module) -> Self:  # type: ignore[override]
        """Add an element before an index."""
        length = len(self)
        self._insert(max(0, length + index) if index < 0 else min(index, length), module)
        return self

    @edit
    def extend(self, modules: Iterable[nn.Module]) -> Self:
        """Add several elements at the end."""
        for module in modules:
            self._insert(len(self), module)
        return self

    @edit
    def pop(self, key: int | slice = -1) -> Any:
        """Take out an element and return it."""
        if isinstance(key, slice):
            return [self._pop(index) for index in sorted(range(*key.indices(len(self))), reverse=True)][::-1]
        return self._pop(self._index(key))

    @edit
    def remove(self, module: nn.Module) -> Self:
        """Take out an element, given as the module."""
        for index, element in enumerate(self):
            if element is module:
                self._pop(index)
                return self
        raise ConfigurationError(f"{self._place()} has no such element: {module!r}")

    @edit
    def clear(self) -> Self:
        """Take out all elements."""
        for index in reversed(range(len(self))):
            self._pop(index)
        return self

    def __setitem__(self, key: Any, module: Any) -> None:
        if self._record.built:
            nn.ModuleList.__setitem__(self, key, module)
        elif isinstance(key, slice):
            for index, element in zip(range(*key.indices(len(self))), module, strict=True):
                self[index] = element
        else:
            self._check_element(module)
            setattr(self, str(self._index(key)), module)

    def __delitem__(self, key: Any) -> None:
        self.pop(key)

    def __iadd__(self, modules: Iterable[nn.Module]) -> Self:  # type: ignore[misc]
        return self.extend(list(modules))

    def __add__(self, other: Iterable[Any]) -> LayerView:  # type: ignore[override]
        return LayerView((*self, *other), "layers")

    def _index(self, key: int) -> int:
        length = len(self)
        if not -length <= key < length:
            raise IndexError(f"{self._place()} has {length} elements; there is none at {key}")
        return key % length

    def _insert(self, index: int, module: Any) -> None:
        """Put an element before an index and give it a slot of its own."""
        self._check_element(module)
        length = len(self)
        if not self._record.built:
            self._new_slot(index, length)
        modules = self._modules
        if index == length:
            note(modules.pop, str(index), None)
            modules[str(index)] = module
        else:
            self._renumber([*list(modules.values())[:index], module, *list(modules.values())[index:]])
        if not self._record.built:
            self._take_child(str(index), module)

    def _check_element(self, element: Any) -> None:
        if isinstance(element, type) and issubclass(element, nn.Module):
            raise ConfigurationError(f"{self._place()} holds modules, not classes. Wrap it: Layer({element.__name__})")
        if not isinstance(element, nn.Module):
            raise ConfigurationError(f"{self._place()} holds modules, not {element!r}")
        if self._record.built and isinstance(element, Module) and not element._has_built:
            raise AlreadyBuiltError(
                f"{type(self).__name__} is built, and the new element is not: {element!r}. "
                "Give a built one (layer.build()), or change an unbuilt copy of the model"
            )

    def _pop(self, index: int) -> Any:
        modules = list(self._modules.values())
        module = modules.pop(index)
        record = self._record
        gone: list[Callable[[], None]] = []
        if not record.built:
            gone = self._drop_child(str(index), module)
            slots = self._slots()
            slot = slots.order[index]
            slots.remove(index)
            note(slots.insert, index, slot)
        self._renumber(modules)
        for keep in gone:
            keep()
        return module

    def _renumber(self, modules: list[Any]) -> None:
        before = dict(self._modules)
        note(refill, self._modules, before)
        refill(self._modules, {str(index): module for index, module in enumerate(modules)})

    def _slots(self) -> Slots:
        """Return the slots; until the first change they are the indices and not kept."""
        record = self._record
        if record.slots is None:
            note(setattr, record, "slots", None)
            record.slots = Slots([str(index) for index in range(len(self))])
        return record.slots

    def _new_occupant(self, name: str) -> None:
        if not name.isdigit() or int(name) >= len(self._slots().order):
            super()._new_occupant(name)
            return
        slots, index = self._slots(), int(name)
        slot = slots.order[index]
        note(slots.put, index, slot)
        slots.put(index, self._own_slot(name, slot))

    def _new_slot(self, index: int, length: int) -> None:
        top = scope()
        by_user = top is not None and top.by is None
        if not by_user and index == length and self._record.slots is None:
            return
        slots = self._slots()
        taken = set(slots.order)
        if by_user and top is not None:
            stem = f"+{top.edit.serial if top.edit is not None else top.during}"
        else:
            stem = str(length)
        slot, number = stem, 0
        while slot in taken:
            number += 1
            slot = f"{stem}.{number}"
        slots.insert(index, slot)
        note(slots.remove, index)

    # Every element at once ------------------------------------------------------------------------------------

    @stateful
    def configure(self, /, *args: Any, **kwargs: Any) -> Self:
        """Configure elements.

        Args:
            *args: An index, a slice or a list of indices, and what ``configure`` of these elements takes; without
                one of these, every element is configured.
            **kwargs: What ``configure`` of the elements takes.
        """
        if self._record.built:
            super().configure(*args, **kwargs)  # raises: a built list has nothing to configure
        chosen: list[Any]
        if args and isinstance(args[0], (int, slice, list)) and not isinstance(args[0], bool):
            key, *rest = args
            if isinstance(key, list) and not all(isinstance(index, int) for index in key):
                raise ConfigurationError(
                    f"{self._place()} takes a list of indices here, not {key!r}. To exchange elements: layers[i] = "
                    "..., append, insert and pop"
                )
            keys = [key] if isinstance(key, int) else range(*key.indices(len(self))) if isinstance(key, slice) else key
            chosen = [self[self._index(index)] for index in keys]
            args = tuple(rest)
        else:
            chosen = list(self)
        if not chosen:
            raise ConfigurationError(f"{self._place()} has no element to configure")
        for element in chosen:
            if not isinstance(element, Module):
                raise ConfigurationError(
                    f"{self._place()} holds a plain {type(element).__name__}, which records no settings. "
                    f"Wrap it where it is made: replayml.Layer({type(element).__name__}, ...)"
                )
            element.configure(*args, **kwargs)
        return self

    @after_init
    def set_input_map(self, *args: str, **kwargs: str) -> Self:
        """Let every element read its arguments from a dict."""
        for element in list[Any](self):
            element.set_input_map(*args, **kwargs)
        return self

    @after_init
    def set_output_map(self, *args: str, **kwargs: int) -> Self:
        """Let every element write its outputs into a copy of the input dict."""
        for element in list[Any](self):
            element.set_output_map(*args, **kwargs)
        return self


class Sequential(LayerList[T]):
    """Modules that run one after another, like ``torch.nn.Sequential``.

    Args:
        *layers: The modules, or one list of them.

    Example:
        >>> import torch, replayml
        >>> net = replayml.Sequential(replayml.Layer(nn.Linear, 2, 3), replayml.Layer(nn.ReLU)).build()
        >>> net(torch.zeros(1, 2)).shape
        torch.Size([1, 3])
    """

    forward: Callable[..., Any] = nn.Sequential.forward


class Parallel(LayerList[T]):
    """Modules that run side by side on the same input.

    With positional modules the outputs come as a list. With keyword modules each output is stored under its keyword:
    in a copy of the input when that is a dict, else in a new dict.

    Args:
        *layers: Modules, or one list of them.
        **branches: Modules by the key of their output.

    Example:
        >>> import torch, replayml
        >>> net = replayml.Parallel(a=replayml.Layer(nn.ReLU), b=replayml.Layer(nn.Tanh)).build()
        >>> sorted(net(torch.zeros(1)))
        ['a', 'b']
    """

    def __init__(self, *layers: Any, **branches: Any) -> None:
        super().__init__(*layers)
        first = len(self)
        for index, (_, branch) in enumerate(branches.items()):
            self._put(str(first + index), branch)
        self.keys = (None,) * first + tuple(branches)

    def forward(self, x: Any) -> Any:
        """Run every branch on the input.

        Args:
            x: What each branch takes; a dict for branches with an input map.

        Returns:
            A list of outputs, or a dict when there are keyword branches.
        """
        if not any(self.keys):
            return [layer(x) for layer in self._branches()]
        outputs: dict[Any, Any] = dict(x) if isinstance(x, Mapping) else {}
        for index, layer in enumerate(self._branches()):
            key = self.keys[index] if index < len(self.keys) else None
            output = layer(x)
            if key is not None:
                outputs[key] = output
            elif isinstance(output, Mapping):
                outputs.update(output)
            else:
                outputs[index] = output
        return outputs

    def _branches(self) -> list[Any]:
        return list(self._modules.values())
