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
# # A gradient belongs to the map it was drawn on
#
# - **Question.** Why do two people who minimize the same function walk in different directions?
# - **You need.** The chain rule, 2 × 2 matrices, the normal distribution. No natural gradient yet.
# - **Time.** 60 minutes for you, 5 seconds for the machine.
#
# After this lesson you can compute the metric that a map gives to a place, take a gradient that does not depend on the
# map, and write down the Fisher information of a Gaussian in four coordinate systems.
#
# Each lesson fills one row of a table. This is the row to fill in here:
#
# | Method | Metric that turns a gradient into a step | Exactly the natural gradient when |
# |---|---|---|
# | Gradient descent | ? | ? |

# %%
import numpy as np
import torch

import natgrad_lab as ng
from natgrad_lab.course.cards.lesson01 import arc, gaussian_metric, kl, length, map_jacobian, rao, straight

torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## The smallest case: one hill, two walkers
#
# A hill at 60° north rises by 1 metre for every kilometre east and by 1 metre for every kilometre north. We write its
# slope as the pair (1, 1). The steepest way up is north-east; a walker on the ground sees that.
#
# A second walker has a map on which longitude and latitude are drawn as $x$ and $y$ in equal degrees. At 60° north a
# degree of longitude is half as long as a degree of latitude, so one kilometre east is drawn twice as long as one
# kilometre north. This walker computes the gradient on paper.

# %%
J = map_jacobian("equirectangular", 60)  # a step (east, north) on the ground becomes J @ step on paper
slope = np.array([1.0, 1.0])  # metres of height for each kilometre east and north
slope_on_paper = np.linalg.inv(J).T @ slope  # chain rule: height = h(ground), ground = J⁻¹ paper
print(J, slope_on_paper, sep="\n")
assert np.allclose(J, np.diag([2, 1])) and np.allclose(slope_on_paper, [0.5, 1])

# %% [markdown]
# On paper a unit east is a shorter way on the ground, so the hill rises less along it: the gradient on paper is
# (½, 1). The walker draws this arrow and walks along it. What way is that on the ground?
#
# **Predict.** Is it more to the north than north-east, or more to the east?
#
# <details><summary>Answer</summary>
# More to the north, and for two reasons. The slope east looks half as steep on paper, and half a unit east on paper is
# only a quarter of a unit on the ground.
# </details>

# %%
ground = np.linalg.inv(J) @ slope_on_paper
angle = np.degrees(np.arctan2(ground[1], ground[0]))
print(f"step on the ground (east, north) = {ground}, {angle:.1f}° from east; the hill is at 45°")
assert np.allclose(ground, [0.25, 1])

# %% [markdown]
# The walker leaves at **76.0**<!--map_angle-->° from east instead of 45°: **31.0**<!--equirectangular_angle-->° off. The
# hill did not change, and nobody made an error in the derivative. The gradient is the direction in which height rises
# most for each unit of length, and the two walkers measure length differently: one in kilometres, one in centimetres
# of paper.

# %%
ng.widgets.card("projection_lab")

# %% [markdown]
# **How to read it.** Grey lines run every 20 degrees. All violet curves are circles of the same size on the globe; what
# the map does to them is what it does to lengths and directions there (cartographers call them Tissot's ellipses). Blue
# is uphill on the globe, orange is the gradient on the map. Both start at the latitude you choose.
#
# **Move.** Take Mercator at 60°: the arrows point the same way, and the orange one is
# **0.25**<!--mercator_length--> times as long. Mercator and stereographic maps are *conformal*: their ellipses are
# circles, so a gradient keeps its direction and loses its length. The equal-area map keeps areas, and at 60° its arrow
# is **41.4**<!--lambert_angle-->° off. At the equator the equirectangular map does no harm at all.

