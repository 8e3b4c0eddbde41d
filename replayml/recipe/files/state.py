"""What is known of a built model beside its recipe and its tensors, as text in the header of its weights.

Invariants:
    * The text is strict JSON in its one canonical form; unknown keys are refused.
    * It holds names, numbers and sizes; nothing in it is called or imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from replayml.core.errors import RecipeError
from replayml.recipe.faults import UNTOUCHED, shown
from replayml.recipe.format import Limits, canonical
from replayml.recipe.text.strict import parse

__all__ = ["DEFAULT_DTYPES", "State"]

VERSION = 1

DEFAULT_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {str(dtype): dtype for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
)
"""What may be torch's default type of floating point tensors, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What is known of a built model.

    Attributes:
        recipe: The SHA-256 of the text of its recipe.
        sizes: The sizes that were read off the example input, as `replayml.module.sizes` writes them.
        dtype: Torch's default type when it was built.
        modes: Whether modules are in training mode, by path; those that are not named are as their parents.
        frozen: The names of the parameters that are not trained.
        ties: Names of weights that are stored under another one.
        buffers: The types of buffers that are not saved, where a newly built model has others, by name.

    Example:
        >>> state = State(recipe="0" * 64, modes={"": False}, frozen=("weight",))
        >>> State.from_text(state.to_text(), "somewhere") == state
        True
    """

    recipe: str
    sizes: str = "[]"
    dtype: torch.dtype = torch.float32
    modes: Mapping[str, bool] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    ties: Mapping[str, str] = field(default_factory=dict)
    buffers: Mapping[str, torch.dtype] = field(default_factory=dict)

    def to_text(self) -> str:
        """Return the text."""
        return canonical(
            {
                "version": VERSION,
                "recipe": self.recipe,
                "sizes": self.sizes,
                "dtype": str(self.dtype),
                "modes": dict(self.modes),
                "frozen": list(self.frozen),
                "ties": dict(self.ties),
                "buffers": {name: str(dtype) for name, dtype in self.buffers.items()},
            }
        )

    @classmethod
    def from_text(cls, text: str, where: str) -> State:
        """Return what a text says.

        Args:
            text: The text.
            where: The file, for a refusal.

        Raises:
            RecipeError: When it is none that `to_text` wrote.
        """
        document = parse(text, Limits(size=len(text), string=len(text), values=len(text), depth=4))
        match document:
            case {"version": int() as version} if version > VERSION:
                raise RecipeError(
                    "newer-version",
                    where,
                    f"the weights have version {version}; this replayml reads up to {VERSION}. Install a newer one",
                )
            case {
                "version": 1,
                "recipe": str() as recipe,
                "sizes": str() as sizes,
                "dtype": str() as dtype,
                "modes": dict() as modes,
                "frozen": list() as frozen,
                "ties": dict() as ties,
                "buffers": dict() as buffers,
            } if isinstance(document, dict) and len(document) == 8:
                is_plain = _all(modes.values(), bool) and _all((*frozen, *ties.values(), *buffers.values()), str)
                if is_plain and {dtype, *buffers.values()} <= DEFAULT_DTYPES.keys():
                    return cls(
                        recipe=recipe,
                        sizes=sizes,
                        dtype=DEFAULT_DTYPES[dtype],
                        modes=modes,
                        frozen=tuple(frozen),
                        ties=ties,
                        buffers={name: DEFAULT_DTYPES[dtype] for name, dtype in buffers.items()},
                    )
        raise RecipeError(
            "bad-weights", where, f"what is said of the model is not readable: {shown(text)}. {UNTOUCHED}"
        )


def _all(values: Any, kind: type) -> bool:
    return all(type(value) is kind for value in values)
