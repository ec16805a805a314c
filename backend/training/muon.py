"""Muon, whose matrices of equal shape are turned together: a small network's are many, and each alone is one launch."""

from __future__ import annotations

import math
from collections import defaultdict

import torch

SHRINK = 1e-7  # least norm that a gradient is divided by


class StackedMuon(torch.optim.Muon):
    """`torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`: the same steps and state in fewer launches.

    The starter model's 247 matrices have ten shapes.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            stacks: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    stacks[parameter.shape].append(parameter)
            for parameters in stacks.values():
                self._step_stack(parameters, group)

    def _step_stack(self, parameters: list[torch.Tensor], group: dict) -> None:
        """parameters: k matrices [m, n]."""
        gradients, momentum = [parameter.grad for parameter in parameters], group["momentum"]
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        updates = torch._foreach_lerp(gradients, buffers, momentum) if group["nesterov"] else buffers
        turned = orthogonalized(torch.stack(updates), group["ns_coefficients"], group["ns_steps"])
        rate = float(group["lr"])
        torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        size = 0.2 * math.sqrt(max(parameters[0].shape))  # of AdamW's steps, whatever the shape
        torch._foreach_add_(parameters, turned.to(parameters[0].dtype).unbind(), alpha=-rate * size)


def orthogonalized(matrices: torch.Tensor, coefficients: tuple[float, float, float], steps: int) -> torch.Tensor:
    """Newton-Schulz: matrices [k, m, n] with singular values near 1 and the given ones' directions, bfloat16."""
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=SHRINK)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
