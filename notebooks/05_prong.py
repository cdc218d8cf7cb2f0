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
# # White inputs make the Fisher fourteen times better conditioned and change no output
#
# - **Objectives.** Turn preconditioning into a change of coordinates; whiten a layer without changing its function; choose
#   the period T and the number ε; say which half of K-FAC this is.
# - **You need.** Lessons 2 and 3 (the Fisher, the natural gradient); eigenvectors; covariance.
# - **Time.** 75 minutes for you, half a minute for the machine.
#
# This lesson fills two rows of the table of methods:
#
# | method | input side | output side | between layers | renewed | equals the natural gradient when |
# |---|---|---|---|---|---|
# | PRONG | ? | ? | ? | every T steps | ? |
# | PRONG+ | ? | ? | ? | every T steps, scales every step | ? |

# %%
import torch

import natgrad_lab as ng
from natgrad_lab.experiments import ExperimentConfig, run
from natgrad_lab.notebooks import is_fast
from natgrad_lab.optimizers.whitened import WhitenedNetwork

torch.set_default_dtype(torch.float64)
seeds = range(1 if is_fast() else 3)

# %% [markdown]
# ## The smallest case: one layer, two inputs
#
# A layer computes $W h + b$ from its input $h$. Ours has two inputs and one output, and sees four examples. Its output is
# the mean of a Gaussian of variance 1. Then the Fisher of one unit is the second moment of $[h; 1]$, the input with a 1
# appended for the bias. No weight appears in it.

# %%
h = torch.tensor([[1.0, 5.0], [3.0, 9.0], [5.0, 9.0], [7.0, 13.0]])
W, b = torch.tensor([[0.5, -0.2]]), torch.tensor([1.0])
homogeneous = torch.cat([h, torch.ones(4, 1)], dim=1)
A = homogeneous.T @ homogeneous / 4
print(A)
print("eigenvalues:", torch.linalg.eigvalsh(A))
assert torch.allclose(A[:2, 2], torch.tensor([4.0, 9.0]))  # the mean of the inputs

# %% [markdown]
# The eigenvalues differ by a factor of thousands. Two things are to blame. The inputs are far from 0: their mean is (4, 9).
# And they are correlated: where the first is large, the second is. Both have to do with the inputs alone, and neither with
# what the layer should learn.
#
# ## The same function in other coordinates
#
# **Whitening** an input takes both away: subtract the mean $c$, then multiply by a matrix $U$ such that
# $U (h - c)$ has uncorrelated entries of variance 1. With the covariance $\Sigma = E \,\mathrm{diag}(\lambda)\, E^\top$,
#
# $$U = \mathrm{diag}(\lambda + \varepsilon)^{-1/2} E^\top .$$
#
# The small number $\varepsilon$ guards against directions in which the inputs never vary. We give the layer new weights
# for the white inputs: $V\,U (h - c) + d$. It is the same function as before if
#
# $$V = W U^{-1}, \qquad d = b + W c .$$

# %%
c = h.mean(0)
covariance = (h - c).T @ (h - c) / 4
eigenvalues, E = torch.linalg.eigh(covariance)
U = torch.diag(eigenvalues**-0.5) @ E.T  # ε = 0: nothing to guard against here
V, d = W @ torch.linalg.inv(U), b + W @ c
white = (h - c) @ U.T
print("covariance:\n", covariance, "\nof the white inputs:\n", white.T @ white / 4)
assert torch.allclose(white @ V.T + d, h @ W.T + b)

# %% [markdown]
# The layer computes what it computed. Its parameters are now $(V, d)$ instead of $(W, b)$, and the Fisher of one unit is the
# second moment of $[U(h - c); 1]$.
#
# **Predict.** What is that matrix?
#
# <details><summary>Answer</summary>
# The identity. White inputs have second moment I, and their mean is 0, so that nothing stands beside the 1 either. Plain
# gradient descent on (V, d) is then natural gradient descent.
# </details>

# %%
homogeneous_white = torch.cat([white, torch.ones(4, 1)], dim=1)
fisher_white = homogeneous_white.T @ homogeneous_white / 4
print(fisher_white)
assert torch.allclose(fisher_white, torch.eye(3), atol=1e-12)

