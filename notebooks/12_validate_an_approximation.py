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
# # An approximation is good for a step, or it is not
#
# - **Question.** How do we find out whether an approximate natural gradient is any good, and whether its code is right?
# - **You need.** Lessons 2, 3 and 7: the Fisher's recipes, damping and efficiency, K-FAC.
# - **Time.** 90 minutes for you, 20 seconds for the machine.
#
# After this lesson you can bring a model of your own, compare any approximation with the exact natural gradient,
# separate its sources of error, recognize a faulty implementation by its symptoms, and write a report that others can
# check.
#
# The row of the table that this lesson fills in is the last one:
#
# | Method | Efficiency before training | after 3 steps | after 10 steps |
# |---|---|---|---|
# | K-FAC | ? | ? | ? |

# %%
import json

import torch

import natgrad_lab as ng
from natgrad_lab.course.cards.lesson12 import PROBES, clinic, network, report, small_digits
from natgrad_lab.notebooks import is_fast

torch.set_default_dtype(torch.float64)
inputs, targets = small_digits()
likelihood = ng.likelihoods.Categorical()

# %% [markdown]
# ## The smallest case: two parameters
#
# Let $F = \mathrm{diag}(100, 1)$ and $g = (10, 1)$, with damping $\lambda = 0$. The natural gradient is $F^{-1}g$: a
# tenth of the first entry's size, and one. Two approximations are proposed: the plain gradient (10, 1), and the
# direction (0, 1), which gives up the first parameter altogether.
#
# **Predict.** The Euclidean cosines to the natural gradient are about `0.20` and `0.995`. Which proposal lowers the
# quadratic model of the loss more, with its best step length?
#
# <details><summary>Answer</summary>
# Neither: both reach about half of what is possible. The cosine sees a world of difference where there is none.
# </details>

# %%
F, g = ng.structures.Dense(torch.diag(torch.tensor([100.0, 1.0]))), torch.tensor([10.0, 1.0])
best = F.solve(g)
for name, v in (("gradient", g), ("(0, 1)", torch.tensor([0.0, 1.0]))):
    found = ng.metrics.efficiency(v, g, F)
    print(f"{name:9} cosine {ng.metrics.direction_cosine(v, best):.3f}, reaches {found:.1%} of the possible decrease")
    assert abs(found - 0.5) < 0.02

# %% [markdown]
# ## The yardstick
#
# The quadratic model of the loss at damping $\lambda$ is $g^\top d + \tfrac12 d^\top F_\lambda d$ with $F_\lambda =
# F + \lambda I$. Along $d = -\alpha v$ it is lowest at the **best step** $\alpha^* = g^\top v / v^\top F_\lambda v$,
# and falls by $\tfrac12 (g^\top v)^2 / v^\top F_\lambda v$. The most that any direction can reach is $\tfrac12
# g^\top F_\lambda^{-1} g$. Their ratio is the **efficiency**
#
# $$ \mathrm{eff}(v) = \frac{(g^\top v)^2}{(v^\top F_\lambda v)\,(g^\top F_\lambda^{-1} g)} \in [0, 1] . $$
#
# It does not depend on the length of $v$, nor on the coordinates of the model: it is the squared cosine between $v$
# and the exact natural gradient *in the metric* $F_\lambda$ (lesson 1). It is a statement about one step, one batch
# and one $\lambda$.

# %% [markdown]
# ## A report in one line
#
# `ng.compare` makes every approximation from the same batch, at the same damping, and measures all of this in
# float64. The network has 16, 12 and 10 units, 334 parameters, and sees 100 digits of 4 × 4 pixels.

# %%
names = ["block_tridiagonal", "block_diagonal", "kfac", "unit_wise", "diagonal", "identity"]
start = ng.compare(network(0), likelihood, inputs, targets, damping=1e-2, approximations=names)
print(start)
assert abs(start.row("exact").efficiency - 1) < 1e-8

