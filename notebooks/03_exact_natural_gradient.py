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
# # The natural gradient does not care about your coordinates
#
# - **Objectives.** Derive the natural gradient as steepest descent in KL. Say exactly what stays the same when
#   coordinates change, and what does not. Solve $(F + \lambda I)v = g$ and choose $\lambda$. Judge an update by what
#   it achieves.
# - **You need.** Lesson 01 (a gradient depends on the map) and lesson 02 (the Fisher of a network).
# - **Time.** 75 minutes for you, 20 seconds for the machine.
#
# The rows of the spine table that we fill here:
#
# | method | input side | output side | across layers | refresh | equals the natural gradient when |
# |---|---|---|---|---|---|
# | gradient descent | $I$ | $I$ | – | – | ? |
# | exact natural gradient | the full $F$ | the full $F$ | full | every step | ? |

# %%
import math

import numpy as np
import torch

import natgrad_lab as ng
from natgrad_lab.course.cards import lesson03 as gaussian

torch.set_default_dtype(torch.float64)
damping = 1e-3

# %% [markdown]
# ## One model, two coordinate systems
#
# The smallest model is a Gaussian with mean $\mu$ and standard deviation $\sigma$. It learns data with mean 0 and
# standard deviation 1 and starts at $\mu = 2$, $\sigma = 0.8$. The loss is the mean of $-\log p$ over the data, in
# nats. Someone else describes the same Gaussians by $\mu$ and $s = \log\sigma$. We take one gradient step each, and
# write both as $\sigma$.

# %%
theta, lr = np.array([2.0, 0.8]), 0.01
g = gaussian.gradient(theta)
ours = theta[1] - lr * g[1]
theirs = math.exp(math.log(theta[1]) - lr * theta[1] * g[1])  # chain rule: d loss / d log σ = σ · d loss / dσ
print(f"d loss / dσ = {g[1]:.4f}     σ after our step {ours:.4f}, after theirs {theirs:.4f}")

# %% [markdown]
# Same model, same data, same learning rate: another Gaussian. Now divide each gradient by the Fisher of its own
# coordinate. In $\sigma$ it is $2/\sigma^2$; in $\log\sigma$ it is $2$ (lesson 01).

# %%
F = gaussian.fisher(theta)
ours = theta[1] - lr * g[1] / F[1, 1]
theirs = math.exp(math.log(theta[1]) - lr * theta[1] * g[1] / 2)
print(f"σ after our natural step {ours:.6f}, after theirs {theirs:.6f}")
assert abs(ours - theirs) < 1e-3

# %% [markdown]
# Nearly the same Gaussian, and not by chance. The next card runs both to the same time, steps × learning rate. Commit
# to an answer before you look. Then make the learning rate smaller and watch the two roads; then choose the natural
# gradient.

# %%
ng.widgets.card("two_maps")

# %% [markdown]
# **How to read it.** Each road is a sequence of Gaussians. With gradient descent and learning rate `0.01` the two
# ends are **0.129**<!--gd_gap--> apart, and the gap goes with the learning rate to the power **0.00**<!--gd_slope-->:
# it stays, however small the steps. With the natural gradient the ends are **0.0012**<!--ngd_gap--> apart, with power
# **1.01**<!--ngd_slope-->: it vanishes with the steps.

# %% [markdown]
# ## Steepest descent, if distance is KL
#
# Which small update $\delta$ lowers the loss most? That depends on what counts as small. Let it be the KL between the
# model before and after, which is $\tfrac12\delta^\top F\delta$ to second order. So we
#
# $$\text{minimize } g^\top\delta \quad\text{subject to}\quad \tfrac12\,\delta^\top F\,\delta = \varepsilon .$$
#
# The Lagrangian $g^\top\delta + \eta\,(\tfrac12\delta^\top F\delta - \varepsilon)$ has derivative $g + \eta F\delta$.
# It is zero at
#
# $$\delta \;\propto\; -F^{-1} g ,$$
#
# the **natural gradient**. With $\delta^\top\delta$ as distance the same two lines give $-g$: gradient descent takes
# the parameters' units for nature. We check by trying every direction.

