"""Exported models, loaded where there is transformers and not us."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import METHOD_NAMES, WORKERS, exit_code_of, read_json
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.decoders import Metaspace

from cola_train.convert.export import export
from cola_train.data.tokenizer import Tokenizer
from cola_train.inference.load import load_model
from cola_train.model.llama import Llama

NEW = 64
CASES = {
    **{name: f"method={name}" for name in METHOD_NAMES},
    **{f"cola-{a}": f"method=cola method.activation={a}" for a in ("low_rank", "full_rank")},
    "dlr": "method=low_rank method.dlr=0.5",
    "ranks": "method=cola method.ranks={q:3,up:5,down:16}",
    "full-qk_norm": "method=full model.qk_norm=true",
    "cola-qk_norm": "method=cola model.qk_norm=true",
}
OWN = ("cola", "low_rank", "cola-low_rank", "cola-full_rank", "dlr", "ranks", "cola-qk_norm")
TEXTS = [
    "the cat runs", " ", "", "a\n\n\tb  c", "naïve café ☃ 中文 \u0000 🤖", "<|endoftext|>",
    "the<|endoftext|>cat", "</s>", "the </s>cat</s><extra_id_1>sees", "a<extra_id_0> <pad>",
    "a " * 200,
]  # fmt: skip


def like_t5(texts: list[str]) -> Backend:
    """A unigram model whose special tokens are pieces that text can spell, the sentinels beyond
    the others, and which ends a text with </s>."""
    backend = Backend(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    backend.decoder = Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=100, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    content = json.loads(backend.to_str())
    sentinels = ["<extra_id_1>", "<extra_id_0>"]
    content["model"]["vocab"] += [[token, 0.0] for token in sentinels]
    backend = Backend.from_str(json.dumps(content))
    backend.add_special_tokens(sentinels)
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return backend


@pytest.fixture(scope="module")
def exports(corpus: Path, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each case in `runs`, and its export in `exported`; one with another tokenizer."""
    folder = tmp_path_factory.mktemp("exports")
    for name, overrides in CASES.items():
        run, out = folder / "runs" / name, folder / "exported" / name
        options = [*tiny, *overrides.split(), "train.steps=3", "optim.lr=0.03", f"run_dir={run}"]
        options += ["train.sequence_length=96", "evaluation.sample_tokens=0"]
        assert exit_code_of(options) == 0
        export(run, out, dtype="fp32", shard_bytes=50_000)
    like_t5([file.read_text() for file in corpus.iterdir()]).save(str(folder / "t5.json"))
    run, out, file = folder / "runs" / "full", folder / "exported" / "t5", folder / "t5.json"
    export(run, out, dtype="fp32", shard_bytes=10**9, tokenizer=file)
    return folder


@pytest.fixture(scope="module")
def answers(exports: Path) -> dict[str, Any]:
    """What transformers makes of them, and the tokens that it was asked of."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(260, (2, 96), generator=generator).tolist()
    prompts = [torch.randint(260, (n,), generator=generator).tolist() for n in (7, 1, 16)]
    asked = {"tokens": tokens, "prompts": prompts}
    folders = {name: str(exports / "exported" / name) for name in (*CASES, "t5")}
    questions = {
        "models": [{"folder": folders[n], "remote": n in OWN, **asked} for n in CASES],
        "tokenizers": [{"folder": folders[n], "texts": TEXTS} for n in ("full", "cola", "t5")],
    }
    (exports / "questions.json").write_text(json.dumps(questions))
    subprocess.run(
        [sys.executable, "-I", WORKERS / "transformers_alone.py", "questions.json", "answers.json"],
        cwd=exports,
        env={**os.environ, "HF_HOME": str(exports / "hf"), "HF_HUB_OFFLINE": "1"},
        check=True,
    )
    return {**asked, **read_json(exports / "answers.json")}


def greedy(model: Llama, prompt: list[int]) -> list[int]:
    tokens = list(prompt)
    for _ in range(NEW):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("name", CASES)
def test_transformers_computes_what_the_run_did(name, exports, answers):
    model, found = load_model(exports / "runs" / name), answers["models"][list(CASES).index(name)]
    theirs = "Qwen3" if name == "full-qk_norm" else "Llama"
    assert found["class"] == f"{'Cola' if name in OWN else theirs}ForCausalLM"
    logits = model(torch.tensor(answers["tokens"]))
    torch.testing.assert_close(torch.tensor(found["logits"]), logits, atol=1e-5, rtol=0)
    assert found["alone"] == [greedy(model, prompt) for prompt in answers["prompts"]]
    assert found["padded"] == found["static"] == found["alone"]
    assert found["checkpointing"] and found["dtypes"] == ["torch.float32", "torch.bfloat16"]
    assert found["eos"] == 0


def test_its_tokenizer_gives_our_ids(exports, answers):
    bpe, unigram = exports / "runs" / "cola" / "tokenizer.json", exports / "t5.json"
    for file, found in zip((bpe, bpe, unigram), answers["tokenizers"], strict=True):
        ours = Tokenizer.load(str(file))
        ids = [ours.encode(text) for text in TEXTS]
        assert found["ids"] == ids
        assert found["texts"] == [ours.decode(row) for row in ids]
        assert (found["eos"], found["pad"]) == (ours.eos_id, 0)


def test_a_folder_says_what_it_is_of(exports):
    exported = exports / "exported"
    for name in CASES:
        card = (exported / name / "README.md").read_text()
        assert f"| method | {CASES[name].split()[0].removeprefix('method=')}" in card
        assert "| tokens | 2,304 |" in card and "validation loss" in card and "corpus" in card
        assert (exported / name / "modeling_cola.py").exists() == (name in OWN)
    index = read_json(exported / "cola" / "model.safetensors.index.json")
    files = {file.name: file for file in (exported / "cola").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == set(files) and len(files) > 2
    assert all(file.stat().st_size < 55_000 for file in files.values())
    assert [f.name for f in (exported / "t5").glob("model*")] == ["model.safetensors"]
