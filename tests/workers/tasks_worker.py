"""Run by test_tasks.py under torchrun: a run with a stub of lm-evaluation-harness, whose model is
sharded over the processes. Arguments: the JSON file to write, the folder of the stub, overrides.
"""

import sys
from typing import Any

from helpers import make_config, work

from cola_train import distributed
from cola_train.errors import UserError
from cola_train.evaluation.together import on_main
from cola_train.train import train


def main(folder: str, *overrides: str) -> dict[str, Any]:
    sys.path.insert(0, folder)
    import harness_stub

    sys.modules.update(harness_stub.modules())
    code = train(make_config(*overrides))
    said = "nothing"
    try:
        on_main(refuse, {})
    except UserError as error:
        said = str(error)
    heard = distributed.sum_over_ranks([float(said == "a task is wrong")])
    return {"code": code, "heard": heard[0]}


def refuse(ask: Any) -> None:
    raise UserError("a task is wrong")


if __name__ == "__main__":
    work(main)
