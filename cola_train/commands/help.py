"""`--help`: a screen for each command, `--help GROUP` for a group's options."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cola_train.commands.groups import OPTIONS, Choices, takes_group
from cola_train.commands.options import (
    GROUPS,
    choice_lines,
    default_choice,
    meaning,
    of_group,
)
from cola_train.config.describe import Option, about, options_of
from cola_train.config.fields import unknown
from cola_train.config.hints import meant
from cola_train.errors import UserError

WIDTH = 110  # of a screen's line


@dataclass(frozen=True)
class Command:
    """What its screen says."""

    about: str
    examples: str
    most_used: str  # options
    sweeps: bool = True  # it takes --multirun


COMMANDS = {
    "cola-train": Command(
        "pre-train a model, evaluate it, sample from it. The same command goes on after a stop.",
        """\
cola-train                                    a small model on Python's library, offline
cola-train my.yaml train.steps=1000           a config file of your own, and an override
cola-train experiment=paper_60m run_name=p1   a recipe
cola-train -m my.yaml optim.lr=1e-3,3e-3      a sweep, and its table of results
torchrun --nproc-per-node 8 -m cola_train my.yaml""",
        "run_name train.steps train.batch_size train.sequence_length train.micro_batch_size "
        "optim.lr method.rank data.files resume",
    ),
    "cola-prepare": Command(
        "text to token shards, before a run rather than at its start; prints their folder.",
        """\
cola-prepare my.yaml                          what `cola-train my.yaml` will read
cola-prepare data=text 'data.files=[corpus]' model.vocab_size=8192
cola-prepare list                             the prepared folders of the cache; clean removes""",
        "data.files data.validation_files data.text_field data.tokenizer data.max_files "
        "data.packing data.workers data.cache_dir model.vocab_size",
    ),
    "cola-eval": Command(
        "how well a trained model predicts: loss, perplexity, bits per byte.",
        """\
cola-eval run_dir=outputs/mine                the run's own validation data
cola-eval run_dir=outputs/mine data=text 'data.validation_files=[book.txt]' tokens=0
cola-eval run_dir=outputs/mine 'tasks=[arc_easy]' output=json   of lm-evaluation-harness""",
        "",
    ),
    "cola-plan": Command(
        "what a run will need: parameters, FLOPs, memory, traffic, time. Needs no GPU.",
        """\
cola-plan my.yaml gpus=8                      of `cola-train my.yaml` on 8 GPUs
cola-plan model=7b gpus=64 goal=throughput    search engine, sharding, recomputation, micro-batch
cola-plan my.yaml plot=memory.png             memory by part""",
        "",
    ),
    "cola-compare": Command(
        "methods trained side by side at one budget, each at its best rate, and a report.",
        """\
cola-compare methods=[ONE,ANOTHER] tokens=2e6 model=2m -j 2   into comparisons/mine
cola-compare methods=[THIRD] seeds=5          one more, and more seeds; what has run stays
cola-compare folder=comparisons/60m methods=[ONE,ANOTHER] tokens=1e9 model=60m slurm=true""",
        "",
        sweeps=False,
    ),
    "cola-export": Command(
        "a trained model as a folder that transformers loads: weights, tokenizer, model card.",
        """\
cola-export run_dir=outputs/mine out=exported/mine
cola-export run_dir=outputs/mine/checkpoints/step-00001000 out=exported/mine-bf16 dtype=bf16""",
        "",
    ),
    "cola-import": Command(
        "others' weights, or exported ones, as the folder of a run, where training may begin.",
        """\
cola-import source=exported/mine out=outputs/again           cola-export's folder
cola-import source=llama out=outputs/llama                   LlamaForCausalLM's
cola-import source=model_10000 out=outputs/theirs tokenizer=t5-base   the reference code's
cola-import source=llama out=outputs/low method=METHOD       a dense model's, as bottlenecks
cola-train outputs/again/config.yaml resume=outputs/again run_name=more   goes on from there""",
        "",
    ),
    "cola-generate": Command(
        "text from a trained model: a run's, a checkpoint's of any engine, or an exported one.",
        """\
cola-generate run_dir=outputs/mine prompt='Once upon a time'
cola-generate run_dir=outputs/mine prompts_file=prompts.txt output=json temperature=0
cola-generate run_dir=outputs/mine            on a terminal: each line that is typed is a prompt""",
        "",
    ),
    "cola-spectrum": Command(
        "singular values of what flows through a model's linears; the ranks that they use.",
        """\
