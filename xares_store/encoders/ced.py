"""``ced``: a tagger of AudioSet sounds, distilled from an ensemble of larger ones.

Paper: Dinkel et al., CED: Consistent ensemble distillation for audio tagging (arXiv 2308.11957).
Checkpoint: `mispeech/ced-base`, the newest revision (its weights have one, 343 MB); the first publication is
audiotransformer_base_mAP_4999.pt at zenodo.org/records/8275347. Both load; others with --encoder-arg size=tiny, mini or small.

Patches of 16 mel bands by 16 frames: a frame every 160 ms, the mean over the 4 patches of a column, as its authors do for
HEAR. The classifier on top is not used. The architecture is in patch_transformer.py.

Windows of 10 s, the length it was trained on.
"""

from __future__ import annotations

from typing import ClassVar

from xares_store.encoders.published import PublishedEncoder


class CedEncoder(PublishedEncoder):
    """CED with published weights; see ``PublishedEncoder`` for its arguments."""

    encoder = "ced"
    hub = "mispeech/ced-{size}"
    sizes: ClassVar[dict[str, tuple[int, int, int]]] = {
        "tiny": (192, 12, 3),
        "mini": (256, 12, 4),
        "small": (384, 12, 6),
        "base": (768, 12, 12),
    }
    patch = (16, 16)
    columns = 63  # 1012 spectrogram frames, of which whole patches cover 10.08 s
