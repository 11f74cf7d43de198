"""What several exercises ask about: the weights of Mixtral-8x7B, counted from its dimensions."""

from __future__ import annotations

# 32 layers of 8 experts, each three matrices of 4096 x 14336; attention (q
# and o 4096 x 4096, k and v 4096 x 1024); embeddings and head.
MIXTRAL_EXPERTS = 32 * 8 * 3 * 4096 * 14336
MIXTRAL_ATTENTION = 32 * 2 * (4096 * 4096 + 4096 * 1024)
MIXTRAL_EMBEDDINGS = 2 * 32000 * 4096
MIXTRAL_ROUTERS = 32 * 8 * 4096
