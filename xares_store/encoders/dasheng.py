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

from xares_store.encoders.hub import checkpoint_file
from xares_store.encoders.patch_transformer import PatchEncoder
from xares_store.encoders.published import load_published, shape_of

CHECKPOINT = "mispeech/dasheng-base"
REVISION = ""
FILE = "model.safetensors"
# name -> (dim, depth, heads)
SIZES = {"base": (768, 12, 12), "0.6B": (1280, 32, 16), "1.2B": (1536, 40, 24)}
PATCH = (64, 4)
COLUMNS = 252  # 1008 spectrogram frames, 10.08 s


class DashengEncoder(PatchEncoder):
    """Dasheng with published weights.

    Args:
        checkpoint: a .safetensors or .pt file, a folder that holds model.safetensors, or a hub model; that of the size by
            default.
        revision: commit, branch or tag of the hub model.
        size: ``base``, ``0.6B``, ``1.2B``, or ``DIMxDEPTHxHEADS`` for weights of one's own.
        max_length_s: longest window in seconds, at most 10.08.
    """

    origin_args = ("checkpoint", "revision")

    def __init__(
        self, checkpoint: str = "", revision: str = REVISION, size: str = "base", max_length_s: float = 10.0
    ) -> None:
        super().__init__(shape_of(size, SIZES, PATCH, COLUMNS), max_length_s)
        checkpoint = checkpoint or CHECKPOINT.replace("base", size)
        path = checkpoint_file(checkpoint, revision, FILE, encoder="dasheng")
        load_published(self, path)
        self.origin = {"checkpoint": checkpoint, "file": path.name}
