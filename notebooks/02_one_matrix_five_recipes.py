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
# # The labels of the data do not enter the Fisher
#
# - **Question.** Five recipes claim to compute the Fisher of a network. Which of them do?
# - **You need.** Lesson 1 (the Fisher is the second derivative of the KL), softmax, Jacobians.
# - **Time.** 75 minutes for you, 15 seconds for the machine.
#
# After this lesson you can write the Fisher of a network in four ways, say when they agree, get N and the order of the
# parameters right, and read a Fisher heatmap.
#
# The row of the table that this lesson fills in:
#
# | Recipe | The labels come from | Equal to the Fisher |
# |---|---|---|
# | exact · sampled · empirical · Gauss-Newton · Hessian | ? | ? |

# %%
import numpy as np
import torch

import natgrad_lab as ng
from natgrad_lab.course.cards.lesson02 import DAMPING, from_outputs, numbers, output_matrices, stages
from natgrad_lab.notebooks import is_fast

torch.set_default_dtype(torch.float64)
seeds = range(3 if is_fast() else 10)

# %% [markdown]
# ## The smallest case: three classes, no network
#
# A model says: class 0 with probability `0.7`, class 1 with `0.2`, class 2 with `0.1`. Its parameters are the three
# logits $z$, and $p = \mathrm{softmax}(z)$. The derivative of $\log p_y$ by the logits is the **score**, $e_y - p$:
# one for the class that is seen, minus what was expected. The Fisher is the mean of the score's outer product over
# classes drawn **from the model**.

# %%
p = torch.tensor([0.7, 0.2, 0.1])
scores = torch.eye(3) - p  # row y is the score of class y
Lambda = sum(p[y] * torch.outer(scores[y], scores[y]) for y in range(3))
print(Lambda)
assert torch.allclose(Lambda, torch.diag(p) - torch.outer(p, p))

# %% [markdown]
# The sum is $\Lambda = \mathrm{diag}(p) - pp^\top$. Off the diagonal it is negative: what one class gains, the others lose.
#
# **Predict.** The data set says that the label of this example is class 2. How does that change $\Lambda$?
#
# <details><summary>Answer</summary>
# Not at all. The mean is over classes drawn from p. The label of the data does not occur in the formula.
# </details>
#
# Is this the Fisher of lesson 1? There it was the second derivative of the KL.

# %%
z = p.log()


def model_kl(there):
    return (p * (p.log() - there.log_softmax(0))).sum()


assert torch.allclose(torch.autograd.functional.hessian(model_kl, z), Lambda)
print("eigenvalues:", torch.linalg.eigvalsh(Lambda).round(decimals=3))
print("Λ @ (1, 1, 1) =", (Lambda @ torch.ones(3)).round(decimals=3))

# %% [markdown]
# It is. One eigenvalue is 0: adding the same number to all logits changes no probability. For this reason a softmax
# network always has a singular Fisher.

# %% [markdown]
# ## Five recipes
#
# A network is a conditional distribution: it takes an input $x_n$ and returns logits $f_n$, hence probabilities
# $p_n$. With the Jacobian $J_n = \partial f_n / \partial\theta$, a small update $\delta$ changes the logits by
# $J_n\delta$. The mean KL over $N$ inputs then gives
#
# $$ F = \frac1N \sum_n J_n^\top \Lambda_n J_n, \qquad \Lambda_n = \mathrm{diag}(p_n) - p_n p_n^\top . $$
#
# Four of the five recipes have this form and differ only in $\Lambda_n$, a small matrix of classes × classes:
#
# - **exact Fisher**: the mean over all classes, weighted with $p_n$.
# - **sampled Fisher** (Monte Carlo): the mean over $S$ classes drawn from $p_n$.
# - **empirical Fisher**: $(e_{y_n} - p_n)(e_{y_n} - p_n)^\top$ with the label $y_n$ of the data.
# - **Gauss-Newton**: the second derivative of the loss by the logits. For softmax with cross-entropy it is
#   $\mathrm{diag}(p_n) - p_np_n^\top$ again.
# - **Hessian** of the loss: Gauss-Newton plus a term with the second derivatives of the network.
#
# We take 400 points of four overlapping classes and a network of 6, 8, 8 and 4 units with 164 parameters.

