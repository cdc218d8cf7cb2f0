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
# # K-FAC gets the matrix wrong and the step right
#
# - **Objectives.** See the Fisher as the covariance of a random gradient, and K-FAC as a model of that covariance. State
#   its two assumptions. Compute its factors, its step and its damping. Test when it is exact and what it is invariant to.
# - **You need.** Lesson 02 (the Fisher, targets drawn from the model), lesson 03 (damping, the efficiency of a step).
# - **Time.** 80 minutes for you, 20 seconds for the machine.
#
# The row of the spine table that we fill here:
#
# | method | input side | output side | across layers | refresh | equals the natural gradient when |
# |---|---|---|---|---|---|
# | K-FAC, block-diagonal | ? | ? | ? | ? | ? |

# %%
import plotly.graph_objects as go
import torch

import natgrad_lab as ng
from natgrad_lab.course.cards import lesson07 as kfac
from natgrad_lab.course.checkpoints import small_digits

torch.set_default_dtype(torch.float64)
digits, likelihood = small_digits(), ng.likelihoods.Categorical()

# %% [markdown]
# ## A gradient is a random variable
#
# A network looks at a picture and says: dog, or cat, or something else. To measure what it *could* have said, we draw a
# label from its own prediction. Each drawn label gives another gradient. The Fisher is the mean of the outer products of
# these gradients. The picture is random, because it comes from the data; the label is random, because it comes from the
# model.

# %%
p = torch.tensor([0.72, 0.09, 0.19])  # dog, cat, something else
scores = torch.eye(3) - p  # one row for each label that could be drawn: the score at the outputs is (one-hot label) − p
mean, covariance = p @ scores, scores.T @ (p[:, None] * scores)
print("mean score:", mean, "   second moment:", covariance, sep="\n")
assert torch.allclose(mean, torch.zeros(3)) and torch.allclose(covariance, torch.diag(p) - torch.outer(p, p))

# %% [markdown]
# The mean over all three labels needs no dice: it is $\mathrm{diag}(p) - pp^\top$. No label of a data set appears in it.
#
# ## The smallest case: one weight, two examples
#
# Backpropagation makes the gradient of a weight as a product: the activation $a$ that enters it times the score $s$ at the
# unit that it leads to. So an entry of the Fisher is a mean of four numbers multiplied, $E[a_i a_j\, s_k s_l]$. For a
# single weight it is $E[a^2 s^2]$. K-FAC takes $E[a^2]\,E[s^2]$ in its place. We try it with two examples.

# %%
for a, s in (([1.0, 3.0], [1.0, 1.0]), ([1.0, 3.0], [2.0, 0.0]), ([1.0, 3.0], [0.0, 2.0])):
    a2, s2 = torch.tensor(a) ** 2, torch.tensor(s) ** 2
    print(f"a = {a}, s = {s}:   E[a² s²] = {(a2 * s2).mean():4}   E[a²] E[s²] = {a2.mean() * s2.mean():4}")

# %% [markdown]
# In the first row $s^2$ is the same for both examples, and the two agree. In the second row the score is large where the
# activation is small, and the product of the means is too large. In the third it is the other way round. So K-FAC's first
# assumption is: **the products of activations and the products of scores are uncorrelated**. Are they in a network? Ours
# has layers of 16, 10, 10 and 10 units and reads digits of 4 × 4 pixels.


# %%
def squares(steps):
    """For each digit: squared length of what enters the last layer, and mean squared length of the scores at its output."""
    rows = ng.fisher.score_pass(kfac.moment(steps).model, likelihood, digits.inputs).layers[-1].rows
    return rows.inputs.square().sum(1), rows.scores.square().sum(2).sum(0)


figure = go.Figure(layout=ng.plots.style.template())
for steps, colour in ((0, ng.plots.style.GREY), (50, ng.plots.method_colour("kfac"))):
    a2, s2 = squares(steps)
    dots = {"size": 5, "color": colour}
    figure.add_scatter(x=a2.tolist(), y=s2.tolist(), mode="markers", name=f"after {steps} steps", marker=dots)
    print(f"after {steps:2} steps E[a² s²] is {(a2 * s2).mean() / a2.mean() / s2.mean():.3f} times E[a²] E[s²]")
