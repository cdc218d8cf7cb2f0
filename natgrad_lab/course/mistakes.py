"""The misconception bank: what goes wrong with Fisher matrices, in words that help and do not give the answer away.

Keys M01-M25 are mistakes seen in published code or in class; the words after them are what a reader is told. Lessons may
add their own: a dict MISTAKES in course/exercises/lessonNN.py.
"""

from functools import cache

from natgrad_lab.course.lessons import lesson_modules

BANK = {
    "M01": "Labels from the data enter. The Fisher averages over targets drawn from the model's own prediction.",
    "M02": "A mean over examples is missing: copying the data set must change nothing.",
    "M03": "Gradients of a mean loss were squared: each of them already carries 1/N, so the result is too small by 1/N.",
    "M04": "The scores were centred. The Fisher is their second moment, not their covariance about the sample mean.",
    "M05": "You averaged over parameters too. There is one number for each parameter.",
    "M06": "A factor of the squared error slipped in: here the loss is ½‖y − f‖², with no 2 and no division by the outputs.",
    "M07": "Right entries in the wrong order: the parameters of a layer are flattened row by row.",
    "M08": "The input side and the output side are swapped.",
    "M09": "The damping is on the wrong scale: look at what your answer does when the matrices are zero.",
    "M10": "π is upside down, or its traces are not divided by the dimensions.",
    "M11": "The bias is forgotten: the inputs of a layer need a 1 appended (homogeneous coordinates), or centring.",
    "M12": "The depth is missing: L layers each move the function, so together they move it L times as far.",
    "M13": "The number of locations T enters wrongly: count how often a sum over locations is taken, and where it is a mean.",
    "M14": "The kernel is flattened in another order than the patches it meets.",
    "M15": "Cutting blocks out of a positive definite matrix does not leave one: it has negative eigenvalues.",
    "M16": "The answer is the plain gradient: what was computed to precondition it is not used.",
    "M17": "There is no randomness where a target has to be drawn: one draw for each example, from the prediction.",
    "M18": "A distance between Gaussians with a wrong constant: compare it with the length of a path measured numerically.",
    "M19": "The optimizer's state stayed in the old coordinates when the parameters moved to new ones.",
    "M20": "A gradient flows through the metric, or the result still carries a graph: the metric is a constant here.",
    "M21": "Inverses were averaged. The inverse of an average is not the average of inverses.",
    "M22": "That depends on the coordinates: an angle between updates has to be measured in the Fisher's inner product.",
    "M23": "The adaptive value can only move one way.",
    "M24": "Training examples are among the test examples.",
    "M25": "The result is all zeros: something is accumulated and then not returned.",
}
GENERAL = {
    "not_written": "Not written yet.",
    "raised": "It raised an error.",
    "nothing": "It returned nothing. Is the return statement missing?",
    "kind": "What it returned is of another kind than it should be.",
    "shape": "The result has the wrong shape.",
    "not_finite": "The result holds NaN or infinity.",
    "digits": "Right to a few digits only: float32 on the way, a difference quotient, or an explicit inverse.",
    "transposed": "The result is the transpose of the right one.",
    "scaled": "The result is the right one times a constant.",
    "sign": "The result has the wrong sign.",
    "changed_input": "An argument was changed in place. Work on a copy: the caller still needs it.",
    "global_rng": "It draws from the global random numbers. Use the generator it is given, or none.",
    "slow": "It takes far longer than it should.",
    "missing": "There is no function of that name.",
    "broken": "The definition itself fails, before the function is called.",
    "ended": "It ended the process it ran in: an exit, a crash, or far too much memory.",
    "unrecognized": "The result is wrong, and it is none of the usual mistakes.",
}


@cache
def mistakes() -> dict[str, str]:
    """Every mistake that can be named: key -> words."""
    found = BANK | GENERAL
    for module in lesson_modules("exercises").values():
        for key, words in getattr(module, "MISTAKES", {}).items():
            if key in found:
                raise ValueError(f"two mistakes are called {key!r}.")
            found[key] = words
    return found
