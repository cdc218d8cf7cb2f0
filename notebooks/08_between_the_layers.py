# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Cut neither the Fisher nor its inverse: build a chain
#
# - **Objectives.** Explain why setting blocks of a Fisher to zero can destroy it. Build the matrix that keeps the blocks of
#   neighbouring layers and whose inverse is zero beyond. Judge what that is worth. Choose a step's length and momentum with
#   one exact 2 × 2 system.
# - **You need.** Lesson 03 (efficiency, damping), lesson 07 (K-FAC's factors, factored damping).
# - **Time.** 75 minutes for you, 20 seconds for the machine.
#
# The row of the spine table that we fill here:
#
# | method | input side | output side | across layers | refresh | equals the natural gradient when |
# |---|---|---|---|---|---|
# | K-FAC, block-tridiagonal | ? | ? | ? | ? | ? |

# %%
import numpy as np
import torch

import natgrad_lab as ng
from natgrad_lab.course.cards import lesson08 as chain

torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## The smallest case: three layers of one weight
#
# Three weights in a row, one for each layer. Gradients of neighbours are correlated with $0.9$. So the first and the third
# are correlated too, through the second. K-FAC's blocks forget all of that. Can we keep the neighbours and set only the
# corner to zero?

# %%
cut = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.9], [0.0, 0.9, 1.0]])
whole = torch.tensor([[1.0, 0.9, 0.81], [0.9, 1.0, 0.9], [0.81, 0.9, 1.0]])
for name, matrix in (("corner cut", cut), ("corner 0.9 · 0.9", whole)):
    print(
        name, torch.linalg.eigvalsh(matrix).numpy().round(3), "inverse:", *torch.linalg.inv(matrix).numpy().round(2), sep="\n"
    )
assert torch.linalg.eigvalsh(cut)[0] < 0 and abs(torch.linalg.inv(whole)[0, 2]) < 1e-12

# %% [markdown]
# The matrix with the zero has the eigenvalue $1 - 0.9\sqrt2 < 0$. No random variables have such a covariance, and as a
# metric it would give some updates a negative length. The other matrix is the covariance of a **chain**: the first weight
# reaches the third only through the second. Its corner is not zero, it is $0.9 \cdot 0.9$. But look at its *inverse*: there
# the corner is exactly zero.
#
# That is the idea of block-tridiagonal K-FAC: do not put zeros into the covariance. Ask for zeros in the inverse.
#
# ## A network of five layers
#
# **Predict**, then **move** what is cut and how many neighbours are kept. **Watch** the headline, and which blocks are empty.

# %%
ng.widgets.card("truncate_what")

# %% [markdown]
# **How to read it.** Each cell is a block: the gradient of one layer with that of another, as a root mean square on a
# logarithmic scale. Left is the matrix that stands for $F + \lambda I$, right its inverse, which multiplies the gradient.
# Empty cells are zeros. We print all three ways for one neighbour on each side.

# %%
print("λ = 0.01, one neighbour             smallest eigenvalue   efficiency of the step")
for steps in chain.SHOWN:
    for cut in chain.CUTS:
        found = chain.truncated(cut, 1, 0.01, steps)
        share = f"{100 * found['efficiency']:.0f} %" if found["least"] > 0 else "no metric"
        print(f"{steps:2} steps  {cut:36} {found['least']:9.3f}   {share:>10}")
    blocks = chain.truncated("cut F", 0, 0.01, steps)
    print(f"{steps:2} steps  {'blocks alone':36} {blocks['least']:9.3f}   {100 * blocks['efficiency']:8.0f} %")

# %% [markdown]
# ## What we saw
#
# Cutting $F$ fails as in the smallest case: the smallest eigenvalue is **−0.36**<!--cut_fisher_eigenvalue-->. Cutting the
# *inverse* keeps it positive here, and the step is bad: it reaches **22**<!--cut_inverse_percent--> % of the possible
# decrease where the blocks alone reach **84**<!--exact_blocks_percent--> %. To take entries out of a finished inverse is
# not the same as to ask for an inverse that has none there. The chain asks for it, keeps the blocks of $F$ where it is
# free, and reaches **96**<!--exact_chain_percent--> %. After 30 steps the blocks alone reach
# **71**<!--exact_blocks_later_percent--> % and the chain **94**<!--exact_chain_later_percent--> %.
#
# ## A chain of layers
#
# Let $w_i$ be the gradient of layer $i$, as a random vector. In a chain each layer is explained by the next one and
# something new:
#
# $$w_i = \Psi_i\, w_{i+1} + \text{rest}, \qquad \Psi_i = F_{i,i+1} F_{i+1,i+1}^{-1}, \qquad
# \Sigma_i = F_{ii} - \Psi_i F_{i+1,i+1} \Psi_i^\top .$$
#
# $\Psi_i$ is the best linear prediction of layer $i$ from layer $i+1$, and $\Sigma_i$ the covariance of what it leaves. The
# last layer has $\Sigma_L = F_{LL}$. Solve for the rests, $\mathrm{rest} = \Xi w$, where $\Xi$ is the identity with
# $-\Psi_i$ at the place $(i, i+1)$. Rests are independent, so with $\Lambda = \mathrm{diag}(\Sigma_1^{-1}, \ldots,
# \Sigma_L^{-1})$
#
# $$\hat F^{-1} = \Xi^\top \Lambda\, \Xi .$$
#
# It is positive definite by its form, it is zero beyond the neighbours, and $\hat F$ has the blocks $F_{ii}$ and
# $F_{i,i+1}$ that we put in. K-FAC gives each of these as a product, $F_{i,i+1} \approx G_{i,i+1} \otimes A_{i,i+1}$. Then
# $\Psi_i$ is a product too, and nothing large is ever formed. We check all three properties on the package's structure.