# %%
angles = np.linspace(0, 2 * np.pi, 3601)
circle = np.stack([np.cos(angles), np.sin(angles)])
for name, metric in (("½ δᵀδ", np.eye(2)), ("KL", F)):
    arrows = circle / np.sqrt((circle * (metric @ circle)).sum(0))  # all of the same length in this metric
    best = arrows[:, (g @ arrows).argmin()]
    print(f"steepest where distance is {name:5}: {best / np.linalg.norm(best)}")
natural = -np.linalg.solve(F, g)
print(f"−g / ‖g‖: {-g / np.linalg.norm(g)}    −F⁻¹g, length 1: {natural / np.linalg.norm(natural)}")
assert np.allclose(best / np.linalg.norm(best), natural / np.linalg.norm(natural), atol=2e-3)

# %% [markdown]
# ## What stays the same
#
# Let $\theta = \theta(z)$ be a change of coordinates with Jacobian $J = \partial\theta/\partial z$. The chain rule
# says how everything moves:
#
# $$g_z = J^\top g, \qquad F_z = J^\top F J, \qquad F_z^{-1} g_z = J^{-1} F^{-1} g .$$
#
# So the natural gradient in $z$ **is** the natural gradient in $\theta$, written in $z$: $J$ times one is the other.
# The gradient gives $J J^\top g$ instead of $g$. How does a finite step fit in? The step $\delta_z$ moves $\theta$ by
# $J\delta_z$ plus a term of second order, the curvature of the change of coordinates.
#
# **Predict.** One step with learning rate $\eta$, in two coordinate systems. With which power of $\eta$ does the gap
# between the results shrink, for gradient descent, for the natural gradient, and for the natural gradient if
# $\theta(z)$ is affine?
#
# <details><summary>Answer</summary>
# 1, 2, and there is no gap: an affine map has no curvature, so all orders agree.
# </details>

# %%
print("change of coordinates    gradient: gap, power     natural gradient: gap, power   (one step, lr 0.01)")
for name in gaussian.MAPS:
    row = [(gaussian.gap(m, name, 0.01, 0.01), gaussian.slope(m, name, True)) for m in ("gradient descent", "natural gradient")]
    print(f"{name:22}", *(f"{size:14.1e} {'–' if power is None else f'{power:.2f}':>8}   " for size, power in row))
    assert row[1][0] < row[0][0] / 10

# %% [markdown]
# For $\log\sigma$ the measured powers are **0.98**<!--gd_step_slope--> and **2.00**<!--ngd_step_slope-->. Over a
# whole path there are $1/\eta$ steps, so one power is lost: what the card shows. The affine row is rounding. This is
# the precise statement of invariance:
#
# > As a flow ($\eta \to 0$), and under affine maps for any $\eta$, the natural gradient takes the same road in all
# > coordinates.

# %% [markdown]
# ## Exercise 3.2: change coordinates
#
# Given `F` (P, P) and `g` (P,) in coordinates $\theta$, and `J` (P, Q) $= \partial\theta/\partial z$ with $Q \le P$,
# return the natural gradient in the coordinates $z$, of shape (Q,).


# %%
def pullback_step(F, g, J):
    """The natural gradient in z; F (P, P), g (P,), J (P, Q) = ∂θ/∂z."""
    raise NotImplementedError("Exercise 3.2")


# %%
ng.course.check("3.2", pullback_step)

# %% [markdown]
# ## Damping
#
# The Fisher of a network is singular: lesson 02 found more parameters than directions in which predictions can move.
# One example and two weights are enough to see what that means for $F v = g$.

# %%
x = torch.tensor([1.0, 2.0])
F = 0.25 * torch.outer(x, x)  # a logistic unit at p = ½: p(1 − p) x xᵀ
g = -0.5 * x  # (p − y) x with y = 1
print("pinv(F) g        =", torch.linalg.pinv(F) @ g)
for size in (1e-2, 1e-4, 1e-6):
    print(f"(F + {size:g} I)⁻¹ g =", torch.linalg.solve(F + size * torch.eye(2), g))

