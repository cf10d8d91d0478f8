"""The classic example as tutorials write it, in one script: `IMAGES WORK EPOCHS`.

Class folders of images -> float32 .npy shards, a check of their shapes, a Dataset that returns one
sample at a time, a DataLoader with two workers, a loop over batches of 64 with ArcFace and SGD, an
embedding of the gallery, a flat index, and queries in batches of 16. Prints seconds of each stage
and top-1 as JSON. Images are decoded by OpenCV if it is installed, otherwise by PIL.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

try:
    import cv2
except ImportError:
    cv2 = None

INTERVAL = 5000


def read_image(path):
    if cv2 is not None:
        return cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    return np.array(Image.open(path).convert("L"))


def prepare(source, target):
    target.mkdir(parents=True)
    images, labels, shard = [], [], 0
    paths = [(path, int(path.parent.name)) for path in sorted(source.glob("*/*.png"))]
    order = np.random.default_rng(0).permutation(len(paths))
    for count, number in enumerate(order, start=1):
        path, label = paths[number]
        images.append(read_image(path).astype(np.float32)[None] / 255)
        labels.append(label)
        if len(images) == INTERVAL or count == len(paths):
            np.save(target / f"images-{shard:03d}.npy", np.stack(images))
            np.save(target / f"labels-{shard:03d}.npy", np.array(labels))
            images, labels, shard = [], [], shard + 1


def validate(folder):
    for path in sorted(folder.glob("images-*.npy")):
        array = np.load(path)
        assert array.dtype == np.float32
        assert array.shape[1:] == (1, 28, 28)
        assert array.min() >= 0
        assert array.max() <= 1


class Shards(Dataset):
    def __init__(self, folder):
        self.images = [np.load(p, mmap_mode="r") for p in sorted(folder.glob("images-*.npy"))]
        self.labels = [np.load(p) for p in sorted(folder.glob("labels-*.npy"))]

    def __len__(self):
        return sum(map(len, self.labels))

    def __getitem__(self, index):
        shard, row = divmod(index, INTERVAL)
        image = (torch.from_numpy(self.images[shard][row].copy()) - 0.1307) / 0.3081
        return image, int(self.labels[shard][row])


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 32, 3), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64)
        self.fc1, self.bn3 = nn.Linear(7744, 128), nn.BatchNorm1d(128)
        self.fc2 = nn.Linear(128, 128)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.fc1(x.flatten(1))))
        return self.fc2(x)


class ArcFace(nn.Module):
    def __init__(self, features, classes, s=32.0, m=0.5):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, features))
        nn.init.xavier_uniform_(self.weight)
        self.s, self.cos_m, self.sin_m = s, math.cos(m), math.sin(m)
        self.th, self.mm = math.cos(math.pi - m), math.sin(math.pi - m) * m

    def forward(self, x, label):
        cosine = F.linear(F.normalize(x), F.normalize(self.weight))
        sine = (1.0 - cosine.pow(2)).clamp(1e-9, 1).sqrt()
        phi = cosine * self.cos_m - sine * self.sin_m
        phi = torch.where(cosine > self.th, phi, cosine - self.mm)
        one_hot = torch.zeros_like(cosine).scatter_(1, label.view(-1, 1), 1)
        return self.s * (one_hot * phi + (1 - one_hot) * cosine)


def train(folder, epochs):
    torch.manual_seed(0)
    loader = DataLoader(Shards(folder), batch_size=64, shuffle=True, num_workers=2)
    network, head = Network(), ArcFace(128, 10)
    optimizer = torch.optim.SGD([*network.parameters(), *head.parameters()], lr=0.01)
    criterion = nn.CrossEntropyLoss()
    network.train()
    for _ in range(epochs):
        running = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(head(network(images), labels), labels)
            loss.backward()
            optimizer.step()
            running += loss.item()
    return torch.jit.script(network.eval())


def embed(network, folder, batch_size):
    loader = DataLoader(Shards(folder), batch_size=batch_size, num_workers=2)
    with torch.no_grad():
        for images, labels in loader:
            yield F.normalize(network(images)).numpy(), labels.numpy()


def main():
    images, work, epochs = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    seconds, start = {}, time.perf_counter()

    def lap(name):
        nonlocal start
        seconds[name] = time.perf_counter() - start
        start = time.perf_counter()

    for split in ("train", "gallery", "query"):
        prepare(images / split, work / split)
    lap("prepare")
    for split in ("train", "gallery", "query"):
        validate(work / split)
    lap("validate")
    network = train(work / "train", epochs)
    lap("train")
    parts = list(embed(network, work / "gallery", 64))
    np.save(work / "embeddings.npy", np.concatenate([e for e, _ in parts]))
    labels = np.concatenate([label for _, label in parts])
    lap("embed")
    index = faiss.IndexFlatL2(128)
    index.add(np.load(work / "embeddings.npy"))
    faiss.write_index(index, str(work / "index.bin"))
    lap("index")
    right = total = 0
    for embeddings, truth in embed(network, work / "query", 16):
        _, found = index.search(embeddings, 5)
        right += int((labels[found[:, 0]] == truth).sum())
        total += len(truth)
    lap("evaluate")
    print(json.dumps({"seconds": seconds, "top1": right / total}))


if __name__ == "__main__":
    main()
