"""The transformer that moves TransVQ's codebook."""

import torch.nn.functional as F
from torch import Tensor, nn


class LinearAttention(nn.Module):
    """Attention whose cost is linear in the number of codes (Katharopoulos et al., arXiv 2006.16236).

    out_i = φ(q_i)·Σ_j φ(k_j)v_jᵀ / (φ(q_i)·Σ_j φ(k_j) + 1e-6) with φ = elu + 1; no biases.

    Args:
        width: Channels.
        num_heads: Heads; must divide the width.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the codes: (K, width) to (K, width)."""
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(0, 1) for layer in (self.to_q, self.to_k, self.to_v)
        )
        q, k = F.elu(q) + 1, F.elu(k) + 1
        normalizer = q @ k.sum(dim=1).unsqueeze(-1) + 1e-6
        out = q @ (k.transpose(1, 2) @ v) / normalizer
        attended: Tensor = self.to_out(out.transpose(0, 1).flatten(1))
        return attended


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them.

    Args:
        width: Channels.
        hidden: Inner channels.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (K, width) to (K, width)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class TransformerBlock(nn.Module):
    """A pre-norm transformer block over the codes.

    Args:
        width: Channels.
        num_heads: Attention heads.
        mlp_ratio: Inner over outer width of the feed-forward part.
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = LinearAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.ffn = FeedForward(width, int(width * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Map (K, width) to (K, width)."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.ffn(self.norm2(x))
        return out


class CodebookTransformer(nn.Module):
    """Maps a frozen codebook to the effective one, as in the released TransVQ (arXiv 2602.18896).

    Args:
        frozen_dim: Channels of the frozen codebook.
        dim: Channels of the effective codebook.
        codebook_size: Number of codes K.
        depth: Transformer blocks.
        width: Channels inside.
        num_heads: Attention heads; must divide the width.
        mlp_ratio: Inner over outer width of the feed-forward parts.
        position_embedding: Whether each code has a learned position embedding, N(0, 1) at the start; it outweighs the
            frozen codebook there.
    """

    def __init__(
        self,
        frozen_dim: int,
        dim: int,
        codebook_size: int,
        depth: int,
        width: int,
        num_heads: int,
        mlp_ratio: float,
        position_embedding: bool,
    ) -> None:
        super().__init__()
        self.in_proj = nn.Linear(frozen_dim, width, bias=False)
        self.pos_emb = nn.Embedding(codebook_size, width) if position_embedding else None
        self.blocks = nn.ModuleList(TransformerBlock(width, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out_proj = nn.Linear(width, dim, bias=False)

    def forward(self, frozen: Tensor) -> Tensor:
        """Transform the codebook: (K, frozen_dim) to (K, dim)."""
        x = self.in_proj(frozen)
        if self.pos_emb is not None:
            x = x + self.pos_emb.weight
        for block in self.blocks:
            x = block(x)
        codes: Tensor = self.out_proj(self.norm(x))
        return codes
