"""``dasheng``: a masked autoencoder trained on 272,000 hours of speech, music and environmental sound.

Paper: Dinkel et al., Scaling up masked audio encoder learning for general audio classification (arXiv 2406.06992).
Checkpoint: `mispeech/dasheng-base`, the newest revision (its weights have one, 342 MB); the first publication is
dasheng_base.pt at zenodo.org/records/11511780. Both load; larger ones with --encoder-arg size=0.6B or size=1.2B.

Patches of 64 mel bands by 4 frames: a frame every 40 ms. The package `dasheng` needs torchaudio, so the architecture is in
patch_transformer.py.

Windows of 10 s, as in the published X-ARES row; there a clip above 10 s is cut into 10 s pieces and a rest, here into equal
windows of at most 10 s.
"""

from __future__ import annotations

from typing import ClassVar

from xares_store.encoders.published import PublishedEncoder


class DashengEncoder(PublishedEncoder):
    """Dasheng with published weights; see ``PublishedEncoder`` for its arguments."""

    encoder = "dasheng"
    hub = "mispeech/dasheng-{size}"
    sizes: ClassVar[dict[str, tuple[int, int, int]]] = {
        "base": (768, 12, 12),
        "0.6B": (1280, 32, 16),
        "1.2B": (1536, 40, 24),
    }
    patch = (64, 4)
    columns = 252  # 1008 spectrogram frames, 10.08 s
