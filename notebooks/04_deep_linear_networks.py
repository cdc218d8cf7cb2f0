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
# # In linear networks the natural gradient is solvable, and depth costs nothing
#
# - **Objectives.** Derive the natural gradient of a deep linear network, layer by layer. Prove its rate. Know when it
#   holds, and where it ends. Explain why block-diagonal K-FAC works there.
# - **You need.** Lesson 03 (natural gradient, damping); matrix products, the pseudo-inverse $M^+$.
# - **Time.** 80 minutes for you, 30 seconds for the machine.
#
# The row of the spine table that we fill here:
#
# | method | input side | output side | across layers | refresh | equals the natural gradient when |
# |---|---|---|---|---|---|
# | deep linear, exact | ? | ? | ? | every step | ? |

# %%
import math

import torch

import natgrad_lab as ng
from natgrad_lab.course.cards import lesson04 as lesson
from natgrad_lab.notebooks import is_fast

torch.set_default_dtype(torch.float64)
likelihood = ng.likelihoods.Gaussian()

# %% [markdown]
# ## Two numbers in a row
#
# The smallest deep network is $f = w_2 w_1 x$. Take $E[x^2] = 1$, the target $y = x$, and small weights, $w_1 = w_2 =
# 0.1$. The loss is $\tfrac12 (w_2 w_1 - 1)^2$, and the gradient of each weight holds the *other* weight as a factor.

# %%
w = torch.tensor([0.1, 0.2])
error = w.prod() - 1
g = error * w.flip(0)
print(f"product {w.prod():.2f}, error {error:.2f}, gradient {g}")

# %% [markdown]
# Weights are small, so gradients are. That is a plateau, and depth makes it worse: with $L$ weights of `0.1` the gradient
# is $0.1^{L-1}$ times the error. Now the Fisher. With $r = (w_2, w_1)$, the derivative of the product, $F = r r^\top$
# and $g = \text{error} \cdot r$. All $v$ with $r^\top v = \text{error}$ solve $F v = g$.

# %%
r = w.flip(0)
F = torch.outer(r, r)
for name, v in (("shortest", torch.linalg.pinv(F) @ g), ("first weight alone", torch.tensor([error / r[0], 0.0])),
                ("equal shares", error / 2 / r)):  # fmt: skip
    print(f"{name:20} v = {v}   F v − g = {(F @ v - g).abs().max():.0e}   change of the product {r @ v:.2f}")
    assert torch.allclose(F @ v, g) and torch.isclose(r @ v, error)

# %% [markdown]
# Three natural gradients, one change of the function: exactly the error. The plateau is gone, whatever the size of
# the weights. In the rest of this lesson numbers become matrices.

# %% [markdown]
# ## One mode after the other
#
# A network $f(x) = W_L \cdots W_1 x$ on white inputs learns the singular values $s$ of its target, the **modes**. If
# the layers begin aligned with them and balanced, gradient flow moves each strength by itself,
#
# $$\dot u = L\, u^{2 - 2/L} (s - u), \qquad\text{and natural gradient flow:}\qquad \dot u = s - u .$$

# %%
ng.widgets.card("learning_modes")

# %% [markdown]
# **How to read it.** Each curve is one mode. With two layers the weakest mode, an eighth as strong as the strongest,
# takes **5.2**<!--plateau--> times as long to be half learned. Deeper networks wait longer, and smaller initial
# weights make all of it worse. Under natural gradient flow the ratio is **1.0**<!--plateau_of_natural-->.

# %% [markdown]
# ## Infinitely many natural gradients
#
# Let $A_i = W_L \cdots W_{i+1}$ be the product above layer $i$, and $B_i = W_{i-1} \cdots W_1$ the product below. A
# change $V_i$ of each layer changes the product of all layers by $\sum_i A_i V_i B_i$, to first order. The Fisher is
# made of these maps alone (Gaussian likelihood, variance 1):
#
# $$F_{ij} = (A_i^\top A_j) \otimes (B_i \Sigma B_j^\top), \qquad \Sigma = E[x x^\top] .$$
#
# **Predict.** A network 5-8-8-4 has 136 weights. How many eigenvalues of its Fisher are not zero?
#
# <details><summary>Answer</summary>
# 20 = 5 · 4: one for each entry of the 4 × 5 map it computes. All else is free: (W₂M⁻¹)(MW₁) = W₂W₁ for every
# invertible M.
# </details>

