"""What of lm-evaluation-harness the product calls, for where it is not installed: a task, `words`,
of some requests of each kind."""

from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PAIRS = [("the cat ", "sees"), ("the cat sees", " the dog and not the tree"), ("", "a dog")]
PROMPTS = [("the cat", {"until": ["."], "max_gen_toks": 6}), ("a", {"max_gen_toks": 3})]


@dataclass
class Instance:
    args: tuple[Any, ...]
    task_name: str = "words"


class LM:
    rank, world_size = 0, 1


class TaskManager:
    all_tasks = ("words", "works")

    def load(self, names: list[str]) -> dict[str, Any]:
        return {"tasks": {name: Task() for name in names}}


class Task:
    def get_config(self, key: str) -> int:
        return 0

    def set_fewshot_seed(self, seed: int) -> None:
        pass


def evaluate(model: Any, loaded: Any, *, limit: int | None, **_: Any) -> dict[str, Any]:
    scored = model.loglikelihood([Instance(pair) for pair in PAIRS[:limit]])
    rolling = model.loglikelihood_rolling([Instance((second,)) for _, second in PAIRS])
    texts = model.generate_until([Instance(prompt) for prompt in PROMPTS])
    metrics = {f"score{i},none": total for i, (total, _) in enumerate(scored)}
    metrics |= {f"rolling{i},none": total for i, total in enumerate(rolling)}
    metrics |= {"characters,strict": sum(map(len, texts)), "alias": "words"}
    return {"results": {name: metrics for name in loaded["tasks"]}}


def modules() -> dict[str, ModuleType]:
    """As they would be imported."""
    parts: dict[str, dict[str, Any]] = {
        "lm_eval": {"evaluate": evaluate},
        "lm_eval.api": {},
        "lm_eval.api.instance": {"Instance": Instance},
        "lm_eval.api.model": {"LM": LM},
        "lm_eval.api.task": {"tqdm": iter},
        "lm_eval.tasks": {"TaskManager": TaskManager},
    }
    made = {name: ModuleType(name) for name in parts}
    for name, module in made.items():
        vars(module).update(parts[name], __spec__=ModuleSpec(name, None))
        package, _, inner = name.rpartition(".")
        if package:
            setattr(made[package], inner, module)
    return made
