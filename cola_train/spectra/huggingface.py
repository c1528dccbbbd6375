"""Looking at any causal language model in a local folder, as transformers loads it.

Nothing is fetched, and the folder's own modelling code does not run unless it is trusted.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cola_train.checkpoint.files import first_few
from cola_train.config.groups import PROJECTIONS, ModelConfig
from cola_train.convert.description import CONFIG
from cola_train.errors import UserError
from cola_train.files import read_json
from cola_train.spectra.recorder import Key, Linear, Recorder

EXTRA = "pip install 'cola_train[spectra]'"
# the first number in a module's name is its block's
IN_A_BLOCK = re.compile(r"(?:.*?\.)?(\d+)\.(.+)")
OURS = {f"{name}_proj": name for name in PROJECTIONS}  # LLaMA's names


def load_model(
    folder: Path, device: torch.device, dtype: torch.dtype, trust_remote_code: bool
) -> Any:
    """The `PreTrainedModel` of the folder, in evaluation mode.

    Raises:
        UserError: transformers is not installed, or cannot load it whole; it has code of its own,
            which is not trusted.
    """
    if find_spec("transformers") is None:
        raise UserError(
            f"run_dir: {folder} is of no model of cola_train's, and transformers, which may know "
            f"it, is not installed; `{EXTRA}`"
        )
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    loader: Any = transformers.AutoModelForCausalLM
    try:
        model, found = loader.from_pretrained(
            str(folder),
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers', safetensors', the folder's own code's
        why = str(error).strip().split("\n")[0] or type(error).__name__
        if has_code(folder) and not trust_remote_code:
            why = "it has code of its own; if you trust that, say trust_remote_code=true"
        raise UserError(f"run_dir: {folder}: transformers cannot load it: {why}") from error
    missing = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
    if missing:
        raise UserError(
            f"run_dir: {folder}: no {first_few(missing)} of the model's shape among the weights; "
            "copy the folder anew"
        )
    return model.eval().requires_grad_(False).to(device)


def has_code(folder: Path) -> bool:
    """Whether its config.json names code of the folder."""
    try:
        return "auto_map" in read_json(folder / CONFIG)
    except (OSError, ValueError, TypeError):
        return False


def shape_of(model: Any) -> ModelConfig:
    """What its config says, in our words; a d_ff that it does not say is four times its width."""
    config = model.config.get_text_config()
    width = int(config.hidden_size)
    return ModelConfig(
        name=type(model).__name__,
        vocab_size=int(config.vocab_size),
        d_model=width,
        d_ff=int(getattr(config, "intermediate_size", None) or 4 * width),
        n_layers=int(config.num_hidden_layers),
        n_heads=int(config.num_attention_heads),
        rank_ratio=1.0,
        activation="",
    )


def longest(model: Any) -> int | None:
    """Positions that the model has; None: it does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def linears_of(model: nn.Module) -> dict[nn.Module, Linear]:
    """The linears of its blocks, in order, GPT-2's Conv1D among them. A projection is called by the
    end of its module's name, where no other ends so."""
    found = {}
    for name, module in model.named_modules():
        if (match := IN_A_BLOCK.fullmatch(name)) and (widths := widths_of(module)):
            found[module] = (int(match[1]), match[2], widths)
    names = short_names(dict.fromkeys(within for _, within, _ in found.values()))
    return {m: Linear(layer, names[w], *widths) for m, (layer, w, widths) in found.items()}


def widths_of(module: nn.Module) -> tuple[int, int] | None:
    """d_in and d_out of a linear; None: it is none."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D):
        d_in, d_out = module.weight.shape
        return d_in, d_out
    return None


def short_names(paths: Collection[str]) -> dict[str, str]:
    """Of modules' names within a block."""
    ends = [path.rpartition(".")[2] for path in paths]
    return {
        path: OURS.get(end, end) if ends.count(end) == 1 else path
        for path, end in zip(paths, ends, strict=True)
    }


@contextmanager
def watching(model: nn.Module, recorder: Recorder, layers: Sequence[int]) -> Iterator[None]:
    """Show the recorder what flows through the linears of these blocks."""

    def show(linear: Linear, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        recorder.see(Key(linear.layer, linear.projection, "input"), inputs[0])
        recorder.see(Key(linear.layer, linear.projection, "output"), output)

    with ExitStack() as hooks:
        for module, linear in linears_of(model).items():
            if linear.layer in layers:
                handle = module.register_forward_hook(partial(show, linear))
                hooks.callback(handle.remove)
        yield
