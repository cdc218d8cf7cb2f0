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
# # Bigger batches pay until curvature is the limit, and a preconditioner moves that limit
#
# - **Objectives.** Predict when a larger batch stops paying. Derive the noisy quadratic model. Average the right
#   things over workers. Say what old inverses cost, and how damping and batch belong together.
# - **You need.** Lesson 03 (natural gradient, damping) and lesson 07 (K-FAC); mean and variance.
# - **Time.** 70 minutes for you, 30 seconds for the machine.
#
# The row of the spine table that we fill here:
#
# | method | input side | output side | across layers | refresh | equals the natural gradient when |
# |---|---|---|---|---|---|
# | distributed K-FAC | ? | ? | none | ? | ? |

# %%
import math

import torch

import natgrad_lab as ng
from natgrad_lab.course.cards import lesson11 as lesson
from natgrad_lab.notebooks import is_fast

torch.set_default_dtype(torch.float64)
runs = 2000 if is_fast() else 20_000

# %% [markdown]
# ## One weight and a noisy gradient
#
# The smallest model of training with batches has one weight $\theta$, the loss $\tfrac12 h\theta^2$, and a gradient
# $h\theta + \text{noise}$. The noise of one example has variance $c$; a mean over $B$ examples has $c / B$. Each step
# is $\theta \leftarrow (1 - \eta h)\,\theta - \eta \cdot \text{noise}$. So
#
# $$E\theta_{t+1}^2 = (1 - \eta h)^2\, E\theta_t^2 + \eta^2 \frac cB .$$
#
# The first term forgets where we began, the second gathers noise.

# %%
h, c, lr, batch = 1.0, 1.0, 0.2, 4
second = 1.0
for step in range(20):
    second = (1 - lr * h) ** 2 * second + lr**2 * c / batch
    if step % 5 == 4:
        print(f"after {step + 1:2} steps: E θ² = {second:.4f}")
print(f"after infinitely many: {lr**2 * c / batch / (1 - (1 - lr * h) ** 2):.4f}")

# %% [markdown]
# It settles at a level proportional to $\eta / B$. To reach a lower loss we can take a smaller learning rate, which
# needs more steps, or a larger batch. As long as noise is the limit, the two are the same: twice the batch, twice the
# learning rate, half the steps. But $\eta h$ cannot exceed 2. Then curvature is the limit.

# %% [markdown]
# ## The noisy quadratic model
#
# Now many coordinates with curvatures $h_i$ and noise $c_i$, and a preconditioner: the gradient, *noise and all*, is
# multiplied by $h_i^{-p}$. At $p = 0$ this is gradient descent, at $p = 1$ the natural gradient (here $F$ is the
# diagonal of the $h_i$). With $r_i = 1 - \eta h_i^{1-p}$, from $\theta_i = 1$:
#
# $$\text{risk}_t = \tfrac12 \sum_i h_i \Big[\, r_i^{2t}
# + \eta^2 h_i^{-2p}\, \frac{c_i}{B}\, \frac{1 - r_i^{2t}}{1 - r_i^2} \,\Big] .$$
#
# We believe a formula when a simulation agrees. The card's module has the formula as `risk`; we simulate by hand.

# %%
steps, B, rate = 30, 8, 0.5
h = 1 / torch.arange(1, 21)
q = h**-0.5  # p = 1/2
theta, generator = torch.ones(runs, 20), torch.Generator().manual_seed(0)
for _ in range(steps):
    noise = (h / B).sqrt() * torch.randn(runs, 20, generator=generator)  # c = h
    theta = theta - rate * q * (h * theta + noise)
losses = 0.5 * (h * theta**2).sum(1)
one = torch.ones(1).numpy()
formula = lesson.risk(steps * one, B, rate * one, h.numpy(), h.numpy(), q.numpy(), torch.ones(20).numpy())[0]
error = losses.std() / math.sqrt(runs)
print(f"simulated {losses.mean():.4f} ± {error:.4f}, formula {formula:.4f}")
assert abs(losses.mean() - formula) < 4 * error

