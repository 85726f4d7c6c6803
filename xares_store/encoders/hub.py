"""A checkpoint file from a local path or from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from xares_store.errors import EncoderError


def checkpoint_file(checkpoint: str, revision: str, filename: str, *, encoder: str) -> Path:
    """Find the weights: a file, a folder that holds ``filename``, or a hub model, which is downloaded once.

    Args:
        checkpoint: a path, or ``organisation/model``.
        revision: commit, branch or tag of the hub model; empty for the newest.
        filename: the file to take from a folder or the hub.
        encoder: name of the encoder, for messages.

    Returns:
        The path of the file.

    Raises:
        EncoderError: there is no such file, or it cannot be downloaded; the message says which file to put where.
    """
    path = Path(checkpoint).expanduser()
    if path.is_file():
        return path.resolve()
    if path.is_dir():
        if not (path / filename).is_file():
            raise EncoderError(
                f"The folder holds no {filename}.", where=path, hint=f"Put {filename} there, or name the file itself."
            )
        return (path / filename).resolve()
    looks_local = checkpoint.startswith((".", "~", "/")) or path.suffix in (".pt", ".pth", ".ckpt", ".safetensors")
    if looks_local or checkpoint.count("/") != 1:
        raise EncoderError(
            f"There is no checkpoint {checkpoint}.",
            where=encoder,
            hint="Give the path of a .safetensors or .pt file, a folder, or a hub model (organisation/model).",
        )
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(checkpoint, filename, revision=revision or None))
    except MemoryError:
        raise
    except Exception as error:  # the hub's errors are of many classes; all of them mean that there is no file
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise EncoderError(
            f"{filename} of the hub model {checkpoint} cannot be fetched: {lines[0] if lines else type(error).__name__}",
            where=encoder,
            hint=f"Without network, run `hf download {checkpoint} {filename}` on another machine, put the file anywhere "
            f"on this one, and give its path: --encoder-arg checkpoint=/path/{filename}",
        ) from error
