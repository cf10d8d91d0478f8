"""What Kubernetes accepts as a name, a label and a quantity."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_QUANTITY = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+))(?:([numkMGTPE]|[KMGTPE]i)|[eE]([+-]?\d+))?")
_POWERS = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}


def is_dns_label(name: object) -> bool:
    """Whether it can name a namespace, a container or a volume.

    >>> is_dns_label("mnist-2"), is_dns_label("My_model"), is_dns_label("a" * 64)
    (True, False, False)
    """
    return isinstance(name, str) and _DNS_LABEL.fullmatch(name) is not None


def is_subdomain(name: object) -> bool:
    """Whether it can name most objects: DNS labels joined by dots."""
    return isinstance(name, str) and len(name) <= 253 and _SUBDOMAIN.fullmatch(name) is not None


def is_port_name(name: object) -> bool:
    """Whether it can name a port: as a DNS label, at most 15 characters, a letter among them."""
    return (
        is_dns_label(name)
        and len(str(name)) <= 15
        and "--" not in str(name)
        and any(c.isalpha() for c in str(name))
    )


def is_label_key(key: object) -> bool:
    """Whether it can be the key of a label or an annotation.

    >>> is_label_key("app.kubernetes.io/name"), is_label_key("a/b/c"), is_label_key("Ä")
    (True, False, False)
    """
    if not isinstance(key, str):
        return False
    prefix, slash, name = key.rpartition("/")
    return (not slash or is_subdomain(prefix)) and _LABEL_NAME.fullmatch(name) is not None


def is_label_value(value: object) -> bool:
    """Whether it can be the value of a label: a sha256 in hex, for one, is too long."""
    return isinstance(value, str) and (not value or _LABEL_NAME.fullmatch(value) is not None)


def quantity(value: object) -> Decimal | None:
    """Return a quantity as a number; None where it is none.

    >>> quantity("500m"), quantity("2Gi"), quantity("1e3"), quantity("2GB")
    (Decimal('0.500'), Decimal('2147483648'), Decimal('1E+3'), None)
    """
    found = _QUANTITY.fullmatch(str(value))
    if found is None or isinstance(value, bool):
        return None
    number, suffix, exponent = found.groups()
    try:
        if suffix in _BINARY:
            return Decimal(number) * (1 << _BINARY[suffix])
        return Decimal(number).scaleb(_POWERS[suffix] if suffix else int(exponent or 0))
    except InvalidOperation:
        return None
