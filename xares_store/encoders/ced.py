"""``ced``: a tagger of AudioSet sounds, distilled from an ensemble of larger ones.

Paper: Dinkel et al., CED: Consistent ensemble distillation for audio tagging (arXiv 2308.11957).
Checkpoint: `mispeech/ced-base`, the newest revision (its weights have one, 343 MB); the first publication is
audiotransformer_base_mAP_4999.pt at zenodo.org/records/8275347. Both load; others with --encoder-arg size=tiny, mini or small.

Patches of 16 mel bands by 16 frames: a frame every 160 ms, the mean over the 4 patches of a column, as its authors do for
HEAR. The classifier on top is not used. The architecture is in patch_transformer.py.

Windows of 10 s, the length it was trained on.
"""

from __future__ import annotations

from xares_store.encoders.hub import checkpoint_file
from xares_store.encoders.patch_transformer import PatchEncoder
from xares_store.encoders.published import load_published, shape_of

CHECKPOINT = "mispeech/ced-base"
REVISION = ""
FILE = "model.safetensors"
# name -> (dim, depth, heads)
SIZES = {"tiny": (192, 12, 3), "mini": (256, 12, 4), "small": (384, 12, 6), "base": (768, 12, 12)}
PATCH = (16, 16)
COLUMNS = 63  # 1012 spectrogram frames, of which whole patches cover 10.08 s


class CedEncoder(PatchEncoder):
    """CED with published weights.

    Args:
        checkpoint: a .safetensors or .pt file, a folder that holds model.safetensors, or a hub model; that of the size by
            default.
        revision: commit, branch or tag of the hub model.
        size: ``tiny``, ``mini``, ``small``, ``base``, or ``DIMxDEPTHxHEADS`` for weights of one's own.
        max_length_s: longest window in seconds, at most 10.08.
    """

    origin_args = ("checkpoint", "revision")

    def __init__(
        self, checkpoint: str = "", revision: str = REVISION, size: str = "base", max_length_s: float = 10.0
    ) -> None:
        super().__init__(shape_of(size, SIZES, PATCH, COLUMNS), max_length_s)
        checkpoint = checkpoint or CHECKPOINT.replace("base", size)
        path = checkpoint_file(checkpoint, revision, FILE, encoder="ced")
        load_published(self, path)
        self.origin = {"checkpoint": checkpoint, "file": path.name}
