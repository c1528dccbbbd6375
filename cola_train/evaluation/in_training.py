"""Evaluation as a run goes: its own validation data, and further sets."""

from functools import cached_property, partial

import torch
from torch import Tensor

from cola_train import distributed
from cola_train.config.schema import Config
from cola_train.data.dataset import TokenDataset
from cola_train.data.loader import check_predictions, evaluation_batches
from cola_train.data.options import DataOptions
from cola_train.data.prepared import PreparedData
from cola_train.data.shards import TOKENIZER
from cola_train.evaluation.harness_tasks import HarnessTasks
from cola_train.evaluation.loss import Validation, evaluate
from cola_train.evaluation.options import place_of
from cola_train.evaluation.scoring import Scorer
from cola_train.evaluation.sets import Reader
from cola_train.hardware import compute_dtype, masks_at_speed
from cola_train.inference.caches import make_cache
from cola_train.run.state import RunState
from cola_train.run.tracking import Tracker


class Evaluations:
    """What is evaluated of a run, by all processes together."""

    def __init__(self, config: Config, data: PreparedData) -> None:
        """Opens the sets, which prepares them where needed.

        Raises:
            UserError: one cannot be read, or has nothing to predict.
        """
        self.config = config
        self.at_speed = masks_at_speed(config.model.attention, distributed.device())
        file = data.train.folder / TOKENIZER
        reader = Reader(config.data, data.tokenizer, file, config.model.vocab_size)
        self.own = (config.data, data.validation)
        self.sets: dict[str, tuple[DataOptions, TokenDataset]] = {}
        for name, options in config.evaluation.sets.items():
            with place_of(f"evaluation.sets.{name}"):
                options = reader.read(options)
                dataset = reader.open(options, "validation")
            length = config.train.sequence_length
            check_predictions(dataset, packing=options.packing, sequence_length=length)
            self.sets[name] = (options, dataset)
        self.tokenizer = data.tokenizer
        names, limit = config.evaluation.tasks, config.evaluation.task_limit
        self.tasks = HarnessTasks(names, "evaluation.tasks", limit) if names else None

    def validate(self, state: RunState, tracker: Tracker) -> Validation:
        """Losses over all sets, logged; that over the run's own data. It may not be finite."""
        own = self._loss(state, *self.own)
        others = {f"val_loss/{name}": self._loss(state, *of).loss for name, of in self.sets.items()}
        state.watchdog.advance(f"step {state.step + 1}, after an evaluation")
        tracker.validation(
            {
                "step": state.step,
                "val_loss": own.loss,
                "val_perplexity": own.perplexity,
                "val_tokens": own.tokens,
                "val_bits_per_byte": own.bits_per_byte,
                **others,
            },
            state.progress.tokens,
        )
        return own

    def run_tasks(self, state: RunState, tracker: Tracker) -> None:
        """Those of `evaluation.tasks`, if there are any, logged."""
        if self.tasks is None:
            return
        engine, doing = state.engine, f"tasks after step {state.step}"
        dtype = compute_dtype(self.config.train.precision, engine.device)
        scorer = Scorer(
            engine.eval_model(),
            self.tokenizer,
            partial(make_cache, "kv", engine.model, dtype=dtype),
            engine.device,
            max_length=engine.model.max_length,
            vocab_size=self.config.model.vocab_size,
            batch_size=self.config.evaluation.batch_size,
            advance=lambda done, total: state.watchdog.advance(doing),
        )
        results = self.tasks.run(scorer, errors=False)
        state.watchdog.advance(f"step {state.step + 1}, after tasks")
        tracker.tasks(state.step, results, state.progress.tokens)

    def _loss(self, state: RunState, options: DataOptions, dataset: TokenDataset) -> Validation:
        batches = evaluation_batches(
            dataset,
            sequence_length=self.config.train.sequence_length,
            micro_batch_size=self.config.evaluation.batch_size,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            packing=options.packing,
            with_documents=options.masks_documents(self.at_speed),
            max_tokens=self.config.evaluation.tokens,
        )
        watched = state.watchdog.each(batches, f"evaluation after step {state.step}")
        return evaluate(state.engine.evaluate, watched, self._bytes_of_tokens)

    @cached_property
    def _bytes_of_tokens(self) -> Tensor:
        return torch.from_numpy(self.tokenizer.bytes_of_tokens())
