"""Mutated requests, from a seed."""

import io
import pickle
import random
import struct
import zlib

import numpy as np
from PIL import Image


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name, content):
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def bomb(width, height):
    """A PNG of a few bytes whose header has this size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(30_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


class Mutations:
    def __init__(self, seed):
        self.chance = random.Random(seed)
        noise = np.random.default_rng(seed).integers(0, 255, (24, 20, 3)).astype(np.uint8)
        picture = Image.fromarray(noise)
        self.images = [saved(picture, kind) for kind in ("PNG", "JPEG", "WEBP", "BMP")]
        self.images += [
            saved(picture.convert("P"), "PNG"), saved(picture.convert("CMYK"), "JPEG"),
            saved(picture.convert("LA"), "PNG"), saved(picture, "JPEG", progressive=True),
        ]  # fmt: skip
        self.makers = [self.flipped, self.flipped, self.cut, self.spliced, self.bomb, self.foreign,
                       self.huge_k, self.form, self.form]  # fmt: skip

    def case(self):
        """Return a body and its headers."""
        return self.chance.choice(self.makers)()

    def flipped(self):
        body = bytearray(self.chance.choice(self.images))
        for _ in range(self.chance.randrange(1, 12)):
            body[self.chance.randrange(len(body))] ^= 1 << self.chance.randrange(8)
        return bytes(body), {}

    def cut(self):
        body = self.chance.choice(self.images)
        return body[: self.chance.randrange(len(body))], {"Content-Type": "image/jpeg"}

    def spliced(self):
        one, other = self.chance.choice(self.images), self.chance.choice(self.images)
        middle = self.chance.randrange(len(one))
        return one[:middle] + other + one[middle:], {}

    def bomb(self):
        sides = (0, 1, 65, 5_000, 65_535, 2**31 - 1, 2**32 - 1)
        return bomb(self.chance.choice(sides), self.chance.choice(sides)), {}

    def foreign(self):
        bodies = (
            b"", b"\0", b"null", b"{", b'[{"body": 1}]', b"GIF89a" + b"\0" * 50,
            b"PK\x03\x04" + self.chance.randbytes(80), self.chance.randbytes(300),
            b"\xff\xd8\xff\xe1", pickle.dumps(print),
        )  # fmt: skip
        kinds = ("application/json", "text/plain; charset=nonsense", "image/png", "x", "", "a/b;c")
        return self.chance.choice(bodies), {"Content-Type": self.chance.choice(kinds)}

    def huge_k(self):
        k = self.chance.choice(["9" * 3000, "-1", "1e400", "NaN", "0x10", "", " 3", "\xb2", "3;4"])
        return self.chance.choice(self.images), {"x-arcloop-k": k}

    def form(self):
        """Return a form with mutated bytes or with another boundary in its header."""
        fields = self.chance.sample(["image", "data", "k", "body", "x" * 300, 'a"b'], 2)
        body = b"".join(
            f'--b\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n'.encode()
            + self.chance.choice([*self.images, b"3", b""])
            + b"\r\n"
            for field in fields
        )
        body = bytearray(body + b"--b--\r\n")
        for _ in range(self.chance.randrange(4)):
            body[self.chance.randrange(min(200, len(body)))] = self.chance.randrange(256)
        if self.chance.random() < 0.3:
            del body[self.chance.randrange(len(body)) :]
        boundary = self.chance.choice(["b", "b", "b", "other", "", '"'])
        return bytes(body), {"Content-Type": f"multipart/form-data; boundary={boundary}"}
