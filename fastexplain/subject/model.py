"""The subject: a Hugging Face causal language model, run with its neurons in view."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fastexplain.errors import SubjectError, UsageError
from fastexplain.kernels.summary import Preactivations
from fastexplain.models.loading import find_trunk, load_pretrained
from fastexplain.models.onednn import OneDnnLinear
from fastexplain.models.smollm2 import smollm2_directory, smollm2_version
from fastexplain.records import NeuronId
from fastexplain.subject import compilation
from fastexplain.subject.activations import Activations, Text, activations_of
from fastexplain.subject.compilation import CompiledLayer
from fastexplain.subject.fingerprint import fingerprint
from fastexplain.subject.fusion import FusedMlp, by_position, fuse, replaced
from fastexplain.subject.interception import intercepted
from fastexplain.subject.lead import lead_of
from fastexplain.subject.mlps import Mlp, find_mlps
from fastexplain.text.vocabulary import texts, token_bytes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, eq=False)
class Subject:
    """A model whose neurons are explained; `load_subject` makes one from a name.

    Attributes:
        name: what it was asked for by, such as `smollm2`, a hub id or a path.
        revision: the hub's commit or the embedded model's version; None for local paths.
        model: in evaluation mode, without gradients.
        tokenizer: the model's own.
        lead: token ids that go before every excerpt: what the tokenizer puts before a text.
        mlps: where each layer's neurons are, from the lowest layer up.
    """

    name: str
    revision: str | None
    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    lead: tuple[int, ...]
    mlps: tuple[Mlp, ...] = field(repr=False)

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str | None = None,
        revision: str | None = None,
        lead: Sequence[int] | None = None,
    ) -> Subject:
        """Make a subject of a loaded model, which is put in evaluation mode, without gradients.

        Without a `name` it has that by which transformers loaded the model, or else its class's.
        `lead` are the token ids before every excerpt; by default those that the tokenizer puts
        before a text.
        Raises SubjectError if its MLPs can't be found, its weights are in a dtype that the kernels
        don't take, or its lead is no part of its vocabulary or can't be told.
        """
        model.eval().requires_grad_(False)
        name = name or model.name_or_path or type(model).__name__
        if model.dtype not in DTYPES.values():
            raise SubjectError(
                f"the weights of '{name}' are {str(model.dtype).removeprefix('torch.')}; load them "
                f"in one of {', '.join(DTYPES)}"
            )
        front = lead_of(tokenizer) if lead is None else tuple(lead)
        subject = cls(name, revision, model, tokenizer, front, find_mlps(model))
        outside = [token for token in front if not 0 <= token < subject.vocabulary_size]
        if outside:
            raise SubjectError(
                f"token {outside[0]} goes before every text, but '{name}' has embeddings of "
                f"{subject.vocabulary_size:,} tokens; use the model's own tokenizer, or resize them"
            )
        return subject

    @property
    def widths(self) -> tuple[int, ...]:
        """Neurons per layer."""
        return tuple(mlp.width for mlp in self.mlps)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def with_lead(self, token_ids: Tensor) -> Tensor:
        """Excerpts int `[excerpts, tokens]` with the lead before each, int64, on the device."""
        ids = token_ids.to(self.device, torch.long)
        if self.lead:
            ids = torch.cat([ids.new_tensor(self.lead).expand(len(ids), -1), ids], dim=1)
        return ids

    def trunk(
        self,
        token_ids: Tensor,
        visit: Callable[[int, Tensor], None] | None = None,
        layers: Sequence[int] | None = None,
        *,
        fold: Callable[[int, Tensor, Preactivations | None], None] | None = None,
        compiled: bool = False,
    ) -> None:
        """Run excerpts through the trunk and show each layer's activations as they appear.

        `token_ids` is int `[excerpts, tokens]`, on any device; the lead is added here. For each of
        `layers` (all by default), from the lowest up, `visit(layer, acts)` gets the activations
        `[excerpts, lead + tokens, neurons]`, contiguous, in the model's dtype and on its device, as
        the model's own modules compute them. They may be memory that the model goes on to use:
        don't change them. Nothing is computed above the highest layer's activations.

        With `fold` in place of `visit` an MLP's elementwise part is left to it, where that is one
        of the kernels': `fold(layer, acts, pre)` must fill `acts` with the activations of `pre`,
        whose tensors are `[excerpts, lead + tokens, W]`; the gate may lie in the same memory, as
        `kernels.capture` takes it. Where `pre` is None, `acts` are the activations, as above. The
        linear layers go to oneDNN on the CPU, so results agree with those of `visit` to rounding.

        Nothing here waits for a GPU but transformers' own look for packed sequences, once a batch.

        With `compiled` the layers below the highest wanted one run compiled, which `fold` alone can
        follow: once for all that are alike, and again for every size of batch.

        Hooks on the model's modules take part, and so do forwards that were put in place of its
        own. An MLP that has one within it is read as by `visit`, and a layer is not compiled.

        Raises UsageError for a layer that does not exist or arguments that exclude each other,
        SubjectError if the model does not run a layer or can't be compiled; what `visit` or `fold`
        raises passes through.
        """
        if (fold is None and compiled) or (fold is not None and visit is not None):
            raise UsageError("trunk takes visit or fold, and compiled with fold alone")
        wanted = sorted(set(range(len(self.mlps)) if layers is None else layers))
        if not wanted:
            return
        if wanted[0] < 0 or wanted[-1] >= len(self.mlps):
            raise UsageError(
                f"layer {wanted[0] if wanted[0] < 0 else wanted[-1]} does not exist; "
                f"'{self.name}' has layers 0 to {len(self.mlps) - 1}"
            )
        ids = self.with_lead(token_ids)
        seen: list[int] = []

        def receive(layer: int, acts: Tensor, pre: Preactivations | None) -> None:
            if layer in seen:
                raise SubjectError(
                    f"{type(self.model).__name__} runs {self.mlps[layer].path} more than once a "
                    "text; such a model can't be captured"
                )
            seen.append(layer)
            if fold is not None:
                fold(layer, acts, pre)
            elif visit is not None:
                visit(layer, acts)

        fused = {layer: self._fused(layer) if fold else None for layer in wanted}
        with contextlib.ExitStack() as undo:
            undo.enter_context(self._watched(fused, tuple(ids.shape), receive))
            if compiled:  # the highest layer ends by an exception, and a hook would split others
                below = (
                    self._compiled[i] for i in range(wanted[-1]) if fused.get(i, True) is not None
                )
                whole = [each for each in below if not intercepted(each.layer)]
                undo.enter_context(compilation.compiled(whole))
            if fold is not None and self.device.type == "cpu":
                undo.enter_context(OneDnnLinear())
            undo.enter_context(torch.inference_mode())
            with contextlib.suppress(_StopError):
                find_trunk(self.model)(input_ids=ids, use_cache=False)
        if seen != wanted:
            raise SubjectError(
                f"{type(self.model).__name__} ran the MLPs of layers {seen} when asked for "
                f"{wanted}; its layers can't be captured from text alone"
            )

    @contextlib.contextmanager
    def _watched(
        self,
        fused: dict[int, FusedMlp | None],
        shape: tuple[int, ...],
        receive: Callable[[int, Tensor, Preactivations | None], None],
    ) -> Iterator[None]:
        """Have `receive` called with activations `[*shape, neurons]`, and the highest layer end it.

        Args:
            fused: by layer, its MLP's fused form, or None to see what its down projection gets.
        """

        def capture(layer: int, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            acts = by_position(inputs[0], shape, self.mlps[layer].path)
            if acts.shape[2] != self.mlps[layer].width:
                raise SubjectError(
                    f"{self.mlps[layer].path} has {acts.shape[2]} activations a token in place of "
                    f"{self.mlps[layer].width}; such a model can't be captured"
                )
            receive(layer, acts.contiguous(), None)

        def stop(*_: object) -> None:
            raise _StopError

        with contextlib.ExitStack() as undo:
            for layer, form in fused.items():
                mlp = self.mlps[layer]
                if form is None:
                    hook = mlp.down.register_forward_pre_hook(functools.partial(capture, layer))
                    undo.callback(hook.remove)
                else:
                    fill = functools.partial(receive, layer)
                    undo.enter_context(replaced(self.model, mlp.path, form, shape, fill))
            undo.callback(self.mlps[max(fused)].down.register_forward_pre_hook(stop).remove)
            yield

    def nonlinearities(self) -> list[str | None]:
        """Those that a sweep leaves to the kernels; None stands for MLPs that it only reads."""
        forms = map(self._fused, range(len(self.mlps)))
        names = (None if form is None else form.elementwise.nonlinearity for form in forms)
        return list(dict.fromkeys(names))

    def why_no_factors(self, layer: int) -> str | None:
        """Why a sweep can't tell f(gate) and up of a layer's neurons apart; None where it can."""
        form = self._fused(layer)
        if form is None:
            return "what is between the linear layers is not known, or a hook watches it"
        return None if form.elementwise.up else "there is no gate"

    def _fused(self, layer: int) -> FusedMlp | None:
        """An MLP's fused form; None where the elementwise part is not one of the kernels'.

        None also where someone's hook or forward would be passed over by it.
        """
        mlp = self.mlps[layer]
        module = self.model.get_submodule(mlp.path)
        own_forward = "forward" in vars(self.model.get_submodule(mlp.layer))
        if own_forward or intercepted(module):
            return None
        parts = list(module.children())
        if layer not in self._forms or self._forms[layer][0] != parts:
            self._forms[layer] = parts, fuse(self.model, mlp)
        return self._forms[layer][1]

    @functools.cached_property
    def _forms(self) -> dict[int, tuple[list[nn.Module], FusedMlp | None]]:
        """Fused forms by layer, each with the modules that its MLP had then."""
        return {}

    @functools.cached_property
    def _compiled(self) -> tuple[CompiledLayer, ...]:
        return tuple(CompiledLayer(self.model.get_submodule(mlp.layer)) for mlp in self.mlps)

    @property
    def vocabulary_size(self) -> int:
        """Token ids that the model takes: those below this."""
        return self.model.config.get_text_config().vocab_size

    @property
    def longest(self) -> int | None:
        """Tokens of a text that fit after the lead; None where the config does not say."""
        config = self.model.config.get_text_config()
        positions = getattr(config, "max_position_embeddings", None)
        return None if positions is None else positions - len(self.lead)

    def activations(
        self, text: Text, names: str | NeuronId | Iterable[str | NeuronId]
    ) -> Activations:
        """The activations of some neurons on a text, `values` float32 `[tokens, units]`.

        Row t is of the text's token t. The subject's lead is put before the text, as before a
        sweep's excerpts, and has no rows; token ids that begin with it have it already.
        The first token's values may be enormous where there is no lead: see `skip` of `sweep`.

        Args:
            text: a text, or the ids of its tokens as a list, an array or a tensor, `[tokens]` or
                `[1, tokens]`; of any length that the model takes. A special token that is written
                in a text is text.
            names: `5:131`, `5:*` for a layer, TransformerLens' names for these, or NeuronIds.

        Raises UsageError if one of them makes no sense to this subject.
        """
        return activations_of(self, text, names)

    def token_bytes(self) -> list[bytes]:
        """The bytes that each of the tokenizer's ids stands for; for showing tokens."""
        return token_bytes(self.tokenizer)

    def token_texts(self, tokens: Iterable[int]) -> list[str]:
        """Consecutive tokens as text, none empty; U+FFFD is a part of a character of later ones."""
        # A model may have more rows than its tokenizer tokens.
        known = self._vocabulary
        return texts(tokens, lambda token: known[token] if token < len(known) else b"")

    @functools.cached_property
    def _vocabulary(self) -> list[bytes]:
        return self.token_bytes()

    def fingerprint(self) -> str:
        """Tells models apart that have the same name: a hash of all weights."""
        return fingerprint(self.model)


