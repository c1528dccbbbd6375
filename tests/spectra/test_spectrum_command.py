"""`cola-spectrum`: our models beside their equations in plain torch, others beside hooks."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import exit_code_of, real_model, run_python, values_config
from torch import Tensor, nn

import cola_train
from cola_train.commands.cli import run_composed
from cola_train.commands.on_data import SHARED
from cola_train.commands.spectrum import SpectrumOptions, run
from cola_train.data.tokenizer import Tokenizer
from cola_train.model.attention import rotary_for
from cola_train.model.context import AttentionContext, CausalMask
from cola_train.spectra import own
from cola_train.spectra.recorder import Recorder

TEXT = "The cat sees the dog, and the dog ran under a tree. " * 12
WORDS = ["data.document_mask=false", "data.workers=1", "tokens=0", "sequence_length=16"]


def cola_spectrum(*overrides: str) -> int:
    """Its exit code."""
    with pytest.raises(SystemExit) as exit_:
        run_composed(run, [*overrides], command="cola-spectrum", own=SpectrumOptions, shared=SHARED)
    return exit_.value.code


@pytest.fixture(scope="module")
def trained(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of rank 8 with SiLU on the rank-r vectors and on the gate."""
    folder = tmp_path_factory.mktemp("trained")
    words = ["train.steps=3", f"run_dir={folder / 'run'}", "method.activation=both"]
    assert exit_code_of([*tiny, *words, f"data.cache_dir={folder / 'cache'}"]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options of a text."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "text.txt").write_text(TEXT)
    files = f"data.validation_files=[{folder}/text.txt]"
    return ["data=text", files, f"data.cache_dir={folder / 'cache'}", *WORDS]


@pytest.fixture(scope="module")
def printed(trained: Path, data: list[str]) -> dict[str, Any]:
    """What the command says of the run, which lies in its folder too."""
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        assert cola_spectrum(f"run_dir={trained}", *data, "output=json") == 0
    report: dict[str, Any] = json.loads(stdout.getvalue())
    return report


def rows_of(tokenizer: Tokenizer) -> Tensor:
    """What the command reads of the text, (B, 16)."""
    ids = [*tokenizer.encode(TEXT), tokenizer.eos_id]
    rows = (len(ids) - 1) // 16
    return torch.tensor(ids[: rows * 16]).view(rows, 16)


def found_in(folder: Path) -> dict[tuple[int, str], dict[str, Any]]:
    report = json.loads((folder / "spectra.json").read_text())
    return {(each["layer"], each["projection"]): each for each in report["linears"]}


def assert_spectrum(found: dict[str, Any], x: Tensor) -> None:
    """Of activations (..., W), by a direct SVD."""
    direct = torch.linalg.svdvals(x.flatten(0, -2).double())
    values = torch.zeros(x.shape[-1])
    values[: len(direct)] = direct / direct[0]
    assert found["width"] == x.shape[-1]
    torch.testing.assert_close(torch.tensor(found["values"]), values, atol=1e-6, rtol=0)
    energy = direct.square().cumsum(0) / direct.square().sum()
    assert found["effective_rank"] == int((energy < 0.95).sum()) + 1


def test_our_linears_are_those_of_the_equations(trained, printed):
    found = found_in(trained / "spectra")
    model = cola_train.load_model(trained)
    tokens = rows_of(Tokenizer.load(str(trained / "tokenizer.json")))
    x = model.embedding(tokens)
    context = AttentionContext(rotary_for(model.rotary, x), CausalMask())
    for number, block in enumerate(model.layers):

        def look(name: str, x: Tensor, A: Tensor, B: Tensor, layer: int = number) -> Tensor:
            z = F.linear(x, A)
            s = F.silu(z)
            y = F.linear(s, B)
            of = found[layer, name]
            for place, value in {"input": x, "z": z, "s": s, "output": y}.items():
                assert_spectrum(of[place], value)
            assert [of["d_in"], of["rank"], of["d_out"]] == [x.shape[-1], 8, y.shape[-1]]
            return y

        normed, qkv, out = block.attention_norm(x), block.attention.qkv, block.attention.out
        for name in "qkv":
            look(name, normed, getattr(qkv, f"{name}_A"), getattr(qkv, f"{name}_B"))
        x = block.attend(x, context)
        heads = attention_output(block.attention, normed, context)
        look("o", heads, out.o_A, out.o_B)
        mlp, normed = block.mlp, block.mlp_norm(x)
        gate = look("gate", normed, mlp.gate_A, mlp.gate_B)
        up = look("up", normed, mlp.up_A, mlp.up_B)
        x = x + look("down", F.silu(gate) * up, mlp.down_A, mlp.down_B)
    assert printed["tokens"] == tokens.numel() and len(found) == 14
    assert printed["linears"] == list(found.values()) and set(printed["advice"].values()) == {8}
    assert {path.name for path in (trained / "spectra").iterdir()} == {
        "spectra.json", "decay.png", "rank.png"
    }  # fmt: skip
    assert all(
        (trained / "spectra" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        for name in ("decay", "rank")
    )


def attention_output(attention: nn.Module, x: Tensor, context: AttentionContext) -> Tensor:
    seen: list[Tensor] = []
    hook = attention.out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    attention(x, context, x)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("method", ["full", "low_rank"])
def test_a_watched_model_computes_what_it_does(method):
    """Its inputs and outputs are those of its modules, and it is left as it was."""
    model = real_model(values_config(method={"name": method})).requires_grad_(False)
    tokens = torch.randint(300, (2, 16), generator=torch.Generator().manual_seed(0))
    seen: dict[str, Tensor] = {}
    down = model.layers[1].mlp.get_submodule("down" if method == "full" else "")
    down.register_forward_hook(lambda _, inputs, y: seen.update(x=inputs[0], y=y, r=inputs[1]))
    before, recorder = model(tokens), Recorder()
    recorder.next_batch(torch.ones(2, 16, dtype=torch.bool))
    with own.watching(model, recorder, [1]):
        torch.testing.assert_close(model(tokens), before, atol=1e-6, rtol=1e-5)
    assert torch.equal(model(tokens), before) and {key.layer for key in recorder.grams} == {1}
    # q, k and v have one input, as gate and up; without SiLU z is s
    assert len(recorder.grams) == (11 if method == "full" else 11 + 7)
    linears = [each for each in own.linears_of(model) if each.layer == 1]
    found = {each.linear.projection: each for each in recorder.spectra(linears, 0.95)}
    y = (seen["y"][0] if method == "full" else seen["y"]) - seen["r"]
    assert_spectrum(found["down"].spectra["output"].as_json(), y)
    first = found["down" if method == "full" else "gate"].spectra["input"]
    assert_spectrum(first.as_json(), seen["x"][..., : first.width])


def test_two_processes_sum_what_one_sees(trained, data, printed, tmp_path):
    """The last batch of one of them is padding alone."""
    words = [f"run_dir={trained}", *data, "batch_size=3", "device=cpu", f"out={tmp_path}"]
    done = run_python("-m", "cola_train.commands.spectrum", *words, processes=2)
    assert done.stdout.count("method.ranks={q:8") == 1
    one, two = found_in(trained / "spectra"), found_in(tmp_path)
    assert one.keys() == two.keys()
    for key, of in one.items():
        for place in ("input", "z", "s", "output"):
            assert two[key][place]["effective_rank"] == of[place]["effective_rank"]
            assert two[key][place]["values"] == pytest.approx(of[place]["values"], abs=2e-7)


CODE = """
from pathlib import Path
from transformers import GPT2Config, GPT2LMHeadModel
Path(__file__).with_name("ran").touch()
Path({marker!r}).touch()
class OwnConfig(GPT2Config):
    model_type = "own"
class OwnModel(GPT2LMHeadModel):
    config_class = OwnConfig
"""


def test_a_model_of_transformers(data, tmp_path, capsys):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    folder, marker = tmp_path / "gpt2", tmp_path / "ran"
    sizes = {"vocab_size": 300, "n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 32}
    model = GPT2LMHeadModel(GPT2Config(**sizes)).eval()
    model.save_pretrained(folder)
    words = [f"run_dir={folder}", *data]
    assert cola_spectrum(*words) == 2
    assert "tokenizer.json: cannot be read" in capsys.readouterr().err
    tokenizer = Tokenizer.train([TEXT], 300)
    (folder / "tokenizer.json").write_text(tokenizer.to_json())
    assert cola_spectrum(*words, "layers=[1]") == 0
    out = capsys.readouterr().out
    assert "ranks {c_attn:16,attn.c_proj:" in out and "would save" in out
    found, seen = found_in(folder / "spectra"), {}
    assert list(found) == [(1, n) for n in ("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj")]
    block = model.transformer.h[1]
    for name, module in {"c_attn": block.attn.c_attn, "mlp.c_proj": block.mlp.c_proj}.items():
        module.register_forward_hook(lambda _, i, o, name=name: seen.update({name: (i[0], o)}))
    with torch.no_grad():
        model(rows_of(tokenizer))
    for name, (x, y) in seen.items():
        assert_spectrum(found[1, name]["input"], x)
        assert_spectrum(found[1, name]["output"], y)
        assert found[1, name]["z"] is None and found[1, name]["d_in"] == x.shape[-1]
    config = json.loads((folder / "config.json").read_text())
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    config |= {"model_type": "own", "auto_map": auto}
    (folder / "config.json").write_text(json.dumps(config))
    assert cola_spectrum(*words) == 2 and not marker.exists()
    assert "say trust_remote_code=true" in capsys.readouterr().err
    assert cola_spectrum(*words, "trust_remote_code=true", "layers=[1]") == 0 and marker.exists()
    assert found_in(folder / "spectra") == found


def test_wrong_input_is_named(trained, data, tmp_path, capsys):
    def said(*words: str) -> str:
        assert cola_spectrum(*words) == 2
        return capsys.readouterr().err

    run_dir = f"run_dir={trained}"
    assert "layers: there is no block 2; the model has 2" in said(run_dir, *data, "layers=[0,2]")
    assert "64 is more than the 32 tokens" in said(run_dir, *data[:-1], "sequence_length=64")
    assert "alpha: must be" in said(run_dir, "alpha=1.5")
    assert "no modelling code to trust; leave it out" in said(run_dir, "trust_remote_code=true")
    (tmp_path / "file").touch()
    assert "cannot be written" in said(run_dir, *data, f"out={tmp_path}/file")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "nothing"}')
    assert "transformers cannot load it" in said(f"run_dir={tmp_path / 'model'}", *data)
