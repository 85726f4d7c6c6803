"""``wav2vec2``: wav2vec 2.0, here trained on 100,000 hours of unlabelled speech in 23 languages.

Paper: Baevski et al., wav2vec 2.0 (arXiv 2006.11477); the data: Wang et al., VoxPopuli (arXiv 2101.00390).
Checkpoint: `facebook/wav2vec2-large-100k-voxpopuli`, revision 356d3601347971f29d011cc18a99b2feff4eb376.

Windows of 10 s, as in the published X-ARES rows. There a clip above 10 s is cut into 10 s pieces and a rest, filled up
with silence to 1 s; here it is cut into equal windows of at most 10 s, and no silence is added.
"""

from __future__ import annotations

from xares_store.encoders.family import Family

WAV2VEC2 = Family(
    name="wav2vec2",
    checkpoint="facebook/wav2vec2-large-100k-voxpopuli",
    revision="356d3601347971f29d011cc18a99b2feff4eb376",
    model_type="wav2vec2",
    max_length_s=10.0,
)