# %%
now = chain.moment(30)
factors = [tuple(M[i][i] for i in range(5)) for M in (now.G, now.A)]
crosses = [tuple(M[i][i + 1] for i in range(4)) for M in (now.G, now.A)]
F_hat = ng.structures.tridiagonal_tikhonov(ng.structures.BlockTridiagonalInverse(*factors, *crosses), 0.01)
dense, F_tilde = F_hat.to_dense(), chain.damped(30, 0.01, "kronecker", "factored")
inverse, far = torch.linalg.inv(dense), lambda i, j: abs(i - j) > 1
near_error = (now.only(dense - F_tilde, lambda i, j: abs(i - j) <= 1)).norm() / F_tilde.norm()
print(f"blocks kept: {near_error:.0e}   beyond, in the inverse: {now.only(inverse, far).norm() / inverse.norm():.0e}")
print(f"smallest eigenvalue of the inverse: {torch.linalg.eigvalsh(inverse)[0]:.3f}")
assert near_error < 1e-8 and torch.allclose(inverse, chain.chain_inverse(F_tilde, now.layers, 1), atol=1e-8)

# %% [markdown]
# The last line compares with a second formula. For a chain the inverse is also the sum over pairs of neighbours of the
# inverse of their two-layer matrix, minus the inverses of the layers that two pairs share. It is what the first card uses.
#
# ## Exercise 8.1: the chain's inverse
#
# `A` and `G` are lists of the factors $A_{ii}$ and $G_{ii}$ of the layers, `A_cross[i]` is $A_{i,i+1}$, `G_cross[i]` is
# $G_{i,i+1}$. First add `root` times the identity to every $A_{ii}$ and $G_{ii}$ (the crosses stay). Then return $\hat
# F^{-1}$ as one matrix; block $(i, j)$ belongs to layers $i$ and $j$, and a product is `torch.kron(G, A)`.


# %%
def tridiag_inverse(A, G, A_cross, G_cross, root):
    """Return the (P, P) inverse of the chain, zero beyond neighbouring layers."""
    raise NotImplementedError("Exercise 8.1")


# %%
ng.course.check("8.1", tridiag_inverse)

# %% [markdown]
# ## Is the structure in the inverse?
#
# Martens and Grosse saw that $\tilde F$, K-FAC's matrix with the blocks of all pairs of layers, is full, and that its
# inverse is nearly block-tridiagonal. Then a chain is the right model. We measure the share of all $|\text{entries}|$ that
# lies beyond the neighbours, in the matrix and in its inverse, with K-FAC's damping of the diagonal blocks and with
# $\lambda I$.

# %%
print("share beyond the neighbours     F̃      F̃⁻¹")
for how in ("factored", "λI"):
    for steps in chain.SHOWN:
        matrix_share, inverse_share = chain.far_share(steps, 0.01, how)
        print(f"{how:9} damping, {steps:2} steps  {matrix_share:6.3f}   {inverse_share:6.3f}")

# %% [markdown]
# With factored damping the claim holds: after 30 steps **16.3**<!--far_share_matrix--> % lie beyond the neighbours in the
# matrix and **10.8**<!--far_share_inverse--> % in its inverse; at initialization it is
# **35.8**<!--far_share_matrix_start--> % against **6.6**<!--far_share_inverse_start--> %. With $\lambda I$ of the same
# $\lambda$ it does not: after 30 steps the inverse has **21.4**<!--far_share_inverse_plain--> %. Small eigenvalues rule an
# inverse, and the damping decides how small they are. So the sentence "the inverse is block-tridiagonal" needs its damping
# said. In the kept reproduction on a larger network, with factored damping, the share of the inverse is about a fifth of
# that of the matrix, in the median (`docs/reproductions.md`, kfac-fisher-quality).
#
# ## Exercise 8.2: blocks at a glance
#
# `M` is (P, P), `sizes` a list of the layers' numbers of parameters. Return the (L, L) mean absolute entries of the blocks.


