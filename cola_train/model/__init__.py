"""The LLaMA decoder and CoLA's auto-encoder linears."""

from cola_train.model.llama import Llama
from cola_train.model.loss import IGNORE_INDEX

__all__ = ["IGNORE_INDEX", "Llama"]
