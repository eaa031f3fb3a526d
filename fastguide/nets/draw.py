"""First weights of a network, drawn anew."""

from __future__ import annotations

from torch import nn

from fastguide.nets.norm import GroupNorm


def draw_weights(net: nn.Module) -> None:
    """By Xavier and Glorot for products and convolutions, std 0.02 for embeddings; norms and
    biases as the identity. From torch's default generator.
    """
    for module in net.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.get_parameter("bias"))
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, GroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
