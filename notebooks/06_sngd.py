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
# # A fixed layer in front of every weight matrix turns gradient descent into natural gradient descent, for one step
#
# - **Objectives.** Prove that gradient descent on $w' = G^{1/2} w$ is natural gradient descent on $w$, and say where the proof
#   needs a fixed $G$; build a local Fisher layer; take roots by iteration and from landmarks; audit a claim against code.
# - **You need.** Lesson 3 (the natural gradient) and lesson 5 (white inputs); eigenvectors.
# - **Time.** 75 minutes for you, half a minute for the machine.
#
# This lesson fills two rows of the table of methods:
#
# | method | input side | output side | between layers | renewed | equals the natural gradient when |
# |---|---|---|---|---|---|
# | SNGD, as the paper states it | ? | ? | ? | every T steps | ? |
# | SNGD, the released code | ? | ? | ? | ? | ? |

# %%
import torch

import natgrad_lab as ng
from natgrad_lab.notebooks import is_fast
from natgrad_lab.optimizers import reconstruct
from natgrad_lab.optimizers.sngd import path_drift

torch.set_default_dtype(torch.float64)
steps = 6 if is_fast() else 12

# %% [markdown]
# ## The smallest case: one weight
#
# One weight $w$, a loss with the gradient $g = 3$, and a Fisher $G = 4$. Natural gradient descent with learning rate 1 moves
# $w$ by $-g / G$. Now write $w = w' / 2$, where $2 = \sqrt G$, and do plain gradient descent on $w'$.

# %%
w, g, G, lr = 1.0, 3.0, 4.0, 1.0
natural = w - lr * g / G

root = G**0.5
w_prime = root * w  # the new coordinate
g_prime = g / root  # chain rule: dL/dw' = dL/dw · dw/dw'
descended = (w_prime - lr * g_prime) / root  # a plain step on w', read back as w
print(natural, descended)
assert natural == descended == 0.25

# %% [markdown]
# The root enters twice: once in the gradient by $w'$, and once in the way back. Together that is $1 / G$. With many weights
# and a matrix $G$ the proof is the same two lines:
#
# $$\frac{\partial L}{\partial w'} = G^{-1/2}\,\nabla L, \qquad
# w_{\text{new}} = G^{-1/2}\bigl(w' - \eta\, G^{-1/2} \nabla L\bigr) = w - \eta\, G^{-1} \nabla L .$$
#
# This is the statement of **SNGD**, structured natural gradient descent [Liu2024].
#
# **Predict.** Where in these two lines is it used that $G$ is fixed?
#
# <details><summary>Answer</summary>
# In the chain rule. If G depended on w, then w' = G(w)^½ w would have another derivative. And in the way back: the root that
# takes w' to w has to be the one that made w'. So G is a constant, and nothing may be differentiated through it.
# </details>
#
# ## The same path?
#
# The Fisher changes whenever $w$ does. So $G$ has to be renewed: every T steps, say. At that moment $w'$ must be expressed
# anew, $w'_{\text{new}} = G_{\text{new}}^{1/2}\, G_{\text{old}}^{-1/2}\, w'$, or the function would jump. Between two renewals
# the steps use a $G$ that belongs to other weights. The card shows a logistic regression with two weights.

# %%
ng.widgets.card("same_path")

# %% [markdown]
# **How to read it.** Thick: natural gradient descent, with the Fisher of every step. Thin: descent on $w'$. With T = 1 their
# distance is rounding, below **1e-14**<!--drift_T1-->. With T = 2 it is already
# **11.5**<!--drift_T2--> % of the way, with T = 5 **27.6**<!--drift_T5--> %, and if $G$ is never renewed
# 28<!--drift_never--> %.
#
# Yet for T = 5 the final losses agree to three digits: 0.3894<!--loss_T5--> against 0.3892<!--loss_natural--> nats. To be on
# *the same path* and to *arrive* are two claims. The paper's sentence proves the first one, for T = 1 only.
#
# The same for a network: tanh, 27 parameters, $G$ the exact Fisher of all of them, the package's `path_drift`.