cola-spectrum run_dir=outputs/mine            the run's own validation data
cola-spectrum run_dir=outputs/mine data=text 'data.validation_files=[book.txt]' tokens=0
cola-spectrum run_dir=gpt2 data=stdlib layers=[0,6,11]   a Hugging Face model's folder""",
        "",
    ),
    "cola-dashboard": Command(
        "runs on one HTML page: curves, health of every layer, spectra, what differs, their state.",
        """\
cola-dashboard run_dir=outputs/mine           into dashboard.html, whole in itself
cola-dashboard 'run_dir=[outputs/mine,outputs/baseline]' out=compared.html
cola-dashboard run_dir=outputs serve=true     all runs in a folder, followed on 127.0.0.1""",
        "",
    ),
    "cola-watch": Command(
        "runs in a terminal, as they go: state, loss, speed, time left, health.",
        """\
cola-watch run_dir=outputs/mine               until it is done, or Ctrl-C
cola-watch run_dir=outputs                    every run in a folder
cola-watch run_dir=[outputs/a,outputs/b] once=true   as they are now, for scripts and mails""",
        "",
    ),
    "cola-dashboard wandb": Command(
        "a workspace of W&B: quality, speed, memory, health of bottlenecks, methods.",
        """\
cola-dashboard wandb project=cola_train entity=my-team
cola-dashboard wandb out=workspace.json       as a file, without W&B""",
        "",
    ),
    "cola-plan inference": Command(
        "what a model in use will need: memory, the least time of a token; which cache to take.",
        """\
cola-plan inference model=7b batch=8 length=4096
cola-plan inference model=7b method=full gpu=a100-80gb output=json""",
        "",
    ),
}


def help_lines(
    command: str,
    words: list[str],
    groups: Choices,
    shared: Mapping[str, Any] = OPTIONS,
    own: type | None = None,
) -> Iterator[str]:
    """What `--help WORDS` prints; each word a group, a choice (GROUP=CHOICE) or an option.

    shared: types of those options of `cola-train` that the command takes, by name. own: a
    dataclass of those that it alone has.

    Raises:
        UserError: a word is none of them.
    """
    of_command = {option.name: option for option in options_of(own)} if own else {}
    types = [*of_command, *shared]
    groups = {name: members for name, members in groups.items() if takes_group(name, shared)}
    if not words:
        yield from screen(command, groups, shared, list(of_command.values()))
    for word in words:
        name, _, choice = word.partition("=")
        group = name.partition(".")[0]
        if name in groups or (name in GROUPS and name in shared):
            if choice and choice not in groups.get(name, {}):
                raise UserError(unknown(choice, list(groups.get(name, {})), f"{name}:"))
            yield from of(name, choice, groups)
        elif name in types:
            found = of_group(group if "." in name else "", "", groups)
            rows = [each for each in found if each.name == name]
            rows = [of_command[name]] if name in of_command else rows
            yield from lines(rows)
        else:
            raise UserError(meant(name, types) or unknown(name, [*types, *groups], "option"))


def screen(
    command: str, groups: Choices, shared: Mapping[str, Any], own: list[Option]
) -> Iterator[str]:
    """The whole command on one screen."""
    said = COMMANDS[command]
    yield f"{command}: {said.about}"
    yield from ("", f"  {command} [FILE.yaml] [GROUP=CHOICE ...] [OPTION=VALUE ...]")
    yield from (f"  {line}" for line in said.examples.splitlines())
    every = {each.name: each for group in ("", *GROUPS) for each in of_group(group, "", groups)}
    used = own or [every[name] for name in said.most_used.split()]
    yield from ("", "Its own options:" if own else "Most used:", *lines(used, with_kind=False))
    listed = [group for group in dict.fromkeys([*GROUPS, *groups]) if takes_group(group, shared)]
    if listed:
        yield from ("", "Groups, with their choices (* is the default):")
    for group in listed:
        first = default_choice(group)
        names = [f"{name}*" if name == first else name for name in groups.get(group, {})]
        line = f"  {group:12}{'  '.join(names) or 'options alone'}"
        wrapped = textwrap.wrap(line, WIDTH, subsequent_indent=" " * 14, drop_whitespace=False)
        yield from (part.rstrip() for part in wrapped)
    yield from (
        "",
        "More:",
        "  --help GROUP, --help GROUP=CHOICE, --help OPTION    each option with its meaning",
        "  --cfg job                                           the config that these words make",
        *(
            ["  -m, --multirun                                      several values: a sweep"]
            if said.sweeps
            else []
        ),
        "  --config-dir DIR                                    own groups, as DIR/model/mine.yaml",
        f'  eval "$({command} -sc install=bash)"               tab completion',
        "  --version, --hydra-help",
    )


def of(group: str, choice: str, groups: Choices) -> Iterator[str]:
    """A group: what it is, its choices, its options."""
    what = about(GROUPS[group]) if group in GROUPS else "several groups and options at once"
    what = dict(choice_lines(group, groups)).get(f"{group}={choice}") or what
    yield f"{group}{f'={choice}' if choice else ''}: {what}."
    if not choice:
        listed = list(choice_lines(group, groups))
        width = max((len(name) for name, _ in listed), default=0)
        yield from (f"  {name:{width}}  {text}".rstrip() for name, text in listed)
    if group in GROUPS:
        yield from lines(of_group(group, choice, groups))


def lines(options: Iterable[Option], with_kind: bool = True) -> Iterator[str]:
    """A line on each option."""
    rows = []
    for option in options:
        head = f"{option.name}={option.default}"
        kind = f"[{option.kind}] " if with_kind else ""
        rows.append((head, kind + meaning(option)))
    width = min(34, max((len(head) for head, _ in rows), default=0))
    yield from (f"  {head:{width}}  {text}".rstrip() for head, text in rows)