# %% [markdown]
# Along $(2, -1)$ the Fisher says nothing, and the gradient has no part there. As $\lambda \to 0$ the damped solution
# tends to the shortest exact one. In general, along an eigenvector with eigenvalue $s$ the gradient is divided by $s
# + \lambda$. What the Fisher knows well ($s \gg \lambda$) is rescaled; what it hardly knows ($s \ll \lambda$) becomes
# gradient descent with learning rate $1/\lambda$. Three habits save trouble:
#
# - Solve the linear system; do not form the inverse.
# - $\lambda$ is added to the mean Fisher. Whoever sums over $N$ examples has to add $N\lambda$.
# - Say which $\lambda$: `ng.fisher.natural_gradient` puts it, and the residual it reached, into its result.

# %%
model, inputs, targets = gaussian.checkpoints()[0]  # 6-8-8-4 units, tanh, 400 examples of four classes
exact = ng.fisher.natural_gradient(model, ng.likelihoods.Categorical(), inputs, targets, damping)
F = ng.fisher.dense_fisher(model, ng.likelihoods.Categorical(), inputs).to_dense()
by_hand = torch.linalg.solve(F + damping * torch.eye(len(F)), exact.gradient)
print(exact, f"\nrelative difference to torch.linalg.solve: {ng.metrics.relative_error(by_hand, exact.direction):.0e}")
assert torch.allclose(by_hand, exact.direction, rtol=1e-8, atol=1e-10)

# %% [markdown]
# ## Exercise 3.1: the damped natural gradient
#
# Given `F` (P, P), `g` (P,) and a number `damping`, return $(F + \lambda I)^{-1}g$ of shape (P,). One of the checks
# uses a Fisher with condition number $10^{12}$.


# %%
def natural_gradient(F, g, damping):
    """Return (F + damping·I)⁻¹ g; F (P, P), g (P,)."""
    raise NotImplementedError("Exercise 3.1")


# %%
ng.course.check("3.1", natural_gradient)

# %% [markdown]
# ## How far to trust the model
#
# The natural gradient follows from the quadratic model $M(\delta) = g^\top\delta + \tfrac12\,\delta^\top F\,\delta$
# of the loss. Near by it is good. Far away it is an invention. The **reduction ratio**
#
# $$\rho = \frac{\text{loss}(\theta + \delta) - \text{loss}(\theta)}{M(\delta)}$$
#
# says what was delivered of what was promised: 1 is a model to trust, 0 one that knows nothing. The card starts
# at $\mu = 2$, $\sigma = 0.5$, where the data are four standard deviations away.

# %%
ng.widgets.card("trust_region")

# %% [markdown]
# **How to read it.** Solid: all Gaussians at the KL of this step. Dotted: where the Fisher at the start believes
# them. Undamped, the model promises to lower the loss by **98.2**<!--promised--> nats and delivers
# **7.63**<!--delivered-->. The Fisher takes the step for a KL of **98**<!--kl_quadratic--> nats; it is
# **1.93**<!--kl_real-->. With damping 10 the step is shorter and delivers *more*: **8.12**<!--delivered_damped-->
# nats. Close to the solution, at $\sigma = 3$, the same damping only delays.
#
# So $\lambda$ has to move during training. **Levenberg and Marquardt's rule** reads $\rho$: above ¾ shrink $\lambda$,
# below ¼ (or not a number) let it grow, between them leave it. The package has it as `LevenbergMarquardt`.

# %%
rule, size, theta = ng.optimizers.LevenbergMarquardt(every=1, rate=0.3), 1.0, np.array([2.0, 0.5])
print("step        λ       ρ    loss")
for number in range(10):
    now = gaussian.judged(theta, size, 1.0)
    print(f"{number:4} {size:8.2g} {now['ratio']:7.2f} {gaussian.loss(theta):7.4f}")
    theta, size = theta + now["delta"], rule.adapted(size, now["ratio"])
