"""``hubert``: HuBERT, which predicts clustered units of masked speech.

Paper: Hsu et al., HuBERT: Self-Supervised Speech Representation Learning by Masked Prediction (arXiv 2106.07447).
Checkpoint: `facebook/hubert-base-ls960`, revision dba3bb02fda4248b6e082697eee756de8fe8aa8a.

Windows of 10 s, so that it is fed as the other speech models here.
"""

from __future__ import annotations

from xares_store.encoders.family import Family

HUBERT = Family(
    name="hubert",
    checkpoint="facebook/hubert-base-ls960",
    revision="dba3bb02fda4248b6e082697eee756de8fe8aa8a",
    model_type="hubert",
    max_length_s=10.0,
)