# %%
stage = stages("6-8-8-4")[0]  # before training
J, logits = stage.jacobian, stage.logits
F = from_outputs(J, output_matrices(stage, "exact Fisher"))
ours = ng.fisher.dense_fisher(stage.model, ng.likelihoods.Categorical(), stage.inputs)
print("Jacobians", tuple(J.shape), "  Fisher", tuple(F.shape))
assert torch.allclose(F, ours.to_dense())

# %% [markdown]
# The package's `dense_fisher` returns the same matrix, and does not form the Jacobians. Which parameter belongs to
# which row? The *layout* knows: layer by layer, within a layer unit by unit, each unit with its weights and then its
# bias.

# %%
layout = ng.ParameterLayout(stage.model)
print(layout)
for i, j in [(0, 1), (6, 7), (56, 0), (163, 163)]:
    print(f"F[{i:3}, {j:3}] = {F[i, j]:+.4f} belongs to {layout.parameter_name(i):12} and {layout.parameter_name(j)}")

# %%
ng.widgets.card("fisher_recipes")

# %% [markdown]
# **How to read it.** Left: each cell is one entry of the matrix, white lines separate the layers, and the colours are
# those of the exact Fisher, so that recipes can be compared by eye. Right: the eigenvalues on a logarithmic axis,
# from the largest.
#
# **Move.** Go through the recipes before training. *Gauss-Newton* is exactly the Fisher. The *empirical Fisher* is
# **71.7**<!--empirical_error--> % away from it, in the Frobenius norm; one *sampled label* for each example, as cheap
# to compute, only **16.3**<!--one_label--> % (a mean over ten seeds). The *Hessian* is **233**<!--hessian_error--> %
# away, and **79**<!--hessian_negative--> of its eigenvalues are negative: as a metric it is out of the question.

# %% [markdown]
# ## Labels from the model
#
# To draw one label for each example is cheap: one backward pass, like the gradient. It is a random matrix whose mean
# is the Fisher. **Predict**: with 100 labels for each example instead of one, how many times smaller is the error?
#
# <details><summary>Answer</summary>
# Ten times: the error of a mean falls with the square root of the number of samples.
# </details>

# %%
mean_error = {}
for count in (1, 10, 100, 1000):
    recipe = f"sampled labels, {count} each"
    made = [from_outputs(J, output_matrices(stage, recipe, seed)) for seed in seeds]
    mean_error[count] = np.mean([ng.metrics.relative_error(each, F) for each in made])
    print(f"{count:5} labels each: off by {mean_error[count]:.2%}")
power = np.polyfit(np.log(list(mean_error)), np.log(list(mean_error.values())), 1)[0]
print(f"error ∝ samples to the power {power:.2f}")
assert abs(power + 0.5) < 0.05 and mean_error[1] < numbers("6-8-8-4", 0, "empirical Fisher")["error"]

# %% [markdown]
# One label gives **16.3**<!--one_label--> %, ten give **4.9**<!--ten_labels--> %, a hundred
# **1.6**<!--hundred_labels--> %: the power is **−0.49**<!--sampling_power-->. The empirical Fisher has no such knob.
# Its error is not noise; it converges to another matrix.
#
# How much does that matter for a step? Put each matrix in the place of $F$, at the same damping $\lambda$ = `0.01`,
# and ask what share of the possible decrease of the loss (in the quadratic model) its step reaches. Lesson 3 explains
# this number.

# %%
print(f"damping {DAMPING}; before training")
for recipe in ("exact Fisher", "sampled labels, 1 each", "empirical Fisher", "Hessian"):
    found = numbers("6-8-8-4", 0, recipe)
    print(f"{recipe:24} off by {found['error']:7.1%}   its step reaches {found['efficiency']:6.1%}")
assert numbers("6-8-8-4", 0, "empirical Fisher")["efficiency"] < numbers("6-8-8-4", 0, "sampled labels, 1 each")["efficiency"]

# %% [markdown]
# One drawn label gives **95.8**<!--one_label_efficiency--> % of the decrease, the labels of the data
# **61.8**<!--empirical_efficiency--> %. Both cost the same.
#
# ## What the labels do
#
# Why is the empirical Fisher so different? Take a line $f = wx + b$ and squared error, $\tfrac12(y-f)^2$. The score
# of an example is its residual $r_n = y_n - f_n$ times $(x_n, 1)$, so the empirical Fisher weights each example by
# $r_n^2$, and the exact one weights all alike. With two points, both matrices are invertible, and we can say what
# their steps do to the two outputs: the exact one moves each output **by its residual**, so it hits both targets at
# once.
#
# **Predict.** One residual is 1, the other 20. What does the empirical step do?
#
# <details><summary>Answer</summary>
# It divides by the squared residual instead: the outputs move by 1/1 and by 1/20. The worse the fit, the smaller the step.
# </details>