# %% [markdown]
# ## The metric of a map
#
# A step $d$ on paper has the length $\sqrt{d^\top M d}$ on the ground, with a matrix $M$ that differs from place to place:
#
# $$ M = J^{-\top} J^{-1}, \qquad\text{since}\qquad \|J^{-1} d\|^2 = d^\top J^{-\top} J^{-1} d . $$
#
# $M$ is the **metric** in the coordinates of the map. The matrix $J^\top J$, with $J$ from the ground to paper, is the same
# idea in the other direction: the paper's metric, pulled back to the ground. With $g$ the gradient on paper, the
# steepest step for a given length on the *ground* is
#
# $$ d = M^{-1} g . $$

# %%
M = np.linalg.inv(J).T @ np.linalg.inv(J)
repaired = np.linalg.solve(M, slope_on_paper)  # a step on paper
print("metric on paper:", M.tolist(), "  M⁻¹ g =", repaired, "  on the ground:", np.linalg.inv(J) @ repaired)
assert np.allclose(np.linalg.inv(J) @ repaired, slope)

# %% [markdown]
# Dividing by the metric repairs the map: back on the ground the step is (1, 1), north-east. The formula used only what
# is on paper, $g$ and $M$. A natural gradient is nothing else: a gradient divided by the metric of its map. We check
# that four maps agree once each has used its own metric.

# %%
for projection in ("equirectangular", "Mercator", "Lambert equal-area", "stereographic"):
    K = np.linalg.inv(map_jacobian(projection, 60))
    plain, natural = K @ K.T @ slope, K @ np.linalg.solve(K.T @ K, K.T @ slope)
    print(f"{projection:20} gradient walks {plain.round(3)}, divided by its metric {natural.round(3)}")
    assert np.allclose(natural, slope)

# %% [markdown]
# An angle, too, depends on who measures it. The angle between two steps $a$ and $b$ on paper is, on the ground,
# $\arccos\big(a^\top M b \,/ \sqrt{a^\top M a \; b^\top M b}\big)$. An exercise below asks for this function. We shall
# need it to judge approximations: an angle between two updates of a network, measured on paper, means as
# little as an angle on a map.

# %% [markdown]
# ## Your model is a globe too
#
# Now replace the ground by something that has no kilometres: probability distributions. The smallest model with two
# parameters is the normal distribution N(μ, σ²). Each pair (μ, σ) is a place. How far is it from one place to the next?
# We say: as far as their predictions differ, and we measure the difference by the Kullback-Leibler divergence
# $\mathrm{KL}(p\,\|\,q) = \mathrm{E}_p[\log p - \log q]$, in nats.

# %%
for sigma in (0.1, 10.0):
    print(f"σ = {sigma:4}: moving the mean by 0.01 changes the prediction by {kl((0, sigma), (0.01, sigma)):.1e} nats")

# %% [markdown]
# The same step on paper, a change of `0.01` in μ, moves the distribution by **5.0e-3**<!--kl_narrow--> nats where
# σ = `0.1`, and by **5.0e-7**<!--kl_wide--> nats where σ = 10: ten thousand times less. The parameters are a map, and a
# badly distorted one.
#
# ## Distance in nats
#
# For a small step $\delta$ the KL is a quadratic form, and its matrix is called the **Fisher information** $F$:
#
# $$ \mathrm{KL}\big(p_\theta \,\|\, p_{\theta+\delta}\big) = \tfrac12\, \delta^\top F \delta + \dots,
# \qquad F = \frac{\partial^2}{\partial\delta^2}\, \mathrm{KL}\big(p_\theta \,\|\, p_{\theta+\delta}\big)\Big|_{\delta=0} . $$
#
# Why does the expansion start with a square? The KL is 0 at $\delta = 0$ and never negative, so its slope there is 0. We let
# PyTorch take the second derivative for $\mu = 1$, $\sigma = \tfrac12$.

# %%
here = torch.tensor([1.0, 0.5])


def kl_from_here(there):
    p, q = (torch.distributions.Normal(*at, validate_args=False) for at in (here, there))
    return torch.distributions.kl_divergence(p, q)


F = torch.autograd.functional.hessian(kl_from_here, here)
print(F)
assert torch.allclose(F, torch.diag(torch.tensor([1.0, 2.0]) / 0.5**2))
assert np.allclose(F, gaussian_metric("(μ, σ)", 1.0, 0.5))

