"""Addresses of databases and servers as they may be shown: without the passwords that they carry."""

import re
from urllib.parse import unquote_plus

MASK = "***"
_ADDRESS = re.compile(
    r"(?P<before>[\w+.-]+://)"
    r"(?:(?P<user>[^:/?#@]*)(?::(?P<password>[^/?#]*))?@)?"  # a password may hold an @
    r"(?P<place>/[^?#]*|(?:(?<=@)[^/?#@]*|(?:\[[\w:.%]*\]|[^:/?#@]*)(?::\d*)?)(?:/[^?#@]*)?)"
    r"(?:\?(?P<query>[^#@]*))?"
)
# Of the parts of a query all others are hidden: every driver has its own names for what is secret.
_SHOWN = {"user", "host", "hostaddr", "port", "dbname", "sslmode", "charset", "timeout", "connect_timeout"}
_LEAST = 3  # letters of what is looked for in other people's messages


def without_password(address: str) -> str:
    """An address with its password hidden, and every part of its query that is not known to be harmless.

    Of what is not built like an address nothing but its beginning is shown, unless it is a plain word.

    >>> without_password("postgresql+psycopg://me:s@cret@db/trials")
    'postgresql+psycopg://me:***@db/trials'
    >>> without_password("postgresql://db:5432/trials?user=me&password=secret")
    'postgresql://db:5432/trials?user=me&password=***'
    >>> without_password("host=db password=secret")
    '***'
    """
    found = _ADDRESS.fullmatch(address)
    if found is None:
        before, mark, _ = address.partition("://")
        plain = address if re.fullmatch(r"[\w ./-]*", address) else MASK
        return f"{before}://{MASK}" if mark and re.fullmatch(r"[\w+.-]+", before) else plain
    user, password, query = found["user"], found["password"], found["query"]
    name = "" if user is None else f"{user}@" if password is None else f"{user}:{MASK}@"
    shown = "" if query is None else "?" + "&".join(_without_value(part) for part in query.split("&"))
    return found["before"] + name + found["place"] + shown


def _without_value(part: str) -> str:
    key, equals, _ = part.partition("=")
    return part if unquote_plus(key) in _SHOWN else f"{key}={MASK}" if equals else MASK


def without_secrets(message: str, address: str) -> str:
    """A message of somebody else's with what `without_password` hides of an address hidden in it, too.

    >>> without_secrets("no host 'cret@db'", "postgresql://me:s@cret@db")
    "no host '***@db'"
    """
    shown = set(_pieces(without_password(address)))
    hidden = {piece for text in (address, unquote_plus(address)) for piece in _pieces(text)} - shown
    for piece in sorted(hidden, key=len, reverse=True):
        if len(piece) >= _LEAST:
            message = message.replace(piece, MASK)
    return message


def _pieces(address: str) -> list[str]:
    """The parts of an address between its marks, and the words in them."""
    return [*re.split(r"[:/?#@&=\s]+", address), *re.split(r"\W+", address)]
