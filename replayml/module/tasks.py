"""The lifecycle: training, deployment and evaluation of a module and of all modules below it.

    update():  train all ─► deploy all ─► evaluate all        start():  deploy all        stop():  the way back

A module says what there is to do by returning a callable without arguments, a flow for instance, from
``_get_train_tasks``, ``_get_deploy_tasks`` or ``_get_eval_tasks``.

Invariants:
    * Depth first, children before parents, each task once, however often its module stands in the tree; stopping goes
      the other way round.
    * All training is over before anything is deployed, and all is deployed before anything is evaluated.
    * With a gateway, through which modules find one another, all are deployed at once: see
      `replayml.module.deploying`. The hooks around it run in order in any case.
    * A task that raises keeps its exception, which tells the module's path. What the call had started is stopped, last
      first; what ran before runs on.
    * One call at a time on a module: a second one, from another thread, raises and changes nothing.
    * What a task assigns to an unbuilt module is recorded like any assignment, but for the names in ``_untracked``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from torch import nn

from replayml.core.errors import ArgumentError
from replayml.core.hooks import run_hooks
from replayml.core.meta import CALL, Frame, entered
from replayml.core.record import HookCall, Record
from replayml.module.deploying import Job, all_at_once, has_gateway
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
    _finds_by_name: ClassVar[bool] = False  # deployed with those below it, where there is a gateway to find them by
    if TYPE_CHECKING:
        _record: Any

    # What a class may define ----------------------------------------------------------------------------------

    def _get_train_tasks(self) -> Task | None:
        """Return what `update` runs to train this module: a callable without arguments, or None."""
        return None

    def _get_deploy_tasks(self) -> Task | None:
        """Return what `start` and `update` run to deploy this module: a callable without arguments, or None."""
        return None

    def _announce_deployment(self) -> None:
        """Tell others that this module is about to be deployed, before any is; `_stop_deployed` takes it back."""

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
            _deploy_all(_tasks(places_of(self, recursive), DEPLOYMENT), done)
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

        Services are deployed at once where the environment variable ``REPLAYML_REDIS_URL`` names a Redis, through which
        they find one another.

        Args:
            recursive: False for this module alone.

        Raises:
            LifecycleError: When a module takes part in another call of the lifecycle at the moment.
        """
        with claimed(places_of(self, recursive), f"start() of {type(self).__name__}"), _undone_on_failure() as done:
            places = [place for place in places_of(self, recursive) if not place.module._is_deployed]
            _deploy_all(_tasks(places, DEPLOYMENT), done)
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
            _deploy_all(_tasks(places, DEPLOYMENT), done)
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


class _Begun(NamedTuple):
    """A module whose deployment was begun by this call.

    Attributes:
        place: The module.
        waiting: The calls that waited for it before.
        did_run: Whether it was deployed before.
    """

    place: Place
    waiting: list[tuple[Record, str, list[HookCall]]]
    did_run: bool


def _deploy_all(tasks: Sequence[tuple[Place, Task]], done: list[_Begun]) -> None:
    """Deploy modules, in order or at once."""
    if len(tasks) < 2 or not has_gateway():
        for place, task in tasks:
            _prepare(place, done)
            _run(place, task)
            _complete(place, done)
        return
    for place, _ in tasks:
        _prepare(place, done)
    all_at_once(
        [Job(partial(_run, place, task), place.module, not place.module._finds_by_name) for place, task in tasks]
    )
    for place, _ in tasks:
        _complete(place, done)


def _prepare(place: Place, done: list[_Begun]) -> None:
    done.append(_Begun(place, _waiting(place.module, DEPLOYMENT), _runs(place.module)))
    with _placed(place, DEPLOYMENT.doing):
        _run_waiting(place.module, "before_deploy")
        place.module._announce_deployment()


def _run(place: Place, task: Task) -> None:
    with _placed(place, DEPLOYMENT.doing):
        task()
        runtime_of(place.module).was_deployed = True


def _complete(place: Place, done: list[_Begun]) -> None:
    with _placed(place, DEPLOYMENT.doing):
        _run_waiting(place.module, "after_deploy")
    done[:] = [begun for begun in done if begun.place is not place or not begun.did_run]


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
def _undone_on_failure() -> Iterator[list[_Begun]]:
    """Stop what was deployed while the block ran, last first, when the block raises."""
    done: list[_Begun] = []
    try:
        yield done
    except BaseException as error:
        for place, waiting, did_run in reversed(done):
            try:
                _stop([] if did_run else [place])
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
