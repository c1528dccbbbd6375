"""Loads exported folders as a program does that has transformers and not us.

Its arguments: a JSON file with what is asked of `models` and of `tokenizers`, a list of arguments
of the functions here for each; and the file that the answers go to.
"""

import importlib.abc
import json
import sys
from pathlib import Path
from typing import Any


class NotInstalled(importlib.abc.MetaPathFinder):
    """Stands before all finders: this environment has neither of our packages."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name.partition(".")[0] in ("cola_train", "cola_kernels"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NotInstalled())

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

NEW = 64


def of_tokenizer(folder: str, texts: list[str]) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text)["input_ids"] for text in texts]
    return {
        "eos": tokenizer.eos_token_id,
        "pad": tokenizer.pad_token_id,
        "ids": ids,
        "texts": [tokenizer.decode(row, skip_special_tokens=True) for row in ids],
    }


def of_model(
    folder: str, remote: bool, tokens: list[list[int]], prompts: list[list[int]]
) -> dict[str, Any]:
    """remote: whether code of the folder may run. tokens: rows of one length, of which logits are
    wanted. prompts: of different lengths, to be continued greedily."""
    trust = {"trust_remote_code": True} if remote else {}
    model = AutoModelForCausalLM.from_pretrained(folder, **trust)
    narrow = AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16", **trust)
    defaults = model.generation_config.to_dict()
    model.generation_config.eos_token_id = None  # all are to be as long
    batch = AutoTokenizer.from_pretrained(folder).pad({"input_ids": prompts}, return_tensors="pt")
    longest = batch["input_ids"].shape[1]

    def go_on(inputs: Any, **options: Any) -> Any:
        return model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **options)

    def alone(prompt: list[int]) -> list[int]:
        ids = torch.tensor([prompt])
        return go_on({"input_ids": ids, "attention_mask": torch.ones_like(ids)})[0].tolist()

    rows = torch.tensor(tokens)
    with torch.no_grad():
        whole = model(rows, output_hidden_states=True)
        torch.testing.assert_close(model(rows, logits_to_keep=1).logits, whole.logits[:, -1:])
    assert len(whole.hidden_states) == model.config.num_hidden_layers + 1
    return {
        "class": type(model).__name__,
        "eos": defaults["eos_token_id"],
        "dtypes": [str(model.dtype), str(narrow.dtype)],
        "logits": whole.logits.tolist(),
        "alone": [alone(prompt)[len(prompt) :] for prompt in prompts],
        "padded": go_on(batch)[:, longest:].tolist(),
        "static": go_on(batch, cache_implementation="static")[:, longest:].tolist(),
        "checkpointing": same_gradients(model, rows),
    }


def same_gradients(model: Any, rows: torch.Tensor) -> bool:
    """Whether they are with gradient checkpointing what they are without."""
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train().zero_grad()
        model(rows, labels=rows).loss.backward()
        found.append([p.grad.clone() for p in model.parameters()])
    return all(torch.equal(a, b) for a, b in zip(*found, strict=True))


if __name__ == "__main__":
    torch.set_num_threads(1)
    asked = json.loads(Path(sys.argv[1]).read_text())
    answers = {
        "models": [of_model(**each) for each in asked["models"]],
        "tokenizers": [of_tokenizer(**each) for each in asked["tokenizers"]],
    }
    assert "cola_train" not in sys.modules
    Path(sys.argv[2]).write_text(json.dumps(answers))
