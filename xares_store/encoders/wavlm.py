"""``wavlm``: WavLM, HuBERT with noise and overlapped speech mixed into its training audio.

Paper: Chen et al., WavLM: Large-Scale Self-Supervised Pre-Training for Full Stack Speech Processing (arXiv 2110.13900).
Checkpoint: `microsoft/wavlm-base-plus`, revision 4c66d4806a428f2e922ccfa1a962776e232d487b.

Windows of 10 s, so that it is fed as the other speech models here.
"""

from __future__ import annotations

from xares_store.encoders.family import Family

WAVLM = Family(
    name="wavlm",
    checkpoint="microsoft/wavlm-base-plus",
    revision="4c66d4806a428f2e922ccfa1a962776e232d487b",
    model_type="wavlm",
    max_length_s=10.0,
)