# %% [markdown]
# ## Exercise 11.1: the risk
#
# Given `steps`, `batch`, `lr`, curvatures `h` (d,), noise variances `c` (d,) and `power`, return the risk after that
# many steps, a number. All $\theta_i$ start at 1, and $0 < |r_i| < 1$.


# %%
def nqm_risk(steps, batch, lr, h, c, power):
    """½ Σ h E θ² after `steps` steps from θ = 1, with the preconditioner h^(−power)."""
    raise NotImplementedError("Exercise 11.1")


# %%
ng.course.check("11.1", nqm_risk)

# %% [markdown]
# ## The critical batch size
#
# We take 10,000 coordinates with $h_i = 1/i$ and noise $c_i = h_i$: a few steep directions, many flat ones, as lesson
# 00 saw in a real Fisher. For each batch size and each $p$ we search for the learning rate that reaches the target
# loss in the fewest steps.

# %%
ng.widgets.card("noisy_quadratic")

# %% [markdown]
# **How to read it.** Both axes are logarithmic; perfect scaling is a straight line downwards. Gradient descent needs
# **26.1**<!--gd_steps_256--> thousand steps with 256 examples, **10.4**<!--gd_steps_1024--> thousand with 1024, and
# still **6.9**<!--gd_steps_million--> thousand with a million: a floor. At 1024 examples its efficiency is down to
# **58**<!--gd_efficiency_1024--> %. With $p = ½$ the floor is **98**<!--half_steps_million--> steps. The natural
# gradient ends with **2**<!--ngd_steps_million-->.
#
# The **critical batch size** is the last one with an efficiency of `0.8`: **512**<!--gd_critical--> for gradient
# descent, **1024**<!--critical_ratio--> times as large for the natural gradient. On the left of the figure the gap is
# much smaller: at 256 examples the natural gradient needs **4.7**<!--ngd_steps_256--> thousand steps. It multiplies
# flat directions, and their noise with them.
#
# ## Exercise 11.2: find it
#
# Given a list of `batches` (growing), the `steps` that each needs, and `efficiency`, return the last batch size
# before the first one whose efficiency is lower. The efficiency of a batch size is the number of examples, steps ×
# batch, that the *smallest* batch needs, divided by the number that this one needs.


# %%
def critical_batch(batches, steps, efficiency):
    """The last batch size that is efficient, all smaller ones included; lists of integers and of numbers."""
    raise NotImplementedError("Exercise 11.2")


# %%
ng.course.check("11.2", critical_batch)

# %% [markdown]
# ## A real network
#
# Is any of that so in a network? We trained 64-20-10 tanh units on the digits until the loss on all 1797 of them was
# a tenth of a nat, with every batch size from 8 to 1024, each method at the best choice of a grid. That took minutes,
# so the card shows kept results; `python -m natgrad_lab.course.measured.batch_sweep` measures them again.

# %%
ng.widgets.card("batch_sweep")

# %%
kept = lesson.batch_sweep({"axis": "steps", "efficiency": 0.8})
print("batch     SGD   K-FAC   (steps to 0.1 nats)")
for batch, sgd, kfac in zip(kept["batches"], kept["steps"]["sgd"], kept["steps"]["kfac"], strict=True):
    print(f"{batch:5.0f} {sgd:7.0f} {kfac:7.0f}")
assert kept["critical"]["kfac"] >= kept["critical"]["sgd"]

# %% [markdown]
# **How to read it.** With an efficiency of `0.8` SGD scales to **16**<!--sweep_sgd--> examples and K-FAC to
# **64**<!--sweep_kfac-->. Beyond, SGD stays between 90 and 180 updates, whatever the batch; K-FAC goes on falling, with
# less and less profit, to nine. The mechanism of the model is there, in a network; its numbers are not, for the model's
# spectrum was not fitted to this network.

