"""What is laid down once for a database, and the same for all who use it."""

from __future__ import annotations

import uuid

import msgspec

from perdure.persistence.api import ConditionFailed, NotFound, SchemaMismatch, Store
from perdure.persistence.open import is_unfinished_copy


class ClusterRecord(msgspec.Struct):
    """id: a UUID. shards: workflow ids are spread by their number, so it never changes."""

    id: str
    shards: int


async def load_cluster(store: Store, shards: int | None, default: int) -> ClusterRecord:
    """The record, made at the first start. default: shards of a new one, where `shards` says nothing. Raises
    SchemaMismatch when it has another number of shards, and when the database is a copy that is not complete."""
    if await is_unfinished_copy(store):
        raise SchemaMismatch("the database is a copy that is not complete: run `perdure db copy` again")
    while True:
        try:
            document = await store.get_document("cluster", "self")
        except NotFound:
            record = ClusterRecord(str(uuid.uuid4()), shards or default)
            try:
                await store.put_document("cluster", "self", 0, msgspec.json.encode(record))
            except ConditionFailed:
                continue  # another process was faster
            return record
        record = msgspec.json.decode(document.blob, type=ClusterRecord)
        if shards is not None and record.shards != shards:
            raise SchemaMismatch(f"the database was made with {record.shards} shards, not {shards}")
        return record