# %%
def block_profile(M, sizes):
    """Return the mean absolute entry of each block, (L, L)."""
    raise NotImplementedError("Exercise 8.2")


# %%
ng.course.check("8.2", block_profile)

# %% [markdown]
# ## What neighbours are worth
#
# The chain is a better matrix. Is its step better? The card shows the ladder from the gradient to the exact step.

# %%
ng.widgets.card("between_layers_ladder")

# %% [markdown]
# **How to read it.** Share of the possible decrease. The three bars of K-FAC use factors: blocks alone, the chain, and the
# blocks of all pairs. The exact ones use the true blocks. We print what the chain adds for all dampings.

# %%
print("K-FAC chain − K-FAC blocks, in points of the possible decrease (factored damping)")
for steps in chain.SHOWN:
    rungs = [chain.ladder(steps, damping, "factored") for damping in (1e-3, 1e-2, 1e-1, 1.0)]
    gains = "".join(f"{100 * (each['K-FAC chain'] - each['K-FAC blocks']):+6.1f}" for each in rungs)
    print(f"{steps:2} steps, λ = 0.001, 0.01, 0.1, 1: {gains}")
    assert all(each["K-FAC chain"] > each["K-FAC blocks"] - 0.01 for each in rungs)

# %% [markdown]
# The chain is ahead everywhere, after 30 steps by **25**<!--chain_gain_small_damping--> points at $\lambda = 0.001$ and by
# **4**<!--chain_gain_large_damping--> at $\lambda = 1$: the more damping, the less there is to gain, because damping enters
# on the diagonal. And the chain is nearly as good as all blocks of $\tilde F$. What is missing to the exact step is the
# fault of the factors, not of the chain: the exact chain reaches **94**<!--exact_chain_later_again_percent--> %.
#
# **Predict.** What does the chain cost?
#
# <details><summary>Answer</summary>
# The factors between neighbours, as many numbers again, and for each layer one more pair of eigendecompositions, because Σ
# is a difference of two Kronecker products. About twice the work of the blocks for an update, and a few times when inverses
# are renewed. The authors recommend the blocks when seconds count.
# </details>
#
# ## Exercise 8.3: which matrix to take
#
# Several candidates `P`, each a symmetric (n, n) matrix to multiply the gradient with. Return the index of the one whose
# step `P @ g` has the largest efficiency against `F + damping * I`, among those that are positive definite. The others are
# no metric: refuse them, however good their step looks for this one gradient.


# %%
def choose_truncation(candidates, F, g, damping):
    """Return the index of the best positive definite candidate."""
    raise NotImplementedError("Exercise 8.3")


# %%
ng.course.check("8.3", choose_truncation)

# %% [markdown]
# ## How far, and how much momentum
#
# K-FAC's direction $\Delta$ comes from an approximation, and its length cannot be trusted. But along a *given* direction
# the exact Fisher is cheap: $\Delta^\top F \Delta$ takes one forward derivative, no matrix. So K-FAC lets the exact Fisher
# choose two numbers, how much of $\Delta$ and how much of the last update $\delta_0$ to take:
#
# $$\delta = \alpha \Delta + \mu\, \delta_0, \qquad M(\delta) = g^\top\delta + \tfrac12 \delta^\top (F + \lambda I)\, \delta .$$
#
# With $F_\lambda = F + \lambda I$, setting both derivatives to zero is a 2 × 2 system:
#
# $$\begin{pmatrix} \Delta^\top F_\lambda \Delta & \Delta^\top F_\lambda \delta_0 \\ \delta_0^\top F_\lambda \Delta &
# \delta_0^\top F_\lambda \delta_0 \end{pmatrix} \begin{pmatrix} \alpha \\ \mu \end{pmatrix}
# = - \begin{pmatrix} g^\top \Delta \\ g^\top \delta_0 \end{pmatrix}.$$

# %%
Q, b = chain.quadratic(10, gamma=0.01, damping=1e-3)
alpha, mu = -np.linalg.solve(Q, b)
promised, at_one = -0.5 * b @ [alpha, mu], -(b[0] + Q[0, 0] / 2)
print(f"α = {alpha:.2f}, μ = {mu:.2f} promise a decrease of {promised:.3f} nats; α = 1, μ = 0 one of {at_one:.3f} nats")
rng = np.random.default_rng(0)
others = np.array([alpha, mu]) + rng.normal(size=(1000, 2))
assert all(b @ x + x @ Q @ x / 2 >= -promised for x in others)

# %%
ng.widgets.card("alpha_mu_plane")

