"""Loads exported folders as a program does that has transformers and not us.

Its arguments: a JSON file of questions, one for each folder, and the file that answers go to.
"""

import importlib.abc
import json
import sys
from pathlib import Path
from typing import Any


class NotInstalled(importlib.abc.MetaPathFinder):
    """Stands before all finders: this environment has neither of ours."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name.partition(".")[0] in ("cola_train", "cola_kernels"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NotInstalled())

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

NEW = 64


@torch.no_grad()
def answers(
    folder: str, remote: bool, tokens: list[list[int]], prompts: list[list[int]], texts: list[str]
) -> dict[str, Any]:
    """Of one folder. tokens: rows of one length, of which logits are wanted. prompts: of different
    lengths, to be continued greedily. texts: for the tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trust = {"trust_remote_code": True} if remote else {}
    model = AutoModelForCausalLM.from_pretrained(folder, **trust)
    eos, model.generation_config.eos_token_id = model.generation_config.eos_token_id, None
    batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    longest = batch["input_ids"].shape[1]

    def go_on(inputs: Any, **options: Any) -> torch.Tensor:
        return model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **options)

    def alone(prompt: list[int]) -> list[int]:
        ids = torch.tensor([prompt])
        return go_on({"input_ids": ids, "attention_mask": torch.ones_like(ids)})[0].tolist()

    narrow = AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16", **trust)
    rows = torch.tensor(tokens)
    whole = model(rows, output_hidden_states=True)
    last = model(rows, logits_to_keep=1).logits
    torch.testing.assert_close(last, whole.logits[:, -1:])
    assert len(whole.hidden_states) == model.config.num_hidden_layers + 1
    return {
        "class": type(model).__name__,
        "eos": [eos, tokenizer.eos_token_id],
        "logits": whole.logits.tolist(),
        "alone": [alone(prompt)[len(prompt) :] for prompt in prompts],
        "padded": go_on(batch)[:, longest:].tolist(),
        "static": go_on(batch, cache_implementation="static")[:, longest:].tolist(),
        "ids": [tokenizer(text)["input_ids"] for text in texts],
        "texts": [tokenizer.decode(tokenizer(text)["input_ids"]) for text in texts],
        "backward": backward(model, rows),
        "bf16": str(narrow.dtype),
    }


@torch.enable_grad()
def backward(model: Any, rows: torch.Tensor) -> bool:
    """Whether gradients of a loss are the same with gradient checkpointing."""
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
    questions, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    found = [answers(**question) for question in questions]
    assert "cola_train" not in sys.modules
    out.write_text(json.dumps({"version": transformers.__version__, "answers": found}))
