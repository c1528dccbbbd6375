"""Updates in the backward pass: each parameter as soon as its gradient is there, which is then
freed. The gradients of a whole model never exist at once."""

from functools import partial

import torch
from torch import Tensor

from cola_train.engines.fsdp.masters import Masters


class UpdatesInBackward:
    """Steps the optimizer once for each parameter, by hooks of autograd and of FSDP2.

    What is known only after the backward pass comes too late for it: the global norm, and whether
    the step should be skipped.
    """

    def __init__(self, masters: Masters) -> None:
        self.masters = masters
        self.norms: dict[str, Tensor] = {}  # of this step's gradients, by parameter
        for name in masters.trained:
            masters.leaf(name).register_post_accumulate_grad_hook(partial(self._update, name))

    @torch.no_grad()
    def _update(self, name: str, _: Tensor) -> None:
        gradient = self.masters.take_gradient(name)
        assert gradient is not None
        (self.norms[name],) = torch._foreach_norm([gradient])
        self.masters.optimizer.step()  # passes over what has no gradient: all others
        if gradient.is_cuda:  # FSDP2 may call from a stream that it was not allocated in
            gradient.record_stream(torch.cuda.current_stream(gradient.device))
        self.masters.drop_gradient(name)

    def take_norms(self) -> dict[str, Tensor]:
        """Those of the step's gradients, by name, in the masters' order."""
        found = {name: self.norms[name] for name in self.masters.trained if name in self.norms}
        self.norms.clear()
        return found
