"""Tasks of lm-evaluation-harness: log-probabilities by hand, and in runs; the harness itself where
it is installed."""

import json
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import harness_stub
import pytest
import torch
import yaml
from helpers import exit_code_of, losses, make_config, real_model, refusal, result_of_worker
from test_eval_command import cola_eval

from cola_train.data.tokenizer import Tokenizer
from cola_train.evaluation.scoring import Prompt, Request, Scorer, windows
from cola_train.inference.caches import make_cache

TEXT = "the cat sees the dog. a tree runs under the old red dog and while it was not over. "
LENGTH = 16


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    """Of a model with random weights, large enough for sure answers."""
    config = make_config(
        "model.d_model=32", "model.d_ff=40", "model.n_layers=2", "model.vocab_size=300",
        f"train.sequence_length={LENGTH}", "train.precision=fp32", "train.compile=false",
    )  # fmt: skip
    model = real_model(config).eval().requires_grad_(False)
    torch.nn.init.normal_(model.head.weight, std=1.0)
    tokenizer = Tokenizer.train([TEXT * 4], 300)
    return Scorer(
        model, tokenizer, partial(make_cache, "kv", model), torch.device("cpu"),
        max_length=LENGTH, vocab_size=300, batch_size=3,
    )  # fmt: skip


def by_hand(scorer: Scorer, request: Request) -> tuple[float, bool]:
    """One token at a time, each with what `windows` lets it see, by the model's logits."""
    total, greedy = 0.0, True
    for window in windows(request, 0, LENGTH):
        for i, target in enumerate(window.targets):
            seen = window.inputs[: len(window.inputs) - len(window.targets) + 1 + i]
            row = scorer.model(torch.tensor([list(seen)]))[0, -1].double().log_softmax(-1)
            total += row[target].item()
            greedy &= int(row.argmax()) == target
    return total, greedy


def test_log_likelihoods_by_hand(scorer, monkeypatch):
    ids = scorer.tokenizer.encode(TEXT)
    likely = int(scorer.model(torch.tensor([ids[:5]]))[0, -1].argmax())
    requests = [
        Request(ids[:5], ids[5:7]), Request(ids[:1], ids[1:16]), Request(ids[:5], [likely]),
        Request(ids[:5], []), Request(ids[:24], ids[24:27]), Request(ids[:3], ids[3:40]),
    ]  # fmt: skip
    expected = [by_hand(scorer, request) for request in requests]
    found = scorer.log_likelihoods(requests)
    for (total, greedy), (by_hand_total, by_hand_greedy) in zip(found, expected, strict=True):
        assert total == pytest.approx(by_hand_total, rel=1e-5) and greedy == by_hand_greedy
    assert [greedy for _, greedy in found] == [False, False, True, True, False, False]
    monkeypatch.setattr("cola_train.evaluation.scoring.LOGITS", 300 * 4)
    again = scorer.log_likelihoods(requests)  # other batches
    assert [t for t, _ in again] == pytest.approx([t for t, _ in found], rel=1e-5)


def test_windows_are_the_harnesss():
    """Its docstring's example of a text of 10 tokens and 4 positions, and a context too long."""
    rolling = list(windows(Request([99], range(10)), 0, 4))
    assert [(list(w.inputs), list(w.targets)) for w in rolling] == [
        ([99, 0, 1, 2], [0, 1, 2, 3]), ([3, 4, 5, 6], [4, 5, 6, 7]), ([5, 6, 7, 8], [8, 9]),
    ]  # fmt: skip
    (window,) = windows(Request(range(10), [10, 11]), 3, 4)
    assert (list(window.inputs), list(window.targets)) == ([7, 8, 9, 10], [10, 11])


def test_continuations_are_greedy_and_end_at_a_stop_string(scorer):
    ids = scorer.tokenizer.encode(TEXT)
    tokens = ids[:4]
    for _ in range(8):
        row = scorer.model(torch.tensor([tokens]))[0, -1, : scorer.tokenizer.vocab_size]
        tokens = [*tokens, int(row.argmax())]
    text = scorer.tokenizer.decode(tokens)[len(scorer.tokenizer.decode(ids[:4])) :]
    stop = text[2:4]
    prompts = [Prompt(ids[:4], 8, []), Prompt(ids[:9], 2, []), Prompt(ids[:4], 8, [stop])]
    found = scorer.continuations(prompts)
    assert found[0] == text and found[2] == text[: text.index(stop)]


def task_lines(run_dir: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if any(key.startswith("task/") for key in line)]