# %%
data = ng.datasets.gaussian_blobs(num_examples=30)
small = ng.models.mlp((data.inputs.shape[1], 4, 3), "tanh", generator=torch.Generator().manual_seed(1))
likelihood = ng.likelihoods.Categorical()
targets = data.targets % 3
print("distance of the paths, relative to the way, after each step")
for every in (1, 2, 5):
    drifts = list(path_drift(small, likelihood, data.inputs, targets, update_every=every, steps=steps, lr=0.1, damping=0.1))
    print(f"T = {every}:", *(f"{drift:.2f}" for drift in drifts))
    assert max(drifts) < 1e-10 if every == 1 else max(drifts) > 1e-3

# %% [markdown]
# ## The reconstructed network
#
# How does one do plain gradient descent on $w'$ in a network? For a layer with inputs $\bar x = [x; 1]$ and weights
# $W$ (bias included) take one matrix $G$, shared by all units: $G = \mathrm{E}[\bar x \bar x^\top] + \lambda I$. Then
#
# $$W \bar x = \underbrace{W G^{1/2}}_{W'}\; \underbrace{G^{-1/2} \bar x}_{\text{Local Fisher Layer}} .$$
#
# The **Local Fisher Layer** is a fixed matrix in front of the weights. The gradient passes *through* it to earlier layers,
# and never *into* it. Any optimizer may train $W'$; plain SGD then takes the steps $W \leftarrow W - \eta\,\nabla W\,G^{-1}$.
#
# ```
#     x ──► [x; 1] ──► G^-1/2 (fixed) ──► W' (trained) ──► tanh ──► [h; 1] ──► G^-1/2 (fixed) ──► W' (trained) ──► outputs
# ```

# %%
model = ng.models.mlp((data.inputs.shape[1], 4, 3), "tanh", generator=torch.Generator().manual_seed(1))
network = reconstruct(model, damping=0.1)
network.refresh(data.inputs)
change = (network(data.inputs) - model(data.inputs)).norm() / model(data.inputs).norm()
print(network.network, f"\nrelative change of the outputs: {change:.0e}")

optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
likelihood.loss(network(data.inputs), targets).backward()
optimizer.step()  # plain gradient descent on W'
ng.optimizers.METHODS["sngd"](model, likelihood, lr=0.1, damping=0.1).step(data.inputs, targets)  # SNGD on W
difference = (network(data.inputs) - model(data.inputs)).norm() / model(data.inputs).norm()
print(f"after one step of each: {difference:.0e}")
assert change < 1e-10 and difference < 1e-10

# %% [markdown]
# Inserting the layers changes nothing, and one plain step on $W'$ is one step of SNGD on $W$.
#
# What does one $G$ for a layer's units leave out? It is the Fisher of a layer with unit noise on its own outputs: nothing of
# the loss is in it, and nothing between layers. So, compared with $F$, it is a choice of metric like PRONG's. We measure
# with the efficiency of lesson 3: the share of the decrease of the quadratic model that a direction reaches.

# %%
gradient = ng.fisher.natural_gradient(small, likelihood, data.inputs, targets, damping=0.1).gradient
exact = ng.fisher.dense_fisher(small, likelihood, data.inputs)
approximations = {
    "plain gradient": gradient,
    "SNGD, one G for a layer": ng.fisher.one_sided_input_fisher(small, likelihood, data.inputs, scale="one").solve(
        gradient, 0.1
    ),
    "exact blocks": ng.fisher.block_diagonal_fisher(small, likelihood, data.inputs).solve(gradient, 0.1),
    "exact Fisher": exact.solve(gradient, 0.1),
}
share = {name: ng.metrics.efficiency(v, gradient, exact, damping=0.1) for name, v in approximations.items()}
for name, value in share.items():
    print(f"{name:24} {value:.3f}")
assert share["exact Fisher"] > 1 - 1e-9 and share["exact blocks"] < 1

# %% [markdown]
# ## Exercise 6.1: the gradients of a reconstructed network
#
# A network has the weights $W_1$ (4, 5) and $W_2$ (3, 4) and no biases:
# $h = \tanh(W_1 x)$, output $W_2\, G^{-1/2} h$, with $G = \frac1N \sum_n h_n h_n^\top + \text{damping} \cdot I$. The loss is
# $\frac1N \sum_n \frac12 \|\text{output}_n - y_n\|^2$. Return its gradients by $W_1$ and $W_2$, with $G$ a constant. Rows of
# $x$ (N, 5) and $y$ (N, 3) are examples. You may use autograd; `detach()` and `torch.no_grad()` make constants.

# %%
import torch


