"""``data2vec``: data2vec for audio, which predicts its own contextual representations of masked speech.

Paper: Baevski et al., data2vec (arXiv 2202.03555).
Checkpoint: `facebook/data2vec-audio-base`, revision the newest.

Windows of 10 s, as in the published X-ARES rows; see wav2vec2.py for what differs.
"""

from __future__ import annotations

from xares_store.encoders.family import Family

DATA2VEC = Family(
    name="data2vec",
    checkpoint="facebook/data2vec-audio-base",
    revision="",
    model_type="data2vec-audio",
    max_length_s=10.0,
)
