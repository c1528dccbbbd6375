"""Full rank: plain linears, no options."""

from collections.abc import Iterator
from dataclasses import dataclass

from cola_train.config.groups import ModelConfig
from cola_train.methods import launches
from cola_train.methods.costs import BlockCost, Weight, all_or_input
from cola_train.methods.options import MethodOptions


@dataclass(frozen=True)
class FullOptions(MethodOptions):
    """The full-rank baseline."""

    implementation = "cola_train.methods.full.layers:FullRank"
    model_type = "llama"
    qk_norm_type = "qwen3"  # LLaMA's equations with it (arXiv 2505.09388)

    @property
    def folded(self) -> MethodOptions:
        """Of methods that train the same weights otherwise, too."""
        return FullOptions("full")

    def block_cost(self, model: ModelConfig, length: int, policy: str, fused: bool) -> BlockCost:
        d, f, F = model.d_model, model.d_ff, model.inner.stored
        weights = [Weight((d_out, d_in)) for d_in, d_out in model.linear_shapes]
        linears = sum(weight.elements for weight in weights)
        return all_or_input(
            model, length, policy, weights=weights,
            forward=2 * linears, backward=4 * linears,
            # the recomputation ends with what the last product needs: that is not run
            not_again=2 * d * f,
            # x, norm(x), the joint q/k/v (v is a view of it), rotated q and k, attention's output
            # twice (x + attention), its norm; gate and up, and their gated product
            saved=10 * d + 3 * F,
            workspace=(2 * F + d, 5 * F + 10 * d),
        )  # fmt: skip

    def block_launches(self, model: ModelConfig, work: launches.Work) -> Iterator[launches.Launch]:
        """q, k and v are one matmul, gate and up another, over copies of their weights."""
        n, d, f = work.tokens, model.d_model, model.inner.stored
        qkv, gate_up = launches.stacking(3 * d * d), launches.stacking(2 * d * f)
        forward = [
            *launches.norm(work, d), qkv, launches.linear(n, d, 3 * d),
            *launches.attention(work, d), launches.linear(n, d, d),
            *launches.residual_add(work, d),
            *launches.norm(work, d), gate_up, launches.linear(n, d, 2 * f),
            *launches.gated(work, f, silu=True),
        ]  # fmt: skip
        yield from forward
        yield launches.linear(n, f, d)
        yield from launches.residual_add(work, d)
        if work.policy != "none":
            yield from forward
        yield from launches.gradients(n, f, d)
        yield from launches.gated_backward(work, f, silu=True)
        if not work.compiled:
            yield launches.Pass(4 * n * f)  # dg and du, side by side
        yield gate_up
        yield from launches.gradients(n, d, 2 * f)
        yield from launches.norm_backward(work, d)
        yield from launches.gradients(n, d, d)
        yield from launches.attention_backward(work, d)
        yield launches.Pass(6 * n * d)  # dq, dk and dv, side by side
        yield qkv
        yield from launches.gradients(n, d, 3 * d)
        yield from launches.norm_backward(work, d)