# %% [markdown]
# This is the idea of **PRONG**, "projected natural gradient descent" [Desjardins2015]. A preconditioner multiplies the
# gradient by a matrix. Here we leave the gradient alone, and choose coordinates in which it needs no preconditioner.
#
# ## Exercise 5.1: whiten a layer
#
# Write `whiten_layer(W, b, a, epsilon)`. Given are $W$ (out, in), $b$ (out,) and the inputs $a$ (N, in). Return the tuple
# $V$ (out, in), $d$ (out,), $U$ (in, in), $c$ (in,). Covariances are means over the N examples. Any $U$ with
# $U^\top U = (\Sigma + \varepsilon I)^{-1}$ is right.

# %%
import torch


def whiten_layer(W, b, a, epsilon):
    """Return V, d, U, c such that V U (a − c) + d = W a + b and U(a − c) is white; a (N, in), W (out, in)."""
    raise NotImplementedError("Exercise 5.1")


# %%
ng.course.check("5.1", whiten_layer)

# %% [markdown]
# ## What whitening can reach, and what it cannot
#
# In a network the Fisher's block of one layer is $\mathrm{E}[\,s s^\top \otimes \bar h \bar h^\top]$: $\bar h = [h; 1]$
# is what the layer receives, and $s$ is the score at its output. Lesson 7 takes the two expectations apart,
#
# $$F_{\text{layer}} \approx \underbrace{\mathrm{E}[s s^\top]}_{G} \otimes \underbrace{\mathrm{E}[\bar h \bar h^\top]}_{A} .$$
#
# **Predict.** We whiten the inputs of every layer. Which of the two factors becomes the identity?
#
# <details><summary>Answer</summary>
# A. The factor G stays as it is: it depends on what comes after the layer, and whitening inputs does not touch that. So the
# Fisher gets better, and it does not become the identity.
# </details>
#
# We try it on a network with layers of 16, 16, 16 and 10 units that reads 600 digits of 4 × 4 pixels. It has 714
# parameters, so we can compute the exact Fisher. `WhitenedNetwork` is the package's network with $V$, $d$, $U$ and $c$.

# %%
data = ng.datasets.resize(ng.datasets.digits().select(slice(600)), 4)
model = ng.models.mlp((16, 16, 16, 10), "tanh", generator=torch.Generator().manual_seed(1))
network = WhitenedNetwork(model)
network.reparametrize(data.inputs, damping=1e-5)
difference = (network(data.inputs) - model(data.inputs)).norm() / model(data.inputs).norm()
print(f"parameters: {sum(p.numel() for p in model.parameters())}, relative change of the outputs: {difference:.0e}")
assert difference < 1e-10

# %% [markdown]
# ## Before and after
#
# Now the card. It shows the exact Fisher of this network in both coordinate systems. As the measure of conditioning we take
# $\lambda_{\max}$ over the mean eigenvalue, because the smallest eigenvalues are 0 (the softmax of lesson 2).

# %%
ng.widgets.card("whitening_before_after")

# %% [markdown]
# **How to read it.** The heatmaps show the parameters of one unit of each layer, 17 of them: 16 weights and a bias. A bright
# cell off the diagonal says that two parameters act alike. Before, everything acts like everything, in stripes. After, the
# blocks on the diagonal are nearly diagonal. Blocks between layers are still there: we whitened *inside* layers.
#
# The ratio falls from **175**<!--condition_before--> to **11.9**<!--condition_after-->, a factor of 14.6<!--factor-->; over
# ten networks the median is **14.5**<!--median_factor-->. Without centring the factor is only
# **7.7**<!--uncentred_factor-->. When inputs are white already, there is little to gain: 2.4<!--white_noise_factor-->. And
# with ε = 1 nothing is left of it: 1.2<!--large_epsilon_factor-->.

# %% [markdown]
# ## Surprise: it is half of K-FAC
#
# What does a step on $(V, d)$ do to $(W, b)$? Let $g_W$ and $g_b$ be the gradients of the loss by $W$ and $b$. The layer sees
# $U(h - c)$, so the gradient by $V$ is $(g_W - g_b c^\top)\,U^\top$, and that by $d$ is $g_b$. Back in the old coordinates
# $W = V U$, so that $U$ comes in a second time:
#
# $$\Delta W = -\mathrm{lr}\,(g_W - g_b c^\top)\,(\Sigma + \varepsilon I)^{-1}, \qquad
# \Delta b = -\mathrm{lr}\, g_b - \Delta W\, c .$$
#
# For $\varepsilon = 0$ this is $-\mathrm{lr}\,[g_W \,|\, g_b]\,A^{-1}$ with $A = \mathrm{E}[\bar h \bar h^\top]$: the step of
# K-FAC with $G$ replaced by $I$. The mean $c$ and the 1 appended to the inputs are two ways to say the same. We check
# it on the whole network.

