"""``whisper``: the encoder half of Whisper, trained to transcribe and translate speech.

Paper: Radford et al., Robust Speech Recognition via Large-Scale Weak Supervision (arXiv 2212.04356).
Checkpoint: `openai/whisper-base`, revision e37978b90ca9030d5170a5c07aadb050351a65bb.
Other sizes: --encoder-arg checkpoint=openai/whisper-small, and so on.

Windows of 10 s, as in the published X-ARES rows, each filled up to 30 s with silence, which is what Whisper takes; of its
frames only those over the audio are kept. The published rows pooled the frames over the silence as well, and counted
10 ms a frame where it is 20 ms. --encoder-arg max_length_s=30 uses the whole window.
"""

from __future__ import annotations

from xares_store.encoders.family import Family

WHISPER = Family(
    name="whisper",
    checkpoint="openai/whisper-base",
    revision="e37978b90ca9030d5170a5c07aadb050351a65bb",
    model_type="whisper",
    max_length_s=10.0,
)
