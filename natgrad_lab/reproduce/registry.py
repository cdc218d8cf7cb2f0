"""The one list of reproductions: name → claim, criterion and how it is measured."""

from natgrad_lab.reproduce.base import Reproduction
from natgrad_lab.reproduce.deep_linear_rate import DEEP_LINEAR_RATE
from natgrad_lab.reproduce.invariance import INVARIANCE
from natgrad_lab.reproduce.kfac_autoencoder import KFAC_AUTOENCODER
from natgrad_lab.reproduce.kfac_fisher_quality import KFAC_FISHER_QUALITY
from natgrad_lab.reproduce.kfc_cnn import KFC_CNN
from natgrad_lab.reproduce.online_ngd_autoencoder import ONLINE_NGD_AUTOENCODER
from natgrad_lab.reproduce.prong_fig2 import PRONG_FIG2
from natgrad_lab.reproduce.prong_fig3 import PRONG_FIG3
from natgrad_lab.reproduce.prong_fig4_cifar import PRONG_FIG4_CIFAR
from natgrad_lab.reproduce.sngd import SNGD_BATCHNORM, SNGD_CIFAR, SNGD_MNIST, SNGD_PTB

_ALL = (
    PRONG_FIG2, PRONG_FIG3, PRONG_FIG4_CIFAR, DEEP_LINEAR_RATE, ONLINE_NGD_AUTOENCODER, SNGD_MNIST, SNGD_BATCHNORM,
    SNGD_CIFAR, SNGD_PTB, KFAC_FISHER_QUALITY, KFAC_AUTOENCODER, KFC_CNN, INVARIANCE,
)  # fmt: skip
REPRODUCTIONS: dict[str, Reproduction] = {each.name: each for each in _ALL}