# %%
likelihood = ng.likelihoods.Categorical()
blobs = ng.datasets.gaussian_blobs(num_examples=200)
small = ng.models.mlp((blobs.inputs.shape[1], 5, 3), "tanh", generator=torch.Generator().manual_seed(2))
targets = blobs.targets % 3
outputs = likelihood.loss(small(blobs.inputs), targets)
layout = ng.ParameterLayout(small)
gradient = layout.from_torch(torch.cat([g.flatten() for g in torch.autograd.grad(outputs, list(small.parameters()))]))
one_sided = ng.fisher.one_sided_input_fisher(small, likelihood, blobs.inputs, scale="one")
predicted = -0.1 * one_sided.solve(gradient)

before = layout.parameter_vector()
ng.optimizers.METHODS["prong"](small, likelihood, lr=0.1, damping=0.0).step(blobs.inputs, targets)
taken = layout.parameter_vector() - before
print(f"relative difference of the two steps: {ng.metrics.relative_error(taken, predicted):.0e}")
assert ng.metrics.relative_error(taken, predicted) < 1e-10

# %% [markdown]
# The two steps are one, to rounding. Forget the 1, that is, precondition $g_W$ with $\mathrm{E}[h h^\top]^{-1}$ and leave
# the bias alone: then the step of the digit network's first layer is **22**<!--without_one--> % off. A mean is not a
# detail.
#
# ## Exercise 5.2: PRONG's step in the old coordinates
#
# Write `prong_step(grad_W, grad_b, a, epsilon, lr)`: the changes $\Delta W$ (out, in) and $\Delta b$ (out,) that one step of
# gradient descent on $(V, d)$ makes. Given are the gradients by $W$ and $b$ and the layer's inputs $a$ (N, in), from which
# its whitening is taken.

# %%
import torch


def prong_step(grad_W, grad_b, a, epsilon, lr):
    """Return (ΔW, Δb) of one step of gradient descent on (V, d); grad_W (out, in), grad_b (out,), a (N, in)."""
    raise NotImplementedError("Exercise 5.2")


# %%
ng.course.check("5.2", prong_step)

# %% [markdown]
# ## Whiten rarely: the period T
#
# When the weights move, the inputs of all later layers change, and $U$ and $c$ are out of date. Computing them
# anew takes a pass over data and an eigendecomposition for every layer. PRONG does this every T steps and walks with plain
# gradients in between:
#
# ```
#     every T steps:   (W, b)  --- new U and c from the data --->  (V, d)        the function stays
#     T times:         (V, d)  --- plain gradient step        --->  (V, d)        the function learns
#     then:            (V, d)  --- W = V U,  b = d - W c      --->  (W, b)        the function stays
# ```
#
# The two arrows between $(W, b)$ and $(V, d)$ are the "projections" of the paper's name. It reads them as **mirror
# descent**: the model lives in one space, and the steps are taken in another one that is tied to it by a map.
#
# There is one trap. **Momentum** is a velocity, and a velocity has coordinates too. When $U$ and $c$ change, the velocity
# $(M_V, m_d)$ of $(V, d)$ has to move along: to velocities of $(W, b)$ by $M_W = M_V U$, $m_b = m_d - M_W c$, and into the
# new coordinates by $M_V = M_W U^{-1}$, $m_d = m_b + M_W c$. The maps are those of the parameters, because they are linear.

# %%
optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
for step in range(21):
    if step in (10, 20):
        old = network(data.inputs).detach()
        network.reparametrize(data.inputs, damping=1e-2, optimizer=optimizer)
        print(f"step {step}: relative jump of the outputs {(network(data.inputs) - old).norm() / old.norm():.0e}")
        assert (network(data.inputs) - old).norm() < 1e-10 * old.norm()
    optimizer.zero_grad()
    likelihood.loss(network(data.inputs), data.targets).backward()
    optimizer.step()

# %% [markdown]
# ## Exercise 5.3: PRONG with a period and momentum
#
# Write `prong_train(W, b, batches, lr, momentum, epsilon, every)` for one linear layer with the loss
# $\tfrac12\|y - \text{output}\|^2$, averaged over a batch. `batches` is a list of pairs $a$ (N, in), $y$ (N, out); take one
# step on each. At steps 0, `every`, 2 · `every`, … renew $U$ and $c$ from *that step's* inputs, before the step. The velocity
# starts at 0, becomes momentum · velocity + gradient, and goes along when coordinates change. Return $W$ and $b$.
# You may use your `whiten_layer`: put it into the same cell.