# %%
x, r = torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 20.0])
phi = torch.stack([x, torch.ones(2)], 1)  # rows (x_n, 1)
g = -(r.unsqueeze(1) * phi).mean(0)
exact, empirical = phi.T @ phi / 2, (r.unsqueeze(1) * phi).T @ (r.unsqueeze(1) * phi) / 2
for name, M in (("exact", exact), ("empirical", empirical)):
    step = -torch.linalg.solve(M, g)
    found = ng.metrics.efficiency(step, g, ng.structures.Dense(exact))
    print(f"{name:10} moves the outputs by {(phi @ step).round(decimals=4).tolist()}, reaches {found:.2%}")
assert torch.allclose(phi @ -torch.linalg.solve(empirical, g), 1 / r)

# %% [markdown]
# The empirical step reaches **1.0**<!--two_points_efficiency--> % of the possible decrease, with a matrix that is
# positive definite and looks healthy. Now move *training steps* in the figure above. After 200 steps the network
# predicts its overlapping classes about as well as can be, its errors look like draws from its own predictions, and
# the empirical Fisher is **25.0**<!--empirical_error_trained--> % away, no more than one drawn label in the figure,
# **31.0**<!--one_label_trained--> %. The Hessian, too, comes down to **14.3**<!--hessian_error_trained--> %: its
# extra term is weighted with errors that now average out. That is the rule: where the model is right, in
# distribution, the recipes agree. While it learns, it is not.

# %% [markdown]
# ## Where did N go?
#
# Loss, gradient and Fisher are *means* over examples in these lessons. Other programs take sums, and PyTorch's
# `MSELoss` even divides by the number of outputs. If everything is a sum, the damping must be one too, or the step
# changes.

# %%
ng.widgets.card("where_did_n_go")

# %% [markdown]
# **How to read it.** Along an eigenvector with eigenvalue $s$ the gradient has to be multiplied by $1/(s+\lambda)$
# (dashed). The solid line is what a program does that takes some sums and some means. Below $\lambda$ both are flat;
# a program that squares gradients of the *mean* loss has a Fisher too small by $1/N$, never leaves the flat part, and
# is **50**<!--worst_factor--> times too long in the direction of the largest eigenvalue. In effect it is gradient
# descent. Try the preset *all sums*: it is right again.
#
# A test that finds these mistakes needs no reference: copy the data set. No mean over examples may change.

# %%
copies = torch.cat([stage.inputs, stage.inputs])
twice = ng.fisher.dense_fisher(stage.model, ng.likelihoods.Categorical(), copies)
assert torch.allclose(twice.to_dense(), F)
print("copied data set: largest change of an entry", f"{float((twice.to_dense() - F).abs().max()):.0e}")

# %% [markdown]
# ## The order of the parameters
#
# For one example the block of a layer $s = W\bar a$ is simple. The gradient of a score is the outer product of the
# score at the layer's output, $s$, and its input with a 1 appended, $\bar a$. With the weights written row by row,
# $\mathrm{vec}(s\bar a^\top) = s \otimes \bar a$,
#
# $$ (s \otimes \bar a)(s \otimes \bar a)^\top = ss^\top \otimes \bar a\bar a^\top . $$
#
# Scores outside, inputs inside. Column by column it would be the other way round; mixing the two is a mistake that no
# shape gives away, since both products have the same size and the same entries.

# %%
ng.widgets.card("kronecker_order")

# %% [markdown]
# **How to read it.** Left the exact block of the middle layer, 8 units with 8 weights and a bias each: 8 × 8 squares
# of 9 × 9. Right the product of $G = \mathrm{E}[ss^\top]$ and $A = \mathrm{E}[\bar a\bar a^\top]$ in either order.
# For one example G ⊗ A is exact. For 400 it is an approximation, **50**<!--right_order--> % away, which is called
# K-FAC (lesson 7). In the wrong order it is **126**<!--wrong_order--> % away.

