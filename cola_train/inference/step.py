"""What all blocks share in a pass over new columns of a cache, and attention over the kept ones.

Shapes: B sequences, T new columns, S columns that they see, H heads, K = head width, V = width of
what is kept of values, which all heads may share (G = 1) or not (G = H); N = B G.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cola_train.model.attention import rotate
from cola_train.model.context import Mask


@dataclass(frozen=True)
class Step:
    """A pass over columns (T, int64).

    end: of the columns that they see. begin: the first of them, where the host knows it: it may
    change from step to step, and a recorded graph must not depend on it. rotary: with `first` as an
    `AttentionContext` has it; else for `turn`. bias: (1 or B, 1, T, end) fp32, -inf where a column
    is not seen; None: all are. first: there is nothing before these columns, and this is how they
    see each other.
    """

    columns: Tensor
    begin: int | None
    end: int
    rotary: Tensor
    bias: Tensor | None = None
    first: Mask | None = None

    def keep(self, kept_NSV: Tensor, new_BTGV: Tensor) -> None:
        """New columns, into what is kept of all, N = B G."""
        new_NTV = rows(new_BTGV)
        if self.begin is None:
            kept_NSV.index_copy_(1, self.columns, new_NTV.to(kept_NSV.dtype))
        else:
            kept_NSV.narrow(1, self.begin, new_NTV.shape[1]).copy_(new_NTV)

    def seen(self, kept_NSV: Tensor) -> Tensor:
        return kept_NSV.narrow(1, 0, self.end)

    def turn(self, q_BTHK: Tensor, k_BTHK: Tensor) -> tuple[Tensor, Tensor]:
        """By their angles; where they attend to what is kept, queries by 1 / sqrt(K) too: fp32."""
        if self.first is not None:
            return rotate(q_BTHK, self.rotary), rotate(k_BTHK, self.rotary)
        both = torch.stack([q_BTHK, k_BTHK], dim=2)
        q, k = turned(both, self.rotary).unbind(2)
        return q, k

    def attend(self, q_BTHK: Tensor, keys_NSK: Tensor, values_NSV: Tensor) -> Tensor:
        """softmax(q k^T) v over what is seen of the kept, (B, T, H, V), of q from `turn`; fp32 on
        CPUs, whose own attention of bf16 is many times slower."""
        B, T, H, _ = q_BTHK.shape
        q_NTK, keys, values = rows(q_BTHK), self.seen(keys_NSK), self.seen(values_NSV)
        if q_NTK.device.type == "cpu":
            keys, values = keys.float(), values.float()
        else:
            q_NTK = q_NTK.to(keys.dtype)
            if len(values) == len(keys):
                bias = None if self.bias is None else self.bias.to(q_NTK.dtype)
                q, k, v = (x.unflatten(0, (B, H)) for x in (q_NTK, keys, values))
                y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
                return y.transpose(1, 2)
        scores_NTS = torch.bmm(q_NTK, keys.mT)
        if self.bias is not None:
            scores_NTS = (scores_NTS.view(B, H, T, -1) + self.bias).view(B * H, T, -1)
        p_NTS = scores_NTS.softmax(-1, dtype=torch.float32).to(values.dtype)
        if len(values) < len(keys):  # G = 1: one product for all heads
            p_NTS = p_NTS.view(B, H * T, -1)
        return torch.bmm(p_NTS, values).view(B, H, T, -1).transpose(1, 2)


def rows(x_BTGV: Tensor) -> Tensor:
    """(B G, T, V); of one column a view."""
    B, T, G, V = x_BTGV.shape
    if T == 1:
        return x_BTGV.reshape(B * G, 1, V)
    return x_BTGV.transpose(1, 2).reshape(B * G, T, V)


def turned(x: Tensor, rotary: Tensor) -> Tensor:
    """x (..., K) by the angles of `angles`, fp32."""
    cos, sin = rotary
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def angles(table: Tensor, positions_BT: Tensor) -> Tensor:
    """cos, and sin with the sign of its half, (2, 1 or B, T, 1, K), fp32; table: of
    `attention.rotary_table`."""
    cos, sin = table[:, positions_BT, None]
    first, second = sin.chunk(2, dim=-1)
    return torch.stack([cos, torch.cat([-first, second], dim=-1)])


def query_key_angles(table: Tensor, positions_BT: Tensor) -> Tensor:
    """The same for `Step.turn`, (2, 1 or B, T, 2, 1, K): those of queries times 1 / sqrt(K)."""
    rotary = angles(table, positions_BT)
    return torch.stack([rotary * table.shape[-1] ** -0.5, rotary], dim=3)
