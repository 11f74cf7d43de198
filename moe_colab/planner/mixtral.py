"""The weights of Mixtral-8x7B, counted from its shapes, and its bytes in 16 and in 2 bits.

Knows the published shapes and one table of the paper; reads no files.
"""

LAYERS, EXPERTS, TOP_K = 32, 8, 2
EXPERT_WEIGHTS = LAYERS * EXPERTS * 3 * 4096 * 14336  # three matrices per expert
ATTENTION_WEIGHTS = LAYERS * 2 * (4096 * 4096 + 4096 * 1024)  # q and o; k and v
EMBEDDING_WEIGHTS = 2 * 32000 * 4096  # embeddings and head
ROUTER_WEIGHTS = LAYERS * EXPERTS * 4096

PAPER_BYTES = 17.54 * 2**30  # arXiv 2312.17238, Table 1: attention 4 bits, experts 2 bits
ATTENTION_BITS = 4.25  # there: 4-bit codes, an 8-bit scale and an 8-bit zero for every 64 weights


def dense_bytes(attention_bits: float = 16) -> float:
    """Bytes of everything but the experts, embeddings and routers in 16 bits: every token uses
    them."""
    kept = EMBEDDING_WEIGHTS + ROUTER_WEIGHTS
    return (ATTENTION_WEIGHTS * attention_bits + kept * 16) / 8
