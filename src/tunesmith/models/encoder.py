"""Sentence encoders: texts to vectors whose angle says how alike the texts are.

Computed in float32 always: an index of vectors outlives the machine that made them, and must fit those of the next.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import AutoModel

from tunesmith.errors import ModelError
from tunesmith.models.embedded import ENCODERS, embedded_file
from tunesmith.models.folder import check_folder
from tunesmith.models.quiet import quiet_libraries
from tunesmith.models.weights import damaged_weights
from tunesmith.record.hashing import sha256_file

#: Tokens that are computed at once, padding included: little memory, and others get their turn soon.
_PASS_TOKENS = 2048

Vectors = NDArray[np.float32]


@dataclass(slots=True)
class Encoder:
    """An encoder in memory. One thread at a time computes; any thread may count tokens.

    Attributes:
        name: what it is called.
        dimensions: length of its vectors.
        max_tokens: the longest text that it was made for, with the marks of its beginning and end.
        vocabulary: how many tokens it knows.
    """

    name: str
    dimensions: int
    max_tokens: int
    vocabulary: int
    _model: Any
    _tokenizer: Any
    _marks: tuple[int, int]

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of texts, with the marks of beginning and end."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def marked(self, token_ids: Sequence[int]) -> list[int]:
        """Return tokens with the marks of beginning and end, which they may have already."""
        begin, end = self._marks
        if len(token_ids) >= 2 and token_ids[0] == begin and token_ids[-1] == end:
            return list(token_ids)
        return [begin, *token_ids, end]

    def passes(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Vectors]]:
        """Compute vectors of length 1, some at a time: the places of the rows, and their vectors.

        Args:
            rows: marked tokens, at least one row.
        """
        # Rows of like length together: little is padded.
        order = sorted(range(len(rows)), key=lambda place: -len(rows[place]))
        while order:
            count = max(1, _PASS_TOKENS // len(rows[order[0]]))
            places, order = order[:count], order[count:]
            yield places, self._vectors([rows[place] for place in places])

    def _vectors(self, rows: Sequence[Sequence[int]]) -> Vectors:
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self._model.device)
        is_token = torch.tensor(
            [[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self._model.device
        )
        with torch.inference_mode():
            states = self._model(input_ids=ids, attention_mask=is_token).last_hidden_state
            weights = is_token.unsqueeze(-1).to(states.dtype)
            means = (states * weights).sum(1) / weights.sum(1)
            return cast(Vectors, torch.nn.functional.normalize(means, dim=1).cpu().numpy())


def load_encoder(name: str, folder: Path, device: torch.device | str = "cpu") -> Encoder:
    """Load an encoder from a folder in the form of sentence-transformers. No network, no code of its own, no pickles.

    Raises:
        ModelError: files are missing or damaged, or it isn't an encoder that averages its tokens' states.
    """
    config = check_folder(folder)
    try:
        with quiet_libraries():
            model, found = AutoModel.from_pretrained(
                folder,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                add_pooling_layer=False,
            )
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        settings = json.loads((folder / "sentence_bert_config.json").read_bytes())
        pooling = json.loads((folder / "1_Pooling" / "config.json").read_bytes())
    except SafetensorError as error:
        raise damaged_weights(folder, error) from error
    # The tokenizers library raises plain Exception for a damaged tokenizer.json.
    except Exception as error:
        raise _unusable(folder, f"it can't be loaded ({type(error).__name__}: {error})") from error
    if found["missing_keys"]:
        raise _unusable(folder, f"weights are missing, such as {min(found['missing_keys'])}")
    if not pooling.get("pooling_mode_mean_tokens"):
        raise _unusable(folder, "its vectors aren't the mean of its tokens' states")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    begin, end = tokenizer.encode("").ids
    model.requires_grad_(False)
    model.eval()
    return Encoder(
        name=name,
        dimensions=int(config["hidden_size"]),
        max_tokens=int(settings["max_seq_length"]),
        vocabulary=int(config["vocab_size"]),
        _model=model.to(device),
        _tokenizer=tokenizer,
        _marks=(begin, end),
    )


def load_embedded_encoder(name: str) -> Encoder:
    """Load an encoder that an installed package brings.

    Raises:
        ModelError: its package isn't installed, its weights aren't those that are known, or see `load_encoder`.
    """
    weights = embedded_file(ENCODERS[name])
    if sha256_file(weights) != ENCODERS[name].sha256:
        raise _unusable(weights.parent, "its weights aren't those that were published")
    return load_encoder(name, weights.parent)


def _unusable(folder: Path, why: str) -> ModelError:
    return ModelError(
        f"This can't be used as a sentence encoder: {why}.",
        where=str(folder),
        fix="Install its package again.",
        code="unsupported_model",
    )
