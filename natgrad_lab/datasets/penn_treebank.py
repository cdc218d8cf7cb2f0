"""The Penn Treebank as words: to predict the next one at every place."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch

from natgrad_lab.datasets.about import credit
from natgrad_lab.datasets.dataset import Dataset, check_counts
from natgrad_lab.datasets.download import fetch
from natgrad_lab.names import known

SPLITS = ("train", "valid", "test")
END, UNKNOWN = "<eos>", "<unk>"


def penn_treebank(split: str = "train", *, length: int = 35, num_words: int | None = None) -> Dataset:
    """Words of the Penn Treebank: word numbers (N, length), and at each place the next word as target. Downloaded.

    The text is one stream, each line closed by <eos>, cut into rows of `length` one after the other; the words at its end
    that fill no row are left out (`source` says how many). Words are numbered by how often the train part has them, the
    most frequent first, equal ones by the alphabet; `classes` holds them by number.

    Args:
        split: "train", "valid" or "test".
        num_words: keep only so many words of the train part, <unk> always among them; all others become <unk>
            (`source` says how many). None keeps all 10,000.
    Raises: FileNotFoundError if the files can be had nowhere, saying what to do.
    References: [Marcus1993], in the form of [Mikolov2010].
    """
    known(split, SPLITS, "split of penn_treebank")
    check_counts(length=length)
    train = read_words(fetch("ptb/ptb.train.txt"))
    words = vocabulary(train, num_words)
    stream = train if split == "train" else read_words(fetch(f"ptb/ptb.{split}.txt"))
    number = {word: index for index, word in enumerate(words)}
    rare = sum(word not in number for word in stream)
    if rare and UNKNOWN not in number:
        raise ValueError(f"{rare} words of the {split} part are not in the train part, which has no {UNKNOWN} to put there.")
    ids = torch.from_numpy(np.fromiter((number.get(word, number.get(UNKNOWN)) for word in stream), np.int64, len(stream)))
    rows = (len(ids) - 1) // length
    if rows < 1:
        raise ValueError(f"length must be less than the {len(ids)} words of the {split} part; got {length}.")
    left = len(ids) - 1 - rows * length
    detail = f"{split} part in rows of {length} words, {left} at its end left out; {len(words)} different words"
    detail += f", {rare} others are {UNKNOWN}" if num_words is not None else ""
    inputs, targets = (ids[shift : shift + rows * length].unflatten(0, (rows, length)) for shift in (0, 1))
    return Dataset("penn_treebank", inputs, targets, words, **credit("penn_treebank", detail))


def read_words(path: Path) -> list[str]:
    """The words of a text, a line's end as <eos>."""
    return path.read_text(encoding="utf-8").replace("\n", f" {END} ").split()


def vocabulary(words: list[str], num_words: int | None) -> tuple[str, ...]:
    """The different words, most frequent first; with `num_words` only so many, of which <unk> is one."""
    counts = Counter(words)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    if num_words is None:
        return tuple(ranked)
    if not 1 <= num_words <= len(ranked):
        raise ValueError(f"num_words must be between 1 and the {len(ranked)} words of the train part; got {num_words}.")
    kept = ranked[:num_words]
    return tuple(kept if UNKNOWN in kept else [*kept[:-1], UNKNOWN])