figure.update_xaxes(title_text="squared length of the inputs of the last layer")
figure.update_yaxes(title_text="mean squared score (log)", type="log", dtick=1)
figure.update_layout(showlegend=True, legend={"x": 0.75, "y": 0.98})

# %% [markdown]
# **How to read it.** One point for each digit. At initialization all scores have nearly the same size, so it does not
# matter what they go with: the mean of the product is **0.999**<!--ratio_at_start--> times the product of the means. After
# 50 steps most digits are certain and their scores have nearly vanished; the most uncertain tenth of the digits carries
# **46**<!--share_of_uncertain_tenth--> % of all squared scores. These digits have shorter inputs than the others, and the
# ratio is **0.89**<!--ratio_trained-->. The assumption became wrong while the network learned. (Lengths tell only a part:
# the inputs also point elsewhere where the network is uncertain.)

# %% [markdown]
# ## Two small averages for one large matrix
#
# Write the weights of a layer and its bias as one matrix $[W\,|\,b]$, and append a 1 to its input: $\bar a = (a, 1)$. Then
# the layer computes $[W|b]\,\bar a$, and its gradient for one example and one drawn label is the outer product $s\,\bar
# a^\top$. Row by row as one vector that is $s \otimes \bar a$, and the layer's own block of the Fisher is
#
# $$F_{\ell\ell} = E[\,ss^\top \otimes \bar a\bar a^\top\,] \;\approx\; G \otimes A, \qquad G = E[ss^\top],\quad
# A = E[\bar a\bar a^\top].$$
#
# The second assumption removes the rest: **gradients of different layers are uncorrelated**, so the Fisher is taken to be
# block-diagonal. What remains are two small matrices for each layer. The package has them as `left` and `right`.

# %%
model = kfac.moment(50).model
blocks = ng.fisher.kfac_fisher(model, likelihood, digits.inputs).blocks
for layer, block in zip(ng.ParameterLayout(model).layers, blocks, strict=True):
    print(
        f"layer {layer.name}: G {tuple(block.left.shape)}, A {tuple(block.right.shape)} stand for {layer.size} × {layer.size}"
    )
rows = ng.fisher.score_pass(model, likelihood, digits.inputs).layers[1].rows
G = rows.scores.flatten(0, 1).T @ rows.scores.flatten(0, 1) / len(digits)  # the K score vectors of a digit sum up E[ssᵀ]
A = rows.inputs.T @ rows.inputs / len(digits)
assert torch.allclose(blocks[1].left, G) and torch.allclose(blocks[1].right, A)

# %% [markdown]
# A layer of 1,000 units with 1,000 inputs has a million weights. Its block of the Fisher has $10^{12}$ entries, eight
# terabytes; its two factors have two million numbers, sixteen megabytes.
#
# ## Exercise 7.1: the two factors
#
# For the network with logits $W_2 \tanh(W_1 x + b_1) + b_2$ return `[(A1, G1), (A2, G2)]`, means over the $N$ examples.
# `W1` is (H, D), `W2` is (C, H), `X` is (N, D); `A1` is (D+1, D+1) with the 1 last, `G1` is (H, H). Average over labels
# exactly, as we did for the dog. The labels `y` of the data are given too: decide whether you need them.


# %%
def kfac_factors(W1, b1, W2, b2, X, y):
    """Return [(A1, G1), (A2, G2)] of softmax(W2 tanh(W1 x + b1) + b2)."""
    raise NotImplementedError("Exercise 7.1")


# %%
ng.course.check("7.1", kfac_factors)

# %% [markdown]
# ## What do the assumptions cost?
#
# We judge an approximation twice. Its **error** is $\lVert \tilde F - F \rVert / \lVert F \rVert$: are the entries right?
# The **efficiency** of its step is the share of the decrease that the exact natural gradient would promise (lesson 03): is
# the step right? The card answers both for the network above.
#
# **Move** the two assumptions, the diagonal, and the training steps. **Watch** the third map, and the headline.