# %%
import torch


def prong_train(W, b, batches, lr, momentum, epsilon, every):
    """Return (W, b) after one step of PRONG with momentum on every batch (a, y); whitened every so many steps."""
    raise NotImplementedError("Exercise 5.3")


# %%
ng.course.check("5.3", prong_train)

# %% [markdown]
# ## How stale may a whitening be?
#
# **Predict.** Ten networks train for 300 updates. One run whitens every 100 updates only. Will its Fisher at times be worse
# conditioned than under plain gradient descent? Commit to an answer in the card.

# %%
ng.widgets.card("conditioning_while_training")

# %% [markdown]
# **How to read it.** Lower is better. Within the first 25 updates most of the gain is lost that will be lost, for T = 100.
# Still the purple curve stays below the orange one at **100**<!--share_below_T100--> % of the checkpoints of all seeds, by a
# factor of **3.4**<!--factor_T100--> (3.9<!--factor_T1--> for T = 1).
#
# What "condition number" means has to be said when the Fisher is singular. The menu has three meanings. The first two give the
# same curve, because the smallest eigenvalue is 0. The third compares $\lambda_{\max}$ with the eigenvalue at a tenth of the
# parameters.
#
# Is a shorter period always better conditioned? On average over training, the order T = 1, 10, 100 holds in only
# **60**<!--ordered_share--> % of the seeds. We had asked for four of five, so this figure of the paper counts as *partly*
# reproduced. Late in training, whitening at every step is not better than whitening every hundred.

# %% [markdown]
# ## ε is a damping
#
# The paper adds ε to the eigenvalues of the covariance, to guard against zeros. Where inputs hardly vary, $U$ is nearly
# $1/\sqrt\varepsilon$, and $W$ moves by $1/\varepsilon$ times its gradient. The card shows an autoencoder for the 8 × 8
# digits (64-48-24-8-24-48-64, logistic units), trained for 400 updates with every pair of ε and T. The learning rate is the one
# that suits ε = 0.1<!--tuned_epsilon--> best.

# %%
ng.widgets.card("prong_race")

# %% [markdown]
# **How to read it.** A column of the table is an ε, a row a period. From left to right the error falls, with T = 10 from
# **17.8**<!--grid_small_epsilon--> to **2.8**<!--grid_tuned_epsilon--> at ε = 0.1<!--tuned_epsilon-->. A stale whitening
# needs a larger ε: at T = 1 even ε = 0.001<!--fresh_epsilon--> trains to 2.2<!--grid_fresh-->, at T = 10 it
# fails (16<!--grid_stale-->). Steps along directions that looked flat are long, and the
# next weights may make them steep.
#
# Does it pay? After 400 updates the best cell is at **0.96**<!--grid_best-->, SGD with batch normalization at
# **0.95**<!--batch_norm_error-->, SGD with momentum at 4.7<!--momentum_error-->. An update with T = 1 costs
# **6.2**<!--seconds_T1--> times the CPU seconds of SGD with momentum's, one with T = 100 3.3<!--seconds_T100--> times.
# Choose "seconds" in the card to see what remains.

# %% [markdown]
# ## A run of our own
#
# The same question on a small classifier: 300 digits, 60 full-batch updates, the best of four learning rates for each method.

# %%
config = ExperimentConfig(sizes=(64, 32, 10), dataset="digits", num_examples=300, steps=61, dtype="float64", device="cpu")
rates = (0.3, 1.0) if is_fast() else (0.1, 0.3, 1.0, 3.0)
methods = {
    "sgd": [{"method": "sgd", "lr": lr} for lr in rates],
    "prong": [{"method": "prong", "lr": lr, "damping": 0.1, "options": {"reparametrize_every": 20}} for lr in rates],
}
for seed in seeds:
    ends = {}
    for name, settings in methods.items():
        runs = [list(run(ExperimentConfig(**{**vars(config), **setting, "seed": seed}))) for setting in settings]
        ends[name] = min(records[-1].loss for records in runs if records[-1].status == "ok")
    print(f"seed {seed}: loss after 60 updates, sgd {ends['sgd']:.4f}, prong {ends['prong']:.4f} nats")
    assert ends["prong"] < ends["sgd"]

