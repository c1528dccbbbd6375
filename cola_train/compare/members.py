"""The runs of a comparison: which there are, what each is given, and which can begin.

Imports no torch.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cola_train import costs
from cola_train.compare.plan import Plan, has_lost
from cola_train.config.schema import Config
from cola_train.errors import UserError

SPEED_STEPS = 30  # of the runs that measure how long a step takes, with budget=seconds
VALIDATIONS = 8  # in a whole run: the points of its curve

Phase = Literal["speed", "lr", "final"]
Line = Mapping[str, Any]  # of the ledger
Compose = Callable[[Sequence[str]], Config]  # what `cola-train WORDS` would run; UserError

# Of every run; what the plan says wins.
ALWAYS = ("tracking=local", "tracking.progress=false", "evaluation.sample_tokens=0",
          "checkpoint.keep=1", "checkpoint.keep_best=false")  # fmt: skip


@dataclass(frozen=True)
class Member:
    """One run.

    whole: as long as those that are compared. given: what makes its result, by the plan.
    around: what else `cola-train` is told.
    """

    arm: str
    phase: Phase
    lr: float | None  # of the grid
    seed: int
    steps: int
    whole: bool
    flops: float  # of training, in all
    given: tuple[str, ...]
    around: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """Its overrides, but for the folder."""
        return (*self.around, *self.given)

    @property
    def name(self) -> str:
        """Its own in the plan."""
        end = {"lr": f"lr-{self.lr or 0:g}", "final": f"seed-{self.seed}"}.get(self.phase)
        return f"{self.arm}+{end or self.phase}"

    @property
    def key(self) -> str:
        """Of what it is given: a member of the same name has another under another plan."""
        return hashlib.sha256(json.dumps(self.given).encode()).hexdigest()[:12]


def flops_per_step(config: Config) -> float:
    """Of an optimizer step: the model's forward and backward pass, what comes once a micro-batch,
    and the optimizer's matmuls; on one process."""
    blocks = costs.block_cost(config).weights * config.model.n_layers
    weights = [weight.stored for weight in blocks]
    update = config.method.update_cost(config.model, config.optim, weights).flops
    passes = config.accumulation(1) * costs.micro_batch_flops(config)
    return costs.training_flops_per_token(config) * tokens_per_step(config) + passes + update


def tokens_per_step(config: Config) -> int:
    """That a step trains on, of a batch whose rows are full."""
    return config.batch_size * config.train.sequence_length


