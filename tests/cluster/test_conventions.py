"""The conventions that callers of scikit-learn's estimators rely on: options, errors, warnings, names and routing."""

import logging
import subprocess
import sys
import warnings

import numpy as np
import pytest
import sklearn
import sklearn.cluster
import torch
from cluster_data import blobs
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cmx_fast.cluster import KMeans, MiniBatchKMeans

BOTH = pytest.mark.parametrize("estimator", [KMeans, MiniBatchKMeans])


class Frame:
    """The part of a data frame that the estimators read."""

    def __init__(self, values, columns):
        self.values, self.columns, self.shape = np.asarray(values), columns, np.shape(values)

    def __array__(self, dtype=None, copy=None):
        return self.values


@BOTH
def test_takes_every_option_of_scikit_learns_class(estimator):
    theirs = getattr(sklearn.cluster, estimator.__name__)().get_params()
    ours = estimator().get_params()
    assert theirs.items() <= ours.items()


@BOTH
def test_callers_catch_scikit_learns_own_errors_and_warnings(estimator):
    for method in ("predict", "transform", "score", "get_feature_names_out"):
        with pytest.raises(NotFittedError, match=f"is not fitted yet; call fit before {method}"):
            getattr(estimator(2), method)(np.ones((2, 2)))
    with pytest.warns(
        ConvergenceWarning, match=r"distinct clusters \(1\) found smaller than n_clusters \(2\)"
    ):
        KMeans(2).fit(np.ones((4, 2)))
    assert isinstance(estimator(), sklearn.base.BaseEstimator) and sklearn.base.is_clusterer(estimator())


ONE_RUN = "Explicit initial center position passed: performing only one init in {} instead of n_init=4"


@BOTH
def test_warns_of_options_that_have_no_effect(estimator):
    x = blobs(60)
    message = ONE_RUN.format(estimator.__name__)
    with pytest.warns(RuntimeWarning, match=message):
        estimator(3, init=x[:3], n_init=4).fit(x)
    fitted = MiniBatchKMeans(3, init=x[:3], n_init=4)
    with pytest.warns(RuntimeWarning, match=ONE_RUN.format("MiniBatchKMeans")):
        fitted.partial_fit(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        fitted.partial_fit(x)
        estimator(3, init=x[:3], n_init=1).fit(x)
        estimator(3, init=x[:3]).fit(x)
    with pytest.warns(RuntimeWarning, match="init_size=2 should be larger than n_clusters=3"):
        MiniBatchKMeans(3, init_size=2).fit(x)
    with pytest.warns(RuntimeWarning, match="algorithm='elkan' doesn't make sense for a single cluster"):
        KMeans(1, algorithm="elkan").fit(x)


def test_elkan_is_the_same_result_and_the_log_says_how(caplog):
    x = blobs()
    plain = KMeans(4, random_state=0).fit(x)
    with caplog.at_level(logging.INFO, logger="cmx_fast"):
        elkan = KMeans(4, random_state=0, algorithm="elkan").fit(x)
    assert (elkan.labels_ == plain.labels_).all()
    assert "algorithm='elkan': Lloyd's iterations run" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_iter": 2.5}, "max_iter must be an integer of at least 1, got 2.5"),
        ({"max_iter": 0}, "max_iter must be an integer of at least 1, got 0"),
        ({"max_iter": True}, "max_iter must be an integer of at least 1, got True"),
        ({"tol": float("nan")}, "tol must be a number of at least 0, got nan"),
        ({"tol": "small"}, "tol must be a number of at least 0, got 'small'"),
        ({"n_init": 1.5}, "n_init must be 'auto' or an integer of at least 1, got 1.5"),
        ({"n_init": "many"}, "n_init must be 'auto' or an integer of at least 1, got 'many'"),
        ({"n_clusters": "3"}, "n_clusters must be an integer of at least 1, got '3'"),
        ({"verbose": -1}, "verbose must be an integer of at least 0, got -1"),
        ({"normalize": "no"}, "normalize must be True or False, got 'no'"),
        ({"algorithm": "full"}, "algorithm must be one of 'lloyd', 'elkan'; got 'full'"),
        ({"copy_x": 2}, "copy_x must be True or False, got 2"),
        ({"batch_size": 2.5}, "batch_size must be an integer of at least 1, got 2.5"),
        ({"max_no_improvement": -1}, "max_no_improvement must be None or an integer of at least 0, got -1"),
        ({"init_size": 0}, "init_size must be None or an integer of at least 1, got 0"),
        ({"reassignment_ratio": float("nan")}, "reassignment_ratio must be a number from 0 to 1, got nan"),
        ({"compute_labels": "yes"}, "compute_labels must be True or False, got 'yes'"),
    ],
)
@BOTH
def test_refuses_an_option_by_its_name(estimator, options, message):
    if not options.keys() <= estimator().get_params().keys():
        estimator = KMeans if estimator is MiniBatchKMeans else MiniBatchKMeans
    with pytest.raises(ValueError, match=message):
        estimator(**options).fit(blobs(60))
    if estimator is MiniBatchKMeans:
        with pytest.raises(ValueError, match=message):
            estimator(**options).partial_fit(blobs(60))


