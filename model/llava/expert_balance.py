"""The loss that asks the experts of a layer for equal loads, and the loads themselves.

Fedus et al., "Switch Transformers", equations 4 to 6, over all layers at once as in transformers, but for each sample
on its own: the mean over samples, weighted by their tokens, does not depend on how a batch was split or packed.

Shapes: L layers, S tokens of all samples, B samples, E experts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.fusion.packed import PackedBatch


class ExpertBalance:
    """Collects the loads of a forward pass; one for each packed row."""

    def __init__(self, weight: float, top_k: int):
        """Prepare for one packed row.

        Args:
            weight: of the loss of one token, in units of the summed cross-entropy that it is added to.
            top_k: experts that each token is sent to.
        """
        self.weight = weight
        self.top_k = top_k
        self.loss = torch.zeros(())
        """float32 scalar without gradient: what was added, the weight included."""
        self.loads = torch.zeros(0)
        """[E] float32, tokens that went to each expert, over all layers."""

    def add(self, router_logits: Sequence[Tensor], batch: PackedBatch) -> Tensor:
        """Return the weighted loss, float32 scalar, and note it and the loads.

        Args:
            router_logits: L tensors [S, E].
            batch: the packed row.

        Raises:
            ValueError: no layer has routers.
        """
        if not router_logits:
            raise ValueError("training.expert_balance needs a language model whose layers choose among experts")
        device, num_experts = router_logits[0].device, router_logits[0].shape[-1]
        lengths = torch.tensor(batch.seqlens)
        owner = torch.arange(len(lengths)).repeat_interleave(lengths).to(device)
        counts = lengths.to(device, torch.float32)
        chances = torch.zeros(len(lengths), num_experts, device=device)
        choices = torch.zeros(len(lengths), num_experts, device=device)
        for logits in router_logits:
            share = torch.softmax(logits.view(-1, num_experts).float(), dim=-1)
            chosen = torch.zeros_like(share).scatter_(1, share.topk(self.top_k, dim=-1).indices, 1.0)
            chances = chances.index_add(0, owner, share)
            choices.index_add_(0, owner, chosen)
        # Of a sample: E times the sum over experts of the share of its choices and of its mean chance; once per token.
        scale = (counts * len(router_logits))[:, None]
        per_sample = num_experts * ((choices / scale) * (chances / scale)).sum(dim=1)
        loss = self.weight * (counts * per_sample).sum()
        self.loss, self.loads = loss.detach(), choices.sum(dim=0)
        return loss
