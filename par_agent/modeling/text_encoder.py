"""Text tokenizer (paper section 3.1, the "Text Tokenizer" box of Figure 2): an instruction becomes a few feature
vectors.

Three frozen encoders share one small interface, :class:`TextEncoder`:

* :class:`PhiTextEncoder`: Phi-2's last hidden state, as NOVA uses it, kept on disk per instruction so that Phi is
  loaded once per new sentence and never at inference.
* :class:`StoredTextEncoder`: features that were computed before, for the instructions of one policy checkpoint.
* :class:`HashTextEncoder`: one fixed random vector per word. No weights; enough where a handful of instructions only
  has to be told apart, as in the bundled small model.

All read the same of an instruction however it is spelled in Unicode and spaced (:func:`normalised`), refuse one that is
too long, and return only the rows that belong to words. Rows up to the full text length are filled by the transformer's
own padding embedding (NOVA's ``text_embed.weight``: row ``j`` of a short instruction is row ``j`` of that buffer).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from par_agent.errors import UserError
from par_agent.modeling.weights import read_tensors, write_tensors
from par_agent.utils.files import naming

PHI_WIDTH = 2560
"""Width of Phi-2's hidden state."""
PHI_LENGTH = 256
"""Longest instruction in tokens that NOVA was trained with; a longer one is refused."""


def normalised(instruction: str) -> str:
    """An instruction in Unicode's composed spelling (NFC), with single spaces between its words.

    >>> normalised(" push  the cafe\\u0301 cup ")
    'push the café cup'
    """
    return " ".join(unicodedata.normalize("NFC", instruction).split())


def words_of(instruction: str) -> list[str]:
    """An instruction's words in lower case, without punctuation; the same words are the same instruction.

    >>> words_of("Push the cube!")
    ['push', 'the', 'cube']
    """
    return re.findall(r"\w+", normalised(instruction).lower())


def _too_long(instruction: str, count: int, what: str, length: int) -> UserError:
    return UserError(
        f"the instruction {instruction!r} has {count} {what}; this model reads at most {length}: shorten it (what "
        "follows would be cut off, and instructions that differ there could not be told apart)"
    )


class TextEncoder(Protocol):
    """What the model needs from a text encoder."""

    dim: int
    """Numbers per feature vector."""
    length: int
    """Most feature vectors per instruction."""

    def encode(self, instruction: str) -> torch.Tensor:
        """Features of one instruction: (length_used, dim) float32 on the CPU, ``0 <= length_used <= length``.

        Raises:
            UserError: it is longer.
        """
        ...


class HashTextEncoder:
    """Frozen random word vectors: no weights, no downloads, the same on every machine.

    Each lower-cased word, punctuation stripped, maps to one vector of independent N(0, 1) numbers drawn from a
    generator that is seeded with the word's SHA-256. Word order survives in the order of the rows only.

    Args:
        dim: numbers per vector, at least 1.
        length: most words per instruction, at least 1.

    Raises:
        ValueError: ``dim`` or ``length`` is below 1.
    """

    def __init__(self, dim: int, length: int) -> None:
        if dim < 1 or length < 1:
            raise ValueError(f"HashTextEncoder needs dim >= 1 and length >= 1; got dim={dim}, length={length}")
        self.dim = dim
        self.length = length

    def encode(self, instruction: str) -> torch.Tensor:
        """Features of one instruction: (length_used, dim) float32; (0, dim) where it has no words.

        Raises:
            UserError: it has more words than ``length``.
        """
        words = words_of(instruction)
        if len(words) > self.length:
            raise _too_long(instruction, len(words), "words", self.length)
        if not words:
            return torch.zeros(0, self.dim, dtype=torch.float32)
        return torch.stack([self._word_vector(word) for word in words])

    def _word_vector(self, word: str) -> torch.Tensor:
        # RandomState's stream is frozen by numpy's compatibility policy; torch's and default_rng's are not.
        seed = np.frombuffer(hashlib.sha256(word.encode()).digest(), dtype="<u4")
        return torch.from_numpy(np.random.RandomState(seed).standard_normal(self.dim).astype(np.float32))


class StoredTextEncoder:
    """Features of a few known instructions; Phi-2, which computed them, is not needed any more.

    Args:
        features: (length_used, dim) float32 features by instruction.
        dim: numbers per vector.
        length: most vectors per instruction.

    Raises:
        ValueError: features of another width, or of more vectors.
    """

    def __init__(self, features: dict[str, torch.Tensor], dim: int, length: int) -> None:
        for instruction, value in features.items():
            if value.ndim != 2 or value.shape[1] != dim or len(value) > length:
                raise ValueError(
                    f"the stored features of {instruction!r} have shape {tuple(value.shape)}; expected at most "
                    f"{length} rows of {dim} numbers"
                )
            if not value.is_floating_point() or not value.isfinite().all():
                raise ValueError(f"the stored features of {instruction!r} are {value.dtype}, NaN or infinite")
        self.features = {normalised(instruction): value.float() for instruction, value in features.items()}
        self.dim = dim
        self.length = length

    @classmethod
    def load(cls, path: Path, dim: int, length: int) -> StoredTextEncoder:
        """Reads a safetensors file whose tensors are named after their instructions.

        Raises:
            UserError: the file is missing, damaged, or does not fit the model.
        """
        features = read_tensors(path)
        with naming(path):
            return cls(features, dim, length)

    def save(self, path: Path) -> None:
        """Writes what :meth:`load` reads, atomically."""
        write_tensors(path, self.features)

    def encode(self, instruction: str) -> torch.Tensor:
        """Features of one instruction: (length_used, dim) float32.

        Raises:
            UserError: it is not stored; the message lists those that are.
        """
        if normalised(instruction) not in self.features:
            known = "; ".join(map(repr, sorted(self.features))) or "none"
            raise UserError(
                f"no text features are stored for the instruction {instruction!r}; stored: {known}. Add it with "
                "--instructions when the checkpoint is made by `par-agent import-nova`"
            )
        return self.features[normalised(instruction)]


