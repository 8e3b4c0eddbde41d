"""`ActionModule`: a module around a flow, so that steps have a life of their own: update, start, evaluate, serve."""

from __future__ import annotations

from typing import Any

from replayml.lifecycle.flows import pipeline
from replayml.module.module import Module
from replayml.module.showing import make_repr, tree

__all__ = ["ActionModule"]


class ActionModule(Module):
    """A module that does what a flow does.

    Args:
        *steps: Functions, modules and flows; they run one after another, as in a `pipeline`.
        **named: Steps by name, after these.

    The modules in its steps, those in flows inside included, are its submodules: ``update()`` trains and deploys them.

    Example:
        >>> class Shout(Module):
        ...     def forward(self, text):
        ...         return text.upper()
        >>> action = ActionModule(str.strip, Shout())
        >>> action(" hey ")
        'HEY'
        >>> action
        <Module type=Action sub-category=Flow type=Pipeline items=[]>
        |- <Function type=strip>
        └- <Module type=Shout>
    """

    def __init__(self, *steps: Any, **named: Any) -> None:
        self.action = pipeline(*steps, **named)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the steps.

        Args:
            *args: The positional arguments of the first step.
            **kwargs: Its keyword arguments; ``_skip_items`` and ``_kept_items`` as for a `pipeline`.
        """
        return self.action(*args, **kwargs)

    def _asks(self) -> Any:
        """Return what gets the arguments of a call as they are."""
        return self.action

    def _tree(self) -> str:
        """Return the tree of this module: see `replayml.module.showing`."""
        header = "Action sub-category=Flow type=Pipeline"
        flow = self.action
        items = [name for name in flow.steps if not name.isdecimal()]
        return make_repr("Module", header, subs=[tree(step) for step in flow.steps.values()], items=items)
