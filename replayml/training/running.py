"""`fit`, `validate`, `test`, `predict` and `trainset`: what an application does with data, by itself.

Invariants:
    * Each does what a trainer would do with the application and the loaders made of the data; nothing more is stored.
    * An argument that would have no effect is refused.
    * ``app.trainer`` stays the trainer of the last training while others, made for one evaluation, come and go.
    * A checkpoint to go on from, or to evaluate, is opened without unpickling.
    * ``update()`` trains with the recorded ``trainset`` as ``fit`` would, and evaluates as ``test`` would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from lightning.pytorch import LightningDataModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, Dataset

from replayml.core.arguments import read_once
from replayml.core.errors import ConfigurationError, NotBuiltError
from replayml.core.hooks import edit
from replayml.layers.external import External
from replayml.module.evaluating import Progress, is_shown
from replayml.module.predicting import predict_batches
from replayml.module.runtime import runtime_of
from replayml.training.data import as_loader
from replayml.training.first_batch import build_from, hands_weights_back
from replayml.training.metrics import named_metrics
from replayml.training.steps import Steps
from replayml.training.trainer import Trainer

__all__ = ["Running"]

_Given = TypeVar("_Given", bound=LightningTrainer)

_WITH_TARGETS = (tuple, Mapping, Dataset, DataLoader, CombinedLoader, LightningDataModule)


class Running(Steps):
    """The part of `Application` that this file is about."""

    _modules: dict[str, nn.Module | None]
    _runs_fit_hooks: ClassVar[bool] = True

    def create_trainer(self, **kwargs: Any) -> Trainer:
        """Return the trainer that `fit` uses; takes what `replayml.Trainer` takes."""
        return Trainer(**kwargs)

    def fit(
        self,
        train_data: Any = None,
        val_data: Any = None,
        max_epochs: int | None = None,
        batch_size: int = 32,
        *,
        val_batch_size: int | None = None,
        ckpt_path: str | Path | None = None,
        trainer: _Given | None = None,
        **trainer_kwargs: Any,
    ) -> _Given | Trainer:
        """Train the model.

        Args:
            train_data: ``(x, y)`` of tensors or arrays, a dataset, a DataLoader or a LightningDataModule. None where
                the application defines ``train_dataloader``.
            val_data: The same, for validation after each epoch.
            max_epochs: How often to go through the data.
            batch_size: Rows in a batch, where ``train_data`` is no loader.
            val_batch_size: The same for ``val_data``; by default ``batch_size``.
            ckpt_path: Resume from this checkpoint; ``"last"`` and so on as in Lightning.
            trainer: Train with this trainer; else one is made with ``trainer_kwargs``.
            **trainer_kwargs: What `replayml.Trainer` takes.

        Returns:
            The trainer; its ``history`` has what was logged.

        Raises:
            RecipeError: When checkpoints are to be written, and could not be loaded.
            ConfigurationError: When the arguments contradict one another.
        """
        if isinstance(train_data, LightningDataModule) and val_data is not None:
            raise ConfigurationError("a LightningDataModule brings its own validation data; leave val_data out")
        given = {**({} if max_epochs is None else {"max_epochs": max_epochs}), **trainer_kwargs}
        used = _trainer_for(self, trainer, given)
        loaders: dict[str, Any] = {}
        if train_data is not None:
            loaders["train_dataloaders"] = as_loader(train_data, batch_size=batch_size, shuffle=True)
        if val_data is not None:
            loaders["val_dataloaders"] = as_loader(val_data, batch_size=val_batch_size or batch_size)
        app: Any = self
        if not app._has_built and hands_weights_back(used) and isinstance(loaders.get("train_dataloaders"), DataLoader):
            build_from(app, loaders["train_dataloaders"])
        runtime_of(app).forget()
        used.fit(app, **loaders, ckpt_path=ckpt_path, weights_only=True)
        return used

    @edit
    def trainset(
        self,
        train_data: Any,
        val_data: Any = None,
        max_epochs: int | None = None,
        batch_size: int = 32,
        **options: Any,
    ) -> None:
        """Set what `update` trains this application with; recorded before the build.

        ``new()`` copies the data. Model files, checkpoints and recipes have this call only where all that is given to
        it is names and a few plain values, such as a function that returns the data; other data is no part of a file.

        Args:
            train_data: What `fit` takes; or a function, or a class, to be called for it when the training starts.
            val_data: The same, for validation after each epoch.
            max_epochs: How often each update goes through the data.
            batch_size: Rows in a batch, where ``train_data`` is no loader.
            **options: What else `fit` takes.

        Example:
            >>> import torch, replayml
            >>> app = replayml.Regressor(replayml.MultiLayerPerceptron(None, [4], 1))
            >>> quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
            >>> app.trainset((torch.randn(8, 2), torch.randn(8, 1)), max_epochs=1, enable_model_summary=False, **quiet)
            >>> app.evalset((torch.randn(4, 2), torch.randn(4, 1)))
            >>> sorted(app.new().update().eval_result)
            ['test_loss']
        """
        (train_data, val_data), _ = read_once((train_data, val_data), {})
        if "trainer" in options:
            raise ConfigurationError(
                "trainset() records how to train, and a trainer is no setting. Give what it was made with: "
                "trainset(data, max_epochs=..., accelerator=...); or call fit(data, trainer=trainer)"
            )
        self._trainset = {
            "train_data": train_data,
            "val_data": val_data,
            "max_epochs": max_epochs,
            "batch_size": batch_size,
            **options,
        }

    def _get_train_tasks(self) -> Callable[[], Any] | None:
        """Return what trains with the data of `trainset`, if there is any."""
        given: dict[str, Any] | None = self.__dict__.get("_trainset")
        if given is None:
            return None
        return lambda: self.fit(**{**given, **{name: _called(given[name]) for name in ("train_data", "val_data")}})

    def validate(self, data: Any = None, **kwargs: Any) -> Mapping[str, float]:
        """Return the validation loss and metrics over data; takes what `test` takes."""
        return self._evaluate("validate", data, **kwargs)

    def test(self, data: Any = None, **kwargs: Any) -> Mapping[str, float]:
        """Return the test loss and metrics over data.

        Args:
            data: What `fit` takes.
            **kwargs: ``metrics``, to be used instead of the application's; ``batch_size``; ``ckpt_path``, where
                ``"best"`` is that of the last training; ``trainer``, or what `replayml.Trainer` takes.

        Raises:
            NotBuiltError: When there are no weights yet.
        """
        return self._evaluate("test", data, **kwargs)

    def _evaluate(
        self,
        phase: Literal["validate", "test"],
        data: Any,
        *,
        metrics: Any = None,
        batch_size: int = 32,
        ckpt_path: str | Path | None = None,
        trainer: LightningTrainer | None = None,
        **trainer_kwargs: Any,
    ) -> Mapping[str, float]:
        app: Any = self
        if not app._has_built and ckpt_path is None:
            raise NotBuiltError(
                f"{type(self).__name__} has no weights to {phase}. Train it first: app.fit(...), give ckpt_path=..., "
                "or build it with new ones: app.build(x)"
            )
        before = app._trainer
        if trainer is None:
            trainer_kwargs = {"logger": False, "enable_checkpointing": False, **trainer_kwargs}
            ckpt_path = _best_of(before) if ckpt_path == "best" else ckpt_path
        used = _trainer_for(self, trainer, trainer_kwargs)
        loaders = {} if data is None else {"dataloaders": as_loader(data, batch_size=batch_size)}
        name = "val_metrics" if phase == "validate" else "test_metrics"
        own = self._modules[name]
        if metrics is not None:
            chosen = named_metrics({"metrics": metrics}, f"{phase}() of {type(self).__name__}")
            self._modules[name] = nn.ModuleDict({key: _built(metric) for key, metric in chosen.items()})
        try:
            results = getattr(used, phase)(self, **loaders, ckpt_path=ckpt_path, verbose=False, weights_only=True)
        finally:
            self._modules[name] = own
            if trainer is None and before is not None:
                app.trainer = before
        return {key: value for result in results for key, value in result.items()}

    def _check_evalset(self, data: Any, load_f: Any) -> None:
        if isinstance(data, _WITH_TARGETS):
            _refuse_load_f(data, load_f)
        else:
            super()._check_evalset(data, load_f)  # type: ignore[misc]

    def _results(self, data: Any, load_f: Any, batch_size: int, progress: Progress) -> Any:
        """Return the test loss and metrics where the data has targets, else the outputs."""
        if not isinstance(data, _WITH_TARGETS):
            return super()._results(data, load_f, batch_size, progress)  # type: ignore[misc]
        _refuse_load_f(data, load_f)
        return self.test(data, batch_size=batch_size, enable_progress_bar=is_shown(progress))

    def predict(self, *inputs: Any, batch_size: int = 32, device: Any = None, output_device: Any = None) -> Any:
        """Return the model's output for inputs of many rows, batch by batch.

        Args:
            *inputs: What ``forward`` takes, each ``(rows, ...)``, as `Module.predict` takes them; or a dataset, a
                DataLoader or a LightningDataModule, whose targets are left out.
            batch_size: How many rows to run at once, where the inputs are no loader.
            device: Where to run, which is where the model must be; its own device by default.
            output_device: Where to gather the outputs; ``device`` by default.

        Returns:
            What ``forward`` returns, ``(rows, ...)``, in the order of the rows.
        """
        data = inputs[0] if len(inputs) == 1 else None
        if not isinstance(data, (Dataset, DataLoader, LightningDataModule)):
            return super().predict(  # type: ignore[misc]
                *inputs, batch_size=batch_size, device=device, output_device=output_device
            )
        loader: Any = as_loader(data, batch_size=batch_size)
        if isinstance(data, LightningDataModule):
            data.prepare_data()
            data.setup("predict")
            loader = data.predict_dataloader()
        found = (self._inputs_of(batch, TrainerFn.PREDICTING) for batch in loader)
        batches = (tuple(one) if isinstance(one, (tuple, list)) else (one,) for one in found)
        app: Any = self
        return predict_batches(app, batches, device=device, output_device=output_device)


def _trainer_for(app: Running, trainer: _Given | None, options: dict[str, Any]) -> _Given | Trainer:
    """Return the trainer that was given, or make one."""
    if trainer is None:
        return app.create_trainer(**options)
    if options:
        raise ConfigurationError(
            f"{', '.join(options)} would have no effect, for the trainer was given. Leave one of the two out"
        )
    return trainer


def _called(data: Any) -> Any:
    """Return data; of a function or a class, what it makes."""
    return data() if callable(data) else data


def _refuse_load_f(data: Any, load_f: Any) -> None:
    if load_f is not None:
        raise ConfigurationError(
            f"load_f would have no effect: a {type(data).__name__} has inputs and targets, which run in batches. "
            "Leave it out, or give a list of items"
        )


def _best_of(trainer: LightningTrainer | None) -> str:
    """Return where a trainer keeps the best weights that it has seen."""
    saver = None if trainer is None else trainer.checkpoint_callback
    best: str = getattr(saver, "best_model_path", "")
    if not best:
        raise ConfigurationError(
            "ckpt_path='best' is the best checkpoint of the last training, and there is none. Train with "
            "enable_checkpointing=True, or give the path of a checkpoint"
        )
    return best


def _built(metric: nn.Module) -> Any:
    return metric.build() if isinstance(metric, External) else metric