print(f"best possible loss: {gaussian.loss(np.array([0.0, 1.0])):.4f}")
assert gaussian.loss(theta) < 0.501

# %% [markdown]
# It grows at first, when promises fail, and sinks when they are kept. A rule that can only shrink $\lambda$, or only
# let it grow, has been published in teaching code; it works until it matters.
#
# ## Exercise 3.4: adapt the damping
#
# Return the next damping. With $\omega =$ `rate` to the power `every`: multiply by $\omega$ if `rho` is above ¾;
# divide by $\omega$ if it is below ¼ or not a number; otherwise keep it. `rate` < 1 is the change for each step, and
# `every` the number of steps between adaptations.


# %%
def adapt_lambda(damping, rho, rate, every):
    """The next damping, a number."""
    raise NotImplementedError("Exercise 3.4")


# %%
ng.course.check("3.4", adapt_lambda)

# %% [markdown]
# ## A dial between the two
#
# $F^{-p} g$ is gradient descent at $p = 0$ and the natural gradient at $p = 1$. Two weights make the network $f = w_2
# w_1 x$, and $F = E[x^2]\,r r^\top$ with $r = (w_2, w_1)$. The next card counts steps to a millionth of the first
# excess loss.

# %%
ng.widgets.card("exponent_dial")

# %% [markdown]
# **How to read it.** At $p = 0$ the learning rate has to fit the inputs: a scale 100 times larger needs one 100 times
# smaller. At $p = 1$ the number of steps is the same for all five scales. The full Fisher of this network has one
# direction, that of the gradient: every $p$ takes the same road. Its diagonal forgets that both weights move the same
# function; at $p = 1$ it goes twice as far with each step. We shall meet that factor again in lesson 04.

# %%
for metric in ("full", "diagonal"):
    counts = [gaussian.steps_needed(1.0, metric, 0.1, scale) for scale in (0.01, 1.0, 100.0)]
    print(f"p = 1, {metric:8}: {counts} steps with E[x²] = 0.01, 1, 100")
    assert len(set(counts)) == 1

# %% [markdown]
# ## The right yardstick
#
# How good is another update $v$, say K-FAC's? Most papers show its cosine to the natural gradient. We measure the
# **share of the possible decrease** of the damped quadratic model instead, each update with its own best step length:
#
# $$\text{eff}(v) = \frac{(g^\top v)^2}{v^\top F_\lambda v \;\cdot\; g^\top F_\lambda^{-1} g} \in [0, 1],
# \qquad F_\lambda = F + \lambda I .$$
#
# It is also a squared cosine, in the inner product of $F_\lambda$. The card compares the two on the network of 164
# parameters while it trains.

# %%
ng.widgets.card("cosine_lies")

# %% [markdown]
# **How to read it.** Before training, K-FAC has a cosine of only **0.46**<!--kfac_cosine--> and reaches
# **85**<!--kfac_share--> % of the decrease. After 20 natural-gradient steps the plain gradient has the cosine
# **0.51**<!--gradient_cosine--> and reaches **3**<!--gradient_share--> %. By the cosine the gradient got better. It
# got worse.
#
# **Predict.** We count the weights of layer 1 in other units, 10 of ours for 1 of theirs. The updates stay as they
# are. Which of the two bars move?
#
# <details><summary>Answer</summary>
# Only the cosines. A length and an angle without a metric depend on the units; the share is made of gᵀv and vᵀFv,
# which do not.
# </details>

# %%
for unit in (1.0, 10.0):
    cosines, shares = gaussian.judgements(20, damping, unit)
    print(f"unit {unit:4g}:", *(f"{name} {cosines[name]:.2f} / {shares[name]:.3f} " for name in cosines), " (cosine / share)")

# %% [markdown]
# The gradient's cosine is now **0.35**<!--gradient_cosine_in_other_units-->. A number that depends on units cannot
# say how good an update is.
#
# ## Exercise 3.3: the share of the possible decrease
#
# Given a direction `v` (P,), `F` (P, P), `g` (P,) and `damping`, return $\text{eff}(v)$, a number.