# %%
ng.widgets.card("assumption_switchboard")

# %% [markdown]
# **How to read it.** Each cell is a pair of units: all weights into the one with all weights into the other, as a root mean
# square on a logarithmic scale. White lines separate the three layers. The bright squares outside the diagonal squares are
# correlations between layers: the second assumption makes them black. Here is the whole story in one table.

# %%
print("steps   error of the last block   efficiency:  gradient  diagonal  K-FAC  exact blocks")
for steps in kfac.STEPS:
    now = kfac.moment(steps)
    choices = ((True, True, True), (True, True, False), (False, True, False))
    shares = [kfac.step_efficiency(now, None), *(kfac.step_efficiency(now, kfac.assumed(now, *each)) for each in choices)]
    error = kfac.block_errors(now, kfac.assumed(now, True, True, False))[-1]
    print(f"{steps:5}   {error:23.2f}  " + " " * 12 + "".join(f"{share:10.2f}" for share in shares))

# %% [markdown]
# ## What we saw
#
# At initialization the error of K-FAC's last block is **0.03**<!--last_block_error_at_start-->. After 50 steps it is
# **0.81**<!--last_block_error_trained-->: hardly an entry is right. But its step still reaches
# **85**<!--kfac_efficiency_percent--> % of the possible decrease. The gradient reaches
# **2**<!--gradient_efficiency_percent--> %, the diagonal **41**<!--diagonal_efficiency_percent--> %. Approximating the
# matrix and approximating the step are two different things. A step needs to know which directions are steep and which are
# flat, and the factors know that.
#
# One result surprises. Switch the independence on and allow correlation between layers: fewer assumptions, a smaller error
# of the matrix. After 50 steps the efficiency is **78**<!--independence_alone_percent--> %, *less* than K-FAC's. An
# assumption more can make a better step. We come back to the blocks between layers in lesson 08.
#
# ## When is K-FAC exact?
#
# **Predict.** In which of these networks is every diagonal block of K-FAC exactly that of the Fisher: one example and any
# network; a deep linear network with squared error and many examples; a deep linear network with a softmax?
#
# <details><summary>Answer</summary>
# In the first two. With one example the means have one term, and the mean of a product is the product of the means. In a
# linear network with squared error the scores do not depend on the example at all, so nothing can be correlated with them.
# With a softmax the scores depend on the prediction, and so on the example.
# </details>

# %%
x = digits.inputs[:, :5] - 0.3
cases = {
    "one example, tanh, softmax": (ng.models.mlp((5, 4, 3)), likelihood, x[:1]),
    "linear, squared error": (ng.models.deep_linear((5, 4, 3)), ng.likelihoods.Gaussian(), x),
    "linear, softmax": (ng.models.deep_linear((5, 4, 3)), likelihood, x),
}
errors = {}
for name, case in cases.items():
    pairs = zip(ng.fisher.kfac_fisher(*case).blocks, ng.fisher.block_diagonal_fisher(*case).blocks, strict=True)
    errors[name] = max(ng.metrics.relative_error(ours, exact) for ours, exact in pairs)
    print(f"{name:27} largest error of a block: {errors[name]:.1e}")
assert errors["one example, tanh, softmax"] < 1e-12 > errors["linear, squared error"] and errors["linear, softmax"] > 1e-3

# %% [markdown]
# ## The step: two small solves
#
# Let $V$ be the gradient of a layer as a matrix of the shape of $[W|b]$. Because $(G \otimes A)\,\mathrm{vec}(X) =
# \mathrm{vec}(G X A^\top)$ for rows one after the other, K-FAC's natural gradient of the layer is
#
# $$U = G^{-1}\, V\, A^{-1}.$$
#
# The output side stands left, the input side right. Nothing of the size of the block is ever formed.