def fisher_layer_gradients(W1, W2, x, y, damping):
    """Return the gradients of mean ½‖W2 G^−½ tanh(W1 x) − y‖² by W1 and W2; G is a constant."""
    raise NotImplementedError("Exercise 6.1")


# %%
ng.course.check("6.1", fisher_layer_gradients)

# %% [markdown]
# ## A root without eigenvectors
#
# The layer needs $G^{-1/2}$ and $G^{1/2}$. An eigendecomposition gives both. The paper takes the **Denman-Beavers iteration**
# instead, which needs inverses and sums only:
#
# $$Y_0 = A,\; Z_0 = I; \qquad Y \leftarrow \tfrac12 (Y + Z^{-1}), \quad Z \leftarrow \tfrac12 (Z + Y^{-1}),$$
#
# where *both* new matrices are made of the *old* pair. Then $Y \to A^{1/2}$ and $Z \to A^{-1/2}$. For numbers,
# we can do it by hand. For $A = 4$ the first step is $Y = (4 + 1)/2$ and $Z = (1 + 1/4)/2$.

# %%
y, z = 4.0, 1.0
for iteration in range(6):
    print(f"{iteration}: y = {y:.10f}, z = {z:.10f}, y z − 1 = {y * z - 1:.1e}")
    y, z = (y + 1 / z) / 2, (z + 1 / y) / 2
assert abs(y - 2) < 1e-12 and abs(z - 0.5) < 1e-12

# %% [markdown]
# The number of right digits doubles at each step, once it has begun. A large or small eigenvalue first has to come near 1,
# and each step halves it only. **Scaling** both matrices in each iteration, so that the geometric mean of the
# eigenvalues is 1, shortens this.

# %%
ng.widgets.card("root_finder")

# %% [markdown]
# **How to read it.** Blue is $\|YZ - I\|$, orange $\|Y^2 - M\|$. For a condition number of 10,000 it takes
# **10**<!--iterations_plain--> iterations to bring blue below a millionth, **5**<!--iterations_scaled--> with scaling. Two
# traps. Orange is small long before the small eigenvalues are right, and those make the inverse root; so watch blue. And with
# "Z from the new Y" (a loop that overwrites Y first) blue goes to 0 while orange stays at
# **1.3**<!--sequential_residual-->: the pair are each other's inverses, and neither is a root.
#
# In float32, with a condition number of 1e8<!--coarse_condition-->, no iteration helps:
# $\|Z M Z - I\|/\sqrt m$ ends at 0.2<!--coarse_residual-->. The package computes roots in float64.
#
# ## Exercise 6.2: Denman-Beavers
#
# Write `denman_beavers(A)` for a symmetric positive definite $A$ (m, m), float64, with a condition number up to a million.
# Return $Y = A^{1/2}$ and $Z = A^{-1/2}$. Stop by a residual, not by a fixed count.

# %%
import torch


def denman_beavers(A):
    """Return (Y, Z) with Y Y = A and Y Z = I, both symmetric; A (m, m)."""
    raise NotImplementedError("Exercise 6.2")


# %%
ng.course.check("6.2", denman_beavers)

# %% [markdown]
# ## Landmarks
#
# A layer with thousands of inputs has a $G$ that is too large for either. The **Nyström** stand-in takes some columns
# $C = G[:, I]$, the *landmarks*, and their own block $M = G[I, I]$:
#
# $$\hat G = C\, M^{+}\, C^\top .$$
#
# It is symmetric, has no negative eigenvalue, and is exact if $M$ has the rank of $G$. $M^+$ is the pseudo-inverse, because
# two landmarks may say the same. With damping, $(\hat G + \lambda I)^{-1/2}$ is cheap.

# %%
ng.widgets.card("nystrom_rank")

# %% [markdown]
# **How to read it.** $G$ is the second moment of the inputs of a softmax on 8 × 8 digits, 65 × 65 with the bias. With 40
# landmarks the step reaches **97**<!--nystrom_40--> % of the decrease of the full matrix. With 10 it reaches
# **40**<!--nystrom_10--> %, *less* than with one (**67**<!--nystrom_1--> %): the stand-in shrinks the directions it knows, and
# those it does not know are divided by λ alone, although their variance is far above λ. A plain gradient reaches
# 12<!--nystrom_plain--> %.
#
# So the rule is: as many landmarks as it takes until what is left out is below the damping.
#
# ## Exercise 6.3: a stand-in from landmarks
#
# Write `nystrom(A, index)`. Given are a symmetric matrix $A$ (m, m) without negative eigenvalues and the landmarks `index`
# (l,), integers. Return the stand-in (m, m). The landmarks' block may be singular.

