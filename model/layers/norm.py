"""Root-mean-square norm (Zhang and Sennrich, 2019), with the residual addition before it. Knows one layer's weight."""

from __future__ import annotations

import torch
from torch import Tensor

from model.kernels import head_norm, pointwise
from model.layers.workspace import Workspace


class RMSNorm:
    """x / sqrt(mean(x**2) + epsilon) * weight over the last dimension."""

    def __init__(self, weight_H: Tensor, epsilon: float, workspace: Workspace, name: str = "normed") -> None:
        self._weight = weight_H
        self._epsilon = epsilon
        self._workspace, self._name = workspace, name

    def __call__(self, residual_TH: Tensor, delta_TH: Tensor | None = None) -> Tensor:
        """Add `delta_TH` to the residual in place, and return the norm of the sum (a workspace buffer on CPU)."""
        if residual_TH.device.type != "cpu":
            return self._torch(residual_TH, delta_TH)
        rows, width = residual_TH.shape
        y_TH = self._workspace.take(self._name, rows, width)
        delta = 0 if delta_TH is None else delta_TH.data_ptr()
        x, weight = residual_TH.data_ptr(), self._weight.data_ptr()
        pointwise.rms_norm(self._workspace.threads, x, delta, weight, y_TH.data_ptr(), rows, width, self._epsilon)
        return y_TH

    def _torch(self, residual_TH: Tensor, delta_TH: Tensor | None) -> Tensor:
        if delta_TH is not None:
            residual_TH += delta_TH
        x = residual_TH.float()
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self._epsilon)
        return self._weight * x.to(residual_TH.dtype)


class HeadNorm:
    """The same norm over each query or key head of packed projections, in place."""

    def __init__(self, weight_D: Tensor, epsilon: float, workspace: Workspace) -> None:
        self._weight, self._epsilon, self._workspace = weight_D, epsilon, workspace

    def __call__(self, qkv_TN: Tensor, first: int, count: int) -> None:
        """Norm heads [first, first + count) of each token."""
        rows, stride = qkv_TN.shape
        size = self._weight.shape[0]
        if qkv_TN.device.type == "cpu":
            address, weight, threads = qkv_TN.data_ptr(), self._weight.data_ptr(), self._workspace.threads
            head_norm.norm_heads(threads, address, weight, rows, stride, first, count, size, self._epsilon)
            return
        heads = qkv_TN.view(rows, -1, size)[:, first : first + count]
        x = heads.float()
        heads.copy_(self._weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self._epsilon)).to(heads.dtype))