# %%
gradient = kfac.moment(50).gradient
layer = ng.ParameterLayout(model).layers[1]
V = gradient[layer.slice].reshape(layer.shape)
damped = ng.structures.factored_tikhonov(blocks[1], 0.01)  # explained below
U = torch.linalg.solve(damped.left, V) @ torch.linalg.inv(damped.right)
whole = torch.linalg.solve(torch.kron(damped.left, damped.right), V.flatten())
print(f"V is {tuple(V.shape)}; the two small solves and the large one differ by {(U.flatten() - whole).norm():.0e}")
assert torch.allclose(U.flatten(), whole)

# %% [markdown]
# ## Exercise 7.2: precondition a gradient
#
# Return $U$ for symmetric positive definite `A` (in, in), `G` (out, out) and the gradient `V` (out, in).


# %%
def kfac_precondition(A, G, V):
    """Return K-FAC's natural gradient (out, in) of one layer."""
    raise NotImplementedError("Exercise 7.2")


# %%
ng.course.check("7.2", kfac_precondition)

# %% [markdown]
# ## Damping a product
#
# A step far into flat directions must be prevented: we want to add $\lambda I$ to the block. But $G \otimes A + \lambda I$
# is no Kronecker product. K-FAC adds to each factor instead:
#
# $$\Big(G + \tfrac{\sqrt\lambda}{\pi} I\Big) \otimes \Big(A + \pi\sqrt\lambda\, I\Big) = G\otimes A
# + \pi\sqrt\lambda\; G\otimes I + \tfrac{\sqrt\lambda}{\pi}\; I\otimes A + \lambda I .$$
#
# It has the wanted $\lambda I$ and two terms more. For any $\pi > 0$ the last term is $\lambda I$. K-FAC chooses $\pi^2 =
# \dfrac{\mathrm{tr}A / \dim A}{\mathrm{tr}\,G / \dim G}$, the ratio of the mean eigenvalues. Why? Measure the inputs of a
# layer in other units: $A$ becomes $uA$ and $G$ becomes $G/u$, and the block is what it was.

# %%
block, u = blocks[1], 100.0
other_units = ng.structures.Kronecker(block.left / u, block.right * u)
for name, damp in {
    "split by π": lambda b: ng.structures.factored_tikhonov(b, 0.01).to_dense(),
    "√λ on both": lambda b: torch.kron(b.left + 0.1 * torch.eye(10), b.right + 0.1 * torch.eye(11)),
}.items():
    print(f"{name}: the damped block changes by {ng.metrics.relative_error(damp(other_units), damp(block)):.1e}")
assert torch.allclose(other_units.to_dense(), block.to_dense())

# %% [markdown]
# **Predict**, then **move** the scheme and $u$ and **watch** which curves move.

# %%
ng.widgets.card("damping_bench")

# %% [markdown]
# **How to read it.** The share of the possible decrease against $\lambda$. With $u = 1$ the four schemes are not far apart.
# With $u = 100$ the two that add the same number to both factors fall, at $\lambda = 0.01$ from
# **62**<!--even_in_own_units_percent--> % to **19**<!--even_in_other_units_percent--> % of the possible decrease; those
# with $\pi$ and on the product stay exactly where they were. The headline shows the smallest eigenvalue of the damped
# blocks. It is at least $\lambda$ for three schemes. With $\lambda$ on each factor it can be as small as $\lambda^2$.
#
# Be careful with the conclusion. In some places a wrong scheme has the higher curve. That is luck of one network in one
# moment; what is wrong with it is that its meaning depends on units. So the exercise tests the algebra, not the result.
#
# ## Exercise 7.3: split the damping
#
# Return the pair (damped `A`, damped `G`). `A` is (n, n), `G` is (m, m). Where a trace is 0, take $\pi = 1$. Leave the
# arguments as they are.


# %%
def factored_tikhonov(A, G, damping):
    """Return (A with its share of the damping, G with its share)."""
    raise NotImplementedError("Exercise 7.3")


# %%
ng.course.check("7.3", factored_tikhonov)

