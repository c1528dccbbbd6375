"""Weights & Biases."""

import os
import re
import time
import uuid
from collections.abc import Mapping
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any

from cola_train.config.schema import Config
from cola_train.files import write_text
from cola_train.progress import say

FINISH_SECONDS = 60  # to upload the rest when a run ends; `wandb sync` sends what is left


class WandbSink:
    """A `Sink`: the run in W&B, online or in its folder."""

    def __init__(self, config: Config, values: Mapping[str, Any]) -> None:
        """values: what W&B records as the run's config.

        Raises:
            Exception: whichever it is of W&B's.
        """
        self.config, self.values = config, dict(values)
        mode = config.tracking.wandb
        if mode == "auto":
            mode = "online" if logged_in() else "offline"
        try:
            self.run = self._init(mode)
        except Exception as error:
            if mode != "online":
                raise
            say(f"W&B cannot be reached, so it records offline (`wandb sync` later): {error}")
            self.run = self._init_offline()

    def log(self, step: int, tokens: int | None, figures: Mapping[str, Any]) -> None:
        self.run.log({**figures, "step": step, "tokens": tokens})

    def sample(self, text: str) -> None:
        self.run.summary.update({"sample": text})

    def roll_back(self, step: int) -> None:
        """W&B takes nothing back: its charts show both."""

    def close(self, exit_code: int) -> None:
        self.run.finish(exit_code=exit_code)

    def _init_offline(self) -> Any:
        import wandb

        wandb.teardown()  # what still tries to reach the server, under this run's id
        return self._init("offline")

    def _init(self, mode: str) -> Any:
        import wandb

        tracking = self.config.tracking
        os.environ.setdefault("WANDB_INIT_TIMEOUT", "60")
        run = wandb.init(
            project=tracking.project,
            entity=tracking.entity,
            group=tracking.group,
            tags=tracking.tags,
            name=self.config.run_name,
            id=_run_id(Path(self.config.run_dir)),
            resume="allow",
            dir=self.config.run_dir,
            mode=mode,  # type: ignore[arg-type]
            config=self.values,
            settings=wandb.Settings(console="off", silent=True, finish_timeout=FINISH_SECONDS),
        )
        run.define_metric("tokens")
        run.define_metric("*", step_metric="tokens")
        return run


def logged_in() -> bool:
    """Whether W&B has a key, without importing it or asking the network."""
    if os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled"):
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1]
        return netrc().authenticators(host.split("/")[0]) is not None
    except (OSError, NetrcParseError):
        return False


def _run_id(run_dir: Path) -> str:
    """The run's W&B id, kept in its folder so that a resumed run goes on in the same chart."""
    path = run_dir / "wandb" / "run_id"
    known = path.read_text(errors="replace").strip() if path.exists() else ""
    if re.fullmatch(r"[\w-]+", known, re.ASCII):
        return known
    path.parent.mkdir(parents=True, exist_ok=True)
    new = f"{int(time.time()):x}{uuid.uuid4().hex[:6]}"
    write_text(path, new)
    return new
