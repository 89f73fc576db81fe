"""The language model inside a model for text and images: config.json and tensors of a folder in, those of its
text part out.

Such folders keep the language model's settings under ``text_config`` and its tensors under a prefix that has
changed over time. What is about images is left out by its own names only: any other tensor stays, so that a
strange one is still an error.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nanollama.errors import FormatError
from nanollama.formats.strict_json import Json
from nanollama.model.quantized import StoredTensor


@dataclass(frozen=True, slots=True)
class _Wrapper:
    """A model type around a language model. ``text_type`` is that one's where the file does not say it, and
    ``defaults`` are settings that files leave out where they are those of the model's first release.
    """

    text_type: str
    defaults: Mapping[str, Any] = field(default_factory=dict)


_WRAPPERS: Mapping[str, _Wrapper] = {
    "gemma3": _Wrapper(
        "gemma3_text",
        {
            "vocab_size": 262208,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
        },
    ),
    "mistral3": _Wrapper("mistral"),
}
"""Model type -> what is known of the language model inside."""

_OF_THE_WHOLE = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "quantization_config",
    "compression_config",
    "tie_word_embeddings",
)
"""What the outer object states about the language model. transformers ties by it, not by the inner one."""

_TEXT = re.compile(r"(?:language_model\.(?=model\.|lm_head\.)|model\.language_model\.)")
_IMAGES = re.compile(r"(?:model\.)?(?:vision_tower|vision_model|multi_modal_projector)\.")


def text_config(config: Json) -> Json:
    """The settings of the language model: ``config`` itself, unless that is around one.

    Raises:
        FormatError: there is no language model's configuration in it.
    """
    wrapper = _wrapper(config)
    if wrapper is None:
        return config
    inner = config.get("text_config")
    if not isinstance(inner, dict):
        found = "missing" if inner is None else repr(inner)[:60]
        raise FormatError(
            f"text_config in config.json is {found}; expected an object, the settings of the language model"
        )
    own = {key: value for key, value in inner.items() if value is not None and key != "tie_word_embeddings"}
    whole = {key: config[key] for key in _OF_THE_WHOLE if config.get(key) is not None}
    return {"model_type": wrapper.text_type, **wrapper.defaults, **own, **whole}


def text_tensors(
    config: Json, tensors: Mapping[str, StoredTensor]
) -> tuple[Mapping[str, StoredTensor], str | None]:
    """The language model's tensors under its own names, and a sentence if any are about images.

    ``config`` is the whole config.json. Raises FormatError where two tensors would have one name.
    """
    if _wrapper(config) is None:
        return tensors, None
    images = [name for name in tensors if _IMAGES.match(name)]
    kept: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if _IMAGES.match(name):
            continue
        own = _own_name(name)
        if own in kept:
            raise FormatError(
                f"the tensors {kept[own].name!r:.100} and {name!r:.100} are both {own} of the language "
                "model; the files are not of one model"
            )
        kept[own] = tensor
    renamed = {name: replace(tensor, name=name) for name, tensor in kept.items()}
    if not images:
        return renamed, None
    parts = sorted({name.removeprefix("model.").split(".")[0] for name in images})
    return renamed, (
        f"images are not supported: the model answers text, and its {len(images)} tensors of "
        f"{' and '.join(parts)} are left out"
    )


def _own_name(name: str) -> str:
    """``model.norm.weight`` for ``language_model.model.norm.weight``, or the same with the parts swapped."""
    match = _TEXT.match(name)
    if match is None:
        return name
    rest = name[match.end() :]
    return rest if match[0] == "language_model." else f"model.{rest}"


def _wrapper(config: Json) -> _Wrapper | None:
    model_type = config.get("model_type")
    return _WRAPPERS.get(model_type) if isinstance(model_type, str) else None
