"""Models on the Hugging Face Hub: a folder with ``config.json``, ``model.safetensors`` and a model card.

``config.json`` is the recipe, ``model.safetensors`` holds the weights, and the recipe as well. The names of the methods
and of their arguments are those of the Hub's own mixin for models. Only what talks to the Hub needs the extra ``hub``.

Invariants:
    * A folder on this machine is read and written without the extra, and without the network.
    * What cannot be written is refused; nothing that is reloaded differs from what was saved.
    * What comes from the Hub is opened as any other model file is: nothing is unpickled, imported or called.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from replayml.core.errors import CheckpointError, NotBuiltError
from replayml.module.saving import content_of, load_file
from replayml.recipe.codecs import Codec
from replayml.recipe.files.reading import CARD, CONFIG, WEIGHTS, read_model_file
from replayml.recipe.files.storing import write_pretrained
from replayml.recipe.format import Limits

__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]

_LIMITS = Limits()

_CARD = """\
---
library_name: replayml
tags:
- replayml
---

# {name}

A PyTorch model with {parameters} parameters, made with replayml.

```python
import replayml
{imports}
model = replayml.Module.from_pretrained("{repository}")
```

`config.json` is the recipe of the model: the calls that make it. `model.safetensors` holds its weights.
"""


def save_pretrained(
    model: Any,
    save_directory: str | os.PathLike[str],
    *,
    repo_id: str | None = None,
    push_to_hub: bool = False,
    codecs: Sequence[Codec[Any]] = (),
    **options: Any,
) -> str | None:
    """Write a built model into a folder, as the Hub keeps it: see `replayml.module.module.Module.save_pretrained`."""
    if options and not push_to_hub:
        raise TypeError(f"save_pretrained() takes {', '.join(options)} only with push_to_hub=True")
    if not model._record.built:
        raise NotBuiltError(f"{type(model).__name__} has no weights yet. Build it first: model.build(x)")
    folder = Path(save_directory)
    content = content_of(model, codecs)
    write_pretrained(folder, content, _card(model, folder.name if repo_id is None else repo_id))
    return _upload(folder, folder.name if repo_id is None else repo_id, **options) if push_to_hub else None


def push_to_hub(model: Any, repo_id: str, *, codecs: Sequence[Codec[Any]] = (), **options: Any) -> str:
    """Write a built model to the Hub: see `replayml.module.module.Module.push_to_hub`."""
    _hub("push_to_hub")
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, repo_id=repo_id, codecs=codecs)
        return _upload(Path(folder), repo_id, **options)


def _card(model: Any, repository: str) -> str:
    cls = type(model)
    is_own = cls.__module__.partition(".")[0] != "replayml"
    return _CARD.format(
        name=cls.__name__,
        parameters=f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        imports=f"import {cls.__module__}  # where {cls.__qualname__} stands\n" if is_own else "",
        repository=repository,
    )


def _upload(
    folder: Path,
    repo_id: str,
    *,
    commit_message: str = "Push model using replayml.",
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    create_pr: bool | None = None,
) -> str:
    """Upload a folder, and return the address of the commit."""
    api = _hub("push_to_hub").HfApi(token=token)
    name = api.create_repo(repo_id=repo_id, private=private, exist_ok=True).repo_id
    return str(
        api.upload_folder(
            repo_id=name,
            repo_type="model",
            folder_path=folder,
            commit_message=commit_message,
            revision=branch,
            create_pr=create_pr,
            allow_patterns=[CONFIG, WEIGHTS, CARD],
        )
    )


def from_pretrained(
    cls: type[nn.Module],
    pretrained_model_name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    token: str | bool | None = None,
    map_location: Any = None,
    trust: Sequence[object] = (),
    rename: Mapping[str, str] | None = None,
    limits: Limits = _LIMITS,
) -> Any:
    """Load a model from a folder or the Hub: see `replayml.module.module.Module.from_pretrained`."""
    folder = Path(pretrained_model_name_or_path)
    if not folder.is_dir():
        folder = Path(
            _hub("from_pretrained").snapshot_download(
                repo_id=os.fspath(pretrained_model_name_or_path),
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                allow_patterns=[CONFIG, WEIGHTS],
            )
        )
    file = read_model_file(folder, limits=limits)
    model: Any = load_file(file, map_location=map_location, limits=limits, trust=trust, rename=rename)
    if not isinstance(model, cls):
        raise CheckpointError(
            f"{pretrained_model_name_or_path} holds a {type(model).__name__}, which is no {cls.__name__}. "
            f"Load it with {type(model).__name__}.from_pretrained or replayml.Module.from_pretrained"
        )
    model.eval()
    return model


def _hub(method: str) -> Any:
    """Return ``huggingface_hub``."""
    try:
        return importlib.import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{method} talks to the Hugging Face Hub with an extra that is not installed: pip install 'replayml[hub]'. "
            "A folder on this machine is loaded without it",
            name=error.name,
        ) from error