# %%
import torch


def nystrom(A, index):
    """Return C M⁺ Cᵀ with C = A[:, index] and M = A[index][:, index]; A (m, m), index (l,)."""
    raise NotImplementedError("Exercise 6.3")


# %%
ng.course.check("6.3", nystrom)

# %% [markdown]
# ## Fisher layers or batch normalization
#
# **Predict.** A perceptron with three hidden layers of 40 rectifiers learns digits. At equal updates: which of SGD, SGD with
# batch normalization and SNGD ends with the lowest training loss? And in equal *seconds*?

# %%
ng.widgets.card("fisher_layer_or_batch_norm")

# %% [markdown]
# **How to read it.** At equal updates SNGD ends at **0.41**<!--against_batch_norm--> times the loss of SGD with batch
# normalization, which ends at **0.25**<!--batch_norm_against_sgd--> times that of SGD (medians of five seeds; every method
# tuned over six settings; all five seeds in this order). In seconds SNGD needs
# **1.3**<!--seconds_against_batch_norm--> times as long as batch normalization for that loss. This is the paper's figure
# 4, *reproduced in miniature*.
#
# ## Audit: what the released code does
#
# The authors released code, and it calls its method "relative natural gradient descent". We read it line by line
# (`docs/sngd.md`). It contains no $w'$, no Local Fisher Layer and no root. It keeps a running mean
#
# $$M \leftarrow (1 - r)\, M + r\,\mathrm{mean}(\nu\, \bar x \bar x^\top)$$
#
# with a small rate $r$ from $M = I$ on, and multiplies the gradient by $(M + c\,\mathrm{tr}(M)\, I)^{-1}$ for a small $c$. The
# inverse is renewed every hundred steps. In hidden layers each unit has an $M$ of its own, with $\nu = \sigma(z)^2$ of the
# unit's pre-activation $z$; in the first and the last layer $\nu = 1$. No gradient of the loss enters $M$.
#
# Is one of the two better? The card's third control adds the released algorithm's curve. Whatever the answer: a result
# obtained with one method says nothing about another one of the same name.
#
# ## Exercise 6.4: who made which direction?
#
# Write `audit(results, gradient, a, z, scores, damping)`. Four methods were given the same gradient of $[W\,|\,b]$ (out, in
# + 1) of one hidden layer; `results` holds what they made of it: letter → (out, in + 1). Given are also the layer's inputs $a$
# (N, in), pre-activations $z$ (N, out) and scores (N, out). With $\bar a = [a; 1]$, λ = `damping`, all means over examples:
#
# - "paper SNGD": gradient · $(\mathrm{E}[\bar a \bar a^\top] + \lambda I)^{-1}$
# - "released SNGD": row $j$ times $(M_j + \lambda\,\mathrm{tr}(M_j) I)^{-1}$, $M_j = \mathrm{E}[\sigma(z_j)^2 \bar a \bar
#   a^\top]$
# - "PRONG": the step of `prong_step` in lesson 5 without sign and learning rate, ε = λ
# - "K-FAC": $(\mathrm{E}[s s^\top] + \sqrt\lambda I)^{-1}$ · gradient · $(\mathrm{E}[\bar a \bar a^\top] + \sqrt\lambda
#   I)^{-1}$
#
# Return a dictionary letter → name. You need not compute all four.

# %%
import torch


def audit(results, gradient, a, z, scores, damping):
    """Return {letter: "paper SNGD" | "released SNGD" | "PRONG" | "K-FAC"}, each name once."""
    raise NotImplementedError("Exercise 6.4")


# %%
ng.course.check("6.4", audit)

# %% [markdown]
# ## PRONG and SNGD are one trick
#
# PRONG whitens with the centred covariance and lets the bias take the mean up; SNGD appends a 1 and takes the symmetric root of
# the second moment. Undamped both are $\nabla W\,A^{-1}$, K-FAC with $G = I$. Damped they differ: PRONG leaves the bias
# undamped.

