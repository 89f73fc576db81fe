"""Folders that are no checkpoint: a folder in, the error that says what it lacks and what would work out."""

from pathlib import Path

from nanollama.errors import FormatError, UnsupportedError

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".onnx")


def not_a_checkpoint(folder: Path) -> FormatError | UnsupportedError:
    """The error for a folder without a config.json or without weights, by what is there instead."""
    shown = folder.name or str(folder)
    names = sorted(entry.name for entry in folder.iterdir())
    if (folder / CONFIG).exists():
        return _no_weights(shown, names)
    files = [name for name in names if name.lower().endswith(".gguf") and (folder / name).is_file()]
    if files:
        return FormatError(f"{shown} has no {CONFIG}; to run {files[0]}, give its own path")
    return FormatError(
        f"{shown} has no {CONFIG}, so it is no model folder; give the folder of a Hugging Face checkpoint or "
        "the path of a GGUF file"
    )


def _no_weights(shown: str, names: list[str]) -> FormatError | UnsupportedError:
    if found := next((name for name in names if name.endswith(_OTHER_WEIGHTS)), None):
        return UnsupportedError(
            f"{shown} holds its weights only as {found}, a format that can carry code and is never loaded; "
            "get the model's safetensors files, or have transformers save it again (save_pretrained)"
        )
    if found := next((name for name in names if name.endswith(".safetensors")), None):
        return FormatError(f"{shown} has {found}, but neither {SINGLE} nor {INDEX}; fetch the folder again")
    return FormatError(
        f"{shown} has a {CONFIG}, but no weights: expected {SINGLE} or {INDEX}; fetch the folder again"
    )