# %% [markdown]
# ## What may be averaged
#
# Workers hold different examples, their **shards**. What does the cluster need? The gradient and the factors $A$ and
# $G$ of *all* examples. Both are means, and means over unequal shards are made of sums and counts.
#
# **Predict.** Each worker inverts its own factor, and the inverses are averaged. Is the result too large, too small,
# or right?
#
# <details><summary>Answer</summary>
# Too large: the inverse of positive numbers is convex, so the mean of inverses is at least the inverse of the mean.
# Steps become too long.
# </details>

# %%
generator = torch.Generator().manual_seed(1)
shards = [scale * torch.randn(n, 3, generator=generator) for n, scale in ((6, 0.5), (40, 1.0), (10, 2.0))]
everything = torch.cat(shards)
right = torch.linalg.inv(everything.mT @ everything / len(everything))
means = [shard.mT @ shard / len(shard) for shard in shards]
for name, wrong in (("mean of means, inverted", torch.linalg.inv(sum(means) / 3)),
                    ("mean of inverses", sum(map(torch.linalg.inv, means)) / 3)):  # fmt: skip
    error, size = ng.metrics.relative_error(wrong, right), wrong.trace() / right.trace()
    print(f"{name:24}: {error:5.2f} relative error, trace {size:.2f} times")
total = sum(shard.mT @ shard for shard in shards) / sum(map(len, shards))
assert torch.allclose(torch.linalg.inv(total), right)

# %% [markdown]
# ## Exercise 11.3: reduce the statistics
#
# Given `shards`, a list of inputs (n_k, D) of different lengths, and `damping`, return $(A + \lambda I)^{-1}$ (D, D),
# where $A = E[x x^\top]$ over all examples of all shards.


# %%
def allreduce_stats(shards, damping):
    """The damped inverse of the second moment of all examples; shards is a list of (n_k, D)."""
    raise NotImplementedError("Exercise 11.3")


# %%
ng.course.check("11.3", allreduce_stats)

# %% [markdown]
# ## Old inverses
#
# An inverse takes longer than a gradient. But it need not be waited for. In distributed K-FAC some workers compute
# gradients, some statistics, and some invert, each all the time; a step uses the newest inverses there are. They are
# some updates old.
#
# One coordinate shows what that costs. With the curvature $h_t$ of now and the preconditioner of $\tau$ steps ago the
# error is multiplied by $1 - \eta\, h_t / h_{t-\tau}$.

# %%
age = torch.arange(0, 50, 10)
for drift in (0.02, -0.02):
    factors = 1 - 0.5 * torch.exp(drift * age)
    print(
        f"curvature changes by {drift:+.0%} a step, lr 0.5: factors", *(f"{f:.2f}" for f in factors), f" (τ = {age.tolist()})"
    )

# %% [markdown]
# Where curvature falls, old preconditioners make steps too short. Where it grows, they make steps too long, and from
# a factor of −1 on the error grows. The learning rate has to suit both.

# %%
ng.widgets.card("cluster")

# %% [markdown]
# **How to read it.** Rows are groups of workers, bars are what they do; dotted lines are updates. With 64 workers SGD
# pays little for an update and needs many. K-FAC on everyone waits for the inverses. In three roles nobody waits:
# with the inverses 33 updates old it needs **2.2**<!--stale_updates--> times as many updates as with fresh ones, and
# still far less time. With 256 workers it is **39**<!--speedup--> times as fast as SGD in this model. The last number
# is the model's, with costs we chose; that SGD gains next to nothing from workers 64 to 256 is the lesson.
#
# ## Exercise 11.4: the price of old inverses
#
# `h` (T, d) holds the curvatures of $d$ coordinates at each of $T$ steps. Step $t$ = 0, 1, … is $\theta \leftarrow
# \theta - \eta\, h_t \theta / h_{t - \tau}$ with $\tau$ = `delay`; before step $\tau$ the first curvatures serve,
# `h[0]`. Start at $\theta = 1$ and return the loss $\tfrac12 \sum h\,\theta^2$ after all steps, with the last
# curvatures.


