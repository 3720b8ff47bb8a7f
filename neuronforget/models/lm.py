"""A language model with its tokenizer, loaded and checked; both stay ordinary Hugging Face objects."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Batch, Corpus, Encoded, batches, collate, encode
from neuronforget.errors import InputError, reason
from neuronforget.models.kinds import check_kind, check_tokens, check_trainable, check_unwrapped, rows_of_embedding
from neuronforget.models.maps import Site
from neuronforget.models.sites import Experts, check_sites, find_sites, meant_sites
from neuronforget.runs import check_folder
from neuronforget.runs.ranks import own_device


@dataclass(frozen=True, eq=False)
class LM:
    """A Hugging Face causal language model with its tokenizer; both stay the caller's own objects."""

    model: Any
    tokenizer: Any = None
    sites_override: tuple[Site, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.model, torch.nn.Module):
            kind = type(self.model).__name__
            raise InputError(f"LM holds a model of transformers, found {kind}: nf.load(path) loads one from its folder")

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """The layers that have MLP neurons, lowest first. Raises InputError where there are none."""
        check_kind(self.model)
        found = check_sites(self.model, self.sites_override or ()) or find_sites(self.model)
        check_tokens(self.model, self.tokenizer)
        return found

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter by name as the model is now (an edit may have added a bias); tied ones once."""
        return dict(self.model.named_parameters())

    @property
    def shape(self) -> tuple[int, int]:
        """Number of layers with neurons, and neurons in each."""
        return len(self.sites), self.sites[0].d_mlp

    @property
    def device(self) -> torch.device:
        """Where the input embedding lies."""
        return self.model.get_input_embeddings().weight.device

    @property
    def max_length(self) -> int | None:
        """Longest sequence in tokens, where the configuration states one."""
        config = self.model.config.get_text_config()
        return getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)  # MPT's

    @property
    def known(self) -> int | None:
        """Number of tokens that the model embeds, unless this process holds no part of the embedding."""
        return rows_of_embedding(self.model) or None

    @property
    def pad_id(self) -> int:
        """Token for right padding: it is masked, so its value never matters, if only the model embeds it."""
        found = (getattr(self.tokenizer, name, None) for name in ("pad_token_id", "eos_token_id"))
        return next((token for token in found if token is not None and token < (self.known or 0)), 0)

    @checks_kinds
    def encode(self, corpus: Corpus, *, first: int = 0) -> list[Encoded]:
        """Tokenise every example, counted from `first`. Raises InputError for one that does not fit the model."""
        return encode(corpus, self.tokenizer, self.max_length, known=self.known, first=first)

    @checks_kinds
    def batches(self, rows: Corpus | Sequence[Encoded], batch_size: int) -> Iterator[Batch]:
        """Yield batches where the model's input lies, of like length, longest first."""
        coded = self.encode(rows) if isinstance(rows, Corpus) else rows
        return batches(coded, batch_size, self.pad_id, self.device)

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """Return one batch of all `rows`, where the model's input lies."""
        return collate(rows, self.pad_id, self.device)

    @property
    def name(self) -> str:
        """Folder or hub id that the model came from, else its class."""
        return getattr(self.model.config, "_name_or_path", "") or type(self.model).__name__

    def digest(self) -> str:
        """Return a 16-digit hash of every weight: work kept for one model is not continued on another."""
        total = hashlib.sha256()
        for name, parameter in self.parameters.items():
            total.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
            total.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return total.hexdigest()[:16]

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.model.parameters())
        layers, width = self.shape
        return f"LM({self.name!r}, {count / 1e6:.1f}M parameters, {layers} layers of {width} neurons)"

    def save(self, folder: str | Path) -> None:
        """Write an ordinary Hugging Face checkpoint folder. Raises InputError where that is a file."""
        check_folder(folder)
        with without_bars():
            self.model.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)


