"""Families of Transformers models under names of their own: default weights, and only checkpoints of the family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xares_store.encoders.hf import HF_ARGUMENTS, build_hf, check_arguments
from xares_store.encoders.spec import Built
from xares_store.errors import EncoderError


@dataclass(frozen=True)
class Family:
    """A family of Transformers models under a name of its own, with default weights.

    Attributes:
        name: name on the command line.
        checkpoint: default hub model.
        revision: commit of it that is taken; empty for its newest.
        model_type: ``model_type`` that a checkpoint's configuration must have.
        max_length_s: longest window by default, in seconds.
    """

    name: str
    checkpoint: str
    revision: str
    model_type: str
    max_length_s: float

    def build(self, args: Mapping[str, Any]) -> Built:
        """Load a checkpoint of this family.

        Args:
            args: ``checkpoint`` (hub model or folder), ``revision``, ``layer`` and ``max_length_s``.

        Raises:
            EncoderError: as ``build_hf``; or the checkpoint is of another family.
        """
        check_arguments(args, ("checkpoint", "revision", *HF_ARGUMENTS), self.name)
        source = str(args.get("checkpoint", self.checkpoint))
        revision = str(args.get("revision", "" if "checkpoint" in args else self.revision))
        if "revision" in args and Path(source).expanduser().is_dir():
            raise EncoderError("A folder has no revisions.", where=source, hint="Leave the argument revision out.")
        spec = f"hf:{source}" + (f"@{revision}" if revision else "")
        rest = {key: value for key, value in args.items() if key in HF_ARGUMENTS}
        built = build_hf(spec, {"max_length_s": self.max_length_s} | rest, model_type=self.model_type)
        built.name = self.name
        built.shown_args = {key: built.shown_args.get(key, value) for key, value in args.items()}
        if built.args["layer"] is None:
            built.shown_args.pop("layer", None)
        return built