# %% [markdown]
# ## The spectrum, and why it ends
#
# **Predict.** The network has 164 parameters and sees 400 examples with 3 free probabilities each, enough to fill
# every direction. Is the Fisher regular?
#
# <details><summary>Answer</summary>
# No. Adding the same vector to the weights of all four output units adds the same number to all logits. The last
# layer sees 8 units and a 1, so there are 9 such directions, and the rank is 164 − 9 = 155.
# </details>

# %%
eigenvalues = ours.eigvalsh()
rank = ng.metrics.numerical_rank(eigenvalues)
shift = torch.zeros(164)
shift[layout.layers[-1].slice] = torch.randn(9, generator=torch.Generator().manual_seed(0)).repeat(4)
print(f"{int((eigenvalues > DAMPING).sum())} eigenvalues above the damping; rank {rank} of 164")
print(f"‖F @ shift‖ / ‖shift‖ = {float((F @ shift).norm() / shift.norm()):.0e}")
assert int((eigenvalues > DAMPING).sum()) == 23 and rank == 155 and (F @ shift).norm() < 1e-12
ng.plots.spectrum_figure(eigenvalues.flip(0)[:rank].numpy(), damping=DAMPING)

# %% [markdown]
# **How to read it.** The nonzero eigenvalues, from the largest; both axes are logarithmic, and the dashed line is the
# damping `0.01`. Only 23 of the 164 directions lie above it. In all others the damping decides. The rank is
# **155**<!--rank--> in every recipe: no choice of $\Lambda_n$ reaches the nine directions that the outputs do not
# feel.

# %% [markdown]
# ## What we saw
#
# A gallery of mistakes, each of which has been in published code. The table says how far each lands from $F$, and
# what gives it away.

# %%
N, rows = len(J), torch.einsum("ncp,nc->np", J, torch.nn.functional.one_hot(stage.targets, 4) - logits.softmax(1))
gallery = {
    "labels of the data": rows.T @ rows / N,
    "no mean over examples": N * F,
    "gradients of the mean loss squared": F / N,
    "np.cov of per-example gradients": torch.cov(rows.T),
    "most likely class instead of a draw": ng.fisher.dense_fisher(
        stage.model, ng.likelihoods.Categorical(), stage.inputs, "empirical", logits.argmax(1)
    ).to_dense(),
    "diag(p) without ppᵀ": from_outputs(J, torch.diag_embed(logits.softmax(1))),
}
for name, wrong in gallery.items():
    ratio = float((wrong * F).sum() / (F * F).sum())
    print(f"{name:36} off by {ng.metrics.relative_error(wrong, F):8.1%}; nearest multiple of F: {ratio:.4g}")

# %% [markdown]
# Some are exact multiples of the right matrix: the nearest multiple is N or 1/N and nothing remains. Others depend on
# labels: permute the labels, and see whether the matrix changes. The checker of the exercises works like this, and
# your own tests can.
#
# In three numbers: labels of the data **71.7**<!--empirical_error--> % off, one drawn label **16.3**<!--one_label-->
# %, and an error that falls with the power **−0.49**<!--sampling_power--> of the number of draws.
#
# ## Break it
#
# The Fisher equals Gauss-Newton for softmax, Bernoulli and Gaussian outputs. **Predict**: is that so for any loss?
# Take a Gaussian whose output is *log σ* instead of the mean, with the mean fixed at 0.
#
# <details><summary>Answer</summary>
# No. The second derivative of −log p by log σ is 2y²/σ², which depends on the target y. Its mean over the model's own
# targets is 2, the Fisher. For a single observed y it can be anything from 0 upwards.
# </details>

# %%
log_sigma = torch.tensor(0.0)


def nll(s, y):
    return s + 0.5 * (y / s.exp()) ** 2


for y in (0.1, 1.0, 3.0):
    second = torch.autograd.functional.hessian(lambda s, y=y: nll(s, y), log_sigma)
    print(f"y = {y}: second derivative of the loss {second:6.2f}; Fisher 2")
draws = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
assert abs(float(2 * draws.square().mean()) - 2) < 0.05

# %% [markdown]
# **Limits.** The numbers here are for a small tanh network on generated data. How bad the empirical Fisher is depends
# on the network and on the moment; that it is not the Fisher does not. "Exact" means exact for these 400 inputs: over
# the inputs of the world, it is a sample too.
#
# ## Exercises

