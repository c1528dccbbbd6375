"""The command `cola-generate`: text from a trained model."""

import contextlib
import json
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

from cola_train.commands.cli import run_own
from cola_train.config.fields import PathText, Range, TypedText, Workers
from cola_train.errors import EXIT_DONE, UserError
from cola_train.hardware import tune_process
from cola_train.inference.generate import Answer, Decoding, Generation, Limits
from cola_train.inference.load import Trained, chosen_device, chosen_dtype, load
from cola_train.inference.prepare import prepare
from cola_train.inference.sampling import Sampling
from cola_train.progress import say
from cola_train.run.console import printable

READY = "> "  # before what is typed on a terminal


@dataclass(frozen=True)
class Prompts:
    """What goes on, and what model writes it."""

    run_dir: PathText  # a run's folder, a checkpoint or an exported folder
    prompt: TypedText | None = None  # as it is typed; with none at all, each line of stdin is one
    prompts: list[str] = field(default_factory=list)  # several
    prompts_file: PathText | None = None  # each line is one


@dataclass(frozen=True)
class GenerateOptions(Decoding, Limits, Sampling, Prompts):
    """What `cola-generate` takes."""

    batch_size: Annotated[int, Range(1, 10**6)] = 8  # prompts at a time
    dtype: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 where the hardware has it
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU if there is one
    threads: Workers | None = None  # CPU threads; null: one a core
    output: Literal["text", "json"] = "text"  # json: a line for each prompt


def main() -> None:
    """The command `cola-generate`."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `cola-generate ... | head` just ends
    run_own(run, GenerateOptions, "cola-generate")


def run(options: GenerateOptions) -> int:
    """Answer the prompts; returns the exit code.

    Raises:
        UserError: there are none, or the model cannot be loaded.
    """
    given = given_prompts(options)
    device = chosen_device(options.device)
    tune_process(options.threads, 1)
    dtype = chosen_dtype(options.dtype, device)
    trained = load(options.run_dir, device, dtype)
    prepare(trained.model, dtype, plain=options.native)
    if given is None and sys.stdin and sys.stdin.isatty():
        converse(trained, options)
        return EXIT_DONE
    prompts, answered = iter(lines(sys.stdin or (), "stdin") if given is None else given), 0
    while batch := list(islice(prompts, options.batch_size)):
        answer(trained, batch, options, answered, numbered=given is None or len(given) > 1)
        answered += len(batch)
    if not answered:
        raise UserError("prompt: there is none, on stdin neither; say prompt='...'")
    return EXIT_DONE


def given_prompts(options: GenerateOptions) -> list[str] | None:
    """Those of the command line; None: each line of stdin is one.

    Raises:
        UserError: they are given in several ways, or their file cannot be read.
    """
    names = ("prompt", "prompts", "prompts_file")
    ways = [name for name in names if getattr(options, name) not in (None, [])]
    if len(ways) > 1:
        raise UserError(f"{' and '.join(ways)}: give prompts in one way")
    if options.prompts_file is not None:
        try:
            with Path(options.prompts_file).open(encoding="utf-8") as file:
                found = list(lines(file, f"prompts_file: {options.prompts_file}"))
        except OSError as error:
            where = f"prompts_file: {options.prompts_file}"
            raise UserError(f"{where} cannot be read ({error.strerror})") from None
        if not found:
            raise UserError(f"prompts_file: {options.prompts_file} has no line that is not blank")
        return found
    if options.prompt is not None:
        return [options.prompt]
    return options.prompts or None


def lines(file: Iterable[str], name: str) -> Iterator[str]:
    """Those that are not blank, as they come.

    Raises:
        UserError: it is no text.
    """
    try:
        for line in file:
            if line.strip():
                yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: no UTF-8 text ({error.reason})") from None


def converse(trained: Trained, options: GenerateOptions) -> None:
    """Answer each line that is typed on a terminal, until Ctrl-D; Ctrl-C stops an answer."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # gives `input` its keys
    answered = 0
    while True:
        try:
            line = input(READY)
            if line.strip():
                answer(trained, [line], options, answered, with_prompt=False)
                answered += 1
        except KeyboardInterrupt:
            print()
        except UserError as error:
            print(*error.problems, sep="\n", file=sys.stderr)
        except EOFError:
            print()
            return


def answer(
    trained: Trained,
    prompts: Sequence[str],
    options: GenerateOptions,
    first: int,
    numbered: bool = False,
    with_prompt: bool = True,
) -> None:
    """Print what follows each of a batch of prompts, of a single one as it is made; how fast, on
    stderr. first: how many came before."""
    sampling = replace(options, seed=options.seed + first)
    generation = Generation(trained, prompts, options, sampling, options)
    alone = len(prompts) == 1 and options.output == "text"
    if alone:
        begin(prompts[0], first if numbered else None, with_prompt)
    for _, piece in generation:
        if alone:
            write(piece)
    for i, each in enumerate(generation.answers):
        if options.output == "json":
            print(json.dumps(record(each)), flush=True)
        elif not alone:
            begin(each.prompt, first + i, with_prompt)
            write(each.text)
        if options.output == "text":
            write("\n")
        if each.ended == "length":
            which = f"prompt {first + i + 1}" if numbered else "the answer"
            say(f"{which}: ended at the model's length, {trained.model.max_length} tokens")
    say(speed(generation))


def begin(prompt: str, number: int | None, with_prompt: bool) -> None:
    if number is not None:
        write(f"--- {number + 1} ---\n")
    if with_prompt:
        write(prompt)


def write(text: str) -> None:
    """On stdout; a terminal sees no commands in it."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def record(answer: Answer) -> dict[str, str | int]:
    """A line of `output=json`."""
    return {
        "prompt": answer.prompt,
        "text": answer.text,
        "prompt_tokens": answer.prompt_tokens,
        "new_tokens": len(answer.tokens),
        "ended": answer.ended,
    }


def speed(generation: Generation) -> str:
    """Tokens, and how long they took."""
    answers = generation.answers
    prompt, new = sum(a.prompt_tokens for a in answers), sum(len(a.tokens) for a in answers)
    said = f"{prompt} + {new} tokens, the first after {generation.prefill_seconds:.2f} s"
    if (rest := generation.seconds - generation.prefill_seconds) > 0:
        said += f", then {(new - len(answers)) / rest:.1f} a second"
    return said


if __name__ == "__main__":
    main()