@pytest.mark.parametrize("x", [[[], []], np.ones((2, 0)), torch.ones(2, 0, 3, 3)])
def test_refuses_samples_without_features(x):
    with pytest.raises(ValueError, match=r"X holds 0 feature\(s\) \(shape=\(2, 0.*while a minimum of 1"):
        KMeans(2).fit(x)


def test_numpys_numbers_are_numbers():
    options = {
        "max_iter": np.int64(3),
        "tol": np.float32(0.1),
        "n_init": np.int32(2),
        "normalize": np.bool_(False),
    }
    assert KMeans(np.int64(2), **options).fit(blobs(60)).n_iter_ <= 3


def test_verbose_prints_every_iteration(capsys):
    x = blobs()
    quiet = KMeans(4, random_state=0).fit(x)
    assert capsys.readouterr().out == ""
    KMeans(4, random_state=0, verbose=1).fit(x)
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("Iteration ")]) == quiet.n_iter_
    assert lines[-1].startswith(f"Converged at iteration {quiet.n_iter_ - 1}: ")
    options = {"random_state": 0, "batch_size": 50, "n_init": 2}
    fitted = MiniBatchKMeans(4, verbose=True, **options).fit(x)
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("Minibatch step ")]) == fitted.n_steps_
    assert [line.split(": ")[0] for line in lines[:2]] == ["Inertia for init 1/2", "Inertia for init 2/2"]
    assert lines[-1].startswith("Converged (lack of improvement in inertia) at step ")


@BOTH
def test_names_of_columns_come_in_and_go_out(estimator):
    x = blobs(60, d=3)
    names = ["height", "width", "depth"]
    fitted = estimator(2, random_state=0).fit(Frame(x, names))
    assert fitted.feature_names_in_.tolist() == names
    prefix = estimator.__name__.lower()
    assert fitted.get_feature_names_out().tolist() == [f"{prefix}0", f"{prefix}1"]
    assert (fitted.predict(Frame(x, names)) == fitted.labels_).all()
    with pytest.raises(ValueError, match="Feature names must be in the same order as they were in fit"):
        fitted.predict(Frame(x[:, ::-1], names[::-1]))
    with pytest.raises(ValueError, match="unseen at fit time:\n- age\n.*now missing:\n- width\n"):
        fitted.transform(Frame(x, ["height", "age", "depth"]))
    with pytest.warns(UserWarning, match="X does not have valid feature names, but"):
        fitted.predict(x)
    with pytest.raises(TypeError, match=r"columns of X must all have strings as names.* \['int', 'str'\]"):
        estimator(2).fit(Frame(x, ["height", 1, 2]))
    plain = estimator(2, random_state=0).fit(Frame(x, [0, 1, 2]))
    assert not hasattr(plain, "feature_names_in_")
    with pytest.warns(UserWarning, match="X has feature names, but"):
        plain.score(Frame(x, names))
    assert not hasattr(fitted.fit(x), "feature_names_in_")


