"""The audio language model: a trained projector, a decoder that is frozen or adapted with LoRA, and what they compute."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xares_store.errors import ProbeError
from xares_store.probes.llm.decoder import OPTION, Decoder
from xares_store.probes.llm.dropout import Clips, own_dropout
from xares_store.probes.llm.examples import Example
from xares_store.probes.llm.layout import IGNORE, Layout, arrange
from xares_store.probes.llm.projector import combine, combined_length, make_projector
from xares_store.quiet import quiet_transformers
from xares_store.recipe import Recipe

# Decoders whose label likelihoods were compared, packed and one by one.
_PACKING = frozenset(
    ("llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "opt", "phi", "phi3", "gemma", "olmo", "olmo2", "smollm3")
)


@dataclass(frozen=True)
class Written:
    """What the model wrote about one clip.

    Attributes:
        text: without special tokens.
        tokens: how many were generated.
        finished: whether the end token came before the limit.
    """

    text: str
    tokens: int
    finished: bool


class AudioLm(nn.Module):
    """A projector in front of a decoder.

    Args:
        decoder: frozen; LoRA is added to it when the recipe says so.
        recipe: projector, LoRA, separator and prompt.
        dim: size of a stored frame.
        separator: id of the token after the audio, None for none.
        gaps: the published layout (:mod:`xares_store.probes.llm.layout`).
        seed: of the initial weights.

    Attributes:
        audio_projector: the trained layer.
        decoder: the language model, inside PEFT's wrapper where LoRA is used.
    """

    def __init__(
        self,
        decoder: Decoder,
        recipe: Recipe,
        *,
        dim: int,
        separator: int | None,
        gaps: bool = False,
        seed: int = 42,
    ) -> None:
        super().__init__()
        self.text, self.recipe, self.separator, self.gaps, self.dim = decoder, recipe, separator, gaps, dim
        self._clips = Clips(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.audio_projector = make_projector(recipe.projector, dim, decoder.shape.width, decoder.shape.inner)
            self.decoder = _adapted(decoder, recipe, self._clips)
        device = next(decoder.model.parameters()).device
        self.audio_projector.to(device)
        if recipe.training.gradient_checkpointing:
            _checkpoint_activations(decoder.model)
        self._limits_logits = "logits_to_keep" in inspect.signature(decoder.model.forward).parameters
        self._takes_positions = "position_ids" in inspect.signature(decoder.model.forward).parameters
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return next(self.audio_projector.parameters()).device

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name: the projector's and those of LoRA."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Put stored parameters in place.

        Raises:
            ProbeError: a parameter is missing, left over or of another shape.
        """
        own = self.trainable()
        odd = sorted(set(own) ^ set(state)) or [n for n in own if tuple(own[n].shape) != tuple(state[n].shape)]
        if odd:
            raise ProbeError(
                f"The stored weights do not belong to this decoder and recipe: {', '.join(odd[:3])}.",
                where=f"{OPTION} {self.text.spec}",
                hint="Use the decoder that the run was made with.",
            )
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(torch.from_numpy(np.ascontiguousarray(state[name])))

    def positions(self, example: Example) -> int:
        """Return how many positions of the decoder a clip with its text takes."""
        head = 0 if self.separator is None else 1
        return (
            combined_length(len(example.frames), self.recipe.projector.stride)
            + head
            + len(example.prompt)
            + len(example.target)
            + 1
        )

    def loss(self, examples: Sequence[Example]) -> tuple[Tensor, int]:
        """Return the cross entropy of a batch, summed over learnt tokens, and their number.

        Args:
            examples: clips with their answers.

        Returns:
            A scalar that carries gradients, and the number of tokens it is the sum over.
        """
        layout, logits = self._forward(examples)
        labels = layout.labels[:, -logits.shape[1] + 1 :]
        learnt = labels != IGNORE
        total = nn.functional.cross_entropy(logits[:, :-1][learnt].float(), labels[learnt], reduction="sum")
        return total, int(learnt.sum())

    @torch.no_grad()
    def answer_logits(self, example: Example) -> Tensor:
        """Return the logits around a clip's answer, float32 ``(places, vocabulary)``; the last two see all but the end."""
        return self._forward([example])[1][0].float()

    @torch.no_grad()
    def teacher_forced(self, examples: Sequence[Example]) -> list[str]:
        """Return what is most likely at each place of the answer when all of the answer before it is given."""
        with self._precision():
            layout, logits = self._forward(examples)
        labels = layout.labels[:, -logits.shape[1] + 1 :]
        best = logits[:, :-1].argmax(dim=-1)
        return [self._said(row[label != IGNORE].tolist()) for row, label in zip(best, labels, strict=True)]

    @torch.no_grad()
    def write(self, examples: Sequence[Example], *, max_new_tokens: int, repetition_penalty: float) -> list[Written]:
        """Write about clips, always the most likely token.

        Args:
            examples: clips; their answers are not looked at.
            max_new_tokens: at most so many tokens each.
            repetition_penalty: divides the logits of tokens already written; 1 changes nothing.
        """
        layout = self._layout(examples, answers=False)
        from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

        # Told the penalty itself, generate() leaves out as many written tokens as a clip has padding.
        penalty = RepetitionPenaltyLogitsProcessor(repetition_penalty) if repetition_penalty != 1.0 else None
        with quiet_transformers(), self._precision():
            found = self.decoder.generate(
                inputs_embeds=self._embedded(examples, layout),
                attention_mask=layout.attention,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                logits_processor=LogitsProcessorList([] if penalty is None else [penalty]),
                eos_token_id=self.text.end,
                pad_token_id=self.text.pad,
                use_cache=True,
            )
        written: list[Written] = []
        for row in found.tolist():
            finished = self.text.end in row
            count = row.index(self.text.end) if finished else len(row)
            written.append(Written(self._said(row[:count]), count, finished))
        return written

    @torch.no_grad()
    def label_scores(
        self, example: Example, labels: Sequence[tuple[int, ...]], *, budget: int = 8192
    ) -> NDArray[np.float64]:
        """Return the log-likelihood of each label, its end token included, as the answer about a clip.

        All labels pass through the decoder behind one copy of the audio, where none sees another; with a decoder whose
        layers are more than full attention each label passes behind a copy of its own.

        Args:
            example: the clip; its answer is not looked at.
            labels: token ids of each label.
            budget: positions that pass through the decoder at once.

        Returns:
            ``(labels,)``, each 0 at most.
        """
        if not self._packs_labels():
            return self._apart(example, labels, budget)
        layout = self._layout([example], answers=False)
        with self._precision():
            prefix = self._embedded([example], layout)[0]
        room = max(1, budget - len(prefix))
        scores: list[float] = []
        first = 0
        while first < len(labels):
            last, used = first, 0
            while last < len(labels) and (last == first or used + len(labels[last]) <= room):
                used += len(labels[last])
                last += 1
            with self._precision():
                scores += self._packed(prefix, labels[first:last])
            first = last
        return np.asarray(scores)

    def _precision(self) -> AbstractContextManager[None]:
        """Return the context in which text is written: as precise as training was, float32 where a CPU lacks fp16."""
        precision, device = self.recipe.training.precision, self.device.type
        if precision == "fp32" or (precision == "fp16" and device == "cpu"):
            return nullcontext()
        return torch.autocast(device, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)

    def _said(self, ids: Sequence[int]) -> str:
        """Return text without the separator, which some vocabularies do not count among the special tokens."""
        return self.text.decode([token for token in ids if token != self.separator or token == self.text.end])

    def _packs_labels(self) -> bool:
        """Tell whether a mask alone keeps labels of one sequence apart: attention to everything, positions as told."""
        config = self.text.model.config.get_text_config()
        kinds = getattr(config, "layer_types", None) or ("full_attention",)
        whole = set(kinds) == {"full_attention"} and not getattr(config, "sliding_window", None)
        return whole and self._takes_positions and config.model_type in _PACKING

    @torch.no_grad()
    def _apart(self, example: Example, labels: Sequence[tuple[int, ...]], budget: int) -> NDArray[np.float64]:
        examples = [replace(example, target=label) for label in labels]
        longest = max(self.positions(one) for one in examples)
        step = max(1, budget // longest)
        scores: list[float] = []
        for first in range(0, len(examples), step):
            with self._precision():
                layout, logits = self._forward(examples[first : first + step])
            wanted = layout.labels[:, -logits.shape[1] + 1 :]
            predicted = torch.log_softmax(logits[:, :-1].float(), dim=-1)
            for row, target in enumerate(wanted):
                places = torch.nonzero(target != IGNORE).flatten()[0 if self.separator is None else 1 :]
                scores.append(float(predicted[row, places, target[places]].double().sum()))
        return np.asarray(scores)

    def _packed(self, prefix: Tensor, labels: Sequence[tuple[int, ...]]) -> list[float]:
        n_prefix, device = len(prefix), self.device
        lengths = [len(label) for label in labels]
        ids = torch.tensor([token for label in labels for token in label], device=device, dtype=torch.long)
        embeds = torch.cat([prefix, self._table(ids).to(prefix.dtype)])[None]
        owner = torch.repeat_interleave(torch.arange(len(labels), device=device), torch.tensor(lengths, device=device))
        place = torch.cat([torch.arange(n, device=device) for n in lengths]) if len(ids) else ids
        length = n_prefix + len(ids)
        allowed = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        allowed[n_prefix:, n_prefix:] &= owner[:, None] == owner[None, :]
        mask = allowed[None, None]
        if getattr(self.text.model.config, "_attn_implementation", None) != "sdpa":  # others add a mask to the scores
            zeros = torch.zeros(1, 1, length, length, dtype=embeds.dtype, device=device)
            mask = zeros.masked_fill_(~mask, torch.finfo(embeds.dtype).min)
        positions = torch.cat([torch.arange(n_prefix, device=device), n_prefix + place])[None]
        # Only the last position of the audio and prompt and the labels' own predict anything.
        options: dict[str, Any] = {"logits_to_keep": len(ids) + 1} if self._limits_logits else {}
        logits = self.decoder(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False, **options
        ).logits[0, -(len(ids) + 1) :]
        predicted = torch.log_softmax(logits.float(), dim=-1)
        scores, start = [], 1
        for label, n in zip(labels, lengths, strict=True):
            rows = [0, *range(start, start + n)]
            wanted = torch.tensor([*label, self.text.end], device=device)
            scores.append(float(predicted[rows, wanted].double().sum()))
            start += n
        return scores

    def _forward(self, examples: Sequence[Example]) -> tuple[Layout, Tensor]:
        layout = self._layout(examples, answers=True)
        self._clips.numbers = [example.number for example in examples]
        self._clips.real = layout.attention.bool()
        options: dict[str, Any] = {"logits_to_keep": layout.keep} if self._limits_logits else {}
        if self._takes_positions:
            options["position_ids"] = layout.positions
        found = self.decoder(
            inputs_embeds=self._embedded(examples, layout),
            attention_mask=layout.attention,
            use_cache=False,
            **options,
        ).logits
        return layout, found[:, -layout.keep :]

    def _layout(self, examples: Sequence[Example], *, answers: bool) -> Layout:
        stride = self.recipe.projector.stride
        return arrange(
            [combined_length(len(example.frames), stride) for example in examples],
            [example.prompt for example in examples],
            [example.target for example in examples] if answers else None,
            end=self.text.end,
            separator=self.separator,
            gaps=self.gaps,
        ).to(self.device)

    def _embedded(self, examples: Sequence[Example], layout: Layout) -> Tensor:
        """Return the decoder's input ``(batch, length, hidden)``: projected frames and embedded tokens in their places."""
        projector = self.recipe.projector
        rows = [combine(example.frames, projector.stride, projector.combine) for example in examples]
        frames = torch.from_numpy(np.concatenate(rows)).to(self.device)
        tokens = self._table(layout.ids) * layout.text[..., None]
        audio = self.audio_projector(frames).to(tokens.dtype)
        return tokens.flatten(0, 1).index_copy(0, layout.audio, audio).view_as(tokens)

    def _table(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.text.model.get_input_embeddings()(ids)
        return embedded


def _checkpoint_activations(model: Any) -> None:
    """Compute activations again on the way back instead of keeping them; the method's name depends on the release."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _adapted(decoder: Decoder, recipe: Recipe, clips: Clips) -> Any:
    """Return the decoder as it is trained: with LoRA on all its linear layers but the head, or as it is."""
    if recipe.lora is None:
        return decoder.model
    from peft import LoraConfig, get_peft_model

    try:
        with quiet_transformers():
            adapted = get_peft_model(
                decoder.model,
                LoraConfig(
                    r=recipe.lora.r,
                    lora_alpha=recipe.lora.alpha,
                    lora_dropout=recipe.lora.dropout,
                    target_modules="all-linear",
                    bias="none",
                    task_type="CAUSAL_LM",
                ),
            )
    except Exception as error:  # PEFT's own, ValueError, AssertionError: all say that it does not know these layers
        raise ProbeError(
            f"LoRA cannot be added to this decoder: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            where=f"{OPTION} {decoder.spec}",
            hint="Use another decoder, or a recipe without [lora].",
        ) from error
    own_dropout(adapted, clips)
    return adapted
