"""Who may ask: projects, and the keys of those who ask for them.

A key's secret is shown once, when it is made. The record keeps the SHA-256 of it, which is enough to know it again:
the secret is 285 random bits, so trying them out is hopeless, and a slow hash would only slow the server down.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import string
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, exc, func, select, update

from tunesmith.errors import RequestError
from tunesmith.record.database import Database
from tunesmith.record.ids import new_id
from tunesmith.record.tables import key_usage, keys, projects

#: The project of callers without a key, and of the keys that a server was started with.
DEFAULT_PROJECT = "proj_default"
DEFAULT_PROJECT_NAME = "default"
#: One installation is one organisation.
ORGANIZATION = "org-local"

#: A server believes for so long that a key is still good, or that there is none; then it asks the record again.
REVOCATION_SECONDS = 1.0

_SECRET_PREFIX = "sk-"  # noqa: S105 - not a secret
_SECRET_LENGTH = 48
#: As much of a secret as is kept in words, so that people know which one it is.
_HINT_LENGTH = len(_SECRET_PREFIX) + 6
_ALPHABET = string.digits + string.ascii_letters
_SECONDS_PER_DAY = 86_400
_LONGEST_NAME = 100
_LONGEST_SECONDS = 100 * 366 * _SECONDS_PER_DAY
_ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Project:
    """What files, jobs and models belong to; keys of one project see nothing of another."""

    id: str
    name: str
    organization_id: str
    created_at: int


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What one key may use up; None is no limit.

    Attributes:
        requests_per_minute: requests in a minute, after which it waits.
        tokens_per_day: tokens of prompts and answers between midnight and midnight UTC.
    """

    requests_per_minute: int | None = None
    tokens_per_day: int | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """A key as the record knows it; `hint` is the beginning of its secret. Times are whole Unix seconds.

    One of an administrator (`is_admin`) opens its project as any other, and calls that concern all projects.
    """

    id: str
    project_id: str
    project_name: str
    organization_id: str
    name: str
    hint: str
    limits: KeyLimits
    created_at: int
    last_used_at: int | None = None
    revoked_at: int | None = None
    is_admin: bool = False
    expires_at: int | None = None


