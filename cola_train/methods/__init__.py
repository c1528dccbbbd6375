"""Pre-training methods: the linears of a block, what they cost, what happens between steps.

Importing this package imports no torch. A new method is a folder here (options and layers), one
entry in METHODS, one YAML file, one test.
"""

from cola_train.methods.apollo.options import ApolloOptions
from cola_train.methods.cola.options import ColaOptions
from cola_train.methods.full.options import FullOptions
from cola_train.methods.galore.options import GaloreOptions
from cola_train.methods.lora.options import LoraOptions
from cola_train.methods.low_rank.options import LowRankOptions
from cola_train.methods.options import MethodOptions
from cola_train.methods.relora.options import ReloraOptions
from cola_train.methods.sltrain.options import SltrainOptions

__all__ = ["METHODS", "MethodOptions"]

METHODS: dict[str, type[MethodOptions]] = {
    "full": FullOptions,
    "cola": ColaOptions,
    "low_rank": LowRankOptions,
    "lora": LoraOptions,
    "relora": ReloraOptions,
    "galore": GaloreOptions,
    "sltrain": SltrainOptions,
    "apollo": ApolloOptions,
}