def test_a_batch_with_other_columns_is_refused_and_changes_nothing():
    x = blobs(60, d=2)
    fitted = MiniBatchKMeans(2, random_state=0).partial_fit(Frame(x, ["a", "b"]))
    before = fitted.cluster_centers_.copy()
    with pytest.raises(ValueError, match="Feature names must be in the same order"):
        fitted.partial_fit(Frame(x[:, ::-1], ["b", "a"]))
    with pytest.raises(ValueError, match="batch 1 of the stream: The feature names should match"):
        MiniBatchKMeans(2).fit_stream([Frame(x, ["a", "b"]), Frame(x, ["a", "c"])])
    assert (fitted.cluster_centers_ == before).all() and fitted.n_steps_ == 1
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        fitted.partial_fit(x)
    assert fitted.feature_names_in_.tolist() == ["a", "b"]
    assert not hasattr(fitted.fit_stream([x]), "feature_names_in_")


@BOTH
def test_output_and_metadata_are_routed(estimator):
    x, weight = blobs(200), np.random.default_rng(0).random(200)
    assert estimator().set_output(transform="default") is not None
    with sklearn.config_context(enable_metadata_routing=True):
        inner = estimator(3, random_state=0).set_fit_request(sample_weight=True)
        pipeline = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), inner).fit(
            x, sample_weight=weight
        )
    alone = estimator(3, random_state=0).fit(StandardScaler().fit_transform(x), sample_weight=weight)
    assert (pipeline[-1].cluster_centers_ == alone.cluster_centers_).all()


@BOTH
def test_arrays_that_cannot_be_written_to_are_taken_in_silence_and_left_alone(estimator):
    x = blobs(60)
    before = x.copy()
    x.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = estimator(2, random_state=0, **({"copy_x": False} if estimator is KMeans else {})).fit(x)
        fitted.cluster_centers_.flags.writeable = False
        fitted.predict(x)
    assert (x == before).all()
    wide = estimator(2, random_state=0).fit(x.astype(np.longdouble))
    assert (wide.cluster_centers_ == fitted.cluster_centers_).all()


def test_inertia_is_estimated_without_labels():
    x, weight = blobs(4000), np.random.default_rng(0).random(4000)
    options = {"random_state": 0, "max_no_improvement": None, "max_iter": 10}
    with_labels, without = (
        MiniBatchKMeans(5, compute_labels=labels, **options).fit(x, sample_weight=weight)
        for labels in (True, False)
    )
    assert without.inertia_ == pytest.approx(with_labels.inertia_, rel=0.1)
    assert not hasattr(without, "labels_")


WITHOUT = """
import sys
sys.modules["sklearn"] = None
import warnings
import numpy as np
from cmx_fast.cluster import KMeans, MiniBatchKMeans
x = np.random.default_rng(0).normal(size=(50, 3))
for estimator in (KMeans, MiniBatchKMeans):
    try:
        estimator().predict(x)
    except (ValueError, AttributeError) as error:
        assert "is not fitted yet" in str(error)
    fitted = estimator(2, random_state=0).set_params(max_iter=5).fit(x)
    assert (fitted.predict(x) == fitted.labels_).all() and fitted.transform(x).shape == (50, 2)
    assert len(fitted.get_feature_names_out()) == 2 and repr(fitted).startswith(estimator.__name__)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    KMeans(2).fit(np.ones((4, 2)))
assert any("found smaller than n_clusters" in str(warning.message) for warning in caught)
assert not any(name.startswith("sklearn.") for name in sys.modules)
"""


def test_everything_but_routing_works_without_scikit_learn():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
