"""The store in MySQL (8 or newer) or MariaDB (10.11 or newer): `open_store(url)`. Needs the extra `mysql`."""

from perdure.persistence.mysql.store import MysqlStore, open_store

__all__ = ["MysqlStore", "open_store"]