# %% [markdown]
# The Fisher information of N(μ, σ²) in the coordinates (μ, σ) is diag(1/σ², 2/σ²). Note the 2: a change of σ by a
# small amount moves the distribution further than the same change of μ. We call
# $\sqrt{\delta^\top F \delta}$ the Fisher length of the step. The quadratic is only the beginning of the KL. How good is it?

# %%
ng.widgets.card("kl_taylor")

# %% [markdown]
# **How to read it.** Both axes are logarithmic, so a straight line is a power and its slope is the exponent. The KL and
# $\tfrac12\delta^\top F\delta$ lie on one line of slope 2 until the steps get long. Their difference falls with the power
# **2.99**<!--power_one_way--> of the step: half the step, an eighth of the difference. Tick the box to average over a step
# and its opposite. The odd terms cancel, and the power becomes **4.00**<!--power_both_ways-->. (Choosing other coordinates
# changes the difference, never the power.)

# %% [markdown]
# ## Other coordinates
#
# We may describe the same Gaussians by (μ, log σ), by (μ, σ²), or by the *natural parameters* (μ/σ², −1/(2σ²)). These
# are other maps. What becomes of $F$? Let $J$ be the derivative of (μ, σ) by the new coordinates. A step
# $\varepsilon$ in the new coordinates is the step $J\varepsilon$ in the old ones, and its KL cannot depend on how we
# write it down:
#
# $$ \varepsilon^\top F_{\text{new}}\, \varepsilon = (J\varepsilon)^\top F (J\varepsilon)
# \qquad\Longrightarrow\qquad F_{\text{new}} = J^\top F J . $$
#
# **Predict.** In which of the three new systems does the metric not depend on the place in the second coordinate?
#
# <details><summary>Answer</summary>
# In (μ, log σ): there J = diag(1, σ), and the entry of log σ is σ · (2/σ²) · σ = 2 everywhere.
# </details>

# %%
for name in ("(μ, σ)", "(μ, log σ)", "(μ, σ²)", "(μ/σ², −1/2σ²)"):
    print(f"F in {name:15} at σ = 0.25: {gaussian_metric(name, 1.0, 0.25).round(3).tolist()}")
    print(f"     {'':15} at σ = 2:    {gaussian_metric(name, 1.0, 2.0).round(3).tolist()}")
assert gaussian_metric("(μ, log σ)", 1, 0.25)[1, 1] == gaussian_metric("(μ, log σ)", 1, 2)[1, 1] == 2

# %% [markdown]
# In the natural parameters the Fisher even has entries off the diagonal: to change one coordinate alone there means to
# change μ and σ together. The numbers differ from map to map, and lengths in nats do not.
#
# ## The half-plane of Gaussians
#
# A long way is a sum of small steps, so the length of a path is the integral of its Fisher lengths. All Gaussians
# together form a half-plane (σ > 0) with this metric. The length of the shortest path between two of them is the **Rao
# distance**; it has a closed form:
#
# $$ d = \sqrt2\;
# \operatorname{arccosh}\!\left(1 + \frac{\tfrac12(\mu_1-\mu_2)^2 + (\sigma_1-\sigma_2)^2}{2\,\sigma_1\sigma_2}\right) . $$
#
# The ½ and the $\sqrt2$ come from the 2 in the Fisher's entry for σ: once μ is divided by $\sqrt2$, the metric is twice that of
# the hyperbolic half-plane, whose shortest paths are circles about points with σ = 0.

# %%
ng.widgets.card("gaussian_half_plane")

# %% [markdown]
# **How to read it.** Left: paths between two Gaussians, each with its Fisher length; the violet ellipses have the same
# Fisher size everywhere. Right: the two densities. **Move** the coordinates: the curves and the ellipses change their
# shape, the length of the shortest path does not. (The straight line is a different path in each map.)
#
# Set the shift to `0.5`. At σ = `0.1` the two are **3.775**<!--rao_narrow--> apart, at σ = 10 only
# **0.0500**<!--rao_wide-->: **75.5**<!--rao_ratio--> times less, for the same shift on paper.

