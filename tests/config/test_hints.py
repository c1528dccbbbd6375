"""What a name that does not exist may have meant."""

import re

import pytest

from cola_train.commands.groups import OPTIONS
from cola_train.commands.overrides import check_overrides
from cola_train.config.hints import ADVICE, SYNONYMS, aliases


def test_every_option_of_the_table_exists_and_every_name_stands_once():
    assert SYNONYMS.keys() <= OPTIONS.keys()
    for advice in ADVICE:
        assert set(re.findall(r"\b[a-z]+\.[a-z_]+\b", advice)) <= OPTIONS.keys()
    words = " ".join([*SYNONYMS.values(), *ADVICE.values()]).split()
    assert len(words) == len(set(words)) == len(list(aliases()))
    assert not set(words) & OPTIONS.keys()


def hint(name: str) -> str:
    _, (problem,) = check_overrides([f"{name}=1"])
    return problem.partition("does not exist")[2]


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("rank", "method.rank"), ("train.rank", "method.rank"), ("optim.learning_rate", "optim.lr"),
        ("train.grad_clip", "optim.clip"), ("max-grad-norm", "optim.clip"),
        ("seq_len", "train.sequence_length"), ("model.hidden_size", "model.d_model"),
        ("batch_size", "train.batch_size"), ("eval.batch_size", "evaluation.batch_size"),
        ("bf16", "train.precision"), ("lora.r", "method.rank"),
        ("wandb.project", "tracking.project"),
        ("gradient_checkpointing", "recompute"), ("output_dir", "run_dir"),
        ("optim.betaz", "optim.betas"), ("trian.steps", "train.steps"),
        ("checkpoints.every", "checkpoint.every"), ("max_stepps", "train.steps"), ("qwertz", ""),
        ("sede", "seed"),
        ("method.activaton", "method.activation"), ("engine.overides", "engine.overrides"),
        ("data.vocab", "model.vocab_size"), ("Learning_Rate", "optim.lr"),
    ],
)  # fmt: skip
def test_a_hint_by_meaning_then_by_spelling(name, option):
    assert hint(name) == (f"; did you mean `{option}`?" if option else "; --help lists them")


def test_what_has_no_option_has_advice():
    assert "counted in steps" in hint("epochs") and "train.steps" in hint("train.max_epochs")
    assert "data=text with data.files=[...]" in hint("train_files")
    assert "set train.micro_batch_size" in hint("gradient_accumulation_steps")
    assert "optim.warmup_steps" in hint("warmup_ratio") and hint("every").count("`") == 6
    assert "torchrun" in hint("gpus")