class Access:
    """Projects and keys in the record."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def ensure_default_project(self) -> None:
        """Create the project of callers without a key, where it isn't there yet.

        Raises:
            StorageError: see `Database.write`.
        """
        with self._database.read() as connection:
            if connection.scalar(select(projects.c.id).where(projects.c.id == DEFAULT_PROJECT)):
                return
        self._database.retry(_add_default_project)

    def create_project(self, name: str) -> Project:
        """Create a project.

        Raises:
            RequestError: the name is empty, too long or taken (`project_exists`).
            StorageError: see `Database.write`.
        """
        _check_name(name)

        def create(connection: Connection) -> Project:
            if _project(connection, name) is not None:
                raise RequestError(f"There is a project '{name}' already.", code="project_exists", param="project")
            project = Project(new_id("proj_"), name, ORGANIZATION, int(time.time()))
            connection.execute(projects.insert().values(_columns(project)))
            return project

        return self._database.retry(create)

    def find_project(self, name: str) -> Project | None:
        """Return the project of an id or a name, None where there is none.

        Raises:
            StorageError: see `Database.read`.
        """
        with self._database.read() as connection:
            return _project(connection, name)

    def projects(self) -> list[Project]:
        """Return all projects, the oldest first.

        Raises:
            StorageError: see `Database.read`.
        """
        with self._database.read() as connection:
            rows = connection.execute(select(projects).where(projects.c.archived_at.is_(None)).order_by(projects.c.seq))
            return [_read_project(row) for row in rows]

    def create_key(
        self,
        name: str,
        project_id: str,
        limits: KeyLimits | None = None,
        *,
        is_admin: bool = False,
        expires_at: int | None = None,
    ) -> tuple[Key, str]:
        """Create a key and return it with its secret, which nobody can find out later.

        Raises:
            RequestError: the name is empty or too long, a limit is below one, or it would be over already.
            StorageError: see `Database.write`.
        """
        _check_name(name)
        limits = limits or KeyLimits()
        _check_limits(limits)
        now = int(time.time())
        if expires_at is not None and not now < expires_at <= now + _LONGEST_SECONDS:
            raise RequestError("A key expires in the future, within 100 years.", code="invalid_expiry", param="expires")
        secret = _SECRET_PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_SECRET_LENGTH))

        def create(connection: Connection) -> Key:
            project = _project(connection, project_id)
            assert project is not None, "callers look the project up"
            key = Key(
                id=new_id("key_"),
                project_id=project.id,
                project_name=project.name,
                organization_id=project.organization_id,
                name=name,
                hint=secret[:_HINT_LENGTH],
                limits=limits,
                created_at=now,
                is_admin=is_admin,
                expires_at=expires_at,
            )
            row = {
                "id": key.id, "created_at": key.created_at, "project_id": key.project_id, "name": name,
                "hash": _hash(secret), "hint": key.hint, "scopes": [_ADMIN] if is_admin else [],
                "limits": _columns(limits), "expires_at": expires_at,
            }  # fmt: skip
            connection.execute(keys.insert().values(row))
            return key

        return self._database.retry(create), secret

    def keys(self, *, with_revoked: bool = False) -> list[Key]:
        """Return the keys, the oldest first.

        Raises:
            StorageError: see `Database.read`.
        """
        query = _select_keys().order_by(keys.c.seq)
        with self._database.read() as connection:
            found = connection.execute(query if with_revoked else query.where(keys.c.revoked_at.is_(None)))
            return [_read_key(row) for row in found]

    def find_key(self, secret: str) -> Key | None:
        """Return the key that a secret belongs to, unless it was revoked; None for all others. It may have expired.

        It is looked for by its hash, so the time that takes says nothing about the secrets of others.

        Raises:
            StorageError: see `Database.read`.
        """
        given = _hash(secret)
        with self._database.read() as connection:
            row = connection.execute(_select_keys().where(keys.c.hash == given)).first()
        if row is None or not hmac.compare_digest(row.hash, given) or row.revoked_at is not None:
            return None
        return _read_key(row)

    def has_keys(self) -> bool:
        """Whether a key was ever made: from then on nobody may ask without one, also when all were revoked.

        Raises:
            StorageError: see `Database.read`.
        """
        with self._database.read() as connection:
            return connection.execute(select(keys.c.seq).limit(1)).first() is not None

    def revoke_key(self, name: str) -> Key:
        """Make a key useless for good and return it. One that was revoked before stays as it is.

        Args:
            name: the key's id, name or hint, or the beginning of its id.

        Raises:
            RequestError: no key is meant (`key_not_found`), or several are (`ambiguous_key`).
            StorageError: see `Database.write`.
        """

        def revoke(connection: Connection) -> Key:
            key = _chosen([_read_key(row) for row in connection.execute(_select_keys().order_by(keys.c.seq))], name)
            revoke_once = update(keys).where(keys.c.id == key.id, keys.c.revoked_at.is_(None))
            connection.execute(revoke_once.values(revoked_at=int(time.time())))
            return _read_key(connection.execute(_select_keys().where(keys.c.id == key.id)).one())

        return self._database.retry(revoke)

    def note_use(self, last_used_at: Mapping[str, int], tokens: Mapping[tuple[str, int], int]) -> None:
        """Note when keys were last used, and what they used up: tokens by key and day (`day_of`).

        Raises:
            StorageError: see `Database.write`.
        """

        def note(connection: Connection) -> None:
            for key, used_at in last_used_at.items():
                is_later = (keys.c.last_used_at.is_(None)) | (keys.c.last_used_at < used_at)
                connection.execute(update(keys).where(keys.c.id == key, is_later).values(last_used_at=used_at))
            for (key, day), count in tokens.items():
                this = (key_usage.c.key_id == key) & (key_usage.c.day == day)
                more = connection.execute(update(key_usage).where(this).values(tokens=key_usage.c.tokens + count))
                if not more.rowcount:
                    connection.execute(key_usage.insert().values(key_id=key, day=day, tokens=count))

        self._database.retry(note)

    def tokens_used(self, key_id: str, day: int) -> int:
        """Return the tokens that a key used up on a day, as far as they were noted.

        Raises:
            StorageError: see `Database.read`.
        """
        this = (key_usage.c.key_id == key_id) & (key_usage.c.day == day)
        with self._database.read() as connection:
            return connection.scalar(select(func.coalesce(func.sum(key_usage.c.tokens), 0)).where(this)) or 0


def is_secret(text: str) -> bool:
    """Whether a text has the form of a key's secret; only those are worth looking for."""
    body = text.removeprefix(_SECRET_PREFIX)
    return text.startswith(_SECRET_PREFIX) and len(body) == _SECRET_LENGTH and body.isascii() and body.isalnum()