# %%
A = ng.fisher.one_sided_input_fisher(small, likelihood, data.inputs, scale="one")
start = ng.ParameterLayout(small).parameter_vector().clone()
ends = {}
for name in ("prong", "sngd"):
    for damping in (1e-9, 0.1):
        one = ng.models.mlp((data.inputs.shape[1], 4, 3), "tanh", generator=torch.Generator().manual_seed(1))
        ng.optimizers.METHODS[name](one, likelihood, lr=0.1, damping=damping).step(data.inputs, targets)
        ends[name, damping] = ng.ParameterLayout(one).parameter_vector() - start
for damping in (1e-9, 0.1):
    difference = ng.metrics.relative_error(ends["sngd", damping], ends["prong", damping])
    print(f"damping {damping:g}: relative difference of the two steps {difference:.0e}")
    assert (difference < 1e-5) == (damping < 1e-3)

# %% [markdown]
# ## What we saw
#
# - $w' = G^{1/2} w$ makes gradient descent natural, while $G$ is fixed: one step, or as long as T says.
# - With T > 1 the path is another one, by a quarter of the way for T = 5; the loss it arrives at may be the same.
# - The Fisher of SNGD is the inputs' second moment: PRONG's, up to where the damping goes.
# - The released code does not do what the paper's abstract says. Both run, and both are faster than SGD here.
#
# ## Break it
#
# **Predict.** We renew $G$ and forget to express $W'$ anew. What does training look like?
#
# <details><summary>Answer</summary>
# The function jumps at every renewal: W' was made with the old root and meets the new inverse root. Nothing warns of it, only
# the loss has a saw's teeth.
# </details>

# %%
network.refresh(data.inputs)
before = network(data.inputs).detach()
kept = [weight.detach().clone() for weight in network.parameters()]
network.refresh(2 * data.inputs)  # another batch: W' is expressed anew
right = (network(data.inputs) - before).norm() / before.norm()
with torch.no_grad():
    for weight, old in zip(network.parameters(), kept, strict=True):
        weight.copy_(old)  # ... and now it is not
wrong = (network(data.inputs) - before).norm() / before.norm()
print(f"relative jump of the outputs: {right:.0e} with, {wrong:.2f} without")
assert right < 1e-10 and wrong > 0.1

# %% [markdown]
# > **Limits.** Only the paper's abstract, captions and released code were read for this. Its figures 3, 4 and 5 are
# > *reproduced in miniature* (small networks, five seeds, equal updates). On the Penn Treebank SNGD was not
# > faster than SGD here: *not reproduced*. ImageNet is not attempted. "Faster convergence than NGD", which the abstract also
# > says, cannot follow from equality with NGD.
#
# ## Summary
#
# 1. A fixed $G^{-1/2}$ in front of $W' = W G^{1/2}$ turns SGD into $W \leftarrow W - \eta\,\nabla W\,G^{-1}$.
# 2. Roots come from Denman-Beavers (both from the old pair) or, for large layers, from landmarks (until λ covers the rest).
# 3. Equality with the natural gradient needs the true $G$ at every step; read the code before you cite the claim.
#
# The rows of the table:
#
# | method | input side | output side | between layers | renewed | equals the natural gradient when |
# |---|---|---|---|---|---|
# | SNGD, as the paper states it | E[x̄x̄ᵀ] + λI, as a fixed layer | I | none | every T steps | G is the whole Fisher and T = 1 |
# | SNGD, the released code | running mean of νx̄x̄ᵀ, per unit in hidden layers | I | none | every 100 steps | – |
#
# ## Questions from earlier lessons
#
# 1. (Lesson 2) Is the second moment of a layer's inputs a Fisher matrix of anything?
# 2. (Lesson 3) Why does it not matter that $G^{1/2}$ is not the only root? (A Cholesky factor would do as well.)
# 3. (Lesson 5) What happens to momentum when $G$ is renewed?
#
# <details><summary>Answers</summary>
#
# 1. Yes: of the layer alone, if its output is the mean of a Gaussian of variance 1. It knows nothing of the loss.
# 2. Roots differ by a rotation of w', and gradient descent does not care about rotations.
# 3. It is a velocity of W' and has to be expressed anew, with the same matrix as W' itself.
#
# </details>
#
# ## References
#
# - [Liu2024] on structured natural gradient descent; `docs/sngd.md` for the audit in full.
# - [SunNielsen2017] on the relative Fisher information, which the released code uses.
# - [DenmanBeavers1976] and [Higham2008] on the iteration and its scaling; [WilliamsSeeger2001] on landmarks.
#
# Full entries are in `docs/references.md`.
