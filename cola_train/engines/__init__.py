"""How a step runs on one process or many: FSDP2, or DeepSpeed's ZeRO.

Importing this package imports no torch. A new engine is a folder here (options and the two calls
of `base.Engine`), one entry in ENGINES (the simplest first: a search prefers it on a tie), one YAML
file, one test, and its planner.
"""

from cola_train.engines.deepspeed.options import DeepSpeedOptions
from cola_train.engines.fsdp.options import FSDPOptions
from cola_train.engines.options import EngineOptions

__all__ = ["ENGINES", "EngineOptions"]

ENGINES: dict[str, type[EngineOptions]] = {"fsdp": FSDPOptions, "deepspeed": DeepSpeedOptions}
