"""The LLaMA decoder and CoLA's auto-encoder linears."""

from cola_train.model.llama import Llama, build_model
from cola_train.model.loss import IGNORE_INDEX

__all__ = ["IGNORE_INDEX", "Llama", "build_model"]
