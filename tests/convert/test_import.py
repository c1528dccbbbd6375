"""`cola-import`: what others have trained becomes the folder of a run that has not begun."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import exit_code_of, losses, read_json
from model_folders import llama
from official_case import FF, HEADS, LAYERS, D, R, V, factor_names, write_official
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from torch import Tensor

from cola_train import load_model
from cola_train.checkpoint.start import write_start
from cola_train.commands.cli import run_composed
from cola_train.commands.import_ import SHARED, ImportOptions, import_
from cola_train.convert.export import export
from cola_train.convert.tokenizer_files import tokenizer_files
from cola_train.data.tokenizer import Tokenizer

SHAPE = [
    f"model.d_model={D}", f"model.d_ff={FF}", f"model.n_layers={LAYERS}",
    f"model.n_heads={HEADS}", f"model.vocab_size={V}",
]  # fmt: skip
ONE_STEP = ["train.steps=1", "optim.lr=1e-30", "evaluation.sample_tokens=0"]  # changes no weight


def import_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        run_composed(import_, list(arguments), "cola-import", ImportOptions, SHARED)
    return exit_.value.code


def weights_of(path: Path) -> dict[str, Tensor]:
    return dict(load_model(path).named_parameters())


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(Tokenizer.train(["the cat runs under the old tree"] * 9, 280).to_json())
    return path


@pytest.fixture
def imported(tmp_path: Path, tokenizer: Path) -> Path:
    """CoLA-M's of the reference code."""
    write_official(tmp_path / "official", split=True, gate_silu=True, torch_file=True)
    out = tmp_path / "imported"
    assert import_code(f"source={tmp_path}/official", f"out={out}", f"tokenizer={tokenizer}") == 0
    return out


@pytest.mark.parametrize("engine", ["fsdp", "deepspeed"])
def test_training_begins_with_imported_weights(engine, imported, tiny, tmp_path, capsys) -> None:
    pytest.importorskip("deepspeed") if engine == "deepspeed" else None
    run = tmp_path / "run"
    own = [*tiny, *SHAPE, "method=cola", f"method.rank={R}", "method.activation=both"]
    own += [*ONE_STEP, f"data.tokenizer={imported}/tokenizer.json", f"data.vocab_size={V}"]
    own += [f"resume={imported}", f"run_dir={run}"]
    assert exit_code_of([*own, f"engine={engine}"]) == 0
    said = capsys.readouterr().err
    assert f"{imported}/checkpoints/step-00000000: weights alone" in said
    assert list(losses(run)) == [1]
    assert_same(weights_of(run), weights_of(imported))


def test_its_own_config_trains_in_place(imported: Path, tiny: list[str]) -> None:
    before = weights_of(imported)
    own = [word for word in tiny if not word.startswith("model.")]
    assert exit_code_of([f"{imported}/config.yaml", *own, *ONE_STEP]) == 0
    assert_same(weights_of(imported), before)
    assert read_json(imported / "latest.json")["step"] == 1


def test_a_run_cannot_be_rolled_back_to_where_it_began(imported, tiny, capsys) -> None:
    """The start has no state of an optimizer to go back to."""
    (weights,) = imported.glob("checkpoints/*/rank-*.safetensors")
    tensors = load_file(weights)
    save_start(imported, {name: torch.full_like(each, torch.nan) for name, each in tensors.items()})
    own = [word for word in tiny if not word.startswith("model.")]
    own += ["train.rollback_after=2", "train.max_skipped_in_a_row=4"]
    assert exit_code_of([f"{imported}/config.yaml", *own]) == 1
    assert "cannot be rolled back (train.rollback_after): there is no" in capsys.readouterr().err


def save_start(run: Path, tensors: dict[str, Tensor]) -> None:
    """In place of the run's."""
    state = read_json(run / "checkpoints/step-00000000/state.json")
    shutil.rmtree(run / "checkpoints")
    kinds = {name: (each.dtype, each.shape) for name, each in tensors.items()}
    write_start(run / "checkpoints", kinds, tensors.values(), state)


def test_another_model_does_not_begin_there(imported, tiny, tmp_path, capsys) -> None:
    common = [*tiny, *SHAPE, f"resume={imported}", f"run_dir={tmp_path / 'run'}"]
    same = ["method=cola", f"method.rank={R}", "method.activation=both"]
    assert exit_code_of([*common, *same, f"data.vocab_size={V}"]) == 2  # one of its own text
    said = capsys.readouterr().err
    assert f"another tokenizer than this run's data: set data.tokenizer={imported}/" in said
    assert exit_code_of([*common, "method=cola", "method.rank=4"]) == 2
    said = capsys.readouterr().err
    assert "method.rank: 6 in the checkpoint, 4 here" in said
    assert exit_code_of([*common, "method=full"]) == 2
    assert "method: cola in the checkpoint, full here" in capsys.readouterr().err


NORMED = [f"{method} model.qk_norm=true" for method in ("cola", "full")]


