"""Text from a trained model: what transformers makes of the same weights, and what ends it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import exit_code_of
from recorded import pretend_cuda_graphs

from cola_train.convert.export import export
from cola_train.convert.names import exported_names
from cola_train.data.tokenizer import Tokenizer
from cola_train.errors import TrainingError, UserError
from cola_train.inference import graphs
from cola_train.inference.generate import Decoding, Generation, Limits, generate, stream
from cola_train.inference.graphs import Recorded
from cola_train.inference.load import Trained, load
from cola_train.inference.pieces import Pieces, StopStrings
from cola_train.inference.sampling import Sampling
from cola_train.model.llama import Llama

GREEDY = Sampling(temperature=0.0)
PROMPTS = ["the cat", "and the old dog sees a tree. then", "red"]


@pytest.fixture(scope="module")
def run(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of full rank, with more ids than the tokenizer has, hardly trained: its text varies."""
    folder = tmp_path_factory.mktemp("generate") / "run"
    options = ["method=full", "train.steps=1", "train.sequence_length=96", "model.vocab_size=310"]
    options += ["data.vocab_size=300", "optim.lr=1e-9", f"run_dir={folder}"]
    assert exit_code_of([*tiny, *options, "evaluation.sample_tokens=0"]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(run: Path) -> Trained:
    found = load(run)
    torch.nn.init.normal_(found.model.head.weight, generator=torch.Generator().manual_seed(0))
    return found


def test_greedy_text_is_that_of_transformers(trained: Trained) -> None:
    """64 tokens, of three prompts at once and of each alone."""
    transformers = pytest.importorskip("transformers")
    model, shape = trained.model, trained.config.model
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=shape.vocab_size, hidden_size=shape.d_model, intermediate_size=shape.d_ff,
            num_hidden_layers=shape.n_layers, num_attention_heads=shape.n_heads,
            rms_norm_eps=shape.norm_eps, rope_theta=shape.rope_theta, tie_word_embeddings=False,
        )
    ).eval()  # fmt: skip
    weights = dict(model.named_parameters())
    names = exported_names(weights)
    theirs.load_state_dict({names[name]: weight for name, weight in weights.items()})
    banned = list(range(trained.tokenizer.vocab_size, shape.vocab_size))
    limits = Limits(new_tokens=64, past_end=True)
    together = generate(trained, PROMPTS, limits, GREEDY)
    for prompt, answer in zip(PROMPTS, together, strict=True):
        tokens = torch.tensor([trained.tokenizer.encode(prompt)])
        expected = theirs.generate(
            tokens, max_new_tokens=64, do_sample=False, suppress_tokens=banned, eos_token_id=None,
            pad_token_id=0,
        )[0, tokens.shape[1] :].tolist()  # fmt: skip
        assert answer.tokens == expected and len(set(expected)) > 9
        assert generate(trained, [prompt], limits, GREEDY)[0].tokens == expected
        assert answer.ended == "new_tokens" and answer.text


@pytest.mark.gpu
def test_a_cuda_graph_gives_the_same_text(run: Path) -> None:
    trained, limits = load(run, "cuda"), Limits(new_tokens=64, past_end=True)
    usual = generate(trained, PROMPTS, limits, GREEDY, Decoding(cuda_graph=False))
    assert generate(trained, PROMPTS, limits, GREEDY) == usual


