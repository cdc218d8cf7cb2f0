"""Deep linear networks in NumPy, written from the formulas in homogeneous coordinates; imports nothing from the package.

Layers are matrices [W | b] or W. Every layer becomes W̄ = [[W, b], [0, 1]], the function W̄_L ⋯ W̄_1 [x; 1] without its last row.
"""

import numpy as np


def lifted(layer, width):
    """W̄ of one layer with `width` inputs."""
    W, b = (layer[:, :-1], layer[:, -1]) if layer.shape[1] > width else (layer, np.zeros(len(layer)))
    return np.block([[W, b[:, None]], [np.zeros((1, width)), np.ones((1, 1))]])


def products(layers, width):
    """A_i (C, n_i), B̄_i (what layer i receives, per column of its matrix; D + 1 columns), total map (C, D + 1)."""
    full, widths = [], [width]
    for layer in layers:
        full.append(lifted(layer, widths[-1]))
        widths.append(len(layer))
    above, below = [], []
    for i, layer in enumerate(layers):
        A, B = np.eye(len(layer) + 1), np.eye(width + 1)
        for W in full[:i]:
            B = W @ B
        for W in full[i + 1 :]:
            A = W @ A
        above.append(A[:-1, :-1])
        below.append(B if layer.shape[1] > widths[i] else B[:-1])
    total = np.eye(width + 1)
    for W in full:
        total = W @ total
    return above, below, total[:-1]


def outputs(layers, X):
    for layer in layers:
        X = X @ layer[:, : X.shape[1]].T + (layer[:, -1] if layer.shape[1] > X.shape[1] else 0)
    return X


def loss(layers, X, Y, covariance=None):
    off = Y - outputs(layers, X)
    inverse = np.eye(Y.shape[1]) if covariance is None else np.linalg.inv(covariance)
    return np.einsum("nc,cd,nd->", off, inverse, off) / (2 * len(X))


def jacobian(layers, X):
    """∂ f(x_n) / ∂ (rows of the layers), (N, C, P), one example at a time."""
    above, below, _ = products(layers, X.shape[1])
    rows = [[np.kron(A, (B @ np.append(x, 1.0))[None]) for A, B in zip(above, below, strict=True)] for x in X]
    return np.stack([np.concatenate(row, axis=1) for row in rows])


def fisher_and_gradient(layers, X, Y, covariance=None):
    """F (P, P) and g (P,), sums over examples."""
    J = jacobian(layers, X)
    inverse = np.eye(Y.shape[1]) if covariance is None else np.linalg.inv(covariance)
    off = outputs(layers, X) - Y
    return np.einsum("ncp,cd,ndq->pq", J, inverse, J) / len(X), np.einsum("ncp,cd,nd->p", J, inverse, off) / len(X)


def best_outputs(X, Y, has_bias):
    """Least squares on the data, by the normal equations' pseudo-inverse."""
    X = np.hstack([X, np.ones((len(X), 1))]) if has_bias else X
    return X @ np.linalg.pinv(X) @ Y


def change_of_outputs(layers, directions, X):
    """First-order change of the outputs on the data, (N, C)."""
    flat = np.concatenate([V.ravel() for V in directions])
    return jacobian(layers, X) @ flat


def one_bottleneck(layers, sigma, best, k):
    """Without biases, layers 1 … k below the narrow one and k + 1 … L above it: the overlap all to the upper layers."""
    above, below, total = products(layers, len(sigma))
    B = [b[:, :-1] for b in below]
    E, L, pinv = total[:, :-1] - best, len(layers), np.linalg.pinv
    P = above[k - 1] @ pinv(above[k - 1])
    Q = sigma @ B[k].T @ pinv(B[k] @ sigma @ B[k].T) @ B[k]
    lower = [pinv(above[i]) @ P @ E @ (np.eye(len(sigma)) - Q) @ pinv(B[i]) / k for i in range(k)]
    return lower + [pinv(above[i]) @ E @ Q @ pinv(B[i]) / (L - k) for i in range(k, L)]


def crossing_time(start, best, horizon=12.0, points=200_000):
    """First t at which det(W* + e^(−t) (W(0) − W*)) changes its sign, by a fine grid and bisection; inf if never."""
    times = np.linspace(0, horizon, points)
    signs = np.sign(np.linalg.det(best + np.exp(-times)[:, None, None] * (start - best)))
    changes = np.flatnonzero(signs[1:] != signs[:-1])
    if not len(changes):
        return np.inf
    low, high = times[changes[0]], times[changes[0] + 1]
    for _ in range(60):
        middle = (low + high) / 2
        same = np.sign(np.linalg.det(best + np.exp(-middle) * (start - best))) == signs[changes[0]]
        low, high = (middle, high) if same else (low, middle)
    return low


def gradient_flow(layers, cross, time, steps):
    """Plain gradient flow on ½ E‖y − W x‖² with E[xxᵀ] = I and E[yxᵀ] = cross: fourth-order steps on all matrices at once."""

    def speed(layers):
        below, above = [np.eye(cross.shape[1])], [np.eye(cross.shape[0])]
        for W in layers:
            below.append(W @ below[-1])
        for W in layers[:0:-1]:
            above.insert(0, above[0] @ W)
        E = below[-1] - cross
        return [-A.T @ E @ B.T for A, B in zip(above, below[:-1], strict=True)]

    h = time / steps
    for _ in range(steps):
        k1 = speed(layers)
        k2 = speed([W + h / 2 * k for W, k in zip(layers, k1, strict=True)])
        k3 = speed([W + h / 2 * k for W, k in zip(layers, k2, strict=True)])
        k4 = speed([W + h * k for W, k in zip(layers, k3, strict=True)])
        layers = [W + h / 6 * (a + 2 * b + 2 * c + d) for W, a, b, c, d in zip(layers, k1, k2, k3, k4, strict=True)]
    total = np.eye(cross.shape[1])
    for W in layers:
        total = W @ total
    return total
