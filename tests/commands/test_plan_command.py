"""`cola-plan`: its answers agree with each other, and its refusals name the fix."""

import json
import resource
import subprocess

import pytest
from helpers import PAPER_PARAMETERS, REPOSITORY, run_python

from cola_train.commands.plan import main
from cola_train.errors import EXIT_USER_ERROR


def cola_plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "cola_train.commands.plan", *arguments, expect=None)


def processor_seconds(*arguments: str) -> tuple[float, str]:
    """Of a Python process, however busy the machine is with other things; and its stdout."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = run_python(*arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, ran.stdout


def test_command_answers_soon_and_imports_no_engine():
    code = (
        "import sys; from cola_train.commands.plan import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "bad = [m for m in ('torch', 'deepspeed', 'cola_train.engines.base') if m in sys.modules]\n"
        "assert not bad, bad"
    )
    start, _ = processor_seconds("-c", "import cola_train.commands.plan")
    question = ["model=7b", "gpus=8", "goal=throughput", "output=json"]
    seconds, output = processor_seconds("-c", code, *question)
    assert seconds < 4 * start  # 2.2 times, of which most is the search
    answer = json.loads(output)  # and nothing else on stdout
    assert answer["parameters"] == PAPER_PARAMETERS["7b"][1]
    assert answer["memory"]["total_bytes"] == sum(answer["memory"]["parts_bytes"].values())
    assert answer["memory"]["fits"]
    # what it proposes is a config that plans the same
    again = cola_plan("model=7b", "gpus=8", "output=json", *answer["overrides"])
    assert again.returncode == 0, again.stderr
    for key in ("memory", "traffic", "step_time", "micro_batch_size"):
        assert json.loads(again.stdout)[key] == answer[key]


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["engine=deepspeed", "train.micro_batch_size=4"],
         {"engine.zero_stage", "recompute", "train.batch_size"}),
        (["engine.sharding=hybrid", "engine.shard_size=4", "recompute=full"],
         {"engine", "engine.reshard_after_forward", "train.batch_size", "train.micro_batch_size"}),
        (["engine=deepspeed", "engine.offload_optimizer=cpu", "train.batch_size=64"],
         {"engine.zero_stage", "recompute", "train.micro_batch_size"}),
    ],
)  # fmt: skip
def test_a_search_leaves_what_is_named_and_proposes_the_rest(arguments, keys):
    answer = json.loads(
        cola_plan("model=7b", "gpus=8", "goal=throughput", "output=json", *arguments).stdout
    )
    for overrides in (answer["overrides"], *(other["overrides"] for other in answer["others"])):
        assert {word.split("=")[0] for word in overrides} == keys
        if "engine.offload_optimizer=cpu" in arguments:  # which stage 0 cannot
            assert "engine.zero_stage=0" not in overrides
    again = cola_plan("model=7b", "gpus=8", "output=json", *arguments, *answer["overrides"])
    assert json.loads(again.stdout)["memory"] == answer["memory"]


def test_a_batch_in_tokens_is_enough_as_for_cola_train():
    answer = json.loads(cola_plan("train.batch_tokens=6144", "output=json").stdout)
    assert answer["batch_size"] == 24
    common = ["model=60m", "gpus=3", "goal=memory", "output=json"]
    answer = json.loads(cola_plan(*common).stdout)
    assert answer["batch_size"] == 513  # the paper's 512, among three
    answer = json.loads(cola_plan(*common, "train.batch_tokens=6144").stdout)
    assert answer["batch_size"] == 24
    refused = cola_plan("train.batch_tokens=6144", "train.batch_size=24")
    assert refused.returncode == EXIT_USER_ERROR and "are two batches" in refused.stderr


@pytest.mark.parametrize("question", [["model=350m"], ["model=1b", "gpus=8"]])
def test_a_tie_goes_to_the_simplest_engine(question):
    """Both engines hide their collectives behind the same matmuls, and copy about as much."""
    answer = json.loads(cola_plan(*question, "goal=throughput", "output=json").stdout)
    assert answer["overrides"][0] == "engine=fsdp" and "recompute=none" in answer["overrides"]
    others = [way for way in answer["others"] if way["overrides"][0] == "engine=deepspeed"]
    assert others[0]["seconds"] == pytest.approx(answer["step_time"]["seconds"], rel=0.05)


def test_a_plan_says_what_the_whole_run_takes():
    question = ["model=1b", "gpus=8", "train.steps=50000", "train.batch_size=256"]
    answer = json.loads(cola_plan(*question, "output=json").stdout)
    hours = 50_000 * answer["step_time"]["seconds"] / 3600
    tokens = 50_000 * 256 * 256
    assert answer["run"] == {
        "steps": 50_000, "tokens": tokens, "hours": hours, "gpu_hours": 8 * hours,
    }  # fmt: skip
    told = cola_plan(*question).stdout.splitlines()[-1]
    assert told.startswith("run: 50,000 steps, 3,276,800,000 tokens in ")
    assert f"{hours:.3g} hours, {8 * hours:.3g} GPU-hours" in told


def test_largest_micro_batch_is_the_largest(tmp_path):
    common = ["model=1b", "recompute=cola_m", "gpu=a10", "output=json"]
    plot = tmp_path / "plan.png"
    answer = json.loads(cola_plan(*common, f"plot={plot}").stdout)
    assert plot.stat().st_size > 1000
    largest = answer["largest_micro_batch_size"]
    assert largest > 32  # so that the whole batch of 32 fits at once, without accumulation
    for size, fits in ((largest, True), (largest + 1, False)):
        ran = cola_plan(*common, f"train.batch_size={size}")
        assert json.loads(ran.stdout)["memory"]["fits"] is fits, ran.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model=7b", "method=full", "gpus=1"], ["optimizer", "gpus=2", "method=cola"]),
        (["model=7b", "method=full", "gpus=8", "engine.sharding=replicate", "gpu=a10"],
         ["engine.sharding=full"]),
        (["model=60m", "train.sequence_length=8388608", "gpu=a10"], ["activations", "sequence"]),
        (["model=60m", "gpux=8"], ["gpux", "did you mean `gpu`"]),
        (["model=60m", "gpu=h1000"], ["gpu:", "h100-80gb"]),
        (["model=60m", "gpu=a10", "train.precision=fp8"], ["gpu: a10 has no fp8", "h100-80gb"]),
        (["model=60m", "gpus=8", "train.batch_size=12"], ["train.batch_size", "multiple of 8"]),
        (["model=60m", "method=full", "recompute=cola_m"], ["recompute: cola_m"]),
        (["model=60m", "gpus=12", "engine.sharding=hybrid", "train.batch_size=12"],
         ["engine.shard_size: 8", "12"]),
        (["gpus=8", "engine=deepspeed", "engine.zero_stage=3", "engine.offload_optimizer=nvme",
          "engine.nvme_path=/tmp"], ["engine.offload_optimizer: nvme"]),
        (["model=7b", "gpu=l40s", "train.precision=fp32"], ["gpus=2", "train.batch_size="]),
        (["engine=deepspeed", "engine.overrides={zero_optimization:{reduce_bucket_size:auto}}"],
         ["engine.overrides: reduce_bucket_size"]),
        (["model=7b", "method=apollo", "method.per_layer=true", "optim.clip=null",
          "train.non_finite=stop", "goal=memory", "recompute=none"],
         ["the 512 sequences of a process do not fit at once", "would fit: train.batch_size="]),
    ],
)  # fmt: skip
def test_impossible_questions(arguments, words):
    ran = cola_plan(*arguments)
    assert ran.returncode == EXIT_USER_ERROR
    assert not ran.stdout and "Traceback" not in ran.stderr
    for word in words:
        assert word in ran.stderr, ran.stderr


def test_the_example_of_the_docs_is_what_is_printed():
    text = (REPOSITORY / "docs" / "planning.md").read_text()
    command, *lines = text.split("```text\n$ ")[1].split("```")[0].splitlines()
    ran = cola_plan(*command.split()[1:])
    assert ran.stderr.splitlines() == lines


def test_what_crosses_nodes_takes_the_network():
    """Hybrid: shards in a node, replicas on others, also where there are as many as shards."""
    seconds = []
    for gpus in (56, 64, 72):
        answer = cola_plan(
            "model=7b", "engine.sharding=hybrid", "network_gbit=100", f"gpus={gpus}",
            f"train.batch_size={8 * gpus}", "output=json",
        )  # fmt: skip
        seconds.append(json.loads(answer.stdout)["step_time"]["collectives"])
    assert seconds[0] < seconds[1] < seconds[2] < 1.1 * seconds[0]


def drawn(monkeypatch, tmp_path, *arguments: str):
    """The axes of the plot that `cola-plan ARGUMENTS` writes."""
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, dpi: figures.append(self))
    monkeypatch.setattr("sys.argv", ["cola-plan", *arguments, f"plot={tmp_path / 'plan.png'}"])
    monkeypatch.setattr("signal.signal", lambda *_: None)  # it is this process's
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    return figures[0].axes[0], figures[0].get_suptitle()


@pytest.mark.parametrize(
    ("arguments", "words", "title"),
    [
        (["model=1b", "gpus=8"], "72 GiB usable on h100-80gb: 22 times the longest bar", "8 GPUs"),
        (["model=7b"], "72 GiB usable on h100-80gb", "1 GPU,"),  # a line beyond the bars
        (["model=7b", "gpus=8", "train.batch_size=2048", "gpu=a10"], "22 GiB usable on a10", "8 "),
    ],
)
def test_the_bars_of_a_plot_fill_its_axis(arguments, words, title, monkeypatch, tmp_path, capsys):
    axes, said = drawn(monkeypatch, tmp_path, *arguments)
    assert title in said
    end = axes.get_xlim()[1]
    longest = max(bar.get_x() + bar.get_width() for bar in axes.patches)
    assert end / 5 < longest < end
    assert any(words in text.get_text() for text in axes.texts)
    limits = [line.get_xdata()[0] for line in axes.lines]
    assert all(0 < limit < end for limit in limits) and len(limits) == ("times" not in words)
    captured = capsys.readouterr()
    assert captured.err == f"plot: {tmp_path / 'plan.png'}\n"
    assert "plot" not in captured.out


def test_a_plot_leaves_stdout_to_the_json(tmp_path):
    ran = cola_plan("model=60m", "output=json", f"plot={tmp_path / 'plan.png'}")
    assert json.loads(ran.stdout)["model"] == "60m"
    assert ran.stderr == f"plot: {tmp_path / 'plan.png'}\n"
    assert (tmp_path / "plan.png").stat().st_size > 1000
