"""The modules of the examples in the seed documents."""

from __future__ import annotations

from typing import Any

import replayml
from replayml.module.showing import tree


class MyModule(replayml.Module):
    """Trains and deploys by saying so, and answers with what it got."""

    def __init__(self, name: str) -> None:
        self.name = name

    def _get_train_tasks(self) -> Any:
        return replayml.pipeline(lambda: print(f"Module {self.name} trained!"))

    def _get_deploy_tasks(self) -> Any:
        return replayml.pipeline(lambda: print(f"Module {self.name} deployed!"))

    def forward(self, given: Any) -> str:
        return f"[Module {self.name} get input: {given}]"


class MyModule2(replayml.Module):
    """Has two modules as attributes, and a deployment of its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.m1_1 = MyModule(f"{name} m1-1")
        self.m1_2 = MyModule(f"{name} m1-2")

    def _get_deploy_tasks(self) -> Any:
        return replayml.pipeline(lambda: print(f"Module {self.name} deployed!"))

    def __repr__(self) -> str:
        return replayml.make_repr("Module", self.__class__, subs=[tree(self.m1_1), tree(self.m1_2)])