@checks_kinds
def load(
    path: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: str | torch.device = "cpu",
    sites: tuple[Site, ...] | None = None,
    experts: Experts | None = None,
) -> LM:
    """Load a checkpoint folder or hub id in its stored dtype, onto `device`.

    `sites` names the neurons where structure does not tell them (`LM(..., sites_override=)`). `experts` reads those of
    routed experts, not of dense MLPs (None: where more layers have them; see `open_experts`), or "shared": of the MLPs
    that all tokens share beside routed experts. In a launch of several processes `cuda` is each process' own card.
    Raises InputError for a device that is not there, a missing or damaged model, one without such neurons or weights
    (transformers would draw them at random), and NaN or infinite weights.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    local, there = Path(path), own_device(device)
    if not local.is_dir() and (local.is_absolute() or str(path).startswith(".") or local.exists()):
        raise InputError(f"no model folder at {path}")
    if local.is_dir() and not (local / "config.json").is_file():
        raise InputError(f"{path} is not a checkpoint folder: it has no config.json")
    try:
        model, report = load_plain(AutoModelForCausalLM, path, dtype=dtype, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # a damaged folder raises whatever its parsers do
        hint = "" if local.is_dir() else " (a local model: give the path of its folder)"
        raise InputError(f"cannot load {path}: {reason(error)}{hint}") from error
    if missing := sorted(report["missing_keys"]):
        raise InputError(f"{path} lacks {len(missing)} weights of a {type(model).__name__} (first: {missing[0]})")
    lm = LM(model.to(there).eval(), tokenizer, meant_sites(model, experts, sites))
    check_finite(lm)
    _ = lm.sites  # a model without neurons is refused here, not after an hour
    return lm


def load_plain(kind: Any, path: str | Path, *, dtype: torch.dtype | str = "auto", **settings: Any) -> Any:
    """Return what transformers itself makes of a checkpoint; only a download shows a progress bar."""
    with without_bars():
        return kind.from_pretrained(path, dtype=dtype, **settings)


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep transformers from drawing bars of its own within the block; those of the hub's downloads stay."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    shown, downloads = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()  # the hub's too
    if downloads:
        enable_progress_bars()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
        if not downloads:
            disable_progress_bars()


def check_finite(lm: LM) -> None:
    """Raise InputError if a parameter holds NaN or infinity: every figure from it would be one too."""
    for name, parameter in lm.parameters.items():
        if bad := int((~torch.isfinite(parameter)).sum()):
            raise InputError(f"{lm.name}: {bad} values of {name} are NaN or infinite: the checkpoint is damaged")


def shared_twin(model: nn.Module) -> Any:
    """Return a module tree of its own whose every tensor is the model's: an edit is seen by both."""
    return copy.deepcopy(model, {id(t): t for t in chain(model.parameters(), model.buffers())})


def check_whole(lm: LM) -> None:
    """Raise InputError unless this process holds every weight, on whatever devices: neurons are not read in parts."""
    check_unwrapped(lm.model)
    kinds = {kind.__name__ for module in lm.model.modules() for kind in type(module).__mro__}
    parameters = list(lm.model.parameters())
    sharded = {"FullyShardedDataParallel", "FSDPModule"} & kinds or any(
        type(p).__name__ == "DTensor" or hasattr(p, "ds_id") for p in parameters
    )
    if sharded:
        raise InputError(
            "the model is sharded over processes (FSDP, DeepSpeed ZeRO or tensor parallel), none of which holds a "
            "whole neuron: load it whole in each process, or over several devices of one with device_map"
        )
    if any(p.device.type == "meta" for p in parameters):
        raise InputError("parts of the model are offloaded to CPU or disk: load it whole, or in a smaller dtype")
    check_trainable(parameters)


@contextmanager
def activations_only(lm: LM) -> Iterator[None]:
    """Track gradients through activations and none for weights, in eval mode (so no checkpointing, no dropout)."""
    check_whole(lm)
    with frozen(lm), torch.enable_grad():
        lm.model.get_input_embeddings().requires_grad_(True)
        yield


@contextmanager
def frozen(lm: LM) -> Iterator[None]:
    """Eval mode and no gradients for the model's weights; every flag and mode comes back."""
    wanted = [(p, p.requires_grad) for p in lm.model.parameters()]
    modes = [(module, module.training) for module in lm.model.modules()]
    lm.model.requires_grad_(False).eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)


@contextmanager
def swapped(parameters: Mapping[str, nn.Parameter], values: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Within the block the parameters hold `values`: nothing is copied, and a graph built before it stays valid."""
    own = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = values[name]
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = own[name]