class Members:
    """Those of a plan, by what the ledger has of them: the best learning rate is known when the
    short runs are done, and only then which runs follow."""

    def __init__(self, plan: Plan, compose: Compose) -> None:
        """Raises UserError: an arm cannot run as it is, all problems of all arms; or there are too
        few tokens for a step."""
        self.plan = plan
        self.configs = of_all_arms(plan, compose)
        self.step_flops = {arm: flops_per_step(config) for arm, config in self.configs.items()}
        if plan.tokens < 0.5 * tokens_per_step(self.configs[plan.baseline]):
            raise UserError(
                f"tokens: {plan.tokens} are less than half a step of {plan.baseline}, which takes "
                f"{tokens_per_step(self.configs[plan.baseline])}; give more, or a smaller batch"
            )

    def known(self, lines: Mapping[str, Line]) -> list[Member]:
        """Every member whose words are known, the arms' in turn.

        lines: the ledger's, by name; those with another key are of another plan.
        """
        found: list[Member] = []
        if self.plan.budget == "seconds":
            found += [self._member(arm, "speed", None, 0, SPEED_STEPS) for arm in self.plan.arms]
        speeds = {m.arm: done(m, lines) for m in found}
        lengths = {arm: self._steps(arm, speeds) for arm in self.plan.arms}
        steps = {arm: length for arm, length in lengths.items() if length is not None}
        for arm in steps:
            short = max(1, round(steps[arm] * self.plan.lr_share))
            found += [self._member(arm, "lr", lr, 0, short) for lr in self.plan.lr]
        for arm in steps:
            lr = None
            if self.plan.lr:
                tried = [m for m in found if m.phase == "lr"]
                if not goes_on(self.plan, arm, tried, lines):
                    continue
                lr = best_lr([m for m in tried if m.arm == arm], lines)
            for seed in range(self.plan.seeds):
                found.append(self._member(arm, "final", lr, seed, steps[arm]))
        return found

    def _steps(self, arm: str, speeds: Mapping[str, Line | None]) -> int | None:
        """Of a whole run of the arm; None, as long as a speed that it depends on is not known.

        speeds: for a budget of seconds, the lines of the runs that measured them.
        """
        if self.plan.budget == "tokens":
            steps = self.plan.tokens / tokens_per_step(self.configs[arm])
            return max(1, round(steps))
        base = self.plan.baseline
        steps = self.plan.tokens / tokens_per_step(self.configs[base])
        if self.plan.budget == "flops":
            return max(1, round(steps * self.step_flops[base] / self.step_flops[arm]))
        of_base, of_arm = speeds[base], speeds[arm]
        if of_base is None or of_arm is None:
            return None
        return max(1, round(steps * step_seconds(of_base) / step_seconds(of_arm)))

    def _member(self, arm: str, phase: Phase, lr: float | None, seed: int, steps: int) -> Member:
        whole = phase == "final" or (phase == "lr" and self.plan.lr_share == 1)
        every = f"evaluation.every={-(-steps // VALIDATIONS) if whole else 0}"
        around = (*ALWAYS, every, f"checkpoint.every={-(-steps // 4)}")
        given = [*self.plan.common, *self.plan.arms[arm], f"train.steps={steps}", f"seed={seed}"]
        if lr is not None:
            given.append(f"optim.lr={lr:g}")
        flops = steps * self.step_flops[arm]
        return Member(arm, phase, lr, seed, steps, whole, flops, tuple(given), around)


def of_all_arms(plan: Plan, compose: Compose) -> dict[str, Config]:
    """The config of each arm, as it is without a learning rate of the grid.

    Raises:
        UserError: all that is wrong with any.
    """
    configs, problems = {}, []
    for arm, words in plan.arms.items():
        try:
            configs[arm] = compose([*ALWAYS, *plan.common, *words])
        except UserError as error:
            problems += [f"arm {arm}: {problem}" for problem in error.problems]
    if problems:
        raise UserError(*problems)
    return configs


def done(member: Member, lines: Mapping[str, Line]) -> Line | None:
    """The ledger's line of a member that has ended well."""
    line = lines.get(member.name)
    ended = line is not None and line["key"] == member.key and line["state"] == "done"
    return line if ended else None


def finished(member: Member, lines: Mapping[str, Line]) -> bool:
    """Whether the ledger has a line of it, well or failed."""
    line = lines.get(member.name)
    return line is not None and line["key"] == member.key


def losses(members: Sequence[Member], lines: Mapping[str, Line]) -> Iterator[tuple[float, float]]:
    """(loss, learning rate) of the short runs that are done."""
    for member in members:
        if (line := done(member, lines)) is not None:
            assert member.lr is not None
            yield line["val_loss"], member.lr


def best_lr(members: Sequence[Member], lines: Mapping[str, Line]) -> float:
    """Of an arm's short runs."""
    return min(losses(members, lines))[1]


def goes_on(plan: Plan, arm: str, short: Sequence[Member], lines: Mapping[str, Line]) -> bool:
    """Whether the arm has whole runs: all of its short ones have ended, one of them well, and, if
    the plan drops arms, it was good enough."""
    own = [member for member in short if member.arm == arm]
    if not all(finished(member, lines) for member in own) or not any(losses(own, lines)):
        return False
    if plan.drop is None or arm == plan.baseline:
        return True
    base = [member for member in short if member.arm == plan.baseline]
    if not all(finished(member, lines) for member in base) or not any(losses(base, lines)):
        return False
    return not has_lost(plan.drop, min(losses(own, lines))[0], min(losses(base, lines))[0])


def step_seconds(line: Line) -> float:
    """Of a run that measured its speed: by the median, as first steps are slow."""
    return float(line["tokens"] / line["steps"] / line["tokens_per_second"])