# %%
first, second = (1.0, 1.0), (3.0, 1.0)
paths = {"arc": arc(first, second), "circle": arc(first, second, 1.0), "straight": straight(first, second, "(μ, σ)")}
for name, path in paths.items():
    print(f"{name:9} length {length(path):.4f}, largest σ {path[:, 1].max():.3f}")
print(f"closed form      {rao(first, second):.4f}")
assert abs(length(paths["arc"]) - rao(first, second)) < 1e-6

# %% [markdown]
# From N(1, 1) to N(3, 1) the shortest path has the length **1.862**<!--shortest-->. It is half an ellipse in (μ, σ), and it
# runs over wider Gaussians, where moving the mean costs less. The circle that is often drawn instead is longer,
# **1.925**<!--circle-->, and the straight line longer still, **2.000**<!--straight_line-->. The usual slip is to forget the
# ½ in the formula, which gives **2.493**<!--without_half-->. No distance can exceed the length of a path that exists, so
# a straight line of length 2 shows that this must be wrong.

# %% [markdown]
# ## The natural gradient does not follow shortest paths
#
# It is tempting to think that a natural gradient walks along the shortest path to the goal. It does not: it only knows
# which way is downhill *here*. Suppose the data come from N(3, 1) and we start at N(1, 1). Gradient flow of the mean
# negative log-likelihood with the Fisher metric moves the model's means of $x$ and of $x^2$ on straight lines to those
# of the data. We follow it in small steps, dividing the gradient by $F$ each time.

# %%
mean, sigma, walk = 1.0, 1.0, [(1.0, 1.0)]
for _ in range(6000):
    second_moment = 1 + (3 - mean) ** 2  # of the data about the model's mean
    gradient = np.array([(mean - 3) / sigma**2, 1 / sigma - second_moment / sigma**3])
    mean, sigma = np.array([mean, sigma]) - 0.002 * np.linalg.solve(gaussian_metric("(μ, σ)", mean, sigma), gradient)
    walk.append((mean, sigma))
print(f"largest σ on the way {max(s for _, s in walk):.3f}, length {length(np.array(walk)):.3f}, end {mean:.3f}, {sigma:.3f}")
assert abs(max(s for _, s in walk) - 2**0.5) < 2e-3 and length(np.array(walk)) > rao((1, 1), (3, 1)) + 0.05

# %% [markdown]
# The walk swings out to σ = $\sqrt2$ and has the length **1.926**<!--natural_path-->, longer than the shortest path. What the
# natural gradient promises is something else, and more useful: in *small* steps it takes the same walk on every map.
# Lesson 3 measures how small.

# %% [markdown]
# ## What we saw
#
# - A gradient on an equirectangular map at 60° misses by **31.0**<!--equirectangular_angle-->°; divided by the map's metric
#   it does not miss at all.
# - The parameters of a model are a map. Its metric is the Fisher information, the second derivative of the KL.
# - The same shift of the mean is **75.5**<!--rao_ratio--> times as far at σ = `0.1` as at σ = 10.
#
# Compare with what you predicted. Which of the three was furthest from your guess?
#
# ## Break it
#
# A metric must be positive definite. We describe the same Gaussians by *three* numbers: two means $a$, $b$ and σ, with
# μ = a + b. **Predict**: what is wrong with the Fisher in (a, b, σ)?
#
# <details><summary>Answer</summary>
# Increase a and decrease b by the same amount: the distribution stays where it is. The Fisher is singular, that step
# has length 0, and M⁻¹g has no meaning without more ado. Networks are full of such directions; lesson 3 adds damping.
# </details>

# %%
J3 = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])  # ∂(μ, σ) / ∂(a, b, σ)
singular = J3.T @ gaussian_metric("(μ, σ)", 1.0, 0.5) @ J3
print("eigenvalues:", np.linalg.eigvalsh(singular).round(3), "  F @ (1, -1, 0) =", singular @ [1, -1, 0])
assert np.allclose(singular @ [1, -1, 0], 0)

