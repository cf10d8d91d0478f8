"""Each head written out again: angles by acos, one row after another, float64, no torch.

An oracle takes features [B, D], weights ([C, D], of sub-centers [C, K, D]), labels [B], the
config's values, and what the head remembers; it returns the loss and what is remembered then. What
no gradient flows through can be given as `frozen`, for finite differences.
"""

import math

import numpy as np


def angles(features, weight):
    """[B, C]; of sub-centers the smallest."""
    rows = []
    for feature in features:
        row = []
        for vectors in weight.reshape(len(weight), -1, weight.shape[-1]):
            cosines = [
                sum(float(a) * float(b) for a, b in zip(feature, vector, strict=True))
                / math.sqrt(sum(float(a) ** 2 for a in feature))
                / math.sqrt(sum(float(a) ** 2 for a in vector))
                for vector in vectors
            ]
            row.append(min(math.acos(min(1.0, max(-1.0, c))) for c in cosines))
        rows.append(row)
    return rows


def cross_entropy(logits, labels):
    losses = []
    for row, label in zip(logits, labels, strict=True):
        top = max(row)
        losses.append(math.log(sum(math.exp(v - top) for v in row)) + top - row[label])
    return sum(losses) / len(losses)


def arc(angle, margin):
    """cos(θ + m), continued as the ArcFace authors do."""
    if angle < math.pi - margin:
        return math.cos(angle + margin)
    return math.cos(angle) - margin * math.sin(math.pi - margin)


def by_target(features, weight, labels, scale, target):
    """Loss where only the target differs: `target(row, angle)` is its cosine."""
    logits = []
    for number, (row, label) in enumerate(zip(angles(features, weight), labels, strict=True)):
        logits.append([scale * math.cos(a) for a in row])
        logits[-1][label] = scale * target(number, row[label])
    return cross_entropy(logits, labels)


def plain(features, weight, labels, scale):
    return by_target(features, weight, labels, scale, lambda _, angle: math.cos(angle))


def softmax(features, weight, labels, state, frozen, *, scale):
    return plain(features, weight, labels, scale), None


def cosface(features, weight, labels, state, frozen, *, scale, margin, **_):
    def target(_, angle):
        return math.cos(angle) - margin

    return by_target(features, weight, labels, scale, target), None


ONE_MARGIN = {"size_margin": 0.0, "size_power": 0.25}
"""Values of a head whose classes all have the same margin."""
SIZES = [0, 1, 2, 5, 10, 100, 20_000]


def by_size(
    features, weight, labels, state, frozen, *,
    kind, power, scale, margin, size_margin, **_,
):  # fmt: skip
    """The margin decreases with the number of images of the class; without images it is one."""
    margins = [float(np.float32(margin + size_margin / max(n, 1) ** power)) for n in SIZES]

    def target(number, angle):
        m = margins[labels[number]]
        return arc(angle, m) if kind == "arc" else math.cos(angle) - m

    return by_target(features, weight, labels, scale, target), None


def combined(features, weight, labels, state, frozen, *, scale, m1, m2, m3):
    def target(_, angle):
        moved = m1 * angle + m2
        turns = 0
        while moved > math.pi:  # each half turn begins where the one before ended
            moved -= math.pi
            turns += 1
        return math.cos(moved) - 2 * turns - m3

    return by_target(features, weight, labels, scale, target), None


def arcface(features, weight, labels, state, frozen, *, scale, margin, **_):
    def target(_, angle):
        return arc(angle, margin)

    return by_target(features, weight, labels, scale, target), None


def adacos(features, weight, labels, state, frozen, *, dynamic):
    fixed = max(1.0, math.sqrt(2) * math.log(len(weight) - 1))
    scale = fixed if state is None else state["scale"]
    if frozen is not None:
        scale = frozen["scale"]
    elif dynamic:
        rows = angles(features, weight)
        others = [
            sum(math.exp(scale * math.cos(a)) for j, a in enumerate(row) if j != label)
            for row, label in zip(rows, labels, strict=True)
        ]
        targets = sorted(row[label] for row, label in zip(rows, labels, strict=True))
        median = targets[(len(targets) - 1) // 2]
        average = sum(others) / len(others)
        scale = max(1.0, math.log(average) / math.cos(min(math.pi / 4, median)))
    return plain(features, weight, labels, scale), {"scale": scale}


def curricularface(features, weight, labels, state, frozen, *, scale, margin, momentum):
    rows = angles(features, weight)
    if frozen is None:
        mean = np.mean([math.cos(row[y]) for row, y in zip(rows, labels, strict=True)])
        t = momentum * (0.0 if state is None else state["t"]) + (1 - momentum) * mean
    else:
        t = frozen["t"]
    logits = []
    for row, label in zip(rows, labels, strict=True):
        target = arc(row[label], margin)
        cosines = [math.cos(a) for a in row]
        cosines = [c if c <= target else c * (t + c) for c in cosines]
        cosines[label] = target
        logits.append([scale * c for c in cosines])
    return cross_entropy(logits, labels), {"t": t}


def magface(features, weight, labels, state, frozen, *, scale, low_margin, high_margin,
            low_length, high_length, length_weight, easy_margin):  # fmt: skip
    lengths = [min(high_length, max(low_length, math.hypot(*f))) for f in features]

    def target(number, angle):
        share = (lengths[number] - low_length) / (high_length - low_length)
        margin = low_margin + share * (high_margin - low_margin)
        if easy_margin:
            return math.cos(angle + margin) if angle < math.pi / 2 else math.cos(angle)
        return arc(angle, margin)

    regulariser = np.mean([1 / a + a / high_length**2 for a in lengths])
    loss = by_target(features, weight, labels, scale, target)
    return loss + length_weight * regulariser, None


def adaface(features, weight, labels, state, frozen, *, scale, margin, concentration, momentum):
    if frozen is None:
        lengths = [min(100.0, max(0.001, math.hypot(*f))) for f in features]
        mean, std = np.mean(lengths), np.std(lengths, ddof=1)
        if state is not None:
            mean = momentum * state["length_mean"] + (1 - momentum) * mean
            std = momentum * state["length_std"] + (1 - momentum) * std
        z = [min(1.0, max(-1.0, concentration * (a - mean) / (std + 0.001))) for a in lengths]
        frozen = {"length_mean": mean, "length_std": std, "z": z}

    def target(number, angle):
        quality = frozen["z"][number]
        turned = min(math.pi, max(0.0, angle - margin * quality))
        return math.cos(turned) - (margin + margin * quality)

    return by_target(features, weight, labels, scale, target), frozen


def elastic(features, weight, labels, state, frozen, *, scale, margin, std, plus, kind, drawn):
    margins = [max(0.0, margin + std * d) for d in drawn]
    if plus:
        own = [row[y] for row, y in zip(angles(features, weight), labels, strict=True)]
        nearest_first = sorted(range(len(own)), key=lambda i: own[i])
        for index, value in zip(nearest_first, sorted(margins.copy()), strict=True):
            margins[index] = value

    def target(number, angle):
        value = margins[number]
        return arc(angle, value) if kind == "arc" else math.cos(angle) - value

    return by_target(features, weight, labels, scale, target), None