# %% [markdown]
# **How to read it.** One row for each approximation, the best first. *Frobenius* is the error of the matrix, and it
# misleads: K-FAC's matrix is more than half wrong, its step is not. Before training K-FAC reaches
# **93.2**<!--kfac_start--> % of the possible decrease, the block-tridiagonal one **98.3**<!--tridiagonal_start--> %.
# Is that still so while the network learns?

# %%
ng.widgets.card("validation_dashboard")

# %% [markdown]
# **How to read it.** Each line is one approximation, over the damping. Far to the right all are equal: beside a large
# $\lambda$ no Fisher matters. Green is an efficiency of 80 percent or more, yellow of 50 or more.
#
# After ten exact steps the plain gradient has a cosine of **0.93**<!--gradient_cosine--> to the exact natural
# gradient, and K-FAC one of **0.96**<!--kfac_cosine-->. They look alike. Their efficiencies are
# **25.2**<!--gradient_efficiency--> % and **91.3**<!--kfac_efficiency--> %. Switch *judged by* to the cosine and
# back, and watch which lines move together.

# %% [markdown]
# ## What does each assumption cost?
#
# K-FAC assumes first that layers do not interact, then that inputs and scores are independent. The *ladder* of the
# report goes down one assumption at a time, and sets beside it the **noise floor**: the Fisher with one sampled
# target for each example and no other assumption.

# %%
ng.plots.comparison.ladder_figure(start)

# %% [markdown]
# **How to read it.** Each bar is an efficiency, and the number in brackets what the last assumption cost, in points.
# The diamond is K-FAC with one sampled target: the whisker is one standard deviation over five seeds.

# %%
for noise in start.ladder.noise:
    print(f"{noise.label:28} {noise.efficiency:.1%} ± {noise.efficiency_deviation:.1%} over {noise.num_seeds} seeds")
assert start.ladder.noise[0].efficiency < start.row("kfac").efficiency

# %% [markdown]
# Drawing one target costs more than K-FAC's assumptions: the unstructured Fisher with one sample reaches
# **84.4**<!--noise_start--> %, K-FAC with all classes **93.2**<!--kfac_start--> %, and K-FAC with one sample
# **90.1**<!--kfac_noise_start--> %. Structure averages noise away. An approximation that is a few points below
# another, from one sampled target, has not been shown to be worse: look at the whisker first.

# %% [markdown]
# ## Promise and reality
#
# The efficiency is about a quadratic model. Does the loss obey it? Two numbers tell: the fall of the loss over the
# promised one, and the KL that the step really moves over $\tfrac12\delta^\top F\delta$.
#
# **Predict.** As the step gets shorter, what does the second ratio go to?
#
# <details><summary>Answer</summary>
# To 1: the quadratic is the beginning of the KL (lesson 1), and the rest is of third order.
# </details>

# %%
model, layout = network(10), ng.ParameterLayout(network(10))
direction = ng.fisher.natural_gradient(model, likelihood, inputs, targets, damping=1e-2).direction
exact, here, before = ng.fisher.dense_fisher(model, likelihood, inputs), layout.parameter_vector(), model(inputs).detach()
name_of = {id(parameter): name for name, parameter in model.named_parameters()}


def outputs_at(vector):
    values = {name_of[id(parameter)]: part for parameter, part in layout.split(vector)}
    return torch.func.functional_call(model, values, (inputs,)).detach()


for step in (1.0, 0.3, 0.1, 0.01):
    moved = outputs_at(here - step * direction)
    quadratic = 0.5 * step**2 * float(direction @ exact.matmul(direction))
    ratio = float(likelihood.kl(before, moved).mean()) / quadratic
    print(f"step {step:5}: KL / quadratic = {ratio:.4f}")
assert abs(ratio - 1) < 2e-3

# %% [markdown]
# Before training the exact step at $\alpha^*$ is promised a fall of **1.09**<!--promised--> nats and gets
# **0.52**<!--achieved-->; a full step moves **1.48**<!--kl_ratio_full--> times the KL that the quadratic says. The
# step is too long for the model, and all approximations suffer with it. An efficiency is worth as much as the
# quadratic model at that $\lambda$; where the ratio is far from 1, raise $\lambda$.