# %% [markdown]
# **Limits.** Closed-form distances exist for few families; for a network we only have the metric at one place. The KL is
# not symmetric and is no distance; only its quadratic part is. And a map with a pole (the stereographic map of the other
# hemisphere, σ → 0 here) has places where no finite number is a good length.
#
# ## Exercises
#
# Each exercise is a small function. The cell after it tells you whether it is right, and if not, what went wrong.

# %% [markdown]
# ## Exercise 1.1: the Fisher of a Gaussian in four coordinate systems
#
# Given `theta` (2,), the coordinates of a Gaussian, and `coords`, the name of the system, return its Fisher information
# (2, 2). The systems are `"mean, sigma"`, `"mean, log sigma"`, `"mean, variance"` and `"natural"`; the last one means
# (μ/σ², −1/(2σ²)).


# %%
def gaussian_fisher(theta, coords):
    """Return the Fisher information (2, 2) of the Gaussian with coordinates theta (2,)."""
    raise NotImplementedError("Exercise 1.1")


# %%
ng.course.check("1.1", gaussian_fisher)

# %% [markdown]
# ## Exercise 1.2: Rao's distance
#
# Given two Gaussians `p` and `q`, each a tensor (2,) of mean and standard deviation, return the length of the shortest path
# between them.


# %%
def rao_distance(p, q):
    """Return the Rao distance between N(p[0], p[1]²) and N(q[0], q[1]²), one number."""
    raise NotImplementedError("Exercise 1.2")


# %%
ng.course.check("1.2", rao_distance)

# %% [markdown]
# ## Exercise 1.3: the KL and its quadratic
#
# Given `theta` = (μ, σ), a `direction` (2,) and a number `eps`, let $\delta$ be `eps` times the direction. Return two numbers:
# the KL from the Gaussian at `theta` to the one at `theta` + $\delta$, and $\tfrac12\delta^\top F\delta$.


# %%
def kl_vs_quadratic(theta, direction, eps):
    """Return (KL in nats, its quadratic in nats) for the step eps * direction from theta = (μ, σ)."""
    raise NotImplementedError("Exercise 1.3")


# %%
ng.course.check("1.3", kl_vs_quadratic)

# %% [markdown]
# ## Exercise 1.4: an angle that does not depend on the map
#
# Given a metric `M` (P, P) and two steps `a` and `b` (P,), return the angle between them in degrees, as measured by the
# metric. For parallel steps it has to be 0 or 180, not NaN.


# %%
def angle_between(M, a, b):
    """Return the angle between the steps a and b (P,) in the metric M (P, P), in degrees."""
    raise NotImplementedError("Exercise 1.4")


# %%
ng.course.check("1.4", angle_between)

# %% [markdown]
# ## Summary
#
# 1. A gradient is steepest per unit of length on its own map; another map gives another direction.
# 2. The Fisher information is the metric of a model: ½ δᵀFδ is the KL of a small step, in nats.
# 3. Divided by the metric, the gradient gives the same step on every map.
#
# The row of the table:
#
# | Method | Metric that turns a gradient into a step | Exactly the natural gradient when |
# |---|---|---|
# | Gradient descent | the identity I of whatever map it is given | the Fisher is a multiple of I |
#
# **Three questions to remember by.**
#
# <details><summary>A function h of x is written in y = 3x. What is its derivative by y?</summary>
# A third of its derivative by x: the chain rule, as for the slope on paper.
# </details>
# <details><summary>Why does the expansion of the KL have no linear term?</summary>
# The KL is 0 where the two distributions agree and never negative, so it has a minimum there.
# </details>
# <details><summary>Is KL(p ‖ q) the same as KL(q ‖ p)?</summary>
# No. Only their quadratic parts agree, and these are what the Fisher is.
# </details>
#
# ## References
#
# - [Amari1998] on the steepest direction in a curved space, and why the ordinary gradient is not it.
# - [Martens2020] on the Fisher as the second derivative of the KL, and on what the natural gradient does not promise.
#
# Full entries are in `docs/references.md`.