# %% [markdown]
# ## Exercise 2.1: the exact Fisher
#
# Given Jacobians `J` (N, C, P) of logits and the logits `z` (N, C), return the Fisher (P, P).


# %%
def fisher_softmax(J, z):
    """Return the exact Fisher (P, P) of a softmax model with logits z (N, C) and Jacobians J (N, C, P)."""
    raise NotImplementedError("Exercise 2.1")


# %%
ng.course.check("2.1", fisher_softmax)

# %% [markdown]
# ## Exercise 2.2: a sampled Fisher
#
# The same with labels drawn from the model: `num_samples` for each example, from `generator` (give it to
# `torch.multinomial` or `torch.rand`). The observed labels `y` (N,) are handed over as well. Do you need them?


# %%
def fisher_mc(J, z, y, num_samples, generator):
    """Return a sampled Fisher (P, P); J (N, C, P), logits z (N, C), observed labels y (N,)."""
    raise NotImplementedError("Exercise 2.2")


# %%
ng.course.check("2.2", fisher_mc)

# %% [markdown]
# ## Exercise 2.3: a block from its factors
#
# Given `A` (in, in) from the inputs and `G` (out, out) from the scores of a layer, return the block (out · in, out ·
# in) for weights written row by row.


# %%
def block_from_factors(A, G):
    """Return the Kronecker block (out*in, out*in) of a layer in row-major order."""
    raise NotImplementedError("Exercise 2.3")


# %%
ng.course.check("2.3", block_from_factors)

# %% [markdown]
# ## Exercise 2.4: the diagonal
#
# A Gaussian model with means $f_n$ (C,) and the given variance has $\Lambda_n = I/\sigma^2$; its loss is half the
# squared error over the variance, summed over outputs. Given `J` (N, C, P) and the variance, return the diagonal of
# the Fisher (P,), without forming the matrix.


# %%
def fisher_diagonal(J, variance):
    """Return the diagonal (P,) of the Fisher of a Gaussian with Jacobians J (N, C, P) of its means."""
    raise NotImplementedError("Exercise 2.4")


# %%
ng.course.check("2.4", fisher_diagonal)

# %% [markdown]
# ## Exercise 2.5 (bonus): a trap for the empirical Fisher
#
# For the line $f = wx + b$ with unit variance, return inputs `x` (N,) and targets `y` (N,), two points or more, on
# which the empirical Fisher's step reaches at most 5 percent of the possible decrease. The gradient must not be zero,
# and the exact Fisher must be regular.


# %%
def empirical_trap(w, b):
    """Return (x, y), each (N,), that mislead the empirical Fisher of the line w x + b."""
    raise NotImplementedError("Exercise 2.5")


# %%
ng.course.check("2.5", empirical_trap)

# %% [markdown]
# ## Summary
#
# 1. The Fisher averages over targets drawn from the model; a sampled one is noisy, the empirical one is another matrix.
# 2. Copy the data, permute the labels, look for multiples: these tests find most mistakes without a reference.
# 3. Row by row, a layer's block is built as G ⊗ A.
#
# The row of the table:
#
# | Recipe | The labels come from | Equal to the Fisher |
# |---|---|---|
# | exact | all classes, weighted with p | always |
# | sampled | draws from p | in the mean |
# | Gauss-Newton | none needed | for softmax, Bernoulli and Gaussian means |
# | empirical | the data | where the model is right in distribution |
# | Hessian | the data | where, besides, the network's second derivatives average out |
#
# **Three questions to remember by.**
#
# <details><summary>Lesson 1: what is the gradient divided by, so that it no longer depends on the map?</summary>
# By the metric of the map: M⁻¹g. For a model the metric is the Fisher.
# </details>
# <details><summary>Lesson 1: how does a Fisher change when the parameters are written in other coordinates?</summary>
# It becomes JᵀFJ, with J the derivative of the old coordinates by the new ones.
# </details>
# <details><summary>Lesson 1: with which power of the step does ½ δᵀFδ miss the KL?</summary>
# With the third.
# </details>
#
# ## References
#
# - [Kunstner2019] on the empirical Fisher, and why it is not one.
# - [Martens2020] on Fisher and Gauss-Newton, and when they are equal.
# - [MartensGrosse2015] on Kronecker factors of a layer's block, and on drawing labels from the model.
# - [Dangel2025] on conventions for flattening and scaling.
#
# Full entries are in `docs/references.md`.
