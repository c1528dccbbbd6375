"""The model card of an exported folder: what the run was, by what it has recorded."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cola_train.checkpoint.files import read_manifest, read_state
from cola_train.checkpoint.recorded import config_of_run, run_of
from cola_train.config.describe import about, shown
from cola_train.config.schema import Config
from cola_train.run.identity import is_start
from cola_train.run.metrics import read_metrics

# the least version that loads what is exported, and the one that has Qwen3
TRANSFORMERS, WITH_QK_NORM = "4.50", "4.51"
# Of a machine, not of a recipe.
LOCAL = (
    "cache_dir", "workers", "verify", "threads", "log_every", "hang_seconds", "micro_batch_size",
)  # fmt: skip


def card(checkpoint: Path, parameters: int, modeling: bool, dtype: str) -> str:
    """README.md of a model exported from a checkpoint.

    modeling: whether the folder has a modeling file. dtype: that of the weights.
    """
    config = config_of_run(checkpoint)
    start = is_start(read_state(checkpoint))
    return "\n".join(
        (
            *front_matter(config),
            f"# {config.run_name}",
            "",
            f"A language model of {parameters:,} parameters, "
            + ("imported into cola_train." if start else "pre-trained with cola_train."),
            "",
            *use(config, modeling, dtype),
            *facts(checkpoint, config),
            *(() if start else recipe(config)),
            "",
        )
    )


def front_matter(config: Config) -> Iterator[str]:
    """What the Hugging Face hub reads."""
    yield from ("---", "library_name: transformers", "pipeline_tag: text-generation")
    kind = config.method.folded.exported_type(config.model)
    yield from (f"tags: [cola_train, {kind}]", "---", "")


def use(config: Config, modeling: bool, dtype: str) -> Iterator[str]:
    least = WITH_QK_NORM if config.model.qk_norm else TRANSFORMERS
    trust = ", trust_remote_code=True" if modeling else ""
    yield from (
        "## Use",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'folder = "{config.run_name}"  # this one',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f"model = AutoModelForCausalLM.from_pretrained(folder{trust})",
        'inputs = tokenizer(["The first prompt", "Another"], return_tensors="pt", padding=True)',
        "print(tokenizer.batch_decode(model.generate(**inputs, max_new_tokens=64)))",
        "```",
        "",
        f"It needs transformers {least} or newer. The weights are in {dtype}.",
    )
    if modeling:
        yield "`trust_remote_code=True` runs the modeling file of this folder; read it first."
    yield ""


def facts(checkpoint: Path, config: Config) -> Iterator[str]:
    """What was trained, on what, and how far."""
    state, manifest = read_state(checkpoint), read_manifest(checkpoint)
    code = state.get("code", {})
    method = ", ".join(filter(None, [config.method.name, config.method.label(config.model)]))
    if config.method.folded != config.method:
        method += f"; exported as {config.method.folded.name}, its weights folded"
    rows: dict[str, Any] = {"method": method}
    length = {"sequence length": f"{config.train.sequence_length:,} tokens"}
    if is_start(state):
        rows |= {"imported from": state["source"], **length}
    else:
        rows |= {
            "data": data(config),
            "steps": f"{manifest.step:,} of {config.train.steps:,}",
            "tokens": f"{state['progress']['tokens']:,}",
            **length,
            "batch": f"{config.batch_size:,} sequences",
            **losses(run_of(checkpoint) / "metrics.jsonl", manifest.step),
            "cola_train": code.get("version", "unknown"),
            "commit": code.get("commit") or "unknown",
        }
    yield from ("## Facts", "", "| | |", "|---|---|")
    yield from (f"| {name} | {text(value)} |" for name, value in rows.items())
    yield ""


def data(config: Config) -> str:
    """Where the text came from."""
    options = config.data
    names = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if field.name in ("name", "config", "split", "revision", "files", "path")
    }
    given = ", ".join(f"{name} {shown(value)}" for name, value in names.items() if value)
    return f"{about(type(options))}" + (f": {given}" if given else "")


def losses(metrics: Path, step: int) -> dict[str, str]:
    """The last ones up to a step, in nats a token."""
    found = {}
    lines = [line for line in read_metrics(metrics) if line["step"] <= step]
    for name, key in (("training loss", "loss"), ("validation loss", "val_loss")):
        measured = [line for line in lines if line.get(key) is not None]
        if measured:
            at, loss = measured[-1]["step"], measured[-1][key]
            perplexity = math.exp(min(loss, 700.0))  # exp has no more
            found[name] = f"{loss:.4f} (perplexity {perplexity:.2f}) at step {at:,}"
    return found


def recipe(config: Config) -> Iterator[str]:
    """The options that another run would be given, as a config file."""
    import yaml

    groups = {
        name: {
            option: value
            for option, value in dataclasses.asdict(getattr(config, name)).items()
            if value not in (None, [], {}) and option not in LOCAL
        }
        for name in ("model", "method", "optim", "data", "train")
    }
    yield from ("## Recipe", "", "Its options, by group:", "", "```yaml")
    yield from yaml.safe_dump({**groups, "seed": config.seed}, sort_keys=False).splitlines()
    yield "```"


def text(value: Any) -> str:
    """For a cell of a table."""
    return str(value).replace("|", "\\|").replace("\n", " ")