# %%
ng.plots.comparison.steps_figure(start)

# %% [markdown]
# **How to read it.** For each approximation, at its own best step, the fall that the quadratic model promises (open)
# and the fall of the loss (filled), in nats per example. The order is not even kept: K-FAC, which is promised less
# than the exact step, gets **0.78**<!--kfac_achieved-->. That is no victory of K-FAC. It is a $\lambda$ at which the
# yardstick does not hold. We take a larger one.

# %%
tripled = ng.compare(network(0), likelihood, inputs, targets, damping=3e-2, approximations=["kfac", "identity"])
for name in ("exact", "kfac", "identity"):
    row = tripled.row(name)
    print(f"{name:9} promised {row.predicted_decrease:.3f}, achieved {row.achieved_decrease:.3f} nats")
assert tripled.row("exact").achieved_decrease > max(tripled.row("kfac").achieved_decrease, start.row("exact").achieved_decrease)

# %% [markdown]
# With three times the damping the exact step gets **0.75**<!--exact_tripled--> nats, K-FAC's
# **0.73**<!--kfac_tripled-->: the order of the efficiencies is back. Judge approximations where promise and reality
# go together.
#
# ## On which examples?
#
# All numbers so far are about the 100 examples from which the Fisher was made. Whether a step helps on *other*
# examples is another question, and it needs others: a split that mixes the two answers nothing. We make each
# direction from 60 digits, and look at the other 40.

# %%
order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
train, held = order[:60], order[60:]
part = ng.compare(network(3), likelihood, inputs[train], targets[train], 1e-1, ["kfac", "identity"])
optimizers = {"kfac": ng.optimizers.METHODS["kfac"], "sgd": ng.optimizers.METHODS["sgd"]}


def loss(net, where):
    return float(likelihood.loss(net(inputs[where]), targets[where]).detach())


for name, lr in (("kfac", part.row("kfac").best_step), ("sgd", part.row("identity").best_step)):
    copy = ng.models.mlp((16, 12, 10), "tanh")
    copy.load_state_dict(network(3).state_dict())
    options = {"damping": 1e-1} if name == "kfac" else {}
    before = loss(copy, train), loss(copy, held)
    optimizers[name](copy, likelihood, lr=lr, **options).step(inputs[train], targets[train])
    own, others = before[0] - loss(copy, train), before[1] - loss(copy, held)
    print(f"{name:5} loss falls by {own:+.3f} on its 60 digits, by {others:+.3f} on the others")

# %% [markdown]
# Both lines matter to a reader. The first one is about the approximation; the second one is also about the data.
#
# ## The clinic
#
# A low efficiency has two possible reasons: the approximation is weak, or its code is wrong. The examinations below
# tell them apart, and none of them needs to look at the code. The eight patients are preconditioners of one softmax
# regression: the exact one, K-FAC and the diagonal are healthy; five others have faults of lessons 2 and 7.

# %%
for name, meaning in PROBES.items():
    print(f"{name:14} {meaning}")

# %% [markdown]
# Each examination rests on a property that the right code has:
#
# - *Permute the labels*: the Fisher does not know them, so nothing may move (the gradient is handed over unchanged).
# - *Copy the data set*: a mean does not change.
# - *A very large damping*: every $(\hat F + \lambda I)^{-1} g$ becomes $g/\lambda$.
# - *A single example*: with one layer, a Kronecker product is exact.
# - *A gradient with one entry*: shows which entries the matrix connects.

# %%
ng.widgets.card("fault_clinic")

# %% [markdown]
# **How to read it.** One examination of all eight patients, and in the headline the whole file of one of them. Write
# down your eight diagnoses before you open the files.
#
# The diagonal reaches only **30**<!--healthy_diagonal--> % and has no fault. The K-FAC whose two factors are both
# damped by $\lambda$ reaches **70**<!--sick_damping--> %, more than twice as much, and is wrong: at a large $\lambda$
# its step is too short by a factor of $\lambda$. With the empirical Fisher the direction moves by
# **2.5**<!--sick_labels--> times its own length when labels are permuted. The best step of the exact one is
# **1.0**<!--clinic_exact-->, as it must be.
#
# Never judge code by its performance alone. A wrong factor that happens to damp more can look good on a benchmark.

