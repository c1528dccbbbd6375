"""Names of exported weights, against transformers' own."""

import pytest
import torch
from helpers import make_config
from transformers import LlamaConfig, LlamaForCausalLM

from cola_train.convert.names import exported_names
from cola_train.methods.base import build_method
from cola_train.model.llama import build_model

CPU = torch.device("cpu")


@pytest.mark.parametrize(("method", "factored"), [("full", False), ("cola", True)])
def test_names_are_those_of_transformers_llama(method: str, factored: bool) -> None:
    config = make_config(f"method={method}", "model.n_layers=2")
    names = exported_names(
        name for name, _ in build_model(config, build_method(config, CPU), CPU).named_parameters()
    )
    with torch.device("meta"):
        theirs = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2)).state_dict().keys()
    if factored:
        linears = {name for name in theirs if "_proj" in name}
        factors = {name.replace("weight", f"{f}.weight") for name in linears for f in "AB"}
        theirs = (theirs - linears) | factors
    assert set(names.values()) == set(theirs)