def test_on_two_processes_as_on_one(tiny, tmp_path, monkeypatch, capsys):
    """In the loop, by a stub of the harness; the run itself is as without."""
    for name, stub in harness_stub.modules().items():
        monkeypatch.setitem(sys.modules, name, stub)
    monkeypatch.delitem(sys.modules, "cola_train.evaluation.harness_model", raising=False)
    run = [*tiny, "train.steps=4", "train.micro_batch_size=4", "model.n_layers=1"]
    tasks = ["evaluation.tasks=[words]", "evaluation.tasks_every=2", "evaluation.task_limit=2"]
    tasks.append("evaluation.batch_size=2")  # so that each process has a share
    assert exit_code_of([*run, f"run_dir={tmp_path / 'plain'}"]) == 0
    assert exit_code_of([*run, *tasks, f"run_dir={tmp_path / 'one'}"]) == 0
    assert "step 4: task words: score0 -" in capsys.readouterr().err
    assert exit_code_of([*run, *tasks, f"run_dir={tmp_path / 'one'}"]) == 0  # only reports
    one = task_lines(tmp_path / "one")
    assert [line["step"] for line in one] == [2, 4]
    names = {"score0", "score1", "rolling0", "rolling1", "rolling2", "characters.strict"}
    assert one[0].keys() == {"step", *(f"task/words/{name}" for name in names)}
    assert losses(tmp_path / "one") == losses(tmp_path / "plain")
    folder = str(Path(harness_stub.__file__).parent)
    two = tmp_path / "two"
    result = result_of_worker(
        "tasks_worker.py", folder, *run, *tasks, f"run_dir={two}", processes=2
    )
    assert result == {"code": 0, "heard": 2.0}
    for line, other in zip(one, task_lines(two), strict=True):
        assert line == pytest.approx(other, rel=1e-5)
    capsys.readouterr()
    assert cola_eval(f"run_dir={two}", "tasks=[words]", "task_limit=2", "output=json") == 0
    metrics = json.loads(capsys.readouterr().out)["tasks"]["words"]
    assert {f"task/words/{k}": v for k, v in metrics.items()} == pytest.approx(
        {k: v for k, v in one[-1].items() if k != "step"}, rel=1e-5
    )
    assert cola_eval(f"run_dir={two}", "tasks=[wrods]") == 2
    assert "tasks: there is no task `wrods`; did you mean `words`" in capsys.readouterr().err


def test_without_the_harness_it_is_named_at_once(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("cola_train.evaluation.harness.find_spec", lambda name: None)
    assert exit_code_of([*tiny, "evaluation.tasks=[arc_easy]", f"run_dir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert "evaluation.tasks: needs lm-evaluation-harness" in said and "[evaluation]" in said
    assert not (tmp_path / "run").exists()
    said = "\n".join(refusal(evaluation={"tasks_every": 5, "task_limit": 1}))
    assert "evaluation.tasks_every: has no effect" in said and "evaluation.task_limit: has" in said


def local_task(folder: Path, name: str, rows: list[dict[str, Any]], **options: Any) -> str:
    """A YAML file of a task on a JSON file of `rows`."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "task": name, "dataset_path": "json", "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(data)}}, "metadata": {"version": 1},
        **options,
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="needs lm-evaluation-harness: pip install '.[evaluation]'"
)
def test_the_harness_itself(tiny, tmp_path, monkeypatch, capsys):
    """Local tasks of each kind of request, in a run and of what it has left."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delitem(sys.modules, "cola_train.evaluation.harness_model", raising=False)
    choices = [" the dog", " zebra quickly", " not"]
    rows = [{"q": "the cat sees", "a": choices, "y": 0}, {"q": "a tree", "a": choices, "y": 2}]
    choose = local_task(
        tmp_path, "choose", rows, output_type="multiple_choice", doc_to_text="q",
        doc_to_choice="a", doc_to_target="y",
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )  # fmt: skip
    texts = [{"text": TEXT * 2}, {"text": "the dog"}]
    metric = {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}
    roll = local_task(
        tmp_path, "roll", texts, output_type="loglikelihood_rolling", doc_to_text="",
        doc_to_target="text", metric_list=[metric],
    )  # fmt: skip
    go_on = local_task(
        tmp_path, "go_on", [{"q": "the cat", "a": "nothing so likely"}],
        output_type="generate_until", doc_to_text="q", doc_to_target="a",
        generation_kwargs={"until": ["."], "max_gen_toks": 8},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )  # fmt: skip
    run_dir, tasks = tmp_path / "run", f"tasks=[{choose},{roll},{go_on}]"
    run = [*tiny, "train.steps=2", f"evaluation.{tasks}", "evaluation.tasks_every=1"]
    assert exit_code_of([*run, f"run_dir={run_dir}"]) == 0
    capsys.readouterr()
    first, last = task_lines(run_dir)
    assert first.keys() == last.keys() and 0 <= last["task/choose/acc"] <= 1
    assert last["task/go_on/exact_match"] == 0
    assert cola_eval(f"run_dir={run_dir}", tasks, "output=json") == 0
    found = json.loads(capsys.readouterr().out)["tasks"]
    for name, metrics in found.items():
        for metric, value in metrics.items():
            if not metric.endswith("_stderr"):
                assert value == pytest.approx(last[f"task/{name}/{metric}"], rel=1e-5)
    # the texts' bits per byte are those of this repository's own evaluation, document by document
    assert cola_eval(f"run_dir={run_dir}", tasks, "task_limit=1") == 0
    assert "roll    bits_per_byte" in capsys.readouterr().out
    assert cola_eval(f"run_dir={run_dir}", "tasks=[arc_esay,nothing.yaml]") == 2
    said = capsys.readouterr().err
    assert "there is no task `arc_esay`; did you mean `arc_easy`" in said
    assert "tasks: nothing.yaml: no such file" in said
