"""The data that a model is evaluated on, in its own tokens."""

from collections.abc import Container
from dataclasses import dataclass, fields, replace
from pathlib import Path

from cola_train.data.dataset import TokenDataset
from cola_train.data.inputs import Split
from cola_train.data.options import BESIDE_THE_TOKENS, CorpusOptions, DataOptions, TokensOptions
from cola_train.data.preparation import prepared_before
from cola_train.data.prepared import open_split, tokenizer_of
from cola_train.data.tokenizer import Tokenizer
from cola_train.errors import UserError
from cola_train.evaluation.options import OF_THE_MODEL


@dataclass(frozen=True)
class Reader:
    """How a model reads text.

    run: the data that it is trained on. tokenizer, file: what made their tokens. vocab_size: of the
    model.
    """

    run: DataOptions
    tokenizer: Tokenizer
    file: Path
    vocab_size: int

    def read(self, data: DataOptions, given: Container[str] | None = None) -> DataOptions:
        """The options of data in the model's tokens and, but for those `given` (None: those that
        are not their defaults), packed, masked and kept as the run's.

        Raises:
            UserError: its files cannot be found.
        """
        given = data.given() if given is None else given
        ours = {each.name for each in fields(data)}
        for name in BESIDE_THE_TOKENS:
            if name in ours and name not in given and hasattr(self.run, name):
                data = replace(data, **{name: getattr(self.run, name)})
        if data.packing == "per_document" and "document_mask" not in given:
            data = replace(data, document_mask=None)
        return self._in_tokens(data) if isinstance(data, CorpusOptions) else data

    def _in_tokens(self, data: CorpusOptions) -> DataOptions:
        """Those that the run has made of this text, or else new ones."""
        if isinstance(self.run, CorpusOptions):
            same = {name: getattr(self.run, name) for name in (*OF_THE_MODEL, "cache_dir")}
            folder = prepared_before(replace(data, **same))
            if folder is not None and tokenizer_of(folder).same_tokens(self.tokenizer):
                beside = {each.name: getattr(data, each.name) for each in fields(DataOptions)}
                return TokensOptions(**{**beside, "source": "tokens"}, path=str(folder))
        return replace(data, tokenizer=str(self.file), vocab_size=self.vocab_size)

    def open(self, data: DataOptions, split: Split) -> TokenDataset:
        """Tokens of what `read` returns, prepared where needed; all processes together.

        Raises:
            UserError: it cannot be read, or its tokens are not of the model's tokenizer.
        """
        dataset = open_split(data, split, self.vocab_size)
        if not tokenizer_of(dataset.folder).same_tokens(self.tokenizer):
            raise UserError(
                f"data.source: the tokens in {dataset.folder} are of another tokenizer than the "
                "model's; give the text itself, as with data.source=text"
            )
        return dataset
