"""The lifecycle: training, deployment and evaluation of a module and of all modules below it.

    update():  train all ─► deploy all ─► evaluate all        start():  deploy all        stop():  the way back

A module says what there is to do by returning a callable without arguments, a flow for instance, from
``_get_train_tasks``, ``_get_deploy_tasks`` or ``_get_eval_tasks``.

Invariants:
    * Depth first, children before parents, each task once, however often its module stands in the tree; stopping goes
      the other way round.
    * All training is over before anything is deployed, and all is deployed before anything is evaluated.
    * A task that raises keeps its exception, which tells the module's path. What the call had started is stopped, last
      first; what ran before runs on.
    * One call at a time on a module: a second one, from another thread, raises and changes nothing.
    * What a task assigns to an unbuilt module is recorded like any assignment, but for the names in ``_untracked``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from torch import nn

from replayml.core.errors import ArgumentError
from replayml.core.hooks import run_hooks
from replayml.core.meta import CALL, Frame, entered
from replayml.core.record import HookCall, Record
from replayml.module.evaluating import evaluate_now, is_to_be_evaluated
from replayml.module.runtime import Place, claimed, places_of, runtime_of
from replayml.module.yielding import yielding, yielding_property

if TYPE_CHECKING:
    from replayml.module.module import Module

__all__ = ["Tasks"]

Task = Callable[[], Any]


class _Phase(NamedTuple):
    """One kind of tasks: which method returns them, what is done with them, and which calls wait for it."""

    method: str
    doing: str
    hooks: str


TRAINING = _Phase("_get_train_tasks", "training", "fit")
DEPLOYMENT = _Phase("_get_deploy_tasks", "deploying", "deploy")
EVALUATION = _Phase("_get_eval_tasks", "evaluating", "")


class Tasks:
    """The part of `replayml.Module` that this file is about."""

    _passes_through: ClassVar[bool] = False  # a flow: the modules in it count as those of the module above
    _runs_fit_hooks: ClassVar[bool] = False  # its training runs what waits for it, once there are weights
    if TYPE_CHECKING:
        _record: Any

    # What a class may define ----------------------------------------------------------------------------------

    def _get_train_tasks(self) -> Task | None:
        """Return what `update` runs to train this module: a callable without arguments, or None."""
        return None

    def _get_deploy_tasks(self) -> Task | None:
        """Return what `start` and `update` run to deploy this module: a callable without arguments, or None."""
        return None

    @property
    def _is_deployed(self) -> bool:
        """Whether this module is deployed at the moment; `start` passes over one that is."""
        return False

    def _stop_deployed(self) -> None:
        """Undo the deployment of this module, if there is any, also one that failed half way."""

    def _wait_deployed(self) -> None:
        """Return when the deployment of this module has ended."""

    # The calls ------------------------------------------------------------------------------------------------

    @yielding_property
    def submodules(self) -> list[Module]:
        """The replayml modules right below this one, in order and each once: children, also in plain containers.

        Of a flow, the modules in it are meant.

        Example:
            >>> import replayml
            >>> mlp = replayml.MultiLayerPerceptron(4, [8], 2)
            >>> [type(below).__name__ for below in mlp.submodules]
            ['LayerList']
        """
        found: list[Module] = []
        _submodules(self, found, set())  # type: ignore[arg-type]
        return found

    @yielding
    def update(self, recursive: bool = True) -> Self:
        """Train, deploy and evaluate this module and all below it, children before parents.

        Args:
            recursive: False for this module alone.

        Returns:
            The module itself; `eval_result` has the result where there is a test set.

        Raises:
            LifecycleError: When a module takes part in another call of the lifecycle at the moment.

        Example:
            >>> import replayml
            >>> class Step(replayml.Module):
            ...     def __init__(self, name):
            ...         self.name = name
            ...
            ...     def _get_train_tasks(self):
            ...         return lambda: print(self.name, "trained")
            ...
            ...     def _get_deploy_tasks(self):
            ...         return lambda: print(self.name, "deployed")
            >>> class Service(Step):
            ...     def __init__(self, name):
            ...         self.name = name
            ...         self.step = Step(f"the step of {name}")
            >>> service = Service("a service").update()
            the step of a service trained
            a service trained
            the step of a service deployed
            a service deployed
        """
        with claimed(places_of(self, recursive), f"update() of {type(self).__name__}"), _undone_on_failure() as done:
            for place in places_of(self, recursive):
                runtime_of(place.module).forget()
            for place, task in _tasks(places_of(self, recursive), TRAINING):
                _train(place, task)
            for place, task in _tasks(places_of(self, recursive), DEPLOYMENT):
                _deploy(place, task, done)
            places = places_of(self, recursive)
            tasks = {id(place.module): task for place, task in _tasks(places, EVALUATION)}
            for place in places:
                if id(place.module) in tasks or is_to_be_evaluated(place.module):
                    with _placed(place, EVALUATION.doing):
                        evaluate_now(place.module, tasks.get(id(place.module)))
        return self

    @yielding
    def start(self, recursive: bool = True) -> Self:
        """Deploy this module and all below it, children before parents.

        Args:
            recursive: False for this module alone.

        Raises:
            LifecycleError: When a module takes part in another call of the lifecycle at the moment.
        """
        with claimed(places_of(self, recursive), f"start() of {type(self).__name__}"), _undone_on_failure() as done:
            places = [place for place in places_of(self, recursive) if not place.module._is_deployed]
            for place, task in _tasks(places, DEPLOYMENT):
                _deploy(place, task, done)
        return self

    @yielding
    def stop(self, recursive: bool = True) -> Self:
        """Undo the deployment of this module and of all below it, parents before children.

        All are stopped, also where some cannot be: the first failure is raised at the end, and tells of the others.

        Args:
            recursive: False for this module alone.

        Raises:
            LifecycleError: When a module takes part in another call of the lifecycle at the moment.
        """
        places = places_of(self, recursive)
        with claimed(places, f"stop() of {type(self).__name__}"):
            _stop(places)
        return self

    @yielding
    def restart(self, recursive: bool = True) -> Self:
        """Stop this module and all below it, then deploy them again.

        Args:
            recursive: False for this module alone.
        """
        with claimed(places_of(self, recursive), f"restart() of {type(self).__name__}"), _undone_on_failure() as done:
            places = places_of(self, recursive)
            _stop(places)
            for place, task in _tasks(places, DEPLOYMENT):
                _deploy(place, task, done)
        return self

    @yielding
    def wait(self) -> Self:
        """Return when the deployments of this module and of all below it have ended."""
        for place in places_of(self):
            with _placed(place, "waiting for"):
                place.module._wait_deployed()
        return self

    @yielding
    def status(self) -> dict[str, str]:
        """Tell of each module that can be deployed, by its path, whether it is ``"deployed"`` or ``"stopped"``.

        Example:
            >>> import replayml
            >>> class Service(replayml.Module):
            ...     def _get_deploy_tasks(self):
            ...         return lambda: None
            >>> service = Service()
            >>> service.status(), service.start().status(), service.stop().status()
            ({'model': 'stopped'}, {'model': 'deployed'}, {'model': 'stopped'})
        """
        return {
            ".".join(("model", *place.path)): "deployed" if _runs(place.module) else "stopped"
            for place in places_of(self)
            if _can_be_deployed(place.module)
        }


def _submodules(module: nn.Module, found: list[Any], seen: set[int]) -> None:
    for child in module._modules.values():
        if child is None or id(child) in seen:
            continue
        seen.add(id(child))
        if "_record" in child.__dict__ and not child._passes_through:
            found.append(child)
        else:
            _submodules(child, found, seen)


def _can_be_deployed(module: Any) -> bool:
    return type(module)._get_deploy_tasks is not Tasks._get_deploy_tasks


def _runs(module: Any) -> bool:
    """Tell whether a module is deployed; one that does not say so itself, by what was done with it."""
    knows = type(module)._is_deployed is not Tasks._is_deployed
    return bool(module._is_deployed) if knows else runtime_of(module).was_deployed


# Running tasks --------------------------------------------------------------------------------------------------


def _tasks(places: Sequence[Place], phase: _Phase) -> list[tuple[Place, Task]]:
    """Return the tasks of one kind, in their order; none of them runs yet."""
    found = []
    for place in places:
        with _placed(place, phase.doing):
            task = getattr(place.module, phase.method)()
            if task is None:
                continue
            if not callable(task):
                raise ArgumentError(
                    f"{type(place.module).__name__}.{phase.method}() returns a callable without arguments, such as a "
                    f"flow or a function, or None; it returned {task!r}"
                )
            found.append((place, task))
    return found


def _train(place: Place, task: Task) -> None:
    module = place.module
    waiting = _waiting(module, TRAINING)
    with _placed(place, TRAINING.doing):
        try:
            if module._has_built or not module._runs_fit_hooks:
                _run_waiting(module, "before_fit")
            task()
            _run_waiting(module, "after_fit")
        except BaseException:
            _wait_again(waiting)
            raise


class _Deployed(NamedTuple):
    """A module whose deployment was begun by this call, and the calls that waited for it before."""

    place: Place
    waiting: list[tuple[Record, str, list[HookCall]]]


def _deploy(place: Place, task: Task, done: list[_Deployed]) -> None:
    module = place.module
    waiting = _waiting(module, DEPLOYMENT)
    with _placed(place, DEPLOYMENT.doing):
        if _runs(module):
            try:
                _run_deployment(module, task)
            except BaseException:
                _wait_again(waiting)
                raise
        else:
            done.append(_Deployed(place, waiting))
            _run_deployment(module, task)


def _run_deployment(module: Any, task: Task) -> None:
    _run_waiting(module, "before_deploy")
    task()
    runtime_of(module).was_deployed = True
    _run_waiting(module, "after_deploy")


def _stop(places: Sequence[Place]) -> None:
    """Stop modules, parents before children; raise the first failure when all are stopped that can be."""
    failure: Exception | None = None
    for place in reversed(places):
        try:
            with _placed(place, "stopping"):
                place.module._stop_deployed()
            runtime_of(place.module).was_deployed = False
        except Exception as error:  # noqa: BLE001 - raised below, when the others are stopped
            if failure is None:
                failure = error
            else:
                failure.add_note(f"{place} could not be stopped either: {error!r}")
    if failure is not None:
        raise failure


@contextmanager
def _placed(place: Place, doing: str) -> Iterator[None]:
    """Add to an exception where it was raised."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"while {doing} {place}")
        raise