# %%
letters, numbers = clinic(torch.Generator().manual_seed(1))  # another clinic, with its answers
for letter, name in letters.items():
    print(
        letter, f"{name:9}", " ".join(f"{probe} {value:.3g};" for probe, value in numbers[letter].items() if probe != "spread")
    )
assert all((numbers[letter]["labels"] > 1e-6) == (name == "labels") for letter, name in letters.items())
assert all((numbers[letter]["copies"] > 1e-6) == (name == "no mean") for letter, name in letters.items())

# %% [markdown]
# ## Your own approximation
#
# Anything that turns a gradient into a direction can be compared: a function of the gradient (and the damping), a
# structure of the package, or an estimator. Here is one that treats the first layer exactly and the second as a
# multiple of the identity.

# %%
full, layout = ng.fisher.dense_fisher(network(3), likelihood, inputs).to_dense(), ng.ParameterLayout(network(3))
first, second = (layer.slice for layer in layout.layers)


def half_exact(gradient, damping):
    block = full[first, first] + damping * torch.eye(first.stop - first.start)
    mean = full[second, second].diagonal().mean() + damping
    return torch.cat([torch.linalg.solve(block, gradient[first]), gradient[second] / mean])


mine = ng.compare(
    network(3), likelihood, inputs, targets, 1e-2, {"half_exact": half_exact, "kfac": "kfac", "identity": "identity"}
)
print(mine)
assert mine.row("identity").efficiency < mine.row("half_exact").efficiency < 1

# %% [markdown]
# ## The report
#
# A report is worth something if another person can repeat it. It therefore holds the versions, the seed, the damping,
# the sizes, the convention of the Fisher, what failed and why. `report.to_html(path)` writes a page,
# `report.to_json(path)` the numbers. From a terminal, with a file `my.py` that makes the model:
#
# ```
# natgrad compare --model my.py:make --data my.npz --damping 1e-4:1:9 --fail-under kfac.eff=0.5
# ```
#
# The last option makes it a test: the exit code is 1 if the efficiency is lower.

# %%
written = json.loads(json.dumps(mine.to_dict()))
print(list(written))
print({key: written["about"][key] for key in ("damping", "num_examples", "num_parameters", "seed", "route")})
print(written["about"]["convention"])

# %% [markdown]
# ## What we saw

# %%
moments = (10,) if is_fast() else (0, 3, 10)
print("K-FAC's efficiency:", *(f"after {steps} steps {report(steps).row('kfac').efficiency:.1%};" for steps in moments))
for name, measure in ng.course.claims("01" if is_fast() else "12").items():  # what a lesson states, measured again
    print(f"  {name:24} {measure():.4g}")

# %% [markdown]
# K-FAC's efficiency drifts: **93.2**<!--kfac_start--> %, **80.9**<!--kfac_middle--> %, **91.3**<!--kfac_efficiency-->
# %. One number from one moment is an anecdote. The list is this lesson's ledger: each number in the text is the
# result of a function, and all were just measured again.
#
# ## Break it
#
# The efficiency needs a gradient and a damping. **Predict**: what becomes of all efficiencies at a damping of 10?
#
# <details><summary>Answer</summary>
# All go to 1, the plain gradient's too. A report at too large a damping makes everything look good; that is why it sweeps.
# </details>

# %%
curves, place = start.sweep.curves, start.sweep.dampings.index(10.0)
print({name: round(curves[name]["efficiency"][place], 4) for name in names})
assert min(curves[name]["efficiency"][place] for name in names) > 0.99

