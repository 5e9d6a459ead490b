"""Images of a split in batches of normalised tensors, which depend on numbers and seed alone, not on workers or memory.

Shapes: B images per batch, S `img_size`.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from itertools import islice
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from ltmsearch.data.images import pillow_quiet
from ltmsearch.data.subsets import ImageSplit, quoted
from ltmsearch.data.transforms import Transform, Transforms, preserve_random_state, seed_all
from ltmsearch.errors import InputError

Key = tuple[int, int]  # the number of an image, and its place in the stream, which seeds its augmentation
Batches = Iterator[tuple[Tensor, Tensor]]


def load_batches(
    images: ImageSplit,
    transforms: Transforms,
    keys: Iterator[Key],
    number: int,
    *,
    batch_size: int,
    workers: int,
    augment_seed: int | None = None,
    cached: bool = True,
    replaced: bool = True,
) -> Batches:
    """`number` images in batches, float32 (B, channels, S, S), and their labels, int64 (B,).

    Args:
        keys: Of images in their order; the next readable one replaces one that is not, if `replaced`.
        augment_seed: Of the training transform; None: evaluation's.
        cached: Whether results of evaluation's are kept, if the split keeps any.

    Raises:
        InputError: If an unreadable image cannot be replaced.
    """
    transform = transforms.evaluation if augment_seed is None else transforms.train
    cache = images.tensor_cache if cached and augment_seed is None else None
    pixels: list[Tensor] = []
    done: list[Key] = []
    while number > 0:
        ahead = list(islice(keys, number))
        if not ahead:
            raise InputError(f"too few images are readable; unreadable are {quoted(images.skipped())}")
        loader: DataLoader[Any] = DataLoader(
            ahead,  # type: ignore[arg-type]  # a list does; `_load` turns the keys into images, in the workers
            batch_size=batch_size,
            num_workers=min(workers, -(-len(ahead) // batch_size)),
            collate_fn=partial(_load, images, transform, augment_seed, cache),
            generator=torch.Generator(),  # or the loader draws from the global one
        )
        for read, unreadable, rows in loader:
            images.unreadable.update(unreadable)
            pixels.extend(rows)
            done.extend(read)
            number -= len(read) if replaced else len(read) + len(unreadable)
            while len(pixels) >= batch_size or (pixels and number == 0):
                batch = transforms.normalize(torch.stack(pixels[:batch_size]).float().div_(255))
                if augment_seed is not None:
                    transforms.erase_(batch, [f"{augment_seed}/{place}/erasing" for _, place in done[:batch_size]])
                yield batch, torch.from_numpy(images.labels[[index for index, _ in done[:batch_size]]])
                del pixels[:batch_size], done[:batch_size]


@pillow_quiet()
def _load(
    images: ImageSplit, transform: Transform, seed: int | None, cache: dict[int, Tensor] | None, keys: list[Key]
) -> tuple[list[Key], list[int], Tensor]:
    """The keys of readable images, the numbers of unreadable ones, and the transformed pixels.

    Pixels are uint8 (B, channels, S, S).
    Without a seed the transform draws nothing, and its results may be in `cache`, by number.
    """
    readable, unreadable, rows = [], [], []
    with preserve_random_state() if seed is not None else nullcontext():
        for index, place in keys:
            if cache is not None and index in cache:
                row = cache[index]
            elif (pixels := images.pixels(index)) is None:
                unreadable.append(index)
                continue
            else:
                if seed is not None:
                    seed_all(f"{seed}/{place}")
                row = transform(Image.fromarray(pixels).convert(images.mode))
                if cache is not None:
                    cache[index] = row
            readable.append((index, place))
            rows.append(row)
    return readable, unreadable, torch.stack(rows) if rows else torch.empty(0)