class _StopError(Exception):
    """Ends the trunk once the highest layer was captured."""


def load_subject(
    name: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Subject:
    """Load a subject by `smollm2`, a hub id, a local directory or a path ending in `.gguf`.

    `device` is `cpu`, `cuda` (or `cuda:1`) or `mps`; by default the best that is there. `dtype` is
    `float32`, `bfloat16` or `float16`; by default float32 on the CPU and the checkpoint's own
    elsewhere. Weights are read from safetensors or GGUF only.

    Raises UsageError for an argument that makes no sense, SubjectError if the model can't be
    loaded or its MLPs can't be found.
    """
    place = choose_device(device)
    precision: torch.dtype | str
    if dtype is None:
        precision = torch.float32 if place.type == "cpu" else "auto"
    elif dtype in DTYPES:
        precision = DTYPES[dtype]
    else:
        raise UsageError(f"'{dtype}' is not a dtype; choose one of {', '.join(DTYPES)}")

    embedded = name == "smollm2"
    if embedded and revision is not None:
        raise UsageError("'smollm2' has no revisions; its version is that of its package")
    model, tokenizer, found = load_pretrained(
        str(smollm2_directory()) if embedded else name,
        device=place,
        dtype=precision,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    return Subject.from_model(
        model, tokenizer, name=name, revision=smollm2_version() if embedded else found
    )


def choose_device(name: str | None) -> torch.device:
    """The device of that name (`cpu`, `cuda`, `cuda:1` or `mps`), or the best there is.

    Raises UsageError for another name, SubjectError for a device that is not there.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or not (index.isdecimal() or name == kind):
        raise UsageError(f"'{name}' is not a device; choose one of cpu, cuda, mps")
    counts = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if int(index or 0) >= counts[kind]:
        there = ", ".join(kind for kind, count in counts.items() if count)
        raise SubjectError(f"there is no device '{name}' on this machine; it has: {there}")
    return torch.device(name)
