"""URLs of databases on PostgreSQL: what goes to the driver, and what may be shown.

1. `postgresql://user@host1,host2/database?schema=occam`: all that libpq takes, also service files, the environment and
   keywords as options, and `schema`, which is ours.
2. A password is in `parameters` alone. It is never in `shown`, and `hide` takes it out of what the driver says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict

from ...model.errors import InvalidArgumentError

__all__ = ["SCHEMA", "Location", "parse_url"]

SCHEMA = "occam"
_SECRETS = ("password", "sslpassword")
_HINT = "postgresql://USER@HOST1,HOST2/DATABASE?schema=occam"


@dataclass(frozen=True)
class Location:
    """Where a database is.

    Attributes:
      parameters: what the driver takes, as keywords.
      schema: the server's schema that holds the database.
      shown: the URL without secrets.
    """

    parameters: Mapping[str, str] = field(repr=False)
    schema: str
    shown: str

    @property
    def channel(self) -> str:
        """The name of its notifications."""
        return "occam_" + hashlib.sha256(self.schema.encode()).hexdigest()[:16]

    def hide(self, text: str) -> str:
        """A text of the driver without secrets, in one line."""
        for name in _SECRETS:
            secret = self.parameters.get(name)
            if secret:
                text = text.replace(secret, "***")
        return " ".join(text.split())


def parse_url(url: str) -> Location:
    """Read the URL of a database.

    Raises:
      InvalidArgumentError: it is not one. The message does not repeat it, because it may hold a password.
    """
    try:
        split = urlsplit(url)
        options = parse_qsl(split.query, keep_blank_values=True, strict_parsing=bool(split.query))
        ours = [value for name, value in options if name == "schema"]
        rest = urlencode([option for option in options if option[0] != "schema"], quote_via=quote)
        found = conninfo_to_dict(urlunsplit(split._replace(scheme="postgresql", query=rest)))
    except (ValueError, psycopg.Error):
        raise InvalidArgumentError(
            "this is not the URL of a PostgreSQL database: an option, a host or a port cannot be read",
            hint=f"{_HINT}; special characters in a password are written as %XX",
        ) from None
    parameters = {name: str(value) for name, value in found.items() if value is not None}
    schema = ours[-1] if ours else SCHEMA
    if not 1 <= len(schema.encode()) <= 63 or "\0" in schema or schema.startswith("pg_"):
        raise InvalidArgumentError(
            f"schema={schema!r} cannot be the name of a schema", hint=f"1 to 63 bytes: {_HINT}"
        )
    return Location(parameters, schema, _shown(parameters, schema))


def _shown(parameters: Mapping[str, str], schema: str) -> str:
    hosts = parameters.get("host", parameters.get("hostaddr", "")).split(",")
    ports = parameters.get("port", "").split(",")
    places = []
    for index, host in enumerate(hosts):
        port = ports[index] if index < len(ports) else ports[-1]
        name = quote(host, safe="") if "/" in host else f"[{host}]" if ":" in host else host
        places.append(f"{name}:{port}" if port else name)
    user = quote(parameters["user"], safe="") + "@" if "user" in parameters else ""
    options = [(name, parameters[name]) for name in ("service", "sslmode") if name in parameters]
    if schema != SCHEMA:
        options.append(("schema", schema))
    query = "?" + urlencode(options) if options else ""
    return f"postgresql://{user}{','.join(places)}/{quote(parameters.get('dbname', ''), safe='')}{query}"
