"""Tasks of lm-evaluation-harness on a model that all processes hold together."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from cola_train import distributed
from cola_train.evaluation.harness import load_tasks, run_tasks
from cola_train.evaluation.scoring import Scorer
from cola_train.evaluation.together import on_main


class HarnessTasks:
    """The harness runs on the main process, which has the tasks' data; what it asks of the model
    all processes compute together."""

    def __init__(self, names: Sequence[str], option: str, limit: int | None) -> None:
        """option: what the names are the value of. limit: examples of each task; None: all.

        Raises:
            UserError: on every process; a task cannot be loaded.
        """
        self.limit = limit
        self.loaded: dict[str, Any] = {}  # on the main process

        def load() -> None:
            self.loaded = load_tasks(names, option)

        distributed.from_main(load)

    def run(self, scorer: Scorer, errors: bool) -> dict[str, dict[str, float]]:
        """Task or group -> metric -> value, on every process; errors: of metrics too."""

        def task(ask: Callable[[str, Any], Any]) -> dict[str, dict[str, float]]:
            from cola_train.evaluation.harness_model import HarnessModel

            asked = partial(ask, "score"), partial(ask, "go_on")
            model = HarnessModel(scorer.tokenizer, scorer.max_length, *asked)
            return run_tasks(model, self.loaded, self.limit, errors)

        score, go_on = scorer.log_likelihoods, scorer.continuations
        return on_main(task, {"score": score, "go_on": go_on})
