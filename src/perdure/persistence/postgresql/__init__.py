"""The store in PostgreSQL (13 or newer): `open_store(url)`. Needs the extra `postgresql`."""

from perdure.persistence.postgresql.store import PostgresStore, open_store

__all__ = ["PostgresStore", "open_store"]
