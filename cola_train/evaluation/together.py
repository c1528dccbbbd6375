"""Work that one process thinks of and all carry out."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from cola_train import distributed
from cola_train.errors import TrainingError, UserError

T = TypeVar("T")


def on_main(
    task: Callable[[Callable[[str, Any], Any]], T], services: Mapping[str, Callable[..., Any]]
) -> T:
    """What `task(ask)` returns on the main process, there and on all others. `ask(name, argument)`
    has `services[name](argument)` called on every process at once, and returns what it does on the
    main one. An error of the task is raised on all.
    """
    if distributed.world_size() == 1:
        return task(lambda name, argument: services[name](argument))

    def ask(name: str, argument: Any) -> Any:
        _tell(("work", (name, argument)))
        return services[name](argument)

    if not distributed.is_main():
        while True:
            kind, said = _tell(None)
            if kind == "done":
                return said
            if kind == "failed":
                raise said
            name, argument = said
            services[name](argument)
    try:
        result = task(ask)
    except Exception as error:
        known = isinstance(error, UserError | TrainingError)
        _tell(("failed", error if known else RuntimeError(repr(error))))
        raise
    _tell(("done", result))
    return result


def _tell(news: Any) -> Any:
    """The main process's, on all."""
    import torch.distributed as dist

    message = [news]
    dist.broadcast_object_list(message, src=0)
    return message[0]
