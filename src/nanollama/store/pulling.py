"""Pulling into the store: a plan and the register in; whether it is done, the folder, the record out."""

import time
from itertools import count
from pathlib import Path

from nanollama.store.files import sha256_of
from nanollama.store.imports import folder_digest
from nanollama.store.plans import PullPlan
from nanollama.store.recipe import Recipe
from nanollama.store.registry import Record, RecordFile, State


def is_current(record: Record, plan: PullPlan) -> bool:
    """Whether ``record``, complete by its sizes, is what ``plan`` would fetch; its files are read through."""
    expected = {file.path: (file.size, file.digest) for file in plan.files}
    if {file.name for file in record.files} != set(expected):
        return False
    is_commit = "@" in plan.source and "://" not in plan.source and plan.source == record.source
    for path, file in zip(record.paths, record.files, strict=True):
        size, digest = expected[file.name]
        wanted = digest or (file.digest if is_commit else None)
        if wanted is None or file.size != size or sha256_of(path) != wanted:
            return False
    return True


def folder_for(plan: PullPlan, state: State, base: Path) -> Path:
    """``base``, or one beside it if there the plan would replace a file of a model with another name."""
    others = {
        path: file.digest
        for record in state.records.values()
        if record.name != plan.name
        for path, file in zip(record.paths, record.files, strict=True)
    }
    for number in count(1):
        # A plus sign is in no model's name, so that such a folder is nobody else's.
        folder = base if number == 1 else base.with_name(f"{base.name}+{number}")
        if all(others.get(folder / file.path, file.digest) == file.digest for file in plan.files):
            break
    return folder


def pulled_record(plan: PullPlan, folder: Path, files: tuple[RecordFile, ...]) -> Record:
    """The record of a plan whose ``files`` are complete in ``folder``."""
    is_folder = plan.format == "safetensors"
    return Record(
        name=plan.name,
        format=plan.format,
        path=folder if is_folder else folder / files[0].name,
        size=sum(file.size for file in files),
        digest=folder_digest(files) if is_folder or len(files) > 1 else files[0].digest,
        modified=round(time.time(), 6),
        owned=True,
        source=plan.source,
        recipe=Recipe(
            parameters=dict(plan.sampling),
            licences=(plan.licence,) if plan.licence else (),
        ),
        files=files,
    )