def day_of(unix_seconds: float) -> int:
    """Return the day, counted from 1970 in UTC, that a moment is in."""
    return int(unix_seconds // _SECONDS_PER_DAY)


def seconds_left_of_day(unix_seconds: float) -> float:
    """Return how long it is until the next midnight in UTC."""
    return _SECONDS_PER_DAY - unix_seconds % _SECONDS_PER_DAY


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _add_default_project(connection: Connection) -> None:
    project = Project(DEFAULT_PROJECT, DEFAULT_PROJECT_NAME, ORGANIZATION, int(time.time()))
    try:
        with connection.begin_nested():
            connection.execute(projects.insert().values(_columns(project)))
    except exc.IntegrityError:
        return  # another process was first


def _columns(of: Project | KeyLimits) -> dict[str, Any]:
    return {name: getattr(of, name) for name in of.__slots__}


def _project(connection: Connection, name: str) -> Project | None:
    query = select(projects).where(
        projects.c.archived_at.is_(None), (projects.c.id == name) | (projects.c.name == name)
    )
    row = connection.execute(query.order_by(projects.c.seq).limit(1)).first()
    return None if row is None else _read_project(row)


def _read_project(row: Row[Any]) -> Project:
    return Project(row.id, row.name, row.organization_id, row.created_at)


def _select_keys() -> Any:
    joined = keys.join(projects, projects.c.id == keys.c.project_id)
    return select(keys, projects.c.name.label("project_name"), projects.c.organization_id).select_from(joined)


def _read_key(row: Row[Any]) -> Key:
    return Key(
        id=row.id,
        project_id=row.project_id,
        project_name=row.project_name,
        organization_id=row.organization_id,
        name=row.name,
        hint=row.hint,
        limits=KeyLimits(**row.limits),
        created_at=row.created_at,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
        is_admin=_ADMIN in row.scopes,
        expires_at=row.expires_at,
    )


def _chosen(found: list[Key], name: str) -> Key:
    exact = [key for key in found if key.id == name]
    alike = [key for key in found if name in (key.name, key.hint) or _begins(key, name)]
    meant = exact or [key for key in alike if key.revoked_at is None] or alike
    if len(meant) == 1:
        return meant[0]
    shown = name[:_LONGEST_NAME]
    if not meant:
        raise RequestError(f"There is no key '{shown}'.", fix="`tunesmith keys list` shows them.", code="key_not_found")
    raise RequestError(
        f"Several keys are called '{shown}'.", fix="Give the id: `tunesmith keys list` shows it.", code="ambiguous_key"
    )


def _begins(key: Key, name: str) -> bool:
    """Whether a name is the beginning of the key's id, long enough to mean it."""
    return len(name) > len("key_") and key.id.startswith(name)


def _check_name(name: str) -> None:
    if not name.strip() or len(name) > _LONGEST_NAME or not name.isprintable():
        raise RequestError(
            f"A name has 1 to {_LONGEST_NAME} characters that can be printed.", code="invalid_name", param="name"
        )


def _check_limits(limits: KeyLimits) -> None:
    for name, value in _columns(limits).items():
        if value is not None and value < 1:
            raise RequestError(f"Invalid '{name}': expected at least 1.", code="integer_below_min_value", param=name)