# %% [markdown]
# **Limits.** The exact side costs one factorization of min(P, N·C) rows, so it is for small models or small batches;
# the report says which. An efficiency is local: it says nothing about the whole of training, about time, or about
# other batches.
#
# **Your verdict.** Write one paragraph about one approximation, and let somebody check it against these five lines:
# Does it name the damping, the batch and the moment of training? Does it give the efficiency, not only a cosine? Is
# the difference larger than the noise? Does it say what could not be judged? Could a reader repeat it?
#
# ## Exercises

# %% [markdown]
# ## Exercise 12.1: judge a direction
#
# Given a direction `v` (P,), the gradient `g` (P,), the exact Fisher `F` (P, P) and the `damping`, return three
# numbers: the efficiency, the best step length, and the decrease that the quadratic model promises at that step.


# %%
def validate(v, g, F, damping):
    """Return (efficiency, best step, decrease at the best step) of the direction v (P,)."""
    raise NotImplementedError("Exercise 12.1")


# %%
ng.course.check("12.1", validate)

# %% [markdown]
# ## Exercise 12.2: diagnose a clinic
#
# `numbers[letter][probe]` holds the examinations of eight patients, with the probes printed above. Return a dict from
# each letter to its diagnosis: `"exact"`, `"kfac"`, `"diagonal"` (healthy), `"labels"`, `"no mean"`, `"order"` (of
# the factors), `"unused"` (the gradient is handed back) or `"damping"` (on each factor). Each occurs once. The
# letters are dealt anew for every student, and so are weights and data.


# %%
def diagnose(numbers):
    """Return {letter: diagnosis} from numbers[letter][probe]."""
    raise NotImplementedError("Exercise 12.2")


# %%
ng.course.check("12.2", diagnose)

# %% [markdown]
# ## Exercise 12.3: an honest split
#
# Return the places of the training and of the test examples, two lists or tensors of integers, shuffled with
# `generator`: `num_test` of the `num_examples` are for the test.


# %%
def split(num_examples, num_test, generator):
    """Return (places of training examples, places of test examples)."""
    raise NotImplementedError("Exercise 12.3")


# %%
ng.course.check("12.3", split)

# %% [markdown]
# ## Exercise 12.4: sum up a report
#
# Given a report as a dict (the form of `report.to_dict()`, with `"about"`, `"rows"` and `"failures"`), return a dict
# with `"damping"`, `"examples"` (how many), `"best"` (the approximation with the highest efficiency for the whole
# network, layer `"all"`, other than `"exact"`), its `"efficiency"`, and `"not_judged"`: a list of the names that
# failed or have no efficiency for the whole network.


# %%
def summarize(report):
    """Return {"damping", "examples", "best", "efficiency", "not_judged"} of a report."""
    raise NotImplementedError("Exercise 12.4")


# %%
ng.course.check("12.4", summarize)

# %% [markdown]
# ## Summary
#
# 1. The efficiency is the share of the possible decrease that a direction reaches; a cosine is not.
# 2. Sweep the damping, look at several moments, and compare with the noise of sampling before you call anything better.
# 3. Faults are found by properties (permute labels, copy data, damp strongly, take one example), not by performance.
#
# The row of the table:
#
# | Method | Efficiency before training | after 3 steps | after 10 steps |
# |---|---|---|---|
# | K-FAC | 93.2<!--kfac_start--> % | 80.9<!--kfac_middle--> % | 91.3<!--kfac_efficiency--> % |
#
# **Three questions to remember by.**
#
# <details><summary>Lesson 2: the labels of the data are permuted. Which of the five recipes change?</summary>
# The empirical Fisher and the Hessian.
# </details>
# <details><summary>Lesson 3: why is damping needed at all?</summary>
# The Fisher of a network is singular, and its quadratic model holds only for short steps.
# </details>
# <details><summary>Lesson 7: for which data is K-FAC's block of a layer exact?</summary>
# For a single example, and for linear networks with Gaussian outputs.
# </details>
#
# ## References
#
# - [Martens2020] on the quadratic model, damping, and what a natural gradient promises.
# - [MartensGrosse2015] on K-FAC and how its approximation is judged.
# - [Kunstner2019] on the empirical Fisher.
#
# Full entries are in `docs/references.md`.
