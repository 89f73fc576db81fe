"""Changing the models of this machine over HTTP: checked requests in, what was done or status lines out.

A request names models, never paths; what it may pull is decided by the operator. Models in memory are let go
when their name comes to mean something else.
"""

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from nanollama.creating import create_model
from nanollama.errors import FormatError, NanollamaError, UsageError
from nanollama.server.gate import ClientGoneError
from nanollama.server.ollama.answers import not_found
from nanollama.server.ollama.creation import CreateRequest
from nanollama.server.ollama.fields import CopyRequest, DeleteRequest, PullRequest
from nanollama.server.ollama.progress import LineProgress, StatusLines, StatusStream, Work
from nanollama.server.problems import Problem, invalid
from nanollama.server.responses import JsonReply
from nanollama.server.services import Services
from nanollama.server.source import found_of
from nanollama.store.blobs import Blobs
from nanollama.store.catalogue import find_entry
from nanollama.store.names import Digest, ModelName
from nanollama.store.plans import Hosts
from nanollama.store.store import Located, Store


class Manager:
    """The store behind a server, as requests may use it."""

    def __init__(self, services: Services, store: Store, hosts: Hosts) -> None:
        self._services = services
        self._store = store
        self._blobs = Blobs(store)
        self._hosts = hosts

    async def pull(self, asked: PullRequest) -> Response:
        """Fetch a model, with status lines."""
        target = asked.model

        def work(progress: LineProgress) -> None:
            progress.say("pulling manifest")
            self._store.pull(target, progress, hosts=self._hosts)
            for status in ("verifying sha256 digest", "writing manifest", "success"):
                progress.say(status)

        return await self._told(work, asked.stream, _known_digest(target))

    async def create(self, asked: CreateRequest) -> Response:
        """Make a model from another one or from an uploaded file, with status lines."""
        name = _name(asked.model)

        def work(progress: LineProgress) -> None:
            recipe = asked.recipe()
            progress.say("reading model metadata")
            if asked.files is not None:
                self._blobs.create(name, *asked.files, recipe)
            else:
                assert asked.base is not None, "check_together saw to it"
                base = self._base(asked.base, progress)
                parent = str(base.name)
                create_model(
                    self._store,
                    name,
                    base,
                    recipe,
                    parent=parent,
                    quantize=asked.quantize or None,
                    progress=progress,
                )
            progress.say("writing manifest")
            progress.say("success")

        return await self._told(work, asked.stream)

    async def copy(self, asked: CopyRequest) -> Response:
        """Give a model a second name."""
        names = {}
        for role, text in (("source", asked.source), ("destination", asked.destination)):
            try:
                names[role] = ModelName.parse(text)
            except UsageError:
                raise invalid(f'{role} "{text[:80]}" is invalid', role, "invalid_value") from None
        if await asyncio.to_thread(self._store.find, names["source"]) is None:
            raise Problem(404, f'model "{asked.source}" not found', "model_not_found", "source")
        await asyncio.to_thread(self._store.copy, names["source"], names["destination"], replacing=True)
        return Response(status_code=200)

    async def delete(self, asked: DeleteRequest) -> Response:
        """Forget a model, and delete its files if they are nanollama's own."""
        name = _name(asked.model)
        record = await asyncio.to_thread(self._store.find, name)
        if record is None:
            raise not_found(asked.model)
        await self._services.pool.forget(found_of(record))
        try:
            await asyncio.to_thread(self._store.remove, record.name)
        except UsageError as error:
            raise invalid(self._without_folder(str(error)), "model") from None
        return Response(status_code=200)

    async def has_blob(self, digest: str) -> Response:
        """Whether a file with that digest was uploaded, or belongs to a model."""
        found = await asyncio.to_thread(self._blobs.find, _digest(digest))
        return Response(status_code=404 if found is None else 200)

    async def take_blob(self, digest: str, body: AsyncIterator[bytes]) -> Response:
        """Take in a file, which must have that digest."""
        wanted = _digest(digest)
        if await asyncio.to_thread(self._blobs.find, wanted) is not None:
            return Response(status_code=200)
        try:
            upload = await asyncio.to_thread(self._blobs.begin, wanted)
        except OSError as error:
            raise _unwritable(error) from None
        try:
            async for data in body:
                await asyncio.to_thread(upload.write, data)
            await asyncio.to_thread(upload.finish)
        except ClientDisconnect:
            raise ClientGoneError from None
        except OSError as error:
            raise _unwritable(error) from None
        finally:
            await asyncio.shield(asyncio.to_thread(upload.drop))
        return Response(status_code=201)

    async def _told(self, work: Work, stream: bool | None, digest: str | None = None) -> Response:
        def told(progress: LineProgress) -> None:
            try:
                work(progress)
            except FormatError as error:  # what was sent or named is no model: that is the request's fault
                raise UsageError(self._without_folder(str(error))) from None
            except NanollamaError as error:
                raise type(error)(self._without_folder(str(error))) from None

        lines = StatusLines(told, self._services.workers, digest)
        if stream is not False:
            return StatusStream(lines, self._services.limits)
        return JsonReply(await lines.whole())

    def _base(self, text: str, progress: LineProgress) -> Located:
        """The model that another one is made from, fetched if it may be. It is never a path."""
        name = _name(text)
        record = self._store.find(name)
        if record is None:
            record = self._store.pull(text, progress, hosts=self._hosts)
        return Located(record.path, record.recipe, record.name, record)

    def _without_folder(self, text: str) -> str:
        """A sentence for a client, who is not told where things lie on this machine."""
        return text.replace(str(self._store.root), "the store's folder")


def _unwritable(error: OSError) -> Problem:
    return Problem(507, f"The upload could not be written ({error.strerror}).", "storage_full")


def _name(text: str) -> ModelName:
    try:
        return ModelName.parse(text)
    except UsageError:
        raise invalid("invalid model name", "model", "invalid_value") from None


def _digest(text: str) -> Digest:
    try:
        return Digest(text)
    except FormatError:
        raise invalid("invalid digest format", "digest", "invalid_value") from None


def _known_digest(target: str) -> str | None:
    """The digest of what is to be pulled, where the catalogue states it."""
    try:
        entry = find_entry(ModelName.parse(target))
    except UsageError:
        return None
    return None if entry is None or entry.digest is None else entry.digest.text
