"""What each data set is, whose, under which licence, and from which files. `natgrad data` prints this table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class About:
    """Facts for people. `files` are keys of FILES, empty if nothing is downloaded; `more`: those of other versions."""

    what: str
    origin: str
    licence: str
    files: tuple[str, ...] = ()
    more: tuple[str, ...] = ()


_IDX = (
    "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz",
)  # fmt: skip
_OLIVETTI = ("olivetti/olivettifaces.mat",)
_FACES = "Olivetti faces, AT&T Laboratories Cambridge, 1992-1994 (the pictures as S. Roweis kept them, .mat saved anew)"

ABOUT: dict[str, About] = {
    "digits": About(
        "1797 handwritten digits, 8 x 8, 10 classes; shipped",
        "E. Alpaydin, C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning "
        "Repository, doi:10.24432/C50P49 (its test part)",
        "CC BY 4.0",
    ),
    "gaussian_blobs": About("classes drawn from Gaussians", "generated from a seed", "CC0"),
    "linear_teacher": About("regression on a noisy linear map", "generated from a seed", "CC0"),
    "curves": About(
        "pictures of smooth curves, 28 x 28, for autoencoders; a STAND-IN for CURVES",
        "generated from a seed: a stand-in for CURVES of G. Hinton, R. Salakhutdinov (2006), not that set",
        "CC0",
    ),
    "textures": About("noisy stripes, 12 x 12, 4 directions, for convolutions", "generated from a seed", "CC0"),
    "mnist": About(
        "60,000 + 10,000 handwritten digits, 28 x 28, 10 classes",
        "Y. LeCun, C. Cortes, C. Burges, MNIST",
        "CC BY-SA 3.0 is what is usually stated",
        tuple(f"mnist/{name}" for name in _IDX),
    ),
    "fashion_mnist": About(
        "60,000 + 10,000 pieces of clothing, 28 x 28, 10 classes",
        "H. Xiao, K. Rasul, R. Vollgraf (2017), Fashion-MNIST, Zalando SE",
        "MIT",
        tuple(f"fashion-mnist/{name}" for name in _IDX),
    ),
    "cifar10": About(
        "50,000 + 10,000 colour pictures, 3 x 32 x 32, 10 classes",
        "A. Krizhevsky (2009), CIFAR-10",
        "none stated; free for research, cite the report",
        ("cifar10/cifar-10-binary.tar.gz",),
        (
            "cifar10/data_batch_1_first4000.bin.gz", "cifar10/cifar-10-images-jpeg.tar.gz", "cifar10/train_labels.npy",
            "cifar10/test_labels.npy",
        ),
    ),
    "olivetti_faces": About(
        "400 faces of 40 people, 64 x 64", _FACES, "AT&T Laboratories Cambridge; use with acknowledgement", _OLIVETTI
    ),
    "faces": About(
        "patches of faces, 25 x 25, for autoencoders; a STAND-IN for FACES",
        f"made from {_FACES}: a stand-in for FACES of G. Hinton, R. Salakhutdinov (2006), not that set",
        "AT&T Laboratories Cambridge; use with acknowledgement",
        _OLIVETTI,
    ),
    "penn_treebank": About(
        "929,589 + 73,760 + 82,430 words of English, 10,000 different ones",
        "M. Marcus, B. Santorini, M. Marcinkiewicz (1993), Penn Treebank, as prepared by T. Mikolov",
        "LDC's for the text: use it, do not pass it on",
        ("ptb/ptb.train.txt", "ptb/ptb.valid.txt", "ptb/ptb.test.txt"),
    ),
}  # fmt: skip


def credit(name: str, detail: str = "") -> dict[str, str]:
    """The `source` and `licence` of a Dataset; `detail` says which part of the set, or how it was made."""
    about = ABOUT[name]
    return {"source": f"{about.origin}; {detail}" if detail else about.origin, "licence": about.licence}