# %%
for sizes in ((5, 8, 8, 4), (5, 2, 8, 4), (5, 3, 4)):
    model = ng.models.deep_linear(sizes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = torch.randn(30, sizes[0], generator=torch.Generator().manual_seed(1))
    values = ng.fisher.dense_fisher(model, likelihood, inputs).eigvalsh()
    print(f"{'-'.join(map(str, sizes)):8} {len(values):4} weights, rank {ng.metrics.numerical_rank(values)}")

# %% [markdown]
# The second network has a **bottleneck**: maps through two units have rank 2 at most, and fewer directions to move in.
#
# ## Exercise 4.4: the rank of the Fisher
#
# Given the `widths` of a network, inputs first, outputs last, return the rank of its Fisher (generic weights, inputs
# in all directions). Maps of $n$ columns and $m$ rows with rank $r$ form a surface; think of how many numbers it
# takes to write one down.


# %%
def fisher_rank(widths):
    """Rank of the Fisher of a deep linear network with these layer widths, a list of integers; returns an integer."""
    raise NotImplementedError("Exercise 4.4")


# %%
ng.course.check("4.4", fisher_rank)

# %% [markdown]
# ## The cheap solution
#
# Let $E = W_L \cdots W_1 - W^*$ be the error of the map, with $W^*$ the best linear one. Each layer shall take an
# equal part of it, $A_i V_i B_i = E / L$. If $A_i$ has full row rank and $B_i$ full column rank, then $V_i = \tfrac1L
# A_i^+ E\, B_i^+$ does it. In quantities that any network has, this is
#
# $$V_i = \frac1L\; \tilde\Lambda_i^{+}\; \nabla_i\; \Lambda_{i}^{+}, \qquad \tilde\Lambda_i = A_i^\top A_i, \quad
# \Lambda_i = E[x_{i-1} x_{i-1}^\top],$$
#
# where $\nabla_i$ is the gradient, $x_{i-1}$ the input of layer $i$, and $\tilde\Lambda_i$ the second moment of the
# back-propagated signals *if targets are drawn from the model*. The labels enter $\nabla_i$ and nothing else.

# %%
weights, inputs, targets = lesson.problem(3, 6, 100.0)
found = ng.deep_linear.natural_gradient(weights, inputs, targets, formula="equal")
change = lesson.function_change(weights, found.layers)
E = torch.linalg.multi_dot(weights[::-1]) - torch.linalg.lstsq(inputs, targets).solution.mT
print(found)
print(f"change of the map minus its error: {(change - E).norm() / E.norm():.0e} of the error")
assert found.exact and torch.allclose(change, E)

# %% [markdown]
# $F v = g$ to rounding, without ever forming $F$: two small pseudo-inverses for each layer. The shortest solution,
# $F^+ g$ of Moore and Penrose, is another natural gradient. How different are the two?

# %%
ng.widgets.card("two_updates")

# %% [markdown]
# **How to read it.** Left, every point is one weight; the two updates disagree: their cosine is
# **0.68**<!--cosine_of_three--> with 3 layers and **0.17**<!--cosine_of_seven--> with 7. Right, what they do to the
# function: all points are on the diagonal, to rounding. A cosine between updates would call one of them wrong.
#
# ## Exercise 4.1: the natural gradient of a deep linear network
#
# Given the list `Ws` of matrices, inputs first ($W_i$ of shape $(n_i, n_{i-1})$), inputs `X` (N, D) and targets `Y`
# (N, C), return a list of matrices of the same shapes, pointing uphill. The loss is the mean of $\tfrac12\|y -
# f\|^2$. Every solution of $Fv = g$ counts. Use `torch.linalg.pinv(M, hermitian=True, rtol=1e-10)`.


# %%
def deep_linear_ng(Ws, X, Y):
    """A natural gradient, one matrix for each layer; Ws list of (n_i, n_{i-1}), X (N, D), Y (N, C)."""
    raise NotImplementedError("Exercise 4.1")


# %%
ng.course.check("4.1", deep_linear_ng)

# %% [markdown]
# ## A straight line in function space
#
# The map moves by $-E$ per unit of time, so $\dot E = -E$ and
#
# $$E(t) = e^{-t} E(0), \qquad \text{excess loss} = \tfrac12 \operatorname{tr}(E \Sigma E^\top) \propto e^{-2t} .$$
#
# The map walks straight from where it is to where it should be. Neither depth, nor weights, nor inputs appear in the
# rate. Steps of length $\eta$ multiply the error by $1 - \eta$ (to first order), a rate of $2\log(1-\eta)/\eta$ in
# time $t = \eta \cdot$ steps.

# %%
ng.widgets.card("depth_proof")

# %% [markdown]
# **How to read it.** The excess loss is logarithmic, so a constant rate is a straight line. Choose the natural gradient and
# move the depth and the condition number of the inputs: nothing happens. With learning rate `0.01` and condition number
# $10^4$ we measure the rate **−2.01**<!--rate_of_three--> for 3 layers and **−2.02**<!--rate_of_eight--> for 8; theory says
# **−2.010**<!--rate_of_theory-->.
#
# A fair word. Gradient descent has the best of 17 learning rates for each curve, those that never raise the loss; the natural
# gradient has one cautious step, `0.05`, for all of them. On white inputs and with few layers gradient descent even wins:
# there is nothing to correct. The claim is not a race. It is that one learning rate serves all depths and inputs.

# %%
depths, conditions = (2, 4) if is_fast() else (2, 4, 8), (1.0, 1e4)
for method in ("gradient descent", "natural gradient"):
    for condition in conditions:
        rates = [lesson.fitted_rate(lesson.descent(method, depth, 16, condition)) for depth in depths]
        print(f"{method:17} condition {condition:7g}: rates", *(f"{rate:7.2f}" for rate in rates), f"  (L = {depths})")
        assert method == "gradient descent" or max(abs(rate + 2.05) for rate in rates) < 0.05

# %% [markdown]
# ## Exercise 4.2: fit the rate
#
# Given a list of excess `losses`, one for each step, and `lr`, return the least-squares slope of $\log(\text{loss})$
# against time $t = $ `lr` · step. Losses may end in exact zeros; fit those before.


# %%
def fit_rate(losses, lr):
    """Slope of log loss per unit of time, a number; losses is a list of floats, lr the step length."""
    raise NotImplementedError("Exercise 4.2")


# %%
ng.course.check("4.2", fit_rate)

# %% [markdown]
# ## Where 1/L comes from, and K-FAC
#
# Each layer, taken alone, would remove the whole error: that is what the diagonal blocks of the Fisher say. K-FAC
# inverts these blocks, and in a linear network its factors are exact. So undamped K-FAC moves the map by $L \cdot E$.
#
# **Predict.** With learning rate ½ and undamped K-FAC, for how many layers does the loss still fall?
#
# <details><summary>Answer</summary>
# The error gets the factor 1 − L/2 in each step: 0 at L = 2, −½ at L = 3, −1 at L = 4. From 4 layers on the loss does
# not fall.
# </details>

# %%
for depth in (1, 2, 3, 4, 5):
    weights, inputs, targets = lesson.problem(depth, 16, 100.0)
    formula = ng.deep_linear.natural_gradient(weights, inputs, targets, formula="equal")
    blocks = ng.deep_linear.natural_gradient(weights, inputs, targets, formula="block_diagonal")
    E = lesson.function_change(weights, formula.layers)
    ratio = lesson.function_change(weights, blocks.layers).norm() / E.norm()
    after = (E - 0.5 * lesson.function_change(weights, blocks.layers)).norm() / E.norm()
    print(f"L = {depth}: K-FAC moves the map {ratio:.3f} times as far; error after a step of ½ (first order): {after:.2f}")
    assert math.isclose(ratio, depth, rel_tol=1e-6)

# %% [markdown]
# This explains why block-diagonal approximations work here although the Fisher is far from block-diagonal: they have
# the right *direction in function space* and are off by a scalar. K-FAC finds the scalar by itself when it rescales
# its step with the exact Fisher (lesson 08): the best length along its update is exactly $1/L$.

# %%
sizes = (5, 8, 8, 4)
model = ng.models.deep_linear(sizes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
inputs = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
targets = torch.randn(40, 4, generator=torch.Generator().manual_seed(2))
exact = ng.deep_linear.natural_gradient(model, inputs, targets)
F = ng.fisher.dense_fisher(model, likelihood, inputs)
g = torch.cat([layer.flatten() for layer in exact.gradient])
v = ng.fisher.kfac_fisher(model, likelihood, inputs).solve(g, 1e-9)
print(f"K-FAC's update / L against the formula: {ng.metrics.relative_error(v / 3, exact.vector):.0e}")
print(f"best length along K-FAC's update: {g @ v / (v @ F.matmul(v)):.6f}")
assert ng.metrics.relative_error(v / 3, exact.vector) < 1e-5

# %% [markdown]
# ## Break it
#
# **A bottleneck.** With two hidden units between four inputs and four outputs, $A_i$ or $B_i$ loses rank, and no
# layer can reach the whole error. The formula then misses $F v = g$ by **0.33**<!--bottleneck_residual--> of the
# gradient. The package's `formula="exact"` shares each part of the error among the layers that can reach it, and
# solves the equation at any width.

# %%
weights, inputs, targets = lesson.problem(3, 2, 100.0)
for formula in ("equal", "exact", "minimum_norm"):
    found = ng.deep_linear.natural_gradient(weights, inputs, targets, formula=formula)
    print(f"{formula:13} residual {found.residual:.0e}, reaches every change of the map: {found.onto}")

# %% [markdown]
# ## Where it ends
#
# With square layers there is a second trap. The map walks on the straight line $W(t) = W^* + e^{-t}(W(0) - W^*)$, and
# the line may pass a singular map. There the weights would have to move infinitely fast.
#
# $W(t)$ is singular when $e^{-t} I + (1 - e^{-t})\, W(0)^{-1} W^*$ is: when $W(0)^{-1}W^*$ has a real eigenvalue $\mu
# < 0$ with $e^{-t} = (1 - e^{-t})\,|\mu|$, that is, at $t = \log(1 + 1/|\mu|)$.

# %%
ng.widgets.card("crossing")

# %% [markdown]
# **How to read it.** The lower curve is the smallest singular value on the line. With the first pair of maps it
# touches zero at $t^* =$ **0.34**<!--first_crossing-->, and from there the loss of discrete steps leaves the dotted
# line. Of 2000 random pairs of 4 × 4 maps **77**<!--crossing_share--> % meet a singular map: "exponential to the
# global minimum" has a condition. Hidden layers that are wider than inputs and outputs can go around.
#
# ## Exercise 4.3: predict the failure
#
# Given `W0` and `Wstar` (D, D), both invertible, return the first $t > 0$ at which the line is singular, or
# `math.inf` if there is none.


# %%
def predict_failure(W0, Wstar):
    """The time at which the natural gradient flow from W0 to Wstar ends, a number or math.inf."""
    raise NotImplementedError("Exercise 4.3")


# %%
ng.course.check("4.3", predict_failure)

# %% [markdown]
# The flow of the package knows its end: it says when, and stops there.

# %%
start, best = lesson.crossing_problem(0)
weights, inputs = [torch.eye(4), start], torch.eye(4) * 2.0  # two square layers, E[xxᵀ] = I
rate = ng.deep_linear.rate(weights, inputs, inputs @ best.mT)
print(f"predicted: slope {rate.slope:g}, end at t = {rate.breakdown:.4f}")
times = torch.linspace(0, 0.99 * rate.breakdown, 3 if is_fast() else 12)
flow = ng.deep_linear.flow(weights, inputs, inputs @ best.mT, times)
print("excess loss / predicted:", *(f"{ratio:.6f}" for ratio in flow.excess_losses / flow.predicted))
assert torch.allclose(flow.excess_losses, flow.predicted, rtol=1e-5)

# %% [markdown]
# ## What we saw
#
# - The Fisher of a deep linear network has a rank of inputs × outputs at most. All solutions of $F v = g$ move the
#   map alike, by its error.
# - The cheap one needs two small matrices for each layer, and the factor $1/L$.
# - One rate for all depths and inputs, until a bottleneck or a singular map is in the way.
#
# > **Limits.** Everything here is exact for linear networks with a Gaussian likelihood. With tanh units the formula
# > is an approximation (lesson 09 races it), and with a bottleneck, as in an autoencoder, it is one even in the
# > linear case. Training data only.
#
# ## Summary
#
# 1. $V_i = \tfrac1L \tilde\Lambda_i^+ \nabla_i \Lambda_i^+$ solves $Fv = g$ if no hidden layer is narrower than
#    inputs and outputs.
# 2. The map then moves on a straight line, $E(t) = e^{-t}E(0)$, and the excess loss falls as $e^{-2t}$.
# 3. Undamped block-diagonal K-FAC is $L$ times this update: right direction in function space, wrong length.
#
# | method | input side | output side | across layers | refresh | equals the natural gradient when |
# |---|---|---|---|---|---|
# | deep linear | $E[x x^\top]$ | $E[\delta\delta^\top]$, model targets | factor $1/L$ | every step | linear, wide |
#
# ## Do you remember?
#
# 1. Lesson 03: two updates have a cosine near zero to each other. Can both be natural gradients?
# 2. Lesson 02: why must $\delta$ be computed with targets drawn from the model?
# 3. Lesson 03: what happens to $(F + \lambda I)^{-1}g$ in the directions in which $F$ is zero?
#
# <details><summary>Answers</summary>
# 1. Yes, if F is singular: this lesson's two updates. 2. With the data's targets the matrix is the empirical Fisher,
#    which vanishes
# where the residuals do. 3. The gradient is divided by λ there; a gradient has no part in them, so nothing moves.
# </details>
#
# ## References
#
# - [Bernacchia2018] has the closed form and the exponential rate.
# - [Saxe2014] solves gradient flow of deep linear networks, mode by mode.
# - [MartensGrosse2015] is K-FAC.
#
# Full entries are in `docs/references.md`.