# %% [markdown]
# **How to read it.** Blue is lower than now, red is higher; the star is the model's best point, the cross is K-FAC's own
# length. Show "the loss itself" and compare: near the origin the two agree, far out they do not.
#
# After 10 steps K-FAC's own length, $\alpha = 1$, would *raise* the model by **1.49**<!--rise_at_one--> nats. The best is
# $\alpha$ = **0.37**<!--best_alpha--> with $\mu$ = **0.46**<!--best_mu-->, and promises **0.165**<!--promised_decrease-->
# nats. Without momentum it would be **0.151**<!--promised_alone-->. Blocks that know nothing of each other each take a full
# step, and together they go too far; one exact product notices. That is why K-FAC works with small damping at all.
#
# There are now two dampings. $\lambda$ says how far the quadratic model $M$ is trusted; it is adapted by comparing what $M$
# promised with what happened (lesson 03). $\gamma^2$ takes the place of $\lambda$ in the factors; it is a property of the
# *approximation*, and K-FAC tries three values now and then and keeps the one with the lowest $M$. Lesson 09 finds a bug in
# such a loop.
#
# ## Exercise 8.4: the 2 × 2 system
#
# `g`, `step` (that is $\Delta$) and `last` ($\delta_0$) are (P,), `F` is the exact Fisher (P, P). Return $(\alpha, \mu)$.
# At the first update there is no last one: then `last` is None and $\mu$ is 0. A last update of zeros must not be an error
# either.


# %%
def alpha_mu(g, step, last, F, damping):
    """Return the pair (α, μ) that minimizes the quadratic model."""
    raise NotImplementedError("Exercise 8.4")


# %%
ng.course.check("8.4", alpha_mu)

# %% [markdown]
# ## Break it
#
# How deep must a network be for the cut to fail? Take $L$ layers of one weight, all neighbours perfectly correlated: ones
# on three diagonals, zeros elsewhere. Its eigenvalues are $1 + 2\cos\frac{k\pi}{L+1}$. **Predict**: for which depths is the
# cut matrix singular?
#
# <details><summary>Answer</summary>
# Where the cosine is −½, that is k / (L + 1) = 2/3: for L = 2, 5, 8, ... From L = 3 on there are negative eigenvalues as well.
# </details>

# %%
for L in range(1, 10):
    ones = torch.diag(torch.ones(L)) + torch.diag(torch.ones(L - 1), 1) + torch.diag(torch.ones(L - 1), -1)
    values = torch.linalg.eigvalsh(ones)
    formula = 1 + 2 * torch.cos(torch.arange(L, 0, -1) * torch.pi / (L + 1))
    assert torch.allclose(values, formula)
    print(f"L = {L}: smallest |eigenvalue| {values.abs().min():.3f}, negative ones: {int((values < -1e-9).sum())}")

# %% [markdown]
# A linear network whose layers all do the same is like that. Damping helps only if it is larger than the most negative
# eigenvalue, and that tends to −1 with depth.
#
# ## Limits
#
# - Networks with 442 parameters and one seed. In the kept reproduction the chain's step is ahead of the blocks' at
#   initialization on all seeds, by at least a tenth of the possible decrease.
# - An efficiency judges one step. Whether the chain trains faster, in updates or in seconds, is a question of lesson 09.
# - The order of the layers is the order of the chain. A network with skips is no chain.
#
# ## Summary
#
# 1. Zeros in a covariance can destroy it; zeros in its inverse say that layers meet only through their neighbours.
# 2. The chain keeps the neighbours' blocks and is positive definite; it is worth most where the damping is small.
# 3. The exact Fisher along two directions costs little and corrects the length of any approximate step.
#
# The row, filled:
#
# | method | input side | output side | across layers | refresh | equals the natural gradient when |
# |---|---|---|---|---|---|
# | K-FAC, block-tridiagonal | $A_{ii}, A_{i,i+1}$ | $G_{ii}, G_{i,i+1}$ | chain | every 20 | gradients form a chain |
#
# ## Three questions from earlier lessons
#
# 1. Which two assumptions make K-FAC, and which one did we weaken here?
# 2. In a deep linear network every layer's block step moves the function as far as needed. What does the exact formula do
#    about that?
# 3. Why does a damped step depend on coordinates?
#
# <details><summary>Answers</summary>
# 1. Activations and scores are independent; layers are uncorrelated. The second (lesson 07). 2. It divides by the number of
#    layers (lesson 04); here α does so, by measurement. 3. λI is the Euclidean length of one coordinate system (lessons 03
#    and 07).
# </details>
#
# ## References
#
# - [MartensGrosse2015] section 4 and appendix B on the chain, section 6 and 7 on α, μ, λ and γ.
# - [Bernacchia2018] on the division by the depth.
#
# Full entries are in `docs/references.md`.