def test_a_recorded_step_gives_the_same_text(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, with a stand-in for CUDA graphs."""
    limits, made = Limits(new_tokens=20, past_end=True), []

    class Kept(Recorded):
        def __init__(self, model: Llama) -> None:
            super().__init__(model)
            made.append(self)

    expected = generate(trained, PROMPTS, limits, GREEDY)
    pretend_cuda_graphs(monkeypatch)
    monkeypatch.setattr(graphs, "recorded", lambda kind, device: True)
    monkeypatch.setattr(graphs, "Recorded", Kept)
    assert generate(trained, PROMPTS, limits, GREEDY) == expected
    assert [recorded.graph.replays for recorded in made] == [19]


def test_an_exported_folder_gives_the_text_of_its_run(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out", dtype="fp32", shard_bytes=20_000)
    limits = Limits(new_tokens=30)
    there, here = (generate(load(path), PROMPTS, limits) for path in (tmp_path / "out", run))
    assert there == here and len({answer.text for answer in here}) == 3
    (tmp_path / "out" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer.json: cannot be read .* bring the model's"):
        load(tmp_path / "out")


def test_the_same_seed_gives_the_same_text_in_any_batch(trained: Trained) -> None:
    sampling, limits = Sampling(seed=3), Limits(new_tokens=20)
    first, second = generate(trained, PROMPTS[:2], limits, sampling)
    assert "".join(stream(trained, PROMPTS[0], limits, sampling)) == first.text
    assert "".join(stream(trained, PROMPTS[1], limits, replace(sampling, seed=4))) == second.text
    assert "".join(stream(trained, PROMPTS[0], limits, replace(sampling, seed=4))) != first.text


def test_an_answer_ends_before_a_stop_string_and_at_the_end_of_text(trained: Trained) -> None:
    limits = Limits(new_tokens=60, past_end=True)
    whole = generate(trained, PROMPTS, limits, GREEDY)
    text, tokens = whole[1].text, whole[1].tokens
    pieces = list(stream(trained, PROMPTS[1], limits, GREEDY))
    assert "".join(pieces) == text
    stop = text[11:17]  # which no single token has
    assert not any(stop in piece for piece in pieces)
    stopped = generate(trained, PROMPTS, replace(limits, stop=["no such", stop]), GREEDY)
    assert (stopped[1].text, stopped[1].ended) == (text[: text.index(stop)], "stop")
    for answer, before in zip(stopped, whole, strict=True):
        assert answer.text == before.text.partition(stop)[0]

    tokenizer = Tokenizer(trained.tokenizer._backend, "")
    tokenizer.eos_id = tokens[9]
    (ended,) = generate(replace(trained, tokenizer=tokenizer), [PROMPTS[1]], Limits(60), GREEDY)
    assert ended.ended == "end_of_text" and ended.tokens == tokens[: tokens.index(tokens[9]) + 1]


def test_the_models_length_ends_an_answer(trained: Trained) -> None:
    """In a batch each row's own."""
    answers = generate(trained, [PROMPTS[1], "a"], Limits(200, past_end=True), GREEDY)
    for answer in answers:
        assert answer.ended == "length" and answer.prompt_tokens + len(answer.tokens) == 96
    (alone,) = generate(trained, ["a"], Limits(200, past_end=True), GREEDY)
    assert alone.tokens == answers[1].tokens
    with pytest.raises(UserError, match=r"prompt: \d+ tokens, .* 96 \(train.sequence_length"):
        generate(trained, ["the cat sees " * 40])
    with pytest.raises(UserError, match="no UTF-8"):
        generate(trained, ["a\udcff"])
    with pytest.raises(UserError, match="cache: 'latent' is not one of this model's"):
        Generation(trained, ["a"], decoding=Decoding(cache="latent"))
    with pytest.raises(UserError, match="stop: an empty text"):
        Generation(trained, ["a"], Limits(stop=[""]))


def test_a_model_that_diverged_is_told(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.nn.Parameter(torch.full((32,), torch.nan))
    monkeypatch.setattr(trained.model.norm, "weight", weight)
    with pytest.raises(TrainingError, match="the logits are not finite"):
        generate(trained, ["a"])


def test_no_piece_splits_a_character() -> None:
    """Of byte-level tokens, and of those that are bytes only where there is no other."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers

    text = "größe 🙂🙂 漢字 é " * 20 + "\ufffd"
    level = Tokenizer.train(["größe"], 260)
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocabulary |= {"</s>": 256, "▁": 257, "g": 258}
    backend = Backend(models.BPE(vocabulary, [], unk_token=None, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps)
    for tokenizer in (level, Tokenizer(backend, "fallback")):
        prompt, tokens = tokenizer.encode("🙂 g"), tokenizer.encode(text)
        pieces = Pieces(tokenizer, prompt)
        said = [pieces.add(token) for token in tokens]
        assert not any("\ufffd" in piece for piece in said[:-4])
        assert "".join(said) + pieces.rest() == text
        assert len(pieces._tokens) < 100  # of some hundred


@pytest.mark.parametrize(
    ("stop", "pieces", "text", "found"),
    [
        (["END"], ["a E", "N", "Dx"], "a ", True),
        (["END"], ["a E", "N", "d"], "a ENd", False),
        (["END"], ["aEN"], "aEN", False),
        (["aab"], ["aa", "aa", "b"], "aa", True),
        (["x", "cd"], ["abcdx"], "ab", True),
        ([], ["a", "b"], "ab", False),
    ],
)
def test_a_stop_string_is_found_over_pieces(stop, pieces, text, found) -> None:
    strings, said = StopStrings(stop), ""
    for piece in pieces:
        if not strings.found:
            said += strings.add(piece)
    said += "" if strings.found else strings.rest()
    assert (said, strings.found) == (text, found)