# %% [markdown]
# ## Who notices other coordinates?
#
# $\tanh(s) = 2\,\sigma(2s) - 1$: a network with tanh units can be written with logistic units $\sigma$, with other weights
# and biases, and every output stays what it was. Take one step in each of the two. Do the two networks still agree? Let a
# layer's inputs be $\bar a = \Omega \bar a^\dagger$ in the new coordinates, and its outputs $\Phi s^\dagger$. Then
#
# $$W^\dagger = \Phi^{-1} W \Omega, \qquad A^\dagger = \Omega^{-1} A\, \Omega^{-\top}, \qquad
# G^\dagger = \Phi^\top G\, \Phi, \qquad V^\dagger = \Phi^\top V\, \Omega^{-\top}.$$
#
# (Scores are derivatives with respect to the outputs, so they get $\Phi^\top$.) Insert this into $U^\dagger = G^{\dagger-1}
# V^\dagger A^{\dagger-1}$: all matrices in the middle cancel, and $U^\dagger = \Phi^{-1} U\, \Omega$. That is the same
# step, written in the new coordinates.

# %%
ng.widgets.card("invariance_bench")

# %% [markdown]
# **How to read it.** A point is one output for one example: how far one step moves it in the tanh network, and in its twin.
# On the diagonal the two agree. The gap is the distance between the two functions after the step, relative to how far the
# step moved. We print it for all methods.

# %%
print("gap after one step, tanh → logistic   λ = " + "".join(f"{damping:<10g}" for damping in kfac.DAMPINGS))
for method in kfac.METHODS:
    gaps = [kfac.one_step("tanh to logistic", method, damping)["gap"] for damping in kfac.DAMPINGS]
    print(f"{method:42}" + "".join(f"{gap:<10.1e}" for gap in gaps))
assert kfac.one_step("tanh to logistic", "K-FAC", 0.0)["gap"] < 1e-8

# %% [markdown]
# Gradient descent has a gap of **0.68**<!--gradient_gap-->. Undamped K-FAC has none: what is left is rounding. K-FAC is
# only an approximation of the natural gradient, and yet it keeps this invariance, because each factor takes up one of the
# two matrices. Two things break it. **Damping**: with $\lambda$ as small as 1/10,000 the gap is
# **0.17**<!--gap_at_small_damping-->, with $\lambda$ = 1/10 it is **0.53**<!--gap_at_large_damping-->, for $I$ means
# something else in other coordinates. And **a forgotten 1**: with the bias apart, so that $A$ does not know that inputs
# have a mean, the gap is **0.64**<!--gap_with_bias_apart--> without any damping. Logistic units are shifted by 1, and only
# the appended 1 can take that up.
#
# ## Exercise 7.4: measure the gap
#
# One layer, everything given: `A` (n, n), `G` (m, m), gradient `V` (m, n), the change `Omega` (n, n) and `Phi` (m, m), and
# the damping. Compute the damped step with $\sqrt\lambda$ added to **both** factors (no $\pi$), in the old and in the new
# coordinates; bring the new one back; return the length of the difference relative to the length of the old step. Measure
# lengths so that they do not depend on coordinates: $\lVert D\rVert^2 = \mathrm{tr}(D^\top G D A)$, the Fisher's.


# %%
def invariance_gap(A, G, V, Omega, Phi, damping):
    """Return the relative gap between the step in the old and in the new coordinates, a number >= 0."""
    raise NotImplementedError("Exercise 7.4")


# %%
ng.course.check("7.4", invariance_gap)

# %% [markdown]
# ## Averages over time
#
# A batch gives a noisy estimate of $A$ and $G$. They change slowly, so K-FAC keeps running averages: at the $k$-th batch
# the old average gets the weight $\min(1 - 1/k,\ 0.95)$. The first batch then counts fully, the second half, and so on;
# later an average remembers about 20 batches.

# %%
weights = torch.ones(1)
for k in range(2, 41):
    keep = min(1 - 1 / k, 0.95)
    weights = torch.cat([weights * keep, torch.tensor([1 - keep])])