@contextmanager
def _undone_on_failure() -> Iterator[list[_Deployed]]:
    """Stop what was deployed while the block ran, last first, when the block raises."""
    done: list[_Deployed] = []
    try:
        yield done
    except BaseException as error:
        for place, waiting in reversed(done):
            try:
                _stop([place])
            except Exception as failure:  # noqa: BLE001 - told with the exception that is raised
                error.add_note(f"{place}, which this call had started, could not be stopped: {failure!r}")
            _wait_again(waiting)
        raise


# Calls that wait ------------------------------------------------------------------------------------------------


def _run_waiting(module: nn.Module, phase: str) -> None:
    """Run the calls that wait for a phase on a module and below it; what they do is no change by the user."""
    for below in list(module.modules()):
        if "_record" in below.__dict__:
            with entered(Frame(CALL, below)):
                run_hooks(below, phase)


def _waiting(module: nn.Module, phase: _Phase) -> list[tuple[Record, str, list[HookCall]]]:
    """Return the calls that wait for a phase on a module and below it."""
    records: list[Record] = [below._record for below in module.modules() if "_record" in below.__dict__]  # type: ignore[misc]
    return [
        (record, name, list(record.hooks[name]))
        for record in records
        for name in (f"before_{phase.hooks}", f"after_{phase.hooks}")
        if record.hooks is not None and name in record.hooks
    ]


def _wait_again(waiting: Sequence[tuple[Record, str, list[HookCall]]]) -> None:
    """Let calls wait again for what did not come about."""
    for record, name, calls in waiting:
        if record.hooks is None:
            record.hooks = {}
        record.hooks[name] = list(calls)
