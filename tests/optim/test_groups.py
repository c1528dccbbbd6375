"""Groups of parameters by pattern; test_engine_contract.py trains with them under every engine."""

import pytest
import torch
from helpers import exit_code_of, make_config, meta_model, micro_batches, real_model

from cola_train import distributed
from cola_train.errors import UserError
from cola_train.optim import muon
from cola_train.optim.groups import parameter_groups
from cola_train.train import build


def groups_of(patterns):
    config = make_config("optim.lr=2e-3", f"optim.groups={patterns}")
    return parameter_groups(meta_model(config), config.optim)


def names(group):
    return [name for name, _ in group["params"]]


def own(group):
    return {key: value for key, value in group.items() if key not in ("params", "shapes")}


def test_the_first_pattern_counts_and_each_parameter_is_in_one_group():
    rest, norms, first, embedding = groups_of(
        "{*norm*:{weight_decay:0},layers.0.*:{lr:1e-3,weight_decay:0.5},embed*:{lr:2e-2}}"
    )
    assert {"layers.0.mlp_norm.weight", "norm.weight"} <= set(names(norms))
    assert all(name.startswith("layers.0.") for name in names(first)) and len(names(first)) > 5
    assert names(embedding) == ["embedding.weight"] and "head.weight" in names(rest)
    assert [own(group) for group in (rest, norms, first, embedding)] == [
        {}, {"weight_decay": 0.0}, {"weight_decay": 0.5, "lr_scale": 0.5}, {"lr_scale": 10.0},
    ]  # fmt: skip
    every = sorted(name for group in (rest, norms, first, embedding) for name in names(group))
    assert every == sorted(name for name, _ in meta_model(make_config()).named_parameters())
    assert [own(group) for group in groups_of("{}")] == [{}]
    assert len(groups_of("{*:{weight_decay:0}}")) == 1  # no group of none
    (_, scaled) = groups_of("{*_A:{lr_ratio:3}}")  # whatever optim.lr is
    assert own(scaled) == {"lr_scale": 3.0}


def test_a_rate_of_its_own_is_that_under_muon_too():
    """Whose other parameters outside of blocks have another rate than its matrices."""
    patterns = "optim.groups={embed*:{lr:1e-3},layers.0.*:{weight_decay:0}}"
    config = make_config("optim=muon", "optim.lr=2e-3", "optim.adamw_lr_ratio=0.1", patterns)
    groups = muon.divided(parameter_groups(meta_model(config), config.optim), 0.1)
    scale = {name: group.get("lr_scale", 1.0) for group in groups for name, _ in group["params"]}
    assert scale["embedding.weight"] == 0.5 and scale["head.weight"] == 0.1
    assert scale["layers.0.mlp_norm.weight"] == 0.1 and set(scale.values()) == {0.1, 0.5, 1.0}


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        ("{norm:{weight_decay:0}}", r"`norm` matches no trained parameter; one is `norm.weight`"),
        ("{*:{lr:1},*norm*:{lr:2}}", r"`\*norm\*` what it matches is matched by \* before it"),
        ("{*:{}}", r"`\*` changes nothing; give it weight_decay, lr or lr_ratio"),
        ("{*norm*:{weight_decy:0}}", r"did you mean `optim.groups.\*norm\*.weight_decay`"),
        ("{*:{lr:-1}}", r"optim.groups.\*.lr: must be more than 0"),
        ("{*:{lr:1e-3,lr_ratio:2}}", r"`\*` has lr and lr_ratio, two words"),
        ("{*:3}", r"optim.groups.\*: a group of options is expected, got 3"),
        ("7", r"optim.groups: must be a group, like"),
        ("{1:{lr:1}}", r"`1` matches no trained parameter"),
    ],
)
def test_what_is_wrong_is_named(patterns, said):
    with pytest.raises(UserError, match=said):
        groups_of(patterns)


def test_a_file_says_them_too_and_a_wrong_one_ends_before_data_are_prepared(
    tiny, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("cola_train.train.open_data", None)
    file = tmp_path / "mine.yaml"
    file.write_text('optim:\n  groups:\n    "layers.[89].*": {weight_decay: 0}\n')
    assert exit_code_of([str(file), *tiny, f"run_dir={tmp_path / 'run'}"]) == 2
    assert "optim.groups: `layers.[89].*` matches no" in capsys.readouterr().err


def test_norms_without_decay_on_one_process(tiny, tmp_path):
    """As plain torch trains them; beside a decay that pulls the others in."""
    decay = ["optim.weight_decay=5", "optim.groups={*norm*:{weight_decay:0}}"]
    config = make_config(*tiny, f"run_dir={tmp_path}", "optim.clip=null", *decay)
    engine = build(config, distributed.start())
    model = real_model(config, engine.device)
    norms = [p for name, p in model.named_parameters() if "norm" in name]
    others = [p for name, p in model.named_parameters() if "norm" not in name]
    groups = [{"params": norms, "weight_decay": 0}, {"params": others, "weight_decay": 5}]
    optimizer = torch.optim.AdamW(groups, 1e-2, tuple(config.optim.betas), config.optim.eps)
    for step in range(3):
        engine.train_step((batches := micro_batches(step)), 1e-2)
        optimizer.zero_grad()
        for batch in batches:
            there = batch.to(engine.device)
            (model(there.inputs, there.targets) / (8 * 32)).backward()
        optimizer.step()
    for name, weight in model.named_parameters():
        assert torch.allclose(engine.stored_weights().full(name), weight, rtol=1e-4, atol=1e-5), (
            name
        )
    engine.close()