print(f"40 batches, weights from {weights.min():.3f} to {weights.max():.3f}, in all {weights.sum():.6f}")
assert torch.isclose(weights.sum(), torch.tensor(1.0))

# %% [markdown]
# ## Break it
#
# It is tempting to save the second backward pass: the gradients of the loss are there already, so why not take $G$ from
# them, with the labels of the data? Published implementations have done that. **Predict**: what happens to $G$ when the
# network has learned the data?
#
# <details><summary>Answer</summary>
# It vanishes. A label that is predicted with certainty has no gradient. The Fisher of an uncertain network is large for all
# labels that it holds possible; what the data say does not enter.
# </details>

# %%
for steps in kfac.STEPS:
    now = kfac.moment(steps)
    arguments = now.model, likelihood, digits.inputs
    right = ng.fisher.kfac_fisher(*arguments)
    wrong = ng.fisher.kfac_fisher(*arguments, "empirical", digits.targets)
    steps_of = [ng.optimizers.damping.factored_inverse(fisher, 0.01).matmul(now.gradient) for fisher in (right, wrong)]
    shares = [ng.metrics.efficiency(v, now.gradient, ng.structures.Dense(now.exact), 0.01) for v in steps_of]
    ratio = float(wrong.trace() / right.trace())
    print(f"{steps:3} steps: trace with labels / trace {ratio:.2f}   efficiency {shares[0]:.2f}, with labels {shares[1]:.2f}")

# %% [markdown]
# At the start the trace with labels is about right, for the network then holds all labels possible. After 50 steps it is
# **0.16**<!--label_trace_ratio--> of what it should be: the step becomes six times too long, and $\lambda$ weighs six times
# as much. The efficiency does not see that, because it asks for the direction only. A training run does: lesson 09 measures
# it.
#
# ## Limits
#
# - All numbers are those of one small network and one seed; an efficiency judges one step, not a training run (lesson 09).
# - In the kept reproduction of the paper's figure the factors capture the Fisher "partly": on digits the median error of
#   the whole matrix is a little below the threshold fixed in advance, and one seed is above it (`docs/reproductions.md`,
#   kfac-fisher-quality).
# - We took labels exactly, ten backward passes; in training K-FAC draws one label for each example.
# - Convolutions and sequences use a weight many times for one example. That is lesson 10.
#
# ## Summary
#
# 1. The Fisher is the covariance of a random gradient; K-FAC models it by $G \otimes A$ for each layer and nothing between.
# 2. The entries become wrong during training, and the step stays good.
# 3. Undamped, the step does not depend on affine coordinates of layers; damping has to be split by $\pi$, and it costs
#    invariance.
#
# The row, filled:
#
# | method | input side | output side | across layers | refresh | equals the natural gradient when |
# |---|---|---|---|---|---|
# | K-FAC, block-diagonal | $A = E[\bar a\bar a^\top]$ | $G = E[ss^\top]$ | none | every 20 | one example and one layer |
#
# ## Three questions from earlier lessons
#
# 1. Why is a label drawn from the model, and not taken from the data?
# 2. What is the efficiency of a direction, and why not the angle to the natural gradient?
# 3. PRONG whitens the inputs of a layer. Which of K-FAC's two factors does it use?
#
# <details><summary>Answers</summary>
# 1. The Fisher is the curvature of KL at the model's own predictions; labels of the data give another matrix, which
#    vanishes where the data are fitted (lesson 02). 2. The squared cosine in the inner product of F + λI, the share of the
#    possible decrease; a Euclidean angle depends on the coordinates (lesson 03). 3. A alone: it is K-FAC with G = I (lesson
#    05).
# </details>
#
# ## References
#
# - [MartensGrosse2015] on K-FAC: the factors in section 3, running averages in 5, damping in 6, invariance in 10.
# - [Heskes2000] on Kronecker blocks for perceptrons, fifteen years earlier.
# - [Kunstner2019] on labels of the data in the place of drawn ones.
# - [Desjardins2015] on the one-sided relative, PRONG.
#
# Full entries are in `docs/references.md`.