# %%
def staleness_effect(h, lr, delay):
    """Loss at the end of all steps with a preconditioner that is `delay` steps old; h (T, d)."""
    raise NotImplementedError("Exercise 11.4")


# %%
ng.course.check("11.4", staleness_effect)

# %% [markdown]
# ## Damping and the batch
#
# $1 / (h + \lambda)$ in place of $1/h$ holds the flat directions back, and with them the noise. So the damping should
# follow the noise, that is, the batch. The next card has the number of steps for each pair.

# %%
ng.widgets.card("batch_damping")

# %% [markdown]
# **How to read it.** Bright is slow. With the learning rate fixed at 1, the best damping is **1.0**<!--damping_256-->
# at 256 examples and **0.003**<!--damping_65536--> at 65,536. Now set the learning rate to *tuned for every point*:
# the best damping is the same at every batch size up to 65,536 (largest over smallest:
# **1.0**<!--damping_range_tuned-->). The learning rate does the work then. Whoever tunes only one of the two has to
# move it with the batch.

# %% [markdown]
# ## Break it
#
# **Predict.** We use learning rates that grow with the batch, $\eta = \eta_0 B$, for gradient descent. Up to which
# batch size?
#
# <details><summary>Answer</summary>
# Until η times the largest curvature reaches 2; from there the loss explodes. The steepest direction decides, though
# it holds a small part of the loss.
# </details>

# %%
h, counts = lesson.spectrum(1.0)
for B in (256, 1024, 4096, 16384):
    rate = 0.05 * B / 256
    value = lesson.risk(100 * one, B, rate * one, h, h, h**0, counts)[0]
    print(f"B = {B:6}, lr = {rate:5.2f}: risk after 100 steps {value:.3g}")
assert value > 1e9

# %% [markdown]
# ## What we saw
#
# - Two limits: noise, which a larger batch lowers, and curvature, which it does not. The critical batch size is where
#   they meet.
# - A preconditioner lowers the floor that curvature sets, and so moves the critical batch size. At small batches it
#   helps far less.
# - Sums and counts may be added over workers; means of means and inverses may not be averaged.
#
# > **Limits.** The noisy quadratic model has a fixed spectrum and independent coordinates; it explains, it does not
# > predict seconds. The real sweep is one small network, one target, two seeds. Costs in the cluster are ours. The
# > published figures with GoogLeNet and ImageNet were not attempted here. Momentum, which also moves the critical
# > batch size, is left out.
#
# ## Summary
#
# 1. Steps ∝ 1/B while noise is the limit; then a floor set by the ratio of curvatures.
# 2. The natural gradient has the lowest floor, so it can use the largest batches and the most workers.
# 3. Inverses may be old; how old depends on how fast curvatures change, and is paid in learning rate.
#
# | method | input side | output side | across layers | refresh | equals the natural gradient when |
# |---|---|---|---|---|---|
# | distributed K-FAC | as K-FAC, all-reduced | as K-FAC, all-reduced | none | asynchronous | as K-FAC, with no staleness |
#
# ## Do you remember?
#
# 1. Lesson 07: K-FAC's two factors are means over what?
# 2. Lesson 03: what is $(F + \lambda I)^{-1} g$ along an eigenvector with an eigenvalue far below $\lambda$?
# 3. Lesson 02: gradients of a mean loss are squared to make a Fisher. By which factor is it wrong?
#
# <details><summary>Answers</summary>
# 1. Over examples, and G also over targets drawn from the model. 2. The gradient divided by λ. 3. Each carries 1/N,
#    so the sum of
# squares is too small by 1/N.
# </details>
#
# ## References
#
# - [Ba2017] distributes K-FAC: roles, old inverses, and batch sizes far beyond those of SGD.
# - [Zhang2019] has the noisy quadratic model, and tests it.
# - [MartensGrosse2015] is K-FAC.
#
# Full entries are in `docs/references.md`.
