"""Server-side apply on plain dicts: who owns which field, conflicts, and fields given up.

A field is a path of keys. Items of a list are identified by their merge key;
a list without one is a single field. Fewer rules than the real thing, the same outcome for them.
"""

import copy

MERGE_KEYS = {
    "containers": "name", "env": "name", "volumes": "name", "imagePullSecrets": "name",
    "volumeMounts": "mountPath", "topologySpreadConstraints": "topologyKey",
}  # fmt: skip
SERVER_SIDE = ("resourceVersion", "generation", "uid", "creationTimestamp", "managedFields")


class Conflict(Exception):
    def __init__(self, fields):
        super().__init__(fields)
        self.fields = fields


def ports_key(items):
    return "containerPort" if "containerPort" in items[0] else "port"


def keyed(name, value):
    """A list whose items have a key -> dict of items by ("key", value); else None."""
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return None
    key = ports_key(value) if name == "ports" else MERGE_KEYS.get(name)
    return {(key, item[key]): item for item in value} if key and key in value[0] else None


def leaves(value, path=()):
    """All fields of an object: path -> value."""
    children = value if isinstance(value, dict) else keyed(path[-1] if path else "", value)
    if not children:
        return {path: value}
    found = {}
    for key, child in children.items():
        found.update(leaves(child, (*path, key)))
    return found


def step(node, key):
    if isinstance(key, tuple):
        return next((item for item in node if item.get(key[0]) == key[1]), None)
    return node.get(key) if isinstance(node, dict) else None


def get(node, path):
    for key in path:
        node = None if node is None else step(node, key)
    return node


def put(node, path, value):
    for place, key in enumerate(path[:-1]):
        following = path[place + 1]
        child = step(node, key)
        if child is None:
            child = [] if isinstance(following, tuple) else {}
            if isinstance(key, tuple):
                child = {key[0]: key[1]}
                node.append(child)
            else:
                node[key] = child
        node = child
    node[path[-1]] = copy.deepcopy(value)


def remove(node, path):
    """Remove a field, and what holds nothing any more without it."""
    if len(path) == 1:
        node.pop(path[0], None)
        return
    child = step(node, path[0])
    if child is None:
        return
    remove(child, path[1:])
    if not child and isinstance(path[0], tuple):
        node.remove(child)
    elif not child:
        node.pop(path[0])


def apply(live, owners, manager, wanted, force):
    """Return the merged object and its owners: manager -> set of paths.

    Raises:
        Conflict: Another manager owns a field that would change.
    """
    wanted = copy.deepcopy(wanted)
    for key in SERVER_SIDE:
        wanted["metadata"].pop(key, None)
    fields = leaves({k: v for k, v in wanted.items() if k not in ("apiVersion", "kind", "status")})
    fields.pop(("metadata", "name"), None)
    fields.pop(("metadata", "namespace"), None)
    merged, owners = copy.deepcopy(live), {m: set(paths) for m, paths in owners.items()}
    conflicts = [
        (other, path)
        for path, value in fields.items()
        for other, paths in owners.items()
        if other != manager and path in paths and get(live, path) != value
    ]
    if conflicts and not force:
        raise Conflict(conflicts)
    for other, path in conflicts:
        owners[other].discard(path)
    before = owners.get(manager, set())
    owners[manager] = set(fields)
    for path in before - set(fields):
        if not any(path in paths for paths in owners.values()):
            remove(merged, path)
    for path, value in fields.items():
        put(merged, path, value)
    return merged, owners


def managed_fields(owners):
    """Owners as an object shows them, as far down as the first two levels."""
    shown = []
    for manager, paths in sorted(owners.items()):
        tree = {}
        for path in paths:
            if len(path) >= 2 and not isinstance(path[1], tuple):
                tree.setdefault(f"f:{path[0]}", {})[f"f:{path[1]}"] = {}
        shown.append({"manager": manager, "operation": "Apply", "fieldsV1": tree})
    return shown