@pytest.mark.parametrize("method", ["cola", "full", *NORMED])
def test_a_run_exported_and_imported_is_the_same_again(method, tiny, tmp_path) -> None:
    run = tmp_path / "run"
    options = [*tiny, *SHAPE, *f"method={method}".split(), "train.steps=2", "optim.lr=0.03"]
    if method.startswith("cola"):
        options += [f"method.rank={R}", "method.activation=low_rank"]
    assert exit_code_of([*options, "evaluation.sample_tokens=0", f"run_dir={run}"]) == 0
    first, second, again = (tmp_path / name for name in ("first", "again/run", "second"))
    export(run, first, dtype="fp32", shard_bytes=50_000)
    assert import_code(f"source={first}", f"out={second}") == 0
    weights = weights_of(run)
    assert_same(weights_of(second), weights)
    assert read_json(second / "tokenizer.json") == read_json(first / "tokenizer.json")
    export(second, again, dtype="fp32", shard_bytes=50_000)
    files = {path.name: path.read_bytes() for path in first.iterdir()}
    assert len(files) > 5
    others = {path.name: path.read_bytes() for path in again.iterdir()}
    assert [name for name in files if others[name] != files[name]] == ["README.md"]
    assert f"imported from | {first}" in (again / "README.md").read_text()
    if method == "cola":
        as_official(tmp_path, weights, first / "tokenizer.json")


def as_official(folder: Path, weights: dict[str, Tensor], tokenizer: Path) -> None:
    """Under the reference code's names the same weights are the same model."""
    outside = {"model.embed_tokens": "embedding", "model.norm": "norm", "lm_head": "head"}
    theirs = {f"{name}.weight": weights[f"{ours}.weight"] for name, ours in outside.items()}
    for i in range(LAYERS):
        for name, ours in (("input", "attention"), ("post_attention", "mlp")):
            weight = weights[f"layers.{i}.{ours}_norm.weight"]
            theirs[f"model.layers.{i}.{name}_layernorm.weight"] = weight
    where = {**dict.fromkeys("qkv", "attention.qkv"), "o": "attention.out"}
    for split in (False, True):
        for layer, projection, factor, name in factor_names(split):
            short = projection.split(".")[1]
            ours = f"layers.{layer}.{where.get(short, 'mlp')}.{short}_{factor}"
            theirs[name] = weights[ours].T.contiguous()
        source, out = folder / f"official-{split}", folder / f"from-official-{split}"
        write_official(source, split, gate_silu=False, torch_file=split, weights=theirs)
        assert import_code(f"source={source}", f"out={out}", f"tokenizer={tokenizer}") == 0
        assert_same(weights_of(out), weights)
        theirs = {name: w for name, w in theirs.items() if ".cola_" not in name}


def test_a_tokenizer_is_the_same_after_another_export() -> None:
    """T5's holds what ends a document as a piece that text can spell; exports leave that out."""
    backend = Backend(models.Unigram([("<unk>", 0.0), ("</s>", -1.0), ("a", -2.0)], unk_id=0))
    backend.add_special_tokens(["</s>"])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    first = tokenizer_files(Tokenizer(backend, "t5"), 8)["tokenizer.json"]
    again = Tokenizer(Backend.from_str(json.dumps(first)), "t5")
    assert again.eos_id not in again.encode("a</s>a")
    assert tokenizer_files(again, 8)["tokenizer.json"] == first


def test_a_tied_head_is_copied(tmp_path, tokenizer, capsys) -> None:
    llama(tie_word_embeddings=True).save_pretrained(tmp_path / "llama")
    (tmp_path / "llama" / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    assert import_code(f"source={tmp_path}/llama", f"out={tmp_path}/out") == 0
    assert "tied" in capsys.readouterr().err
    found, saved = weights_of(tmp_path / "out"), load_file(tmp_path / "llama/model.safetensors")
    assert torch.equal(found["head.weight"], saved["model.embed_tokens.weight"])


def test_bad_input_ends_with_2_and_leaves_nothing(tmp_path, tokenizer, capsys) -> None:
    source, out = tmp_path / "llama", tmp_path / "out"
    llama().save_pretrained(source)
    large = tmp_path / "large.json"
    texts = [f"{i} cats under {i * i} trees" for i in range(999)]
    large.write_text(Tokenizer.train(texts, 400).to_json())
    (tmp_path / "there").mkdir()
    good = [f"source={source}", f"out={out}", f"tokenizer={tokenizer}"]
    for words, said in [
        ([f"source={tmp_path}/nowhere", *good[1:]], "nowhere: no such folder"),
        ([f"source={tmp_path}", *good[1:]], "no config.json there"),
        ([good[0], f"out={tmp_path}/there", good[2]], "is there already"),
        ([good[0], f"out={tokenizer}/in-a-file", good[2]], "cannot be written"),
        ([good[0], f"out={'long' * 99}", good[2]], "cannot be written"),
        (good[:2], "llama has no tokenizer.json"),
        ([*good[:2], "tokenizer=nowhere.json"], "tokenizer=nowhere.json: no such file"),
        ([*good[:2], f"tokenizer={large}"], "large.json has 400 tokens, and the model of"),
        ([*good, "data.tokenizer=t5-base"], "data.tokenizer"),
        ([*good, "train.steps=3"], "train.steps"),
        ([*good, "method.rank=3"], "method.rank: "),
        (good[1:], "source: missing"),
    ]:
        assert import_code(*words) == 2, words
        error = capsys.readouterr().err
        assert said in error and "Traceback" not in error
    weights = source / "model.safetensors"
    whole = load_file(weights)
    save_file({**whole, "lm_head.weight": whole["lm_head.weight"] / 0}, weights)
    assert import_code(*good) == 2
    assert "lm_head.weight has values that are not finite" in capsys.readouterr().err
    weights.write_bytes(weights.read_bytes()[:-1])
    assert import_code(*good) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large.json", "llama", "there"]