class PhiTextEncoder:
    """Phi-2's last hidden state per token, with a cache on disk.

    Phi itself (2.8 billion parameters) is loaded by the first instruction that the cache does not hold, and not before.

    Args:
        model: a NOVA folder with ``text_encoder`` and ``tokenizer`` inside, a plain Phi folder, or a model hub name
            such as ``microsoft/phi-2``. None: only cached instructions can be encoded.
        cache: folder of ``<hash>.safetensors`` files, one per instruction. None: nothing is kept.
        model_id: name under which features are cached, ``phi-2`` unless told. Two different text encoders that share
            a cache folder need different names.
        length: most tokens per instruction.
        device: where Phi runs. Results always come back on the CPU.

    Raises:
        UserError: neither a model nor a cache was given.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        cache: str | Path | None = None,
        model_id: str = "phi-2",
        dim: int = PHI_WIDTH,
        length: int = PHI_LENGTH,
        device: str | torch.device = "cpu",
    ) -> None:
        if model is None and cache is None:
            raise UserError(
                "PhiTextEncoder needs a Phi folder or name (model), a folder of cached features (cache), or both"
            )
        self.dim = dim
        self.length = length
        self._model = model
        self._cache = None if cache is None else Path(cache)
        self._model_id = model_id
        self._device = torch.device(device)
        self._loaded: tuple[Any, Any] | None = None

    def encode(self, instruction: str) -> torch.Tensor:
        """Features of one instruction: (length_used, dim) float32 on the CPU; (0, dim) for the empty one (NOVA's null
        prompt).

        Raises:
            UserError: the instruction has more tokens than ``length``; it is not cached and no model was given;
                ``transformers`` is not installed; the cached file or Phi's features have another width than ``dim``.
        """
        instruction = normalised(instruction)
        if not instruction:
            return torch.zeros(0, self.dim, dtype=torch.float32)
        path = None if self._cache is None else self._cache / f"{self._key(instruction)}.safetensors"
        if path is not None and path.exists():
            advice = "delete it and encode again"
            return self._checked(read_tensors(path, advice).get("features"), str(path), advice)
        features = self._run_phi(instruction)
        if path is not None:
            write_tensors(path, {"features": features}, {"model_id": self._model_id, "instruction": instruction})
        return features

    def _key(self, instruction: str) -> str:
        return hashlib.sha256(f"{self._model_id}\n{self.length}\n{instruction}".encode()).hexdigest()[:32]

    def _run_phi(self, instruction: str) -> torch.Tensor:
        if self._model is None:
            raise UserError(
                f"the text features of {instruction!r} are not cached in {self._cache} and no Phi model was given; "
                f"pass model='microsoft/phi-2' (or a NOVA folder) once, then they are"
            )
        tokenizer, phi = self._load()
        ids = tokenizer(instruction, return_tensors="pt")["input_ids"]
        if ids.shape[1] > self.length:
            raise _too_long(instruction, ids.shape[1], "tokens", self.length)
        with torch.inference_mode():
            hidden = phi(input_ids=ids.to(self._device), use_cache=False).last_hidden_state
        return self._checked(hidden[0].cpu().clone(), f"Phi in {self._model} for {instruction!r}", "download it again")

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            try:
                from transformers import AutoTokenizer, PhiModel
            except ImportError:
                raise UserError(
                    "Phi-2 needs the package transformers, which is not installed: pip install 'par-agent[nova]'"
                ) from None
            from safetensors import SafetensorError

            root = Path(str(self._model))
            nova = (root / "text_encoder").is_dir()
            try:
                tokenizer = AutoTokenizer.from_pretrained(str(root / "tokenizer" if nova else self._model))
                # use_safetensors refuses pickled weights instead of unpickling them.
                loaded: Any = PhiModel.from_pretrained(
                    str(root / "text_encoder" if nova else self._model), use_safetensors=True, output_loading_info=True
                )
            except (OSError, ValueError, RuntimeError, SafetensorError) as error:
                raise UserError(f"cannot load Phi from {self._model}: {error}") from error
            phi, found = loaded
            if missing := sorted(found["missing_keys"]):
                raise UserError(f"the weights of Phi in {self._model} lack {', '.join(missing)}")
            self._loaded = tokenizer, phi.float().to(self._device).eval()
        return self._loaded

    def _checked(self, features: torch.Tensor | None, origin: str, advice: str) -> torch.Tensor:
        if features is None or not features.is_floating_point():
            raise UserError(f"{origin} holds no text features; {advice}")
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise UserError(
                f"{origin} gives text features of shape {tuple(features.shape)}; expected (tokens, {self.dim})"
            )
        if not features.isfinite().all():
            raise UserError(f"{origin} gives text features that are NaN or infinite; {advice}")
        return features.float()