# %%
def efficiency(v, F, g, damping):
    """Share of the possible decrease of the damped quadratic model along v, between 0 and 1."""
    raise NotImplementedError("Exercise 3.3")


# %%
ng.course.check("3.3", efficiency)

# %% [markdown]
# ## What it costs
#
# The dense Fisher has $P^2$ entries, and solving takes about $P^3/3$ multiplications.

# %%
for name, P in (("this network", 164), ("64-32-32-10", 3466), ("784-512-256-10", 536_074)):
    print(f"{name:15} P = {P:7,}: {8 * P**2 / 2**30:10.4f} GiB for F, {P**3 / 3:8.1e} multiplications to solve")

# %% [markdown]
# For few examples there is a way around: the Fisher is $R^\top R$ with one row of $R$ for each example and output,
# and the package then solves a system of that size. Otherwise the structure of the network has to help: lessons 04 to
# 08.
#
# ## Break it
#
# **Predict.** Undamped, affine maps change nothing. And with damping?
#
# <details><summary>Answer</summary>
# Invariance is lost. λI is a statement about coordinates: it makes all parameters equally expensive, in the units of
# the day.
# </details>

# %%
step = torch.linalg.solve(F + damping * torch.eye(len(F)), exact.gradient)
ruler = torch.logspace(-1, 1, len(F))  # other units for every parameter: θ = ruler · z
for size in (1e-3, 1e-6, 1e-9):
    here = torch.linalg.solve(F + size * torch.eye(len(F)), exact.gradient)
    there = ruler * torch.linalg.solve(ruler[:, None] * F * ruler + size * torch.eye(len(F)), ruler * exact.gradient)
    change = ((there - here) @ F @ (there - here)).sqrt() / (here @ F @ here).sqrt()
    print(f"damping {size:g}: the two steps differ by {change:.0e} of their length, measured by the Fisher")
    assert change > 1e-8

# %% [markdown]
# ## What we saw
#
# - Gradient descent learns another function in other coordinates, however small its steps. The natural gradient does
#   not.
# - The invariance is exact for flows and affine maps, and broken by every damping in proportion to how much it matters.
# - A promise of the quadratic model is checked by $\rho$; damping follows it, up and down.
#
# > **Limits.** The gaps were measured on one Gaussian, the two bars on one small network with one seed. That the
# > cosine misleads is shown by these cases; how often it does, they do not say. A small loss of the quadratic model
# > is not yet a small test error.
#
# ## Summary
#
# 1. The natural gradient $F^{-1}g$ is steepest descent where distance is KL, and so it belongs to the model, not to
#    its coordinates.
# 2. Damping makes the system solvable and steps short where the Fisher knows little; it is adapted by the reduction
#    ratio.
# 3. An update is judged by the share of the possible decrease, which no change of units can alter.
#
# | method | input side | output side | across layers | refresh | equals the natural gradient when |
# |---|---|---|---|---|---|
# | gradient descent | $I$ | $I$ | – | – | $F \propto I$ |
# | exact natural gradient | the full $F$ | the full $F$ | full | every step | always |
#
# ## Do you remember?
#
# 1. Lesson 01: how far apart are $N(0, 1)$ and $N(0, e^2)$ (standard deviations 1 and $e$) on the globe of Gaussians?
# 2. Lesson 02: do the labels of the data set enter the Fisher?
# 3. Lesson 02: what happens to the Fisher if every example is there twice?
#
# <details><summary>Answers</summary>
# 1. √2: with equal means the Fisher-Rao distance is √2 times the difference of the logarithms. 2. No, it averages
#    over targets
# drawn from the model. 3. Nothing: it is a mean.
# </details>
#
# ## References
#
# - [Amari1998] derives the natural gradient as steepest descent in a Riemannian space.
# - [Martens2020] says when it is invariant (sec. 12) and what damping does (sec. 6).
# - [MartensGrosse2015] adapts $\lambda$ by this rule, every five steps.
#
# Full entries are in `docs/references.md`.
