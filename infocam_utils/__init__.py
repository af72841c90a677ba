"""Reference companion to "Rethinking Softmax with Cross-Entropy" (arXiv 1911.10688)."""
