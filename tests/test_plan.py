"""The planner: totals of FACTS, memory against measured peaks, the command and its refusals."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import REPOSITORY, make_config

from cola_train import costs
from cola_train.errors import EXIT_USER_ERROR
from cola_train.gpus import GIB, GPUS
from cola_train.hardware import peak_flops
from cola_train.planning import memory, zero
from cola_train.planning.run import Job

WORKER = Path(__file__).with_name("scaling_worker.py")
PARAMETERS = {  # full rank, CoLA: from the official code's modules and the shapes
    "60m": (58_073_600, 42_770_944),
    "130m": (134_105_856, 93_997_824),
    "350m": (367_969_280, 185_222_144),
    "1b": (1_339_082_752, 609_310_720),
    "7b": (6_738_415_616, 2_820_935_680),
}
FORWARD_GFLOPS = {"60m": (0.0876, 0.0570), "1b": (2.597, 1.138)}  # a token, T = 256
SHAPE = [
    "model.n_layers=4", "model.d_model=256", "model.d_ff=688", "model.n_heads=4",
    "model.vocab_size=4096", "data.vocab_size=4096", "train.sequence_length=64",
    "data.document_mask=false", "tracking=local", "train.precision=bf16",
]  # fmt: skip
ZERO = "engine=deepspeed engine.overrides={zero_optimization:{reduce_bucket_size:400000}}"
MEMORY_CASES = {
    1: [
        "method=full train.batch_size=8",
        "recompute=cola_m train.batch_size=32 train.micro_batch_size=16",
        "recompute=full train.precision=fp32 train.batch_size=8",
    ],
    2: [
        "method=full engine.reshard_after_forward=false train.batch_size=16",
        "recompute=light train.batch_size=32",
        "method=full recompute=full train.batch_size=4",
        "engine.sharding=replicate train.batch_size=16",
        "engine.sync_every_micro_batch=false train.batch_size=8 train.micro_batch_size=1",
        f"{ZERO} engine.zero_stage=0 train.batch_size=8",
        f"{ZERO} engine.zero_stage=1 recompute=cola_m train.batch_size=16",
        f"{ZERO} engine.zero_stage=2 method=full train.batch_size=16",
        f"{ZERO} engine.zero_stage=3 train.batch_size=32",
    ],
}


def measure(what: str, processes: int, shape: list[str], cases: list[str], folder: Path):
    """What scaling_worker.py finds, in one process group."""
    file = folder / f"{what}{processes}.json"
    common = json.dumps([*shape, f"run_dir={folder / 'run'}", "train.threads=1"])
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone",
         f"--nproc-per-node={processes}", str(WORKER), what, str(file), common, *cases],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
             "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, sys.path)])},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return json.loads(file.read_text())


def without_deepspeed(cases: list[str]) -> list[str]:
    try:
        import deepspeed  # noqa: F401
    except ImportError:
        return [case for case in cases if "deepspeed" not in case]
    return cases


@pytest.mark.parametrize("size", PARAMETERS)
def test_totals_of_the_papers_models(size):
    for method, expected in zip(("full", "cola"), PARAMETERS[size], strict=True):
        config = make_config(f"model={size}", f"method={method}")
        assert costs.parameters(config) == expected
        job = Job(config, 1, 1)
        assert job.root.elements + config.model.n_layers * job.block.elements == expected
        if size in FORWARD_GFLOPS:
            gflops = FORWARD_GFLOPS[size][method == "cola"]
            assert costs.forward_flops_per_token(config) / 1e9 == pytest.approx(gflops, abs=6e-4)


@pytest.mark.parametrize("method", ["full", "cola"])
def test_flops_of_the_whole_model(method):
    """Head and all blocks, forward and backward, on the real modules (blocks of all sizes and
    policies: test_recompute.py)."""
    import torch

    from benchmarks.count import flops
    from cola_train.methods.base import build_method
    from cola_train.model.llama import build_model

    config = make_config("model=1b", f"method={method}", "model.n_layers=2", "kernels=torch")
    model = build_model(config, build_method(config))
    tokens = torch.zeros(2, 256, dtype=torch.long, device="meta")
    with flops() as counter:
        logits = model(tokens)
    assert counter.get_total_flops() == 512 * costs.forward_flops_per_token(config)
    with flops() as counter:
        logits.sum().backward()
    training = costs.training_flops_per_token(config)
    assert counter.get_total_flops() == 512 * (training - costs.forward_flops_per_token(config))


@pytest.mark.parametrize("processes", MEMORY_CASES)
def test_memory_is_within_a_tenth_of_measured_peaks(processes, tmp_path):
    cases = without_deepspeed(MEMORY_CASES[processes])
    for found in measure("memory", processes, SHAPE, cases, tmp_path):
        about = json.dumps(found)
        assert found["planned"] == pytest.approx(found["peak"], rel=0.1), about
        if "deepspeed" in found["case"]:
            continue
        # weights alone, after building; weights and moments between steps: to the small buffers
        weights = found["largest"]["optimizer"] // 2
        assert found["built"] == pytest.approx(weights, rel=0.02), about
        assert found["between"] == pytest.approx(3 * weights, rel=0.02), about


def test_the_planners_constants_are_the_models():
    from cola_train.model import loss

    assert (memory.CHUNK_BYTES, memory.SOFTMAX_BYTES) == (loss.CHUNK_BYTES, loss.SOFTMAX_BYTES)


def test_the_planners_constants_are_deepspeeds():
    config = pytest.importorskip("deepspeed.runtime.zero.config")
    fields = config.DeepSpeedZeroConfig.model_fields
    by_alias = {field.alias or name: field.default for name, field in fields.items()}
    for name, value in zero.DEFAULTS.items():
        assert by_alias[name] == value


def cola_plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cola_train.commands.plan", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )


def test_command_answers_soon_and_imports_no_engine():
    code = (
        "import sys; from cola_train.commands.plan import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "bad = [m for m in ('torch', 'deepspeed', 'cola_train.engines') if m in sys.modules]\n"
        "assert not bad, bad"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run(
        [sys.executable, "-c", code, "model=7b", "gpus=8", "goal=throughput", "output=json"],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ran.returncode == 0, ran.stderr
    # of processor time: the machine may be busy with other things
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
    answer = json.loads(ran.stdout)  # and nothing else on stdout
    assert answer["parameters"] == PARAMETERS["7b"][1]
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


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)
def test_mfu_takes_no_gpu_for_another(name, flops, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert peak_flops(torch.device("cuda"), torch.bfloat16) == flops


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
        (["model=60m", "gpus=8", "train.batch_size=12"], ["train.batch_size", "multiple of 8"]),
        (["model=60m", "method=full", "recompute=cola_m"], ["recompute: cola_m"]),
        (["model=60m", "gpus=12", "engine.sharding=hybrid", "train.batch_size=12"],
         ["engine.shard_size: 8", "12"]),
        (["gpus=8", "engine=deepspeed", "engine.zero_stage=3", "engine.offload_optimizer=nvme",
          "engine.nvme_path=/tmp"], ["engine.offload_optimizer: nvme"]),
        (["model=7b", "gpu=l40s"], ["gpus=2", "train.batch_size="]),
        (["engine=deepspeed", "engine.overrides={zero_optimization:{reduce_bucket_size:auto}}"],
         ["engine.overrides: reduce_bucket_size"]),
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


def test_every_gpu_of_the_table_can_be_named():
    from cola_train.commands.plan import PlanConfig

    assert set(PlanConfig.__annotations__["gpu"].__args__) == set(GPUS)
    assert all(16 * GIB < gpu.memory_bytes < 256 * GIB for gpu in GPUS.values())
