"""`cola-import method=...` of a dense model: its weights as bottlenecks'."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from cola_train import distributed
from cola_train.config.schema import Config
from cola_train.convert.factor import Fit, convert, empty_model, sample
from cola_train.data.options import CorpusOptions, DataOptions
from cola_train.data.prepared import open_data
from cola_train.data.shards import TOKENIZER
from cola_train.data.tokenizer import Tokenizer
from cola_train.inference.load import Weights
from cola_train.model.llama import Llama
from cola_train.progress import Bar, say
from cola_train.train import uses_documents


@torch.no_grad()
def bottlenecks_of(
    dense: Config, weights: Weights, config: Config, tokenizer: Tokenizer, tokens: int
) -> Llama:
    """The model of `config` that computes nearly what the dense one does.

    dense, weights: of that one. tokens: of the config's data, on which its layers are measured.

    Raises:
        UserError: the method has no bottlenecks; the data cannot be read.
    """
    device, fit = distributed.device(), Fit.of(config)
    with tokenized_by(tokenizer, config.data) as options:
        data = open_data(options, config.model.vocab_size)
        batches = sample(data.train, config, tokens, uses_documents(config))
    source, result = empty_model(dense, device), empty_model(config, device)
    for name, weight in weights:
        source.get_parameter(name).copy_(weight)
    count = sum(batch.inputs.numel() for batch in batches)
    say(f"its layers are measured on {count:,} tokens, of {data.train.folder}")
    with Bar("import", len(source.layers), unit=" blocks") as bar:
        convert(
            source,
            result,
            [batch.to(device) for batch in batches],
            fit,
            lambda done: bar.show(done, config.method.label(config.model)),
        )
    return result.cpu()


@contextmanager
def tokenized_by(tokenizer: Tokenizer, data: DataOptions) -> Iterator[DataOptions]:
    """The same source with that tokenizer, if it is tokenised here."""
    if not isinstance(data, CorpusOptions):
        yield data
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / TOKENIZER
        path.write_text(tokenizer.to_json())
        yield replace(data, tokenizer=str(path))
