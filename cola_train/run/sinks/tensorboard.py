"""TensorBoard: event files in the run's folder, by the writer of torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = "tensorboard"  # in a run's folder
FLUSH_SECONDS = 10  # between two writings to disk


class TensorBoardSink:
    """A `Sink`: scalars over steps.

    Each start of a run writes a file of its own. Its first event tells TensorBoard from which step
    on those before are void, so that steps done again are shown once.
    """

    def __init__(self, run_dir: Path, values: Mapping[str, Any], step: int) -> None:
        """values: the run's config and facts, shown as text. step: the last one that stays.

        Raises:
            ImportError: TensorBoard is not installed.
            OSError: the folder cannot be written.
        """
        self.folder, self.step = run_dir / FOLDER, step
        self.writer = self._file_after(step)
        text = json.dumps(values, indent=1, default=str)
        self.writer.add_text("config", f"```\n{text}\n```", step)

    def log(self, step: int, tokens: int | None, figures: Mapping[str, Any]) -> None:
        if step > self.step and tokens is not None:  # several lines may be of one step
            self.writer.add_scalar("train/tokens", tokens, step)
        for name, value in figures.items():
            if value is not None:
                self.writer.add_scalar(name, value, step)
        self.step = step

    def sample(self, text: str) -> None:
        self.writer.add_text("sample", text, self.step)

    def roll_back(self, step: int) -> None:
        self.writer.close()
        self.step, self.writer = step, self._file_after(step)

    def close(self, exit_code: int) -> None:
        self.writer.close()

    def _file_after(self, step: int) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.folder), purge_step=step + 1, flush_secs=FLUSH_SECONDS)