# %% [markdown]
# ## PRONG+
#
# Whitening is renewed every T steps, but variances drift in between. **PRONG+** adds a diagonal matrix $D$ that is renewed on
# *every* batch: the layer is $V D\, U(h - c) + d$ with $D_j = (\mathrm{var}_j + \text{floor})^{-1/2}$, where
# $\mathrm{var}_j$ is the variance of $(U(h - c))_j$ on the batch, about the batch's own mean. When $D$ changes, $V$ takes the
# change up, $V \leftarrow V D_{\text{old}} D_{\text{new}}^{-1}$, and the function stays. Another way to a similar end is to
# combine PRONG with **batch normalization**, which scales every unit by the batch and lets the function change with it.
#
# ## Exercise 5.4: the scales of PRONG+
#
# Write `unit_scales(V, D, white, floor)`: the new $V$ (out, in) and the new diagonal $D$ (in,). Given are the old ones and the
# white inputs of the batch (N, in). Variances are means over the N examples.

# %%
import torch


def unit_scales(V, D, white, floor):
    """Return (V, D): D_j = (variance of white[:, j] + floor)^-½, and V such that V D is what it was; D (in,)."""
    raise NotImplementedError("Exercise 5.4")


# %%
ng.course.check("5.4", unit_scales)

# %% [markdown]
# ## What we saw
#
# - White inputs change no output, and the largest eigenvalue over the mean falls fourteenfold.
# - In the old coordinates this is $[g_W\,|\,g_b]\,A^{-1}$: K-FAC with $G = I$. It knows the inputs and nothing of the loss.
# - A whitening may be stale: after a hundred updates it is still better than none.
# - ε matters more than T. It is a damping, and one that leaves the bias alone.
#
# ## Break it
#
# **Predict.** A layer receives a unit that never varies: a dead pixel, or a dead rectifier. What does PRONG do with
# ε = 0?
#
# <details><summary>Answer</summary>
# Its covariance has the eigenvalue 0, and U would have to divide by √0. The package refuses and says which layer it is.
# With any ε > 0 it goes on, and the smaller the ε, the longer the steps along that direction once the unit wakes up.
# </details>

# %%
dead = data.inputs.clone()
dead[:, 3] = 0.0
try:
    ng.optimizers.METHODS["prong"](model, likelihood, damping=0.0).step(dead, data.targets)
except ng.errors.NotPositiveDefiniteError as error:
    print(error)

# %% [markdown]
# > **Limits.** The factor of fourteen belongs to this network and these data: for inputs that are white already it is about 2.
# > Heatmap and conditioning on small nets are *partly* reproduced (6 of 7 checks, 10 seeds), the autoencoder's ε and T too
# > (1 of 5 checks, 5 seeds): there, in 400 to 1,000 updates, PRONG's order by T did not show, and whitening once at
# > the start did not beat tuned SGD. The paper trains larger networks for far longer, with T = 1,000. Its ImageNet
# > figures are not attempted.
#
# ## Summary
#
# 1. Preconditioning is a change of coordinates: $V = W U^{-1}$, $d = b + W c$.
# 2. Whitening all inputs is K-FAC with $G = I$, in coordinates that may be kept for T steps.
# 3. ε is a damping; momentum has to move with the coordinates.
#
# The rows of the table:
#
# | method | input side | output side | between layers | renewed | equals the natural gradient when |
# |---|---|---|---|---|---|
# | PRONG | Cov(h), centred: A of [h; 1] | I | none | every T steps | G ∝ I and F block-diagonal (one linear layer, Gaussian) |
# | PRONG+ | PRONG's, its variances per batch | I | none | every T steps, scales every step | – |
#
# ## Questions from earlier lessons
#
# 1. (Lesson 2) Do the labels of the data enter the Fisher of these networks?
# 2. (Lesson 3) Gradient descent on $(V, d)$ and on $(W, b)$ take different roads. Do undamped natural gradient steps?
# 3. (Lesson 4) In a deep linear network, which factor besides $A^{-1}$ does the natural gradient of a layer have?
#
# <details><summary>Answers</summary>
#
# 1. No. Targets are drawn from the model's prediction; the labels enter the gradient only.
# 2. No: the change from (W, b) to (V, d) is affine, and under affine changes the natural gradient takes the same step.
# 3. The inverse of the covariance of the scores on the output side, and 1/L for L layers. PRONG leaves both out.
#
# </details>
#
# ## References
#
# - [Desjardins2015] on natural neural networks: algorithm 1, figures 1 to 4.
# - [MartensGrosse2015] on K-FAC, of which this is the input side.
#
# Full entries are in `docs/references.md`.
